"""What a study costs, before it starts: the tokens of each cell, and the hours they take at the speed of this machine."""

import time
from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from minimon.batch import encode_row
from minimon.evaluate import questions_of, read
from minimon.generate import generate
from minimon.run.settings import SHIPPED, most_steps, settings_of
from minimon.study.cells import Cell
from minimon.study.results import grid
from minimon.study.self_labels import thought_tokens, unlabelled_rows
from minimon.tasks import Task

TRAINED = 3  # passes that a trained token costs: one forward, about two backward, since the base is frozen
SAMPLE = 24  # rows of a task that are looked at
WRITTEN = 16  # tokens to each of them


@dataclass(frozen=True)
class Speed:
    """Of a base on this machine."""

    tokens_per_character: float
    per_second: dict[str, float]  # tokens "trained", "read", "written"

    def length(self, task: Task) -> float:
        """Tokens of a row with its prompt, about."""
        characters = fmean(len(task.prompt + row.text) for row in task.rows[:SAMPLE])
        return self.tokens_per_character * characters


def measure_speed(model, tokenizer, task: Task) -> Speed:
    rows = task.rows[:SAMPLE]
    ids = [encode_row(tokenizer, task, row.text).ids for row in rows]
    tokens = sum(map(len, ids))
    read(model, tokenizer, task, rows)  # the first pass is slower than those after it
    started = time.time()
    read(model, tokenizer, task, rows)
    reading = tokens / (time.time() - started)
    started = time.time()
    generate(model, ids, max_new_tokens=WRITTEN, stop_ids=set())
    writing = WRITTEN * len(rows) / (time.time() - started)
    per_second = {"trained": reading / TRAINED, "read": reading, "written": writing}
    return Speed(tokens / sum(len(task.prompt + row.text) for row in rows), per_second)


def tokens_of(cell: Cell, speed: Speed) -> dict[str, float]:
    """{"trained", "read", "written"}: of the adapter alone, since all cells share the base's scores."""
    flags = settings_of(cell.flags)
    mixture = cell.mixture.restricted(flags.splits, flags.eval_rows, flags.cap)
    rows = (flags.steps or most_steps(cell.model)) * (flags.batch_size or SHIPPED["batch_size"])
    found = {
        "trained": rows * fmean(map(speed.length, mixture.train)),
        "read": 0.0,
        "written": 0.0,
    }
    for split, questions in questions_of(mixture).items():
        for task, rows in questions:
            found["read"] += len(rows) * speed.length(task)
            found["written"] += len(rows) * (mixture.options[split].max_new_tokens or 0)
    for task in mixture.train if flags.labels != "gold" else ():
        rows = len(unlabelled_rows(mixture, task, cell.seed))
        found["read"] += rows * speed.length(task)
        found["written"] += rows * thought_tokens(mixture) * (flags.labels == "self")
    return found


def fit_in(cells: list[Cell], speed: Speed, jobs: int, budget: float | None) -> tuple[list[Cell], str]:
    """The first cells that fit into `budget` hours, all without one; and the arithmetic, a table in markdown."""
    kept, spent, by_kind = [], 0.0, {}
    for cell in cells:
        tokens = tokens_of(cell, speed)
        hours = sum(tokens[kind] / speed.per_second[kind] for kind in tokens) / 3600 / jobs
        spent += hours
        if budget is None or spent <= budget:
            kept.append(cell)
        millions = {f"M tokens {kind}": count / 1e6 for kind, count in tokens.items()}
        row = {"cells": 1, **millions, "hours": hours}
        by_kind.setdefault(cell.kind, Counter()).update(row)
    speeds = ", ".join(f"{kind} {count:.0f}" for kind, count in speed.per_second.items())
    title = f"Plan: {spent:.1f} hours for {len(cells)} cells, {jobs} at a time"
    text = f"{grid(title, by_kind)}\n\nTokens a second, as measured here: {speeds}.\n"
    if len(kept) < len(cells):
        left_out = ", ".join(cell.name for cell in cells[len(kept) :])
        text += f"\nA budget of {budget:g} hours holds {len(kept)} cells and leaves out {left_out}.\n"
    return kept, text
