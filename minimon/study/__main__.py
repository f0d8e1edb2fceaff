"""The study: regimes x seeds, then what surrounds them; each cell a run of train.py in a directory of its own.

    python -m minimon.study                                # the shipped mixture on the shipped base
    python -m minimon.study --preset real --budget 8       # real text on a real model, what fits into eight hours
    python -m minimon.study --model Qwen/Qwen3-0.6B --train "--device cuda --batch-size 64 --lr 2e-4"
    python -m minimon.study --results                      # of the cells that are there

If stopped, the same command goes on. Writes plan.md first, then, as cells end, results.json, results.md, and study.png and
transfer.png where matplotlib is installed.
"""

import os
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from minimon.checkpoint import load_model
from minimon.files import read_json, write_json, write_text
from minimon.report.scores import read_scores
from minimon.run.children import Children, last_line
from minimon.run.cli import ROOT, one_line_errors, parse, setting, shipped
from minimon.study.budget import fit_in, measure_speed
from minimon.study.cells import PRESETS, Cell, Preset, plan
from minimon.study.figures import write_figures
from minimon.study.findings import Run
from minimon.study.results import measure_baselines, results, text, trained_labels
from minimon.tasks import Mixture, load_mixture
from minimon.tokenizer import load_tokenizer

WRITE_EVERY = 60  # seconds at least between results as cells end; those of a stopped study are written too
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of a run that a signal ended


@dataclass(frozen=True)
class Settings:
    preset: str = setting("world", "which study: of the shipped world, or of real text", tuple(PRESETS))
    model: str | None = setting(
        None, "checkpoint directory or hub id; this and what follows: the preset's if not given"
    )
    mixture: str | None = setting(None, "what is trained and evaluated on")
    out: str | None = setting(None, "directory of the cells and the results")
    parts: str | None = setting(None, "what to measure: some of regimes,dilution,transfer,scarce,baselines")
    seeds: int | None = setting(None, "of each regime")
    side_seeds: int | None = setting(None, "of everything else")
    jobs: int | None = setting(None, "cells at a time; the cores are shared out among them")
    train: str | None = setting(None, "more flags for every run of train.py, in quotes")
    budget: float | None = setting(None, "hours; cells that do not fit are left out, the last first")
    results: bool = setting(False, "train nothing; results of the cells that are finished")


