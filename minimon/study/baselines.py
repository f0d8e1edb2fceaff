"""What an adapter is compared with: methods that leave the model as it is, on the same evaluation rows.

Zero-shot is the base itself; the fitted threshold moves the log-odds from which its answer counts as positive; few-shot
shows labelled rows of a training task with the same criterion; bag of words and linear probe are logistic regressions on
the training tasks.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from minimon.batch import row_limit
from minimon.evaluate import Encoded, read, read_encoded
from minimon.metrics import Scores
from minimon.tasks import Mixture, Row, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4


@dataclass
class ZeroShot:
    """baseline(task, rows) -> (n,) log-odds of the positive label, None where it does not apply; here by the base."""

    model: torch.nn.Module
    tokenizer: object
    mixture: Mixture
    seed: int
    asked: dict = field(default_factory=dict)  # what the base said to which rows; baselines may share it

    @cached_property
    def pairs(self) -> list[tuple[Task, Row]]:
        """All training rows, in the order of the tasks."""
        return [(task, row) for task in self.mixture.train for row in self.training_rows(task)]

    def training_rows(self, task: Task) -> list[Row]:
        return self.mixture.train_rows(task, self.seed)

    def ask(self, task: Task, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """The base's log-odds of the positive label (n,) and its states (n, C) at the answer position."""
        key = (task.where, task.name, *(row.where for row in rows))
        if key not in self.asked:
            limit = row_limit(self.model.config, None)
            reading = read(self.model, self.tokenizer, task, rows, limit=limit, keep_hidden=True)
            self.asked[key] = reading.log_odds[:, 0], reading.hidden
        return self.asked[key]

    def __call__(self, task: Task, rows: list[Row]) -> Tensor | None:
        return self.ask(task, rows)[0]


class FittedThreshold(ZeroShot):
    """The base's log-odds less those from which its answers on training rows are right most often."""

    @cached_property
    def threshold(self) -> Tensor:
        z = torch.cat(
            [ZeroShot.__call__(self, task, self.training_rows(task)) for task in self.mixture.train]
        )
        z, order = z.sort()
        positive = torch.tensor([row.label == 0 for _, row in self.pairs])[order]
        gained = torch.where(positive, -1, 1).cumsum(dim=0)  # right answers, as one row more falls below
        best = int(torch.cat([torch.zeros(1), gained]).argmax())
        edges = torch.cat([z[:1] - 1, z, z[-1:] + 1])
        return (edges[best] + edges[best + 1]) / 2

    def __call__(self, task: Task, rows: list[Row]) -> Tensor | None:
        return self.ask(task, rows)[0] - self.threshold


