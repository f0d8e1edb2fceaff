"""Numbers only: AUROC, TPR at a low FPR, Brier, ECE, paired bootstrap intervals, the verdict.

n rows, N labels, T tasks, D bootstrap draws. The positive label is index 0; with more than two labels it is
against the rest. What is ranked or compared with a threshold is a log-odds, log P - log(1 - P): in fp32 P is
1.0 from a log-odds of 17 on, and ties cannot be ranked. Brier, ECE and what people read are of P.
"""

import math
from dataclasses import dataclass, field

import numpy as np

DRAWS = 2000
ECE_BINS = 15
FPR_OF = {"tpr_at_1pct_fpr": 0.01, "tpr_at_5pct_fpr": 0.05}
METRICS = ("performance", "auroc", *FPR_OF, "brier", "ece")
WITH_INTERVAL = ("performance", "auroc")


@dataclass(frozen=True)
class Scores:
    """One task's rows, scored by base and adapter: (n, N) log-odds of each label against the rest.

    Raises ValueError naming the task for what is not finite, or where P over the labels does not sum to 1."""

    task: str
    domain: str
    labels: np.ndarray  # (n,) label indices
    clusters: np.ndarray  # (n,) of str objects: rows of the same text are one cluster
    base: np.ndarray  # (n, N) log-odds
    adapter: np.ndarray  # (n, N)
    shares: dict = field(default_factory=dict)  # base | adapter -> name -> (n,), reported as means
    references: dict = field(default_factory=dict)  # name -> (n, N): what the two are compared with
    left_out: np.ndarray | None = None  # (n,) tokens of each text that were cut to fit
    criterion: str = ""  # the evidence of tasks of one criterion is not independent

    def __post_init__(self):
        for which in ("base", "adapter", *self.references):
            if not self.valid(self.of(which)):
                raise ValueError(
                    f"task {self.task!r}: expected finite log-odds of each label for every row, their P "
                    f"summing to 1, got others ({which}); are the model's outputs finite, and no P?"
                )

    def valid(self, log_odds):
        rows = len(self.labels)
        if log_odds.dtype.kind != "f" or log_odds.ndim != 2:
            return False
        if len(log_odds) != rows or len(self.clusters) != rows:
            return False
        labelled = np.isin(self.labels, range(log_odds.shape[1]))
        if not labelled.all() or not np.isfinite(log_odds).all():
            return False
        total = sigmoid(log_odds).sum(axis=1)
        return np.allclose(total, 1, atol=1e-3)

    @property
    def positives(self):
        return self.labels == 0  # (n,) bool

    def of(self, which: str):
        """(n, N) log-odds under `base`, `adapter` or a reference."""
        if which in self.references:
            return self.references[which]
        return getattr(self, which)

    def score(self, which: str):
        """(n,) log-odds of the positive label."""
        return self.of(which)[:, 0]

    def P(self, which: str):
        """(n, N) in fp64."""
        return sigmoid(self.of(which))


SplitScores = dict[str, dict[str, list[Scores]]]  # split -> group -> tasks


def sigmoid(log_odds):
    return np.exp(-np.logaddexp(0.0, -log_odds.astype(float)))


def inter_task_generalization(performances, epsilon: float) -> tuple[float, bool]:
    """(mean performance, whether it is strictly above epsilon) over new instruction-input pairs.

    (1/|D_new|) sum Performance(y^) > epsilon, each Performance in [0, 1] (Martin and Roger, 2026)."""
    values = [float(value) for value in performances]
    if not values:
        raise ValueError("performances: expected at least one pair, got none")
    bad = [value for value in values if not 0 <= value <= 1]
    if bad:
        raise ValueError(f"performances: expected numbers in [0, 1], got {bad[0]}")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon: expected a number in [0, 1], got {epsilon}")
    mean = math.fsum(values) / len(values)
    return mean, mean > epsilon


def performance(log_odds, labels):
    """(n, N), (n,) -> (n,): 1 where the likeliest label is the gold one. A tie at the top is no answer: 0."""
    right = log_odds.argmax(axis=1) == labels
    return (right & ~tied(log_odds)).astype(float)


def tied(log_odds):
    """(n, N) -> (n,) bool: several labels are the likeliest."""
    return (log_odds == log_odds.max(axis=1, keepdims=True)).sum(axis=1) > 1


def auroc(scores, positives):
    """P(a positive scores above a negative), ties half (Hanley and McNeil, 1982). None with one class."""
    if positives.all() or not positives.any():
        return None
    return float(pairwise_wins(scores, positives).mean())


def pairwise_wins(scores, positives):
    """(positives, negatives): 1 where the positive scores higher, 1/2 at a tie."""
    p, n = scores[positives][:, None], scores[~positives][None]
    return (p > n) + 0.5 * (p == n)


