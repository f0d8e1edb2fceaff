"""Scores -> the report: every number that the table, the pages and the figures show."""

import numpy as np

from minimon.metrics import (
    WITH_INTERVAL,
    Scores,
    binned,
    chance,
    inter_task_generalization,
    intervals,
    mean_measures,
    measures,
    performance,
    pooled,
    sigmoid,
    tpr_at_fpr,
)

SIDES = ("base", "adapter")
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # FPRs of a ROC
RELIABILITY_BINS = 10
HISTOGRAM_BINS = 24
VERDICTS = {"inter_task": "new_domain", "intra_task": "trained"}


def build_report(
    scores: dict[str, dict[str, list[Scores]]],
    *,
    model: str,
    adapter: str,
    seed: int,
    epsilon: float,
    run: dict,
    **more: dict | None,
) -> dict:
    """scores: split -> group -> tasks. Everything but "run" is a function of the scores and the settings.

    more: tables that only some runs have: `labels` on self labels, `leakage` on near duplicates, `attacks`,
    `training` (see text.reading), `not_measured` {split: reason}."""
    report = {"model": model, "adapter": adapter, "seed": seed, "epsilon": epsilon, "splits": {}}
    for split, groups in scores.items():
        report["splits"][split] = split_part(groups)
    for key, split in VERDICTS.items():
        tasks = all_tasks(scores.get(split, {}))
        if any(len(task.labels) for task in tasks):
            report[key] = verdict(tasks, report["splits"][split]["mean"], epsilon)
    for key, table in more.items():
        if table:
            report[key] = table
    return {**report, "run": run}


def all_tasks(groups: dict[str, list[Scores]]) -> list[Scores]:
    return [task for tasks in groups.values() for task in tasks]


def split_part(groups: dict[str, list[Scores]]) -> dict:
    part = {"tasks": [], "rows_cut": 0, "groups": {}, "curves": {}}
    for group, tasks in groups.items():
        for task in tasks:
            positives = int(task.positives.sum())
            about = {"task": task.task, "domain": task.domain, "group": group, "criterion": task.criterion}
            part["tasks"].append({**about, "n": len(task.labels), "positives": positives, **compared([task])})
            if task.left_out is not None:
                part["rows_cut"] += int((task.left_out > 0).sum())
        if group:
            part["groups"][group] = compared(tasks)
            part["curves"][group] = curve(tasks)
    everything = all_tasks(groups)
    part["mean"] = compared(everything)
    part["curves"][""] = curve(everything)
    part["reliability"] = {which: reliability(everything, which) for which in SIDES}
    part["histogram"] = histogram(everything)
    return part


def compared(tasks: list[Scores]) -> dict:
    """Base and adapter on one task or the mean of several, and adapter minus base with its intervals."""
    bounds = intervals(tasks)
    entry, uplift = {}, {}
    for which in SIDES:
        entry[which] = measures(tasks[0], which) if len(tasks) == 1 else mean_measures(tasks, which)
    for key in WITH_INTERVAL:
        for which in SIDES:
            entry[which] |= with_names(f"{key}_", bounds[key][which])
        base, adapter = entry["base"][key], entry["adapter"][key]
        uplift[key] = None if base is None or adapter is None else adapter - base
    uplift |= with_names("", bounds["auroc"]["uplift"])
    uplift |= with_names("performance_", bounds["performance"]["uplift"])
    references = {name: mean_measures(tasks, name)["auroc"] for name in tasks[0].references}
    if references:
        entry["references"] = references
    return {**entry, "chance": chance(tasks), "uplift": uplift}


def with_names(prefix: str, interval) -> dict:
    """ci95 is over transcripts; what is claimed of new domains needs the headline, the wider of the two."""
    return {
        f"{prefix}ci95": interval.transcripts,
        f"{prefix}ci95_tasks": interval.tasks,
        f"{prefix}headline_ci95": interval.headline,
    }


def verdict(tasks: list[Scores], mean: dict, epsilon: float) -> dict:
    """Mean performance over pairs against epsilon; the intervals are of the adapter's mean."""
    pairs = {}
    for which in SIDES:
        pairs[which] = np.concatenate([performance(task.of(which), task.labels) for task in tasks])
    adapter, generalizes = inter_task_generalization(pairs["adapter"], epsilon)
    bounds = {
        name: mean["adapter"][f"performance_{name}"] for name in ("ci95", "ci95_tasks", "headline_ci95")
    }
    return {
        "pairs": len(pairs["adapter"]),
        "base_mean": inter_task_generalization(pairs["base"], epsilon)[0],
        "mean": adapter,
        **bounds,
        "chance": mean["chance"],
        "epsilon": epsilon,
        "generalizes": generalizes,
    }


def curve(tasks: list[Scores]) -> dict:
    """TPR at each of RATES, rows pooled after ranking within their task; None below 1 / FPR negatives."""
    found = {}
    for which in SIDES:
        scores, positives = pooled(tasks, which)
        found[which] = [tpr_at_fpr(scores, positives, rate) for rate in RATES]
    return found


def reliability(tasks: list[Scores], which: str) -> dict:
    """Of equal-width bins of P: rows, mean P and share of positives, None in an empty bin."""
    p = np.concatenate([sigmoid(task.score(which)) for task in tasks])
    positives = np.concatenate([task.positives for task in tasks])
    rows, mass, hits = binned(p, positives, RELIABILITY_BINS)
    means = [float(m / n) if n else None for m, n in zip(mass, rows, strict=True)]
    shares = [float(h / n) if n else None for h, n in zip(hits, rows, strict=True)]
    return {"rows": [int(n) for n in rows], "mean": means, "positive": shares}


def histogram(tasks: list[Scores]) -> dict | None:
    """Rows of each class by log-odds, base and adapter in the same bins. None without rows."""
    positives = np.concatenate([task.positives for task in tasks])
    sides = {which: np.concatenate([task.score(which) for task in tasks]) for which in SIDES}
    if not len(positives):
        return None
    every = np.concatenate(list(sides.values())).astype(float)
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-3), HISTOGRAM_BINS + 1)
    found = {"edges": [float(edge) for edge in edges]}
    for which, values in sides.items():
        counts = {
            name: np.histogram(values[rows], edges)[0]
            for name, rows in (("positive", positives), ("negative", ~positives))
        }
        found[which] = {name: [int(n) for n in count] for name, count in counts.items()}
    return found
