"""Measure a saved adapter beside its base, pick a threshold, score transcripts, or merge it into a plain checkpoint.

    python eval.py --adapter runs/default-seed0                                   # the numbers of train.py again
    python eval.py --adapter runs/default-seed0 --calibrate data/tasks/far.toml#home-threaten --fpr 0.01
    python eval.py --adapter runs/default-seed0 --score transcripts.jsonl --task data/tasks/far.toml#home-threaten > scores.jsonl
    python eval.py --adapter runs/default-seed0 --merge-to merged                 # loads in transformers
"""

import json
import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minimon.study.attacks import attacked_rows, attacks, measure_attacks
from minimon.serve.thresholds import calibrate, find_calibration, save_calibration
from minimon.checkpoint import load_model, save_model
from minimon.run.cli import check_device, one_line_errors, parse, setting, shipped
from minimon.run.processes import counter, from_first, launched, rank, shard, size, start
from minimon.evaluate import evaluate, evaluation_rows, limit_rows, read
from minimon.files import read_json, resolve, sha256
from minimon.tasks import load_conversations, schedule_of
from minimon.lora import load_adapter, merge_lora
from minimon.run.provenance import check_same, data_files, provenance
from minimon.report import attack_lines, build_report, table, verdict_line, write_report
from minimon.serve.stream import after, check_again, count_lines, items, score_items, whole_lines
from minimon.report.leakage import near_duplicates
from minimon.tasks import load_mixture, load_task
from minimon.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Settings:
    adapter: str | None = setting(None, "run directory, or any directory with an adapter in PEFT's format")
    model: str | None = setting(None, "checkpoint directory or hub id; the run's own if not given")
    mixture: str | None = setting(None, "the tasks to evaluate on; the run's own if not given")
    epsilon: float | None = setting(None, "the verdict's threshold on mean performance; the run's own if not given")
    out: str | None = setting(None, "directory for report.json and report.md; with --score the file of scores; none if not given")
    score: str | None = setting(None, "JSONL of transcripts, - for standard input, or an Inspect log: a line {id, P, decision} each")
    task: str | None = setting(None, "with --score: the task whose prompt is asked, FILE or FILE#NAME")
    threshold: float | None = setting(None, "with --score: P above which the decision is true; the calibrated one if not given")
    resume: bool = setting(False, "with --score and --out: go on after the last line that was scored")
    calibrate: str | None = setting(None, "pick a threshold on the rows of this task, FILE or FILE#NAME, that were not trained on")
    fpr: float = setting(0.01, "with --calibrate: share of negatives that may be above the threshold")
    temperature: bool = setting(False, "with --calibrate: fit a temperature as well")
    attack: bool = setting(False, "also what words in the texts of new_domain do to the scores")
    any_base: bool = setting(False, "take an adapter that was trained on another base")
    merge_to: str | None = setting(None, "directory for the base with the adapter merged into it")
    batch_tokens: int | None = setting(None, "tokens of a forward pass; the run's own if not given")
    max_tokens: int | None = setting(None, "of a row, or its text loses its middle; the run's own if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base: float32 or bfloat16; bfloat16 on cuda if not given", ("float32", "bfloat16"))
    shard: bool = setting(False, "with torchrun: spread the base over the processes, for one that a device cannot hold")


def main(settings: Settings) -> int:
    run = run_settings(settings)
    device, base = start(settings.device), resolve(shipped(run["model"]))
    made = from_first(lambda: provenance(sys.argv, base))
    if not settings.any_base:
        check_same(settings.adapter, made, ["base"], "name that base with --model, or give --any-base")
    model = load_model(base, dtype=getattr(torch, settings.dtype) if settings.dtype else None, device="cpu" if settings.shard else device)
    if settings.shard:
        shard(model, device)
    load_adapter(model, settings.adapter)
    if settings.merge_to:
        save_model(merge_lora(model), settings.merge_to, like=base)
        print(f"merged checkpoint in {settings.merge_to}")
        return 0
    tokenizer = load_tokenizer(base, date=run["date"])
    limit_rows(tokenizer, model, run["max_tokens"])
    if settings.calibrate:
        return pick_threshold(settings, run, model, tokenizer)
    if settings.score:
        return score_file(settings, model, tokenizer, run["batch_tokens"])

    mixture, started = load_mixture(shipped(run["mixture"])), time.time()
    with progress("evaluate", evaluation_rows(mixture, tokenizer)) as bar:
        scores = evaluate(model, tokenizer, mixture, batch_tokens=run["batch_tokens"], on_rows=counter(bar, settings.shard))
    moved = attacked(model, tokenizer, mixture, run["batch_tokens"]) if settings.attack else None
    if rank():
        return 0
    about = {**made, "data": data_files(mixture), "directory": settings.adapter, "date": run["date"], "device": settings.device,
             "processes": size(), "evaluate_seconds": round(time.time() - started, 1)}
    report = build_report(scores, model=run["model"], adapter=adapter_hash(settings), seed=run["seed"], epsilon=run["epsilon"],
                          run=about, leakage=near_duplicates(mixture, conversations(run, mixture)), attacks=moved)
    if settings.out:
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        write_report(report, settings.out, scores)
    print("\n" + (attack_lines(report) + "\n\n" if moved else "") + f"{table(report)}\n\n{verdict_line(report)}")
    return 0


