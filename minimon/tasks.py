"""Tasks and mixtures: TOML and rows -> prompts, texts and label indices, checked before anything is trained.

A task is one prompt over rows of one domain. A mixture names the tasks to train on and, in splits, those to evaluate on; a split's
tasks may stand in groups. All that is wrong with a mixture is refused by name: the verdict is void otherwise.
"""

import fnmatch
import hashlib
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from minimon.files import read_rows, read_toml
from minimon.instruct import Instruct, instruct_table

DECODING = {"thinking": 1024, "summary": 256}         # splits in which the model writes first: max_new_tokens if not given
SPLITS = ("trained", "new_domain", "new_prompt", *DECODING)
SIDES = ("train", "validation", "test")
TASK_KEYS = {"name", "domain", "prompt", "prompt_position", "rows", "text", "label", "labels", "skip", "split"}


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
    path: Path                                 # of the rows
    text: str                                  # field of the text; dots descend
    label: str | None                          # field of the label; None where rows are only to be scored
    labels: dict[str, list]                    # answer word -> values of the label field
    skip: tuple = ()                           # values whose rows are left out
    split: str | dict = field(default_factory=lambda: {"train": 0.8, "validation": 0.0, "test": 0.2}, hash=False)
    where: str = ""                            # the task file
    prompt_position: str = "before"            # the text, as a turn of its own; or "after" it, in the same turn

    @cached_property
    def rows(self) -> list[Row]:
        """All labelled rows, read once. Raises ValueError naming file and line."""
        rows = [row for number, record in cached_rows(self.path) if (row := self.row(record, f"{self.path}:{number}"))]
        sides = {}
        for row in rows:
            other = sides.setdefault(row.text, row)
            if other.side != row.side:
                raise ValueError(f"{row.where}: task {self.name!r}: expected a text on one side of the split, got the same text in "
                                 f"{row.side} here and in {other.side} at {other.where}; remove one")
        return rows

    def row(self, record: dict, where: str) -> Row | None:
        text = lookup(record, self.text, where)
        if not isinstance(text, str):
            raise ValueError(f"{where}: expected text in field {self.text!r}, got {type(text).__name__}")
        value = lookup(record, self.label, where)
        if any(same(value, skipped) for skipped in self.skip):
            return None
        for index, values in enumerate(self.labels.values()):
            if any(same(value, known) for known in values):
                return Row(text, index, self.side(record, text, where), where)
        known = [item for values in self.labels.values() for item in values]
        raise ValueError(f"{where}: task {self.name!r}: expected {self.label} to be one of {known}, got {value!r}; "
                         f"map it under labels in {self.where}, or leave it out under skip")

    def side(self, record: dict, text: str, where: str) -> str:
        """By the named field, or by a hash of the text, so that equal texts always fall on one side."""
        if isinstance(self.split, str):
            side = lookup(record, self.split, where)
            if side not in SIDES:
                raise ValueError(f"{where}: expected {self.split} to be one of {', '.join(SIDES)}; got {side!r}")
            return side
        point = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2 ** 64
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


@dataclass(frozen=True)
class Options:
    """What a split may set for itself."""

    rows: int | None                           # a task
    max_new_tokens: int | None = None          # where the model writes first
    prompt: str = "Summarize the text."        # what the summary split asks for


@dataclass(frozen=True)
class Mixture:
    name: str
    path: Path
    train: list[Task]
    weights: dict[str, float]                  # task name -> weight; 1 where it is not named
    cap: int | None                            # rows a training task
    eval_rows: int | None                      # rows an evaluation task
    balance: bool                              # equally many rows of each label
    splits: dict[str, dict[str, list[Task]]]   # split -> group -> tasks; a split without groups has the group ""
    options: dict[str, Options]                # split -> its own settings
    instruct: Instruct | None

    def train_rows(self, task: Task, seed: int) -> list[Row]:
        return task.select("train", self.cap, balance=self.balance, seed=seed)

    def test_rows(self, task: Task, split: str = "") -> list[Row]:
        """The same for every seed, so that runs are compared on the same rows."""
        count = self.options[split].rows if split in self.options else self.eval_rows
        return task.select("test", count, balance=self.balance, seed="eval")


