"""Fine-tune a monitor with LoRA on a mixture of one-token classification tasks; measure it on domains and prompts it never saw.

    python train.py                                          # the shipped mixture on the shipped base
    python train.py --model Qwen/Qwen3-0.6B --device cuda    # a real checkpoint

B rows of a step, in groups of one task that share their prompt. A run directory holds the adapter (PEFT's format), settings.json,
log.jsonl, report.json and report.md, and until it is finished the state that --resume goes on from.
"""

import json
import math
import platform
import resource
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

import minimon
from minimon.batch import encode_row, make_batch, training_order
from minimon.checkpoint import load_model
from minimon.cli import check_device, one_line_errors, parse, setting, shipped
from minimon.evaluate import evaluate, evaluation_rows, rope_switch
from minimon.files import open_tensors, read_json, sha256, write_json, write_tensors, write_text
from minimon.lora import add_lora, adapter_tensors, enable_lora, save_adapter
from minimon.loss import label_token_loss, vocab_token_loss
from minimon.report import build_report, table, verdict_line, write_report
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Settings:
    # data
    model: str = setting("data/base", "checkpoint directory or hub id")
    mixture: str = setting("data/mixtures/default.toml", "tasks to train on and to evaluate on")
    batch_size: int = setting(24, "rows of a step")
    group_size: int = setting(8, "rows of one task that go through the model together")
    batch_tokens: int | None = setting(None, "tokens of a forward pass in evaluation; 1024 on a CPU, 65536 on cuda if not given")
    seed: int = setting(0, "fixes the adapter's start, the rows and their order")
    date: str | None = setting(None, "what a chat template is told is today, as 2026-01-31; today if not given")
    # model
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base: float32 or bfloat16; bfloat16 on cuda if not given", ("float32", "bfloat16"))
    r: int = setting(8, "rank of the adapter")
    lora_alpha: float = setting(16.0, "the adapter is scaled by lora_alpha / r")
    loss: str = setting("vocab", "cross-entropy of the answer over the vocabulary or over the labels", ("vocab", "label"))
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    # optimizer
    steps: int = setting(600, "optimizer steps")
    lr: float = setting(3e-3, "peak learning rate")
    schedule: str = setting("linear", "decay after the warm-up, to zero", ("linear", "cosine"))
    warmup: int = setting(20, "steps of linear warm-up")
    weight_decay: float = setting(0.0, "AdamW's, on the adapter")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    # run
    out: str | None = setting(None, "run directory; runs/<mixture>-seed<seed> if not given")
    overwrite: bool = setting(False, "replace a run that is in --out")
    resume: bool = setting(False, "go on with the run that is in --out")
    save_every: int = setting(100, "steps between saves")
    epsilon: float = setting(0.75, "the verdict's threshold on mean performance")


FREE_ON_RESUME = {"out", "overwrite", "resume", "save_every", "device", "batch_tokens", "epsilon"}       # may differ from the saved run
OURS = ("settings.json", "log.jsonl", "state.safetensors", "adapter_config.json", "adapter_model.safetensors", "report.json",
        "report.md", "report.png")


