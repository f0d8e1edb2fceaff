"""What an adapter is compared with: methods that leave the model as it is, on the same evaluation rows.

Zero-shot is the base itself; the fitted threshold moves the log-odds from which its answer counts as positive; few-shot
shows labelled rows of a training task with the same criterion; bag of words and linear probe are logistic regressions on
the training tasks.

n rows, F features of a row, C hidden_size.
"""

import random
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from minimon.batch import encode_row, row_limit
from minimon.evaluate import at_answers, read_answers
from minimon.metrics import Scores
from minimon.study.examples import showing
from minimon.tasks import Mixture, Row, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4
Rows = list[tuple[Task, list[Row]]]  # of several tasks


def baselines(model, tokenizer, mixture: Mixture) -> dict[str, dict[str, dict[str, list[Scores]]]]:
    """name -> split -> group -> Scores of the tasks with two labels to which it applies, where an answer is read at once.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    methods = Methods(model, tokenizer, mixture)
    found = {name: {} for name in BASELINES}
    for split in ("trained", "new_domain", "new_prompt"):
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in [task for task in tasks if len(task.labels) == 2]:
                rows = mixture.test_rows(task, split)
                labels = np.array([row.label for row in rows], dtype=int)
                texts = np.array([row.text for row in rows], dtype=object)
                base = methods.zero_shot(task, rows)
                for name, method in BASELINES.items():
                    z = method(methods, task, rows)
                    if z is not None:
                        sides = [torch.stack([side, -side], dim=1).numpy() for side in (base, z)]
                        about = {"criterion": task.criterion}
                        scores = Scores(task.name, task.domain, labels, texts, *sides, **about)
                        found[name].setdefault(split, {}).setdefault(group, []).append(scores)
    return found


@dataclass
class Methods:
    """Each baseline is a method: (task, rows) -> (n,) log-odds of the positive label, None where it does not apply."""

    model: torch.nn.Module
    tokenizer: object
    mixture: Mixture
    asked: dict = field(default_factory=dict)  # what the base said to which rows
    fitted: dict = field(default_factory=dict)  # weights of regressions

    @cached_property
    def training(self) -> Rows:
        return [(task, self.mixture.train_rows(task, 0)) for task in self.mixture.train]

    def alike(self, task: Task) -> Rows:
        """Training tasks that ask for the same; a reversed question asks for other values of the label."""

        def criterion(task: Task) -> list:
            return [task.criterion, *task.labels.values()]

        return [(other, rows) for other, rows in self.training if criterion(other) == criterion(task)]

    # ---- of the base

    def zero_shot(self, task: Task, rows: list[Row]) -> Tensor:
        return self.ask(task, rows)[0]

    @torch.inference_mode()
    def ask(self, task: Task, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """The base's log-odds of the positive label (n,) and its states (n, C) at the answer position."""
        key = (task.where, task.name, task.prompt, *(row.where for row in rows))
        if key not in self.asked:
            limit, labels = row_limit(self.model.config, None), self.tokenizer.label_ids(list(task.labels))
            ids = [encode_row(self.tokenizer, task, row.text, limit=limit).ids for row in rows]
            z, states = torch.empty(len(ids)), torch.empty(len(ids), self.model.config.hidden_size)

            def use(hidden: Tensor) -> tuple[Tensor, Tensor]:
                return read_answers(hidden, self.model, labels)[0][:, 0], hidden

            for batch, (of_batch, hidden) in at_answers(self.model, ids, use):
                z[batch], states[batch] = of_batch.cpu(), hidden.float().cpu()
            self.asked[key] = z, states
        return self.asked[key]

    def fitted_threshold(self, task: Task, rows: list[Row]) -> Tensor:
        return self.zero_shot(task, rows) - self.threshold

    @cached_property
    def threshold(self) -> Tensor:
        """The log-odds above which the base's answers on training rows count as positive and are right most often."""
        z, order = torch.cat([self.zero_shot(*of_task) for of_task in self.training]).sort()
        gained = torch.where(positives(self.training)[order], -1, 1).cumsum(
            dim=0
        )  # as one row more falls below
        best = int(torch.cat([torch.zeros(1), gained]).argmax())
        edges = torch.cat([z[:1] - 1, z, z[-1:] + 1])
        return (edges[best] + edges[best + 1]) / 2

    def few_shot(self, task: Task, rows: list[Row]) -> Tensor | None:
        """SHOTS labelled rows of a training task in the prompt, of another domain where there is one."""
        alike = self.alike(task)
        others = [pair for pair in alike if pair[0].domain != task.domain] or alike
        if not others:
            return None
        _, shown = random.Random(f"shots-{task.name}").choice(others)
        return self.zero_shot(showing(task, shown, SHOTS), rows)

    # ---- regressions

    def bag_of_words(self, task: Task, rows: list[Row]) -> Tensor:
        """A classifier for each criterion, of all training tasks with it; one of all training tasks for other criteria."""
        alike = self.alike(task)
        key = ("words", *(other.name for other, _ in alike))
        return self.regress(key, alike or self.training, self.counts, task, rows)

    def counts(self, task: Task, rows: list[Row]) -> Tensor:
        """(n, F): how often each word is in each text."""
        X = torch.zeros(len(rows), len(self.vocabulary))
        for i, row in enumerate(rows):
            for word in words(row):
                if word in self.vocabulary:
                    X[i, self.vocabulary[word]] += 1
        return X

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The words of two training rows or more."""
        counts = Counter(word for _, rows in self.training for row in rows for word in set(words(row)))
        return {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}

    def linear_probe(self, task: Task, rows: list[Row]) -> Tensor:
        """On the base's hidden state at the answer position, over all training tasks: it says of the prompt as well."""
        return self.regress("probe", self.training, self.states, task, rows)

    def states(self, task: Task, rows: list[Row]) -> Tensor:
        mean, std = self.scale
        return (self.ask(task, rows)[1] - mean) / std

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        states = torch.cat([self.ask(*of_task)[1] for of_task in self.training])
        return states.mean(dim=0), states.std(dim=0) + 1e-6

    def regress(self, key: Hashable, training: Rows, features, task: Task, rows: list[Row]) -> Tensor:
        """By a logistic regression on features(task, rows) (n, F), fitted once for each key."""
        if key not in self.fitted:
            self.fitted[key] = logistic(torch.cat([features(*of_task) for of_task in training]), training)
        return log_odds(self.fitted[key], features(task, rows))


BASELINES = {
    "zero-shot": Methods.zero_shot,
    "fitted threshold": Methods.fitted_threshold,
    "few-shot": Methods.few_shot,
    "bag of words": Methods.bag_of_words,
    "linear probe": Methods.linear_probe,
}


def words(row: Row) -> list[str]:
    return re.findall(r"\w+", row.text.lower())


def positives(training: Rows) -> Tensor:
    """(n,) bool"""
    return torch.tensor([row.label == 0 for _, rows in training for row in rows])


# ---- logistic regression -----------------------------------------------------------------------------------


def logistic(X: Tensor, training: Rows) -> Tensor:
    """X (n, F) of these rows -> weights (F + 1,) for log-odds of the positive label.

    Of DECAYS the one that does best on domains left out, then all are fitted."""
    y = positives(training).float()
    left_out = sorted({task.domain for task, _ in training})[::3]
    held = torch.tensor([task.domain in left_out for task, rows in training for _ in rows])
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
