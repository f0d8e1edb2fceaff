"""scores.jsonl: a line a pair, from which the study computes again what the report says."""

import hashlib
import json

import numpy as np

from minimon.files import read_jsonl, write_text
from minimon.metrics import Scores

ABOUT = ("split", "group", "task", "domain", "criterion")


def write_scores(scores: dict[str, dict[str, list[Scores]]], path) -> None:
    """Log-odds of each label, under "base", "adapter" and the references, to the last digit of fp32.

    "text" is a hash: equal texts are one cluster."""
    lines = []
    for split, groups in scores.items():
        for group, tasks in groups.items():
            for task in tasks:
                about = dict(zip(ABOUT, (split, group, task.task, task.domain, task.criterion), strict=True))
                sides = {name: task.of(name) for name in ("base", "adapter", *task.references)}
                for i, text in enumerate(task.clusters):
                    log_odds = {name: digits(values[i]) for name, values in sides.items()}
                    row = {"text": text_hash(text), "label": int(task.labels[i]), "log_odds": log_odds}
                    lines.append(json.dumps({**about, **row}) + "\n")
    write_text(path, "".join(lines))


def digits(values) -> list[float]:
    """As few digits as name the fp32 number: 0.1, not 0.10000000149011612."""
    return [float(str(np.float32(value))) for value in values]


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def read_scores(path) -> dict[str, dict[str, list[Scores]]]:
    """What write_scores wrote, texts as their hashes. Raises ValueError naming the file and the line."""
    tasks = {}
    for number, line in read_jsonl(path):
        check_line(line, f"{path}:{number}")
        about = tuple(line.get(key, "") for key in ABOUT)
        tasks.setdefault(about, []).append(line)
    scores = {}
    for (split, group, task, domain, criterion), lines in tasks.items():
        labels = np.array([line["label"] for line in lines])
        texts = np.array([line["text"] for line in lines], dtype=object)
        try:
            sides = {}
            for name in lines[0]["log_odds"]:
                values = [line["log_odds"][name] for line in lines]
                with np.errstate(over="ignore"):  # what fp32 cannot hold is refused as infinite
                    sides[name] = np.array(values, dtype=np.float32)
            base, adapter = sides.pop("base"), sides.pop("adapter")
            found = Scores(task, domain, labels, texts, base, adapter, references=sides, criterion=criterion)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{path}: task {task!r}: expected log-odds for every pair, got {error!r}"
            ) from error
        scores.setdefault(split, {}).setdefault(group, []).append(found)
    return scores


def check_line(line: dict, where: str) -> None:
    if "base" in line and "log_odds" not in line:
        raise ValueError(
            f"{where}: expected log-odds, got the probabilities of an older version, which tie near 0 and 1; "
            "measure the run again: python eval.py --adapter RUN --out DIRECTORY"
        )
    names = [line.get(key, "") for key in ABOUT] + [line.get("text")]
    label, log_odds = line.get("label"), line.get("log_odds")
    numbers = type(label) is int and 0 <= label < 2**31 and isinstance(log_odds, dict)
    if not numbers or not all(isinstance(name, str) for name in names) or not {"split", "task"} <= set(line):
        raise ValueError(f"{where}: expected the score of a pair, got {str(line)[:200]}")
