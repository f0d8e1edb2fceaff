"""Scores of many runs -> what the study asks, each answer with an interval over transcripts and one over tasks. Numbers only."""

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
    """A finished cell. Its draws are kept, and are of the same transcripts and tasks whatever the seed and the regime."""

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

    def level(self, which: str, place: Place, key: str = "auroc") -> Level:
        """which: base | adapter."""
        if place not in self.drawn:
            self.drawn[place] = {
                over: bootstrap(self.tasks(place), over=over) for over in ("transcripts", "tasks")
            }
        draws = {over: sides[key][which] for over, sides in self.drawn[place].items()}
        return Level(mean_measures(self.tasks(place), which)[key], **draws)


def difference(more: list[Level], less: list[Level]) -> dict:
    """Mean over seeds of more - less, with 95% intervals; seeds, and transcripts or tasks, are drawn anew in each of D draws.

    "ci95" is the wider of "transcripts_ci95", of these very tasks, and "tasks_ci95", of such tasks in general."""
    pairs = list(zip(more, less, strict=True))
    points = [a.mean - b.mean for a, b in pairs]
    seeds = np.random.default_rng(0).integers(
        len(points), size=(len(points), DRAWS)
    )  # (seeds, D) with replacement

    def bounds(over: str) -> list[float] | None:
        drawn = np.stack([getattr(a, over) - getattr(b, over) for a, b in pairs])  # (seeds, D)
        return percentiles(np.take_along_axis(drawn, seeds, axis=0).mean(axis=0))

    interval = Interval(bounds("transcripts"), bounds("tasks"))
    return {
        "mean": float(np.mean(points)),
        "ci95": interval.headline,
        "transcripts_ci95": interval.transcripts,
        "tasks_ci95": interval.tasks,
        "seeds": points,
    }


def level_of(levels: list[Level]) -> dict:
    """The mean itself, with intervals in the same way."""
    return difference(levels, [Level(0.0, np.zeros(DRAWS), np.zeros(DRAWS))] * len(levels))


def level(runs: list[Run], which: str, place: Place, key: str = "auroc") -> dict:
    return level_of([run.level(which, place, key) for run in runs])


def uplift(runs: list[Run], place: Place, key: str = "auroc") -> dict:
    """Adapter minus base."""
    return difference(*([run.level(which, place, key) for run in runs] for which in ("adapter", "base")))


def against(runs: list[Run], others: list[Run], place: Place, key: str = "auroc") -> dict | None:
    """The adapters of one regime minus those of another, of the seeds that both have; None without one."""
    more, less = [], []
    for run in runs:
        for other in others:
            if run.cell.seed == other.cell.seed:
                more.append(run.level("adapter", place, key))
                less.append(other.level("adapter", place, key))
    return difference(more, less) if more else None


def direction(effect: dict) -> str:
    """What an interval says of a difference: more, less, or neither shown."""
    low, high = effect["ci95"]
    return "more" if low > 0 else "less" if high < 0 else "not shown"


# ---- the six questions ---------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """The adapters of one regime against the base, or against those of another."""

    question: int
    split: str
    regime: str
    other: str
    expected: int = 0  # sign of the difference that would say yes to the question; 0 for what is shown beside
    words: str = ""

    def __str__(self) -> str:
        return self.words or f"{self.regime} - {'base' if self.other == 'base' else 'classification alone'}"


