"""Scores of the base that another run has already made: the same for every adapter on the same base and rows."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from minimon.files import open_tensors, tensor, write_tensors


class Known:
    """A file of scores by a key of all that they follow from: weights, tokenizer, dtype, device, date, prompt, texts and options."""

    def __init__(self, path, base: dict[str, str], about):
        """base: name -> sha256 of the checkpoint's files."""
        self.path, self.about = Path(path), [torch.__version__, about, base]
        self.scores, self.added = load(self.path), False

    def key(self, split: str, task, texts, options) -> str:
        parts = [self.about, split, task.prompt, task.prompt_position, list(task.labels), texts, vars(options)]
        return hashlib.sha256(json.dumps(parts, default=str).encode("utf-8")).hexdigest()[:32]

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        return self.scores.get(key)

    def put(self, key: str, parts: dict[str, np.ndarray]) -> None:
        self.scores[key], self.added = parts, True

    def save(self) -> None:
        """What is there and what other runs have added meanwhile, by one rename."""
        if self.added:
            scores = {**load(self.path), **self.scores}
            write_tensors(self.path, {f"{key}.{part}": torch.from_numpy(np.ascontiguousarray(values))
                                      for key, parts in scores.items() for part, values in parts.items()})


def load(path: Path) -> dict[str, dict[str, np.ndarray]]:
    scores = {}
    if path.exists():
        with open_tensors(path) as file:
            for name in file.keys():
                key, _, part = name.partition(".")
                scores.setdefault(key, {})[part] = tensor(file, name, path).numpy()
    return scores
