"""Measure an adapter beside its base, or a base alone; pick a threshold, score rows, merge the adapter.

python eval.py --adapter runs/default-seed0                        # the numbers of train.py again
python eval.py --model data/base --mixture data/mixtures/default.toml --shots 4        # a base alone
python eval.py --adapter runs/default-seed0 --calibrate data/tasks/far.toml#home-threaten --fpr 0.05
python eval.py --adapter runs/default-seed0 --score 'logs/*' --task data/tasks/far.toml#home-threaten
python eval.py --adapter runs/default-seed0 --merge-to merged      # loads in transformers

All settings: minimon/run/settings.py.
"""

import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import torch

from minimon.batch import row_limit
from minimon.checkpoint import save_model
from minimon.evaluate import check_questions, compare, evaluate, evaluation_rows, measure
from minimon.files import resolve
from minimon.lora import merge_lora
from minimon.report import (
    attack_lines,
    build_report,
    near_duplicates,
    reading,
    table,
    verdict_line,
    write_report,
)
from minimon.run import processes
from minimon.run.cli import one_line_errors, parse, progress
from minimon.run.load import check_adapter, named_task
from minimon.run.lock import locked
from minimon.run.memory import keep_memory
from minimon.run.processes import from_first, rank
from minimon.run.provenance import about_run, provenance
from minimon.run.settings import EvalSettings as Settings
from minimon.run.settings import check_evaluation
from minimon.serve.inputs import input_files
from minimon.serve.monitor import Monitor, RunSettings, adapter_hash, load_run, run_settings
from minimon.serve.stream import refuse_existing, score_stream
from minimon.serve.thresholds import calibrate_run, refuse_calibrated, threshold_line
from minimon.study.attacks import attacked_rows, attacks, measure_attacks
from minimon.study.examples import with_examples
from minimon.tasks import load_conversations, load_mixture, schedule_of


def main(settings: Settings) -> int:
    device = processes.start(settings.device)
    check_evaluation(settings)
    if settings.score:
        score(settings, device)
    elif settings.calibrate:
        calibrate(settings, device)
    elif settings.merge_to:
        merge(settings, device)
    else:
        with locked(settings.out) if settings.out and Path(settings.out).is_dir() else nullcontext():
            measure_splits(settings, device)
    return 0


def measure_splits(settings: Settings, device: str) -> None:
    """Base and adapter, or the base alone, on every split of a mixture."""
    run = run_settings(settings.adapter, **changes(settings))
    if run.mixture is None:
        raise ValueError("--mixture: expected one, since there is no settings.json that names it")
    mixture = load_mixture(run.mixture).restricted(run.splits, run.eval_rows)
    if settings.adapter:
        check_adapter(mixture, settings.adapter)
    leakage = near_duplicates(mixture, trained_conversations(run, mixture)) if settings.adapter else None
    if settings.shots:
        mixture = with_examples(mixture, settings.shots)
    attacked = attacked_rows(mixture) if settings.attack else None
    if attacked == []:
        raise ValueError(f"--attack: expected a split new_domain in {mixture.path}, found none")
    started = time.time()
    model, tokenizer = load_run(
        settings.adapter, run, device=device, any_base=settings.any_base, sharded=settings.shard
    )
    options = {"limit": row_limit(model.config, run.max_tokens), "batch_tokens": run.batch_tokens}
    check_questions(tokenizer, mixture, options["limit"])
    rows = evaluation_rows(mixture) if settings.adapter else evaluation_rows(mixture) // 2
    with progress(rows, 0, "evaluate", "row") as bar:
        together = {"each": processes.dealing(model), "on_rows": processes.count_rows(bar, model)}
        if settings.adapter:
            scores = evaluate(model, tokenizer, mixture, **options, **together)
        else:
            base = measure(model, tokenizer, mixture, adapter=False, **options, **together)
            scores = compare(mixture, base, base)
    effects = None
    if settings.attack:
        rows = 2 * len(attacks("", "")) * sum(len(rows) for _, rows in attacked)
        with progress(rows, 0, "attack", "row") as bar:
            effects = measure_attacks(model, tokenizer, attacked, on_rows=bar.update, **options)
    if rank() > 0:
        return
    source = provenance(sys.argv, resolve(run.model), mixture)
    asked = {"date": run.date, "device": settings.device}
    seconds = time.time() - started
    about = about_run(source, asked, settings.adapter, shots=settings.shots, evaluate_seconds=seconds)
    report = build_report(
        scores,
        model=run.model,
        adapter=adapter_hash(settings.adapter) if settings.adapter else None,
        seed=run.seed,
        epsilon=run.epsilon,
        run=about,
        leakage=leakage,
        attacks=effects,
    )
    if settings.out:
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        write_report(report, settings.out, scores)
    if effects:
        print(f"\n{attack_lines(report)}")
    print("\n".join(["", table(report), "", *reading(report), verdict_line(report)]))


def score(settings: Settings, device: str) -> None:
    """Rows of files or a pipe -> a line of JSON each."""
    task, files = named_task(settings.task), input_files(settings.score)
    P = settings.threshold
    options = {"resume": settings.resume, "overwrite": settings.overwrite}
    if settings.out:
        from_first(lambda: refuse_existing(Path(settings.out), **options))
    threshold = None if P is None else torch.logit(torch.tensor(P, dtype=torch.float64)).item()
    monitor = load_monitor(settings, task, device, threshold)
    if rank() == 0:
        sys.stderr.write(threshold_line(monitor) + "\n")
    options |= {"with_text": settings.with_text}
    with progress(None, 0, "score", "row") as bar:
        if not score_stream(monitor, files, settings.out or sys.stdout, on_rows=bar.update, **options):
            bar.write(f"{settings.out}: these scores are finished", file=sys.stderr)


def calibrate(settings: Settings, device: str) -> None:
    """A threshold for one task, stored beside the adapter."""
    task = named_task(settings.calibrate)
    if not settings.overwrite:
        refuse_calibrated(settings.adapter, task)
    monitor = load_monitor(settings, task, device, 0.0)  # whatever an old one was
    options = {"fpr": settings.fpr, "fit": settings.temperature}
    with progress(None, 0, "calibrate", "row") as bar:
        lines = calibrate_run(monitor, settings.adapter, on_rows=bar.update, **options)
    print(lines)


def merge(settings: Settings, device: str) -> None:
    run = run_settings(settings.adapter, **changes(settings))
    model, _ = load_run(settings.adapter, run, device=device, any_base=settings.any_base)
    save_model(merge_lora(model), settings.merge_to, like=run.model)
    print(f"merged checkpoint in {settings.merge_to}")


# ---- parts ----------------------------------------------------------------------------------------------


def load_monitor(settings: Settings, task, device: str, threshold: float | None) -> Monitor:
    return Monitor.load(
        settings.adapter,
        task=task,
        device=device,
        threshold=threshold,
        any_base=settings.any_base,
        sharded=settings.shard,
        **changes(settings),
    )


def changes(settings: Settings) -> dict:
    """What the command line says in place of the run's settings.json."""
    return {field.name: getattr(settings, field.name, None) for field in fields(RunSettings)}


def trained_conversations(run, mixture) -> list:
    """What the run was trained on beside the tasks."""
    if schedule_of(mixture.instruct, run.instruct) == "none" or mixture.instruct is None:
        return []
    return load_conversations(mixture.instruct.path)


if __name__ == "__main__":
    with one_line_errors(
        "the same command; with --resume, and without --overwrite, where --score writes to --out"
    ):
        keep_memory()
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
