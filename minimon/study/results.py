"""Finished cells -> the numbers of results.json and the tables of results.md. How an effect is computed: findings.py."""

import hashlib

from minimon.study.baselines import baselines, criterion
from minimon.study.cells import CORE
from minimon.study.findings import Place, Run, answers, level, level_of, old_question, uplift, verdict
from minimon.tasks import Mixture

QUESTIONS = {  # number -> title, and the answer with its verb left open
    1: ("New domains, new prompts", "Classification training {} AUROC on new domains with new prompts"),
    2: ("Changed prompts on trained domains", "Classification training {} AUROC under changed prompts"),
    3: (
        "With instruction-following training",
        "Instruction rows among the others {} AUROC under changed prompts",
    ),
    4: ("With thinking", "Classification training {} AUROC when the model reasons first"),
    5: ("Summaries", "Classification training {} AUROC from the model's summaries"),
    6: ("Labels of the model's own", "Training on labels from its own thinking {} AUROC on new domains"),
}
CURVES = {  # of numbers["dilution"] -> title
    "fraction": "Share of instruction rows",
    "tasks": "Training tasks, the number of rows fixed",
    "rows": "Training rows a task",
    "bases": "Bases",
}
VERBS = {"more": "raises", "less": "lowers", "not shown": "does not measurably change"}


def results(runs: list[Run], baseline_numbers: dict | None = None, trained: dict | None = None) -> dict:
    """What results.json holds. trained: see `trained_labels`."""
    regimes = by_label(runs, "regime")
    found = answers(regimes)
    shared = [run for run in runs if run.cell.kind in ("regime", "share") and run.cell.x is not None]
    bases = regimes.get("none", []) + [run for run in runs if run.cell.kind == "base"]
    return {
        "questions": questions(found),
        "answers": found,
        "regimes": {name: regime_table(of_one) for name, of_one in regimes.items()},
        "seeds": {name: len(of_one) for name, of_one in regimes.items()},
        "old_question": {name: old_question(of_one, trained or {}) for name, of_one in regimes.items()},
        "inter_task": {name: inter_task(of_one) for name, of_one in regimes.items() if is_judged(of_one)},
        "summary_references": references(regimes.get("none", [])),
        "labels": {run.cell.name: run.report["labels"] for run in runs if "labels" in run.report},
        "dilution": {
            "fraction": curve(shared) if len({run.cell.x for run in shared}) > 2 else [],
            "tasks": curve(of_kind(runs, "tasks")),
            "rows": curve(of_kind(runs, "rows")),
            "bases": curve(bases, by="model") if len({run.cell.model for run in bases}) > 1 else [],
        },
        "transfer": transfer(by_label(runs, "transfer")),
        "scarce": scarce(of_kind(runs, "scarce"), regimes.get("none", [])),
        "baselines": baseline_numbers or {},
    }


