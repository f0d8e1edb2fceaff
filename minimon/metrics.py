"""Numbers only: AUROC, TPR at a low FPR, Brier, ECE, paired bootstrap intervals, and the generalization verdict.

n rows, N labels, D bootstrap draws. The positive label is index 0; with more than two labels it stands against the rest.
"""

import math
from dataclasses import dataclass, field

import numpy as np

DRAWS = 2000
FEWEST_NEGATIVES = 100                         # for a TPR at 1% FPR: with fewer, one negative is more than 1%


@dataclass(frozen=True)
class Scores:
    """One task's rows, scored by base and adapter."""

    task: str
    domain: str
    labels: np.ndarray                         # (n,) label indices
    clusters: np.ndarray                       # (n,) of str objects: rows of the same text are one cluster
    base: np.ndarray                           # (n, N) P(label)
    adapter: np.ndarray                        # (n, N)
    shares: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)     # base | adapter -> name -> (n,): means are reported
    references: dict[str, np.ndarray] = field(default_factory=dict)            # what base and adapter stand between -> (n, N)
    left_out: np.ndarray | None = None         # (n,) tokens of each text that were cut to fit

    def __post_init__(self):
        for P in (self.base, self.adapter, *self.references.values()):
            ok = P.dtype.kind == "f" and P.ndim == 2 and len(P) == len(self.labels) == len(self.clusters)
            if not ok or not ((P >= 0) & (P <= 1 + 1e-5)).all() or not ((self.labels >= 0) & (self.labels < P.shape[1])).all():
                raise ValueError(f"task {self.task!r}: expected P of each label in [0, 1] for every row, got something else; are the "
                                 "model's outputs finite?")

    @property
    def positives(self) -> np.ndarray:
        return self.labels == 0                # (n,) bool

    def of(self, which: str) -> np.ndarray:
        return self.references[which] if which in self.references else getattr(self, which)


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


def performance(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, N), (n,) -> (n,): 1 where the label with the largest P is the gold one, else 0. A tie at the top is no answer: 0."""
    top = probabilities.max(axis=1, keepdims=True)
    return ((probabilities.argmax(axis=1) == labels) & ((probabilities == top).sum(axis=1) == 1)).astype(float)


def auroc(scores: np.ndarray, positives: np.ndarray) -> float | None:
    """P(a positive scores above a negative), ties half (Hanley and McNeil, 1982). None with one class alone."""
    if positives.all() or not positives.any():
        return None
    return float(compare(scores, positives).mean())


def compare(scores, positives):
    """(positives, negatives): 1 where the positive scores higher, 1/2 at a tie."""
    p, n = scores[positives][:, None], scores[~positives][None]
    return (p > n) + 0.5 * (p == n)


def tpr_at_fpr(scores: np.ndarray, positives: np.ndarray, fpr: float = 0.01) -> float | None:
    """Share of positives above the lowest threshold that at most `fpr` of the negatives exceed.

    None with fewer than FEWEST_NEGATIVES negatives, or no positive."""
    negatives = np.sort(scores[~positives])[::-1]
    if len(negatives) < FEWEST_NEGATIVES or not positives.any():
        return None
    return float((scores[positives] > negatives[int(fpr * len(negatives) + 1e-9)]).mean())


def brier(p: np.ndarray, positives: np.ndarray) -> float:
    """mean (P(positive) - y)^2 (Brier, 1950)."""
    return float(np.mean((p - positives) ** 2))


def ece(p: np.ndarray, positives: np.ndarray, bins: int = 15) -> float:
    """Sum over equal-width bins of P(positive): share of rows times |mean P - share of positives| (Naeini et al., 2015)."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    rows, mass, hits = (np.bincount(which, w, bins) for w in (np.ones_like(p), p, positives.astype(float)))
    return float(np.abs(mass - hits).sum() / rows.sum())


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1), ties averaged: what makes scores of several tasks comparable."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(scores))


def measures(scores: Scores, which: str) -> dict:
    """The metrics of one task under `base` or `adapter`; "undefined" says why one is None, or is what it is by convention."""
    p, positives, why = scores.of(which)[:, 0].astype(float), scores.positives, undefined(scores, which)
    if not len(p):
        return {"performance": None, "auroc": None, "tpr_at_1pct_fpr": None, "brier": None, "ece": None, "undefined": why}
    return {"performance": float(performance(scores.of(which), scores.labels).mean()), "auroc": auroc(p, positives),
            "tpr_at_1pct_fpr": tpr_at_fpr(p, positives), "brier": brier(p, positives), "ece": ece(p, positives),
            **{name: float(values.mean()) for name, values in scores.shares.get(which, {}).items()}, **({"undefined": why} if why else {})}


