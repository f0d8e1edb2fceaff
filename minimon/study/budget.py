"""What a study costs, before it starts: the tokens of each cell, and the hours they take at the speed measured here."""

import time
from dataclasses import dataclass, field
from itertools import pairwise

from minimon.batch import encode_row
from minimon.evaluate import read
from minimon.generate import generate
from minimon.study.cells import Cell
from minimon.study.self_labels import thought_tokens, unlabelled_rows
from minimon.tasks import Task

DEFAULTS = {"--steps": 400, "--batch-size": 24, "--instruct-steps": 200}  # train.py's
TRAINED = (
    3  # passes that a trained token costs: one forward, and about two backward, since the base is frozen
)
SAMPLE = 6  # rows of a task whose tokens are counted; as many are read, and written to, for the speed


@dataclass
class Estimate:
    """Tokens and hours of cells; the base's scores are shared by all, so only the adapter's are counted."""

    model: object
    tokenizer: object
    lengths: dict = field(default_factory=dict)

    def length(self, task: Task) -> float:
        """Mean tokens of a row with its prompt."""
        if task not in self.lengths:
            rows = task.rows[:SAMPLE]
            ids = [encode_row(self.tokenizer, task, row.text).ids for row in rows]
            self.lengths[task] = sum(map(len, ids)) / max(len(ids), 1)
        return self.lengths[task]

    def tokens(self, cell: Cell) -> dict[str, float]:
        """{"trained", "read", "written"}"""
        mixture, settings = (
            cell.mixture,
            DEFAULTS | dict(pairwise(cell.flags.split())),
        )  # the last of a flag counts
        steps = int(settings["--steps"]) + int(settings["--instruct-steps"]) * (cell.label == "after")
        trained = sum(map(self.length, mixture.train)) / len(mixture.train)
        found = {"trained": steps * int(settings["--batch-size"]) * trained, "read": 0.0, "written": 0.0}
        for split, groups in mixture.splits.items():
            for task in (task for tasks in groups.values() for task in tasks):
                rows = len(mixture.test_rows(task, split))
                found["read"] += rows * self.length(task)
                found["written"] += rows * (mixture.options[split].max_new_tokens or 0)
        labels = settings.get("--labels")
        for task in mixture.train if labels else ():
            rows = len(unlabelled_rows(mixture, cell.seed)[task.name])
            found["read"] += rows * self.length(task)
            found["written"] += rows * thought_tokens(mixture) * (labels == "self")
        return found

    def speeds(self, task: Task) -> dict[str, float]:
        """Tokens a second, in the same form."""
        rows, started = task.rows[:SAMPLE], time.time()
        read(self.model, self.tokenizer, task, rows)
        reading = len(rows) * self.length(task) / (time.time() - started)
        prompts, started = [encode_row(self.tokenizer, task, row.text).ids for row in rows], time.time()
        generate(self.model, prompts, max_new_tokens=16, stop_ids=set())
        writing = len(rows) * 16 / (time.time() - started)
        return {"trained": reading / TRAINED, "read": reading, "written": writing}


def hours(tokens: dict[str, float], speeds: dict[str, float]) -> float:
    return sum(tokens[kind] / speeds[kind] for kind in tokens) / 3600


def within(cells: list[Cell], costs: list[float], budget: float | None) -> list[Cell]:
    """The first cells that fit into the budget, all without one."""
    kept, spent = [], 0.0
    for cell, cost in zip(cells, costs, strict=True):
        spent += cost
        if budget is None or spent <= budget:
            kept.append(cell)
    return kept
