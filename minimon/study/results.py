"""Finished cells -> the numbers of results.json and the tables of results.md; effects are computed in findings.py."""

from minimon.report.scores import text_hash
from minimon.study.baselines import baselines
from minimon.study.cells import CORE
from minimon.study.findings import Place, Run, answers, difference, level, old_question, uplift, verdict
from minimon.tasks import Mixture, Task

QUESTIONS = {  # number -> title, and the answer with its verb left open
    1: ("New domains, new prompts", "Classification training {} AUROC on new domains with new prompts"),
    2: ("Changed prompts on trained domains", "Classification training {} AUROC under changed prompts"),
    3: (
        "With instruction-following training",
        "Instruction rows among the others {} AUROC under changed prompts",
    ),
    4: ("With thinking", "Classification training {} AUROC where the model reasons first"),
    5: ("Summaries", "Classification training {} AUROC from the model's summaries"),
    6: ("Labels of the model's own", "Training on labels from its own thinking {} AUROC on new domains"),
}
VERBS = {"more": "raises", "less": "lowers", "not shown": "does not measurably change"}
CURVES = {
    "fraction": "Share of instruction rows",
    "tasks": "Training tasks, the number of rows fixed",
    "rows": "Training rows a task",
    "bases": "Bases",
}


def results(runs: list[Run], baseline_numbers: dict, trained: dict) -> dict:
    """What results.json holds. trained: see `trained_labels`."""
    regimes = by_label(runs, "regime")
    plain, found = regimes.get("none", []), answers(regimes)
    shares = [run for run in runs if run.cell.kind in ("regime", "share") and run.cell.x is not None]
    bases = [run for run in runs if run.cell.kind == "base"]
    return {
        "questions": questions(found),
        "answers": found,
        "regimes": {name: regime_table(of_one) for name, of_one in regimes.items()},
        "seeds": {name: len(of_one) for name, of_one in regimes.items()},
        "old_question": {name: old_question(of_one, trained) for name, of_one in regimes.items()},
        "inter_task": {name: inter_task(of_one) for name, of_one in regimes.items() if is_judged(of_one)},
        "summary_references": references(plain),
        "labels": {run.cell.name: run.report["labels"] for run in runs if "labels" in run.report},
        "dilution": {
            "fraction": curve(shares) if len({run.cell.x for run in shares}) > 2 else [],
            "tasks": curve(run for run in runs if run.cell.kind == "tasks"),
            "rows": curve(run for run in runs if run.cell.kind == "rows"),
            "bases": curve([*plain, *bases], by="model") if bases else [],
        },
        "transfer": transfer(by_label(runs, "transfer")),
        "scarce": scarce([run for run in runs if run.cell.kind == "scarce"], plain),
        "baselines": baseline_numbers,
    }


def by_label(runs: list[Run], kind: str) -> dict[str, list[Run]]:
    found = {}
    for run in runs:
        if run.cell.kind == kind:
            found.setdefault(run.cell.label, []).append(run)
    return found


def questions(found: list[dict]) -> list[dict]:
    """A row for each question: the answer in a sentence, its number with interval, and the verdict."""
    rows = []
    for number, (title, sentence) in QUESTIONS.items():
        asked = [answer for answer in found if answer["question"] == number and answer["expected"]]
        whole = [answer for answer in asked if answer["group"] is None]
        if whole:
            others = "; ".join(
                f"{answer['measure']} {shown(answer)}" for answer in asked if answer is not whole[0]
            )
            answer = sentence.format(VERBS[whole[0]["verdict"]]) + (f" ({others})" if others else "")
            row = {
                "question": number,
                "title": title,
                "answer": answer,
                "mean": whole[0]["mean"],
            }
            rows.append({**row, "ci95": whole[0]["ci95"], "verdict": verdict(asked)})
    return rows


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
    about = {"base": reports[0]["base_mean"], "epsilon": reports[0]["epsilon"]}
    about["generalizes"] = [report["generalizes"] for report in reports]
    return {**about, **level(runs, "adapter", Place("new_domain"), "performance")}


def references(plain: list[Run]) -> dict:
    """What bounds summaries: AUROC of the base on the whole transcript, and on nothing."""
    for run in plain:
        if "summary" in run.report["splits"]:
            return run.report["splits"]["summary"]["mean"].get("references", {})
    return {}


def curve(runs, by: str = "x") -> list[dict]:
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
        regrouped = [Run(run.cell, domains_of(run)) for run in runs]
        table[trained] = {domain: uplift(regrouped, Place(domain)) for domain in regrouped[0].scores}
    return table


def domains_of(run: Run) -> dict:
    found = {}
    for split in run.scores:
        for task in run.tasks(Place(split)):
            found.setdefault(task.domain, {"": []})[""].append(task)
    return found


def scarce(runs: list[Run], plain: list[Run]) -> list[dict]:
    """AUROC after training on k labelled rows of a held-out domain, mean over domains and seeds. k None: all; 0: none."""
    place, levels, tasks = Place("trained"), {}, {}
    for run in runs:
        levels.setdefault((run.cell.x, run.cell.start), []).append(run.level("adapter", place))
        tasks[run.cell.label, run.cell.seed] = {task.task for task in run.tasks(place)}
    for run in plain:
        for (domain, seed), names in tasks.items():
            same = [task for task in domains_of(run).get(domain, {"": []})[""] if task.task in names]
            before = Run(run.cell, {"trained": {"": same}})
            for start in ("base", "adapter") if same and seed == run.cell.seed else ():
                levels.setdefault((0, start), []).append(before.level(start, place))
    counts = sorted(levels, key=lambda point: (point[0] is None, point[0] or 0, point[1]))
    return [{"k": k, "start": start, **difference(levels[k, start])} for k, start in counts]


