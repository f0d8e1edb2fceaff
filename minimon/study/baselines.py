"""What an adapter is compared with: methods that leave the model as it is, on the same evaluation rows.

Zero-shot is the base itself; the fitted threshold moves the log-odds from which its answer counts as positive; few-shot
shows labelled rows of a training task with the same criterion; bag of words and linear probe are logistic regressions on
the training tasks.

n rows, F features of a row, C hidden_size.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from minimon.batch import row_limit
from minimon.evaluate import Question, read, scores_of
from minimon.metrics import SplitScores
from minimon.study.examples import showing
from minimon.tasks import Mixture, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4


def baselines(model, tokenizer, mixture: Mixture) -> dict[str, SplitScores]:
    """name -> split -> group -> Scores of the tasks with two labels to which it applies, where an answer is read at once.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    methods = Methods(model, tokenizer, mixture)
    found = {name: {} for name in BASELINES}
    for split in ("trained", "new_domain", "new_prompt"):
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in [task for task in tasks if len(task.labels) == 2]:
                question = Question(task, mixture.test_rows(task, split))
                base = as_side(methods.zero_shot(question))
                for name, method in BASELINES.items():
                    z = method(methods, question)
                    if z is not None:
                        of_group = found[name].setdefault(split, {}).setdefault(group, [])
                        of_group.append(scores_of(question, base, as_side(z)))
    return found


def as_side(z: Tensor) -> dict:
    log_odds = torch.stack([z, -z], dim=1)
    return {"log_odds": log_odds.numpy(), "left_out": None}


@dataclass
class Methods:
    """Each baseline is a method: question -> (n,) log-odds of the positive label, None where it does not apply."""

    model: torch.nn.Module
    tokenizer: object
    mixture: Mixture
    asked: dict = field(default_factory=dict)  # what the base said to which rows
    fitted: dict = field(default_factory=dict)  # weights of regressions

    @cached_property
    def training(self) -> list[Question]:
        return [Question(task, self.mixture.train_rows(task, seed=0)) for task in self.mixture.train]

    def alike(self, task: Task) -> list[Question]:
        """Training tasks that ask for the same; a reversed question asks for other values of the label."""
        found = []
        for old in self.training:
            same_values = list(old.task.labels.values()) == list(task.labels.values())
            if old.task.criterion == task.criterion and same_values:
                found.append(old)
        return found

    # ---- of the base

    def zero_shot(self, question: Question) -> Tensor:
        return self.ask(question)[0]

    def ask(self, question: Question) -> tuple[Tensor, Tensor]:
        """The base's log-odds of the positive label (n,) and its states (n, C) at the answer position."""
        task, texts = question.task, question.texts
        key = (task.where, task.name, task.prompt, *texts)
        if key not in self.asked:
            limit = row_limit(self.model.config, None)
            reading = read(self.model, self.tokenizer, task, texts, limit=limit, keep_hidden=True)
            self.asked[key] = reading.log_odds[:, 0], reading.hidden
        return self.asked[key]

    def fitted_threshold(self, question: Question) -> Tensor:
        return self.zero_shot(question) - self.threshold

    @cached_property
    def threshold(self) -> Tensor:
        """The log-odds above which the base's answers on training rows count as positive and are right most often."""
        z, order = torch.cat([self.zero_shot(old) for old in self.training]).sort()
        steps = torch.where(positives(self.training)[order], -1, 1)  # as one row more falls below
        gained = steps.cumsum(dim=0)
        best = int(torch.cat([torch.zeros(1), gained]).argmax())
        edges = torch.cat([z[:1] - 1, z, z[-1:] + 1])
        return (edges[best] + edges[best + 1]) / 2

    def few_shot(self, question: Question) -> Tensor | None:
        """SHOTS labelled rows of a training task with the same criterion in the prompt."""
        alike = self.alike(question.task)
        if not alike:
            return None
        old = random.Random(f"shots-{question.task.name}").choice(alike)
        return self.zero_shot(Question(showing(question.task, old.rows, SHOTS), question.rows))

    # ---- regressions

    def bag_of_words(self, question: Question) -> Tensor:
        """A classifier for each criterion, of all training tasks with it; one of all training tasks for other criteria."""
        return self.regress(self.alike(question.task) or self.training, self.counts, question)

    def counts(self, question: Question) -> Tensor:
        """(n, F): how often each word is in each text."""
        X = torch.zeros(len(question.rows), len(self.vocabulary))
        for i, text in enumerate(question.texts):
            for word in words(text):
                if word in self.vocabulary:
                    X[i, self.vocabulary[word]] += 1
        return X

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The words of two training rows or more."""
        counts = Counter()
        for old in self.training:
            for text in old.texts:
                counts.update(set(words(text)))
        repeated = sorted(word for word in counts if counts[word] > 1)
        return {word: i for i, word in enumerate(repeated)}

    def linear_probe(self, question: Question) -> Tensor:
        """On the base's hidden state at the answer position, over all training tasks: it says of the prompt as well."""
        return self.regress(self.training, self.states, question)

    def states(self, question: Question) -> Tensor:
        mean, std = self.scale
        return (self.ask(question)[1] - mean) / std

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        states = torch.cat([self.ask(old)[1] for old in self.training])
        return states.mean(dim=0), states.std(dim=0) + 1e-6

    def regress(self, training: list[Question], features, question: Question) -> Tensor:
        """By a logistic regression on features(question) (n, F), fitted once for the same training tasks and features."""
        key = (features.__name__, *(old.task.name for old in training))
        if key not in self.fitted:
            X = torch.cat([features(old) for old in training])
            self.fitted[key] = logistic(X, training)
        return log_odds(self.fitted[key], features(question))


BASELINES = {
    "zero-shot": Methods.zero_shot,
    "fitted threshold": Methods.fitted_threshold,
    "few-shot": Methods.few_shot,
    "bag of words": Methods.bag_of_words,
    "linear probe": Methods.linear_probe,
}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def positives(training: list[Question]) -> Tensor:
    """(n,) bool"""
    return torch.tensor([row.label == 0 for old in training for row in old.rows])


# ---- logistic regression -----------------------------------------------------------------------------------


def logistic(X: Tensor, training: list[Question]) -> Tensor:
    """X (n, F) of these rows -> weights (F + 1,) for log-odds of the positive label.

    Of DECAYS the one that does best on domains left out, then all are fitted."""
    y = positives(training).float()
    left_out = sorted({old.task.domain for old in training})[::3]
    held = torch.tensor([old.task.domain in left_out for old in training for _ in old.rows])
    decay = DECAYS[1]
    if not held.all():
        losses = {}
        for decay in DECAYS:
            w = fit(X[~held], y[~held], decay)
            losses[decay] = loss(w, X[held], y[held]).item()
        decay = min(losses, key=losses.get)
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