def load_task(path, name: str | None = None) -> Task:
    """The task of a file, or the one called `name`."""
    tasks = [task for task in load_tasks(path) if name in (None, task.name)]
    if len(tasks) != 1:
        raise ValueError(f"{path}: expected one task{f' called {name!r}' if name else ''}, got {len(tasks)}; "
                         "name one as FILE#NAME")
    return tasks[0]


def load_tasks(path) -> list[Task]:
    """The tasks of one TOML file: a single table, or many under [[task]]."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a task file, found none")
    data = read_toml(path)
    tables = data["task"] if set(data) == {"task"} else [data]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: expected one task's keys, or [[task]] tables")
    return [make_task(table, path) for table in tables]


def make_task(table: dict, path: Path) -> Task:
    where = f"{path}: task {table.get('name', '(no name)')!r}"
    problems = [f"unknown key {key!r}" for key in sorted(set(table) - TASK_KEYS)]
    problems += [f"expected a text for {key}, got {table.get(key)!r}" for key in ("name", "domain", "prompt", "rows", "text", "label")
                 if not isinstance(table.get(key), str) or not table[key].strip()]
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
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return Task(table["name"], table["domain"], table["prompt"], path.parent / table["rows"], table["text"], table["label"],
                labels, tuple(table.get("skip", ())), split, str(path), table.get("prompt_position", "before"))


def load_mixture(path) -> Mixture:
    """A mixture with all its tasks, checked. Raises FileNotFoundError or ValueError in one line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a mixture file, found none")
    data, files = read_toml(path), {}
    train, evaluation = data.get("train"), data.get("eval")
    if not isinstance(train, dict) or not isinstance(evaluation, dict):
        raise ValueError(f"{path}: expected tables [train] and [eval], got {', '.join(data) or 'nothing'}")
    unknown = set(data) - {"name", "train", "instruct", "eval"} \
        | {f"train.{key}" for key in set(train) - {"tasks", "weights", "cap", "balance"}} \
        | {f"eval.{key}" for key in set(evaluation) - {"rows", *SPLITS}}
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(sorted(unknown))}; the splits of eval are {', '.join(SPLITS)}")
    splits, options, rows = {}, {}, count(evaluation.get("rows"), path, "eval.rows")
    for split in SPLITS:
        if split in evaluation:
            groups = evaluation[split]
            options[split] = split_options(split, groups, rows, path)
            groups = {group: entries for group, entries in groups.items() if group not in OPTIONS}
            if not groups:
                raise ValueError(f"{path}: eval.{split}: expected tasks = [...] or a group = [...], got neither")
            splits[split] = {"" if group == "tasks" else group: find_tasks(entries, path, f"eval.{split}.{group}", files)
                             for group, entries in groups.items()}
    mixture = Mixture(
        str(data.get("name", path.stem)), path, find_tasks(train.get("tasks"), path, "train.tasks", files), dict(train.get("weights", {})),
        count(train.get("cap"), path, "train.cap"), rows, bool(train.get("balance", True)), splits, options,
        instruct_table(data["instruct"], path) if "instruct" in data else None)
    check_mixture(mixture)
    return mixture


OPTIONS = ("rows", "max_new_tokens", "prompt")


def split_options(split: str, table, rows: int | None, path: Path) -> Options:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: eval.{split}: expected tasks = [...] or a group = [...], got {table!r}")
    if not isinstance(table.get("prompt", ""), str) or "prompt" in table and split != "summary":
        raise ValueError(f"{path}: eval.{split}.prompt: expected a text, in eval.summary alone; got {table['prompt']!r}")
    tokens = count(table.get("max_new_tokens", DECODING.get(split)), path, f"eval.{split}.max_new_tokens")
    return Options(count(table.get("rows", rows), path, f"eval.{split}.rows"), tokens, table.get("prompt", Options.prompt))


