"""Fine-tune a monitor with LoRA on a mixture of one-token classification tasks; measure it on domains and prompts it never saw.

    python train.py                                          # the shipped mixture on the shipped base
    python train.py --model Qwen/Qwen3-0.6B --device cuda    # a real checkpoint
    torchrun --nproc-per-node 8 train.py --device cuda ...   # on several devices: the same steps, their groups dealt out

B rows of a step, in groups of one task that share their prompt; with --instruct, groups of conversations among or after them. A run
directory holds the adapter (PEFT's format), settings.json, log.jsonl, scores.jsonl, report.json and report.md, and until it is
finished the state that --resume goes on from.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from minimon.batch import fit_row, make_batch, row_limit
from minimon.checkpoint import load_model
from minimon.run.cli import one_line_errors, parse, peak_memory_gb, setting, shipped, stop_signals
from minimon.run.processes import copy_from_first, counter, from_first, rank, shard, size, start, sum_gradients
from minimon.study.self_labels import label_quality, labelled_rows, load_labels, save_labels, self_labels, thought_tokens, unlabelled_rows
from minimon.evaluate import evaluate, evaluation_rows, limit_rows, rope_switch
from minimon.files import resolve, sha256
from minimon.steps import conversation_loss, refuse_long
from minimon.tasks import SCHEDULES
from minimon.run.known import Known
from minimon.lora import add_lora, adapter_tensors, enable_lora, load_adapter, save_adapter
from minimon.loss import label_token_loss, vocab_token_loss
from minimon.steps import PARTS, check_settings, halved, instruction_plan, share_of, training_steps
from minimon.run.provenance import check_same, provenance
from minimon.report import build_report, table, verdict_line, write_report
from minimon.run.directory import find_run, load_state, save_state, start_run
from minimon.tasks import load_mixture, near_duplicates
from minimon.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Settings:
    # data
    model: str = setting("data/base", "checkpoint directory or hub id")
    mixture: str = setting("data/mixtures/default.toml", "tasks to train on and to evaluate on")
    batch_size: int = setting(24, "rows of a step")
    group_size: int = setting(8, "rows of one task that go through the model together")
    batch_tokens: int | None = setting(None, "tokens of a forward pass in evaluation; 1024 on a CPU, 65536 on cuda if not given")
    max_tokens: int | None = setting(None, "of a row, or its text loses its middle; the base's max_position_embeddings if not given")
    seed: int = setting(0, "fixes the adapter's start, the rows and their order")
    date: str | None = setting(None, "what a chat template is told is today, as 2026-01-31; today if not given")
    instruct: str | None = setting(None, "instruction-following training; the mixture's schedule if not given", SCHEDULES)
    instruct_fraction: float | None = setting(None, "of a step's rows, with --instruct joint; the mixture's if not given")
    labels: str = setting("gold", "of the training rows: theirs, or the base's own answers with thinking", ("gold", "self"))
    label_samples: int = setting(1, "thoughts that a self label is the mean of; 1 is greedy")
    # model
    base_scores: str | None = setting(None, "file of the base's scores, shared by runs on the same base and rows; made if it is not there")
    init_adapter: str | None = setting(None, "directory of an adapter to go on from; a new one if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base: float32 or bfloat16; bfloat16 on cuda if not given", ("float32", "bfloat16"))
    r: int = setting(8, "rank of the adapter")
    lora_alpha: float = setting(16.0, "the adapter is scaled by lora_alpha / r")
    loss: str = setting("vocab", "cross-entropy of the answer over the vocabulary or over the labels", ("vocab", "label"))
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    compile: bool = setting(False, "compile the blocks for training with torch.compile: minutes at the start, then faster steps")
    shard: bool = setting(False, "with torchrun: spread the base over the processes, for one that a device cannot hold")
    # optimizer
    steps: int = setting(400, "optimizer steps")
    lr: float = setting(3e-3, "peak learning rate")
    instruct_steps: int = setting(200, "steps after the classification phase, with --instruct after")
    instruct_lr: float = setting(1e-3, "their peak learning rate")
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


def main(settings: Settings) -> int:
    check_settings(settings)
    device = start(settings.device)
    mixture = load_mixture(shipped(settings.mixture))
    phases, conversations = instruction_plan(settings, mixture)
    out = Path(settings.out or f"runs/{mixture.name}-seed{settings.seed}")
    saved, finished, today = from_first(lambda: (find_run(out, asdict(settings)), (out / "report.json").exists(), date.today().isoformat()))
    if saved and finished:
        print(f"{out}: this run is finished; its report is in report.md")
        return 0
    made = from_first(lambda: provenance(sys.argv, resolve(shipped(settings.model)), mixture,
                                         settings.init_adapter and f"{settings.init_adapter}/adapter_model.safetensors"))
    if saved:
        check_same(out, made, ("base", "data"), "name another --out, or give --overwrite to start again")
    day = (saved or {}).get("date") or settings.date or today
    tokenizer = load_tokenizer(shipped(settings.model), date=day)
    for task in mixture.all_tasks():
        label_ids(tokenizer, task)             # refused before anything is trained; an evaluation task may share a training task's name
    labels = {task.name: label_ids(tokenizer, task) for task in mixture.train}

    torch.manual_seed(settings.seed)
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    model = load_model(shipped(settings.model), dtype=dtype, device="cpu" if settings.shard else device)
    if settings.shard:
        shard(model, device)
    limit_rows(tokenizer, model, settings.max_tokens)
    refuse_long(tokenizer, conversations, row_limit(tokenizer))
    model.gradient_checkpointing = settings.gradient_checkpointing
    step = None if saved else from_first(lambda: start_run(out, asdict(settings), day, made))
    started, stopped = time.time(), stop_signals()
    rows, label_report = training_rows(settings, mixture, model, tokenizer, out, stopped)
    if stopped:
        return interrupted(stopped, out)
    start_adapter(model, settings)
    if settings.compile:
        model.compile_blocks()
    adapter = adapter_tensors(model)
    copy_from_first(adapter.values())
    optimizer = torch.optim.AdamW(adapter.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    plan = training_steps(settings, mixture, rows, phases, conversations)
    step = load_state(out, adapter, optimizer) if saved else step
    print(f"{settings.model}: {sum(p.numel() for p in model.model.parameters() if not p.requires_grad):,} frozen parameters, "
          f"{sum(p.numel() for p in adapter.values()):,} in the adapter; {len(mixture.train)} training tasks; writing to {out}"
          + ("" if saved or not settings.resume else ", where nothing was saved: a new run"))

    with open(os.devnull if rank() else out / "log.jsonl", "a", encoding="utf-8", buffering=1) as log, \
            progress(len(plan), step, "train", "step") as bar:
        for groups, lr in plan[step:]:
            losses, tokens, cut = step_gradient(model, tokenizer, groups, labels, settings)
            *sums, tokens, cut, stopping = sum_gradients(list(adapter.values()), [*losses.values(), tokens, cut, len(stopped)])
            losses = dict(zip(losses, sums))
            norm = torch.nn.utils.clip_grad_norm_(adapter.values(), settings.max_grad_norm).item()
            if not all(map(math.isfinite, [norm, *losses.values()])):
                raise ValueError(f"step {step + 1}: expected a finite loss and gradient, got {losses} and {norm}; {out} keeps the last "
                                 f"saved state; try a lower --lr or --instruct-lr than {lr:g}")
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            log.write(json.dumps({"step": step, **{name: round(loss, 6) for name, loss in losses.items()}, "lr": lr,
                                  "grad_norm": round(norm, 6), "tokens": int(tokens), "rows_cut": int(cut),
                                  "seconds": round(time.time() - started, 3)}) + "\n")
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
            bar.update()
            if rank() == 0 and (step % settings.save_every == 0 or step == len(plan) or stopping):
                save_state(out, adapter, optimizer, step)
            if stopping:
                return interrupted(stopped, out)

    if rank() == 0:
        save_adapter(model, out, base=settings.model)
    trained_seconds = time.time() - started
    known = settings.base_scores and from_first(lambda: Known(settings.base_scores, made["base"], [
        settings.dtype, settings.device, day, *filter(None, [settings.max_tokens])]))
    with progress(evaluation_rows(mixture, tokenizer), 0, "evaluate", "row") as bar:
        try:
            scores = evaluate(model, tokenizer, mixture, batch_tokens=settings.batch_tokens, known=known,
                              on_rows=counter(bar, settings.shard, stopped))
        except KeyboardInterrupt:
            return interrupted(stopped, out)
    if rank():
        return 0
    if known:
        known.save()
    enable_lora(model, True)
    run = {**made, "directory": str(out), "date": day, "device": settings.device, "processes": size(),
           "train_seconds": round(trained_seconds, 1),
           "evaluate_seconds": round(time.time() - started - trained_seconds, 1), "peak_memory_gb": peak_memory_gb()}
    report = build_report(scores, model=settings.model, adapter=sha256(out / "adapter_model.safetensors"), seed=settings.seed,
                          epsilon=settings.epsilon, run=run, labels=label_report, leakage=near_duplicates(mixture, conversations))
    write_report(report, out, scores)
    (out / "state.safetensors").unlink(missing_ok=True)
    cost = f"{time.time() - started:.0f} s and {run['peak_memory_gb']:.1f} GB of memory"
    print(f"\n{table(report)}\n\nreport and adapter in {out}, after {cost}\n{verdict_line(report)}")
    return 0


# ---- what is trained on ----------------------------------------------------------------------------------------------------


def training_rows(settings: Settings, mixture, model, tokenizer, out: Path, stopped: list):
    """Task name -> rows, with gold labels or the base's own; and a report on the latter. A run that goes on reads them again."""
    if settings.labels == "gold":
        return {task.name: mixture.train_rows(task, settings.seed) for task in mixture.train}, None
    path, count = out / "labels.jsonl", sum(map(len, unlabelled_rows(mixture, settings.seed).values())) * settings.label_samples
    if not from_first(path.exists):
        with progress(count, 0, "label", "row") as bar:
            try:
                labels = self_labels(model, tokenizer, mixture, settings.seed, samples=settings.label_samples,
                                     max_new_tokens=thought_tokens(mixture), batch_tokens=settings.batch_tokens,
                                     on_rows=counter(bar, settings.shard, stopped))
            except KeyboardInterrupt:
                return {}, None
        from_first(lambda: save_labels(labels, path))
    labels = from_first(lambda: load_labels(path, mixture, settings.seed))
    quality = label_quality(labels, mixture)
    print(f"labels from the base's own thinking: {quality['right']:.3f} of {quality['rows']} right, AUROC {quality['auroc']:.3f}, "
          f"{quality['well_formed']:.3f} well-formed")
    return labelled_rows(mixture, settings.seed, labels), quality


