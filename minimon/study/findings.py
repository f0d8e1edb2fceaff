"""Scores of many runs -> effects with intervals over transcripts and over tasks, and what they say to the six questions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from minimon.metrics import DRAWS, Interval, Scores, SplitScores, bootstrap, mean_measures, percentiles
from minimon.report.scores import text_hash
from minimon.study.cells import Cell
from minimon.tasks import SPLITS, Mixture, Task

MARGIN = 0.03  # an effect in AUROC that a study ought to see
Table = dict[str, dict[str, object]]  # column -> row -> what stands there, mostly an effect


@dataclass(frozen=True)
class Run:
    """A finished cell. Runs are drawn alike, so that differences between seeds and regimes are paired."""

    cell: Cell | None
    tasks: dict[str, list[Scores]]  # of each place: see by_place
    report: dict = field(default_factory=dict)
    drawn: dict = field(default_factory=dict)

    def level(self, which: str, place: str, key: str = "auroc") -> np.ndarray:
        """(2, 1 + D): a measure's mean, then its draws, over transcripts and over tasks. which: base | adapter."""
        if place not in self.drawn:
            self.drawn[place] = bootstrap(self.tasks[place])
        mean = mean_measures(self.tasks[place], which)[key]
        rows = []
        for over in ("transcripts", "tasks"):
            rows.append([mean, *self.drawn[place][over][key][which]])
        return np.array(rows, dtype=float)


def by_place(scores: SplitScores) -> dict[str, list[Scores]]:
    """ "split / group" -> its tasks, and "split" -> all of them."""
    found = {}
    for split, groups in scores.items():
        found |= {f"{split} / {group}": tasks for group, tasks in groups.items() if group}
        if groups:
            found[split] = sum(groups.values(), [])
    return found


def split_of(place: str) -> str:
    return place.split(" / ")[0]


# ---- effects -----------------------------------------------------------------------------------------------


def effect(levels: np.ndarray) -> dict | None:
    """Levels of S seeds, or differences of them, (S, 2, 1 + D) -> their mean with 95% intervals: seeds are drawn anew in each
    of D draws. None where there is no number: AUROC of one class.

    "ci95" is the wider of "transcripts_ci95", of these very tasks, and "tasks_ci95", of such tasks in general."""
    levels = levels[~np.isnan(levels[:, 0, 0])]
    points, draws = levels[:, 0, 0], levels[:, :, 1:]
    count = len(points)
    if not count:
        return None
    seeds = np.random.default_rng(0).integers(count, size=(count, 1, DRAWS))
    drawn = np.take_along_axis(draws, seeds, axis=0).mean(axis=0)  # (2, D)
    bounds = Interval(*map(percentiles, drawn))
    return {
        "mean": float(points.mean()),
        "ci95": bounds.headline,
        "transcripts_ci95": bounds.transcripts,
        "tasks_ci95": bounds.tasks,
        "seeds": points.tolist(),
    }


def levels(runs: list[Run], place: str, which: str = "adapter", key: str = "auroc") -> np.ndarray:
    return np.stack([run.level(which, place, key) for run in runs])


def level(runs: list[Run], place: str, **options) -> dict:
    """options: of `levels`."""
    return effect(levels(runs, place, **options))


def uplift(runs: list[Run], place: str) -> dict:
    """Adapter minus base in AUROC."""
    return effect(levels(runs, place) - levels(runs, place, "base"))


def against(runs: list[Run], place: str, others: list[Run]) -> dict | None:
    """The adapters of one regime minus those of another, in AUROC, of the seeds that both have; None without one."""
    by_seed = {run.cell.seed: run for run in others if place in run.tasks}
    shared = [run for run in runs if run.cell.seed in by_seed]
    if not shared:
        return None
    others = [by_seed[run.cell.seed] for run in shared]
    return effect(levels(shared, place) - levels(others, place))


def direction(effect: dict) -> str:
    """What an interval says of a difference: more, less, or neither shown."""
    low, high = effect["ci95"]
    return "more" if low > 0 else "less" if high < 0 else "not shown"


def table(runs_of: dict[object, list[Run]], measure: Callable = uplift, splits=SPLITS) -> Table:
    """Of the runs of each column, place by place: measure(runs, place), of those that were measured there."""
    found = {}
    for column, runs in runs_of.items():
        found[str(column)] = {}
        for place in dict.fromkeys(place for run in runs for place in run.tasks):
            if split_of(place) in splits:
                measured = [run for run in runs if place in run.tasks]
                found[str(column)][place] = measure(measured, place)
    return found


# ---- the six questions -------------------------------------------------------------------------------------


class Question(NamedTuple):
    words: str
    effects: list[tuple[str, str, str]]  # split, regime, and what it is compared with; the first leads
    expected: int = 1  # sign of the effects that says yes


