"""What train.py and eval.py can be asked for: their flags, what is refused before anything is read, and the
recipe for what the command line leaves open."""

import math
import os
import shlex
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from minimon.files import resolve
from minimon.hf.families import read_config
from minimon.run.cli import check_device, check_numbers, check_output, parse, setting
from minimon.run.processes import size
from minimon.tasks import SCHEDULES

LABELS = ("gold", "self", "self-at-once")
DTYPES = ("float32", "bfloat16")
POSITIVE, FROM_ZERO, SHARE, RATE = "(0, inf)", "[0, inf)", "[0, 1]", "(0, 1)"  # intervals of numbers

# the recipe
SHIPPED = {"lr": 3e-3, "r": 8, "lora_alpha": 16.0, "batch_size": 24, "group_size": 8}  # the shipped base
PRETRAINED = {"r": 16, "lora_alpha": 32.0, "batch_size": 32, "group_size": 4}  # any other
MEASURED_LR, MEASURED_WIDTH = 1.5e-3, 576  # of SmolLM2-135M; in inverse proportion to the width elsewhere
HIGHEST_LR = 3e-3
QUICK = {"mixture": "data/mixtures/quick.toml", "steps": 150, "save_every": 50}
MOST_EPOCHS, MOST_STEPS = 10, 400  # whichever is less, where neither is given
SHIPPED_STEPS = 300  # in their place, of the shipped base: AUROC as after 400, within 0.01 on every split


# ---- train.py -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainSettings:
    # data
    model: str = setting("data/base", "checkpoint directory or hub id")
    mixture: str = setting("data/mixtures/default.toml", "tasks to train on and to evaluate on")
    splits: str | None = setting(None, "measure these splits only, commas between; all if not given")
    eval_rows: int | None = setting(None, "rows an evaluation task; the mixture's if not given")
    cap: int | None = setting(None, "rows a training task; the mixture's if not given")
    batch_size: int | None = setting(None, "rows of a step; 24 on the shipped base, 32 on another", POSITIVE)
    group_size: int | None = setting(
        None, "rows that share a prompt; 8 on the shipped base, else 4", POSITIVE
    )
    batch_tokens: int | None = setting(
        None, "tokens of a pass; at most 2,048, on CUDA 65,536, or what fits", POSITIVE
    )
    max_tokens: int | None = setting(None, "of a row, or its text loses its middle; the base's if not given")
    seed: int = setting(0, "fixes the adapter's start, the rows and their order")
    date: str | None = setting(None, "today to a chat template, as 2026-01-31; today if not given")
    instruct: str | None = setting(None, "instruction training; the mixture's if not given", SCHEDULES)
    instruct_fraction: float | None = setting(None, "of a step's rows, if joint; or the mixture's", RATE)
    labels: str = setting("gold", "or the base's own answers, with thinking or at once", LABELS)
    label_samples: int = setting(1, "thoughts that a self label is the mean of; 1 is greedy", POSITIVE)
    # model
    base_scores: str | None = setting(None, "file of the base's scores, shared by runs on the same rows")
    init_adapter: str | None = setting(None, "directory of an adapter to go on from; a new one if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base; what the device does fast if not given", DTYPES)
    r: int | None = setting(None, "rank of the adapter; 8 on the shipped base, 16 on another", POSITIVE)
    lora_alpha: float | None = setting(None, "the adapter is scaled by lora_alpha / r; 16, or 32", POSITIVE)
    loss: str = setting("vocab", "cross-entropy over the vocabulary or over the labels", ("vocab", "label"))
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time")
    compile: bool = setting(False, "torch.compile the blocks: minutes at the start, then faster steps")
    shard: bool = setting(False, "with torchrun: spread a base that one device cannot hold")
    # optimizer
    steps: int | None = setting(None, "400, or 10 passes over the rows where fewer, if not given", POSITIVE)
    epochs: float | None = setting(None, "passes over the training rows, in place of --steps", POSITIVE)
    lr: float | None = setting(
        None, "peak rate; 3e-3 on the shipped base, else 1.5e-3 x 576 / width", POSITIVE
    )
    instruct_steps: int = setting(200, "steps of a phase of instructions alone, if after", POSITIVE)
    instruct_lr: float = setting(1e-3, "their peak learning rate", POSITIVE)
    schedule: str = setting("linear", "decay after the warm-up, to zero", ("linear", "cosine"))
    warmup: float = setting(0.05, "linear warm-up: a share of the steps if below 1, else steps", FROM_ZERO)
    stop_early: bool = setting(False, "stop when the loss on validation rows has not fallen for three saves")
    weight_decay: float = setting(0.0, "AdamW's, on the adapter", FROM_ZERO)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", POSITIVE)
    # run
    quick: bool = setting(False, "a first look in a minute or two: few tasks and pairs of the shipped world")
    show: str | None = setting(None, "print one encoded row of this task, FILE or FILE#NAME, and exit")
    tensorboard: bool = setting(False, "also write the log as TensorBoard's event files")
    out: str | None = setting(None, "run directory; runs/<mixture>-seed<seed> if not given")
    overwrite: bool = setting(False, "replace a run that is in --out")
    resume: bool = setting(False, "go on with the run that is in --out")
    save_every: int = setting(100, "steps between saves", POSITIVE)
    epsilon: float = setting(0.75, "the verdict's threshold on mean performance", SHARE)


