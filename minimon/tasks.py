"""Mixtures: the tasks to train on and to evaluate on, checked before anything is trained.

A mixture names the tasks to train on and, in splits, those to evaluate on; a split's
tasks may stand in groups. All that is wrong with a mixture is refused by name: the verdict is void otherwise.
"""

import fnmatch
import hashlib
import os
import random
import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from minimon.files import find_files, read_jsonl, read_toml
from minimon.formats.records import KEYS, Reading, lookup, make_reading, records, same
from minimon.formats.transcript import text_of


# ---- tasks ----------------------------------------------------------------------------------------------------------------


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


# ---- instruction-following data ------------------------------------------------------------------------------------------


SCHEDULES = ("none", "joint", "after", "only")


@dataclass(frozen=True)
class Instruct:
    """Instruction-following data of a mixture, and when to train on it unless --instruct says so."""

    path: Path
    schedule: str = "none"
    fraction: float = 0.25                     # of a step's rows, where trained jointly


def instruct_table(table, path: Path) -> Instruct:
    if not isinstance(table, dict) or not isinstance(table.get("rows"), str) or set(table) - {"rows", "schedule", "fraction"}:
        raise ValueError(f'{path}: instruct: expected rows = "FILE.jsonl", and schedule or fraction; got {table!r}')
    instruct = Instruct(path.parent / table["rows"], *(table.get(key, getattr(Instruct, key)) for key in ("schedule", "fraction")))
    if instruct.schedule not in SCHEDULES or not isinstance(instruct.fraction, float) or not 0 < instruct.fraction < 1:
        raise ValueError(f"{path}: instruct: expected a schedule of {', '.join(SCHEDULES)} and a fraction in (0, 1); "
                         f"got {instruct.schedule!r} and {instruct.fraction!r}")
    return instruct


def schedule_of(instruct: Instruct | None, asked: str | None) -> str:
    """What --instruct asks for, or else the mixture's."""
    return asked or (instruct.schedule if instruct else "none")


@dataclass(frozen=True)
class Conversation:
    messages: tuple[dict, ...]                 # role, content and perhaps reasoning_content; the last is the assistant's
    where: str                                 # file:line

    @property
    def text(self) -> str:
        """All that is said, for sorting by length and for the check against evaluation prompts."""
        return "\n".join(message["content"] for message in self.messages)


def load_conversations(path, refused=()) -> list[Conversation]:
    """Lines {"messages": [{"role", "content"}, ...]} that end with an assistant's turn. Raises ValueError naming file and line,
    also for one that holds a `refused` prompt, since what is evaluated must not be trained on."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a file of conversations, found none")
    conversations, refused = [], {normal(prompt): prompt for prompt in refused}
    for number, record in read_jsonl(path):
        where, messages = f"{path}:{number}", record.get("messages")
        if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f'{where}: expected {{"messages": [...]}} of two turns or more, got {str(record)[:80]}')
        if not all(isinstance(message.get("content"), str) for message in messages) or messages[-1].get("role") != "assistant":
            raise ValueError(f"{where}: expected turns with text as content, the last of them the assistant's; "
                             f"got {str(messages[-1])[:80]}")
        conversations.append(Conversation(tuple(messages), where))
        said = normal(conversations[-1].text)
        if found := next((refused[prompt] for prompt in refused if prompt in said), None):
            raise ValueError(f"{where}: expected no prompt of the evaluation, got {found!r}; take the line out")
    if not conversations:
        raise ValueError(f"{path}: expected conversations, got an empty file")
    return conversations


def normal(prompt: str) -> str:
    """Case and spacing do not make a prompt new."""
    return " ".join(prompt.casefold().split())


# ---- mixtures ---------------------------------------------------------------------------------------------------------


DECODING = {"thinking": 1024, "summary": 256}         # splits in which the model writes first: max_new_tokens if not given
SPLITS = ("trained", "new_domain", "new_prompt", *DECODING)


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
    max_chars: int | None = None               # limit on every task's texts

    def all_tasks(self) -> list[Task]:
        return self.train + [task for groups in self.splits.values() for tasks in groups.values() for task in tasks]

    def train_rows(self, task: Task, seed: int) -> list[Row]:
        return task.select("train", self.cap, balance=self.balance, seed=seed)

    def test_rows(self, task: Task, split: str = "") -> list[Row]:
        """The same for every seed, so that runs are compared on the same rows."""
        count = self.options[split].rows if split in self.options else self.eval_rows
        return task.select("test", count, balance=self.balance, seed="eval")


def load_mixture(path, check: bool = True) -> Mixture:
    """A mixture with all its tasks, checked unless the rows are not to be read yet. Raises FileNotFoundError or ValueError in one line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a mixture file, found none")
    data, files = read_toml(path), {}
    limit = count(data.get("max_chars"), path, "max_chars", "characters from 100", 100)
    train, evaluation = data.get("train"), data.get("eval")
    if not isinstance(train, dict) or not isinstance(evaluation, dict):
        raise ValueError(f"{path}: expected tables [train] and [eval], got {', '.join(data) or 'nothing'}")
    unknown = set(data) - {"name", "train", "instruct", "eval", "max_chars"} \
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
            splits[split] = {"" if group == "tasks" else group: find_tasks(entries, path, f"eval.{split}.{group}", files, limit)
                             for group, entries in groups.items()}
    name, weights, balance = data.get("name", path.stem), train.get("weights", {}), train.get("balance", True)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
        raise ValueError(f"{path}: name: expected letters, digits and .+-_ (a run's directory is called after it), got {name!r}")
    if not isinstance(weights, dict) or not isinstance(balance, bool):
        raise ValueError(f"{path}: train: expected weights = {{ name = number }} and balance = true or false, got {weights!r}, "
                         f"{balance!r}")
    mixture = Mixture(
        name, path, find_tasks(train.get("tasks"), path, "train.tasks", files, limit),
        weights, count(train.get("cap"), path, "train.cap"), rows, balance, splits, options,
        instruct_table(data["instruct"], path) if "instruct" in data else None, limit)
    if check:
        check_mixture(mixture)
    return mixture