WITH_BOTH = ("joint", "joint0.75", "after")  # classification and instructions
QUESTIONS = [
    Question(
        "1. Does classification training raise AUROC on new domains under new prompts?",
        [("new_domain", "none", "base")],
    ),
    Question(
        "2. Does it lower AUROC under changed prompts on trained domains?",
        [("new_prompt", "none", "base")],
        expected=-1,
    ),
    Question(
        "3. Does instruction training repair that and keep the gain?",
        [("new_prompt", regime, "none") for regime in WITH_BOTH]
        + [("new_domain", regime, "base") for regime in WITH_BOTH],
    ),
    Question("4. Does the gain carry over to thinking?", [("thinking", "none", "base")]),
    Question("5. And to summaries?", [("summary", "none", "base")]),
    Question(
        "6. Do labels of the model's own raise AUROC on new domains?",
        [("new_domain", "self", "base"), ("new_domain", "self", "self-at-once")],
    ),
]


def answers(minus: dict[str, Table]) -> Table:
    """Of each question that these effects can answer: the "effect" that leads, the "verdict", and what is "measured" in all.

    minus: what regimes are compared with, "base" or a regime -> regime -> place -> effect."""
    found = {"effect": {}, "verdict": {}, "measured": {}}
    for question in QUESTIONS:
        effects, compared = {}, {}  # what is compared, (split, other) -> the effects over that whole split
        for split, regime, other in question.effects:
            of_split = compared.setdefault((split, other), [])
            for place, difference in minus[other].get(regime, {}).items():
                if difference and split_of(place) == split:
                    effects[f"{place}: {regime} - {other}"] = difference
                    of_split += [difference] if place == split else []
        leading, *others = compared.values()
        if leading:
            found["effect"][question.words] = leading[0]
            found["verdict"][question.words] = verdict(effects, question.expected, whole=all(others))
            directions = [f"{measure}: {direction(difference)}" for measure, difference in effects.items()]
            found["measured"][question.words] = "; ".join(directions)
    return found


def verdict(effects: dict[str, dict], expected: int, whole: bool = True) -> str:
    """Of one question: "place: regime - other" -> effect; a place without " / " is a whole split. whole: all that the question
    compares was measured.

    Shown: all differences over a whole split have the expected sign. In part: some difference has it, of a group perhaps.
    Not shown: none has, and an effect of MARGIN would have been seen; otherwise the study is too small to tell."""
    wanted = "more" if expected > 0 else "less"
    of_splits = [effect for measure, effect in effects.items() if " / " not in measure]
    if whole and all(direction(effect) == wanted for effect in of_splits):
        return "shown"
    if any(direction(effect) == wanted for effect in effects.values()):
        return "in part"
    possible = max(bound * expected for effect in of_splits for bound in effect["ci95"])
    return "not shown" if possible < MARGIN else "not answerable at this size"


# ---- the old question --------------------------------------------------------------------------------------


def as_trained(
    scores: SplitScores, trained: dict[tuple[str, str], dict[str, int]]
) -> dict[str, list[Scores]]:
    """The pairs of new_prompt on which the trained question and the new one differ, with the trained one's label.

    trained: group and task of new_prompt -> hash of a text -> the trained question's label."""
    groups = {}
    for group, tasks in scores.get("new_prompt", {}).items():
        for task in tasks:
            labels = trained.get((group, task.task), {})
            old = np.array([labels.get(text, -1) for text in task.clusters])
            differs = (old >= 0) & (old != task.labels)
            if differs.any():
                turned = Scores(
                    task.task,
                    task.domain,
                    old[differs],
                    task.clusters[differs],
                    task.base[differs],
                    task.adapter[differs],
                    criterion=task.criterion,
                )
                groups.setdefault(group, []).append(turned)
    return groups


def trained_labels(mixture: Mixture) -> dict[tuple[str, str], dict[str, int]]:
    """Group and task of new_prompt -> hash of a text, as in scores.jsonl -> the answer that the trained question asks for.

    Of several questions trained on these texts: the one with most of them, and of those one of the same criterion."""
    found = {}
    for group, tasks in mixture.splits.get("new_prompt", {}).items():
        for task in tasks:
            texts = {row.text for row in task.rows}
            most = (0, False)
            for old in mixture.train:
                shared = [row for row in old.rows if row.text in texts]
                rank = (len(shared), old.criterion == task.criterion)
                if rank > most:
                    most, answers = rank, same_words(old, task)
                    found[group, task.name] = {text_hash(row.text): answers[row.label] for row in shared}
    return found


def same_words(old: Task, new: Task) -> list[int]:
    """Label of the old task -> the new one's that bears the same word; of other words, the one in the same place, -1 where
    there is none."""
    words, answers = list(new.labels), []
    for place, word in enumerate(old.labels):
        same_place = place if place < len(words) else -1
        answers.append(words.index(word) if word in words else same_place)
    return answers
