"""Scores of many runs -> what the study asks, with intervals over transcripts and over tasks. Numbers only."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from minimon.metrics import DRAWS, Interval, Scores, bootstrap, mean_measures, percentiles
from minimon.study.cells import Cell

MARGIN = 0.03  # an effect in AUROC that a study ought to see


class Place(NamedTuple):
    """A group of a split, or all of it."""

    split: str
    group: str | None = None

    def __str__(self) -> str:
        return f"{self.split} / {self.group}" if self.group else self.split


class Level(NamedTuple):
    """The mean of a measure in one run, and in each of D draws over transcripts and over tasks."""

    mean: float
    transcripts: np.ndarray  # (D,)
    tasks: np.ndarray  # (D,)


@dataclass(frozen=True)
class Run:
    """A finished cell. Runs are drawn alike, so that differences between seeds and regimes are paired."""

    cell: Cell | None
    scores: dict[str, dict[str, list[Scores]]]
    report: dict = field(default_factory=dict)
    drawn: dict = field(default_factory=dict)

    def places(self) -> list[Place]:
        return [
            Place(split, group)
            for split in self.scores
            for group in (*filter(None, self.scores[split]), None)
        ]

    def tasks(self, place: Place) -> list[Scores]:
        groups = self.scores[place.split]
        return [task for name, tasks in groups.items() if place.group in (None, name) for task in tasks]

    def level(
        self,
        which: str,
        place: Place,
        key: str = "auroc",
    ) -> Level:
        """which: base | adapter."""
        tasks = self.tasks(place)
        if place not in self.drawn:
            self.drawn[place] = bootstrap(tasks)
        draws = {over: sides[key][which] for over, sides in self.drawn[place].items()}
        return Level(mean_measures(tasks, which)[key], **draws)


def difference(more: list[Level], less: list[Level] | None = None) -> dict:
    """Mean over seeds of more - less (or of more), with 95% intervals: seeds are drawn anew in each of D draws.

    "ci95" is the wider of "transcripts_ci95", of these very tasks, and "tasks_ci95", of such tasks in general."""
    less = less or [Level(0.0, np.zeros(DRAWS), np.zeros(DRAWS))] * len(more)
    points = [a.mean - b.mean for a, b in zip(more, less)]
    seeds = np.random.default_rng(0).integers(len(points), size=(len(points), DRAWS))  # with replacement
    bounds = []
    for over in ("transcripts", "tasks"):
        drawn = np.stack([getattr(a, over) - getattr(b, over) for a, b in zip(more, less)])
        bounds.append(percentiles(np.take_along_axis(drawn, seeds, axis=0).mean(axis=0)))
    wider = Interval(*bounds).headline
    found = {
        "mean": float(np.mean(points)),
        "ci95": wider,
        "transcripts_ci95": bounds[0],
        "tasks_ci95": bounds[1],
    }
    return {**found, "seeds": points}


def level(
    runs: list[Run],
    which: str,
    place: Place,
    key: str = "auroc",
) -> dict:
    return difference([run.level(which, place, key) for run in runs])


def uplift(runs: list[Run], place: Place, key: str = "auroc") -> dict:
    """Adapter minus base."""
    adapter, base = ([run.level(which, place, key) for run in runs] for which in ("adapter", "base"))
    return difference(adapter, base)


def against(runs: list[Run], others: list[Run], place: Place) -> dict | None:
    """The adapters of one regime minus those of another, in AUROC, of the seeds that both have; None without one."""
    less = {run.cell.seed: run.level("adapter", place) for run in others}
    pairs = [(run.level("adapter", place), less[run.cell.seed]) for run in runs if run.cell.seed in less]
    return difference(*map(list, zip(*pairs))) if pairs else None


def direction(effect: dict) -> str:
    """What an interval says of a difference: more, less, or neither shown."""
    low, high = effect["ci95"]
    return "more" if low > 0 else "less" if high < 0 else "not shown"


# ---- the six questions -------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """The adapters of one regime minus the base, or minus those of another regime."""

    question: int
    split: str
    regime: str
    other: str
    expected: int  # sign of the difference that says yes to the question; 0 for what is shown beside
    words: str


def comparisons() -> list[Comparison]:
    found = [
        Comparison(1, "new_domain", "none", "base", 1, "adapter - base"),
        Comparison(2, "new_prompt", "none", "base", -1, "adapter - base"),
        Comparison(4, "thinking", "none", "base", 1, "adapter - base, both thinking"),
        Comparison(5, "summary", "none", "base", 1, "summaries of the adapter - of the base"),
        Comparison(6, "new_domain", "self", "base", 1, "self labels - base"),
        Comparison(6, "new_domain", "self", "none", 0, "self labels - gold labels"),
        Comparison(6, "new_domain", "self", "self-at-once", 1, "self labels - self labels at once"),
        Comparison(6, "new_domain", "self-at-once", "base", 0, "self labels at once - base"),
    ]
    for regime in ("joint", "joint0.75", "after", "only"):
        hoped = int(regime != "only")
        alone = f"{regime} - classification alone"
        found.append(Comparison(3, "new_prompt", regime, "none", hoped, alone))  # the repair
        found.append(Comparison(3, "new_prompt", regime, "base", 0, f"{regime} - base"))
        found.append(
            Comparison(3, "new_domain", regime, "base", hoped, f"{regime} - base")
        )  # the gain is kept
        found.append(Comparison(3, "new_domain", regime, "none", 0, alone))
    return sorted(found, key=lambda comparison: comparison.question)


def answers(regimes: dict[str, list[Run]]) -> list[dict]:
    """What these regimes can answer, effect by effect; "verdict" is its direction. Nothing without classification alone."""
    found = []
    for asked in comparisons() if "none" in regimes else ():
        runs = regimes.get(asked.regime, [])
        for place in runs[0].places() if runs else ():
            if place.split == asked.split:
                others = regimes.get(asked.other, [])
                effect = uplift(runs, place) if asked.other == "base" else against(runs, others, place)
                if effect:
                    about = {
                        "question": asked.question,
                        "measure": f"{place}: {asked.words}",
                        "group": place.group,
                    }
                    found.append(
                        {**about, "expected": asked.expected, **effect, "verdict": direction(effect)}
                    )
    return found


def verdict(asked: list[dict]) -> str:
    """Of one question, from its answers with an expected sign; that over the whole of its first split leads.

    Shown: all differences over a whole split have that sign. In part: some difference has it, of a group perhaps. Not
    shown: none has, and an effect of MARGIN would have been seen; otherwise the study is too small to tell."""
    right = [answer["verdict"] == ("more" if answer["expected"] > 0 else "less") for answer in asked]
    whole = [answer["group"] is None for answer in asked]
    if all(as_expected for as_expected, of_split in zip(right, whole) if of_split):
        return "shown"
    if any(right):
        return "in part"
    first = asked[whole.index(True)]
    possible = max(bound * first["expected"] for bound in first["ci95"])
    return "not shown" if possible < MARGIN else "not answerable at this size"


def old_question(
    runs: list[Run],
    trained: dict[str, dict[str, int]],
) -> dict:
    """Place -> the share of pairs that get the trained question's label, of those where it differs from the new one's.

    Of base, adapter and their difference. trained: task of new_prompt -> hash of a text -> the trained question's label."""
    turned = [Run(run.cell, {"new_prompt": as_trained(run, trained)}) for run in runs]
    found = {}
    for place in turned[0].places() if turned[0].scores["new_prompt"] else ():
        sides = {which: level(turned, which, place, "performance") for which in ("base", "adapter")}
        found[str(place)] = {**sides, "uplift": uplift(turned, place, "performance")}
    return found


def as_trained(
    run: Run,
    trained: dict[str, dict[str, int]],
) -> dict[str, list[Scores]]:
    """The pairs of new_prompt on which the two questions differ, the trained one's label taken as the right one."""
    groups = {}
    for group, tasks in run.scores.get("new_prompt", {}).items():
        for task in tasks:
            old = np.array([trained.get(task.task, {}).get(text, -1) for text in task.clusters])
            differs = (old >= 0) & (old != task.labels)
            if differs.any():
                kept = {name: getattr(task, name)[differs] for name in ("clusters", "base", "adapter")}
                kept |= {
                    "shares": {},
                    "references": {},
                    "left_out": None,
                }
                groups.setdefault(group, []).append(replace(task, labels=old[differs], **kept))
    return groups