def main(settings: Settings) -> int:
    preset = chosen(settings)
    mixture, out = load_mixture(shipped(preset.mixture)), Path(preset.out)
    (out / "mixtures").mkdir(parents=True, exist_ok=True)
    study = Study(preset, mixture, out, plan(preset, mixture, out))
    if settings.results:
        study.write()
        return study.report()
    threads = max(1, (os.cpu_count() or 1) // preset.jobs)
    torch.set_num_threads(threads)
    model, tokenizer = load_model(shipped(preset.model)), load_tokenizer(shipped(preset.model))
    speed = measure_speed(model, tokenizer, mixture.train[0])
    study.cells, arithmetic = fit_in(study.cells, speed, preset.jobs, settings.budget)
    write_text(out / "plan.md", arithmetic)
    print(arithmetic)
    try:
        study.run({"OMP_NUM_THREADS": str(threads)} if preset.jobs > 1 else {})
    except KeyboardInterrupt as error:
        study.write()
        print(f"\nstopped; the same command goes on in {out}")
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    if "baselines" in preset.parts and not (out / "baselines.json").exists():
        torch.set_num_threads(os.cpu_count() or 1)
        few = replace(mixture, cap=preset.label_cap or mixture.cap)
        write_json(out / "baselines.json", measure_baselines(model, tokenizer, few))
    study.write()
    return study.report()


def chosen(settings: Settings) -> Preset:
    """The preset with what the command line says otherwise."""
    preset = PRESETS[settings.preset]
    given = {
        key: value for key, value in asdict(settings).items() if value is not None and hasattr(preset, key)
    }
    if "parts" in given:
        given["parts"] = tuple(settings.parts.split(","))
    found = replace(preset, **given)
    unknown = set(found.parts) - set(PRESETS["world"].parts)
    if unknown or min(found.seeds, found.side_seeds, found.jobs) < 1:
        raise ValueError(
            f"expected --parts of {', '.join(PRESETS['world'].parts)} and positive numbers of seeds and jobs; got "
            f"{', '.join(found.parts)}, {found.seeds}, {found.side_seeds}, {found.jobs}"
        )
    return found


@dataclass
class Study:
    preset: Preset
    mixture: Mixture
    out: Path
    cells: list[Cell]
    runs: dict[str, Run] = field(default_factory=dict)  # of finished cells, with their draws
    failed: set[str] = field(default_factory=set)
    written: float = 0.0  # when the results were

    @cached_property
    def trained(self) -> dict[str, dict[str, int]]:
        return trained_labels(self.mixture)

    def directory(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def is_finished(self, cell: Cell) -> bool:
        return (self.directory(cell) / "report.json").exists()

    def run(self, env: dict[str, str]) -> None:
        """Every cell that is not finished, those that start from another's adapter last. A failure is printed at once."""
        waiting = [cell for cell in self.cells if not self.is_finished(cell)]
        done = len(self.cells) - len(waiting)
        with (
            ThreadPoolExecutor(self.preset.jobs) as pool,
            Children() as children,
            tqdm(total=len(self.cells), initial=done, desc="study", unit="cell") as bar,
        ):
            for later in (False, True):
                futures = {}
                for cell in waiting:
                    if bool(cell.after) == later and cell.after not in self.failed:
                        futures[pool.submit(self.run_cell, cell, children, env)] = cell
                for future in as_completed(futures):
                    self.ended(futures[future], future.result())
                    bar.update()

    def run_cell(
        self,
        cell: Cell,
        children: Children,
        env: dict[str, str],
    ) -> int:
        self.directory(cell).mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "--model",
            cell.model,
            "--mixture",
            str(cell.mixture.path),
        ]
        command += [
            "--seed",
            str(cell.seed),
            *shlex.split(cell.flags),
            "--out",
            str(self.directory(cell)),
            "--resume",
        ]
        command += ["--base-scores", str(self.out / "base.safetensors")]
        if cell.after:
            command += ["--init-adapter", str(self.out / "cells" / cell.after)]
        return children.run(command, f"{self.directory(cell)}.log", env)

    def ended(self, cell: Cell, code: int) -> None:
        if code in STOPPED:
            raise KeyboardInterrupt
        if code:
            self.failed.add(cell.name)
            line = last_line(f"{self.directory(cell)}.log")
            tqdm.write(f"{cell.name}: train.py ended with {code}: {line}", file=sys.stderr)
        elif time.time() > self.written + WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """results.json, results.md and the figures of the cells that are there."""
        for cell in self.cells:
            if cell.name not in self.runs and self.is_finished(cell):
                scores = read_scores(self.directory(cell) / "scores.jsonl")
                self.runs[cell.name] = Run(cell, scores, read_json(self.directory(cell) / "report.json"))
        runs = [self.runs[cell.name] for cell in self.cells if cell.name in self.runs]
        path = self.out / "baselines.json"
        numbers = results(runs, read_json(path) if path.exists() else {}, self.trained)
        about = {
            "model": self.preset.model,
            "mixture": self.preset.mixture,
            "train": self.preset.train,
        }
        about |= {"cells": len(runs), "planned": len(self.cells)}
        write_json(self.out / "results.json", {**about, **numbers})
        write_text(self.out / "results.md", text(numbers))
        write_figures(numbers, self.out)
        self.written = time.time()

    def report(self) -> int:
        """The exit code, after a last word."""
        print((self.out / "results.md").read_text(encoding="utf-8"))
        print(f"{len(self.runs)} of {len(self.cells)} cells; results in {self.out}")
        if self.failed:
            print(
                f"failed: {', '.join(sorted(self.failed))}; what each says is in cells/<name>.log",
                file=sys.stderr,
            )
        return 2 if self.failed else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
