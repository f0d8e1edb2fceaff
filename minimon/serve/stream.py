"""Items of any number -> a line of scores each, in order, a chunk in memory at a time.

A line is {"id", "log_odds", "P", "decision"} of the task's first label, with more where there is more to say:
"by_label" and "likeliest" of three labels or more, "left_out" tokens of a text that was too long, "file" of
several, "skipped" with the reason why it has no score. Beside a file of scores lies FILE.about.json: hashes of
adapter, task and input, the threshold and where it comes from. --resume goes on only where these are the same."""

import hashlib
import json
import os
import queue
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimon.files import json_row, read_json, sha256, write_json
from minimon.run.cli import check_output
from minimon.run.processes import dealing, from_first, rank, size
from minimon.serve.inputs import STDIN, read_items

CHUNK_ROWS, CHUNK_CHARS = 256, 2**20  # scored together at most, or one row
FIRST_ROWS = 8  # of the first chunk, so that scores come at once


def score_stream(
    monitor, files: list[str], out, *, resume=False, overwrite=False, with_text=False, on_rows=None
) -> bool:
    """Scores the rows of files (inputs.input_files) into the file named `out`, or into an open stream.

    -> False where `resume` finds all of it done. Several processes share the work, the first of them writes.
    on_rows(n): n more rows are done. Raises ValueError naming file and line; what came before it is scored
    first. At the end a line on stderr says how many rows were flagged, and how many not scored."""
    items, done, stream = read_items(files, monitor.task), 0, nullcontext(out)
    counts = Counter()
    if isinstance(out, (str, Path)):
        about = about_scores(monitor, files) | {"with_text": with_text}
        done = from_first(lambda: prepare(Path(out), about, resume, overwrite))
        if done is None:
            return False
        if done and rank() == 0:
            counts.update(outcomes_of(part_of(out)))
        items = islice(items, done, None)
        stream = open(os.devnull if rank() else part_of(out), "a", encoding="utf-8")
    if on_rows:
        on_rows(done)
    chunks = live_chunks(items) if files == [STDIN] else chunks_of(items)
    with stream as target:
        for lines in score_chunks(monitor, chunks, with_text):
            target.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
            target.flush()
            counts.update(map(outcome, lines))
            if on_rows:
                on_rows(len(lines))
    if isinstance(out, (str, Path)):
        from_first(lambda: finish(Path(out)))
    if rank() == 0:
        tqdm.write(outcome_line(counts, monitor.threshold is not None), file=sys.stderr)
    return True


def outcome(line: dict) -> bool | str | None:
    """Its decision, None without a threshold; of a row that was not scored the reason."""
    return line.get("skipped", line.get("decision"))


