"""The study: regimes x seeds, then what surrounds them; each cell a run of train.py in a directory of its own.

    python -m minimon.study                                # the shipped mixture on the shipped base
    python -m minimon.study --preset real --budget 8       # real text on a real model, what fits into eight hours
    python -m minimon.study --model Qwen/Qwen3-0.6B --train "--device cuda --batch-size 64 --lr 2e-4"
    python -m minimon.study --results                      # of the cells that are there

If stopped, the same command goes on. Writes plan.md first, then, as cells end, results.json, results.md, and study.png and
transfer.png where matplotlib is installed.
"""

import shlex
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from minimon.checkpoint import load_model
from minimon.files import ROOT, read_json, read_optional, write_json, write_text
from minimon.report.scores import read_scores, scores_file
from minimon.run.children import Children, last_line
from minimon.run.cli import one_line_errors, parse, setting
from minimon.run.settings import settings_of
from minimon.study.budget import fit_in, measure_speed
from minimon.study.cells import PRESETS, Cell, Preset, plan
from minimon.study.figures import write_figures
from minimon.study.findings import Run, as_trained, by_place, trained_labels
from minimon.study.results import OLD, measure_baselines, results, text
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer

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
    mixture, out = load_mixture(preset.mixture), Path(preset.out)
    if settings.results and not (out / "cells").is_dir():
        raise ValueError(f"--results: expected the cells of a study in {out}, found none; name it with --out")
    (out / "mixtures").mkdir(parents=True, exist_ok=True)
    study = Study(preset, out, plan(preset, mixture, out), trained_labels(mixture))
    if not settings.results:
        all_threads = torch.get_num_threads()
        threads = max(1, all_threads // preset.jobs)
        torch.set_num_threads(threads)
        model = load_model(preset.model, device=settings_of(preset.train).device)
        tokenizer = load_tokenizer(preset.model)
        speed = measure_speed(model, tokenizer, mixture.train[0])
        study.cells, arithmetic = fit_in(study.cells, speed, preset.jobs, settings.budget)
        write_text(out / "plan.md", arithmetic)
        print(arithmetic)
        try:
            study.run({"OMP_NUM_THREADS": str(threads)})
        except KeyboardInterrupt as error:
            study.write()
            print(f"\nstopped; the same command goes on in {out}")
            return 128 + (error.args[0] if error.args else signal.SIGINT)
        if "baselines" in preset.parts and not study.baselines.exists():
            torch.set_num_threads(all_threads)
            few = mixture.restricted(cap=preset.label_cap)
            write_json(study.baselines, measure_baselines(model, tokenizer, few))
    study.write()
    print((out / "results.md").read_text(encoding="utf-8"))
    print(f"{len(study.runs)} of {len(study.cells)} cells; results in {out}")
    if study.failed:
        names = ", ".join(sorted(study.failed))
        print(f"failed: {names}; what each says is in cells/<name>.log", file=sys.stderr)
    return 2 if study.failed else 0


def chosen(settings: Settings) -> Preset:
    """The preset with what the command line says otherwise; its flags of train.py with those that are given."""
    preset = PRESETS[settings.preset]
    given = {}
    for name, value in asdict(settings).items():
        if value is not None and hasattr(preset, name):
            given[name] = value
    for name in ("train", "then_train"):
        given[name] = f"{getattr(preset, name)} {settings.train or ''}".strip()
    if settings.model or settings.mixture:
        given["first"] = ""  # it belongs to the preset's own
    if settings.parts:
        given["parts"] = tuple(settings.parts.split(","))
    found = replace(preset, **given)
    counts = (found.seeds, found.side_seeds, found.jobs)
    if set(found.parts) - set(Preset.parts) or min(counts) < 1:
        raise ValueError(
            f"expected --parts of {', '.join(Preset.parts)} and positive numbers of seeds and jobs; got "
            f"{', '.join(found.parts)}, {found.seeds}, {found.side_seeds}, {found.jobs}"
        )
    return found


@dataclass
class Study:
    preset: Preset
    out: Path
    cells: list[Cell]
    trained: dict[tuple[str, str], dict[str, int]]  # see trained_labels
    runs: dict[str, Run] = field(default_factory=dict)  # of finished cells, with their draws
    failed: set[str] = field(default_factory=set)

    @property
    def baselines(self) -> Path:
        return self.out / "baselines.json"

    def directory(self, name: str) -> Path:
        return self.out / "cells" / name

    def is_finished(self, name: str) -> bool:
        return (self.directory(name) / "report.json").exists()

    def has_adapter(self, name: str) -> bool:
        return (self.directory(name) / "adapter_config.json").exists()

    def run(self, env: dict[str, str]) -> None:
        """Every cell that is not finished, in order. A failure is printed at once."""
        waiting = [cell for cell in self.cells if not self.is_finished(cell.name)]
        for cell in waiting:
            if cell.after and self.is_finished(cell.after) and not self.has_adapter(cell.after):
                raise ValueError(
                    f"{self.directory(cell.after)}: expected the adapter that {cell.name} starts from, found a report alone, "
                    "as the repository holds it; name a new --out to run the study anew"
                )
        done, futures = len(self.cells) - len(waiting), {}
        with (
            ThreadPoolExecutor(self.preset.jobs) as pool,
            Children() as children,
            tqdm(total=len(self.cells), initial=done, desc="study", unit="cell") as bar,
        ):
            for cell in waiting:
                first = futures.get(cell.after)
                futures[cell.name] = pool.submit(self.run_cell, cell, first, children, env)
            for future in as_completed(futures.values()):
                self.ended(*future.result())
                bar.update()

    def begun(self) -> str:
        """The day of the study's first cell, of which all are: cells of one date share the base's scores."""
        path = self.out / "date"
        if not path.exists():
            write_text(path, date.today().isoformat())
        return path.read_text(encoding="utf-8").strip()

    def run_cell(
        self, cell: Cell, first: Future | None, children: Children, env: dict[str, str]
    ) -> tuple[Cell, int]:
        """The cell and its exit code. It waits for `first`, whose adapter it starts from, and is left out without that."""
        if first:
            first.result()
        if cell.after and not self.is_finished(cell.after):
            return cell, 0
        directory = self.directory(cell.name)
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "train.py"), "--resume", "--out", str(directory)]
        command += ["--model", cell.model, "--mixture", str(cell.mixture.path), "--instruct", "none"]
        command += ["--date", self.begun(), "--seed", str(cell.seed), *shlex.split(cell.flags)]
        command += ["--base-scores", str(self.out / "base.safetensors")]
        if cell.after:
            command += ["--init-adapter", str(self.directory(cell.after))]
        return cell, children.run(command, f"{directory}.log", env)

    def ended(self, cell: Cell, code: int) -> None:
        if code in STOPPED:
            raise KeyboardInterrupt
        if code:
            self.failed.add(cell.name)
            line = last_line(f"{self.directory(cell.name)}.log")
            tqdm.write(f"{cell.name}: train.py ended with {code}: {line}", file=sys.stderr)
        else:
            self.write()

    def write(self) -> None:
        """results.json, results.md and the figures of the cells that are there."""
        for cell in self.cells:
            if cell.name not in self.runs and self.is_finished(cell.name):
                scores = read_scores(scores_file(self.directory(cell.name)))
                scores[OLD] = as_trained(scores, self.trained)
                report = read_json(self.directory(cell.name) / "report.json")
                self.runs[cell.name] = Run(cell, by_place(scores), report)
        runs = [self.runs[cell.name] for cell in self.cells if cell.name in self.runs]
        about = {name: getattr(self.preset, name) for name in ("model", "mixture", "train")}
        about |= {"cells": len(runs), "planned": len(self.cells)}
        numbers = results(runs, read_optional(self.baselines))
        write_json(self.out / "results.json", about | numbers)
        write_text(self.out / "results.md", text(numbers))
        write_figures(numbers, self.out)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