def start_adapter(model, settings: Settings) -> None:
    """A new adapter, which leaves the base as it is, or one to go on from."""
    if settings.init_adapter:
        load_adapter(model, settings.init_adapter)
        for tensor in adapter_tensors(model).values():
            tensor.requires_grad_(True)
    else:
        add_lora(model, settings.r, settings.lora_alpha, "all-linear")


def interrupted(stopped: list[int], out: Path) -> int:
    print(f"\nstopped; to go on: the same command with --resume --out {out}")
    return 128 + (stopped or [signal.SIGTERM])[0]                                      # none here: the signal came to another process


# ---- the step --------------------------------------------------------------------------------------------------------------


def label_ids(tokenizer, task) -> list[int]:
    try:
        return tokenizer.label_ids(list(task.labels))
    except ValueError as error:
        raise ValueError(f"{task.where}: task {task.name!r}: {error}") from error


def step_gradient(model, tokenizer, groups, labels: dict[str, list[int]], settings: Settings) -> tuple[dict[str, float], int, int]:
    """Adds the gradient of this process's groups of a step -> (their part in the mean loss of the classification and of the instruction
    rows, tokens, rows cut). Where CUDA is out of memory the step is taken again, with its groups in halves."""
    counts = {name: sum(len(group.rows) for group in groups if (group.task is None) == talk) for name, talk in PARTS.items()}
    share = share_of(groups, settings.shard)
    while True:
        try:
            return add_gradients(model, tokenizer, share, counts, labels, settings)
        except torch.OutOfMemoryError as error:
            share = [] if settings.shard else halved(share)
            if not share:
                raise ValueError("out of memory in a step; give a lower --group-size, or --gradient-checkpointing") from error
        model.zero_grad()
        torch.cuda.empty_cache()               # after the error, whose traceback held tensors


