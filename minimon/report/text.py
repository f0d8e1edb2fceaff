"""A report as text: table, verdict, how to read them, report.md. Strings only: the scripts print."""

from typing import NamedTuple

from minimon.metrics import fewest_negatives
from minimon.report.data import SIDES

HEADER = ["split", "tasks", "pairs", "performance", "AUROC", "uplift", "95% interval", "TPR@1%", "TPR@5%"]
LEGEND = [
    "performance, AUROC: base -> adapter; TPR: the adapter's, at an FPR of 1% and of 5%",
    "uplift: of AUROC; its interval is the wider of one over transcripts and one over tasks",
]
MANY_PASSES = 20  # over the training rows
MANY_COPIES = 0.1  # share of a split's rows
LEAST_MASS = 0.5  # of the probability at the answer, that the labels have
LEARNED = 0.6  # AUROC on trained tasks


class Part(NamedTuple):
    """What one line of the table is about: a group of a split, or all of it."""

    split: str
    group: str  # "" for all of the split
    tasks: list[dict]
    numbers: dict  # base, adapter, uplift
    alone: bool  # a base without an adapter

    @property
    def name(self) -> str:
        return f"{self.split} / {self.group}" if self.group else self.split

    def count(self, key: str) -> int:
        return sum(task[key] for task in self.tasks)

    @property
    def negatives(self) -> int:
        return self.count("n") - self.count("positives")


def parts(report: dict) -> list[Part]:
    """Each split and its groups; a split of a single group is that group."""
    found = []
    for whole in wholes(report):
        groups = report["splits"][whole.split]["groups"]
        if {task["group"] for task in whole.tasks} != set(groups) or len(groups) > 1:
            found.append(whole)
        for group, numbers in groups.items():
            tasks = [task for task in whole.tasks if task["group"] == group]
            found.append(Part(whole.split, group, tasks, numbers, whole.alone))
    return found


def wholes(report: dict) -> list[Part]:
    alone = report["adapter"] is None
    return [Part(split, "", part["tasks"], part["mean"], alone) for split, part in report["splits"].items()]


# ---- the table and the verdict


def number(value, signed=False) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(bounds, signed=True) -> str:
    if bounds is None:
        return "-"
    return f"[{number(bounds[0], signed)}, {number(bounds[1], signed)}]"


def cells(part: Part) -> list[str]:
    base, adapter, uplift = (part.numbers[key] for key in ("base", "adapter", "uplift"))
    counts = [str(len(part.tasks)), str(part.count("n"))]
    rates = [number(adapter["tpr_at_1pct_fpr"]), number(adapter["tpr_at_5pct_fpr"])]
    if part.alone:
        bounds = interval(base["auroc_headline_ci95"], signed=False)
        return [*counts, number(base["performance"]), number(base["auroc"]), "-", bounds, *rates]
    performance = f"{number(base['performance'])} -> {number(adapter['performance'])}"
    auroc = f"{number(base['auroc'])} -> {number(adapter['auroc'])}"
    gain = [number(uplift["auroc"], signed=True), interval(uplift["headline_ci95"])]
    return [*counts, performance, auroc, *gain, *rates]


def table(report: dict) -> str:
    """What train.py prints: a line a split and, indented, a line a group; then the notes."""
    rows, above = [HEADER], None
    for part in parts(report):
        indented = part.group and part.split == above
        rows.append([f"  {part.group}" if indented else part.name, *cells(part)])
        above = part.split
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *rest in rows:
        columns = [name.ljust(widths[0])]
        columns += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(columns))
    lines.insert(1, "-" * len(lines[0]))
    for split, reason in report.get("not_measured", {}).items():
        lines.append(f"{split.ljust(widths[0])}  not measured: {reason}")
    return "\n".join([*lines, *notes(report)])


