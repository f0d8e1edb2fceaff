"""scores.jsonl: a line a pair, from which the study computes again what the report says."""

import hashlib
import json
from pathlib import Path

import numpy as np

from minimon.files import read_jsonl, write_text
from minimon.metrics import Scores, SplitScores

ABOUT = ("split", "group", "task", "domain", "criterion")
AGAIN = "measure the run again: python eval.py --adapter RUN --out DIRECTORY"


def write_scores(scores: SplitScores, path) -> None:
    """Log-odds of each label, under "base", "adapter" and the references, to the last digit of fp32.

    "text" is a hash: equal texts are one cluster."""
    lines = []
    for split, groups in scores.items():
        for group, tasks in groups.items():
            for task in tasks:
                lines += lines_of(task, split, group)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def lines_of(task: Scores, split: str, group: str) -> list[dict]:
    lines = []
    for i, text in enumerate(task.clusters):
        log_odds = {}
        for name in ("base", "adapter", *task.references):
            log_odds[name] = [shortest(value) for value in task.of(name)[i]]
        lines.append(
            {
                "split": split,
                "group": group,
                "task": task.task,
                "domain": task.domain,
                "criterion": task.criterion,
                "text": text_hash(text),
                "label": int(task.labels[i]),
                "log_odds": log_odds,
            }
        )
    return lines


def shortest(value) -> float:
    """As few digits as name the fp32 number: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def scores_file(directory) -> Path:
    """scores.jsonl of a run, or the .gz that a repository holds in its place."""
    path = Path(directory) / "scores.jsonl"
    packed = path.with_suffix(".jsonl.gz")
    return packed if packed.exists() and not path.exists() else path


def read_scores(path) -> SplitScores:
    """What write_scores wrote, texts as their hashes. Raises ValueError naming the file and the line."""
    by_task = {}
    for number, line in read_jsonl(path):
        names = [line.get(key) for key in (*ABOUT, "text")]
        if not all(isinstance(name, str) for name in names) or type(line.get("label")) is not int:
            got = str(line)[:200]
            raise ValueError(f"{path}:{number}: expected the score of a pair, got {got}; {AGAIN}")
        by_task.setdefault(tuple(names[:-1]), []).append(line)
    scores = {}
    for (split, group, *about), lines in by_task.items():
        try:
            task = task_scores(lines, *about)
        except (LookupError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{path}: task {about[0]!r}: expected log-odds for every pair, got {error!r}; {AGAIN}"
            ) from error
        scores.setdefault(split, {}).setdefault(group, []).append(task)
    return scores


def task_scores(lines: list[dict], task: str, domain: str, criterion: str) -> Scores:
    sides = {}
    for name in lines[0]["log_odds"]:
        values = [line["log_odds"][name] for line in lines]
        with np.errstate(over="ignore"):  # what fp32 cannot hold is refused as infinite
            sides[name] = np.array(values, dtype=np.float32)
    return Scores(
        task,
        domain,
        labels=np.array([line["label"] for line in lines], dtype=int),
        clusters=np.array([line["text"] for line in lines], dtype=object),
        base=sides.pop("base"),
        adapter=sides.pop("adapter"),
        references=sides,
        criterion=criterion,
    )
