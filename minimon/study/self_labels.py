"""Unsupervised elicitation: the base's own answers become the labels that it is trained on without thinking.

From its thinking; or, as the control, from its answers at once: what training on one's own guesses does by itself.
"""

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from minimon.batch import NO_LIMIT, task_label_ids
from minimon.evaluate import read, think
from minimon.files import read_jsonl, write_text
from minimon.metrics import auroc, mean_of_defined
from minimon.run.cli import progress
from minimon.run.processes import count_rows, from_first
from minimon.tasks import DECODING, Mixture, Row, Task


@dataclass(frozen=True)
class SelfLabel:
    """A line of labels.jsonl. `gold` is not trained on; it says how good the labels are."""

    task: str
    where: str  # of the row, file:line
    log_odds: list[float]  # of each label against the rest, of the mean P over the thoughts
    label: str
    well_formed: float  # share of thoughts that ended by themselves and led to a label
    gold: str


def training_rows(
    settings,
    mixture: Mixture,
    model,
    tokenizer,
    directory: Path,
    *,
    limit=NO_LIMIT,
):
    """Task name -> rows, with gold labels or the base's own; and how good the latter are (None for gold ones).

    settings: train.py's. Self labels are written to labels.jsonl of the run directory, where a run that goes on reads them."""
    if settings.labels == "gold":
        return {task.name: mixture.train_rows(task, settings.seed) for task in mixture.train}, None
    path, thinking = Path(directory) / "labels.jsonl", settings.labels == "self"
    for task in mixture.train:
        task_label_ids(tokenizer, task, thinking=thinking)  # refused before anything is decoded
    if not from_first(path.exists):
        samples = settings.label_samples if thinking else 1
        count = samples * sum(len(unlabelled_rows(mixture, task, settings.seed)) for task in mixture.train)
        with progress(count, 0, "label", "row") as bar:
            labels = self_labels(
                model,
                tokenizer,
                mixture,
                settings.seed,
                thinking=thinking,
                samples=samples,
                limit=limit,
                batch_tokens=settings.batch_tokens,
                on_rows=count_rows(bar, model),
            )
        from_first(lambda: save_labels(labels, path))
    labels = from_first(lambda: load_labels(path, mixture, settings.seed))
    return labelled_rows(mixture, settings.seed, labels), label_quality(labels, mixture)


def unlabelled_rows(mixture: Mixture, task: Task, seed: int) -> list[Row]:
    """A task's training rows as they come, not balanced: that would need the labels."""
    return task.select("train", mixture.cap, balance=False, seed=seed)


def thought_tokens(mixture: Mixture) -> int:
    """The limit on a thought: that of the thinking split, if there is one."""
    split = mixture.options.get("thinking")
    return split.max_new_tokens if split else DECODING["thinking"]


def self_labels(
    model, tokenizer, mixture: Mixture, seed: int, *, thinking=True, samples=1, **options
) -> list[SelfLabel]:
    """Labels of all training rows, from `samples` thoughts (1: greedy), or from the answer at once. options: of `read`."""
    labels, generator = [], torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    sampling = {
        "temperature": float(samples > 1),
        "generator": generator,
        "max_new_tokens": thought_tokens(mixture),
    }
    for task in mixture.train:
        rows = unlabelled_rows(mixture, task, seed)
        texts = [row.text for row in rows]
        if thinking:
            readings = [think(model, tokenizer, task, texts, **sampling, **options) for _ in range(samples)]
        else:
            readings = [read(model, tokenizer, task, texts, **options)]
        z = torch.stack([reading.log_odds for reading in readings])  # (samples, n, N)
        z = logsigmoid(z).logsumexp(dim=0) - logsigmoid(-z).logsumexp(dim=0)  # (n, N) log-odds of the mean P
        formed = [reading.well_formed if thinking else reading.label_first for reading in readings]
        formed = torch.stack(formed).float().mean(dim=0)  # (n,)
        labels += map(self_label, [task] * len(rows), rows, z.tolist(), formed.tolist())
    return labels


def self_label(task: Task, row: Row, log_odds: list[float], well_formed: float) -> SelfLabel:
    names = list(task.labels)
    label = names[int(np.argmax(log_odds))]
    return SelfLabel(task.name, row.where, log_odds, label, well_formed, gold=names[row.label])


def labelled_rows(mixture: Mixture, seed: int, labels: list[SelfLabel]) -> dict[str, list[Row]]:
    """The rows under these labels, equally many of each where every label was given (all of them where one was not)."""
    chosen = {}
    for task in mixture.train:
        names = list(task.labels)
        answers = [label.label for label in labels if label.task == task.name]
        rows, pools = [], [[] for _ in names]
        for row, answer in zip(unlabelled_rows(mixture, task, seed), answers):
            label = names.index(answer)
            rows.append(replace(row, label=label))
            pools[label].append(rows[-1])
        fewest = min(map(len, pools)) if mixture.balance else 0
        chosen[task.name] = [row for pool in pools for row in pool[:fewest]] or rows
        random.Random(f"self-{seed}-{task.name}").shuffle(chosen[task.name])
    return chosen


def label_quality(labels: list[SelfLabel], mixture: Mixture) -> dict:
    """Against gold labels that nothing was trained on: share right, AUROC (mean over tasks), share well-formed."""
    areas = []
    for task in mixture.train:
        of_task = [label for label in labels if label.task == task.name]
        z = np.array([label.log_odds[0] for label in of_task])
        positive = next(iter(task.labels))
        areas.append(auroc(z, np.array([label.gold == positive for label in of_task], dtype=bool)))
    return {
        "rows": len(labels),
        "right": fmean(label.label == label.gold for label in labels),
        "auroc": mean_of_defined(areas),
        "well_formed": fmean(label.well_formed for label in labels),
    }


# ---- labels.jsonl ------------------------------------------------------------------------------------------


def save_labels(labels: list[SelfLabel], path: Path) -> None:
    lines = [json.dumps(asdict(label), ensure_ascii=False) for label in labels]
    write_text(path, "\n".join(lines) + "\n")


def load_labels(path: Path, mixture: Mixture, seed: int) -> list[SelfLabel]:
    """What save_labels wrote. Raises ValueError naming file and line where it is not of these rows."""
    rows = [(task, row) for task in mixture.train for row in unlabelled_rows(mixture, task, seed)]
    lines, labels = list(read_jsonl(path)), []
    if len(lines) != len(rows):
        raise ValueError(
            f"{path}: expected {len(rows)} labels, got {len(lines)}; remove the file to label again"
        )
    for (number, line), (task, row) in zip(lines, rows):
        label = read_label(line, task, row)
        if label is None or (label.task, label.label) != (line.get("task"), line.get("label")):
            about = f"expected a label of {task.name!r} as this run writes it, got {line!r}"
            raise ValueError(f"{path}:{number}: {about}; remove the file to label again")
        labels.append(label)
    return labels


def read_label(line: dict, task: Task, row: Row) -> SelfLabel | None:
    """From its numbers; None where they are not."""
    log_odds, well_formed = line.get("log_odds"), line.get("well_formed")
    if not isinstance(log_odds, list) or len(log_odds) != len(task.labels):
        return None
    are_numbers = all(type(z) in (int, float) and abs(z) < 1e6 for z in (*log_odds, well_formed))
    return self_label(task, row, log_odds, well_formed) if are_numbers else None
