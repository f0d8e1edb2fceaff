"""Measure a saved adapter beside its base, score transcripts with it, or merge it into a plain checkpoint.

    python eval.py --adapter runs/default-seed0                                   # the numbers of train.py again
    python eval.py --adapter runs/default-seed0 --score transcripts.jsonl --task data/tasks/far.toml#home-threaten > scores.jsonl
    python eval.py --adapter runs/default-seed0 --merge-to merged                 # loads in transformers
"""

import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

import minimon
from minimon.checkpoint import load_model, save_model
from minimon.cli import check_device, one_line_errors, parse, setting, shipped
from minimon.evaluate import evaluate, evaluation_rows, score
from minimon.files import json_row, read_json, sha256
from minimon.lora import load_adapter, merge_lora
from minimon.report import build_report, table, verdict_line, write_report
from minimon.tasks import load_mixture, load_task, lookup
from minimon.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Settings:
    adapter: str | None = setting(None, "run directory, or any directory with an adapter in PEFT's format")
    model: str | None = setting(None, "checkpoint directory or hub id; the run's own if not given")
    mixture: str | None = setting(None, "the tasks to evaluate on; the run's own if not given")
    epsilon: float | None = setting(None, "the verdict's threshold on mean performance; the run's own if not given")
    out: str | None = setting(None, "directory for report.json and report.md; none if not given")
    score: str | None = setting(None, "JSONL of transcripts to score: a line {id, P} each on standard output")
    task: str | None = setting(None, "with --score: the task whose prompt is asked, FILE or FILE#NAME")
    merge_to: str | None = setting(None, "directory for the base with the adapter merged into it")
    batch_tokens: int | None = setting(None, "tokens of a forward pass; the run's own if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base: float32 or bfloat16; bfloat16 on cuda if not given", ("float32", "bfloat16"))


CHUNK = 256                                    # rows scored together: what is held in memory of a file of any length


def main(settings: Settings) -> int:
    run = run_settings(settings)
    model = load_model(shipped(run["model"]), dtype=getattr(torch, settings.dtype) if settings.dtype else None, device=settings.device)
    load_adapter(model, settings.adapter)
    if settings.merge_to:
        save_model(merge_lora(model), settings.merge_to, like=shipped(run["model"]))
        print(f"merged checkpoint in {settings.merge_to}")
        return 0
    tokenizer = load_tokenizer(shipped(run["model"]), date=run["date"])
    if settings.score:
        return score_file(settings, model, tokenizer, run["batch_tokens"])

    mixture, started = load_mixture(shipped(run["mixture"])), time.time()
    total, columns = evaluation_rows(mixture, tokenizer), min(100, shutil.get_terminal_size().columns)
    with tqdm(total=total, desc="evaluate", unit="row", ncols=columns) as bar:
        scores = evaluate(model, tokenizer, mixture, batch_tokens=run["batch_tokens"], on_rows=bar.update)
    about = {"directory": settings.adapter, "command": sys.argv, "date": run["date"], "minimon": minimon.__version__,
             "torch": torch.__version__, "python": platform.python_version(), "device": settings.device,
             "evaluate_seconds": round(time.time() - started, 1)}
    report = build_report(scores, model=run["model"], adapter=sha256(Path(settings.adapter) / "adapter_model.safetensors"),
                          seed=run["seed"], epsilon=run["epsilon"], run=about)
    if settings.out:
        Path(settings.out).mkdir(parents=True, exist_ok=True)
        write_report(report, settings.out, scores)
    print(f"\n{table(report)}\n\n{verdict_line(report)}")
    return 0


def run_settings(settings: Settings) -> dict:
    """What the command line leaves open comes from the run's settings.json."""
    check_device(settings.device)
    if not settings.adapter:
        raise ValueError("--adapter: expected a run directory such as runs/default-seed0, got none")
    if bool(settings.score) != bool(settings.task):
        raise ValueError("--score and --task: expected both, a file of transcripts and the task to ask of them; got one")
    path = Path(settings.adapter) / "settings.json"
    run = {"seed": 0, "epsilon": 0.75, "batch_tokens": None, "date": date.today().isoformat()}
    run |= read_json(path) if path.is_file() else {}
    run |= {key: value for key in ("model", "mixture", "epsilon", "batch_tokens") if (value := getattr(settings, key)) is not None}
    if not run.get("model"):
        raise ValueError(f"--model: expected one, since {settings.adapter} has no settings.json that names the base")
    if not run.get("mixture") and not settings.score and not settings.merge_to:
        raise ValueError(f"--mixture: expected one, since {settings.adapter} has no settings.json that names it")
    return run


def score_file(settings: Settings, model, tokenizer, batch_tokens: int | None) -> int:
    """One line {"id", "P"} a row, in the file's order; P is of the task's first label. A row without an id gets its line's number."""
    file, _, name = settings.task.partition("#")
    task = load_task(shipped(file), name or None)
    chunk = []

    def flush():
        scores = score(model, tokenizer, task, [text for _, text in chunk], batch_tokens=batch_tokens)
        for (name, _), p in zip(chunk, scores[:, 0].tolist()):
            print(json.dumps({"id": name, "P": round(p, 6)}))
        chunk.clear()

    with open(settings.score, encoding="utf-8-sig") as lines, tqdm(desc="score", unit="row", file=sys.stderr) as bar:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{settings.score}:{number}"
            row = json_row(line, where)
            text = lookup(row, task.text, where)
            if not isinstance(text, str):
                raise ValueError(f"{where}: expected text in field {task.text!r}, got {type(text).__name__}")
            chunk.append((row.get("id", number), text))
            if len(chunk) == CHUNK:
                flush()
            bar.update()
        flush()
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
