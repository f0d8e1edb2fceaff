"""What an adapter stands beside: methods that leave the model as it is, on the same evaluation rows.

Bag of words and linear probe are logistic regressions on the training tasks; few-shot prompting shows labelled rows of a training task
with the same criterion; the fitted threshold keeps the base's scores and moves the point from which they count as the positive label.
"""

import random
import re
from collections import Counter

import numpy as np
import torch

from minimon.batch import encode_row
from minimon.evaluate import last_states, read, read_ids
from minimon.metrics import Scores
from minimon.tasks import Mixture, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)              # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4


def baselines(model, tokenizer, mixture: Mixture, seed: int = 0, on_task=None) -> dict[str, dict[str, dict[str, list[Scores]]]]:
    """name -> split -> group -> Scores, for the splits that are read at once; what does not apply to a task is left out.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    train = {task.name: mixture.train_rows(task, seed) for task in mixture.train}
    words = BagOfWords(mixture, train)
    probe = LinearProbe(model, tokenizer, mixture, train)
    threshold = fitted_threshold(model, tokenizer, mixture, train)
    methods = {
        "bag of words": lambda task, texts, base: words(task, texts),
        "linear probe": lambda task, texts, base: probe(task, texts),
        "few-shot": lambda task, texts, base: few_shot(model, tokenizer, mixture, train, task, texts, seed),
        "fitted threshold": lambda task, texts, base: moved(base, threshold),
    }
    scores = {name: {} for name in methods}
    for split in ("trained", "new_domain", "new_prompt"):
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in tasks:
                rows = mixture.test_rows(task, split)
                texts, labels = [row.text for row in rows], np.array([row.label for row in rows])
                base = read(model, tokenizer, task, texts).P.numpy()
                for name, method in methods.items():
                    if len(task.labels) == 2 and (P := method(task, texts, base[:, 0])) is not None:
                        scores[name].setdefault(split, {}).setdefault(group, []).append(Scores(
                            task.name, task.domain, labels, np.array(texts, dtype=object), base, np.stack([P, 1 - P], axis=1)))
                if on_task:
                    on_task(1)
    return scores


def criterion(task: Task) -> tuple:
    """Tasks that read the same field as the same positive ask for the same thing, whatever their prompts and domains."""
    return task.label, tuple(map(str, list(task.labels.values())[0]))


def same_criterion(mixture: Mixture, task: Task) -> list[Task]:
    return [other for other in mixture.train if criterion(other) == criterion(task) and other.domain != task.domain] or \
        [other for other in mixture.train if criterion(other) == criterion(task)]


def logistic(X: torch.Tensor, y: torch.Tensor, domains: list[str]) -> torch.Tensor:
    """X (n, F), y (n,) in {0, 1} -> weights (F + 1,); the decay does best on the domains left out, then all are fitted."""
    left_out = sorted(set(domains))[::3]
    held = torch.tensor([domain in left_out for domain in domains])
    decay = DECAYS[1]
    if held.any() and not held.all():
        fits = {decay: fit(X[~held], y[~held], decay) for decay in DECAYS}
        decay = min(DECAYS, key=lambda decay: loss(fits[decay], X[held], y[held]).item())
    return fit(X, y, decay)


def fit(X, y, decay):
    w = torch.zeros(X.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(w, X, y) + decay * (w[:-1] ** 2).sum()
        value.backward()
        return value
    optimizer.step(closure)
    return w.detach()


def loss(w, X, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(X @ w[:-1] + w[-1], y)


class BagOfWords:
    """A classifier for each criterion, of all training tasks with it; tasks with another one get a classifier of all training tasks."""

    def __init__(self, mixture: Mixture, train):
        self.mixture, self.train, self.fits = mixture, train, {}
        counts = Counter(word for rows in train.values() for row in rows for word in set(self.split(row.text)))
        self.columns = {word: i for i, word in enumerate(sorted(word for word, count in counts.items() if count > 1))}

    @staticmethod
    def split(text):
        return re.findall(r"\w+", text.lower())

    def features(self, texts):
        X = torch.zeros(len(texts), len(self.columns))
        for i, text in enumerate(texts):
            for word in self.split(text):
                if word in self.columns:
                    X[i, self.columns[word]] += 1
        return X

    def __call__(self, task, texts):
        tasks = tuple(other.name for other in self.mixture.train if criterion(other) == criterion(task)) or tuple(self.train)
        if tasks not in self.fits:
            domain = {other.name: other.domain for other in self.mixture.train}
            rows = [(row.text, float(row.label == 0), domain[name]) for name in tasks for row in self.train[name]]
            texts_, y, domains = zip(*rows)
            self.fits[tasks] = logistic(self.features(texts_), torch.tensor(y), list(domains))
        w = self.fits[tasks]
        return torch.sigmoid(self.features(texts) @ w[:-1] + w[-1]).numpy()


class LinearProbe:
    """On the base's hidden state at the answer position, over all training tasks; the prompt is part of what the state says."""

    def __init__(self, model, tokenizer, mixture: Mixture, train):
        self.model, self.tokenizer = model, tokenizer
        rows = [(task, train[task.name]) for task in mixture.train]
        parts = [(self.hidden(task, [row.text for row in some]), [float(row.label == 0) for row in some], task.domain)
                 for task, some in rows]
        X = torch.cat([part for part, _, _ in parts])
        self.mean, self.std = X.mean(dim=0), X.std(dim=0) + 1e-6
        self.w = logistic((X - self.mean) / self.std, torch.tensor([y for _, labels, _ in parts for y in labels]),
                          [domain for _, labels, domain in parts for _ in labels])

    @torch.inference_mode()
    def hidden(self, task, texts):
        """(n, C)"""
        ids = [encode_row(self.tokenizer, task, text) for text in texts]
        states = torch.empty(len(ids), self.model.config.hidden_size)
        for batch, hidden in last_states(self.model, ids):
            states[batch] = hidden.float().cpu()
        return states

    def __call__(self, task, texts):
        X = (self.hidden(task, texts) - self.mean) / self.std
        return torch.sigmoid(X @ self.w[:-1] + self.w[-1]).numpy()


