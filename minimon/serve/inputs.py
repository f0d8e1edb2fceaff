"""Files of any kind that training reads, and standard input -> items to score, one at a time.

JSONL (also .gz, and standard input) is read a line at a time, an .eval log a sample at a time; a table (.csv,
.tsv) and what is .json are read whole, as in training. A row is an object with the task's own field, or
`text`, or a chat under `messages`; of a log a sample is what a monitor may see of it."""

import glob
import gzip
import json
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from minimon.files import json_row, read_rows
from minimon.formats.inspect_log import is_log, read_log
from minimon.formats.records import lookup
from minimon.formats.transcript import text_of
from minimon.tasks import Task

STDIN = "-"
TABLES = ("csv", "tsv", "json")
MISSING = object()


class Item(NamedTuple):
    id: object  # the row's own, or the number of its line
    text: str | None  # None for what is not scored: a log's sample that failed, an empty text
    about: dict  # what else its line of scores says
    metadata: dict  # the fields of its row beside id and text


def input_files(entry: str) -> list[str]:
    """FILE, a folder of Inspect logs, a pattern with * or ?, or several of these with commas between -> files
    in order.

    "-" is standard input. Raises FileNotFoundError where a part stands for no file."""
    if entry == STDIN:
        return [STDIN]
    parts = [entry] if Path(entry).exists() else entry.split(",")
    return [file for part in parts for file in files_of(part)]


def files_of(part: str) -> list[str]:
    path = Path(part)
    if path.is_file():
        return [part]
    if path.is_dir():
        found = sorted(path.rglob("*.eval")) or [
            file for file in sorted(path.rglob("*.json")) if is_log(file)
        ]
    else:
        found = [name for name in sorted(glob.glob(part, recursive=True)) if Path(name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{part}: expected rows to score, found no such file, folder of logs or pattern"
        )
    return [str(file) for file in found]


def read_items(files: list[str], task: Task):
    """Items of all files; of several each says its file. Raises ValueError naming file and line."""
    for file in files:
        about = {"file": file} if len(files) > 1 else {}
        for item in log_items(file, task) if file != STDIN and is_log(file) else row_items(file, task):
            yield item._replace(about={**about, **item.about})


def log_items(file: str, task: Task):
    for record in read_log(file):
        metadata = {
            key: value
            for key, value in record.items()
            if key not in ("id", "messages", "skipped", "compacted")
        }
        if "skipped" in record:
            yield Item(record["id"], None, {"skipped": record["skipped"]}, finite(metadata))
            continue
        about = {"compacted": True} if record.get("compacted") else {}
        text = text_of(record, "messages", f"{file}: {record['id']}", task.max_chars, task.reasoning)
        yield Item(record["id"], text, about, finite(metadata))


def row_items(file: str, task: Task):
    shown = {"id", "text", "messages", task.text}
    for number, record in numbered_rows(file):
        where = f"{'standard input' if file == STDIN else file}:{number}"
        metadata = {key: value for key, value in record.items() if key not in shown}
        text, about = row_text(task, record, where), {}
        if not text.strip():
            text, about = None, {"skipped": "empty text"}
        yield Item(row_id(record, number, where), text, about, finite(metadata))


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


def finite(value: dict) -> dict:
    """NaN and infinities, which logs hold and JSON does not know, become null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


# ---- lines -------------------------------------------------------------------------------------------------


def numbered_rows(file: str):
    """(number of its line, row): of what is neither a table nor a .json list, one JSON object a line."""
    if kind_of(file) in TABLES:
        yield from read_rows(file)
        return
    with open_lines(file) as (name, lines):
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{where}: expected UTF-8 text, got byte {line[error.start]:#04x} at byte "
                    f"{error.start + 1} of the line; convert the file to UTF-8"
                ) from error
            if text.strip():
                yield number, json_row(text, where)


def kind_of(file: str) -> str:
    return Path(file.removesuffix(".gz")).suffix.lstrip(".")


@contextmanager
def open_lines(file: str):
    if file == STDIN:
        yield "standard input", sys.stdin.buffer
    elif not file.endswith(".gz"):
        with open(file, "rb") as lines:
            yield file, lines
    else:
        try:
            with gzip.open(file, "rb") as lines:
                yield file, lines
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{file}: expected a whole gzip file, got an error: {error}; fetch it again"
            ) from error


def count_lines(files: list[str]) -> int | None:
    """Lines of files of JSONL; None where only reading would tell."""
    total = 0
    for file in files:
        if file == STDIN or file.endswith(".gz") or kind_of(file) in TABLES or is_log(file):
            return None
        with open(file, "rb") as lines:
            for block in iter(lambda lines=lines: lines.read(2**20), b""):
                total += block.count(b"\n")
    return total
