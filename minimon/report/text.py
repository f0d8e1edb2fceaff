"""A report as text: table, verdict, how to read them, report.md. Strings only: the scripts print."""

from typing import NamedTuple

from minimon.metrics import fewest_negatives
from minimon.report.data import SIDES

HEADER = ["split", "tasks", "pairs", "performance", "AUROC", "uplift", "95% interval", "TPR@1%", "TPR@5%"]
LEGEND = [
    "performance, AUROC: base -> adapter; TPR: the adapter's, at an FPR of 1% and of 5%",
    "uplift: of AUROC; its interval is the wider of one over texts and one over tasks",
]
TASK_COLUMNS = {
    "perf": "performance",
    "AUROC": "auroc",
    "Brier": "brier",
    "ECE": "ece",
    "TPR at 5%": "tpr_at_5pct_fpr",
}
ATTACK_COLUMNS = {"change of P": "shift", "AUROC": "auroc", "AUROC, positives alone": "auroc_hidden"}
MANY_PASSES = 20  # over the training rows
MANY_COPIES = 0.1  # share of a split's rows
LEAST_MASS = 0.5  # of the probability at the answer, that the labels have
FEW_ROWS = 60  # of a split, below which an interval is too wide to read
LEARNED = 0.6  # AUROC on trained tasks


class Part(NamedTuple):
    """What one line of the table is about: a group of a split, or all of it."""

    split: str
    group: str  # "" for all of the split
    tasks: list[dict]
    numbers: dict  # base, adapter, uplift

    @property
    def name(self) -> str:
        return f"{self.split} / {self.group}" if self.group else self.split


def parts(report: dict) -> list[Part]:
    """Each split and its groups; a split of a single group is that group."""
    found = []
    for split, whole in report["splits"].items():
        groups = {task["group"] for task in whole["tasks"]}
        if len(groups) > 1 or "" in groups:
            found.append(Part(split, "", whole["tasks"], whole["mean"]))
        for group, numbers in whole["groups"].items():
            tasks = [task for task in whole["tasks"] if task["group"] == group]
            found.append(Part(split, group, tasks, numbers))
    return found


# ---- the table and the verdict


def number(value, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def interval(bounds, sign: str = "+") -> str:
    if bounds is None:
        return "-"
    low, high = bounds
    return f"[{number(low, sign)}, {number(high, sign)}]"


def cells(part: Part, report: dict) -> list[str]:
    """Of a base alone, without an adapter, what is the base's."""
    base, adapter, uplift = (part.numbers[key] for key in ("base", "adapter", "uplift"))
    measured = [
        f"{number(base['performance'])} -> {number(adapter['performance'])}",
        f"{number(base['auroc'])} -> {number(adapter['auroc'])}",
        number(uplift["auroc"], "+"),
        interval(uplift["headline_ci95"]),
    ]
    if report["adapter"] is None:
        bounds = interval(base["auroc_headline_ci95"], sign="")
        measured = [number(base["performance"]), number(base["auroc"]), "-", bounds]
    counts = [str(len(part.tasks)), str(sum(task["n"] for task in part.tasks))]
    return [*counts, *measured, number(adapter["tpr_at_1pct_fpr"]), number(adapter["tpr_at_5pct_fpr"])]


def table(report: dict) -> str:
    """What train.py prints: a line a split and, indented, a line a group; then the notes."""
    rows, above = [HEADER], None
    for part in parts(report):
        indented = part.group and part.split == above
        rows.append([f"  {part.group}" if indented else part.name, *cells(part, report)])
        above = part.split
    first, *others = widths_of(rows)
    lines = []
    for name, *rest in rows:
        padded = [cell.rjust(width) for cell, width in zip(rest, others)]
        lines.append("  ".join([name.ljust(first), *padded]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, *notes(report)])


def widths_of(rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows)]


def notes(report: dict) -> list[str]:
    """What the numbers of the table do not say."""
    lines = [*LEGEND]
    chances = [f"{split} {number(part['mean']['chance'])}" for split, part in report["splits"].items()]
    lines.append(f"chance: performance {', '.join(chances)}; AUROC 0.500; TPR the FPR")
    undefined = []
    for split, part in report["splits"].items():
        mean, tasks = part["mean"], part["tasks"]
        if part["rows_cut"]:
            rows = sum(task["n"] for task in tasks)
            lines.append(f"{split}: {part['rows_cut']} of {rows} rows were too long and lost their middle")
        if "well_formed" in mean["base"]:
            base, adapter = (number(mean[which]["well_formed"]) for which in SIDES)
            lines.append(f"{split}: well-formed {base} base, {adapter} adapter")
        for name, value in mean.get("references", {}).items():
            lines.append(f"{split}: AUROC of the base on {name} {number(value)}")
        undefined += [task for task in tasks if task["adapter"]["auroc"] is None]
    if undefined:
        first = undefined[0]
        why = first["adapter"]["undefined"]["auroc"]
        lines.append(f"AUROC is not defined for {len(undefined)} tasks, the first {first['task']}: {why}")
    for split, found in report.get("leakage", {}).items():
        near, rows = found["near_duplicates"], found["rows"]
        if near:
            warning = "warning: " if near > MANY_COPIES * rows else ""
            where = "on the other side of the split"
            advice = ""
            if warning and split != "instruct":
                advice = "; `group` in the task file keeps such rows on one side"
            lines.append(f"{warning}{split}: {near} of {rows} are near duplicates of what is {where}{advice}")
    return lines


