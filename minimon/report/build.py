"""Scores -> report.json, report.md, the table and the verdict line. Strings only: the scripts print."""

import hashlib
import json
from pathlib import Path

import numpy as np

from minimon.report.figure import RATES, reliability_rows, roc_rows, uplift_text, write_figure
from minimon.files import read_jsonl, write_json, write_text
from minimon.metrics import Scores, chance, inter_task_generalization, intervals, mean_measures, measures, performance


def build_report(scores: dict[str, dict[str, list[Scores]]], *, model: str, adapter: str, seed: int, epsilon: float, run: dict,
                 **more: dict | None) -> dict:
    """scores: split -> group -> tasks. Everything but "run" is a function of the scores and the settings.

    more: tables that are there in some runs: `labels` on self labels, `leakage` on near duplicates, `attacks`."""
    report = {"model": model, "adapter": adapter, "seed": seed, "epsilon": epsilon, "splits": {}}
    for split, groups in scores.items():
        tasks = [task for group in groups.values() for task in group]
        report["splits"][split] = {
            "tasks": [{"task": task.task, "domain": task.domain, "group": group, "n": len(task.labels),
                       "positives": int(task.positives.sum()), **compared([task])} for group in groups for task in groups[group]],
            "rows_cut": sum(int((task.left_out > 0).sum()) for task in tasks if task.left_out is not None),
            "mean": compared(tasks), "groups": {group: compared(members) for group, members in groups.items() if group}}
    for key, split in (("inter_task", "new_domain"), ("intra_task", "trained")):
        if any(len(task.labels) for group in scores.get(split, {}).values() for task in group):
            report[key] = verdict([task for group in scores[split].values() for task in group], epsilon)
    return {**report, **{key: table for key, table in more.items() if table}, "run": run}


def compared(tasks: list[Scores]) -> dict:
    """Base and adapter on one task or the mean of several, and adapter minus base with its interval."""
    base, adapter = ((measures(tasks[0], which) if len(tasks) == 1 else mean_measures(tasks, which)) for which in ("base", "adapter"))
    bounds = intervals(tasks)
    for which, side in (("base", base), ("adapter", adapter)):
        side |= {f"{key}_ci95": bounds[key][which] for key in ("performance", "auroc")}
    def gain(key):
        return adapter[key] - base[key] if None not in (adapter[key], base[key]) else None

    references = {name: mean_measures(tasks, name)["auroc"] for name in tasks[0].references}
    return {"base": base, "adapter": adapter, "chance": chance(tasks), **({"references": references} if references else {}), "uplift": {
        "performance": gain("performance"), "auroc": gain("auroc"),
        "ci95": bounds["auroc"]["uplift"], "performance_ci95": bounds["performance"]["uplift"]}}


def verdict(tasks: list[Scores], epsilon: float) -> dict:
    """Mean performance over pairs against epsilon; ci95 is of the adapter's mean."""
    pairs = {which: [value for task in tasks for value in performance(task.of(which), task.labels)] for which in ("base", "adapter")}
    mean, generalizes = inter_task_generalization(pairs["adapter"], epsilon)
    return {"pairs": len(pairs["adapter"]), "base_mean": inter_task_generalization(pairs["base"], epsilon)[0], "mean": mean,
            "ci95": intervals(tasks)["performance"]["adapter"], "chance": chance(tasks), "epsilon": epsilon, "generalizes": generalizes}


def write_report(report: dict, directory, scores: dict[str, dict[str, list[Scores]]]) -> None:
    """scores.jsonl, report.md, the figure where matplotlib is there, and report.json last: with it a run is finished."""
    directory = Path(directory)
    write_scores(scores, directory / "scores.jsonl")
    write_text(directory / "report.md", markdown(report) + curves(report, scores))
    write_figure(report, directory / "report.png", scores)
    write_json(directory / "report.json", report)


