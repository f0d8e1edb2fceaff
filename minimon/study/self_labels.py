"""Unsupervised elicitation: the model's own answers with thinking become the labels that it is trained on without thinking."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from minimon.evaluate import think
from minimon.files import read_jsonl, write_text
from minimon.metrics import auroc
from minimon.tasks import DECODING, Mixture, Row


def unlabelled_rows(mixture: Mixture, seed: int) -> dict[str, list[Row]]:
    """Training rows of each task as they come, not balanced: that would need the labels."""
    return {task.name: task.select("train", mixture.cap, balance=False, seed=seed) for task in mixture.train}


def thought_tokens(mixture: Mixture) -> int:
    return mixture.options["thinking"].max_new_tokens if "thinking" in mixture.options else DECODING["thinking"]


def self_labels(model, tokenizer, mixture: Mixture, seed: int, *, samples: int, max_new_tokens: int, batch_tokens=None,
                on_rows=None) -> list[dict]:
    """{"task", "where", "P", "label", "well_formed", "gold"} of each row; P(label) is the mean over `samples` thoughts (1: greedy).

    `gold` is not used, only kept to tell how good the labels are."""
    labels, generator = [], torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    rows = unlabelled_rows(mixture, seed)
    for task in mixture.train:
        texts, P, formed = [row.text for row in rows[task.name]], 0, 0
        for _ in range(samples):
            reading, ended = think(model, tokenizer, task, texts, max_new_tokens=max_new_tokens, temperature=float(samples > 1),
                                   generator=generator, batch_tokens=batch_tokens, on_rows=on_rows)
            P, formed = P + reading.P / samples, formed + ended / samples
        names = list(task.labels)
        labels += [{"task": task.name, "where": row.where, "P": [round(value, 6) for value in p.tolist()], "label": names[int(p.argmax())],
                    "well_formed": float(share), "gold": names[row.label]} for row, p, share in zip(rows[task.name], P, formed)]
    return labels


def labelled_rows(mixture: Mixture, seed: int, labels: list[dict]) -> dict[str, list[Row]]:
    """The rows under these labels, equally many of each where every label was given (all of them where one was not)."""
    given, chosen, unlabelled = {}, {}, unlabelled_rows(mixture, seed)
    for label in labels:                       # in the order of the rows, of which one line of a file may give several
        given.setdefault(label["task"], []).append(label["label"])
    for task in mixture.train:
        names = list(task.labels)
        rows = [replace(row, label=names.index(label)) for row, label in zip(unlabelled[task.name], given[task.name], strict=True)]
        pools = [[row for row in rows if row.label == label] for label in range(len(names))]
        each = min(map(len, pools)) if mixture.balance else 0
        chosen[task.name] = [row for pool in pools for row in pool[:each]] or rows
        random.Random(f"self-{seed}-{task.name}").shuffle(chosen[task.name])
    return chosen


def label_quality(labels: list[dict], mixture: Mixture) -> dict:
    """How good the labels are against gold ones that nothing was trained on: share right, AUROC (mean over tasks), share well-formed."""
    areas, trained = [], {task.name: list(task.labels)[0] for task in mixture.train}
    for name, positive in trained.items():
        of_task = [label for label in labels if label["task"] == name]
        areas.append(auroc(np.array([label["P"][0] for label in of_task]), np.array([label["gold"] == positive for label in of_task])))
    areas = [area for area in areas if area is not None]
    return {"rows": len(labels), "right": fmean(label["label"] == label["gold"] for label in labels),
            "auroc": fmean(areas) if areas else None, "well_formed": fmean(label["well_formed"] for label in labels)}


def save_labels(labels: list[dict], path: Path) -> None:
    write_text(path, "".join(json.dumps(label, ensure_ascii=False) + "\n" for label in labels))


def load_labels(path: Path, mixture: Mixture, seed: int) -> list[dict]:
    """What save_labels wrote. Raises ValueError naming file and line where it is not of these rows."""
    names, labels = {task.name: list(task.labels) for task in mixture.train}, []
    for number, label in read_jsonl(path):
        of_task = names.get(label["task"], ()) if isinstance(label.get("task"), str) else ()
        P, formed = label.get("P"), label.get("well_formed")
        if not isinstance(P, list) or len(P) != len(of_task) or label.get("label") not in of_task or label.get("gold") not in of_task \
                or not all(type(value) in (int, float) and 0 <= value <= 1 for value in (*P, formed)):
            raise ValueError(f"{path}:{number}: expected a label as this run writes them, got {label!r}; remove the file to label again")
        labels.append(label)
    given, rows = Counter(label["task"] for label in labels), unlabelled_rows(mixture, seed)
    if given != {name: len(of_task) for name, of_task in rows.items()}:
        raise ValueError(f"{path}: expected a label for each training row, got another number; remove the file to label again")
    return labels
