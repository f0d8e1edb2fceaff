"""Cells of the study -> numbers, text and figures. See findings.py for how an effect and its interval are computed."""

import re
from statistics import fmean

from minimon.study.baselines import baselines
from minimon.study.findings import Runs, level, regime_table, six_answers, uplift
from minimon.metrics import bootstrap, intervals, mean_measures

GROUPS = ("new_domain", "new_prompt")


def measure_baselines(model, tokenizer, mixture, on_task=None) -> dict:
    """name -> "split / group" -> {"base", "auroc", "ci95", "uplift", "uplift_ci95", "performance"}."""
    found = {}
    for name, splits in baselines(model, tokenizer, mixture, on_task=on_task).items():
        for split, groups in splits.items():
            everything = {group: tasks for group, tasks in groups.items() if group}
            everything[None] = [task for tasks in groups.values() for task in tasks]
            for group, tasks in everything.items():
                base, there, bounds = mean_measures(tasks, "base"), mean_measures(tasks, "adapter"), intervals(tasks)
                found.setdefault(name, {})[f"{split} / {group}" if group else split] = {
                    "tasks": len(tasks), "base": base["auroc"], "auroc": there["auroc"], "ci95": bounds["auroc"]["adapter"],
                    "uplift": there["auroc"] - base["auroc"], "uplift_ci95": bounds["auroc"]["uplift"],
                    "performance": there["performance"], "base_performance": base["performance"]}
    return found


def results(cells: dict, baseline_numbers: dict | None, fraction: float | None = None) -> dict:
    """cells: name -> (scores, report); fraction: of the joint regime. -> {"numbers": what results.json holds, "text": results.md}."""
    regimes = {name: Runs(runs) for name in ("none", "joint", "after", "only", "self") if (runs := seeds_of(cells, name))}
    numbers = {
        "answers": six_answers(regimes), "regimes": {name: regime_table(runs) for name, runs in regimes.items()},
        "seeds": {name: len(runs.runs) for name, runs in regimes.items()},
        "inter_task": {name: means for name, runs in regimes.items() if (means := inter_task(cells, name, runs))},
        "summary_references": references(cells),
        "labels": {key: report["labels"] for key, (_, report) in cells.items() if "labels" in report},
        "dilution": {"fraction": curve(cells, r"joint([\d.]+)-seed\d+", {0.0: "none", fraction: "joint"}),
                     "tasks": curve(cells, r"tasks(\d+)-seed\d+")},
        "transfer": transfer(cells), "scarce": scarce(cells), "baselines": baseline_numbers or {}}
    return {"numbers": numbers, "text": text(numbers)}


def seeds_of(cells, name) -> list:
    return [scores for key, (scores, _) in sorted(cells.items()) if re.fullmatch(rf"{re.escape(name)}-seed\d+", key)]


def inter_task(cells, name, runs: Runs) -> dict | None:
    """Mean performance over new pairs: of the base, and of each seed's adapter, with an interval over seeds and transcripts."""
    parts = [report.get("inter_task") for key, (_, report) in sorted(cells.items()) if re.fullmatch(rf"{re.escape(name)}-seed\d+", key)]
    if None in parts:
        return None
    means = [part["mean"] for part in parts]
    ci95 = level(runs.values("new_domain", key="performance")["adapter"])["ci95"]
    return {"base": parts[0]["base_mean"], "mean": fmean(means), "ci95": ci95, "seeds": means, "epsilon": parts[0]["epsilon"],
            "generalizes": [part["generalizes"] for part in parts]}


def references(cells) -> dict:
    for name, (_, report) in cells.items():
        if name.startswith("none-") and "summary" in report["splits"]:
            return report["splits"]["summary"]["mean"].get("references", {})
    return {}


def curve(cells, pattern, more=()) -> list[dict]:
    """A point for each x that the cells' names hold, and for {x: regime} beside them: uplift of each group."""
    names = {float(match[1]): re.match(r"[a-z]+", pattern)[0] + match[1] for key in cells if (match := re.fullmatch(pattern, key))}
    names |= {x: name for x, name in dict(more).items() if names and x is not None and seeds_of(cells, name)}
    points = []
    for x, name in sorted(names.items()):
        runs = Runs(seeds_of(cells, name))
        points.append({"x": x, **{f"{split} / {group}" if group else split: uplift(runs, split, group)
                                         for split, group in runs.groups() if split in GROUPS}})
    return points


def transfer(cells) -> dict:
    """Uplift in AUROC on each domain (column) of training on one (row), mean over seeds, with its interval."""
    rows = list(dict.fromkeys(match[1] for key in cells if (match := re.fullmatch(r"from-(.+)-seed\d+", key))))
    table = {}
    for row in rows:
        by_domain = {}
        for scores in seeds_of(cells, f"from-{row}"):
            runs = {}
            for groups in scores.values():
                for tasks in groups.values():
                    for task in tasks:
                        runs.setdefault(task.domain, []).append(task)
            for domain, tasks in runs.items():
                by_domain.setdefault(domain, []).append({"all": {"": tasks}})
        table[row] = {domain: uplift(Runs(runs), "all") for domain, runs in by_domain.items()}
    return table