def write_scores(scores: dict[str, dict[str, list[Scores]]], path) -> None:
    """A line a pair: what the report is computed from. "text" is a hash: equal texts are one cluster."""
    lines = []
    for split, groups in scores.items():
        for group, tasks in groups.items():
            for task in tasks:
                about = {"split": split, "group": group, "task": task.task, "domain": task.domain}
                for i, text in enumerate(task.clusters):
                    references = {name: rounded(P[i]) for name, P in task.references.items()}
                    lines.append(json.dumps({
                        **about, "text": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16], "label": int(task.labels[i]),
                        "base": rounded(task.base[i]), "adapter": rounded(task.adapter[i]),
                        **({"references": references} if references else {})}))
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_scores(path) -> dict[str, dict[str, list[Scores]]]:
    """What write_scores wrote, to six digits. Raises ValueError naming the file, and the line of what is no score."""
    tasks = {}
    for number, line in read_jsonl(path):
        names = [line.get(key) for key in ("split", "group", "task", "domain", "text")]
        if not all(isinstance(name, str) for name in names) or type(line.get("label")) is not int \
                or not isinstance(line.get("references", {}), dict):
            raise ValueError(f"{path}:{number}: expected the score of a pair, got {line!r}")
        tasks.setdefault(tuple(names[:4]), []).append(line)
    scores = {}
    for (split, group, task, domain), lines in tasks.items():
        try:
            label = np.array([line["label"] for line in lines], dtype=int)
            base, adapter = (np.array([line[key] for line in lines], dtype=float) for key in ("base", "adapter"))
            references = {name: np.array([line["references"][name] for line in lines], dtype=float)
                          for name in lines[0].get("references", ())}
            texts = np.array([line["text"] for line in lines], dtype=object)
            found = Scores(task, domain, label, texts, base, adapter, references=references)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: task {task!r}: expected P of each label for every pair, got an error: {error!r}") from error
        scores.setdefault(split, {}).setdefault(group, []).append(found)
    return scores


def rounded(P) -> list[float]:
    return [float(f"{value:.6g}") for value in P]


# ---- text ----------------------------------------------------------------------------------------------------------------


def number(value, signed=False) -> str:
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(bounds, signed=True) -> str:
    return "-" if bounds is None else f"[{number(bounds[0], signed)}, {number(bounds[1], signed)}]"


def summary_rows(report: dict) -> list[list[str]]:
    """A line a group of each split, then the split where it has several groups."""
    rows = []
    for split, part in report["splits"].items():
        entries = [(f"{split} / {group}", group, entry) for group, entry in part["groups"].items()]
        if len(part["groups"]) != 1:
            entries.append((split, None, part["mean"]))
        for name, group, entry in entries:
            tasks = [task for task in part["tasks"] if group in (None, task["group"])]
            rows.append([name, str(len(tasks)), str(sum(task["n"] for task in tasks)),
                         *(number(entry[which][key]) for key in ("performance", "auroc") for which in ("base", "adapter")),
                         number(entry["uplift"]["auroc"], True), interval(entry["uplift"]["ci95"]), number(entry["chance"])])
    return rows


HEADER = ["split", "tasks", "pairs", "perf base", "adapter", "AUROC base", "adapter", "uplift", "95% interval", "chance"]


def notes(report: dict) -> list[str]:
    """What the table does not say: how well-formed what the model wrote is, and what summaries stand between."""
    lines = []
    for split, part in report["splits"].items():
        base, adapter = part["mean"]["base"], part["mean"]["adapter"]
        if part.get("rows_cut"):
            rows = sum(task["n"] for task in part["tasks"])
            lines.append(f"{split}: {part['rows_cut']} of {rows} rows were too long and lost their middle")
        if "well_formed" in base:
            lines.append(f"{split}: well-formed {number(base['well_formed'])} base, {number(adapter['well_formed'])} adapter")
        if "references" in part["mean"]:
            lines[-1] += "".join(f"; AUROC of the base on {name} {number(value)}" for name, value in part["mean"]["references"].items())
    without = {task["task"]: task["adapter"]["undefined"]["auroc"] for part in report["splits"].values() for task in part["tasks"]
               if task["adapter"]["auroc"] is None}
    if without:
        lines.append(f"AUROC is not defined for {len(without)} tasks, the first {next(iter(without))}: {next(iter(without.values()))}")
    lines += [f"{split}: {found['near_duplicates']} of {found['rows']} are near duplicates of what is on the other side of the split"
              for split, found in report.get("leakage", {}).items() if found["near_duplicates"]]
    entries = [entry["adapter"] for part in report["splits"].values() for entry in part["tasks"]]
    masses = [entry["label_mass"] for entry in entries if "label_mass" in entry]
    if masses:
        lines.append(f"labels' share of the probability at the answer: {min(masses):.3f} or more in each task (adapter)")
    return lines