def tpr_at_fpr(scores, positives, fpr: float = 0.01, *, share_ties: bool = False):
    """Share of positives above the lowest threshold that at most `fpr` of the negatives exceed.

    share_ties: of the rows that lie on it count as many as make the share of negatives `fpr`, drawn at random so
    to speak. None with fewer than 1 / fpr negatives, where one alone is more than `fpr`, or without a positive."""
    negatives = np.sort(scores[~positives])[::-1]
    if len(negatives) < fewest_negatives(fpr) or not positives.any():
        return None
    allowed = int(fpr * len(negatives) + 1e-9)
    threshold = negatives[allowed]
    above, tied = (negatives > threshold).sum(), (negatives == threshold).sum()
    share = (allowed - above) / tied if share_ties else 0.0
    caught = scores[positives]
    return float((caught > threshold).mean() + share * (caught == threshold).mean())


def fewest_negatives(fpr: float) -> int:
    return math.ceil(1 / fpr - 1e-9)


def brier(p, positives) -> float:
    """mean (P(positive) - y)^2 (Brier, 1950)."""
    return float(np.mean((p - positives) ** 2))


def ece(p, positives) -> float:
    """Sum over equal-width bins of P(positive) of the share of rows times |mean P - share of positives|
    (Naeini et al., 2015)."""
    which = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    return float(np.abs(np.bincount(which, p - positives)).sum() / len(p))


def ranks(scores):
    """Ranks in (0, 1), ties averaged: what makes scores of several tasks comparable."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores, "left")
    not_above = np.searchsorted(ordered, scores, "right")
    return (below + not_above) / (2 * len(scores))


def pooled(tasks: list[Scores], which: str):
    """(n,) ranks within each task and (n,) whether positive, over the rows of all tasks."""
    scores = [ranks(task.score(which)) for task in tasks]
    positives = [task.positives for task in tasks]
    return np.concatenate(scores), np.concatenate(positives)


def pooled_tpr(tasks: list[Scores], which: str, fpr: float):
    """`tpr_at_fpr` over the rows of all tasks; ranks of several tasks tie by construction."""
    return tpr_at_fpr(*pooled(tasks, which), fpr, share_ties=len(tasks) > 1)


def measures(scores: Scores, which: str) -> dict:
    """METRICS of one task under base or adapter; "undefined" says why one is None, or a convention."""
    why = undefined(scores, which)
    found = dict.fromkeys(METRICS)
    if len(scores.labels):
        score, positives = scores.score(which), scores.positives
        p = sigmoid(score)
        found["performance"] = float(performance(scores.of(which), scores.labels).mean())
        found["auroc"] = auroc(score, positives)
        for key, fpr in FPR_OF.items():
            found[key] = tpr_at_fpr(score, positives, fpr)
        found["brier"] = brier(p, positives)
        found["ece"] = ece(p, positives)
        for name, values in scores.shares.get(which, {}).items():
            found[name] = float(values.mean())
    if why:
        found["undefined"] = why
    return found


def undefined(scores: Scores, which: str) -> dict[str, str]:
    """Metric -> why there is no number, or one that only a convention gives."""
    log_odds = scores.of(which)
    if not len(log_odds):
        return dict.fromkeys(METRICS, "no rows")
    positives = int(scores.positives.sum())
    negatives = len(log_odds) - positives
    ties = tied(log_odds).sum()
    why = {}
    if ties:
        why["performance"] = f"{ties} rows with a tie at the top, which counts as wrong"
    if not positives or not negatives:
        why["auroc"] = f"no {'negative' if positives else 'positive'} rows"
    elif (log_odds[:, 0] == log_odds[0, 0]).all():
        why["auroc"] = "all scores are equal, and a tie counts half"
    for key, fpr in FPR_OF.items():
        needed = fewest_negatives(fpr)
        if not positives or negatives < needed:
            why[key] = f"{positives} positives and {negatives} negatives; 1 and {needed} are needed"
    return why


def mean_measures(tasks: list[Scores], which: str) -> dict:
    """Means over pairs (performance) and over tasks (the rest); a TPR pools rows, ranked in their task."""
    tasks = [task for task in tasks if len(task.labels)] or tasks[:1]
    each = [measures(task, which) for task in tasks]
    found = {}
    for key in each[0]:
        if key == "performance":
            values = np.concatenate([performance(task.of(which), task.labels) for task in tasks])
            found[key] = float(np.mean(values)) if len(values) else None
        elif key in FPR_OF:
            found[key] = pooled_tpr(tasks, which, FPR_OF[key])
        elif key != "undefined":
            found[key] = mean_of_defined(measure[key] for measure in each)
    without = sum(measure["auroc"] is None for measure in each)
    if without:
        found["undefined"] = {"auroc": f"{without} of {len(each)} tasks have none and are left out"}
    return found


def mean_of_defined(values) -> float | None:
    """Without those that are None; None where all are."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def chance(tasks: list[Scores]):
    """Performance of always giving each task's commonest label, mean over pairs; None without any."""
    pairs = sum(len(task.labels) for task in tasks)
    commonest = sum(np.bincount(task.labels, minlength=1).max() for task in tasks)
    return float(commonest / pairs) if pairs else None


# ---- intervals


