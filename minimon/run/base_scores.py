"""Scores of the base that another run has already computed: the same for every adapter on the same base and
rows."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from minimon.files import open_tensors, tensor, write_tensors


class BaseScores:
    """A file of the base's sides of tasks, by a hash of all that they depend on: weights, tokenizer, dtype,
    device, date, prompt, texts, options.

    A side is a dict of arrays over a task's n rows: "log_odds" (n, N), and what else was read there,
    "label_mass" (n,), "well_formed" (n,), log-odds of a reference (n, N) ..."""

    def __init__(self, path, base: dict[str, str], about):
        """base: name -> sha256 of the checkpoint's files. about: whatever else scores depend on, as JSON."""
        self.path = Path(path)
        self.about = [torch.__version__, base, about]
        self.computed = read_sides(self.path)
        self.has_new = False

    def sides(self, mixture) -> dict[str, list[dict | None]]:
        """Split -> the side of each task in order, None where it is not computed yet: `base` of
        evaluate.evaluate."""
        found = {}
        for split in mixture.splits:
            tasks = mixture.split_tasks(split)
            found[split] = [self.computed.get(self.key(mixture, split, task)) for task in tasks]
        return found

    def add(self, mixture, scores: dict) -> None:
        """What evaluate gave: {split: {group: [Scores]}}."""
        for split in mixture.splits:
            tasks = mixture.split_tasks(split)
            of_tasks = [of_task for group in scores.get(split, {}).values() for of_task in group]
            for task, of_task in zip(tasks, of_tasks):
                side = {"log_odds": of_task.base, **of_task.shares["base"], **of_task.references}
                key = self.key(mixture, split, task)
                self.has_new |= key not in self.computed
                self.computed[key] = side

    def key(self, mixture, split: str, task) -> str:
        texts = [row.text for row in mixture.test_rows(task, split)]
        asked = [
            split,
            task.prompt,
            task.prompt_position,
            list(task.labels),
            texts,
            vars(mixture.options[split]),
        ]
        return hashlib.sha256(json.dumps([self.about, asked], default=str).encode("utf-8")).hexdigest()[:32]

    def save(self) -> None:
        """Beside what other runs have added meanwhile, by one rename."""
        if not self.has_new:
            return
        tensors = {}
        for key, side in {**read_sides(self.path), **self.computed}.items():
            for name, values in side.items():
                tensors[f"{key}.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
        write_tensors(self.path, tensors)


def read_sides(path: Path) -> dict[str, dict[str, np.ndarray]]:
    sides = {}
    if path.exists():
        with open_tensors(path) as file:
            for name in file.keys():
                key, _, part = name.partition(".")
                sides.setdefault(key, {})[part] = tensor(file, name, path).numpy()
    return sides