def notes(report: dict) -> list[str]:
    """What the numbers of the table do not say."""
    lines = [*LEGEND]
    chances = [f"{split} {number(part['mean']['chance'])}" for split, part in report["splits"].items()]
    lines.append(f"chance: performance {', '.join(chances)}; AUROC 0.500; TPR the FPR")
    undefined = []
    for split, part in report["splits"].items():
        base, adapter = part["mean"]["base"], part["mean"]["adapter"]
        if part["rows_cut"]:
            rows = sum(task["n"] for task in part["tasks"])
            lines.append(f"{split}: {part['rows_cut']} of {rows} rows were too long and lost their middle")
        if "well_formed" in base:
            shares = f"{number(base['well_formed'])} base, {number(adapter['well_formed'])} adapter"
            lines.append(f"{split}: well-formed {shares}")
        for name, value in part["mean"].get("references", {}).items():
            lines.append(f"{split}: AUROC of the base on {name} {number(value)}")
        undefined += [task for task in part["tasks"] if task["adapter"]["auroc"] is None]
    if undefined:
        first = undefined[0]
        why = first["adapter"]["undefined"]["auroc"]
        lines.append(f"AUROC is not defined for {len(undefined)} tasks, the first {first['task']}: {why}")
    for split, found in report.get("leakage", {}).items():
        if found["near_duplicates"]:
            share = f"{found['near_duplicates']} of {found['rows']}"
            lines.append(f"{split}: {share} are near duplicates of what is on the other side of the split")
    return lines