def with_recipe(settings: TrainSettings) -> TrainSettings:
    """What suits the base, where it is open (None). Raises ValueError for what cannot be asked for."""
    if settings.quick:
        given = {
            "--mixture": settings.mixture != TrainSettings.mixture,
            "--steps": settings.steps,
            "--epochs": settings.epochs,
        }
        beside = ", ".join(name for name, value in given.items() if value)
        if beside:
            raise ValueError(
                f"--quick: expected no --mixture, --steps or --epochs beside it, which it sets; got {beside}"
            )
        settings = replace(settings, **QUICK)
    check_training(settings)
    recipe = SHIPPED if is_shipped(settings.model) else PRETRAINED
    if settings.lr is None and recipe is PRETRAINED:
        width = read_config(resolve(settings.model)).hidden_size
        lr = min(HIGHEST_LR, MEASURED_LR * MEASURED_WIDTH / width)
        recipe = {**PRETRAINED, "lr": float(f"{lr:.1e}")}
    found = {name: value for name, value in recipe.items() if getattr(settings, name) is None}
    return replace(settings, **found)


def with_steps(settings: TrainSettings, mixture) -> TrainSettings:
    """Steps, if not given: those of --epochs over the mixture's training rows, or `most_steps`, or fewer where
    rows are few. And the run's directory."""
    out = settings.out or f"runs/{mixture.name}-seed{settings.seed}"
    steps = settings.steps
    if steps is None:
        rows = sum(len(mixture.train_rows(task, settings.seed)) for task in mixture.train)
        steps = math.ceil((settings.epochs or MOST_EPOCHS) * rows / settings.batch_size)
        steps = max(1, steps) if settings.epochs else min(most_steps(settings.model), steps)
    return replace(settings, steps=steps, out=out)


def most_steps(model: str) -> int:
    return SHIPPED_STEPS if is_shipped(model) else MOST_STEPS


def is_shipped(model: str) -> bool:
    return model == "data/base"


def settings_of(flags: str) -> TrainSettings:
    """What train.py makes of these flags; the last of a kind counts, and an unknown one ends the program in one line."""
    return parse(TrainSettings, shlex.split(flags))


def check_training(settings: TrainSettings) -> None:
    """Raises ValueError naming the flag."""
    check_common(settings)
    adapter, scores = settings.init_adapter, settings.base_scores
    if settings.epochs and settings.steps:
        raise ValueError("--epochs: expected no --steps beside it, got both")
    if adapter and not Path(adapter, "adapter_config.json").is_file():
        raise ValueError(
            f"--init-adapter: expected a directory with adapter_config.json, found none in {adapter}"
        )
    if scores and not Path(scores).absolute().parent.is_dir():
        raise ValueError(f"--base-scores: expected a file in a directory that is there, got {scores}")
    if settings.tensorboard and not find_spec("tensorboard"):
        raise ValueError(
            "--tensorboard: expected the package tensorboard, found none; pip install tensorboard"
        )
    if settings.compile and settings.shard:
        raise ValueError("--compile and --shard: expected one of them, got both")
    if settings.compile and settings.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(
            "--compile: expected a C++ compiler, found no g++; install one, name another in CXX, or leave --compile out"
        )


