"""Files of any kind that training reads, and standard input -> items to score, one at a time.

JSONL and standard input are read a line at a time, an .eval log a sample at a time; a table (.csv, .tsv), what is .json and
what is compressed (.gz) are read whole, as in training. A row is an object with the task's own field, or `text`, or a chat under
`messages`; of a log a sample is what a monitor may see of it."""

import glob
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minimon.files import json_lines, read_jsonl, read_rows
from minimon.formats.inspect_log import is_log, read_log
from minimon.formats.records import lookup
from minimon.formats.transcript import text_of
from minimon.tasks import Task

STDIN = "-"
WHOLE = (".csv", ".tsv", ".json", ".gz")  # files that are read at once, as in training
BLOCK = 2**16  # bytes of a pipe that are read at once, at most


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
    if path.is_dir():
        logs = sorted(path.rglob("*.eval"))
        found = logs or [file for file in sorted(path.rglob("*.json")) if is_log(file)]
    else:
        names = [part] if path.exists() else sorted(glob.glob(part, recursive=True))
        found = [name for name in names if Path(name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{part}: expected rows to score, found no such file, folder of logs or pattern"
        )
    return [str(file) for file in found]


def read_items(files: list[str], task: Task) -> Iterator[Item]:
    """Items of all files; of several each says its file. Raises ValueError naming file and line."""
    for file in files:
        rows = read_rows if file.endswith(WHOLE) else read_jsonl
        items = log_items(file, task) if is_log(file) else row_items(rows(file), file, task)
        for item in items:
            yield item._replace(about={"file": file, **item.about}) if len(files) > 1 else item


def piped_items(task: Task) -> Iterator[Iterator[Item]]:
    """Items of standard input: together those whose lines have come when it is asked for more."""
    number, rest, block = 1, b"", b"\n"
    while block:
        block = sys.stdin.buffer.read1(BLOCK)
        *lines, rest = (rest + block).split(b"\n")
        if not block:
            lines = [rest]  # the last line may have no end
        yield row_items(json_lines(lines, "standard input", number), "standard input", task)
        number += len(lines)


def log_items(file: str, task: Task) -> Iterator[Item]:
    for record in read_log(file):
        text = None
        if "skipped" not in record:
            text = text_of(record, "messages", f"{file}: {record['id']}", task.max_chars, task.reasoning)
        about = {key: record[key] for key in ("skipped", "compacted") if key in record}
        yield Item(record["id"], text, about, others(record, "id", "messages", *about))


def row_items(rows: Iterable[tuple[int, dict]], name: str, task: Task) -> Iterator[Item]:
    for number, record in rows:
        where, fields = f"{name}:{number}", (task.text, "text", "messages")
        held = [field for field in fields if lookup(record, field, where, None) is not None]
        field = held[0] if held else task.text
        text, about = text_of(record, field, where, task.max_chars, task.reasoning), {}
        if not text.strip():
            text, about = None, {"skipped": "empty text"}
        yield Item(finite(record.get("id", number)), text, about, others(record, "id", *fields))


def others(record: dict, *shown: str) -> dict:
    return finite({key: value for key, value in record.items() if key not in shown})


def finite(value):
    """NaN and infinities, which rows and logs hold and JSON does not know, become null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)
