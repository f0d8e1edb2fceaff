"""Items of any number -> a line of scores each, in order, a chunk in memory at a time.

A line is {"id", "log_odds", "P", "decision"} of the task's first label, with more where there is more to say:
"by_label" and "likeliest" of three labels or more, "left_out" tokens of a text that was too long, "file" of
several, "skipped" with the reason why it has no score. Beside a file of scores lies FILE.about.json: hashes of
adapter, task and input, the threshold and where it comes from. --resume goes on only where these are the same."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimon.files import json_row, read_json, sha256, write_json
from minimon.run.cli import check_output
from minimon.run.processes import dealing, from_first, rank, size
from minimon.serve.inputs import STDIN, Item, piped_items, read_items

CHUNK_ROWS, CHUNK_CHARS = 256, 2**20  # scored together at most, or one row
FIRST_ROWS = 8  # of the first chunk, so that scores come at once


def score_stream(
    monitor, files: list[str], out, *, resume=False, overwrite=False, with_text=False, on_rows=None
) -> bool:
    """Scores the rows of files (inputs.input_files) into the file named `out`, or into an open stream.

    -> False where `resume` finds all of it done. Several processes share the work, the first of them writes.
    on_rows(n): n more rows are done. Raises ValueError naming file and line; what came before it is scored
    first. At the end a line on stderr says how many rows were flagged, and how many not scored."""
    to_file = isinstance(out, (str, Path))
    counts, stream, failures = Counter(), nullcontext(out), []
    if to_file:
        about = about_scores(monitor, files) | {"with_text": with_text}
        counts = from_first(lambda: prepare(Path(out), about, resume, overwrite))
        if counts is None:
            return False
        stream = open(os.devnull if rank() else part_of(out), "a", encoding="utf-8")
    done = counts.total()
    if files == [STDIN]:
        groups = piped_items(monitor.task)
    else:
        groups = [islice(read_items(files, monitor.task), done, None)]
    if on_rows:
        on_rows(done)
    with stream as target:
        for lines in score_chunks(monitor, chunks_of(groups, failures), with_text):
            target.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
            target.flush()
            counts.update(map(outcome, lines))
            if on_rows:
                on_rows(len(lines))
    if failures:
        raise failures[0]
    if to_file:
        from_first(lambda: finish(Path(out)))
    if rank() == 0:
        tqdm.write(outcome_line(counts, monitor.threshold is not None), file=sys.stderr)
    return True


def outcome(line: dict) -> bool | str | None:
    """Its decision, None without a threshold; of a row that was not scored the reason."""
    return line.get("skipped", line.get("decision"))


def outcome_line(counts: Counter, decided: bool) -> str:
    """8 rows: 2 flagged, 4 not, 2 not scored (error)"""
    total = counts.total()
    parts = [f"{counts[True]} flagged", f"{counts[False]} not"] if decided else [f"{counts[None]} scored"]
    parts += [f"{count} not scored ({why})" for why, count in counts.items() if isinstance(why, str)]
    return f"{total} {'row' if total == 1 else 'rows'}: {', '.join(parts)}"


def chunks_of(groups: Iterable[Iterable[Item]], failures: list[Exception]) -> Iterator[list[Item]]:
    """Items -> lists of them, each twice as long as the last, up to a limit; none goes on in another group.

    Where reading fails, what came before it is the last list, and the error goes to `failures`."""
    most = FIRST_ROWS
    for items in groups:
        chunk, chars = [], 0
        try:
            for item in items:
                chunk.append(item)
                chars += len(item.text or "")
                if len(chunk) >= min(most, CHUNK_ROWS) or chars >= CHUNK_CHARS:
                    yield chunk
                    chunk, chars, most = [], 0, 2 * most
        except (ValueError, OSError) as error:
            failures.append(error)
        if chunk:
            yield chunk
        if failures:
            return


def score_chunks(monitor, chunks: Iterator[list[Item]], with_text: bool = False) -> Iterator[list[dict]]:
    """Lists of lines; of several processes each scores a chunk at a time."""
    each = dealing(monitor.model, cost=len)
    while dealt := list(islice(chunks, size())):
        yield from each(lambda chunk: score_chunk(monitor, chunk, with_text), dealt)


def score_chunk(monitor, chunk: list[Item], with_text: bool = False) -> list[dict]:
    scored = monitor.score_texts([item.text for item in chunk if item.text is not None])
    labels = list(monitor.task.labels)
    lines, row = [], 0
    for item in chunk:
        line = {"id": item.id, "log_odds": None, "P": None, "decision": None}
        if item.text is not None:
            line |= scored.line(row)
            if len(labels) > 2:
                by_label = scored.by_label[row]
                line["likeliest"] = labels[int(np.argmax(by_label))]
                line["by_label"] = dict(zip(labels, by_label.tolist()))
            if scored.left_out[row]:
                line["left_out"] = int(scored.left_out[row])
            row += 1
        line |= item.about
        if with_text:
            line |= {"text": item.text, "metadata": item.metadata}
        lines.append(line)
    return lines


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
        "task": {"name": task.name, "sha256": hashlib.sha256(json.dumps(shown).encode()).hexdigest()},
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


def prepare(out: Path, about: dict, resume: bool, overwrite: bool) -> Counter | None:
    """Outcomes of the rows of `out` that are scored already, None for all of them; its sidecar is in place
    then."""
    refuse_existing(out, resume, overwrite)
    part = part_of(out)
    if overwrite:
        part.unlink(missing_ok=True)
    elif part.exists():  # beside a finished file where that is being replaced
        check_about(part, about_of(part) if about_of(part).exists() else about_of(out), about)
        return scored_already(part)
    elif out.exists():
        check_about(out, about_of(out), about)
        return None
    write_json(about_of(part), about)
    part.touch()
    return Counter()


def check_about(path: Path, sidecar: Path, about: dict) -> None:
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


def scored_already(part: Path) -> Counter:
    """Outcomes of the lines of an unfinished file; a last one that is cut off goes."""
    counts, length = Counter(), 0
    with open(part, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                counts[outcome(json_row(line.decode(), f"{part}:{number}"))] += 1
                length += len(line)
    os.truncate(part, length)
    return counts


def finish(out: Path) -> None:
    """The sidecar goes first: a file of scores is never without its own."""
    part = part_of(out)
    if about_of(part).exists():
        os.replace(about_of(part), about_of(out))
    os.replace(part, out)
