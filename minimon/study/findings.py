"""Scores of many runs -> what the study asks, each answer with an interval over seeds and transcripts. Numbers only."""

import numpy as np

from minimon.metrics import DRAWS, Scores, bootstrap, mean_measures, percentiles


class Runs:
    """One regime's runs, a seed each: {split: {group: [Scores]}} with the same rows in the same order."""

    def __init__(self, runs: list[dict[str, dict[str, list[Scores]]]]):
        self.runs, self.cache = runs, {}

    def groups(self) -> list[tuple[str, str | None]]:
        """(split, group) of each group with a name, and (split, None) for all of a split."""
        return [(split, group) for split, groups in self.runs[0].items() for group in [*filter(None, groups), None]]

    def values(self, split: str, group: str | None = None, key: str = "auroc") -> dict[str, list[tuple[float, np.ndarray]]]:
        """base | adapter -> for each seed (mean, its draws (D,)); the same transcripts are drawn whatever the seed and the regime."""
        if (split, group, key) not in self.cache:
            sides = {"base": [], "adapter": []}
            for run in self.runs:
                tasks = [task for name, members in run[split].items() if group in (None, name) for task in members]
                drawn = bootstrap(tasks)[key]
                for which, values in sides.items():
                    values.append((mean_measures(tasks, which)[key], drawn[which]))
            self.cache[split, group, key] = sides
        return self.cache[split, group, key]


def difference(more: list[tuple[float, np.ndarray]], less: list[tuple[float, np.ndarray]]) -> dict:
    """Mean over seeds of more - less, with a 95% interval: seeds and transcripts are drawn anew in each of the D draws."""
    points = [a - b for (a, _), (b, _) in zip(more, less)]
    drawn = np.stack([a - b for (_, a), (_, b) in zip(more, less)])                    # (seeds, D)
    seeds = np.random.default_rng(0).integers(len(points), size=(len(points), DRAWS))  # (seeds, D) drawn with replacement
    return {"mean": float(np.mean(points)), "ci95": percentiles(np.take_along_axis(drawn, seeds, axis=0).mean(axis=0)), "seeds": points}


def level(values: list[tuple[float, np.ndarray]]) -> dict:
    """The mean itself, in the same way."""
    return difference(values, [(0.0, np.zeros(DRAWS))] * len(values))


def uplift(runs: Runs, split: str, group: str | None = None, key: str = "auroc") -> dict:
    sides = runs.values(split, group, key)
    return difference(sides["adapter"], sides["base"])


def against(runs: Runs, other: Runs, split: str, group: str | None = None, key: str = "auroc") -> dict:
    """The adapters of one regime minus those of another, seed by seed."""
    return difference(runs.values(split, group, key)["adapter"], other.values(split, group, key)["adapter"])


def regime_table(runs: Runs) -> dict:
    """"split / group" -> base, adapter and uplift in AUROC and in performance."""
    table = {}
    for split, group in runs.groups():
        entry = {}
        for key in ("auroc", "performance"):
            sides = runs.values(split, group, key)
            entry[key] = {"base": level(sides["base"][:1]), "adapter": level(sides["adapter"]), "uplift": uplift(runs, split, group, key)}
        table[f"{split} / {group}" if group else split] = entry
    return table


def verdict(effect: dict) -> str:
    """What an interval says of a difference: more, less, or neither shown."""
    low, high = effect["ci95"]
    return "more" if low > 0 else "less" if high < 0 else "not shown"


def six_answers(regimes: dict[str, Runs]) -> list[dict]:
    """The questions of the study that these regimes can answer: [{"question", "measure", "mean", "ci95", "seeds", "verdict"}]."""
    answers = []

    def say(question, measure, effect):
        answers.append({"question": question, "measure": measure, **effect, "verdict": verdict(effect)})

    plain = regimes.get("none")
    if plain is None:
        return answers
    groups = plain.groups()
    asked_of = ((1, "new_domain", "adapter - base"), (2, "new_prompt", "adapter - base"), (4, "thinking", "adapter - base, both thinking"),
                (5, "summary", "summaries of the adapter - of the base"))
    for question, split, asked in asked_of:
        for group in [group for of, group in groups if of == split]:
            say(question, f"{split}{f' / {group}' if group else ''}: {asked}", uplift(plain, split, group))
    for name in ("joint", "after", "only"):
        for split in ("new_domain", "new_prompt"):
            for group in [group for of, group in groups if of == split and name in regimes]:
                where = f"{split}{f' / {group}' if group else ''}"
                say(3, f"{where}: {name} - base", uplift(regimes[name], split, group))
                say(3, f"{where}: {name} - classification alone", against(regimes[name], plain, split, group))
    if "self" in regimes:
        for group in [group for of, group in groups if of == "new_domain"]:
            where = f"new_domain{f' / {group}' if group else ''}"
            say(6, f"{where}: self labels - base", uplift(regimes["self"], "new_domain", group))
            say(6, f"{where}: self labels - gold labels", against(regimes["self"], plain, "new_domain", group))
    return sorted(answers, key=lambda answer: answer["question"])