def run_settings(settings: Settings) -> dict:
    """What the command line leaves open comes from the run's settings.json."""
    check_device(settings.device)
    if not settings.adapter:
        raise ValueError("--adapter: expected a run directory such as runs/default-seed0, got none")
    if bool(settings.score) != bool(settings.task):
        raise ValueError("--score and --task: expected both, a file of transcripts and the task to ask of them; got one")
    if sum(map(bool, (settings.score, settings.calibrate, settings.merge_to))) > 1:
        raise ValueError("--score, --calibrate and --merge-to: expected one of them, got more")
    if settings.temperature and not settings.calibrate:
        raise ValueError("--temperature: expected --calibrate TASK beside it, got none")
    if not Path(settings.adapter).is_dir():
        raise ValueError(f"--adapter: expected a directory, found none at {settings.adapter}; train.py makes one")
    if settings.merge_to and (settings.shard or launched() > 1):
        raise ValueError("--merge-to: expected one process and no --shard, got more; start it without torchrun")
    if settings.score == "-" and launched() > 1:
        raise ValueError("--score -: expected one process, got several, and standard input is one; give a file")
    if settings.threshold is not None and not 0 <= settings.threshold <= 1:
        raise ValueError(f"--threshold: expected a number in [0, 1], got {settings.threshold}")
    path = Path(settings.adapter) / "settings.json"
    run = {"seed": 0, "epsilon": 0.75, "batch_tokens": None, "max_tokens": None, "date": date.today().isoformat()}
    run |= read_json(path) if path.is_file() else {}
    keys = ("model", "mixture", "epsilon", "batch_tokens", "max_tokens")
    run |= {key: value for key in keys if (value := getattr(settings, key)) is not None}
    check_run(run, path)
    if not run.get("model"):
        raise ValueError(f"--model: expected one, since {settings.adapter} has no settings.json that names the base")
    if not run.get("mixture") and not (settings.score or settings.merge_to or settings.calibrate):
        raise ValueError(f"--mixture: expected one, since {settings.adapter} has no settings.json that names it")
    return run


def check_run(run: dict, path: Path) -> None:
    """What is taken from settings.json, or from the command line in its place."""
    kinds = {"model": str, "mixture": str, "date": str, "instruct": str, "seed": int, "epsilon": float, "batch_tokens": int,
             "max_tokens": int}
    bad = [f"{key} = {run[key]!r}" for key, kind in kinds.items() if run.get(key) is not None and type(run[key]) is not kind]
    bad += [f"{key} = {run[key]!r}" for key in ("seed", "epsilon", "date") if run[key] is None]
    if bad or not 0 <= run["epsilon"] <= 1 or (run["batch_tokens"] or 1) < 1:
        raise ValueError(f"{path}: expected the settings of a run, epsilon in [0, 1] and batch_tokens from 1, got "
                         f"{', '.join(bad) or (run['epsilon'], run['batch_tokens'])}")


def conversations(run: dict, mixture):
    """What the run was trained on beside the tasks."""
    trained = schedule_of(mixture.instruct, run.get("instruct")) != "none"
    return load_conversations(mixture.instruct.path) if mixture.instruct and trained else []


def attacked(model, tokenizer, mixture, batch_tokens: int | None) -> list[dict]:
    rows = sum(len(rows) for _, rows in attacked_rows(mixture))
    if not rows:
        raise ValueError(f"{mixture.path}: expected a split new_domain to attack, found none")
    with progress("attack", 2 * rows * len(attacks("", ""))) as bar:
        return measure_attacks(model, tokenizer, mixture, batch_tokens=batch_tokens, on_rows=bar.update)