def few_shot(model, tokenizer, mixture: Mixture, train, task: Task, texts, seed):
    """The task's prompt, then SHOTS labelled rows of a training task with its criterion as earlier turns; None where there is none."""
    others = same_criterion(mixture, task)
    if not others or task.prompt_position == "after":
        return None
    rng, names = random.Random(f"shots-{seed}-{task.name}"), list(task.labels)
    rows = train[rng.choice(others).name]
    shots = [row for label in range(len(names)) for row in rng.sample([row for row in rows if row.label == label], SHOTS // len(names))]
    rng.shuffle(shots)
    turns = [{"role": "system", "content": task.prompt}]
    for row in shots:
        turns += [{"role": "user", "content": row.text}, {"role": "assistant", "content": names[row.label]}]
    ids = [tokenizer.chat([*turns, {"role": "user", "content": text}]) for text in texts]
    return read_ids(model, ids, tokenizer.label_ids(names), 4096).P[:, 0].numpy()


def fitted_threshold(model, tokenizer, mixture: Mixture, train) -> float:
    """The P from which the base's answers on training rows are right most often."""
    P = np.concatenate([read(model, tokenizer, task, [row.text for row in train[task.name]]).P[:, 0].numpy() for task in mixture.train])
    positive = np.array([row.label == 0 for task in mixture.train for row in train[task.name]])
    order = np.argsort(P)
    right = positive.sum() + np.concatenate([[0], np.cumsum(np.where(positive[order], -1, 1))])     # below the threshold: negative
    best, edges = int(right.argmax()), np.concatenate([[0.0], P[order], [1.0]])
    return float((edges[best] + edges[best + 1]) / 2)


def moved(p: np.ndarray, threshold: float) -> np.ndarray:
    """P on a scale where 1/2 is the threshold: odds divided by the threshold's."""
    odds = np.clip(p, 1e-7, 1 - 1e-7) / (1 - np.clip(p, 1e-7, 1 - 1e-7)) * (1 - threshold) / max(threshold, 1e-7)
    return odds / (1 + odds)
