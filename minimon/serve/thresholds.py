"""A threshold for one task, picked on labelled rows at a false-positive rate, and how sure it is; a temperature, where one is asked for.

    decision: P > threshold,     P = P(positive)^(1/T) / sum over labels P(label)^(1/T),     T = 1 unless fitted

n rows, N labels. What is picked lies in calibration.json beside the adapter, by task; it counts for that adapter and that prompt alone.
"""

import math
from pathlib import Path

import numpy as np

from minimon.files import read_json, write_json
from minimon.metrics import DRAWS, ece, percentiles

NAME = "calibration.json"
DIGITS = 9                                     # P is rounded to, before it is compared and printed, so that a decision can be made again


def positive(probabilities: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, N) -> (n,) P of the positive label at a temperature, in fp64, rounded to DIGITS."""
    return tempered(probabilities, temperature)[:, 0].round(DIGITS)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logs = np.log(np.maximum(probabilities.astype(float), 1e-38)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def calibrate(probabilities: np.ndarray, labels: np.ndarray, clusters: np.ndarray, *, fpr: float, fit: bool = False, seed: int = 0) -> dict:
    """(n, N), (n,) label indices, (n,) texts -> the threshold with its interval, and the FPR and TPR at it.

    The threshold is the lowest that at most `fpr` of the negatives exceed. threshold_ci95 and tpr_ci95: percentile bootstrap over texts,
    the threshold picked anew each draw; fpr_ci95: Wilson's interval (1927). fit: with the temperature of least negative log-likelihood
    (Guo et al., 2017). Raises ValueError with fewer than 1 / fpr negatives, or without a positive."""
    if not 0 < fpr < 1:
        raise ValueError(f"--fpr: expected a rate between 0 and 1, got {fpr:g}")
    positives = labels == 0
    negatives, needed = int((~positives).sum()), math.ceil(1 / fpr - 1e-9)
    if negatives < needed or not positives.any():
        raise ValueError(f"expected a positive and at least {needed} negatives to pick a threshold at an FPR of {fpr:g}, got "
                         f"{int(positives.sum())} and {negatives}; give the task more rows, or ask for a higher --fpr")
    temperature = best_temperature(probabilities, labels) if fit else 1.0
    p = positive(probabilities, temperature)
    threshold = pick(p, positives, np.ones(len(p)), fpr)
    names, which = np.unique(clusters, return_inverse=True)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[which].astype(float)
        if weights[positives].any() and weights[~positives].any():
            each = pick(p, positives, weights, fpr)
            drawn.append((each, np.average(p[positives] > each, weights=weights[positives])))
    thresholds, rates = np.array(drawn).T
    above = int((p[~positives] > threshold).sum())
    return {"threshold": threshold, "threshold_ci95": percentiles(thresholds), "asked_fpr": fpr, "fpr": above / negatives,
            "fpr_ci95": wilson(above, negatives), "tpr": float((p[positives] > threshold).mean()), "tpr_ci95": percentiles(rates),
            "positives": int(positives.sum()), "negatives": negatives, "temperature": temperature,
            "ece": ece(p, positives), "ece_at_temperature_1": ece(positive(probabilities), positives)}


def pick(p: np.ndarray, positives: np.ndarray, weights: np.ndarray, fpr: float) -> float:
    """The highest negative score with more than `fpr` of the negatives' weight at or above it."""
    order = np.argsort(-p[~positives], kind="stable")
    above = np.cumsum(weights[~positives][order])
    return float(p[~positives][order][np.argmax(above > fpr * above[-1] * (1 + 1e-12))])


def best_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By golden section on log T in [log 0.05, log 20]: the likelihood has one peak in 1 / T."""
    def loss(log_t):
        return -np.log(np.maximum(tempered(probabilities, math.exp(log_t))[np.arange(len(labels)), labels], 1e-38)).mean()

    low, high, ratio = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return round(math.exp((low + high) / 2), 4)


def wilson(hits: int, n: int, z: float = 1.959964) -> list[float]:
    centre, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return [max(0.0, (centre - half) / (n + z * z)), min(1.0, (centre + half) / (n + z * z))]


def save_calibration(directory, task, entry: dict) -> Path:
    """One task's entry of calibration.json; the others stay."""
    path = Path(directory) / NAME
    write_json(path, (read_json(path) if path.is_file() else {}) | {task.name: {"prompt": task.prompt, **entry}})
    return path


def find_calibration(directory, task, adapter: str) -> dict | None:
    """The task's entry, None where it has none. Raises ValueError where it was picked for another adapter or prompt."""
    path = Path(directory) / NAME
    entry = read_json(path).get(task.name) if path.is_file() else None
    if entry is None:
        return None
    again = "pick it again with --calibrate, or give --threshold"
    number = {key: entry.get(key) if isinstance(entry, dict) else None for key in ("threshold", "temperature")}
    if not all(type(value) in (int, float) and 0 <= value < 1e6 for value in number.values()) or not number["temperature"]:
        raise ValueError(f"{path}: expected a threshold and a temperature for task {task.name!r}, got {entry!r}; {again}")
    for key, value in (("adapter", adapter), ("prompt", task.prompt)):
        if entry.get(key) != value:
            raise ValueError(f"{path}: expected a threshold of this {key} for task {task.name!r}, got one of another; {again}")
    return entry
