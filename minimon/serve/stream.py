"""Rows of any number -> one line of scores each, in order, a chunk in memory at a time.

What is scored is JSONL (a line has the task's own field, or `text`, or a chat under `messages`) or an Inspect log, whose samples are scored
as a monitor may see them. A line of scores is {"id", "P", "decision"}: P of the task's first label, whether it is above the threshold; and
"left_out", the tokens of its middle, where a text was too long.
"""

import json
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minimon.serve.thresholds import positive
from minimon.run.processes import each, size
from minimon.evaluate import read
from minimon.files import json_row
from minimon.formats.inspect_log import is_log, read_log
from minimon.formats.records import MISSING, lookup
from minimon.tasks import Task
from minimon.formats.transcript import text_of

CHUNK_ROWS, CHUNK_CHARS = 256, 2 ** 20         # what is scored together is at most this, or one row


class Item(NamedTuple):
    id: object                                 # the row's own, or its line's number
    text: str | None                           # None for a sample that is not scored
    about: dict                                # what else its line of scores says


def items(path: str, task: Task):
    """Items of a JSONL file, of standard input ("-") or of an Inspect log. Raises ValueError naming file and line."""
    if path != "-" and is_log(path):
        for record in read_log(path):
            where = f"{path}: {record['id']}"
            if "skipped" in record:
                yield Item(record["id"], None, {"skipped": record["skipped"]})
            else:
                about = {"compacted": True} if record.get("compacted") else {}
                yield Item(record["id"], text_of(record, "messages", where, task.max_chars, task.reasoning), about)
        return
    with input_lines(path) as (name, lines):
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: expected UTF-8 text, got byte {line[error.start]:#04x} at byte {error.start + 1} of the line; "
                                 "convert the file to UTF-8") from error
            if text.strip():
                record = json_row(text, where)
                yield Item(row_id(record, number, where), row_text(task, record, where), {})


@contextmanager
def input_lines(path: str):
    if path == "-":
        yield "standard input", sys.stdin.buffer
    else:
        with open(path, "rb") as file:
            yield path, file


def row_id(record: dict, number: int, where: str):
    try:
        json.dumps(record.get("id"), allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{where}: expected an id that JSON has a word for, got {record['id']!r}") from error
    return record.get("id", number)


def row_text(task: Task, record: dict, where: str) -> str:
    """The task's own text; of a row without it, what is under `text` or `messages`."""
    if lookup(record, task.text, where, MISSING) is MISSING:
        for name in ("text", "messages"):
            if name in record:
                return text_of(record, name, where, task.max_chars, task.reasoning)
    return task.text_of(record, where)


def score_items(model, tokenizer, task: Task, found, *, threshold: float | None, temperature: float = 1.0, batch_tokens: int | None = None):
    """Items -> lists of lines, a chunk each; several processes score one each at a time. Where `found` raises, what came before it is
    scored first."""
    chunks, problem, some = chunks_of(found), None, True
    while some and problem is None:
        some = []
        try:
            for chunk in islice(chunks, size()):
                some.append(chunk)
        except (ValueError, OSError) as error:
            problem = error
        yield from each([len(chunk) for chunk in some],
                        lambda i: score_chunk(model, tokenizer, task, some[i], threshold, temperature, batch_tokens), model)
    if problem:
        raise problem


def chunks_of(found):
    """Items -> lists of them. Where `found` raises, what came before it is a chunk first."""
    chunk, chars = [], 0
    try:
        for item in found:
            chunk.append(item)
            chars += len(item.text or "")
            if len(chunk) == CHUNK_ROWS or chars >= CHUNK_CHARS:
                yield chunk
                chunk, chars = [], 0
    except (ValueError, OSError) as error:
        if chunk:
            yield chunk
        raise error
    if chunk:
        yield chunk


def score_chunk(model, tokenizer, task, chunk, threshold, temperature, batch_tokens) -> list[dict]:
    texts = [item.text for item in chunk if item.text is not None]
    reading = read(model, tokenizer, task, texts, batch_tokens=batch_tokens)
    scores, lines = iter(zip(positive(reading.P.numpy(), temperature).tolist(), reading.left_out.tolist())), []
    for item in chunk:
        p, cut = (None, 0) if item.text is None else next(scores)
        lines.append({"id": item.id, "P": p, "decision": None if p is None or threshold is None else p > threshold, **item.about,
                      **({"left_out": cut} if cut else {})})
    return lines


def count_lines(path: str) -> int | None:
    """Lines of a JSONL file; None for standard input and for logs."""
    if path == "-" or is_log(path):
        return None
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2 ** 20), b""))


# ---- going on ----------------------------------------------------------------------------------------------------------------


def whole_lines(path: Path) -> tuple[int, int, dict | None]:
    """(lines, bytes of them, the last line) of a file of scores whose last line may be cut off."""
    count, size, last = 0, 0, b""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, size, last = count + 1, size + len(line), line
    return count, size, json_row(last.decode("utf-8", "replace"), f"{path}:{count}") if count else None


def after(found, scored: Path, count: int):
    """The items that follow the first `count`, whose ids have to be those of the scores already written; the last of them comes again."""
    number = 0
    with open(scored, "rb") as file:
        for number, item in enumerate(found, 1):
            if number <= count:
                line = json_row(file.readline().decode("utf-8", "replace"), f"{scored}:{number}")
                if line.get("id") != item.id:
                    raise ValueError(f"{scored}:{number}: expected the score of row {item.id!r}, got that of {line.get('id')!r}: these are "
                                     "scores of other rows; remove the file to start again")
            if number >= count:
                yield item
    if number < count:
        raise ValueError(f"{scored}: expected no more scores than rows, got {count} of {number} rows; remove the file to start again")


def check_again(line: dict, again: dict, path: Path) -> None:
    """The last row scored before is scored again: another task, adapter or threshold would show."""
    p, q = line.get("P"), again["P"]
    same = p is q is None or type(p) in (int, float) and q is not None and q - 1e-4 < p < q + 1e-4
    if not same or (line.get("decision") is None) != (again["decision"] is None):
        raise ValueError(f"{path}: expected P {q} for row {again['id']!r}, got {p}: these are scores of another adapter, task or "
                         "threshold; remove the file to start again")