def verdict_line(report: dict) -> str:
    part = report.get("inter_task")
    if part is None:
        return "inter-task generalization: not measured, there was no split new_domain"
    bounds = interval(part["headline_ci95"], signed=False)
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

    Of report["training"] it reads, where they are there, "steps", "rows" (distinct training rows), "epochs"
    (passes over them) and "validation_loss", a list of [step, loss]."""
    splits = wholes(report)
    lines = [comparison(part) for part in splits]
    for split, reason in report.get("not_measured", {}).items():
        lines.append(f"{split}: not measured, {reason}")
    by_split = {part.split: part for part in splits}
    for split in ("new_domain", "same_prompt", "trained"):
        if split in by_split:
            lines += caught(by_split[split])
            break
    lines += answering(splits)
    lines += copied(report)
    return lines + training(report.get("training", {}), by_split.get("trained"))


def comparison(part: Part) -> str:
    name = f"{part.split} ({MEANING.get(part.split, 'more tasks')})"
    uplift = part.numbers["uplift"]
    bounds = uplift["headline_ci95"]
    if part.alone:
        base = part.numbers["base"]
        return f"{name}: AUROC {number(base['auroc'])} {interval(base['auroc_headline_ci95'], False)}, no adapter"
    if bounds is None:
        return f"{name}: no AUROC to compare"
    finding = "no difference from its base is shown"
    if bounds[0] > 0:
        finding = "better than its base"
    elif bounds[1] < 0:
        finding = "worse than its base"
    over = f"{interval(uplift['ci95'])} over the texts"
    if uplift["ci95_tasks"]:
        criteria = {task["criterion"] or task["task"] for task in part.tasks}
        tasks = f"{len(part.tasks)} tasks"
        if 1 < len(criteria) < len(part.tasks):
            tasks += f" of {len(criteria)} criteria"
        over = f"{interval(uplift['ci95_tasks'])} over {tasks}, {over}"
    line = f"{name}: {finding}, AUROC {number(uplift['auroc'], True)} {over}"
    if part.split == "new_prompt" and bounds[1] < 0:
        line += "; it may go on answering the trained question: mix in instructions (--instruct joint)"
    return line


def caught(part: Part) -> list[str]:
    """The share of positives above a threshold, and the negatives that it rests on."""
    lines = []
    for percent in (1, 5):
        base, adapter = (part.numbers[which][f"tpr_at_{percent}pct_fpr"] for which in SIDES)
        start = f"{part.split}: a threshold at {percent}% FPR"
        if adapter is None:
            needed = fewest_negatives(percent / 100)
            lines.append(f"{start} needs {needed} negatives and a positive, got {part.negatives} negatives")
        else:
            above = int(percent / 100 * part.negatives + 1e-9)
            behind = f"{above} of {part.negatives} negatives lie above it"
            compared = "" if part.alone else f"its base {base:.1%}; "
            warning = "warning: " if not part.alone and adapter < base else ""
            lines.append(f"{warning}{start} catches {adapter:.1%} of positives ({compared}{behind})")
    return lines


def copied(report: dict) -> list[str]:
    """Splits of which a good part is in the training texts, but for details."""
    lines = []
    for split, found in report.get("leakage", {}).items():
        if split in report["splits"] and found["near_duplicates"] > MANY_COPIES * found["rows"]:
            count = f"{found['near_duplicates']} of {found['rows']}"
            lines.append(
                f"warning: {split}: {count} texts are near duplicates of training texts; expect less on others"
            )
    return lines


def answering(splits: list[Part]) -> list[str]:
    """Whether the model is about to answer with a label at all."""
    masses = []
    for part in splits:
        for task in part.tasks:
            if "label_mass" in task["adapter"]:
                masses.append((task["adapter"]["label_mass"], f"{task['task']} in {part.split}"))
    if not masses:
        return []
    least, where = min(masses)
    low = sum(mass < LEAST_MASS for mass, _ in masses)
    if not low:
        return [
            f"answers with the labels: they have at least {min(least, 0.999):.1%} of the probability in each task"
        ]
    return [
        f"warning: in {low} of {len(masses)} tasks the labels have less than half of the probability at the "
        f"answer (least for {where}, {least:.1%}): it is about to write something else. Let the prompt name "
        "the label words, see train.py --show TASK, and train longer, with --loss vocab"
    ]


def training(facts: dict, trained: Part | None) -> list[str]:
    """Whether it was trained long enough, or too long."""
    lines = []
    epochs, rows, losses = facts.get("epochs"), facts.get("rows"), facts.get("validation_loss")
    if epochs is not None:
        passes = f"{epochs:.1f} passes over {rows or 'its'} training rows"
        lines.append(f"trained for {passes}")
        if epochs > MANY_PASSES:
            lines = [f"warning: {passes}: it may know them by heart; take fewer --steps, or more rows"]
    if losses:
        best_step, best = min(losses, key=lambda point: point[1])
        first, last = losses[0][1], losses[-1][1]
        course = f"{first:.3f} at step {losses[0][0]}, {best:.3f} at step {best_step}, {last:.3f} at last"
        if len(losses) == 1:
            course = f"{last:.3f} at step {best_step}, measured once"
        lines.append(f"validation loss {course}")
        if last > 1.1 * best:
            lines.append(f"warning: worse after step {best_step}: take fewer --steps, or --stop-early")
        elif len(losses) > 2 and last < 0.97 * losses[-2][1]:
            lines.append("validation loss was still falling: more --steps may help")
    auroc = trained.numbers["adapter"]["auroc"] if trained and not trained.alone else None
    if auroc is not None and auroc < LEARNED:
        lines.append(f"warning: AUROC {auroc:.3f} on its own tasks: not learned; more --steps, rows or --lr")
    return lines


# ---- report.md


def markdown(report: dict) -> str:
    names = [[part.name, *cells(part)] for part in parts(report)]
    for split, reason in report.get("not_measured", {}).items():
        names.append([split, f"not measured: {reason}"] + [""] * (len(HEADER) - 2))
    found = [f"# {report['model']}, seed {report['seed']}", verdict_line(report) + ".", grid(HEADER, names)]
    found.append("\n".join(f"- {line}" for line in notes(report)))
    found.append("## Reading your result\n\n" + "\n".join(f"- {line}" for line in reading(report)))
    for split, part in report["splits"].items():
        found += [f"## {split}", grid(TASK_HEADER, [task_cells(task) for task in part["tasks"]])]
    if "attacks" in report:
        rows = report["attacks"][0]["rows"]
        found.append(
            f"## Attacks\n\nWritten into {rows} pairs of new_domain: the mean change of P(positive), AUROC "
            "where all rows carry it, AUROC where the positives alone do."
        )
        found.append(attack_lines(report))
    return "\n\n".join(found) + "\n"


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table in markdown, its columns as wide as their cells, so that it reads as well in a terminal."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


TASK_COLUMNS = {
    "perf": "performance",
    "AUROC": "auroc",
    "Brier": "brier",
    "ECE": "ece",
    "TPR at 5%": "tpr_at_5pct_fpr",
}
TASK_HEADER = ["task", "group", "n", "positives"]
TASK_HEADER += [f"{name} {which}" for name in TASK_COLUMNS for which in SIDES]
TASK_HEADER += ["uplift", "95% interval"]


def task_cells(task: dict) -> list[str]:
    row = [task["task"], task["group"], str(task["n"]), str(task["positives"])]
    for key in TASK_COLUMNS.values():
        row += [number(task["base"][key]), number(task["adapter"][key])]
    return [*row, number(task["uplift"]["auroc"], True), interval(task["uplift"]["ci95"])]


def attack_lines(report: dict) -> str:
    """The table of attacks on the rows of new_domain."""
    columns = {"change of P": "shift", "AUROC": "auroc", "AUROC, positives alone": "auroc_hidden"}
    header, rows = ["attack"], []
    for name in columns:
        header += [f"{name} base", f"{name} adapter"]
    for entry in report["attacks"]:
        row = [entry["attack"]]
        for key in columns.values():
            row += [number(entry[which][key], key == "shift") for which in SIDES]
        rows.append(row)
    return grid(header, rows)