def verdict_line(report: dict) -> str:
    part = report.get("inter_task")
    if part is None:
        return "inter-task generalization: not measured, there was no split new_domain"
    bounds = interval(part["headline_ci95"], sign="")
    whose = "the base's" if report["adapter"] is None else "the adapter's"
    return (
        f"inter-task generalization: {whose} mean performance {part['mean']:.3f} {bounds} over "
        f"{part['pairs']} new pairs, epsilon {part['epsilon']:g}: {'yes' if part['generalizes'] else 'no'} "
        f"(base {part['base_mean']:.3f}, chance {part['chance']:.3f})"
    )


# ---- reading it


MEANING = {
    "trained": "new texts of trained tasks",
    "new_domain": "new domains, new prompts",
    "new_prompt": "trained domains, changed prompts",
    "same_prompt": "new domains, a trained prompt",
    "thinking": "reasoning before the answer",
    "summary": "summaries, judged by the base",
}


def reading(report: dict) -> list[str]:
    """Sentences for a person: gains and losses, what a threshold would catch, and what may be wrong.

    Of report["training"] it reads, where they are there, "rows" (distinct training rows), "epochs" (passes
    over them) and "validation_loss", a list of [step, loss]."""
    splits, alone = report["splits"], report["adapter"] is None
    lines = [comparison(split, part, alone) for split, part in splits.items()]
    for split in ("new_domain", "same_prompt", "trained"):
        if split in splits:
            lines += [caught(split, splits[split], percent, alone) for percent in (1, 5)]
            break
    lines += answering(splits)
    lines += training(report.get("training", {}))
    auroc = splits["trained"]["mean"]["adapter"]["auroc"] if "trained" in splits else None
    if auroc is not None and auroc < LEARNED and not alone:
        lines.append(f"warning: AUROC {auroc:.3f} on its own tasks: not learned; more --steps, rows or --lr")
    return lines


def comparison(split: str, part: dict, alone: bool) -> str:
    name = f"{split} ({MEANING.get(split, 'more tasks')})"
    base, uplift, tasks = part["mean"]["base"], part["mean"]["uplift"], part["tasks"]
    if alone:
        bounds = interval(base["auroc_headline_ci95"], sign="")
        return f"{name}: AUROC {number(base['auroc'])} {bounds}, no adapter"
    if uplift["headline_ci95"] is None:
        return f"{name}: no AUROC to compare"
    low, high = uplift["headline_ci95"]
    finding = "no difference from its base is shown"
    if low > 0:
        finding = "better than its base"
    elif high < 0:
        finding = "worse than its base"
    line = f"{name}: {finding}, AUROC {number(uplift['auroc'], '+')} "
    if uplift["ci95_tasks"]:
        criteria = {task["criterion"] or task["task"] for task in tasks}
        several = f" of {len(criteria)} criteria" if 1 < len(criteria) < len(tasks) else ""
        line += f"{interval(uplift['ci95_tasks'])} over {len(tasks)} tasks{several}, "
    line += f"{interval(uplift['ci95'])} over the texts"
    rows = sum(task["n"] for task in tasks)
    if rows < FEW_ROWS:
        line += f"; {rows} rows tell little, {FEW_ROWS} give an interval worth reading"
    if split == "new_prompt" and high < 0:
        line += "; it may go on answering the trained question: mix in instructions (--instruct joint)"
    return line


def caught(split: str, part: dict, percent: int, alone: bool) -> str:
    """The share of positives above a threshold, and the negatives that it rests on."""
    base, adapter = (part["mean"][which][f"tpr_at_{percent}pct_fpr"] for which in SIDES)
    negatives = sum(task["n"] - task["positives"] for task in part["tasks"])
    start = f"{split}: a threshold at {percent}% FPR"
    if adapter is None:
        needed = fewest_negatives(percent / 100)
        return f"{split}: TPR at {percent}% FPR is given from {needed} negatives on, here are {negatives}"
    behind = f"{int(percent / 100 * negatives + 1e-9)} of {negatives} negatives lie above it"
    if not alone:
        behind = f"its base {base:.1%}; {behind}"
    warning = "warning: " if adapter < base else ""
    return f"{warning}{start} catches {adapter:.1%} of positives ({behind})"


def answering(splits: dict[str, dict]) -> list[str]:
    """Whether the model is about to answer with a label at all."""
    masses = []
    for split, part in splits.items():
        for task in part["tasks"]:
            if "label_mass" in task["adapter"]:
                masses.append((task["adapter"]["label_mass"], f"{task['task']} in {split}"))
    if not masses:
        return []
    least, where = min(masses)
    low = sum(mass < LEAST_MASS for mass, _ in masses)
    if not low:
        share = min(least, 0.999)
        return [f"answers with the labels: they have at least {share:.1%} of the probability in each task"]
    return [
        f"warning: in {low} of {len(masses)} tasks the labels have less than half of the probability at the "
        f"answer (least for {where}, {least:.1%}): it is about to write something else. Let the prompt name "
        "the label words, see train.py --show TASK, and train longer, with --loss vocab"
    ]


