"""Scores of the base that another run has already computed: the same for every adapter on the same base and
rows."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from minimon.files import open_tensors, tensor, write_tensors


class BaseScores:
    """A file of the base's sides of a mixture's tasks, by a hash of all that they depend on: weights,
    tokenizer, dtype, device, date, prompt, texts, options.

    A side is a dict of arrays over a task's n rows: "log_odds" (n, N), and what else was read there,
    "label_mass" (n,), "well_formed" (n,), log-odds of a reference (n, N) ..."""

    def __init__(self, path, mixture, about):
        """path: None to keep nothing. about: whatever scores depend on beside the mixture, as JSON."""
        self.path, self.keys = path, {}  # split -> the key of each of its tasks, in order
        for split in mixture.splits if path else ():
            self.keys[split] = []
            for task in mixture.split_tasks(split):
                asked = [split, task.prompt, task.prompt_position, list(task.labels)]
                asked += [[row.text for row in mixture.test_rows(task, split)], vars(mixture.options[split])]
                text = json.dumps([[torch.__version__, *about], asked], default=str)
                self.keys[split].append(hashlib.sha256(text.encode("utf-8")).hexdigest()[:32])

    def sides(self) -> dict[str, list[dict | None]]:
        """Split -> the side of each task in order, None where it is not computed yet: `measured` of
        evaluate.measure."""
        saved = read_sides(self.path) if self.path else {}
        return {split: [saved.get(key) for key in keys] for split, keys in self.keys.items()}

    def save(self, measured: dict[str, list[dict]]) -> None:
        """Split -> the side of each task, beside what is in the file by now; by one rename."""
        if not self.path:
            return
        saved = read_sides(self.path)
        before = len(saved)
        for split, sides in measured.items():
            saved |= zip(self.keys[split], sides)
        if len(saved) == before:
            return
        tensors = {}
        for key, side in saved.items():
            tensors |= {f"{key}.{name}": torch.from_numpy(values) for name, values in side.items()}
        write_tensors(self.path, tensors)


def read_sides(path) -> dict[str, dict[str, np.ndarray]]:
    sides = {}
    if Path(path).exists():
        with open_tensors(path) as file:
            for name in file.keys():
                key, _, part = name.partition(".")
                sides.setdefault(key, {})[part] = tensor(file, name, path).numpy()
    return sides
