"""A task: one classification prompt over rows of one domain, from a TOML table and a file of rows in the format it came in."""

import hashlib
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from minimon.files import read_toml
from minimon.records import KEYS, Reading, lookup, make_reading, records, same
from minimon.transcript import text_of

SIDES = ("train", "validation", "test")
TASK_KEYS = {"name", "domain", "prompt", "prompt_position", "rows", "text", "label", "labels", "skip", "split", "default", "group",
             "unique", "max_chars", "reasoning"} | KEYS


@dataclass(frozen=True)
class Row:
    text: str                                  # what is judged
    label: int                                 # index into the task's labels; 0 is the positive
    side: str                                  # train | validation | test
    where: str                                 # file:line


@dataclass(frozen=True)
class Task:
    """One classification prompt and its rows. The first of `labels` is the positive."""

    name: str
    domain: str
    prompt: str
    path: Path                                 # of the rows; * and ? stand for many files; with a source the folder of its files
    text: str                                  # field of the text, dots descend; or a template with {field}s; turns become a transcript
    label: str | list | None                   # field of the label; None where rows are only to be scored; of several the first label found
    labels: dict[str, list]                    # answer word -> values of the label field
    skip: tuple = ()                           # values whose rows are left out
    split: str | dict = field(default_factory=lambda: {"train": 0.8, "validation": 0.0, "test": 0.2}, hash=False)
    where: str = ""                            # the task file
    prompt_position: str = "before"            # the text, as a turn of its own; or "after" it, in the same turn
    reading: Reading = field(default_factory=Reading, hash=False)
    default: object = ...                      # value of a label field that a row lacks; ... for an error
    group: str | None = None                   # rows of equal value in this field fall on one side of a split by fractions
    unique: bool = False                       # leave out repeated texts, and texts that carry two labels
    max_chars: int | None = None               # of a longer text the middle is cut
    reasoning: bool = False                    # show a model's reasoning in transcripts

    @cached_property
    def rows(self) -> list[Row]:
        """All labelled rows, read once. Raises ValueError naming file and line."""
        rows = [row for where, record in records(self.path, self.reading) if (row := self.row(record, where))]
        rows = distinct(rows) if self.unique else rows
        sides = {}
        for row in rows:
            other = sides.setdefault(row.text, row)
            if other.side != row.side:
                raise ValueError(f"{row.where}: task {self.name!r}: expected a text on one side of the split, got the same text in "
                                 f"{row.side} here and in {other.side} at {other.where}; remove one")
        return rows

    def row(self, record: dict, where: str) -> Row | None:
        text = self.text_of(record, where)
        fields = [self.label] if isinstance(self.label, str) else self.label
        found = [lookup(record, name, where, self.default) for name in fields]
        if any(same(value, skipped) for value in found for skipped in self.skip):
            return None
        for index, values in enumerate(self.labels.values()):
            if any(same(value, known) for value in found for known in values):
                return Row(text, index, self.side(record, text, where), where)
        known = [item for values in self.labels.values() for item in values]
        raise ValueError(f"{where}: task {self.name!r}: expected {', '.join(fields)} to be one of {known}, got "
                         f"{', '.join(map(repr, found))}; map it under labels in {self.where}, or leave it out under skip")

    def text_of(self, record: dict, where: str) -> str:
        return text_of(record, self.text, where, self.max_chars, self.reasoning)

    def side(self, record: dict, text: str, where: str) -> str:
        """By the named field, or by a hash of the group or the text, so that equal texts always fall on one side."""
        if isinstance(self.split, str):
            side = lookup(record, self.split, where)
            if side not in SIDES:
                raise ValueError(f"{where}: expected {self.split} to be one of {', '.join(SIDES)}; got {side!r}")
            return side
        key = text if self.group is None else str(lookup(record, self.group, where))
        point = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2 ** 64
        for side in SIDES:
            point -= self.split.get(side, 0.0)
            if point < 0:
                return side
        return "test"

    def select(self, side: str, count: int | None, *, balance: bool, seed) -> list[Row]:
        """At most `count` rows of one side, with `balance` equally many of each label; a function of the seed."""
        rng = random.Random(f"rows-{seed}-{self.name}-{side}")
        rows = [row for row in self.rows if row.side == side]
        rng.shuffle(rows)
        if not balance:
            return rows[:count]
        pools = [[row for row in rows if row.label == label] for label in range(len(self.labels))]
        each = min([len(pool) for pool in pools] + ([count // len(pools)] if count else []))
        chosen = [row for pool in pools for row in pool[:each]]
        rng.shuffle(chosen)
        return chosen


def load_task(path, name: str | None = None) -> Task:
    """The task of a file, or the one called `name`."""
    tasks = [task for task in load_tasks(path) if name in (None, task.name)]
    if len(tasks) != 1:
        raise ValueError(f"{path}: expected one task{f' called {name!r}' if name else ''}, got {len(tasks)}; "
                         "name one as FILE#NAME")
    return tasks[0]


def load_tasks(path) -> list[Task]:
    """The tasks of one TOML file: a single table, or many under [[task]], with the keys beside them shared by all."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a task file, found none")
    data = read_toml(path)
    tables = data.pop("task", [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: expected one task's keys, or [[task]] tables")
    return [make_task({**data, **table}, path) for table in tables]


def make_task(table: dict, path: Path) -> Task:
    where = f"{path}: task {table.get('name', '(no name)')!r}"
    problems = [f"unknown key {key!r}" for key in sorted(set(table) - TASK_KEYS)]
    problems += [f"expected a text for {key}, got {table.get(key)!r}" for key in ("name", "domain", "prompt", "rows", "text", "label")
                 if not (isinstance(table.get(key), str) and table[key].strip()) and not (key == "label" and is_names(table.get(key)))]
    labels = table.get("labels")
    if not isinstance(labels, dict) or len(labels) < 2 or not all(isinstance(v, list) and v for v in labels.values()):
        problems.append(f"expected labels = {{ Yes = [values], No = [values] }}, two or more, got {labels!r}")
    elif any(same(a, b) for i, one in enumerate(labels.values()) for other in list(labels.values())[i + 1:] for a in one for b in other):
        problems.append("expected each value under one label, got the same value under two")
    if table.get("prompt_position", "before") not in ("before", "after"):
        problems.append(f'expected prompt_position = "before" or "after" (the text), got {table["prompt_position"]!r}')
    if not isinstance(table.get("skip", []), list):
        problems.append(f"expected a list for skip, got {table['skip']!r}")
    split = table.get("split", {"train": 0.8, "test": 0.2})
    fractions = isinstance(split, dict) and set(split) <= set(SIDES) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in split.values())
    if not isinstance(split, str) and not (fractions and abs(sum(split.values()) - 1) < 1e-9):
        problems.append(f"expected split to be a field, or fractions of {', '.join(SIDES)} that add up to 1; got {split!r}")
    for key, kind, words in (("group", str, "a field"), ("unique", bool, "true or false"), ("reasoning", bool, "true or false"),
                             ("max_chars", int, "a number from 100")):
        value = table.get(key)
        if key in table and (type(value) is not kind or kind is int and value < 100):
            problems.append(f"expected {words} for {key}, got {value!r}")
    reading = make_reading(table, problems)
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return Task(table["name"], table["domain"], table["prompt"], path.parent / table["rows"], table["text"], table["label"],
                labels, tuple(table.get("skip", ())), split, str(path), table.get("prompt_position", "before"), reading,
                table.get("default", ...), **{key: table[key] for key in ("group", "unique", "max_chars", "reasoning") if key in table})


def is_names(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def distinct(rows: list[Row]) -> list[Row]:
    """Each text once, and none that carries two labels."""
    first, labels = {}, {}
    for row in rows:
        first.setdefault(row.text, row)
        labels.setdefault(row.text, set()).add(row.label)
    return [row for row in first.values() if len(labels[row.text]) == 1]