def measure_baselines(model, tokenizer, mixture: Mixture) -> dict:
    """name -> "split / group" -> AUROC, its uplift over the base, and performance."""
    found = {}
    for name, scores in baselines(model, tokenizer, mixture).items():
        found[name] = {}
        for place, entry in regime_table([Run(None, scores)]).items():
            auroc, performance = entry["auroc"], entry["performance"]
            flat = {
                "base": auroc["base"]["mean"],
                "auroc": auroc["adapter"]["mean"],
                "ci95": auroc["adapter"]["ci95"],
            }
            flat |= {"uplift": auroc["uplift"]["mean"], "uplift_ci95": auroc["uplift"]["ci95"]}
            flat |= {
                "performance": performance["adapter"]["mean"],
                "base_performance": performance["base"]["mean"],
            }
            found[name][place] = flat
    return found


def trained_labels(mixture: Mixture) -> dict[str, dict[str, int]]:
    """Task of new_prompt -> hash of a text, as in scores.jsonl -> the answer that the trained question asks for.

    Of several questions trained on these texts: the one with most of them, and of those one of the same criterion."""
    found = {}
    for tasks in mixture.splits.get("new_prompt", {}).values():
        for task in tasks:
            texts, most = {row.text for row in task.rows}, (0, False)
            for other in mixture.train:
                answers = same_words(other, task)
                old = {text_hash(row.text): answers[row.label] for row in other.rows if row.text in texts}
                rank = (len(old), other.criterion == task.criterion)
                if rank > most:
                    most, found[task.name] = rank, old
    return found


def same_words(old: Task, new: Task) -> list[int]:
    """Label of the old task -> the new one's that bears the same word; of other words, the one in the same place."""
    words = list(new.labels)
    return [words.index(word) if word in words else place for place, word in enumerate(old.labels)]


# ---- text --------------------------------------------------------------------------------------------------


def text(numbers: dict) -> str:
    """results.md"""
    seeds = ", ".join(f"{name} {count}" for name, count in numbers["seeds"].items())
    intro = f"Uplift in AUROC; 95% intervals over seeds ({seeds}), and over transcripts or tasks, whichever is wider."
    six = {}
    for row in numbers["questions"]:
        six[f"{row['question']}. {row['title']}"] = {
            "answer": row["answer"],
            "effect": row,
            "verdict": row["verdict"],
        }
    tables = [grid("The six questions", "question", six)]
    for number, (title, _) in QUESTIONS.items():
        rows = {}
        for answer in numbers["answers"]:
            if answer["question"] == number:
                these = {"mean": answer["mean"], "ci95": answer["transcripts_ci95"]}
                rows[answer["measure"]] = {
                    "effect": answer,
                    "over transcripts": these,
                    "shown": answer["verdict"],
                }
        tables.append(grid(f"{number}. {title}", "measured", rows))
    judged = {}
    for name, entry in numbers["inter_task"].items():
        above = f"{sum(entry['generalizes'])} of {len(entry['seeds'])}"
        judged[name] = {
            "base": entry["base"],
            "mean": entry,
            "above epsilon": above,
        }
    tables.append(
        grid("Inter-task generalization: mean performance over new pairs", "regime", judged, sign="")
    )
    old = {}
    for name, places in numbers["old_question"].items():
        old[name] = {place: entry["adapter"] for place, entry in places.items()}
        old["base"] = {place: entry["base"] for place, entry in places.items()}
    title = "Old-question share: pairs that get the trained question's label, where the two labels differ"
    tables += [grid(title, "regime", old, sign=""), grid("Self labels", "run", numbers["labels"])]
    for key, title in CURVES.items():
        points = {str(point["x"]): {**point, "x": None} for point in numbers["dilution"][key]}
        tables.append(grid(title, key, points))
    tables.append(
        grid("Transfer: trained on one domain (row), uplift on each (column)", "", numbers["transfer"])
    )
    few = {}
    for point in numbers["scarce"]:
        few.setdefault("all" if point["k"] is None else str(point["k"]), {})[f"from the {point['start']}"] = (
            point
        )
    tables.append(grid("Scarce labels: AUROC on a new domain after k labelled rows of it", "k", few, sign=""))
    for name, places in numbers["baselines"].items():
        tables.append(grid(f"Baseline: {name}", "split", places))
    return "\n\n".join(["# Results of the study", intro, *filter(None, tables)]) + "\n"


def grid(
    title: str,
    corner: str,
    rows: dict[str, dict],
    sign: str = "+",
) -> str:
    """A heading and a table in markdown: row -> column -> what stands there. Nothing without rows."""
    columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if name != "x"]
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    for name, row in rows.items():
        lines.append([name, *(shown(row.get(column), sign) for column in columns)])
    return "\n".join([f"## {title}\n", *(f"| {' | '.join(line)} |" for line in lines)]) if rows else ""


def shown(value, sign: str = "+") -> str:
    """An effect with its interval, bounds, a number, or words."""
    if isinstance(value, dict):
        return f"{value['mean']:{sign}.3f} {shown(value['ci95'], sign)}"
    if isinstance(value, list):
        return f"[{value[0]:{sign}.3f}, {value[1]:{sign}.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