def scarce(cells) -> list[dict]:
    """AUROC after fine-tuning on k rows of a new domain, mean over domains and seeds; "k": None is all rows, 0 is no such training."""
    points = {}
    for key, (scores, _) in cells.items():
        if match := re.fullmatch(r"scarce-(.+)-(\d+|all)-(base|adapter)-seed(\d+)", key):
            domain, k, start, seed = match.groups()
            tasks = [task for tasks in scores["trained"].values() for task in tasks]
            points.setdefault((None if k == "all" else int(k), start), []).append(point_of(tasks, "adapter"))
            names = {task.task for task in tasks}
            before = next((s for name, (s, _) in cells.items() if name == f"none-seed{seed}"), None)
            if k != "all" and int(k) == 8 and start == "adapter" and before:           # the adapter as it was, on the same tasks
                same = [task for tasks in before["new_domain"].values() for task in tasks if task.task in names and task.domain == domain]
                for which in ("base", "adapter"):
                    points.setdefault((0, which), []).append(point_of(same, which))
    ordered = sorted(points, key=lambda point: (point[0] is None, point[0] or 0, point[1]))
    return [{"k": k, "start": start, **level(points[k, start])} for k, start in ordered]


def point_of(tasks, which):
    return mean_measures(tasks, which)["auroc"], bootstrap(tasks)["auroc"][which]


# ---- text ------------------------------------------------------------------------------------------------------------------


TITLES = {1: "New domains, new prompts", 2: "Changed prompts on trained domains", 3: "With instruction-following training",
          4: "With thinking", 5: "Summaries", 6: "Labels from the model's own thinking"}


def effect(entry) -> str:
    return f"{entry['mean']:+.3f} [{entry['ci95'][0]:+.3f}, {entry['ci95'][1]:+.3f}]"


def text(numbers) -> str:
    def lines(header, rows):
        return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])

    seeds = ", ".join(f"{name} {count}" for name, count in numbers["seeds"].items())
    parts = ["# Results of the study", f"Uplift in AUROC; 95% intervals over seeds ({seeds}) and transcripts."]
    for question, title in TITLES.items():
        rows = [[answer["measure"], effect(answer), answer["verdict"]] for answer in numbers["answers"] if answer["question"] == question]
        parts += [f"## {question}. {title}", lines(["measured", "effect", "shown"], rows)] if rows else []
    if numbers["inter_task"]:
        rows = [[name, f"{entry['base']:.3f}", f"{entry['mean']:.3f} [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]",
                 ", ".join(f"{value:.3f}" for value in entry["seeds"]),
                 f"{sum(entry['generalizes'])} of {len(entry['seeds'])}"] for name, entry in numbers["inter_task"].items()]
        parts += ["## Inter-task generalization: mean performance over new pairs",
                  lines(["regime", "base", "mean", "each seed", "above epsilon"], rows)]
    if numbers["labels"]:
        rows = [[name, str(entry["rows"]), f"{entry['right']:.3f}", f"{entry['auroc']:.3f}", f"{entry['well_formed']:.3f}"]
                for name, entry in numbers["labels"].items()]
        parts += ["## Self labels", lines(["run", "rows", "right", "AUROC", "well-formed"], rows)]
    for title, key, name in (("Share of instruction rows", "fraction", "share"), ("Training tasks, examples fixed", "tasks", "tasks")):
        if points := numbers["dilution"][key]:
            groups = [group for group in points[0] if group != "x"]
            rows = [[f"{point['x']:g}", *(effect(point[group]) if group in point else "-" for group in groups)] for point in points]
            parts += [f"## {title}", lines([name, *groups], rows)]
    if table := numbers["transfer"]:
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        parts += ["## Transfer: trained on one domain (row), uplift on each (column)",
                  lines(["", *columns], [[row, *(f"{entries[column]['mean']:+.2f}" if column in entries else "-" for column in columns)]
                                         for row, entries in table.items()])]
    if numbers["scarce"]:
        rows = [["all" if point["k"] is None else str(point["k"]), point["start"],
                 f"{point['mean']:.3f} [{point['ci95'][0]:.3f}, {point['ci95'][1]:.3f}]"] for point in numbers["scarce"]]
        parts += ["## Scarce labels: AUROC on a new domain after k labelled rows of it", lines(["k", "from", "AUROC"], rows)]
    if numbers["baselines"]:
        rows = [[name, where, f"{entry['auroc']:.3f} [{entry['ci95'][0]:.3f}, {entry['ci95'][1]:.3f}]", f"{entry['uplift']:+.3f}",
                 f"{entry['base_performance']:.3f}", f"{entry['performance']:.3f}"]
                for name, entries in numbers["baselines"].items() for where, entry in entries.items()]
        parts += ["## Baselines", lines(["baseline", "split", "AUROC", "over the base", "base's performance", "its performance"], rows)]
    return "\n\n".join(parts) + "\n"