def count(value, path, key):
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
        raise ValueError(f"{path}: {key}: expected a number from 2, got {value!r}")
    return value


def find_tasks(entries, path: Path, key: str, files: dict) -> list[Task]:
    """Entries FILE or FILE#NAME, relative to the mixture; both parts may hold the wildcards * and ?."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{path}: {key}: expected a list of task files, got {entries!r}")
    tasks = []
    for entry in entries:
        pattern, _, name = entry.partition("#")
        found = sorted(path.parent.glob(pattern)) if set(pattern) & set("*?") else [path.parent / pattern]
        chosen = []
        for file in found:
            file = file.resolve()
            if file not in files:
                files[file] = load_tasks(file)
            chosen += [task for task in files[file] if fnmatch.fnmatchcase(task.name, name or "*")]
        if not chosen:
            raise ValueError(f"{path}: {key}: expected tasks at {entry!r}, found none")
        tasks += chosen
    return tasks


def check_mixture(mixture: Mixture) -> None:
    """What would void the verdict, and what could not be trained or measured; all problems in one message."""
    problems = []
    names = [task.name for task in mixture.train]
    problems += [f"task {name!r} is named twice in train" for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [f"weights: no training task is called {name!r}" for name in sorted(set(mixture.weights) - set(names))]
    problems += [f"weights: expected a positive number for {name!r}, got {weight!r}" for name, weight in mixture.weights.items()
                 if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf")]
    for task in mixture.train:
        problems += empty_classes(task, "train", mixture.train_rows(task, 0))
    prompts = {normal(task.prompt): task for task in mixture.train}
    texts = {row.text: row for task in {task.path: task for task in mixture.train}.values() for row in task.rows if row.side == "train"}
    for split, groups in mixture.splits.items():
        for task in (task for tasks in groups.values() for task in tasks):
            problems += empty_classes(task, "test", mixture.test_rows(task, split))
            trained = prompts.get(normal(task.prompt))
            if split.startswith("new_") and trained:
                problems.append(f"{split}: the prompt of {task.name!r} was trained on (task {trained.name!r})")
            if split == "trained" and not trained:
                problems.append(f"trained: the prompt of {task.name!r} is not trained on")
            leaked = next((row for row in mixture.test_rows(task, split) if row.text in texts), None)
            if leaked:
                problems.append(f"{split}: test row {leaked.where} of {task.name!r} is also a training row, {texts[leaked.text].where}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{mixture.path}: {'; '.join(problems[:3])}{more}")


def empty_classes(task: Task, side: str, rows: list[Row]) -> list[str]:
    there = {row.label for row in task.rows if row.side == side}
    empty = [label for index, label in enumerate(task.labels) if index not in there]
    if empty:
        return [f"task {task.name!r} has no {side} row of label {', '.join(empty)} in {task.path}"]
    return [] if rows else [f"task {task.name!r} has no {side} rows in {task.path}"]


def normal(prompt: str) -> str:
    """Case and spacing do not make a prompt new."""
    return " ".join(prompt.casefold().split())


def lookup(record: dict, name: str, where: str):
    value = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{where}: expected a field {name!r}, got {', '.join(map(str, record)) or 'an empty row'}")
        value = value[key]
    return value


def same(a, b) -> bool:
    """Equal in value and in kind: 1 is not true."""
    return type(a) is type(b) and a == b or {type(a), type(b)} == {int, float} and a == b


ROWS = {}                                      # path -> (modification time, rows): many tasks share a file


def cached_rows(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of rows, found none")
    path, stamp = path.resolve(), path.stat().st_mtime_ns
    if ROWS.get(path, (None,))[0] != stamp:
        ROWS[path] = stamp, read_rows(path)
    return ROWS[path][1]