@dataclass(frozen=True)
class Interval:
    """95% bounds [low, high] of one number, None where there are none."""

    transcripts: list[float] | None  # how sure it is of these tasks
    tasks: list[float] | None  # how sure it is of tasks like these

    @property
    def headline(self):
        """The wider of the two."""
        if self.transcripts is None or self.tasks is None:
            return self.transcripts or self.tasks
        return max(self.transcripts, self.tasks, key=lambda bounds: bounds[1] - bounds[0])


def intervals(tasks: list[Scores], seed: int = 0) -> dict:
    """{"performance" | "auroc": {"base" | "adapter" | "uplift": Interval}}: percentiles of `bootstrap`."""
    drawn = bootstrap(tasks, seed)
    found = {}
    for key in WITH_INTERVAL:
        found[key] = {}
        for which in ("base", "adapter", "uplift"):
            over = {name: percentiles(draws[key][which]) for name, draws in drawn.items()}
            found[key][which] = Interval(**over)
    return found


def bootstrap(tasks: list[Scores], seed: int = 0) -> dict:
    """{"transcripts" | "tasks": {"performance" | "auroc": {"base" | "adapter" | "uplift": (D,) means}}}.

    Over transcripts, rows of one text are drawn together, whatever the prompt. Over tasks, tasks are drawn,
    those of one criterion together, and rows within each. Base and adapter share the draws, and so
    are other scores of the same rows with this seed. NaN where nothing can be drawn: one task, no rows."""
    tasks = [task for task in tasks if len(task.labels)] or tasks[:1]
    weights = draw_transcripts(tasks, seed)
    units = task_units(tasks)
    found = {"transcripts": {}, "tasks": {}}
    for key, draw in (("performance", drawn_performance), ("auroc", drawn_auroc)):
        for over in found.values():
            over[key] = {}
        for which in ("base", "adapter"):
            parts = [draw(task, which, part) for task, part in zip(tasks, weights, strict=True)]
            totals = np.stack(parts, axis=1)  # (2, T, D): of a mean, numerators and denominators
            found["transcripts"][key][which] = ratio(totals)
            found["tasks"][key][which] = ratio(draw_tasks(totals, units, seed))
        for over in found.values():
            over[key]["uplift"] = over[key]["adapter"] - over[key]["base"]
    return found


def draw_transcripts(tasks, seed) -> list[np.ndarray]:
    """T times (D, n): how often each row counts in each draw."""
    names = {}  # numbered as they come, so that texts and their hashes are drawn alike
    cluster = np.array(
        [names.setdefault(name, len(names)) for task in tasks for name in task.clusters], dtype=int
    )
    if not names:
        return [np.zeros((DRAWS, 0), np.float32) for _ in tasks]
    shape = (DRAWS, len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=shape)
    drawn += len(names) * np.arange(DRAWS)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=drawn.size)
    counts = counts.reshape(shape).astype(np.float32)
    ends = np.cumsum([len(task.labels) for task in tasks])
    return np.split(counts[:, cluster], ends[:-1], axis=1)


def drawn_performance(task, which, weights):
    """(D,) right answers, (D,) rows."""
    right = weights @ performance(task.of(which), task.labels)
    return right, weights.sum(axis=1, dtype=float)


def drawn_auroc(task, which, weights):
    """(D,) AUROC, (D,) one; zero and zero where the draw lost a class, which leaves the task out of it."""
    positive = weights[:, task.positives]
    negative = weights[:, ~task.positives]
    above = pairwise_wins(task.score(which), task.positives).astype(np.float32)
    wins = ((positive @ above) * negative).sum(axis=1, dtype=float)
    pairs = positive.sum(axis=1, dtype=float) * negative.sum(axis=1, dtype=float)
    return divide(wins, pairs, 0.0), (pairs > 0).astype(float)


def task_units(tasks):
    """(T,) the unit that a task is drawn in: its criterion, or itself where it has none or all share one."""
    seen = {}
    names = [task.criterion or i for i, task in enumerate(tasks)]
    units = np.array([seen.setdefault(name, len(seen)) for name in names])
    return units if units.max() > 0 else np.arange(len(tasks))


def draw_tasks(totals, units, seed) -> np.ndarray:
    """(2, T, D) -> (2, U, D): as many units as there are, drawn, each with one of its own draws of rows."""
    count = units.max() + 1
    if count == 1:
        return np.zeros((2, 1, DRAWS))
    by_unit = np.zeros((2, count, DRAWS))
    np.add.at(by_unit, (slice(None), units), totals)
    rng = np.random.default_rng(seed)
    unit = rng.integers(count, size=(count, DRAWS))
    rows = rng.integers(DRAWS, size=(count, DRAWS))
    return by_unit[:, unit, rows]


def ratio(totals):
    """(2, T, D) -> (D,)"""
    numerator, denominator = totals.sum(axis=1)
    return divide(numerator, denominator, np.nan)


def divide(numerator, denominator, otherwise):
    empty = np.full(len(denominator), otherwise)
    return np.divide(numerator, denominator, out=empty, where=denominator > 0)


def percentiles(values):
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]