def undefined(scores: Scores, which: str) -> dict[str, str]:
    """Metric -> why there is no number, or one that only a convention gives."""
    P, positives, why = scores.of(which), int(scores.positives.sum()), {}
    negatives, ties = len(P) - positives, int(((P == P.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    if not len(P):
        return {key: "no rows" for key in ("performance", "auroc", "tpr_at_1pct_fpr", "brier", "ece")}
    if ties:
        why["performance"] = f"{ties} rows with a tie at the top, which counts as wrong"
    if not positives or not negatives:
        why["auroc"] = f"no {'negative' if positives else 'positive'} rows"
    elif (P[:, 0] == P[0, 0]).all():
        why["auroc"] = "all scores are equal, and a tie counts half"
    if not positives or negatives < FEWEST_NEGATIVES:
        why["tpr_at_1pct_fpr"] = f"{positives} positives and {negatives} negatives; 1 and {FEWEST_NEGATIVES} are needed"
    return why


def mean_measures(tasks: list[Scores], which: str) -> dict:
    """Means over pairs (performance) and over tasks (the rest); the TPR pools rows after ranking within each task."""
    tasks = [task for task in tasks if len(task.labels)] or tasks[:1]
    each = [measures(task, which) for task in tasks]
    pooled = np.concatenate([ranks(task.of(which)[:, 0]) for task in tasks])
    positives = np.concatenate([task.positives for task in tasks])
    pairs = np.concatenate([performance(task.of(which), task.labels) for task in tasks])

    def mean(key):
        values = [measure[key] for measure in each if measure[key] is not None]
        return float(np.mean(values)) if values else None

    without = sum(measure["auroc"] is None for measure in each)
    why = {"auroc": f"{without} of {len(each)} tasks have none and are left out"} if without else {}
    return {"performance": float(pairs.mean()) if len(pairs) else None, "auroc": mean("auroc"),
            "tpr_at_1pct_fpr": tpr_at_fpr(pooled, positives),
            **{key: mean(key) for key in each[0] if key not in ("performance", "auroc", "tpr_at_1pct_fpr", "undefined")},
            **({"undefined": why} if why else {})}


def intervals(tasks: list[Scores], seed: int = 0) -> dict:
    """95% percentile bootstrap over transcripts: {"performance" | "auroc": {"base" | "adapter" | "uplift": [lo, hi] or None}}.

    Rows of one transcript are drawn together, whatever the prompt, and base and adapter on the same draws."""
    if not any(len(task.labels) for task in tasks):
        return {key: dict.fromkeys(("base", "adapter", "uplift")) for key in ("performance", "auroc")}
    drawn = bootstrap(tasks, seed)
    return {key: {**{which: percentiles(values) for which, values in sides.items()},
                  "uplift": percentiles(sides["adapter"] - sides["base"])} for key, sides in drawn.items()}


def bootstrap(tasks: list[Scores], seed: int = 0) -> dict:
    """{"performance" | "auroc": {"base" | "adapter": (D,)}}: the mean under each draw of transcripts."""
    names, where = np.unique(np.concatenate([task.clusters for task in tasks]), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    weights = np.split(draws[:, where].astype(np.float32), np.cumsum([len(task.labels) for task in tasks])[:-1], axis=1)
    return {key: {which: drawn(tasks, weights, which) for which in ("base", "adapter")}
            for key, drawn in (("performance", drawn_performance), ("auroc", drawn_auroc))}


def drawn_performance(tasks, weights, which):
    """(D,) means over pairs."""
    right = sum(w @ performance(task.of(which), task.labels) for task, w in zip(tasks, weights))
    return right / sum(w.sum(axis=1) for w in weights)


def drawn_auroc(tasks, weights, which):
    """(D,) means over tasks; a task whose draw lost a class is left out of that draw."""
    values = []
    for task, w in zip(tasks, weights):
        p, n = w[:, task.positives], w[:, ~task.positives]                              # (D, positives), (D, negatives)
        wins = ((p @ compare(task.of(which)[:, 0], task.positives).astype(np.float32)) * n).sum(axis=1)
        pairs = p.sum(axis=1) * n.sum(axis=1)
        values.append(np.divide(wins, pairs, out=np.full(len(w), np.nan), where=pairs > 0))
    there = ~np.isnan(values)
    return np.divide(np.nansum(values, axis=0), there.sum(axis=0), out=np.full(DRAWS, np.nan), where=there.any(axis=0))


def percentiles(values: np.ndarray) -> list[float] | None:
    values = values[~np.isnan(values)]
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])] if len(values) else None


def chance(tasks: list[Scores]) -> float | None:
    """Performance of always giving each task's commonest label, mean over pairs; None without any."""
    pairs = sum(len(task.labels) for task in tasks)
    return float(sum(np.bincount(task.labels, minlength=1).max() for task in tasks) / pairs) if pairs else None