def add_gradients(model, tokenizer, share, counts: dict[str, int], labels, settings: Settings):
    """step_gradient for [(group, weight)], one by one."""
    losses, tokens, cut = {name: 0.0 for name, count in counts.items() if count}, 0, 0
    for group, weight in share:
        if group.task is None:
            name, (loss, some) = "instruct_loss", conversation_loss(model, tokenizer, group.rows)
        else:
            batch = encode_group(tokenizer, group, model).to(model.lm_head.weight.device)
            hidden = model.packed(batch.prefix, batch.suffix, batch.lengths - 1)          # (B, C)
            ids = torch.tensor(labels[group.task.name], device=hidden.device)             # (N,)
            name, loss = "loss", answer_loss(settings.loss, model, hidden, ids, batch.targets)
            some = batch.prefix.shape[1] + int(batch.lengths.sum())
            cut += batch.cut * weight
        (loss * weight * len(group.rows) / settings.batch_size).backward()
        losses[name] += loss.item() * weight * len(group.rows) / counts[name]
        tokens += int(some * weight)
    return losses, tokens, cut


def encode_group(tokenizer, group, model):
    """Ids of a group with its shared prefix; none is shared where a row is so long that it rotates otherwise."""
    ids, left_out = zip(*(fit_row(tokenizer, group.task, row.text) for row in group.rows))
    switch = rope_switch(model)
    split = switch is not None and max(map(len, ids)) > switch
    return replace(make_batch(ids, [row.label for row in group.rows], 0 if split else None), cut=sum(map(bool, left_out)))


def answer_loss(kind: str, model, hidden, label_ids, targets):
    """hidden (B, C), label_ids (N,), targets (B,) label indices -> mean loss ()."""
    scale = 1 / model.config.logits_scaling
    if kind == "label":
        return label_token_loss(hidden, model.lm_head.weight, label_ids, targets, scale=scale)
    return vocab_token_loss(hidden, model.lm_head.weight, label_ids[targets], scale=scale)


# ---- small things ----------------------------------------------------------------------------------------------------------


def progress(total: int, initial: int, name: str, unit: str):
    return tqdm(total=total, initial=initial, desc=name, unit=unit, ncols=min(100, shutil.get_terminal_size().columns), mininterval=0.5,
                disable=rank() > 0)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