class FewShot(ZeroShot):
    """The task's prompt, then SHOTS labelled rows as earlier turns."""

    def __call__(self, task: Task, rows: list[Row]) -> Tensor | None:
        same = [other for other in self.mixture.train if criterion(other) == criterion(task)]
        same = [other for other in same if other.domain != task.domain] or same
        if not same or task.prompt_position == "after":
            return None
        rng, names, shots = random.Random(f"shots-{self.seed}-{task.name}"), list(task.labels), []
        pool = self.training_rows(rng.choice(same))
        for label in range(len(names)):
            shots += rng.sample([row for row in pool if row.label == label], SHOTS // len(names))
        rng.shuffle(shots)
        turns = [{"role": "system", "content": task.prompt}]
        for row in shots:
            turns.append({"role": "user", "content": row.text})
            turns.append({"role": "assistant", "content": names[row.label]})
        chats = [self.tokenizer.chat([*turns, {"role": "user", "content": row.text}]) for row in rows]
        encoded = Encoded(chats, self.tokenizer.label_ids(names), left_out=[0] * len(chats))
        return read_encoded(self.model, encoded).log_odds[:, 0]


class BagOfWords(ZeroShot):
    """A classifier for each criterion, of all training tasks with it; one of all training tasks for other criteria."""

    @cached_property
    def columns(self) -> dict[str, int]:
        counts = Counter(word for _, row in self.pairs for word in set(words(row)))
        return {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}

    @cached_property
    def fits(self) -> dict[tuple | str, Tensor]:
        """Criterion -> weights, as they are asked for."""
        return {}

    def features(self, rows: list[Row]) -> Tensor:
        """(n, F) counts"""
        X = torch.zeros(len(rows), len(self.columns))
        for i, row in enumerate(rows):
            for word in words(row):
                if word in self.columns:
                    X[i, self.columns[word]] += 1
        return X

    def __call__(self, task: Task, rows: list[Row]) -> Tensor | None:
        same = [pair for pair in self.pairs if criterion(pair[0]) == criterion(task)]
        key = criterion(task) if same else ""
        if key not in self.fits:
            pairs = same or self.pairs
            self.fits[key] = logistic(self.features([row for _, row in pairs]), pairs)
        return log_odds(self.fits[key], self.features(rows))


class LinearProbe(ZeroShot):
    """On the base's hidden state at the answer position, over all training tasks: it says of the prompt as well."""

    @cached_property
    def fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of the states (C,), and weights."""
        X = torch.cat([self.ask(task, self.training_rows(task))[1] for task in self.mixture.train])
        mean, std = X.mean(dim=0), X.std(dim=0) + 1e-6
        return mean, std, logistic((X - mean) / std, self.pairs)

    def __call__(self, task: Task, rows: list[Row]) -> Tensor | None:
        mean, std, w = self.fitted
        return log_odds(w, (self.ask(task, rows)[1] - mean) / std)


BASELINES = {
    "zero-shot": ZeroShot,
    "fitted threshold": FittedThreshold,
    "few-shot": FewShot,
    "bag of words": BagOfWords,
    "linear probe": LinearProbe,
}


def baselines(
    model, tokenizer, mixture: Mixture, seed: int = 0
) -> dict[str, dict[str, dict[str, list[Scores]]]]:
    """name -> split -> group -> Scores of the tasks with two labels to which it applies, where an answer is read at once.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    asked = {}
    methods = {name: kind(model, tokenizer, mixture, seed, asked) for name, kind in BASELINES.items()}
    found = {name: {} for name in methods}
    for split in ("trained", "new_domain", "new_prompt"):
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in [task for task in tasks if len(task.labels) == 2]:
                rows = mixture.test_rows(task, split)
                labels = np.array([row.label for row in rows], dtype=int)
                texts = np.array([row.text for row in rows], dtype=object)
                base = methods["zero-shot"](task, rows)
                for name, method in methods.items():
                    z = method(task, rows)
                    if z is not None:
                        sides = [torch.stack([side, -side], dim=1).numpy() for side in (base, z)]
                        scores = Scores(
                            task.name, task.domain, labels, texts, *sides, criterion=task.criterion
                        )
                        found[name].setdefault(split, {}).setdefault(group, []).append(scores)
    return found


def criterion(task: Task) -> tuple:
    """What a task asks for, whatever its words: a reversed question asks for other values of the label."""
    return task.criterion, *map(str, task.labels.values())


def words(row: Row) -> list[str]:
    return re.findall(r"\w+", row.text.lower())


# ---- logistic regression -----------------------------------------------------------------------------------


def logistic(X: Tensor, pairs: list[tuple[Task, Row]]) -> Tensor:
    """X (n, F) of the pairs -> weights (F + 1,) for log-odds of the positive label.

    Of DECAYS the one that does best on domains left out, then all are fitted."""
    y = torch.tensor([float(row.label == 0) for _, row in pairs])
    left_out = sorted({task.domain for task, _ in pairs})[::3]
    held = torch.tensor([task.domain in left_out for task, _ in pairs])
    decay = DECAYS[1]
    if not held.all():
        losses = [loss(fit(X[~held], y[~held], decay), X[held], y[held]).item() for decay in DECAYS]
        decay = DECAYS[int(np.argmin(losses))]
    return fit(X, y, decay)


def fit(X: Tensor, y: Tensor, decay: float) -> Tensor:
    w = torch.zeros(X.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(w, X, y) + decay * (w[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return w.detach()


def loss(w: Tensor, X: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(log_odds(w, X), y)


def log_odds(w: Tensor, X: Tensor) -> Tensor:
    return X @ w[:-1] + w[-1]
