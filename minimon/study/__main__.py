"""The study: regimes x seeds, then dilution, transfer, scarce labels and baselines; each cell a run of train.py in a directory of its own.

    python -m minimon.study                                # the shipped mixture on the shipped base; stopped, the same command goes on
    python -m minimon.study --model Qwen/Qwen3-0.6B --train "--device cuda --batch-size 64 --lr 2e-4"
    python -m minimon.study --results                      # of the cells that are there

Writes results.json, results.md, and study.png and transfer.png where matplotlib is installed.
"""

import json
import os
import random
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minimon.checkpoint import load_model
from minimon.run.cli import ROOT, one_line_errors, parse, setting, shipped
from minimon.files import read_json, write_json, write_text
from minimon.report import read_scores
from minimon.study.figures import write_figures
from minimon.study.results import measure_baselines, results
from minimon.tasks import Mixture, load_mixture
from minimon.tokenizer import load_tokenizer

PARTS = ("regimes", "dilution", "transfer", "scarce", "baselines")
REGIMES = {"none": (), "joint": ("--instruct", "joint"), "after": ("--instruct", "after"), "only": ("--instruct", "only"),
           "self": ("--labels", "self")}
FRACTIONS = (0.1, 0.5, 0.75)                   # of instruction rows, beside the mixture's own
TASK_COUNTS = (8, 32)                          # training tasks, beside all of them, at a fixed number of examples
LABELLED = (8, 32, 128)                        # rows of a new domain
SCARCE_TASKS, SCARCE_DOMAINS = 4, 3


@dataclass(frozen=True)
class Settings:
    model: str = setting("data/base", "checkpoint directory or hub id")
    mixture: str = setting("data/mixtures/default.toml", "what is trained and evaluated on")
    out: str = setting("runs/study", "directory of the cells and the results")
    parts: str = setting(",".join(PARTS), "what to measure, separated by commas")
    seeds: int = setting(5, "of each regime")
    side_seeds: int = setting(2, "of dilution, transfer and scarce labels")
    jobs: int = setting(1, "cells at a time; the cores are shared out among them")
    train: str = setting("", "more flags for every run of train.py, in quotes")
    results: bool = setting(False, "train nothing; results of the cells that are finished")


@dataclass(frozen=True)
class Cell:
    name: str
    flags: tuple[str, ...]
    after: str | None = None                   # a cell whose adapter this one starts from


def main(settings: Settings) -> int:
    parts = settings.parts.split(",")
    if set(parts) - set(PARTS) or min(settings.seeds, settings.side_seeds, settings.jobs) < 1:
        raise ValueError(f"expected --parts of {', '.join(PARTS)} and positive numbers of seeds and jobs; got {settings.parts!r}, "
                         f"{settings.seeds}, {settings.side_seeds}, {settings.jobs}")
    mixture, out = load_mixture(shipped(settings.mixture)), Path(settings.out)
    (out / "mixtures").mkdir(parents=True, exist_ok=True)
    cells = plan(settings, mixture, out, parts)
    if not settings.results:
        if not run_cells(cells, settings, out):
            print(f"\nstopped; the same command goes on in {out}")
            return 130
        if "baselines" in parts and not (out / "baselines.json").exists():
            model, tokenizer = load_model(shipped(settings.model)), load_tokenizer(shipped(settings.model))
            write_json(out / "baselines.json", measure_baselines(model, tokenizer, mixture))
    done = {cell.name: out / "cells" / cell.name for cell in cells if finished(out, cell)}
    found = results({name: (read_scores(path / "scores.jsonl"), read_json(path / "report.json")) for name, path in done.items()},
                    read_json(out / "baselines.json") if (out / "baselines.json").exists() else None,
                    mixture.instruct.fraction if mixture.instruct else None)
    about = {"model": settings.model, "mixture": settings.mixture, "train": settings.train, "cells": len(done), "planned": len(cells)}
    write_json(out / "results.json", {**about, **found["numbers"]})
    write_text(out / "results.md", found["text"])
    write_figures(found["numbers"], out)
    print(f"{found['text']}\n{len(done)} of {len(cells)} cells; results in {out}")
    return 0


