"""Fine-tune a monitor with LoRA on a mixture of one-token classification tasks; measure it on domains and prompts it never saw.

    python train.py                                          # the shipped mixture on the shipped base
    python train.py --model Qwen/Qwen3-0.6B --device cuda    # a real checkpoint
    torchrun --nproc-per-node 8 train.py --device cuda ...   # on several devices: the same steps, their groups dealt out

A run directory holds the adapter (PEFT's format), settings.json, log.jsonl, scores.jsonl and the report; until it is finished
also the state that --resume goes on from.
"""

import math
import sys
import time
from dataclasses import asdict, dataclass

import torch

from minimon.batch import most_tokens, row_limit, task_label_ids
from minimon.checkpoint import default_dtype, load_model
from minimon.evaluate import evaluate, evaluation_rows
from minimon.files import read_toml, resolve, sha256
from minimon.lora import adapter_tensors, add_lora, load_adapter, save_adapter
from minimon.report import build_report, reading, table, verdict_line, write_report
from minimon.report.leakage import near_duplicates
from minimon.run.base_scores import BaseScores
from minimon.run.checks import check_training
from minimon.run.cli import StopSignals, one_line_errors, parse, peak_memory_gb, progress, setting, shipped
from minimon.run.directory import RunDirectory
from minimon.run.load import LoadWatch
from minimon.run.memory import keep_memory, pass_tokens
from minimon.run.processes import (
    copy_from_first,
    count_rows,
    deal,
    dealing,
    from_first,
    rank,
    shard,
    size,
    start,
    sum_gradients,
)
from minimon.run.provenance import provenance
from minimon.run.recipes import with_recipe, with_steps
from minimon.run.show import show
from minimon.run.tensorboard import event_writer
from minimon.run.validation import Validation
from minimon.steps import count_passes, instruction_plan, refuse_long, training_step, training_steps
from minimon.study.self_labels import training_rows
from minimon.tasks import SCHEDULES, load_mixture, load_task
from minimon.tokenizer import load_tokenizer

LABELS = ("gold", "self", "self-at-once")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    # data
    model: str = setting("data/base", "checkpoint directory or hub id")
    mixture: str = setting("data/mixtures/default.toml", "tasks to train on and to evaluate on")
    splits: str | None = setting(None, "measure these splits only, separated by commas; all if not given")
    eval_rows: int | None = setting(None, "rows an evaluation task; the mixture's if not given")
    cap: int | None = setting(None, "rows a training task; the mixture's if not given")
    batch_size: int | None = setting(None, "rows of a step; 24 on the shipped base, 32 on another")
    group_size: int | None = setting(
        None, "of these, rows that share a prompt; 8 on the shipped base, else 4"
    )
    batch_tokens: int | None = setting(None, "tokens of a pass, about; what the device holds if not given")
    max_tokens: int | None = setting(None, "of a row, or its text loses its middle; the base's if not given")
    seed: int = setting(0, "fixes the adapter's start, the rows and their order")
    date: str | None = setting(None, "today to a chat template, as 2026-01-31; today if not given")
    instruct: str | None = setting(None, "instruction training; the mixture's if not given", SCHEDULES)
    instruct_fraction: float | None = setting(None, "of a step's rows, if joint; the mixture's if not given")
    labels: str = setting("gold", "or the base's own answers, with thinking or at once", LABELS)
    label_samples: int = setting(1, "thoughts that a self label is the mean of; 1 is greedy")
    # model
    base_scores: str | None = setting(None, "file of the base's scores, shared by runs on the same rows")
    init_adapter: str | None = setting(None, "directory of an adapter to go on from; a new one if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base; what the device does fast if not given", DTYPES)
    r: int | None = setting(None, "rank of the adapter; 8 on the shipped base, 16 on another")
    lora_alpha: float | None = setting(None, "the adapter is scaled by lora_alpha / r; 16, or 32")
    loss: str = setting("vocab", "cross-entropy over the vocabulary or over the labels", ("vocab", "label"))
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time")
    compile: bool = setting(False, "torch.compile the blocks: minutes at the start, then faster steps")
    shard: bool = setting(False, "with torchrun: spread a base that one device cannot hold")
    # optimizer
    steps: int | None = setting(None, "400 if not given, or 10 passes over the rows where these are fewer")
    epochs: float | None = setting(None, "passes over the training rows, in place of --steps")
    lr: float | None = setting(
        None, "peak learning rate; 3e-3 on the shipped base, 1.5e-3 x 576 / width on another"
    )
    instruct_steps: int = setting(200, "steps after the classification phase, with --instruct after")
    instruct_lr: float = setting(1e-3, "their peak learning rate")
    schedule: str = setting("linear", "decay after the warm-up, to zero", ("linear", "cosine"))
    warmup: float = setting(0.05, "linear warm-up: a share of the steps if below 1, else steps")
    stop_early: bool = setting(False, "stop when the loss on validation rows has not fallen for three saves")
    weight_decay: float = setting(0.0, "AdamW's, on the adapter")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    # run
    quick: bool = setting(False, "a first look within a minute: few tasks and pairs of the shipped world")
    show: str | None = setting(None, "print one encoded row of this task, FILE or FILE#NAME, and exit")
    tensorboard: bool = setting(False, "also write the log as TensorBoard's event files")
    out: str | None = setting(None, "run directory; runs/<mixture>-seed<seed> if not given")
    overwrite: bool = setting(False, "replace a run that is in --out")
    resume: bool = setting(False, "go on with the run that is in --out")
    save_every: int = setting(100, "steps between saves")
    epsilon: float = setting(0.75, "the verdict's threshold on mean performance")