def check_common(settings) -> None:
    check_numbers(settings)
    check_device(settings.device)
    if settings.overwrite and settings.resume:
        raise ValueError("--overwrite and --resume: expected one of them, got both; --resume alone goes on")


# ---- eval.py ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalSettings:
    # what is measured; None: as the run was
    adapter: str | None = setting(None, "run directory or an adapter in PEFT's format; none: the base alone")
    model: str | None = setting(None, "checkpoint directory or hub id; the run's own if not given")
    mixture: str | None = setting(None, "the tasks to evaluate on; the run's own if not given")
    splits: str | None = setting(None, "only these splits, commas between; the run's own if not given")
    eval_rows: int | None = setting(None, "rows a task; the run's own if not given")
    shots: int = setting(0, "labelled rows of its task that each prompt shows as examples", FROM_ZERO)
    epsilon: float | None = setting(None, "the verdict's threshold; the run's own if not given", SHARE)
    attack: bool = setting(False, "also what words in the texts of new_domain do to the scores")
    # or, for one task
    score: str | None = setting(None, "files, patterns, folders of logs, commas between; - for stdin")
    task: str | None = setting(None, "with --score: the task whose prompt is asked, FILE or FILE#NAME")
    threshold: float | None = setting(None, "with --score: P above which to flag; or as calibrated", SHARE)
    with_text: bool = setting(False, "with --score: each line also holds the text and its row's other fields")
    resume: bool = setting(False, "with --score and --out: go on after the last line that was scored")
    calibrate: str | None = setting(None, "pick a threshold on this task's rows, FILE or FILE#NAME")
    fpr: float = setting(0.01, "with --calibrate: share of negatives that may be above the threshold", RATE)
    temperature: bool = setting(False, "with --calibrate: fit a temperature as well")
    # or for other programs
    merge_to: str | None = setting(None, "directory for the base with the adapter merged into it")
    # where to, and how
    out: str | None = setting(None, "directory of the report; with --score the file of scores")
    overwrite: bool = setting(False, "replace what --out, --merge-to or --calibrate finds in its place")
    any_base: bool = setting(False, "take an adapter that was trained on another base")
    batch_tokens: int | None = setting(None, "tokens of a forward pass; the run's own if not given", POSITIVE)
    max_tokens: int | None = setting(None, "of a row, or its middle is cut; the run's own if not given")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    dtype: str | None = setting(None, "of the base; the run's own if not given", DTYPES)
    shard: bool = setting(False, "with torchrun: spread a base that one device cannot hold")


def check_evaluation(settings: EvalSettings) -> None:
    """Raises ValueError naming the flag."""
    check_common(settings)
    doing = [name for name in ("score", "calibrate", "merge_to") if getattr(settings, name)]
    if len(doing) > 1:
        raise ValueError("--score, --calibrate and --merge-to: expected one of them, got more")
    if settings.shots and doing:
        raise ValueError(
            f"--shots: expected it where splits are measured, got it beside --{doing[0].replace('_', '-')}"
        )
    if bool(settings.score) != bool(settings.task):
        raise ValueError("--score and --task: expected both, rows and the task to ask of them; got one")
    if not settings.adapter and (doing or not settings.model):
        raise ValueError("--adapter: expected a run directory such as runs/default-seed0, got none")
    if settings.temperature and not settings.calibrate:
        raise ValueError("--temperature: expected --calibrate TASK beside it, got none")
    if settings.merge_to and (settings.shard or size() > 1):
        raise ValueError(
            "--merge-to: expected one process and no --shard, got more; start it without torchrun"
        )
    if settings.score == "-" and (settings.resume or size() > 1):
        raise ValueError(
            "--score -: expected one process and no --resume, since a pipe is read once; give a file"
        )
    if settings.merge_to:
        check_output(settings.merge_to, settings.overwrite, "--merge-to")
    elif settings.out and not doing:
        check_output(settings.out, settings.overwrite)