def training(facts: dict) -> list[str]:
    """Whether it was trained long enough, or too long."""
    lines = []
    if facts.get("epochs"):
        passes = f"{facts['epochs']:.1f} passes over {facts['rows']} training rows"
        line = f"trained for {passes}"
        if facts["epochs"] > MANY_PASSES:
            line = f"warning: {passes}: it may know them by heart; take fewer --steps, or more rows"
        lines.append(line)
    losses = facts.get("validation_loss", [])
    if len(losses) > 1:
        (first_step, first), (_, last) = losses[0], losses[-1]
        best_step, best = min(losses, key=lambda point: point[1])
        course = f"{first:.3f} at step {first_step}, {best:.3f} at step {best_step}, {last:.3f} at last"
        lines.append(f"validation loss {course}")
        if last > 1.1 * best:
            lines.append(f"warning: worse after step {best_step}: take fewer --steps, or --stop-early")
        elif len(losses) > 2 and last < 0.97 * losses[-2][1]:
            lines.append("validation loss was still falling: more --steps may help")
    return lines


def closing_lines(report: dict, directory, quick: bool = False) -> list[str]:
    """What train.py says at its end."""
    run = report["run"]
    cost = (
        f"{run['train_seconds'] + run['evaluate_seconds']:.0f} s and {run['peak_memory_gb']:.1f} GB of memory"
    )
    lines = ["", table(report), "", f"report and adapter in {directory}, after {cost}", *reading(report)]
    lines.append(f"the texts it got most wrong, and every figure: {directory}/report.html")
    if quick:
        lines.append(
            "next: python train.py for all of it, your own task with --mixture, a real model with --model"
        )
    elif "inter_task" not in report:
        lines.append(f"next: a threshold, with eval.py --adapter {directory} --calibrate TASK")
    return [*lines, verdict_line(report)]


# ---- report.md and report.html


class Section(NamedTuple):
    title: str
    text: str = ""
    table: list[list[str]] = []  # its header, then its rows
    points: list[str] = []


def sections(report: dict) -> list[Section]:
    """What report.md and report.html both say. The title of the first is that of the page."""
    splits = [HEADER, *([part.name, *cells(part, report)] for part in parts(report))]
    title = f"{report['model']}, seed {report['seed']}"
    if directory := report["run"].get("directory"):
        title = f"{directory}: {title}"
    found = [
        Section(title, verdict_line(report) + ".", splits, notes(report)),
        Section("Reading your result", points=reading(report)),
    ]
    for split, part in report["splits"].items():
        found.append(Section(split, table=task_table(part["tasks"])))
    if "attacks" in report:
        text = (
            f"Written into {report['attacks'][0]['rows']} pairs of new_domain: the mean change of P(positive), "
            "AUROC where all rows carry it, AUROC where the positives alone do."
        )
        found.append(Section("Attacks", text, attack_table(report["attacks"])))
    return found


def task_table(tasks: list[dict]) -> list[list[str]]:
    rows = [["task", "group", "n", "positives", *side_header(TASK_COLUMNS), "uplift", "95% interval"]]
    for task in tasks:
        about = [task["task"], task["group"], str(task["n"]), str(task["positives"])]
        uplift = [number(task["uplift"]["auroc"], "+"), interval(task["uplift"]["ci95"])]
        rows.append([*about, *side_cells(task, TASK_COLUMNS), *uplift])
    return rows


def attack_table(attacks: list[dict]) -> list[list[str]]:
    rows = [["attack", *side_header(ATTACK_COLUMNS)]]
    return rows + [[attack["attack"], *side_cells(attack, ATTACK_COLUMNS)] for attack in attacks]


def side_header(columns: dict[str, str]) -> list[str]:
    return [f"{name} {which}" for name in columns for which in SIDES]


def side_cells(entry: dict, columns: dict[str, str]) -> list[str]:
    cells = []
    for key in columns.values():
        cells += [number(entry[which][key], "+" if key == "shift" else "") for which in SIDES]
    return cells


def attack_lines(report: dict) -> str:
    """The table of attacks on the rows of new_domain."""
    return grid(attack_table(report["attacks"]))


def markdown(report: dict) -> str:
    blocks = []
    for title, text, table, points in sections(report):
        bullets = "\n".join(f"- {point}" for point in points)
        cells = grid(table) if table else ""
        blocks += [f"{'##' if blocks else '#'} {title}", text, cells, bullets]
    return "\n\n".join(filter(None, blocks)) + "\n"


def grid(rows: list[list[str]]) -> str:
    """A table in markdown, its header first; columns as wide as their cells, so that it reads as well in a terminal."""
    widths = [max(3, width) for width in widths_of(rows)]
    lines = []
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)
