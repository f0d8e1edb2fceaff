"""Scores -> the report: every number that the table, the pages and the figures show."""

import numpy as np

from minimon.metrics import (
    WITH_INTERVAL,
    Scores,
    SplitScores,
    chance,
    inter_task_generalization,
    intervals,
    mean_measures,
    measures,
    performance,
    pooled_tpr,
)

SIDES = ("base", "adapter")
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # FPRs of a ROC
HISTOGRAM_BINS = 24
VERDICTS = {"inter_task": "new_domain", "intra_task": "trained"}


def build_report(
    scores: SplitScores,
    *,
    model: str,
    adapter: str | None,
    seed: int,
    epsilon: float,
    run: dict,
    **more: dict | None,
) -> dict:
    """Everything but "run" is a function of the scores and the settings.

    more: tables that only some runs have: `labels` on self labels, `leakage` on near duplicates, `attacks`,
    `training` (see text.reading)."""
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
            part["tasks"].append(task_entry(task, group))
            if task.left_out is not None:
                part["rows_cut"] += int((task.left_out > 0).sum())
        if group:
            part["groups"][group] = compared(tasks)
            part["curves"][group] = curve(tasks)
    tasks = all_tasks(groups)
    part["mean"] = compared(tasks)
    part["curves"][""] = curve(tasks)
    positives = np.concatenate([task.positives for task in tasks])
    log_odds = {which: np.concatenate([task.score(which) for task in tasks]) for which in SIDES}
    part["histogram"] = histogram(log_odds, positives)
    return part


def task_entry(task: Scores, group: str) -> dict:
    return {
        "task": task.task,
        "domain": task.domain,
        "group": group,
        "criterion": task.criterion,
        "n": len(task.labels),
        "positives": int(task.positives.sum()),
        **compared([task]),
    }


def compared(tasks: list[Scores]) -> dict:
    """Base and adapter on one task or the mean of several, and adapter minus base with its intervals."""
    bounds = intervals(tasks)
    entry, uplift = {}, {}
    for which in SIDES:
        entry[which] = measures(tasks[0], which) if len(tasks) == 1 else mean_measures(tasks, which)
        for key in WITH_INTERVAL:
            entry[which] |= named(bounds[key][which], f"{key}_")
    for key in WITH_INTERVAL:
        base, adapter = entry["base"][key], entry["adapter"][key]
        uplift[key] = None if base is None or adapter is None else adapter - base
    uplift |= named(bounds["auroc"]["uplift"])
    uplift |= named(bounds["performance"]["uplift"], "performance_")
    references = {name: mean_measures(tasks, name)["auroc"] for name in tasks[0].references}
    if references:
        entry["references"] = references
    return {**entry, "chance": chance(tasks), "uplift": uplift}


def named(interval, prefix: str = "") -> dict:
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
    base_mean, _ = inter_task_generalization(pairs["base"], epsilon)
    adapter_mean, generalizes = inter_task_generalization(pairs["adapter"], epsilon)
    return {
        "pairs": len(pairs["adapter"]),
        "base_mean": base_mean,
        "mean": adapter_mean,
        "ci95": mean["adapter"]["performance_ci95"],
        "ci95_tasks": mean["adapter"]["performance_ci95_tasks"],
        "headline_ci95": mean["adapter"]["performance_headline_ci95"],
        "chance": mean["chance"],
        "epsilon": epsilon,
        "generalizes": generalizes,
    }


def curve(tasks: list[Scores]) -> dict:
    """TPR at each of RATES, rows pooled after ranking within their task; None below 1 / FPR negatives."""
    return {which: [pooled_tpr(tasks, which, rate) for rate in RATES] for which in SIDES}


def histogram(log_odds: dict, positives) -> dict | None:
    """Rows of each class by log-odds, base and adapter in the same bins. None without rows."""
    if not len(positives):
        return None
    every = np.concatenate(list(log_odds.values())).astype(float)
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-3), HISTOGRAM_BINS + 1)
    found = {"edges": edges.tolist()}
    for which, values in log_odds.items():
        found[which] = {
            "positive": np.histogram(values[positives], edges)[0].tolist(),
            "negative": np.histogram(values[~positives], edges)[0].tolist(),
        }
    return found