def table(report: dict) -> str:
    """What train.py prints: one line a group, AUROC uplift with its interval; then the notes."""
    rows = [HEADER, *summary_rows(report)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
             for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes(report)])


def attack_lines(report: dict) -> str:
    """The table of attacks on the rows of new_domain."""
    columns = (("shift", "change of P"), ("auroc", "AUROC"), ("auroc_hidden", "AUROC, positives alone"))
    rows = [[entry["attack"], *(number(entry[which][key], key == "shift") for key, _ in columns for which in ("base", "adapter"))]
            for entry in report["attacks"]]
    return lines(["attack", *(f"{name} {which}" for _, name in columns for which in ("base", "adapter"))], rows)


def verdict_line(report: dict) -> str:
    part = report.get("inter_task")
    if part is None:
        return "inter-task generalization: not measured, the mixture has no new_domain split"
    return (f"inter-task generalization: the adapter's mean performance {part['mean']:.3f} {interval(part['ci95'], False)} over "
            f"{part['pairs']} new pairs, epsilon {part['epsilon']:g}: {'yes' if part['generalizes'] else 'no'} "
            f"(base {part['base_mean']:.3f}, chance {part['chance']:.3f})")


def lines(header: list[str], rows: list[list[str]]) -> str:
    """A table in markdown, its columns as wide as their cells, so that it reads as well in a terminal."""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
                     for row in [header, ["-" * width for width in widths], *rows])


def curves(report: dict, scores: dict | None) -> str:
    parts = [f"## Uplift in AUROC, task by task\n\n```\n{uplift_text(report)}\n```"]
    if scores:
        parts += ["## ROC\n\nTPR at a given FPR, tasks pooled after ranking within each.",
                  lines(["split / group", "", "negatives", *(f"at {rate:.1%}" for rate in RATES)], roc_rows(scores)),
                  "## Reliability\n\nShare of positives among rows with P in a bin: equal to the mean P where P can be taken at its word.",
                  lines(["split", "P", *(f"{which} {key}" for which in ("base", "adapter") for key in ("rows", "mean P", "positive"))],
                        reliability_rows(scores))]
    return "\n" + "\n\n".join(parts) + "\n"


def markdown(report: dict) -> str:
    parts = [f"# {report['model']}, seed {report['seed']}", verdict_line(report) + ".", lines(HEADER, summary_rows(report)),
             "Uplift is adapter minus base in AUROC; intervals are paired bootstraps over transcripts.",
             *(f"- {line}" for line in notes(report))]
    columns = [f"{key} {which}" for key in ("perf", "AUROC", "Brier", "ECE") for which in ("base", "adapter")]
    header = ["task", "group", "n", "positives", *columns, "uplift", "95% interval"]
    for split, part in report["splits"].items():
        rows = [[task["task"], task["group"], str(task["n"]), str(task["positives"]),
                 *(number(task[which][key]) for key in ("performance", "auroc", "brier", "ece") for which in ("base", "adapter")),
                 number(task["uplift"]["auroc"], True), interval(task["uplift"]["ci95"])] for task in part["tasks"]]
        parts += [f"## {split}", lines(header, rows)]
    if "attacks" in report:
        parts += [f"## Attacks\n\nWritten into {report['attacks'][0]['rows']} pairs of new_domain: the mean change of P(positive), AUROC "
                  "where all rows carry it, AUROC where the positives alone do.", attack_lines(report)]
    return "\n\n".join(parts) + "\n"
