"""What an adapter is compared with: methods that leave the model as it is, on the same evaluation rows.

Bag of words and linear probe are logistic regressions on the training tasks; zero-shot is the base itself; few-shot shows
labelled rows of a training task with the same criterion, or of the task's own training rows; the fitted threshold moves the
log-odds from which the base's answers count as the positive label.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from minimon.batch import Limit, encode_row, row_limit
from minimon.evaluate import last_states, read, read_ids
from minimon.metrics import Scores
from minimon.tasks import Mixture, Row, Task

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regressions, chosen on training domains that are left out
SHOTS = 4
SPLITS = ("trained", "new_domain", "new_prompt")  # that are read at once


@dataclass(frozen=True)
class Setup:
    """What every baseline is fitted with."""

    model: torch.nn.Module
    tokenizer: object
    tasks: list[Task]
    rows: dict[str, list[Row]]  # training rows of each task
    limit: Limit

    def log_odds(self, task: Task, rows: list[Row]) -> np.ndarray:
        """(n,) of the positive label, by the base."""
        reading = read(self.model, self.tokenizer, task, rows, limit=self.limit)
        return reading.log_odds[:, 0].double().numpy()

    def labelled(self) -> list[tuple[Task, Row]]:
        return [(task, row) for task in self.tasks for row in self.rows[task.name]]


def baselines(
    model, tokenizer, mixture: Mixture, seed: int = 0
) -> dict[str, dict[str, dict[str, list[Scores]]]]:
    """name -> split -> group -> Scores; what does not apply to a task is left out, and so are tasks of more than two labels.

    In each Scores `base` is the untrained model and `adapter` the baseline, so that its uplift is the baseline's."""
    rows = {task.name: mixture.train_rows(task, seed) for task in mixture.train}
    setup = Setup(model, tokenizer, mixture.train, rows, row_limit(model.config, None))
    methods = {
        "zero-shot": setup.log_odds,
        "bag of words": BagOfWords(setup),
        "linear probe": LinearProbe(setup),
        "few-shot": FewShot(setup, seed),
        "few-shot, own rows": FewShot(setup, seed, own=True),
        "fitted threshold": FittedThreshold(setup),
    }
    found = {name: {} for name in methods}
    for split in SPLITS:
        for group, tasks in mixture.splits.get(split, {}).items():
            for task in tasks if all(len(task.labels) == 2 for task in tasks) else ():
                tested = mixture.test_rows(task, split)
                labels = np.array([row.label for row in tested], dtype=int)
                texts = np.array([row.text for row in tested], dtype=object)
                base = methods["zero-shot"](task, tested)
                for name, method in methods.items():
                    z = method(task, tested)
                    if z is not None:
                        sides = {
                            "base": np.stack([base, -base], axis=1),
                            "adapter": np.stack([z, -z], axis=1),
                        }
                        scores = Scores(task.name, task.domain, labels, texts, **sides)
                        found[name].setdefault(split, {}).setdefault(group, []).append(scores)
    return found


def same_criterion(tasks: list[Task], task: Task) -> list[Task]:
    """Training tasks that read the same field as the same positive, whatever their prompts; on other domains where there are."""
    found = [other for other in tasks if criterion(other) == criterion(task)]
    return [other for other in found if other.domain != task.domain] or found


def criterion(task: Task) -> tuple:
    return task.label, tuple(map(str, list(task.labels.values())[0]))


# ---- logistic regressions ------------------------------------------------------------------------------------------


def logistic(X: torch.Tensor, y: torch.Tensor, domains: list[str]) -> torch.Tensor:
    """X (n, F), y (n,) in {0, 1} -> weights (F + 1,); the decay does best on the domains left out, then all are fitted."""
    left_out = sorted(set(domains))[::3]
    held = torch.tensor([domain in left_out for domain in domains])
    if held.all() or not held.any():
        return fit(X, y, DECAYS[1])
    losses = {}
    for decay in DECAYS:
        losses[decay] = loss(fit(X[~held], y[~held], decay), X[held], y[held]).item()
    return fit(X, y, min(losses, key=losses.get))


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