def named_task(entry: str):
    file, _, name = entry.partition("#")
    return load_task(shipped(file), name or None)


def adapter_hash(settings: Settings) -> str:
    return sha256(Path(settings.adapter) / "adapter_model.safetensors")


def pick_threshold(settings: Settings, run: dict, model, tokenizer) -> int:
    """On the validation rows of the task, on its test rows where it has none."""
    task = named_task(settings.calibrate)
    side = "validation" if any(row.side == "validation" for row in task.rows) else "test"
    rows = [row for row in task.rows if row.side == side]
    with progress("calibrate", len(rows)) as bar:
        reading = read(model, tokenizer, task, rows, batch_tokens=run["batch_tokens"], on_rows=bar.update)
    try:
        found = calibrate(reading.P.numpy(), np.array([row.label for row in rows]), np.array([row.text for row in rows], dtype=object),
                          fpr=settings.fpr, fit=settings.temperature)
    except ValueError as error:
        raise ValueError(f"{settings.calibrate}: {side} rows: {error}") from error
    about = {"adapter": adapter_hash(settings), "model": run["model"], "rows": side, "rows_cut": int((reading.left_out > 0).sum()), **found}
    path = from_first(lambda: save_calibration(settings.adapter, task, about))
    low, high = found["threshold_ci95"]
    print(f"{task.name}: {next(iter(task.labels))} where P > {found['threshold']:.6g} [{low:.6g}, {high:.6g}], picked on "
          f"{found['negatives']} negatives and {found['positives']} positives ({side} rows); temperature {found['temperature']:g}\n"
          f"there FPR {found['fpr']:.4f} [{found['fpr_ci95'][0]:.4f}, {found['fpr_ci95'][1]:.4f}] and "
          f"TPR {found['tpr']:.3f} [{found['tpr_ci95'][0]:.3f}, {found['tpr_ci95'][1]:.3f}]; stored in {path}")
    return 0


def score_file(settings: Settings, model, tokenizer, batch_tokens: int | None) -> int:
    """A line {"id", "P", "decision"} a row, in the file's order; into --out by way of --out.part, or to standard output."""
    task = named_task(settings.task)
    calibration = find_calibration(settings.adapter, task, adapter_hash(settings)) if settings.threshold is None else None
    threshold, temperature = (calibration["threshold"], calibration["temperature"]) if calibration else (settings.threshold, 1.0)
    if threshold is None and rank() == 0:
        sys.stderr.write(f"no threshold for task {task.name!r} beside the adapter: decision is null; pick one with --calibrate or "
                         "--threshold\n")
    out = Path(settings.out) if settings.out else None
    part = out and Path(f"{out}.part")
    if out and from_first(out.exists):
        if not settings.resume:
            raise ValueError(f"{out}: holds scores; name another --out, or remove it")
        sys.stderr.write(f"{out}: these scores are finished\n")
        return 0
    count, last = from_first(lambda: resume_after(part, settings)) if part else (0, None)
    found = after(items(settings.score, task), part, count) if count else items(settings.score, task)
    mine = part and (part if rank() == 0 else os.devnull)
    with open(mine, "a" if count else "w", encoding="utf-8") if part else nullcontext(sys.stdout) as stream, \
            progress("score", count_lines(settings.score), count) as bar:
        for lines in score_items(model, tokenizer, task, found, threshold=threshold, temperature=temperature, batch_tokens=batch_tokens):
            if last:
                check_again(last, lines.pop(0), part)
                last = None
            stream.write("".join(json.dumps(line) + "\n" for line in lines))
            stream.flush()
            bar.update(len(lines))
    if out:
        from_first(lambda: os.replace(part, out))
    return 0


def resume_after(part: Path, settings: Settings) -> tuple[int, dict | None]:
    """(lines that are scored, the last of them); what is cut off after them goes."""
    if not part.exists():
        return 0, None
    if not settings.resume:
        raise ValueError(f"{part}: holds scores that are not finished; give --resume to go on, or remove it")
    count, length, last = whole_lines(part)
    os.truncate(part, length)
    return count, last


def progress(name: str, total: int | None, initial: int = 0):
    """On stderr: standard output is for what is piped on."""
    return tqdm(desc=name, total=total, initial=initial, unit="row", ncols=min(100, shutil.get_terminal_size().columns), mininterval=0.5,
                disable=rank() > 0)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
