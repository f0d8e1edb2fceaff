"""Finished cells -> the tables of results.json and results.md; effects are computed in findings.py."""

from collections import defaultdict
from functools import partial

import numpy as np

from minimon.study.baselines import baselines
from minimon.study.findings import Run, Table, against, answers, by_place, effect, level, table
from minimon.tasks import SPLITS, Mixture

OLD = "old_question"  # stands beside the splits of a run: pairs with the trained question's label
COMPARED = {  # regime -> those that are compared with it, seed by seed
    "none": ("joint", "joint0.75", "after", "only", "self"),
    "self-at-once": ("self",),
}


def results(runs: list[Run], of_baselines: dict[str, Table]) -> dict:
    """What results.json holds: "effects" and "levels", title -> table. of_baselines: what measure_baselines gives."""
    kinds = grouped(runs, "kind")
    regimes = dict(grouped(kinds["regime"], "label"))
    plain = regimes.get("none", [])
    minus = {"base": table(regimes)}
    for other, names in COMPARED.items():
        others = regimes.get(other, [])
        of_names = {name: regimes[name] for name in names if others and name in regimes}
        minus[other] = table(of_names, partial(against, others=others))
    mixed = kinds["regime"] + kinds["share"]
    mixed = [run for run in mixed if run.cell.x is not None]
    mixed.sort(key=lambda run: run.cell.x)
    bases = kinds["base"] and plain + kinds["base"]
    effects = {
        "The six questions": answers(minus),
        "Uplift over the base": minus["base"] | of_baselines.get("uplift", {}),
        "Uplift over classification alone": minus["none"],
        "Uplift over self labels at once": minus["self-at-once"],
        "Uplift by share of instruction rows": table(grouped(mixed, "x")),
        "Uplift by training tasks": table(grouped(kinds["tasks"], "x")),
        "Uplift by training rows a task": table(grouped(kinds["rows"], "x")),
        "Uplift by base": table(grouped(bases, "model")),
        "Uplift by domain trained on": table(grouped(kinds["transfer"], "label")),
    }
    levels = {
        "AUROC": levels_of(regimes, "auroc") | of_baselines.get("auroc", {}),
        "Performance": levels_of(regimes, "performance") | of_baselines.get("performance", {}),
        "Inter-task generalization": {name: inter_task(of_one) for name, of_one in regimes.items()},
        "Old-question share": levels_of(regimes, "performance", (OLD,)),
        "Self labels": {run.cell.name: run.report["labels"] for run in runs if "labels" in run.report},
        "AUROC by labelled rows of a new domain": scarce(kinds["scarce"], plain),
    }
    return {
        "seeds": {name: len(of_one) for name, of_one in regimes.items()},
        "effects": effects,
        "levels": levels,
    }


def grouped(runs: list[Run], name: str) -> dict[object, list[Run]]:
    """By a field of their cells."""
    found = defaultdict(list)
    for run in runs:
        found[getattr(run.cell, name)].append(run)
    return found


def levels_of(regimes: dict[str, list[Run]], key: str, splits=SPLITS) -> Table:
    """Of the base, as the runs of classification alone have measured it, and of the adapters of each regime."""
    base = {"base": regimes["none"]} if "none" in regimes else {}
    of_base = table(base, partial(level, key=key, which="base"), splits)
    return of_base | table(regimes, partial(level, key=key), splits)


def inter_task(runs: list[Run]) -> dict:
    """Mean performance over new pairs, and how many seeds are above epsilon; nothing without new domains."""
    runs = [run for run in runs if "inter_task" in run.report]
    if not runs:
        return {}
    above = sum(run.report["inter_task"]["generalizes"] for run in runs)
    mean = level(runs, "new_domain", key="performance")
    return {"mean performance": mean, "seeds above epsilon": f"{above} of {len(runs)}"}


def scarce(runs: list[Run], plain: list[Run]) -> Table:
    """AUROC after training on k labelled rows of a held-out domain, mean over domains and seeds, from base and adapter."""
    points = defaultdict(lambda: defaultdict(list))
    for of_domain in grouped(runs, "label").values():
        names = {task.task for task in of_domain[0].tasks["trained"]}
        for before in plain:
            tasks = before.tasks.get("new_domain", [])
            tasks = [task for task in tasks if task.task in names]
            if tasks:
                untrained = Run(before.cell, {"": tasks})
                for start in ("base", "adapter"):
                    points["0"][f"from the {start}"].append(untrained.level(start, ""))
    for run in runs:
        k = str(run.cell.x or "all")
        start = "from the adapter" if run.cell.after else "from the base"
        points[k][start].append(run.level("adapter", "trained"))
    found = {}
    for k, starts in points.items():
        found[k] = {start: effect(np.stack(levels)) for start, levels in starts.items()}
    return found


def measure_baselines(model, tokenizer, mixture: Mixture) -> dict[str, Table]:
    """ "uplift" over the base in AUROC, "auroc", "performance" -> baseline -> place -> effect."""
    runs_of = {}
    for name, scores in baselines(model, tokenizer, mixture).items():
        runs_of[name] = [Run(None, by_place(scores))]
    return {
        "uplift": table(runs_of),
        "auroc": table(runs_of, level),
        "performance": table(runs_of, partial(level, key="performance")),
    }


# ---- text --------------------------------------------------------------------------------------------------


def text(numbers: dict) -> str:
    """results.md"""
    seeds = ", ".join(f"{name} {count}" for name, count in numbers["seeds"].items())
    intro = f"95% intervals over seeds ({seeds}), and over transcripts or tasks, whichever is wider."
    grids = [grid(title, columns) for title, columns in numbers["effects"].items()]
    grids += [grid(title, columns, sign="") for title, columns in numbers["levels"].items()]
    return "\n\n".join(["# Results of the study", intro, *filter(None, grids)]) + "\n"


def grid(title: str, columns: Table, sign: str = "+") -> str:
    """A heading and a table in markdown; nothing without rows."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for row in rows:
        lines.append([row])
        for column in columns.values():
            most = max(map(seeds, column.values()), default=0)
            lines[-1].append(shown(column.get(row), sign, most))
    written = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"## {title}\n", *written]) if rows else ""


def seeds(value) -> int:
    return len(value["seeds"]) if isinstance(value, dict) else 0


def shown(value, sign: str = "+", most: int = 0) -> str:
    """An effect with its interval, a number, or words; how many seeds an effect is of where others are of more."""
    if isinstance(value, dict):
        low, high = value["ci95"]
        fewer = f" ({seeds(value)} of {most} seeds)" if seeds(value) < most else ""
        return f"{value['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]{fewer}"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
