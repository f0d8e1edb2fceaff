"""Measure an adapter beside its base, or a base alone; pick a threshold, score rows, merge the adapter.

python eval.py --adapter runs/default-seed0                        # the numbers of train.py again
python eval.py --model data/base --mixture data/mixtures/default.toml --shots 4        # a base alone
python eval.py --adapter runs/default-seed0 --calibrate data/tasks/far.toml#home-threaten --fpr 0.05
python eval.py --adapter runs/default-seed0 --score 'logs/*' --task data/tasks/far.toml#home-threaten
python eval.py --adapter runs/default-seed0 --merge-to merged      # loads in transformers
"""

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from minimon.batch import row_limit
from minimon.checkpoint import save_model
from minimon.evaluate import compare, evaluate, evaluation_rows, measure
from minimon.files import resolve
from minimon.lora import merge_lora
from minimon.report import attack_lines, build_report, reading, table, verdict_line, write_report
from minimon.report.leakage import near_duplicates
from minimon.report.text import grid, number
from minimon.run.checks import check_evaluation
from minimon.run.cli import one_line_errors, parse, progress, setting, shipped
from minimon.run.lock import locked
from minimon.run.memory import keep_memory
from minimon.run.processes import count_rows, dealing, from_first, rank, size, start
from minimon.run.provenance import provenance
from minimon.serve.inputs import count_lines, input_files
from minimon.serve.monitor import Monitor, adapter_hash, load_run, named_task, run_settings
from minimon.serve.stream import refuse_existing, score_stream
from minimon.serve.thresholds import calibrate_run, refuse_calibrated, threshold_line
from minimon.study.attacks import attacked_rows, attacks, measure_attacks
from minimon.study.examples import with_examples
from minimon.tasks import Mixture, load_conversations, load_mixture, schedule_of


@dataclass(frozen=True)
class Settings:
    adapter: str | None = setting(
        None, "run directory, or any with an adapter in PEFT's format; none for a base alone"
    )
    model: str | None = setting(None, "checkpoint directory or hub id; the run's own if not given")
    mixture: str | None = setting(None, "the tasks to evaluate on; the run's own if not given")
    splits: str | None = setting(None, "only these splits, commas between; the run's own if not given")
    eval_rows: int | None = setting(None, "rows a task; the run's own if not given")
    shots: int = setting(0, "labelled rows of its task that each prompt shows as examples")
    epsilon: float | None = setting(
        None, "the verdict's threshold on mean performance; the run's own if not given"
    )
    attack: bool = setting(False, "also what words in the texts of new_domain do to the scores")
    out: str | None = setting(
        None, "directory of the report; with --score the file of scores; none if not given"
    )
    overwrite: bool = setting(False, "replace what --out, --merge-to or --calibrate finds in its place")
    score: str | None = setting(
        None, "rows to score: files, patterns, folders of logs, commas between; - for stdin"
    )
    task: str | None = setting(None, "with --score: the task whose prompt is asked, FILE or FILE#NAME")
    threshold: float | None = setting(
        None, "with --score: P above which to flag; the calibrated one if not given"
    )
    with_text: bool = setting(False, "with --score: each line also holds the text and its row's other fields")
    resume: bool = setting(False, "with --score and --out: go on after the last line that was scored")
    calibrate: str | None = setting(
        None, "pick a threshold on rows of this task, FILE or FILE#NAME, not trained on"
    )
    fpr: float = setting(0.01, "with --calibrate: share of negatives that may be above the threshold")
    temperature: bool = setting(False, "with --calibrate: fit a temperature as well")
    merge_to: str | None = setting(None, "directory for the base with the adapter merged into it")
    any_base: bool = setting(False, "take an adapter that was trained on another base")
    batch_tokens: int | None = setting(None, "tokens of a forward pass; the run's own if not given")
    max_tokens: int | None = setting(
        None, "of a row, or its text loses its middle; the run's own if not given"
    )
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base; the run's own if not given", ("float32", "bfloat16"))
    shard: bool = setting(
        False, "with torchrun: spread the base over the processes, for one too large for a device"
    )


def main(settings: Settings) -> int:
    check_evaluation(settings)
    if settings.score or settings.calibrate:
        return serve(settings)
    run = run_settings(settings.adapter, **changes(settings, "mixture", "epsilon", "splits", "eval_rows"))
    if settings.merge_to:
        model, _ = load_run(settings.adapter, run, device=settings.device, any_base=settings.any_base)
        save_model(merge_lora(model), settings.merge_to, like=resolve(shipped(run.model)))
        print(f"merged checkpoint in {settings.merge_to}")
        return 0
    if run.mixture is None:
        raise ValueError(
            f"--mixture: expected one, since {settings.adapter} has no settings.json that names it"
        )
    mixture = load_mixture(shipped(run.mixture)).restricted(splits=run.splits, eval_rows=run.eval_rows)
    if settings.attack and not attacked_rows(mixture):
        raise ValueError(f"--attack: expected a split new_domain in {mixture.path}, found none")
    leakage = near_duplicates(mixture, trained_conversations(run, mixture)) if settings.adapter else None
    if settings.shots:
        mixture = with_examples(mixture, settings.shots)
    with locked(settings.out) if settings.out and Path(settings.out).is_dir() else nullcontext():
        return report_on(settings, run, mixture, leakage)