COMPARISONS = [
    Comparison(1, "new_domain", "none", "base", 1, "adapter - base"),
    Comparison(2, "new_prompt", "none", "base", -1, "adapter - base"),
    Comparison(3, "new_prompt", "joint", "none", 1),
    Comparison(3, "new_prompt", "joint", "base"),
    Comparison(3, "new_domain", "joint", "base", 1),
    Comparison(3, "new_domain", "joint", "none"),
    Comparison(3, "new_prompt", "joint0.75", "none", 1),
    Comparison(3, "new_prompt", "joint0.75", "base"),
    Comparison(3, "new_domain", "joint0.75", "base", 1),
    Comparison(3, "new_domain", "joint0.75", "none"),
    Comparison(3, "new_prompt", "after", "none", 1),
    Comparison(3, "new_prompt", "after", "base"),
    Comparison(3, "new_domain", "after", "base", 1),
    Comparison(3, "new_domain", "after", "none"),
    Comparison(3, "new_prompt", "only", "none"),
    Comparison(3, "new_prompt", "only", "base"),
    Comparison(3, "new_domain", "only", "base"),
    Comparison(3, "new_domain", "only", "none"),
    Comparison(4, "thinking", "none", "base", 1, "adapter - base, both thinking"),
    Comparison(5, "summary", "none", "base", 1, "summaries of the adapter - of the base"),
    Comparison(6, "new_domain", "self", "base", 1, "self labels - base"),
    Comparison(6, "new_domain", "self", "none", 0, "self labels - gold labels"),
    Comparison(6, "new_domain", "self-at-once", "base", 0, "self labels at once - base"),
    Comparison(6, "new_domain", "self", "self-at-once", 1, "self labels - self labels at once"),
]


def answers(regimes: dict[str, list[Run]]) -> list[dict]:
    """What these regimes can answer, effect by effect; "verdict" is its direction. Nothing without classification alone."""
    found = []
    for asked in COMPARISONS if "none" in regimes else ():
        runs, others = regimes.get(asked.regime, []), regimes.get(asked.other, [])
        for place in runs[0].places() if runs else ():
            if place.split == asked.split:
                effect = uplift(runs, place) if asked.other == "base" else against(runs, others, place)
                if effect:
                    about = {
                        "question": asked.question,
                        "measure": f"{place}: {asked}",
                        "expected": asked.expected,
                    }
                    about |= {"comparison": str(asked), "group": place.group}
                    found.append({**about, **effect, "verdict": direction(effect)})
    return found


def verdict(asked: list[dict]) -> str:
    """Of one question, from its answers that have an expected sign, one over a whole split first among those of its place.

    Shown: every difference over a whole split has that sign. In part: some difference has it, of a group perhaps. Not shown:
    none has, and an effect of MARGIN would have been seen; otherwise the study is too small to tell."""
    wanted = {1: "more", -1: "less"}
    right = [answer["verdict"] == wanted[answer["expected"]] for answer in asked]
    whole = [answer for answer in asked if answer["group"] is None]
    if all(answer["verdict"] == wanted[answer["expected"]] for answer in whole):
        return "shown"
    if any(right):
        return "in part"
    possible = max(bound * whole[0]["expected"] for bound in whole[0]["ci95"])
    return "not shown" if possible < MARGIN else "not answerable at this size"


def old_question(runs: list[Run], trained: dict[str, dict[str, int]]) -> dict:
    """Where the label under a changed prompt differs from that of the trained question: place -> the share of pairs that base
    and adapter give the trained question's label, and the difference. trained: task -> hash of a text -> that label."""
    found, turned = {}, [Run(None, {"new_prompt": turn(run.scores, trained)}) for run in runs]
    for place in turned[0].places() if turned else ():
        if turned[0].tasks(place):
            sides = {which: level(turned, which, place, "performance") for which in ("base", "adapter")}
            found[str(place)] = {**sides, "uplift": uplift(turned, place, "performance")}
    return found


def turn(scores: dict, trained: dict[str, dict[str, int]]) -> dict[str, list[Scores]]:
    """The pairs of new_prompt on which the two questions differ, the trained one's label taken as the right one."""
    groups = {}
    for group, tasks in scores.get("new_prompt", {}).items():
        for task in tasks:
            old = np.array([trained.get(task.task, {}).get(text, -1) for text in task.clusters])
            differs = (old >= 0) & (old != task.labels)
            if differs.any():
                part = {name: getattr(task, name)[differs] for name in ("clusters", "base", "adapter")}
                part |= {"labels": old[differs], "shares": {}, "references": {}, "left_out": None}
                groups.setdefault(group, []).append(replace(task, **part))
    return groups
