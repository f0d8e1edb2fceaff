"""What an evaluation has measured so far, in a file: an interrupted one goes on after it, and runs on the same rows share the
base's part."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from minimon.evaluate import measure, questions_of
from minimon.files import open_tensors, tensor, write_tensors
from minimon.run.lock import one_at_a_time
from minimon.run.processes import from_first, rank


class MeasuredSides:
    """A file of sides of a mixture's tasks, by a hash of all that they depend on: weights, tokenizer, dtype,
    device, date, prompt, texts, options.

    A side is a dict of arrays over a task's n rows: "log_odds" (n, N), and what else was read there,
    "label_mass" (n,), "well_formed" (n,), log-odds of a reference (n, N) ..."""

    def __init__(self, path, mixture, about):
        """about: whatever scores depend on beside the mixture, as JSON."""
        self.path, self.mixture = Path(path), mixture
        self.keys = {}  # split -> the key of each of its tasks, in order
        for split, questions in questions_of(mixture).items():
            self.keys[split] = []
            for question in questions:
                task, texts = question.task, question.texts
                asked = [split, task.prompt, task.prompt_position, list(task.labels)]
                asked += [texts, vars(mixture.options[split])]
                text = json.dumps([[torch.__version__, *about], asked], default=str)
                self.keys[split].append(hashlib.sha256(text.encode("utf-8")).hexdigest()[:32])

    def measure(self, model, tokenizer, **options) -> dict[str, list[dict]]:
        """Split -> the side of each task: evaluate.measure, each split saved as it is done, and none measured again."""
        measured = from_first(self.sides)
        return measure(model, tokenizer, self.mixture, measured=measured, on_split=self.save, **options)

    def sides(self) -> dict[str, list[dict | None]]:
        """Split -> the side of each task in order, None where it is not measured yet."""
        saved = read_sides(self.path)
        return {split: [saved.get(key) for key in keys] for split, keys in self.keys.items()}

    def save(self, split: str, sides: list[dict]) -> None:
        """The sides of a split beside what is in the file by now; by one rename, of the first process alone."""
        if rank() > 0:
            return
        with one_at_a_time(self.path.parent):
            saved = read_sides(self.path)
            before = len(saved)
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
