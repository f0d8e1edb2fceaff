"""Fine-tune a monitor with LoRA on a mixture of one-token classification tasks; measure it on domains and prompts it never saw.

    python train.py                                          # the shipped mixture on the shipped base
    python train.py --model Qwen/Qwen3-0.6B --device cuda    # a real checkpoint
    torchrun --nproc-per-node 8 train.py --device cuda ...   # on several devices: the same steps, their groups dealt out

A run directory holds the adapter (PEFT's format), settings.json, log.jsonl, scores.jsonl and the report; until it is finished
also the state that --resume goes on from. All settings, with what they are if not given: minimon/run/settings.py.
"""

import math
import sys
import time
from dataclasses import asdict

import torch

from minimon.batch import row_limit
from minimon.evaluate import check_questions, compare, evaluation_rows
from minimon.files import resolve, sha256
from minimon.lora import adapter_tensors, add_lora, load_adapter, save_adapter
from minimon.report import build_report, closing_lines, near_duplicates, write_report
from minimon.run import processes
from minimon.run.busy import LoadWatch
from minimon.run.cli import StopSignals, one_line_errors, parse, peak_memory_gb, progress
from minimon.run.directory import RunDirectory
from minimon.run.load import check_adapter, load_base
from minimon.run.measured import MeasuredSides
from minimon.run.memory import keep_memory, pass_tokens
from minimon.run.processes import from_first, rank
from minimon.run.provenance import about_run, provenance
from minimon.run.settings import TrainSettings as Settings
from minimon.run.settings import with_recipe, with_steps
from minimon.run.show import opening_lines, show
from minimon.run.validation import no_longer_falls, validate, validation_losses, validation_rows
from minimon.steps import (
    check_conversations,
    encode_groups,
    instruction_plan,
    step_passes,
    training_step,
    training_steps,
)
from minimon.study.self_labels import training_rows
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer


def main(settings: Settings) -> int:
    device = processes.start(settings.device)
    settings = with_recipe(settings)
    if settings.show:
        print(show(settings, device))
        return 0
    mixture = load_mixture(settings.mixture)
    mixture = mixture.restricted(settings.splits, settings.eval_rows, settings.cap)
    if settings.init_adapter:
        check_adapter(mixture, settings.init_adapter)
    settings = with_steps(settings, mixture)
    with RunDirectory(asdict(settings)) as run:
        if run.status == "finished":
            print(f"{run.path}: this run is finished; its report is in report.md")
        else:
            train(settings, mixture, run, device)
    return 0