def loss(w, X, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(log_odds_of(w, X), y)


def log_odds_of(w, X):
    return X @ w[:-1] + w[-1]


def targets(labelled: list[tuple[Task, Row]]) -> tuple[torch.Tensor, list[str]]:
    """(n,) 1 for the positive label, and the domains."""
    return torch.tensor([float(row.label == 0) for _, row in labelled]), [task.domain for task, _ in labelled]


class BagOfWords:
    """A classifier for each criterion, of all training tasks with it; tasks with another one get a classifier of all training tasks."""

    def __init__(self, setup: Setup):
        self.labelled, self.fits = setup.labelled(), {}
        counts = Counter(word for _, row in self.labelled for word in set(words(row.text)))
        self.columns = {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}

    def features(self, rows: list[Row]) -> torch.Tensor:
        """(n, F) counts"""
        X = torch.zeros(len(rows), len(self.columns))
        for i, row in enumerate(rows):
            for word in words(row.text):
                if word in self.columns:
                    X[i, self.columns[word]] += 1
        return X

    def __call__(self, task: Task, rows: list[Row]) -> np.ndarray:
        same = [pair for pair in self.labelled if criterion(pair[0]) == criterion(task)]
        key = criterion(task) if same else None
        if key not in self.fits:
            chosen = same or self.labelled
            self.fits[key] = logistic(self.features([row for _, row in chosen]), *targets(chosen))
        return log_odds_of(self.fits[key], self.features(rows)).double().numpy()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class LinearProbe:
    """On the base's hidden state at the answer position, over all training tasks; the prompt is part of what the state says."""

    def __init__(self, setup: Setup):
        self.setup = setup
        X = torch.cat([self.hidden(task, setup.rows[task.name]) for task in setup.tasks])
        self.mean, self.std = X.mean(dim=0), X.std(dim=0) + 1e-6
        self.w = logistic((X - self.mean) / self.std, *targets(setup.labelled()))

    @torch.inference_mode()
    def hidden(self, task: Task, rows: list[Row]) -> torch.Tensor:
        """(n, C)"""
        setup = self.setup
        ids = [encode_row(setup.tokenizer, task, row.text, limit=setup.limit).ids for row in rows]
        states = torch.empty(len(ids), setup.model.config.hidden_size)
        for batch, hidden in last_states(setup.model, ids):
            states[batch] = hidden.float().cpu()
        return states

    def __call__(self, task: Task, rows: list[Row]) -> np.ndarray:
        return log_odds_of(self.w, (self.hidden(task, rows) - self.mean) / self.std).double().numpy()


# ---- the base, asked otherwise -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FewShot:
    """The task's prompt, then SHOTS labelled rows as earlier turns; None where there are none."""

    setup: Setup
    seed: int
    own: bool = False  # rows of the task's own training side

    def __call__(self, task: Task, rows: list[Row]) -> np.ndarray | None:
        if task.prompt_position == "after":
            return None
        rng, names = random.Random(f"shots-{self.seed}-{task.name}"), list(task.labels)
        others = same_criterion(self.setup.tasks, task)
        if self.own:
            pool = [row for row in task.rows if row.side == "train"]
        else:
            pool = self.setup.rows[rng.choice(others).name] if others else []
        if {row.label for row in pool} != set(range(len(names))):
            return None
        shots = []
        for label in range(len(names)):
            shots += rng.sample([row for row in pool if row.label == label], SHOTS // len(names))
        rng.shuffle(shots)
        turns = [{"role": "system", "content": task.prompt}]
        for row in shots:
            turns.append({"role": "user", "content": row.text})
            turns.append({"role": "assistant", "content": names[row.label]})
        chat, ids = self.setup.tokenizer.chat, self.setup.tokenizer.label_ids(names)
        prompts = [chat([*turns, {"role": "user", "content": row.text}]) for row in rows]
        return read_ids(self.setup.model, prompts, ids).log_odds[:, 0].double().numpy()


class FittedThreshold:
    """The base's log-odds less those from which its answers on training rows are right most often."""

    def __init__(self, setup: Setup):
        self.setup = setup
        z = np.concatenate([setup.log_odds(task, setup.rows[task.name]) for task in setup.tasks])
        positive = np.array([row.label == 0 for _, row in setup.labelled()])
        order = np.argsort(z)
        gained = np.cumsum(
            np.where(positive[order], -1, 1)
        )  # right answers, as the threshold passes one row after another
        best = int(np.concatenate([[0], gained]).argmax())
        edges = np.concatenate([[z.min() - 1], z[order], [z.max() + 1]])
        self.threshold = float((edges[best] + edges[best + 1]) / 2)

    def __call__(self, task: Task, rows: list[Row]) -> np.ndarray:
        return self.setup.log_odds(task, rows) - self.threshold
