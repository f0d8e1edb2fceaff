"""Mixtures: the tasks to train on and to evaluate on, checked before anything is trained.

A mixture names the tasks to train on and, in splits, those to evaluate on; a split's
tasks may stand in groups. All that is wrong with a mixture is refused by name: the verdict is void otherwise.
"""

import fnmatch
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from minimon.files import find_files, read_toml
from minimon.instruct import Instruct, instruct_table, normal
from minimon.task import Row, Task, load_task, load_tasks

DECODING = {"thinking": 1024, "summary": 256}         # splits in which the model writes first: max_new_tokens if not given
SPLITS = ("trained", "new_domain", "new_prompt", *DECODING)

__all__ = ["Mixture", "Row", "Task", "load_mixture", "load_task", "load_tasks"]


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