def train(settings: Settings, mixture, run: RunDirectory, device: str) -> None:
    # data
    base = resolve(settings.model)
    tokenizer = load_tokenizer(base, date=run.settings["date"])
    schedule, conversations = instruction_plan(settings, mixture)
    validated = validation_rows(mixture)
    if settings.stop_early and (not validated or len(schedule) > 1):
        raise ValueError(
            "--stop-early: expected training tasks with validation rows, and one phase of training; "
            f"got {len(validated)} such tasks and {len(schedule)} phases"
        )

    # model: the base is frozen; the adapter is new, which leaves the base as it is, or one to go on from
    model = load_base(base, dtype=run.settings["dtype"], device=device, sharded=settings.shard)
    limit = row_limit(model.config, settings.max_tokens)
    check_questions(tokenizer, mixture, limit)
    check_conversations(tokenizer, conversations, limit)
    source = from_first(lambda: provenance(sys.argv, base, mixture, settings.init_adapter))
    run.begin(source, dtype=str(model.lm_head.weight.dtype).removeprefix("torch."))
    started = time.time()
    rows, label_report = training_rows(settings, mixture, model, tokenizer, run.path, limit=limit)
    torch.manual_seed(settings.seed)
    if settings.init_adapter:
        load_adapter(model, settings.init_adapter)
    else:
        add_lora(model, settings.r, settings.lora_alpha, "all-linear")
    model.gradient_checkpointing, model.compiled = settings.gradient_checkpointing, settings.compile
    adapter = adapter_tensors(model)

    # optimizer
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(adapter.values(), lr=settings.lr, weight_decay=decay, fused=True)
    steps = training_steps(mixture, rows, conversations, schedule, settings)
    done = run.load_state(adapter, optimizer)
    print("\n".join(opening_lines(settings, run.path, model, done, label_report)))
    if run.lines:
        started -= run.lines[-1]["seconds"]  # of the processes before this one

    # loop: a step is groups of rows, each under one prompt; its loss is the mean over all rows
    batch_tokens = pass_tokens(model, settings.batch_tokens)
    watch = LoadWatch()
    options = {"limit": limit, "batch_tokens": settings.batch_tokens}
    before = {} if done else validate(model, tokenizer, validated, **options)
    with StopSignals() as stop, progress(len(steps), done, "train", "step") as bar:
        for groups, lr in steps[done:]:
            if done == schedule[0].steps:
                optimizer.state.clear()  # the second phase is as a run of its own from the first one's adapter
            if settings.stop_early and no_longer_falls(run.lines):
                early = f"stopped early, after {done} of {len(steps)} steps"
                bar.write(f"{early}: the validation loss no longer falls", sys.stderr)
                break
            step_started = time.time()
            share = processes.own_share(groups, [group.characters for group in groups])
            encoded, most = encode_groups(tokenizer, share, limit), 0
            if settings.shard:  # every process holds a piece of the base, so all take equally many passes
                most = max(processes.gathered(len(step_passes(encoded, batch_tokens))))
            result = training_step(
                model,
                encoded,
                groups,
                loss=settings.loss,
                batch_tokens=batch_tokens,
                at_least=most,
            )
            batch_tokens = result.batch_tokens  # half of it where memory ran out
            counts = {"tokens": result.tokens, "rows_cut": result.rows_cut, "stopping": bool(stop)}
            sums = processes.sum_gradients(list(adapter.values()), {**result.losses, **counts})
            losses = {name: sums[name] for name in result.losses}
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
            step_seconds = time.time() - step_started

            is_measured = done % settings.save_every == 0 or done == len(steps)
            line = {"step": done, **losses, "lr": lr, "grad_norm": norm, "seconds": time.time() - started}
            line |= {"tokens": int(sums["tokens"]), "rows_cut": int(sums["rows_cut"])}
            if is_measured:
                line |= validate(model, tokenizer, validated, **options)
            if done == 1:
                line |= {f"{name}_before": value for name, value in before.items()}
            run.log(line)
            if is_measured or sums["stopping"]:  # after its line, since --resume cuts the log at the state
                run.save_state(adapter, optimizer, done)
            bar.set_postfix(losses)
            bar.update()
            if slow := watch.line(step_seconds, int(sums["tokens"])):
                bar.write(slow, file=sys.stderr)
            if sums["stopping"]:
                stop.leave()
        if any(processes.gathered(bool(stop))):  # it came while the last step was at work, which is saved
            stop.leave()

    # report: base and adapter on the test rows of every split, which are kept split by split
    if rank() == 0:
        save_adapter(model, run.path, base=settings.model)
    adapter_hash = from_first(lambda: sha256(run.path / "adapter_model.safetensors"))
    trained = time.time()
    asked = [run.settings["dtype"], settings.device, run.settings["date"], settings.max_tokens]
    base_sides = MeasuredSides(settings.base_scores or run.measured, mixture, [source["base"], asked])
    adapter_sides = MeasuredSides(run.measured, mixture, [source["base"], asked, adapter_hash])
    with progress(evaluation_rows(mixture), 0, "evaluate", "row") as bar:
        options |= {"each": processes.dealing(model), "on_rows": processes.count_rows(bar, model)}
        of_base = base_sides.measure(model, tokenizer, adapter=False, **options)
        scores = compare(mixture, of_base, adapter_sides.measure(model, tokenizer, adapter=True, **options))
    if rank() > 0:
        return
    seconds = {"train_seconds": trained - started, "evaluate_seconds": time.time() - trained}
    row_count = sum(map(len, rows.values()))
    seen = sum(len(group.rows) for step in steps[:done] for group in step.groups if group.task)
    report = build_report(
        scores,
        model=settings.model,
        adapter=adapter_hash,
        seed=settings.seed,
        epsilon=settings.epsilon,
        run=about_run(source, run.settings, run.path, peak_memory_gb=peak_memory_gb(device), **seconds),
        labels=label_report,
        leakage=near_duplicates(mixture, conversations),
        training={
            "steps": done,
            "rows": row_count,
            "epochs": seen / max(1, row_count),
            "validation_loss": validation_losses(run.lines),
        },
    )
    write_report(report, run.path, scores)
    run.finish()
    print("\n".join(closing_lines(report, run.path, quick=settings.quick)))


if __name__ == "__main__":
    with one_line_errors("the same command with --resume, and without --overwrite"):
        keep_memory()
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
