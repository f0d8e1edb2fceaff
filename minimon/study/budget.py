"""What a study costs, before it starts: the tokens of each cell, and the hours they take at the speed measured here."""

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from minimon.batch import encode_row
from minimon.evaluate import read
from minimon.generate import generate
from minimon.study.cells import Cell
from minimon.study.results import grid
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
        key = (task.where, task.name)
        if key not in self.lengths:
            lengths = [len(encode_row(self.tokenizer, task, row.text).ids) for row in task.rows[:SAMPLE]]
            self.lengths[key] = sum(lengths) / len(lengths)
        return self.lengths[key]

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


def fit_in(cells: list[Cell], estimate: Estimate, jobs: int, budget: float | None) -> tuple[list[Cell], str]:
    """The first cells that fit into `budget` hours, all without one; and the arithmetic, a table in markdown."""
    speeds, kept, spent, by_kind = estimate.speeds(cells[0].mixture.train[0]), [], 0.0, {}
    for cell in cells:
        tokens = estimate.tokens(cell)
        hours = sum(tokens[kind] / speeds[kind] for kind in tokens) / 3600 / jobs
        spent += hours
        if budget is None or spent <= budget:
            kept.append(cell)
        millions = {f"M tokens {kind}": tokens[kind] / 1e6 for kind in tokens}
        by_kind.setdefault(cell.kind, Counter()).update({"cells": 1, **millions, "hours": hours})
    speeds = ", ".join(f"{kind} {speed:.0f}" for kind, speed in speeds.items())
    title = f"Plan: {spent:.1f} hours for {len(cells)} cells, {jobs} at a time"
    text = f"{grid(title, 'cells of', by_kind, sign='')}\n\nTokens a second, as measured here: {speeds}.\n"
    if len(kept) < len(cells):
        left_out = ", ".join(cell.name for cell in cells[len(kept) :])
        text += f"\nA budget of {budget:g} hours holds {len(kept)} cells and leaves out {left_out}.\n"
    return kept, text
