"""Tasks and mixtures: what a user writes in TOML, read and checked before anything is trained.

A task is a classification prompt with its rows. A mixture names the tasks to train on and, in splits, those
to evaluate on; a split's tasks may stand in groups. What would void the verdict is refused by name.
"""

import fnmatch
import hashlib
import itertools
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

from minimon.files import find_files, read_jsonl, read_toml, refuse, shipped
from minimon.formats.records import lookup, read_records, same
from minimon.formats.transcript import text_of

SIDES = ("train", "validation", "test")  # of a row
DECODING = {
    "thinking": 1024,
    "summary": 256,
}  # splits in which the model writes first: default max_new_tokens
SPLITS = ("trained", "same_prompt", "new_domain", "new_prompt", *DECODING)
SCHEDULES = ("none", "joint", "after", "only")


# ---- tasks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    text: str  # what is judged
    label: int  # index into the task's labels; 0 is the positive
    side: str  # one of SIDES
    where: str  # file:line


@dataclass(frozen=True)
class Task:
    """One classification prompt and its rows. The first of `labels` is the positive."""

    name: str
    domain: str
    prompt: str
    path: Path  # of the rows; * and ? in its name stand for many files
    text: str  # field of the text, or of turns; dots descend
    label: str | None  # field of the label; None where rows are only to be scored
    labels: dict[str, list]  # answer word -> values of the label field
    skip: tuple = ()  # values of the label field whose rows are left out
    default: object = ...  # value of the label field where a row lacks it; ... for an error
    split: str | dict = field(default_factory=lambda: {"train": 0.8, "test": 0.2})  # field, or fractions
    group: str | None = None  # field; rows of equal value fall on one side of a split by fractions
    unique: bool = False  # leave out repeated texts, and texts that carry two labels
    max_chars: int | None = None  # of a longer text the middle is cut
    reasoning: bool = False  # show a model's reasoning in transcripts
    prompt_position: str = "before"  # the text, which is a turn of its own; or "after" it, in the same turn
    criterion: str = ""  # tasks of one criterion are resampled together in intervals over tasks
    where: str = ""  # the task file

    @cached_property
    def rows(self) -> list[Row]:
        """All labelled rows, read once. Raises FileNotFoundError or ValueError naming file and line."""
        rows = []
        for file in self.files():
            for where, record in read_records(file):
                label = self.label_of(record, where)
                if label is not None:
                    text = self.text_of(record, where)
                    rows.append(Row(text, label, self.side_of(record, text, where), where))
        return checked_repeats(self, rows)

    def files(self) -> list[Path]:
        """The files of the rows. Raises FileNotFoundError where there is none."""
        files = find_files(self.path.parent, self.path.name) or [self.path]
        for file in files:
            if not file.is_file():
                public = file.parts[-3:-1] == ("public", "rows")
                hint = "; fetch it with: python data/public.py" if public else ""
                asked = f", which {self.where} asks for under rows" if self.where else ""
                raise FileNotFoundError(f"{file}: expected a file of rows{asked}, found none{hint}")
        return files

    def label_of(self, record: dict, where: str) -> int | None:
        """Index of the label, None of a row to skip."""
        value = lookup(record, self.label, where, self.default)
        if any(same(value, skipped) for skipped in self.skip):
            return None
        for index, values in enumerate(self.labels.values()):
            if any(same(value, labelled) for labelled in values):
                return index
        expected = [value for values in self.labels.values() for value in values]
        quoted = isinstance(value, str) and any(str(labelled) == value for labelled in expected)
        hint = f' (a cell is text: write "{value}")' if quoted else ""
        raise ValueError(
            f"{where}: task {self.name!r}: expected {self.label} to be one of {expected}, got {value!r}{hint}; "
            f"map it under labels in {self.where}, or leave it out under skip"
        )

    def text_of(self, record: dict, where: str) -> str:
        return text_of(record, self.text, where, self.max_chars, self.reasoning)

    def side_of(self, record: dict, text: str, where: str) -> str:
        """By the named field, or by a hash of the group or the text: equal texts always fall on one side."""
        if isinstance(self.split, str):
            side = lookup(record, self.split, where)
            if side not in SIDES:
                raise ValueError(
                    f"{where}: expected {self.split} to be one of {', '.join(SIDES)}; got {side!r}"
                )
            return side
        key = text if self.group is None else str(lookup(record, self.group, where))
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        for side in SIDES:
            point -= self.split.get(side, 0.0)
            if point < 0:
                return side
        return "test"

    def select(self, side: str, count: int | None, *, balance: bool, seed) -> list[Row]:
        """At most `count` rows of a side, a function of the seed; with `balance` as many of each label."""
        rng = random.Random(f"rows-{seed}-{self.name}-{side}")
        rows = [row for row in self.rows if row.side == side]
        rng.shuffle(rows)
        if not balance:
            return rows[:count]
        pools = [[row for row in rows if row.label == label] for label in range(len(self.labels))]
        size = min(map(len, pools))
        if count:
            size = min(size, count // len(pools))
        chosen = [row for pool in pools for row in pool[:size]]
        rng.shuffle(chosen)
        return chosen


def checked_repeats(task: Task, rows: list[Row]) -> list[Row]:
    """Raises ValueError for a text on two sides. Of a unique task each text once, none with two labels."""
    by_text = {}
    for row in rows:
        by_text.setdefault(row.text, []).append(row)
    if task.unique:
        return [same[0] for same in by_text.values() if len({row.label for row in same}) == 1]
    for first, *others in by_text.values():
        for row in others:
            if row.side != first.side:
                raise ValueError(
                    f"{row.where}: task {task.name!r}: expected a text on one side of the split, got the "
                    f"same text in {row.side} here and in {first.side} at {first.where}; remove one"
                )
    return rows


# ---- task files ------------------------------------------------------------------------------------


def load_task(path, name: str | None = None) -> Task:
    """The task of a file, or the one called `name`."""
    tasks = [task for task in load_tasks(path) if name in (None, task.name)]
    if len(tasks) != 1:
        called = f" called {name!r}" if name else ""
        raise ValueError(f"{path}: expected one task{called}, got {len(tasks)}; name one as FILE#NAME")
    return tasks[0]


def load_tasks(path) -> list[Task]:
    """The tasks of a TOML file: one table, or many under [[task]] that share the keys beside them."""
    path = shipped(path)
    shared = read_toml(path)
    tables = shared.pop("task", [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: expected one task's keys, or [[task]] tables")
    return [read_task({**shared, **table}, path) for table in tables]


def read_task(table: dict, path: Path) -> Task:
    where = f"{path}: task {table.get('name', '(no name)')!r}: "
    refuse(list(removed_keys(table)), where)
    check_table(table, NEEDED, OPTIONAL, where)
    refuse([*label_problems(table["labels"]), *split_problems(table.get("split", {"test": 1}))], where)
    fields = {"criterion": table["name"], **table}
    rows, skip = path.parent / fields.pop("rows"), tuple(fields.pop("skip", ()))
    return Task(**fields, path=rows, skip=skip, where=str(path))


NEEDED = {"name": str, "domain": str, "prompt": str, "rows": str, "text": str, "label": str, "labels": dict}
OPTIONAL = {
    "criterion": str,
    "default": object,
    "group": str,
    "max_chars": int,
    "prompt_position": ("before", "after"),
    "reasoning": bool,
    "skip": list,
    "split": object,
    "unique": bool,
}


# of older task files: `columns`, `each` and such are keys; an @file, a list or a template stood in place of a field
REMOVED = ("columns", "drop", "each", "format", "join", "keep", "source")
NO_FIELD = re.compile(r"^@(file|name|value|join)|^\['|\{.+\}")
PLAIN_ROWS = "write plain rows once, see data/public.py"


def removed_keys(table: dict) -> Iterator[str]:
    for key, value in table.items():
        if key in REMOVED:
            yield f"`{key}` is gone: {PLAIN_ROWS}"
        elif key in ("text", "label") and NO_FIELD.search(str(value)):
            yield f"{key} = {value!r} is gone, it names one field of a row: {PLAIN_ROWS}"


def label_problems(labels: dict) -> Iterator[str]:
    lists = labels.values()
    if len(lists) < 2 or not all(isinstance(values, list) and values for values in lists):
        yield f"expected labels = {{ Yes = [values], No = [values] }}, two or more, got {labels!r}"
        return
    for one, two in itertools.combinations(lists, 2):
        if any(same(a, b) for a in one for b in two):
            yield "expected each value under one label, got the same value under two"


def split_problems(split) -> Iterator[str]:
    if fits(split, str):
        return
    shares = split.values() if isinstance(split, dict) and set(split) <= set(SIDES) else []
    fractions = all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
    if not fractions or abs(sum(shares) - 1) > 1e-9:
        sides = ", ".join(SIDES)
        yield f"expected split to be a field, or fractions of {sides} that add up to 1; got {split!r}"


# ---- tables ----------------------------------------------------------------------------------------


KINDS = {
    str: "a text",
    int: "a whole number from 2",
    float: "a fraction in (0, 1)",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def check_table(table: dict, needed: dict, optional: dict, where: str) -> None:
    """Raises ValueError for a key that is not asked for, and for values that do not fit.

    needed, optional: key -> one of KINDS, object for any value, or a tuple of the values to choose from."""
    kinds = {**needed, **optional}
    problems = [f"{key}: unknown key, expected {', '.join(kinds)}" for key in table if key not in kinds]
    for key, kind in kinds.items():
        value = table.get(key)
        if (value is not None or key in needed) and not fits(value, kind):
            expected = KINDS.get(kind) or f"one of {', '.join(kind)}"
            problems.append(f"{key}: expected {expected}, got {'none' if value is None else repr(value)}")
    refuse(problems, where)


def fits(value, kind) -> bool:
    if isinstance(kind, tuple):
        return value in kind
    if kind is object:
        return True
    if type(value) is not kind:
        return False
    if kind is str:
        return value.strip() != ""
    if kind is int:
        return value >= 2
    return kind is not float or 0 < value < 1


# ---- prompts that are the same ---------------------------------------------------------------------

SPOKEN = ("L", "M", "N", "Sm", "Sc", "So")  # Unicode categories: letters, marks, numbers, symbols
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f]")  # beside Cf


@cache
def normal(prompt: str) -> str:
    """Case, spacing, punctuation, invisible characters and full width do not make a prompt new."""
    return words(prompt, SPOKEN).replace(" ", "") or prompt


def words(text: str, categories: tuple[str, ...]) -> str:
    """The words of a text, in NFKC and without case. Invisible characters are dropped, others part words."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join([spelled(char, categories) for char in folded]).split())


@cache
def spelled(char: str, categories: tuple[str, ...]) -> str:
    category = unicodedata.category(char)
    if category == "Cf" or INVISIBLE.match(char):
        return ""
    return char if category.startswith(categories) else " "


# ---- instruction-following data --------------------------------------------------------------------


@dataclass(frozen=True)
class Instruct:
    """Instruction-following data of a mixture, and when to train on it unless --instruct says so."""

    path: Path
    schedule: str = "none"
    fraction: float = 0.25  # of a step's rows, where trained jointly


@dataclass(frozen=True)
class Conversation:
    messages: tuple[dict, ...]  # role, content and perhaps reasoning_content; the last is the assistant's
    where: str  # file:line

    @property
    def parts(self) -> list[str]:
        """All that is said or thought in it."""
        keys = ("reasoning_content", "content")
        return [message[key] for message in self.messages for key in keys if message.get(key)]

    @property
    def text(self) -> str:
        """For sorting by length and for the check against evaluation prompts."""
        return "\n".join(self.parts)


def schedule_of(instruct: Instruct | None, asked: str | None) -> str:
    """What --instruct asks for, or else the mixture's."""
    return asked or (instruct.schedule if instruct else "none")


def load_conversations(path, refused: Iterable[str] = ()) -> list[Conversation]:
    """Lines {"messages": [{"role", "content"}, ...]} that end with an assistant's turn.

    Raises ValueError naming file and line, also for one that holds a `refused` prompt: what is evaluated must
    not be trained on."""
    refused = {words(prompt, SPOKEN): prompt for prompt in refused}
    conversations = []
    for number, record in read_jsonl(path):
        conversation = read_conversation(record, f"{path}:{number}")
        spoken = f" {words(conversation.text, SPOKEN)} "
        for prompt in refused:
            if f" {prompt} " in spoken:
                raise ValueError(
                    f"{conversation.where}: expected no prompt of the evaluation, got {refused[prompt]!r}; "
                    "take the line out"
                )
        conversations.append(conversation)
    if not conversations:
        raise ValueError(f"{path}: expected conversations, got an empty file")
    return conversations


def read_conversation(record: dict, where: str) -> Conversation:
    turns = record.get("messages")
    listed = isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, dict) for turn in turns)
    texts = listed and all(
        isinstance(turn.get("content"), str) and isinstance(turn.get("reasoning_content") or "", str)
        for turn in turns
    )
    if not texts or turns[-1].get("role") != "assistant":
        raise ValueError(
            f'{where}: expected {{"messages": [...]}} of two turns or more with text as content, the last of '
            f"them the assistant's; got {str(record)[:80]}"
        )
    return Conversation(tuple(turns), where)


# ---- mixtures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What a split may set for itself."""

    rows: int | None = None  # a task; the mixture's eval_rows if it is None
    max_new_tokens: int | None = None  # where the model writes first
    prompt: str = "Summarize the text."  # what the summary split asks for


@dataclass(frozen=True)
class Mixture:
    name: str
    path: Path
    train: list[Task]
    weights: dict[str, float]  # task name -> weight; 1 where it is not named
    cap: int | None  # rows a training task
    eval_rows: int | None  # rows an evaluation task
    balance: bool  # equally many rows of each label
    splits: dict[str, dict[str, list[Task]]]  # split -> group -> tasks; without groups the group is ""
    options: dict[str, Options]  # split -> its own settings
    instruct: Instruct | None

    def all_tasks(self) -> list[Task]:
        return self.train + [task for split in self.splits for task in self.split_tasks(split)]

    def split_tasks(self, split: str) -> list[Task]:
        return [task for tasks in self.splits.get(split, {}).values() for task in tasks]

    def new_prompts(self) -> list[str]:
        """Prompts of evaluation that nothing may be trained on."""
        splits = [split for split in self.splits if split not in ("trained", "same_prompt")]
        return [task.prompt for split in splits for task in self.split_tasks(split)]

    def train_rows(self, task: Task, seed: int) -> list[Row]:
        return task.select("train", self.cap, balance=self.balance, seed=seed)

    def validation_rows(self, task: Task, count: int | None) -> list[Row]:
        """The same for every seed; none where the task's split has no validation side."""
        return task.select("validation", count, balance=self.balance, seed="eval")

    def test_rows(self, task: Task, split: str = "") -> list[Row]:
        """The same for every seed, so that runs are compared on the same rows."""
        count = self.options.get(split, Options()).rows or self.eval_rows
        return task.select("test", count, balance=self.balance, seed="eval")

    def restricted(self, splits: str | None = None, eval_rows: int | None = None, cap: int | None = None):
        """What --splits (names with commas between), --eval-rows and --cap ask for. Raises ValueError.

        A split with rows of its own keeps them where they are fewer."""
        if splits is None and eval_rows is None and cap is None:
            return self
        check_table({"--eval-rows": eval_rows, "--cap": cap}, {}, {"--eval-rows": int, "--cap": int}, "")
        names = splits.replace(" ", "").split(",") if splits else list(self.splits)
        unknown = [repr(name) for name in names if name not in self.splits]
        if unknown:
            choice = f"some of {', '.join(self.splits)}, the splits of {self.path}"
            raise ValueError(f"--splits: expected {choice}; got {', '.join(unknown)}")
        options = {split: given for split, given in self.options.items() if split in names}
        if eval_rows is not None:
            for split, given in options.items():
                options[split] = replace(given, rows=given.rows and min(given.rows, eval_rows))
        mixture = replace(
            self,
            splits={split: self.splits[split] for split in options},
            options=options,
            eval_rows=eval_rows or self.eval_rows,
            cap=cap or self.cap,
        )
        check_mixture(mixture)
        return mixture


def load_mixture(path, check: bool = True) -> Mixture:
    """A mixture with all its tasks, checked unless the rows are not to be read yet.

    Raises FileNotFoundError or ValueError in one line."""
    path = shipped(path)
    data, where = read_toml(path), f"{path}: "
    check_table(data, {"train": dict, "eval": dict}, {"name": str, "instruct": dict}, where)
    train, evaluation = data["train"], data["eval"]
    check_table(train, {"tasks": list}, {"weights": dict, "cap": int, "balance": bool}, f"{where}train.")
    check_table(evaluation, {}, {"rows": int, **dict.fromkeys(SPLITS, dict)}, f"{where}eval.")
    name = data.get("name", path.stem)
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
        expected = "expected letters, digits and .+-_ (a run's directory is called after it)"
        raise ValueError(f"{where}name: {expected}, got {name!r}")
    load = cache(load_tasks)  # many entries name one file
    splits, options = {}, {}
    for split in SPLITS:
        if split in evaluation:
            at = f"{where}eval.{split}"
            options[split], groups = read_split(split, evaluation[split], at)
            splits[split] = {
                "" if group == "tasks" else group: find_tasks(entries, path, f"{at}.{group}", load)
                for group, entries in groups.items()
            }
    mixture = Mixture(
        name=name,
        path=path,
        train=find_tasks(train["tasks"], path, f"{where}train.tasks", load),
        weights=train.get("weights", {}),
        cap=train.get("cap"),
        eval_rows=evaluation.get("rows"),
        balance=train.get("balance", True),
        splits=splits,
        options=options,
        instruct=read_instruct(data["instruct"], path) if "instruct" in data else None,
    )
    if check:
        check_mixture(mixture)
    return mixture


def read_split(split: str, table: dict, where: str) -> tuple[Options, dict[str, list]]:
    """What a split sets for itself, and its other keys: group -> entries of tasks."""
    kinds = {"rows": int}
    if split in DECODING:
        kinds["max_new_tokens"] = int
    if split == "summary":
        kinds["prompt"] = str
    own = {key: value for key, value in table.items() if key in kinds}
    groups = {key: value for key, value in table.items() if key not in kinds}
    check_table(own, {}, kinds, f"{where}.")
    if not groups:
        raise ValueError(f"{where}: expected tasks = [...] or a group = [...], got neither")
    return Options(**{"max_new_tokens": DECODING.get(split), **own}), groups


def find_tasks(entries, path: Path, where: str, load) -> list[Task]:
    """By entries FILE or FILE#NAME, relative to the mixture; both parts may hold the wildcards * and ?."""
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{where}: expected a list of task files, got {entries!r}")
    found = []
    for entry in entries:
        pattern, _, name = entry.partition("#")
        files = [Path(os.path.realpath(file)) for file in find_files(path.parent, pattern)]
        tasks = [task for file in files for task in load(file) if fnmatch.fnmatchcase(task.name, name or "*")]
        if not tasks:
            raise ValueError(f"{where}: expected tasks at {entry!r}, found none")
        found += tasks
    return found


def read_instruct(table: dict, path: Path) -> Instruct:
    check_table(table, {"rows": str}, {"schedule": SCHEDULES, "fraction": float}, f"{path}: instruct.")
    fields = dict(table)
    return Instruct(path.parent / fields.pop("rows"), **fields)


# ---- what would void the verdict -------------------------------------------------------------------


def check_mixture(mixture: Mixture, before: Iterable[Task] = ()) -> None:
    """Raises ValueError for what would void the verdict or cannot be trained or measured.

    before: what an adapter that is measured on this mixture was trained on already."""
    train, problems = [*mixture.train, *before], list(weight_problems(mixture))
    for task in mixture.train:
        problems += class_problems(task, "train", mixture.train_rows(task, 0))
    trained = {row.text: row for task in train for row in task.rows if row.side == "train"}
    for split in mixture.splits:
        for tasks in mixture.splits[split].values():
            names = Counter(task.name for task in tasks)
            problems += [f"{split}: task {name!r} is named twice" for name in names if names[name] > 1]
        for task in mixture.split_tasks(split):
            rows = mixture.test_rows(task, split)
            problems += class_problems(task, "test", rows)
            problems += [f"{split}: {problem}" for problem in split_rule_problems(split, task, train)]
            leaks = [row for row in rows if row.text in trained]
            if leaks:
                where = f"test row {leaks[0].where} of {task.name!r}"
                problems.append(f"{split}: {where} is also a training row, {trained[leaks[0].text].where}")
    refuse(problems, f"{mixture.path}: ")


def weight_problems(mixture: Mixture) -> Iterator[str]:
    names = [task.name for task in mixture.train]
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"task {name!r} is named twice in train"
    for name, weight in mixture.weights.items():
        if name not in names:
            yield f"weights: no training task is called {name!r}"
        elif type(weight) not in (int, float) or not 0 < weight < float("inf"):
            yield f"weights: expected a positive number for {name!r}, got {weight!r}"


def class_problems(task: Task, side: str, rows: list[Row]) -> Iterator[str]:
    present = {row.label for row in task.rows if row.side == side}
    empty = [label for index, label in enumerate(task.labels) if index not in present]
    if empty:
        yield f"task {task.name!r} has no {side} row of label {', '.join(empty)} in {task.path}"
    elif not rows:
        yield f"task {task.name!r} has no {side} rows in {task.path}"


def split_rule_problems(split: str, task: Task, train: list[Task]) -> Iterator[str]:
    """Whether prompt and domain are as new, or as old, as the name of the split says."""
    trained = [other for other in train if normal(other.prompt) == normal(task.prompt)]
    domain = f"the domain of {task.name!r}, {task.domain!r},"
    old_domain = any(other.domain == task.domain for other in train)
    if split.startswith("new_") and trained:
        yield f"the prompt of {task.name!r} was trained on (task {trained[-1].name!r})"
    if split in ("trained", "same_prompt") and not trained:
        yield f"the prompt of {task.name!r} is not trained on"
    if split == "trained" and not old_domain:
        yield f"{domain} is not trained on: measure it in eval.same_prompt"
    if split == "same_prompt" and old_domain:
        yield f"{domain} was trained on: measure it in eval.trained"
