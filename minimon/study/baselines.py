"""What an adapter is compared with: methods that leave the model as it is, on the same evaluation rows.

Zero-shot is the base itself; the fitted threshold moves the log-odds from which its answer counts as positive; few-shot
shows labelled rows of a training task with the same criterion; bag of words and linear probe are logistic regressions on
the training tasks.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from minimon.batch import encode_row, row_limit
from minimon.evaluate import at_answers, read, read_ids
from minimon.metrics import Scores
from minimon.tasks import Mixture, Row, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4


@dataclass(frozen=True)
class Setup:
    """What every baseline is made of."""

    model: torch.nn.Module
    tokenizer: object
    mixture: Mixture
    seed: int

    def training_pairs(self) -> list[tuple[Task, Row]]:
        return [(task, row) for task in self.mixture.train for row in self.training_rows(task)]

    def training_rows(self, task: Task) -> list[Row]:
        return self.mixture.train_rows(task, self.seed)

    def zero_shot(self, task: Task, rows: list[Row]) -> torch.Tensor:
        """(n,) log-odds of the positive label, as of every baseline."""
        limit = row_limit(self.model.config, None)
        return read(self.model, self.tokenizer, task, rows, limit=limit).log_odds[:, 0]


def baselines(
    model, tokenizer, mixture: Mixture, seed: int = 0
) -> dict[str, dict[str, dict[str, list[Scores]]]]:
    """name -> split -> group -> Scores of the tasks with two labels to which it applies, where an answer is read at once.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    setup = Setup(model, tokenizer, mixture, seed)
    methods = {
        "zero-shot": setup.zero_shot,
        "fitted threshold": FittedThreshold(setup),
        "few-shot": FewShot(setup),
        "bag of words": BagOfWords(setup),
        "linear probe": LinearProbe(setup),
    }
    found = {name: {} for name in methods}
    for split in ("trained", "new_domain", "new_prompt"):
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in tasks:
                rows = mixture.test_rows(task, split)
                labels = np.array([row.label for row in rows], dtype=int)
                texts = np.array([row.text for row in rows], dtype=object)
                base = setup.zero_shot(task, rows)
                for name, method in methods.items() if len(task.labels) == 2 else ():
                    z = method(task, rows)
                    if z is not None:
                        sides = [torch.stack([side, -side], dim=1).numpy() for side in (base, z)]
                        scores = Scores(
                            task.name, task.domain, labels, texts, *sides, criterion=task.criterion
                        )
                        found[name].setdefault(split, {}).setdefault(group, []).append(scores)
    return found


# ---- the base, asked otherwise -----------------------------------------------------------------------------


class FittedThreshold:
    """The base's log-odds less those from which its answers on training rows are right most often."""

    def __init__(self, setup: Setup):
        self.setup = setup
        z = torch.cat([setup.zero_shot(task, setup.training_rows(task)) for task in setup.mixture.train])
        positive = torch.tensor([row.label == 0 for _, row in setup.training_pairs()])
        z, order = z.sort()
        gained = torch.where(positive[order], -1, 1).cumsum(
            dim=0
        )  # right answers, as one row more falls below
        best = int(torch.cat([torch.zeros(1), gained]).argmax())
        edges = torch.cat([z[:1] - 1, z, z[-1:] + 1])
        self.threshold = (edges[best] + edges[best + 1]) / 2

    def __call__(self, task: Task, rows: list[Row]) -> torch.Tensor:
        return self.setup.zero_shot(task, rows) - self.threshold


@dataclass(frozen=True)
class FewShot:
    """The task's prompt, then SHOTS labelled rows as earlier turns."""

    setup: Setup

    def __call__(self, task: Task, rows: list[Row]) -> torch.Tensor | None:
        setup, names, shots = self.setup, list(task.labels), []
        same = [other for other in setup.mixture.train if other.criterion == task.criterion]
        same = [other for other in same if other.domain != task.domain] or same
        if not same or task.prompt_position == "after":
            return None
        rng = random.Random(f"shots-{setup.seed}-{task.name}")
        pool = setup.training_rows(rng.choice(same))
        for label in range(len(names)):
            shots += rng.sample([row for row in pool if row.label == label], SHOTS // len(names))
        rng.shuffle(shots)
        turns = [{"role": "system", "content": task.prompt}]
        for row in shots:
            turns.append({"role": "user", "content": row.text})
            turns.append({"role": "assistant", "content": names[row.label]})
        prompts = [setup.tokenizer.chat([*turns, {"role": "user", "content": row.text}]) for row in rows]
        return read_ids(setup.model, prompts, setup.tokenizer.label_ids(names)).log_odds[:, 0]


# ---- logistic regressions ----------------------------------------------------------------------------------


def logistic(X: torch.Tensor, pairs: list[tuple[Task, Row]]) -> torch.Tensor:
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


def fit(X: torch.Tensor, y: torch.Tensor, decay: float) -> torch.Tensor:
    w = torch.zeros(X.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(w, X, y) + decay * (w[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return w.detach()


def loss(w: torch.Tensor, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return binary_cross_entropy_with_logits(log_odds(w, X), y)


def log_odds(w: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    return X @ w[:-1] + w[-1]


class BagOfWords:
    """A classifier for each criterion, of all training tasks with it; one of all training tasks for other criteria."""

    def __init__(self, setup: Setup):
        self.pairs, self.fits = setup.training_pairs(), {}
        counts = Counter(word for _, row in self.pairs for word in set(words(row)))
        self.columns = {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}

    def features(self, rows: list[Row]) -> torch.Tensor:
        """(n, F) counts"""
        X = torch.zeros(len(rows), len(self.columns))
        for i, row in enumerate(rows):
            for word in words(row):
                if word in self.columns:
                    X[i, self.columns[word]] += 1
        return X

    def __call__(self, task: Task, rows: list[Row]) -> torch.Tensor:
        same = [(other, row) for other, row in self.pairs if other.criterion == task.criterion]
        key = task.criterion if same else ""
        if key not in self.fits:
            pairs = same or self.pairs
            self.fits[key] = logistic(self.features([row for _, row in pairs]), pairs)
        return log_odds(self.fits[key], self.features(rows))


def words(row: Row) -> list[str]:
    return re.findall(r"\w+", row.text.lower())


class LinearProbe:
    """On the base's hidden state at the answer position, over all training tasks: it says of the prompt as well."""

    def __init__(self, setup: Setup):
        self.setup = setup
        X = torch.cat([self.hidden(task, setup.training_rows(task)) for task in setup.mixture.train])
        self.mean, self.std = X.mean(dim=0), X.std(dim=0) + 1e-6
        self.w = logistic((X - self.mean) / self.std, setup.training_pairs())

    @torch.inference_mode()
    def hidden(self, task: Task, rows: list[Row]) -> torch.Tensor:
        """(n, C)"""
        model, limit = self.setup.model, row_limit(self.setup.model.config, None)
        ids = [encode_row(self.setup.tokenizer, task, row.text, limit=limit).ids for row in rows]
        states = torch.empty(len(ids), model.config.hidden_size)
        for batch, hidden in at_answers(model, ids, torch.Tensor.float):
            states[batch] = hidden.cpu()
        return states

    def __call__(self, task: Task, rows: list[Row]) -> torch.Tensor:
        return log_odds(self.w, (self.hidden(task, rows) - self.mean) / self.std)