def of_kind(runs: list[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.cell.kind == kind]


def by_label(runs: list[Run], kind: str) -> dict[str, list[Run]]:
    found = {}
    for run in of_kind(runs, kind):
        found.setdefault(run.cell.label, []).append(run)
    return found


def regime_table(runs: list[Run]) -> dict:
    """ "split / group" -> base, adapter and uplift in AUROC and in performance."""
    table = {}
    for place in runs[0].places():
        table[str(place)] = {}
        for key in ("auroc", "performance"):
            sides = {
                "base": level(runs[:1], "base", place, key),
                "adapter": level(runs, "adapter", place, key),
            }
            table[str(place)][key] = {**sides, "uplift": uplift(runs, place, key)}
    return table


def is_judged(runs: list[Run]) -> bool:
    return all("inter_task" in run.report for run in runs)


def inter_task(runs: list[Run]) -> dict:
    """Mean performance over new pairs: of the base, and of each seed's adapter."""
    reports = [run.report["inter_task"] for run in runs]
    mean = level(runs, "adapter", Place("new_domain"), "performance")
    generalizes = [report["generalizes"] for report in reports]
    return {
        "base": reports[0]["base_mean"],
        "epsilon": reports[0]["epsilon"],
        "generalizes": generalizes,
        **mean,
    }


def references(plain: list[Run]) -> dict:
    """What summaries stand between: AUROC of the base on the whole transcript, and on nothing."""
    for run in plain:
        if "summary" in run.report["splits"]:
            return run.report["splits"]["summary"]["mean"].get("references", {})
    return {}


def curve(runs: list[Run], by: str = "x") -> list[dict]:
    """A point for each value of a field of the cells: {"x", "split / group": uplift}."""
    points = {}
    for run in runs:
        points.setdefault(getattr(run.cell, by), []).append(run)
    found = []
    for x in sorted(points) if by == "x" else points:
        places = [place for place in points[x][0].places() if place.split in CORE]
        found.append({"x": x, **{str(place): uplift(points[x], place) for place in places}})
    return found


def transfer(by_domain: dict[str, list[Run]]) -> dict:
    """Uplift in AUROC on each domain (column) of training on one (row)."""
    table = {}
    for trained, runs in by_domain.items():
        turned = [Run(run.cell, domains_of(run)) for run in runs]
        table[trained] = {domain: uplift(turned, Place(domain)) for domain in turned[0].scores}
    return table


def domains_of(run: Run) -> dict:
    found = {}
    for split in run.scores:
        for task in run.tasks(Place(split)):
            found.setdefault(task.domain, {"": []})[""].append(task)
    return found


def scarce(runs: list[Run], plain: list[Run]) -> list[dict]:
    """AUROC after training on k labelled rows of a held-out domain, mean over domains and seeds; k None: all, 0: no such training."""
    place, points, before = Place("trained"), {}, {}
    for run in runs:
        points.setdefault((run.cell.x, run.cell.start), []).append(run.level("adapter", place))
        before[run.cell.label, run.cell.seed] = {task.task for task in run.tasks(place)}
    for run in plain:
        for (domain, seed), names in before.items():
            same = [
                task
                for task in run.tasks(Place("new_domain"))
                if task.task in names and task.domain == domain
            ]
            if seed == run.cell.seed and same:
                untrained = Run(run.cell, {"trained": {"": same}})
                for start in ("base", "adapter"):
                    points.setdefault((0, start), []).append(untrained.level(start, place))
    found = []
    for k, start in sorted(points, key=lambda point: (point[0] is None, point[0] or 0, point[1])):
        found.append({"k": k, "start": start, **level_of(points[k, start])})
    return found


def measure_baselines(model, tokenizer, mixture: Mixture) -> dict:
    """name -> "split / group" -> AUROC, its uplift over the base, and performance."""
    found = {}
    for name, scores in baselines(model, tokenizer, mixture).items():
        found[name] = {}
        for place, entry in regime_table([Run(None, scores)]).items():
            auroc, performance = entry["auroc"], entry["performance"]
            found[name][place] = {
                "base": auroc["base"]["mean"],
                "auroc": auroc["adapter"]["mean"],
                "ci95": auroc["adapter"]["ci95"],
                "uplift": auroc["uplift"]["mean"],
                "uplift_ci95": auroc["uplift"]["ci95"],
                "performance": performance["adapter"]["mean"],
                "base_performance": performance["base"]["mean"],
            }
    return found


def trained_labels(mixture: Mixture) -> dict[str, dict[str, int]]:
    """Task of new_prompt -> hash of a text, as in scores.jsonl -> its label under the trained question.

    Of several questions trained on these texts: one of the same criterion, else the first with most of the texts."""
    found = {}
    for tasks in mixture.splits.get("new_prompt", {}).values():
        for task in tasks:
            texts, best = {row.text for row in task.rows}, (0, False)
            for other in mixture.train:
                labels = {hash_of(row.text): row.label for row in other.rows if row.text in texts}
                rank = (len(labels), criterion(other) == criterion(task))
                if rank > best:
                    best, found[task.name] = rank, labels
    return found


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def questions(found: list[dict]) -> list[dict]:
    """A row for each of the six questions: the answer in a sentence, its number with interval, and the verdict."""
    rows = []
    for number, (title, sentence) in QUESTIONS.items():
        asked = [answer for answer in found if answer["question"] == number and answer["expected"]]
        if asked:
            whole, *others = [answer for answer in asked if answer["group"] is None]
            about = {"question": number, "title": title, "verdict": verdict(asked)}
            groups = [
                answer for answer in asked if answer["group"] and answer["comparison"] == whole["comparison"]
            ]
            detail = "; ".join(f"{answer['measure']} {effect(answer)}" for answer in [*groups, *others])
            about["answer"] = sentence.format(VERBS[whole["verdict"]]) + (f" ({detail})" if detail else "")
            rows.append({**about, "mean": whole["mean"], "ci95": whole["ci95"]})
    return rows


# ---- text ----------------------------------------------------------------------------------------------------------


def text(numbers: dict) -> str:
    """results.md"""
    seeds = ", ".join(f"{name} {count}" for name, count in numbers["seeds"].items())
    intro = f"Uplift in AUROC; 95% intervals over seeds ({seeds}), and over transcripts or over tasks, whichever is wider."
    rows = [
        [f"{row['question']}. {row['title']}", row["answer"], effect(row), row["verdict"]]
        for row in numbers["questions"]
    ]
    tables = [table("The six questions", ["question", "answer", "effect", "verdict"], rows)]
    for number, (title, _) in QUESTIONS.items():
        of_one = [answer for answer in numbers["answers"] if answer["question"] == number]
        rows = [[a["measure"], effect(a), effect(a, "transcripts_ci95"), a["verdict"]] for a in of_one]
        tables.append(
            table(f"{number}. {title}", ["measured", "effect", "over transcripts alone", "shown"], rows)
        )
    rows = []
    for name, entry in numbers["inter_task"].items():
        above = f"{sum(entry['generalizes'])} of {len(entry['seeds'])}"
        rows.append([name, f"{entry['base']:.3f}", effect(entry, sign=""), above])
    title = "Inter-task generalization: mean performance over new pairs"
    tables.append(table(title, ["regime", "base", "mean", "above epsilon"], rows))
    old = {
        name: {place: entry["adapter"] for place, entry in places.items()}
        for name, places in numbers["old_question"].items()
    }
    tables.append(
        grid(
            "Old-question share: pairs that get the trained question's label where the two differ",
            "",
            old,
            "",
        )
    )
    rows = []
    for name, entry in numbers["labels"].items():
        rows.append(
            [name, str(entry["rows"]), *(f"{entry[key]:.3f}" for key in ("right", "auroc", "well_formed"))]
        )
    tables.append(table("Self labels", ["run", "rows", "right", "AUROC", "well-formed"], rows))
    for key, title in CURVES.items():
        points = {
            f"{point['x']}": {place: point[place] for place in point if place != "x"}
            for point in numbers["dilution"][key]
        }
        tables.append(grid(title, key, points))
    tables.append(
        grid("Transfer: trained on one domain (row), uplift on each (column)", "", numbers["transfer"])
    )
    few = {}
    for point in numbers["scarce"]:
        few.setdefault("all" if point["k"] is None else f"{point['k']}", {})[f"from the {point['start']}"] = (
            point
        )
    tables.append(grid("Scarce labels: AUROC on a new domain after k labelled rows of it", "k", few, ""))
    rows = []
    for name, places in numbers["baselines"].items():
        for place, entry in places.items():
            auroc = {"mean": entry["auroc"], "ci95": entry["ci95"]}
            others = [f"{entry[key]:.3f}" for key in ("uplift", "base_performance", "performance")]
            rows.append([name, place, effect(auroc, sign=""), *others])
    header = ["baseline", "split", "AUROC", "over the base", "base's performance", "its performance"]
    tables.append(table("Baselines", header, rows))
    return "\n\n".join(["# Results of the study", intro, *filter(None, tables)]) + "\n"


def effect(entry: dict, key: str = "ci95", sign: str = "+") -> str:
    low, high = entry[key]
    return f"{entry['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def grid(title: str, corner: str, rows: dict[str, dict[str, dict]], sign: str = "+") -> str:
    """Row name -> column name -> effect."""
    columns = list(dict.fromkeys(column for entries in rows.values() for column in entries))
    cells = []
    for name, entries in rows.items():
        cells.append(
            [name, *(effect(entries[column], sign=sign) if column in entries else "-" for column in columns)]
        )
    return table(title, [corner, *columns], cells)


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A heading and a table in markdown; nothing without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join([f"## {title}\n", *lines]) if rows else ""