def main(settings: Settings) -> int:
    check_settings(settings)
    mixture = load_mixture(shipped(settings.mixture))
    out = Path(settings.out or f"runs/{mixture.name}-seed{settings.seed}")
    saved = find_run(out, settings)
    if saved and (out / "report.json").exists():
        print(f"{out}: this run is finished; its report is in report.md")
        return 0
    day = (saved or {}).get("date") or settings.date or date.today().isoformat()
    tokenizer = load_tokenizer(shipped(settings.model), date=day)
    labels = {task.name: label_ids(tokenizer, task) for task in all_tasks(mixture)}

    torch.manual_seed(settings.seed)
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    model = load_model(shipped(settings.model), dtype=dtype, device=settings.device)
    model.gradient_checkpointing = settings.gradient_checkpointing
    add_lora(model, settings.r, settings.lora_alpha, "all-linear")
    adapter = adapter_tensors(model)
    optimizer = torch.optim.AdamW(adapter.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    order = training_order(mixture, settings.seed, settings.steps, settings.batch_size, settings.group_size)

    step = start_run(out, settings, day) if not saved else load_state(out, adapter, optimizer)
    print(f"{settings.model}: {sum(p.numel() for p in model.model.parameters() if not p.requires_grad):,} frozen parameters, "
          f"{sum(p.numel() for p in adapter.values()):,} in the adapter; {len(mixture.train)} training tasks; writing to {out}")
    started, stopped = time.time(), stop_signals()

    with open(out / "log.jsonl", "a", encoding="utf-8", buffering=1) as log, progress(settings.steps, step, "train", "step") as bar:
        for groups in order[step:]:
            tokens, loss = 0, 0.0
            for group in groups:
                batch = encode_group(tokenizer, group, model).to(settings.device)
                cache = model.prefix(batch.prefix) if batch.prefix.shape[1] else None
                hidden = model(batch.suffix, cache, at=batch.lengths - 1)                 # (B, C)
                ids = torch.tensor(labels[group.task.name], device=settings.device)       # (N,)
                part = answer_loss(settings.loss, model, hidden, ids, batch.targets) * len(group.rows) / settings.batch_size
                part.backward()
                loss += part.item()
                tokens += batch.prefix.shape[1] + int(batch.lengths.sum())
            norm = torch.nn.utils.clip_grad_norm_(adapter.values(), settings.max_grad_norm).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise ValueError(f"step {step + 1}: expected a finite loss and gradient, got {loss} and {norm}; {out} keeps the last saved "
                                 f"state; try a lower --lr than {settings.lr:g}")
            lr = optimizer.param_groups[0]["lr"] = settings.lr * lr_factor(step, settings)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            log.write(json.dumps({"step": step, "loss": round(loss, 6), "lr": lr, "grad_norm": round(norm, 6), "tokens": tokens,
                                  "seconds": round(time.time() - started, 3)}) + "\n")
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            if step % settings.save_every == 0 or step == settings.steps or stopped:
                save_state(out, adapter, optimizer, step)
            if stopped:
                return interrupted(stopped[0], out)

    save_adapter(model, out, base=settings.model)
    trained_seconds = time.time() - started
    with progress(evaluation_rows(mixture), 0, "evaluate", "row") as bar:
        def on_rows(count):
            bar.update(count)
            if stopped:
                raise KeyboardInterrupt
        try:
            scores = evaluate(model, tokenizer, mixture, batch_tokens=settings.batch_tokens, on_rows=on_rows)
        except KeyboardInterrupt:
            return interrupted(stopped[0] if stopped else signal.SIGINT, out)
    enable_lora(model, True)
    run = {"directory": str(out), "command": sys.argv, "date": day, "minimon": minimon.__version__, "torch": torch.__version__,
           "python": platform.python_version(), "device": settings.device, "train_seconds": round(trained_seconds, 1),
           "evaluate_seconds": round(time.time() - started - trained_seconds, 1), "peak_memory_gb": peak_memory_gb()}
    report = build_report(scores, model=settings.model, adapter=sha256(out / "adapter_model.safetensors"), seed=settings.seed,
                          epsilon=settings.epsilon, run=run)
    write_report(report, out, scores)
    (out / "state.safetensors").unlink(missing_ok=True)
    cost = f"{time.time() - started:.0f} s and {run['peak_memory_gb']:.1f} GB of memory"
    print(f"\n{table(report)}\n\nreport and adapter in {out}, after {cost}\n{verdict_line(report)}")
    return 0


# ---- settings and the run directory --------------------------------------------------------------------------------------


def check_settings(settings: Settings) -> None:
    for name in ("steps", "batch_size", "group_size", "batch_tokens", "save_every", "r"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a positive number, got {value}")
    if not 0 <= settings.epsilon <= 1:
        raise ValueError(f"--epsilon: expected a number in [0, 1], got {settings.epsilon}")
    if not (0 < settings.lr < float("inf")):
        raise ValueError(f"--lr: expected a positive number, got {settings.lr}")
    check_device(settings.device)


def find_run(out: Path, settings: Settings) -> dict | None:
    """The settings of the run in `out`, where --resume may go on with it; None for a new run."""
    if not (out / "settings.json").exists() or settings.overwrite:
        return None
    if not settings.resume:
        state = "a finished run" if (out / "report.json").exists() else "a run that is not finished"
        raise ValueError(f"{out}: holds {state}; name another --out, or give --overwrite to replace it"
                         + ("" if "not" not in state else ", or --resume to go on with it"))
    saved = read_json(out / "settings.json")
    changed = [f"--{key.replace('_', '-')} was {saved.get(key)!r}, now {value!r}" for key, value in asdict(settings).items()
               if key not in FREE_ON_RESUME and value != saved.get(key) and not (key == "date" and value is None)]
    if changed:
        raise ValueError(f"{out}: cannot resume with other settings: {'; '.join(changed)}")
    return saved


def start_run(out: Path, settings: Settings, day: str) -> int:
    out.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        (out / name).unlink(missing_ok=True)
    write_json(out / "settings.json", {**asdict(settings), "out": str(out), "date": day})
    return 0


def save_state(out: Path, adapter: dict, optimizer, step: int) -> None:
    """Adapter and optimizer in one file, so that one rename decides which state counts."""
    tensors = dict(adapter)
    for name, parameter in adapter.items():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    write_tensors(out / "state.safetensors", tensors, {"step": str(step)})


def load_state(out: Path, adapter: dict, optimizer) -> int:
    """Back to the last save; the log is cut there. A run stopped before its first save starts over."""
    path = out / "state.safetensors"
    step = 0
    if path.exists():
        with open_tensors(path) as file, torch.no_grad():
            step = int(file.metadata()["step"])
            for name, parameter in adapter.items():
                parameter.copy_(file.get_tensor(name))
                optimizer.state[parameter] = {key: file.get_tensor(f"{name}.{key}").to(parameter.device if key != "step" else "cpu")
                                              for key in ("step", "exp_avg", "exp_avg_sq")}
    log = out / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[:step] if log.exists() else []
    write_text(log, "".join(lines))
    return step


def stop_signals() -> list[int]:
    """A list that SIGINT and SIGTERM append to; the loops look at it where stopping is safe."""
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    return received


def interrupted(number: int, out: Path) -> int:
    print(f"\nstopped, state saved; to go on: the same command with --resume --out {out}")
    return 128 + number


# ---- the step --------------------------------------------------------------------------------------------------------------


def label_ids(tokenizer, task) -> list[int]:
    try:
        return tokenizer.label_ids(list(task.labels))
    except ValueError as error:
        raise ValueError(f"{task.where}: task {task.name!r}: {error}") from error


def encode_group(tokenizer, group, model):
    """Ids of a group with its shared prefix; none is shared where a row is so long that it rotates otherwise."""
    ids = [encode_row(tokenizer, group.task, row.text) for row in group.rows]
    switch = rope_switch(model)
    split = switch is not None and max(map(len, ids)) > switch
    return make_batch(ids, [row.label for row in group.rows], 0 if split else None)


def answer_loss(kind: str, model, hidden, label_ids, targets):
    """hidden (B, C), label_ids (N,), targets (B,) label indices -> mean loss ()."""
    scale = 1 / model.config.logits_scaling
    if kind == "label":
        return label_token_loss(hidden, model.lm_head.weight, label_ids, targets, scale=scale)
    return vocab_token_loss(hidden, model.lm_head.weight, label_ids[targets], scale=scale)


def lr_factor(step: int, settings: Settings) -> float:
    """Of the peak learning rate: linear warm-up, then linear or cosine decay to zero after the last step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


# ---- small things ----------------------------------------------------------------------------------------------------------


def all_tasks(mixture):
    return mixture.train + [task for groups in mixture.splits.values() for tasks in groups.values() for task in tasks]


def peak_memory_gb() -> float:
    """Of this process, on the CPU."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == "darwin" else 2 ** 20), 2)


def progress(total: int, initial: int, name: str, unit: str):
    return tqdm(total=total, initial=initial, desc=name, unit=unit, ncols=min(100, shutil.get_terminal_size().columns), mininterval=0.5)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