# ---- cells -----------------------------------------------------------------------------------------------------------------


def plan(settings: Settings, mixture: Mixture, out: Path, parts: list[str]) -> list[Cell]:
    """All cells, those of one seed together, so that a study that was cut short has whole seeds."""
    cells = []
    small = {split: groups for split, groups in mixture.splits.items() if split in ("new_domain", "new_prompt")}
    regimes = {name: flags for name, flags in REGIMES.items() if name in ("none", "self") or mixture.instruct}
    for seed in range(settings.seeds if "regimes" in parts else 0):
        cells += [Cell(f"{name}-seed{seed}", (*common(settings, mixture.path, seed), *flags)) for name, flags in regimes.items()]
    for seed in range(settings.side_seeds):
        if "transfer" in parts:
            cells += transfer_cells(settings, mixture, out, seed)
        if "dilution" in parts and mixture.instruct:
            path = write_mixture(mixture, out / "mixtures/small.toml", mixture.train, mixture.cap, small)
            cells += [Cell(f"joint{fraction:g}-seed{seed}", (*common(settings, path, seed), "--instruct", "joint",
                                                             "--instruct-fraction", str(fraction))) for fraction in FRACTIONS]
        if "dilution" in parts:
            for count in [count for count in (*TASK_COUNTS, len(mixture.train)) if count <= len(mixture.train)]:
                tasks = random.Random(f"tasks-{seed}-{count}").sample(mixture.train, count)
                cap = max(2, (mixture.cap or 64) * min(TASK_COUNTS) // count)
                path = write_mixture(mixture, out / f"mixtures/tasks{count}-seed{seed}.toml", tasks, cap, new_only(small, tasks))
                cells.append(Cell(f"tasks{count}-seed{seed}", common(settings, path, seed)))
        if "scarce" in parts:
            cells += scarce_cells(settings, mixture, out, seed, "regimes" in parts)
    return cells


def common(settings: Settings, mixture: Path, seed: int) -> tuple[str, ...]:
    return ("--model", settings.model, "--mixture", str(mixture), "--seed", str(seed), *shlex.split(settings.train))


def transfer_cells(settings, mixture: Mixture, out: Path, seed: int) -> list[Cell]:
    """Trained on one domain, measured on all: the prompts that other domains were trained with are new to it."""
    cells, first = [], next(iter(mixture.splits.get("new_domain", {"": []})))
    measured = [*(task for tasks in mixture.splits.get("trained", {}).values() for task in tasks),
                *mixture.splits.get("new_domain", {}).get(first, [])]
    for domain in dict.fromkeys(task.domain for task in mixture.train):
        train = [task for task in mixture.train if task.domain == domain]
        splits = {"trained": {"": []}, "new_domain": {}}
        for task in measured:
            place = splits["trained"][""] if task.domain == domain else splits["new_domain"].setdefault(task.domain, [])
            place.append(task)
        path = write_mixture(mixture, out / f"mixtures/from-{domain}.toml", train, mixture.cap,
                             {split: {group: tasks for group, tasks in groups.items() if tasks} for split, groups in splits.items()})
        cells.append(Cell(f"from-{domain}-seed{seed}", (*common(settings, path, seed), "--steps", "150")))     # an eighth of the rows
    return cells


def scarce_cells(settings, mixture: Mixture, out: Path, seed: int, adapter: bool) -> list[Cell]:
    """A few labelled rows of a new domain, from the base and from the cross-domain adapter of the same seed."""
    cells, domains = [], {}
    for i in range(max(map(len, mixture.splits.get("new_domain", {"": []}).values()))):
        for tasks in mixture.splits["new_domain"].values():        # tasks of each group in turn
            for task in tasks[i:i + 1]:
                domains.setdefault(task.domain, []).append(task)
    usable = {domain: tasks[:SCARCE_TASKS] for domain, tasks in domains.items()
              if all(task.select("train", 2, balance=True, seed=0) for task in tasks)}
    for domain, tasks in list(usable.items())[:SCARCE_DOMAINS]:
        for rows in (*LABELLED, None):
            path = out / f"mixtures/scarce-{domain}-{rows or 'all'}.toml"
            write_mixture(mixture, path, tasks, rows and max(2, rows // len(tasks)), {"trained": {"": tasks}})
            flags = (*common(settings, path, seed), "--steps", "150", "--batch-size", "8")
            for start in ("base", "adapter")[:1 + adapter]:
                cell = f"none-seed{seed}" if start == "adapter" else None
                more = ("--init-adapter", str(out / "cells" / cell)) if cell else ()
                cells.append(Cell(f"scarce-{domain}-{rows or 'all'}-{start}-seed{seed}", (*flags, *more), cell))
    return cells


def new_only(splits, train):
    """Without the evaluation tasks whose domain is no longer trained on, where it should be."""
    domains = {task.domain for task in train}
    kept = {split: {group: [task for task in tasks if split != "new_prompt" or task.domain in domains] for group, tasks in groups.items()}
            for split, groups in splits.items()}
    return {split: {group: tasks for group, tasks in groups.items() if tasks} for split, groups in kept.items() if any(groups.values())}


def write_mixture(mixture: Mixture, path: Path, train, cap, splits) -> Path:
    """A mixture like this one with other tasks."""
    def listed(tasks):
        return "[" + ", ".join(json.dumps(f"{Path(task.where).resolve()}#{task.name}") for task in tasks) + "]"

    lines = [f"name = {json.dumps(path.stem)}"] + ([f"max_chars = {mixture.max_chars}"] if mixture.max_chars else [])
    lines += ["[train]", f"tasks = {listed(train)}", f"balance = {json.dumps(mixture.balance)}"] + ([f"cap = {cap}"] if cap else [])
    if mixture.instruct:
        lines += ["[instruct]", f"rows = {json.dumps(str(mixture.instruct.path.resolve()))}"]
    lines += ["[eval]"] + ([f"rows = {mixture.eval_rows}"] if mixture.eval_rows else [])
    for split, groups in splits.items():
        if groups:
            lines += [f"[eval.{split}]", *(f"{json.dumps(group or 'tasks')} = {listed(tasks)}" for group, tasks in groups.items())]
    write_text(path, "\n".join(lines) + "\n")
    return path


# ---- running ---------------------------------------------------------------------------------------------------------------


def finished(out: Path, cell: Cell) -> bool:
    return (out / "cells" / cell.name / "report.json").exists()


def run_cells(cells: list[Cell], settings: Settings, out: Path) -> bool:
    """Every cell that is not finished; False where it was stopped."""
    waiting = [cell for cell in cells if not finished(out, cell)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // settings.jobs))} if settings.jobs > 1 else {}

    def run(cell):
        directory = out / "cells" / cell.name
        directory.mkdir(parents=True, exist_ok=True)
        with open(out / "cells" / f"{cell.name}.log", "w", encoding="utf-8") as log:
            command = [sys.executable, str(ROOT / "train.py"), *cell.flags, "--out", str(directory), "--resume",
                       "--base-scores", str(out / "base.safetensors")]
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}).returncode

    with tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="study", unit="cell") as bar:
        for batch in ([cell for cell in waiting if not cell.after], [cell for cell in waiting if cell.after]):
            with ThreadPoolExecutor(settings.jobs) as pool:
                futures = {pool.submit(run, cell): cell for cell in batch}
                try:
                    for future in as_completed(futures):
                        cell, code = futures[future], future.result()
                        if code in (130, 143, -2, -15):
                            raise KeyboardInterrupt
                        if code:
                            lines = (out / "cells" / f"{cell.name}.log").read_text(encoding="utf-8").strip().splitlines()
                            raise ValueError(f"{cell.name}: train.py ended with {code}: {lines[-1] if lines else 'no output'}")
                        bar.set_postfix_str(cell.name)
                        bar.update()
                except (KeyboardInterrupt, ValueError) as error:
                    pool.shutdown(wait=True, cancel_futures=True)
                    if isinstance(error, ValueError):
                        raise
                    return False
    return True


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