OPTIONS = ("rows", "max_new_tokens", "prompt")


def split_options(split: str, table, rows: int | None, path: Path) -> Options:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: eval.{split}: expected tasks = [...] or a group = [...], got {table!r}")
    if not isinstance(table.get("prompt", ""), str) or "prompt" in table and split != "summary":
        raise ValueError(f"{path}: eval.{split}.prompt: expected a text, in eval.summary alone; got {table['prompt']!r}")
    tokens = count(table.get("max_new_tokens", DECODING.get(split)), path, f"eval.{split}.max_new_tokens", "tokens from 2")
    return Options(count(table.get("rows", rows), path, f"eval.{split}.rows"), tokens, table.get("prompt", Options.prompt))


def count(value, path, key, words="rows from 2", least=2):
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{path}: {key}: expected a number of {words}, got {value!r}")
    return value


def find_tasks(entries, path: Path, key: str, files: dict, limit: int | None = None) -> list[Task]:
    """Entries FILE or FILE#NAME, relative to the mixture; both parts may hold the wildcards * and ?. limit: on every task's max_chars."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{path}: {key}: expected a list of task files, got {entries!r}")
    tasks = []
    for entry in entries:
        pattern, _, name = entry.partition("#")
        chosen = []
        for file in find_files(path.parent, pattern):
            file = Path(os.path.realpath(file))
            if file not in files:
                files[file] = [replace(task, max_chars=min(limit, task.max_chars or limit)) if limit else task for task in load_tasks(file)]
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
    texts = {row.text: row for task in mixture.train for row in task.rows if row.side == "train"}
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


def near_duplicates(mixture: Mixture, conversations=()) -> dict[str, dict[str, int]]:
    """split -> {"rows", "near_duplicates"}: test rows that differ from a training row in case, white space, punctuation and digits alone.

    Equal ones are refused. "instruct" counts the conversations that are trained on and hold a test row in this sense, equal or not."""
    trained = {bare(row.text) for task in mixture.train for row in task.rows if row.side == "train"}
    tested = {split: [bare(row.text) for tasks in groups.values() for task in tasks for row in mixture.test_rows(task, split)]
              for split, groups in mixture.splits.items()}
    found = {split: {"rows": len(texts), "near_duplicates": sum(text in trained for text in texts)} for split, texts in tested.items()}
    if conversations:
        tested = {text for texts in tested.values() for text in texts}
        held = sum(any(bare(message["content"]) in tested for message in talk.messages) for talk in conversations)
        found["instruct"] = {"rows": len(conversations), "near_duplicates": held}
    return found


def bare(text: str) -> str:
    """The letters of a text, its case and the forms of Unicode left aside."""
    return " ".join(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold()))


def empty_classes(task: Task, side: str, rows: list[Row]) -> list[str]:
    there = {row.label for row in task.rows if row.side == side}
    empty = [label for index, label in enumerate(task.labels) if index not in there]
    if empty:
        return [f"task {task.name!r} has no {side} row of label {', '.join(empty)} in {task.path}"]
    return [] if rows else [f"task {task.name!r} has no {side} rows in {task.path}"]