def outcomes_of(part: Path):
    """Those of the lines of an unfinished file, a line in memory at a time."""
    with open(part, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield outcome(json_row(line, f"{part}:{number}"))


def outcome_line(counts: Counter, decided: bool) -> str:
    """8 rows: 2 flagged, 4 not, 2 not scored (error)"""
    total = counts.total()
    skipped = {reason: count for reason, count in counts.items() if isinstance(reason, str)}
    parts = [f"{counts[True]} flagged", f"{counts[False]} not"] if decided else [f"{counts[None]} scored"]
    if skipped:
        reasons = list(skipped) if len(skipped) == 1 else [f"{n} {reason}" for reason, n in skipped.items()]
        parts.append(f"{sum(skipped.values())} not scored ({', '.join(reasons)})")
    return f"{total} {'row' if total == 1 else 'rows'}: {', '.join(parts)}"


def score_chunks(monitor, chunks, with_text: bool = False):
    """Chunks of items -> lists of lines; of several processes each scores one at a time."""
    each, problem = dealing(monitor.model, cost=len), None
    while problem is None:
        some = []
        try:
            for chunk in islice(chunks, size()):
                some.append(chunk)
        except (ValueError, OSError) as error:
            problem = error
        if not some:
            break
        yield from each(lambda chunk: score_chunk(monitor, chunk, with_text), some)
    if problem is not None:
        raise problem


def score_chunk(monitor, chunk: list, with_text: bool = False) -> list[dict]:
    scored = monitor.score_texts([item.text for item in chunk if item.text is not None])
    lines, row = [], 0
    for item in chunk:
        line = {"id": item.id, "log_odds": None, "P": None, "decision": None}
        if item.text is not None:
            line |= scores_of(monitor, scored, row)
            row += 1
        line |= item.about
        if with_text:
            line |= {"text": item.text, "metadata": item.metadata}
        lines.append(line)
    return lines


def scores_of(monitor, scored, row: int) -> dict:
    found = {
        "log_odds": float(scored.log_odds[row]),
        "P": float(f"{scored.P[row]:.6g}"),
        "decision": None if scored.decision is None else bool(scored.decision[row]),
    }
    labels = list(monitor.task.labels)
    if len(labels) > 2:
        found["likeliest"] = labels[int(np.argmax(scored.by_label[row]))]
        found["by_label"] = dict(zip(labels, scored.by_label[row].tolist(), strict=True))
    if scored.left_out[row]:
        found["left_out"] = int(scored.left_out[row])
    return found


# ---- chunks ------------------------------------------------------------------------------------------------


def chunks_of(items):
    """Items -> lists of them, each twice as long as the last, up to a limit. Where `items` raises, what came
    before it is a chunk first."""
    chunk, chars, most = [], 0, min(FIRST_ROWS, CHUNK_ROWS)
    try:
        for item in items:
            chunk.append(item)
            chars += len(item.text or "")
            if len(chunk) == most or chars >= CHUNK_CHARS:
                yield chunk
                chunk, chars, most = [], 0, min(2 * most, CHUNK_ROWS)
    except (ValueError, OSError) as error:
        if chunk:
            yield chunk
        raise error
    if chunk:
        yield chunk


def live_chunks(items):
    """Items of a pipe -> lists of those that have come: a slow one has its rows scored as they come."""
    waiting = queue.Queue(CHUNK_ROWS)
    end = object()

    def read():
        try:
            for item in items:
                waiting.put(item)
            waiting.put(end)
        except Exception as error:  # raised again where it is waited for
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    last = None
    while last is None:
        chunk, chars = [], 0
        while len(chunk) < CHUNK_ROWS and chars < CHUNK_CHARS and not (chunk and waiting.empty()):
            item = waiting.get()
            if item is end or isinstance(item, Exception):
                last = item
                break
            chunk.append(item)
            chars += len(item.text or "")
        if chunk:
            yield chunk
    if last is not end:
        raise last


# ---- a file of scores --------------------------------------------------------------------------------------


def part_of(out) -> Path:
    return Path(f"{out}.part")


def about_of(out) -> Path:
    return Path(f"{out}.about.json")


def about_scores(monitor, files: list[str]) -> dict:
    """What scores follow from."""
    task, run = monitor.task, monitor.settings
    shown = [task.prompt, task.prompt_position, list(task.labels), task.text, task.max_chars, task.reasoning]
    return {
        "adapter": monitor.adapter,
        "model": run.model,
        "date": run.date,
        "max_tokens": run.max_tokens,
        "dtype": str(monitor.model.lm_head.weight.dtype).removeprefix("torch."),
        "task": {"name": task.name, "sha256": hashlib.sha256(json.dumps(shown).encode("utf-8")).hexdigest()},
        "threshold": None if monitor.threshold is None else str(monitor.threshold),
        "temperature": monitor.temperature,
        "calibration": monitor.calibration,
        "input": {file: None if file == STDIN else sha256(file) for file in files},
    }


def refuse_existing(out: Path, resume: bool, overwrite: bool) -> None:
    """What exists is only replaced with `overwrite`, and only gone on with with `resume`."""
    if out.is_dir():
        raise ValueError(f"{out}: expected the name of a file for the scores, got a directory")
    if resume or overwrite:
        return
    if part_of(out).exists():
        advice = "give --resume to go on, --overwrite to start again, or name another --out"
        raise ValueError(f"{part_of(out)}: holds scores that are not finished; {advice}")
    check_output(out, overwrite)


def prepare(out: Path, about: dict, resume: bool, overwrite: bool) -> int | None:
    """Rows of `out` that are scored already, None for all of them; its sidecar is in place then."""
    refuse_existing(out, resume, overwrite)
    part = part_of(out)
    if out.exists() and not overwrite:
        check_about(out, about)
        return None
    if part.exists() and not overwrite:
        check_about(part, about)
        return whole_lines(part)
    part.unlink(missing_ok=True)
    write_json(about_of(part), about)
    part.touch()
    return 0


def check_about(path: Path, about: dict) -> None:
    sidecar = about_of(path)
    if not sidecar.is_file():
        raise ValueError(
            f"{path}: expected {sidecar.name} beside it, found none; give --overwrite to start again"
        )
    saved = read_json(sidecar)
    changed = [key for key in sorted({*saved, *about}) if saved.get(key) != about.get(key)]
    if changed:
        raise ValueError(
            f"{path}: these are scores of another {', '.join(changed)} (see {sidecar.name}); name another "
            "--out, or give --overwrite to start again"
        )


def whole_lines(part: Path) -> int:
    """Lines of an unfinished file; a last one that is cut off goes."""
    count, length = 0, 0
    with open(part, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, length = count + 1, length + len(line)
    os.truncate(part, length)
    return count


def finish(out: Path) -> None:
    part = part_of(out)
    os.replace(about_of(part), about_of(out))
    os.replace(part, out)