def report_on(settings: Settings, run, mixture: Mixture, leakage: dict | None) -> int:
    """Base and adapter, or the base alone, on every split of the mixture."""
    device, started = start(settings.device), time.time()
    options = {"device": device, "any_base": settings.any_base, "sharded": settings.shard}
    model, tokenizer = load_run(settings.adapter, run, **options)
    limit = row_limit(model.config, run.max_tokens)
    options = {"limit": limit, "batch_tokens": run.batch_tokens}
    rows = evaluation_rows(mixture) if settings.adapter else evaluation_rows(mixture) // 2
    with progress(rows, 0, "evaluate", "row") as bar:
        shared = {"each": dealing(model), "on_rows": count_rows(bar, model)}
        if settings.adapter:
            scores = evaluate(model, tokenizer, mixture, **options, **shared)
        else:
            base = measure(model, tokenizer, mixture, references=True, **options, **shared)
            scores = compare(mixture, base, base)
    attacked = None
    if settings.attack:
        rows = sum(len(rows) for _, rows in attacked_rows(mixture))
        with progress(2 * rows * len(attacks("", "")), 0, "attack", "row") as bar:
            attacked = measure_attacks(
                model, tokenizer, attacked_rows(mixture), on_rows=bar.update, **options
            )
    if rank() > 0:
        return 0

    about = {
        **provenance(sys.argv, resolve(shipped(run.model)), mixture),
        "directory": settings.adapter,
        "date": run.date,
        "device": settings.device,
        "shots": settings.shots,
        "processes": size(),
        "evaluate_seconds": round(time.time() - started, 1),
    }
    report = build_report(
        scores,
        model=run.model,
        adapter=adapter_hash(settings.adapter) if settings.adapter else None,
        seed=run.seed,
        epsilon=run.epsilon,
        run=about,
        leakage=leakage,
        attacks=attacked,
    )
    if settings.out:
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        write_report(report, settings.out, scores)
    if attacked:
        print(f"\n{attack_lines(report)}")
    if settings.adapter:
        print("\n".join(["", table(report), "", *reading(report), verdict_line(report)]))
    else:
        print(f"\n{base_table(report)}")
    return 0


def serve(settings: Settings) -> int:
    """--calibrate and --score: one task asked of the run's monitor."""
    task = named_task(settings.calibrate or settings.task)
    files = input_files(settings.score) if settings.score else []
    if settings.calibrate and not settings.overwrite:
        refuse_calibrated(settings.adapter, task)
    device = start(settings.device)
    if settings.score and settings.out:
        from_first(lambda: refuse_existing(Path(settings.out), settings.resume, settings.overwrite))
    threshold = None if settings.threshold is None else log_odds(settings.threshold)
    monitor = Monitor.load(
        settings.adapter,
        task=task,
        device=device,
        threshold=0.0 if settings.calibrate else threshold,  # a new one does not depend on an old one
        any_base=settings.any_base,
        sharded=settings.shard,
        **changes(settings, "mixture"),
    )
    if settings.calibrate:
        with progress(None, 0, "calibrate", "row") as bar:
            options = {"fpr": settings.fpr, "fit": settings.temperature, "on_rows": bar.update}
            lines = calibrate_run(monitor, settings.adapter, **options)
        print(lines)
        return 0
    if rank() == 0:
        sys.stderr.write(threshold_line(monitor) + "\n")
    options = {"resume": settings.resume, "overwrite": settings.overwrite, "with_text": settings.with_text}
    with progress(count_lines(files), 0, "score", "row") as bar:
        if not score_stream(monitor, files, settings.out or sys.stdout, on_rows=bar.update, **options):
            bar.write(f"{settings.out}: these scores are finished", file=sys.stderr)
    return 0


def changes(settings: Settings, *more: str) -> dict:
    """What the command line says in place of the run's settings.json."""
    return {name: getattr(settings, name) for name in ("model", "dtype", "batch_tokens", "max_tokens", *more)}


def log_odds(P: float) -> float:
    return math.inf * (P - 0.5) if P in (0, 1) else math.log(P / (1 - P))


# ---- parts --------------------------------------------------------------------------------------


def trained_conversations(run, mixture: Mixture) -> list:
    """What the run was trained on beside the tasks."""
    if mixture.instruct is None or schedule_of(mixture.instruct, run.instruct) == "none":
        return []
    return load_conversations(mixture.instruct.path)


def base_table(report: dict) -> str:
    """Of a base alone: a line a split, and one a group of it."""
    rows = []
    for split, part in report["splits"].items():
        named = {split: part["mean"]} | {
            f"{split} / {group}": found for group, found in part["groups"].items()
        }
        for name, found in named.items():
            base = found["base"]
            keys = ("performance", "auroc", "tpr_at_5pct_fpr", "label_mass")
            rows.append([name, *(number(base.get(key)) for key in keys), number(found["chance"])])
    return grid(["base alone", "performance", "AUROC", "TPR at 5%", "label mass", "chance"], rows)


if __name__ == "__main__":
    with one_line_errors("the same command, with --resume where --score writes to --out"):
        keep_memory()
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