def main(settings: Settings) -> int:
    settings = with_recipe(settings)
    check_training(settings)
    device = start(settings.device)
    if settings.show:
        return show_task(settings, device)
    mixture = load_mixture(shipped(settings.mixture)).restricted(
        splits=settings.splits, eval_rows=settings.eval_rows, cap=settings.cap
    )
    settings = with_steps(settings, mixture)
    out = settings.out or f"runs/{mixture.name}-seed{settings.seed}"
    with RunDirectory({**asdict(settings), "out": out}) as run:
        if run.status == "finished":
            print(f"{out}: this run is finished; its report is in report.md")
            return 0
        return train(settings, run, mixture, device)


def train(settings: Settings, run: RunDirectory, mixture, device: str) -> int:
    # data: every label must be one token for this tokenizer; an evaluation task may bear a training task's name
    base, date = resolve(shipped(settings.model)), run.settings["date"]
    tokenizer = load_tokenizer(base, date=date)
    for task in mixture.all_tasks():
        task_label_ids(tokenizer, task)
    labels = {task.name: task_label_ids(tokenizer, task) for task in mixture.train}
    schedule, conversations = instruction_plan(settings, mixture)

    # model: the base is frozen; the adapter is new, which leaves the base as it is, or one to go on from
    torch.manual_seed(settings.seed)
    recorded = run.settings["dtype"]
    dtype = getattr(torch, recorded) if recorded else default_dtype(base, settings.device)
    model = load_model(base, dtype=dtype, device="cpu" if settings.shard else device)
    if settings.shard:
        shard(model, device)
    limit = row_limit(model.config, settings.max_tokens)
    refuse_long(tokenizer, conversations, most_tokens(limit))
    start_file = settings.init_adapter and f"{settings.init_adapter}/adapter_model.safetensors"
    made = from_first(lambda: provenance(sys.argv, base, mixture, start_file))
    run.begin(made, dtype=str(model.lm_head.weight.dtype).removeprefix("torch."))
    started = time.time()
    rows, label_report = training_rows(settings, mixture, model, tokenizer, run.path, limit=limit)
    if label_report:
        print(
            f"labels of the base's own: {label_report['right']:.3f} of {label_report['rows']} right, "
            f"{label_report['well_formed']:.3f} well-formed"
        )
    if settings.init_adapter:
        load_adapter(model, settings.init_adapter)
    else:
        add_lora(model, settings.r, settings.lora_alpha, "all-linear")
    model.gradient_checkpointing, model.compiled = settings.gradient_checkpointing, settings.compile
    adapter = adapter_tensors(model)
    for tensor in adapter.values():
        tensor.requires_grad_(True)
    copy_from_first(adapter.values())

    # optimizer
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(adapter.values(), lr=settings.lr, weight_decay=decay, fused=True)
    steps = training_steps(mixture, rows, conversations, schedule, settings)
    done = run.load_state(adapter, optimizer)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in adapter.values())
    print(
        f"{settings.model}: {frozen:,} frozen parameters, {trained:,} in the adapter; writing to {run.path}"
    )
    if settings.model == "data/base":
        print("the shipped base knows a small made-up world only; a real model is named with --model")
    if settings.resume:
        print(f"goes on after step {done}" if done else "nothing was saved there: a new run")

    # loop
    validation = Validation(
        model, tokenizer, mixture, run.logged(), limit=limit, batch_tokens=settings.batch_tokens
    )
    events = event_writer(run.path, settings.tensorboard)
    batch_tokens, watch = pass_tokens(model, settings.batch_tokens, training=True), LoadWatch()
    before = {} if done else validation.measure(0)
    with StopSignals() as stop, progress(len(steps), done, "train", "step") as bar:
        for groups, lr in steps[done:]:
            if done == schedule[0].steps:
                optimizer.state.clear()  # the second phase is what a run from the first one's adapter would be
            if settings.stop_early and validation.is_over:
                bar.write(
                    f"stopped early, after {done} of {len(steps)} steps: the validation loss no longer falls",
                    file=sys.stderr,
                )
                break
            step_started = time.time()
            shares = [[groups[i] for i in share] for share in deal([group.characters for group in groups])]
            passes = 0
            if settings.shard:  # every process holds a piece of the base, so all take equally many passes
                passes = max(
                    count_passes(tokenizer, share, labels, batch_tokens=batch_tokens, limit=limit)
                    for share in shares
                )
            result = training_step(
                model,
                tokenizer,
                shares[rank()],
                labels,
                step_groups=groups,
                loss=settings.loss,
                batch_tokens=batch_tokens,
                limit=limit,
                passes=passes,
            )
            batch_tokens = result.batch_tokens  # half of it where memory ran out
            numbers = [*result.losses.values(), result.tokens, result.rows_cut, bool(stop)]
            *losses, tokens, rows_cut, stopping = sum_gradients(list(adapter.values()), numbers)
            losses = dict(zip(result.losses, losses))
            norm = torch.nn.utils.clip_grad_norm_(adapter.values(), settings.max_grad_norm).item()
            if not all(map(math.isfinite, [norm, *losses.values()])):
                raise ValueError(
                    f"step {done + 1}: expected a finite loss and gradient, got {losses} and {norm}; {run.path} keeps the last "
                    f"saved state; try a lower --lr or --instruct-lr than {lr:g}"
                )
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            done += 1

            is_last = done == len(steps)
            is_measured = done % settings.save_every == 0 or is_last
            if is_measured:
                losses |= validation.measure(done)
            counts = {
                "tokens": int(tokens),
                "rows_cut": int(rows_cut),
                "seconds": round(time.time() - started, 3),
            }
            numbers = {
                **{name: round(loss, 6) for name, loss in losses.items()},
                "lr": lr,
                "grad_norm": round(norm, 6),
            }
            if done == 1 and before:
                counts["validation_loss_before"] = before["validation_loss"]
            run.log({"step": done, **numbers, **counts})
            events.add(done, numbers)
            if is_measured or stopping:  # after its line in the log, which a resumed run cuts at the state
                run.save_state(adapter, optimizer, done)
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
            bar.update()
            if slow := watch.line(time.time() - step_started, int(tokens)):
                bar.write(slow, file=sys.stderr)
            if stopping:
                stop.leave()
    events.close()

    # report
    if rank() == 0:
        save_adapter(model, run.path, base=settings.model)
    trained_seconds = time.time() - started
    known = None
    if settings.base_scores:
        about = [run.settings["dtype"], settings.device, date, settings.max_tokens]
        known = from_first(lambda: BaseScores(settings.base_scores, made["base"], about))
    with progress(evaluation_rows(mixture), 0, "evaluate", "row") as bar:
        scores = evaluate(
            model,
            tokenizer,
            mixture,
            limit=limit,
            batch_tokens=settings.batch_tokens,
            base=known and known.sides(mixture),
            each=dealing(model),
            on_rows=count_rows(bar, model),
        )
    if rank() > 0:
        return 0
    if known:
        known.add(mixture, scores)
        known.save()
    about = {
        **made,
        "directory": str(run.path),
        "date": date,
        "device": settings.device,
        "processes": size(),
        "train_seconds": round(trained_seconds, 1),
        "evaluate_seconds": round(time.time() - started - trained_seconds, 1),
        "peak_memory_gb": peak_memory_gb(device),
    }
    report = build_report(
        scores,
        model=settings.model,
        adapter=sha256(run.path / "adapter_model.safetensors"),
        seed=settings.seed,
        epsilon=settings.epsilon,
        run=about,
        labels=label_report,
        leakage=near_duplicates(mixture, conversations),
        training={
            "steps": done,
            "rows": sum(map(len, rows.values())),
            "epochs": done * settings.batch_size / max(1, sum(map(len, rows.values()))),
            "validation_loss": validation.losses,
        },
    )
    write_report(report, run.path, scores)
    run.finish()
    cost = f"{time.time() - started:.0f} s and {about['peak_memory_gb']:.1f} GB of memory"
    print(f"\n{table(report)}\n\nreport and adapter in {run.path}, after {cost}")
    print("\n".join(reading(report)))
    print(f"the texts it got most wrong, and every figure: {run.path / 'report.html'}")
    if settings.quick:
        print("next: python train.py for all of it, your own task with --mixture, a real model with --model")
    elif "inter_task" not in report:
        print(f"next: a threshold, with eval.py --adapter {run.path} --calibrate TASK")
    print(verdict_line(report))
    return 0


def show_task(settings: Settings, device: str) -> int:
    model = load_model(shipped(settings.model), device=device)
    tokenizer = load_tokenizer(shipped(settings.model), date=settings.date)
    file, _, name = settings.show.partition("#")
    if file == settings.mixture or {"train", "eval"} & read_toml(shipped(file)).keys():
        raise ValueError(
            f"--show: expected a task file, got {file}, which is a mixture; name one of its tasks"
        )
    print(
        show(
            model,
            tokenizer,
            load_task(shipped(file), name or None),
            limit=row_limit(model.config, settings.max_tokens),
        )
    )
    return 0


if __name__ == "__main__":
    with one_line_errors("the same command with --resume"):
        keep_memory()
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
