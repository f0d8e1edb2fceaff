"""What the command line of train.py or eval.py got wrong, found before anything is read."""

import importlib.util
import math
import os
import shutil
from pathlib import Path

from minimon.run.cli import check_device, check_output
from minimon.run.processes import launched

POSITIVE = (
    "steps",
    "batch_size",
    "group_size",
    "batch_tokens",
    "save_every",
    "r",
    "instruct_steps",
    "label_samples",
)


def check_training(settings) -> None:
    """Raises ValueError naming the flag."""
    for name in POSITIVE:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a positive number, got {value}")
    if not 0 <= settings.epsilon <= 1:
        raise ValueError(f"--epsilon: expected a number in [0, 1], got {settings.epsilon}")
    if settings.instruct_fraction is not None and not 0 < settings.instruct_fraction < 1:
        raise ValueError(
            f"--instruct-fraction: expected a number between 0 and 1, got {settings.instruct_fraction}"
        )
    if settings.epochs is not None and (settings.steps is not None or not 0 < settings.epochs < math.inf):
        raise ValueError(
            f"--epochs: expected a positive number and no --steps beside it, got {settings.epochs}"
        )
    if not 0 <= settings.warmup < math.inf:
        raise ValueError(f"--warmup: expected a share of the steps, or steps, got {settings.warmup}")
    for name in ("lr", "instruct_lr"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected a positive number, got {getattr(settings, name)}"
            )
    if settings.init_adapter and not (Path(settings.init_adapter) / "adapter_config.json").is_file():
        raise ValueError(
            f"--init-adapter: expected a directory with adapter_config.json, found none in {settings.init_adapter}"
        )
    if settings.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "--tensorboard: expected the package tensorboard, found none; pip install tensorboard"
        )
    check_device(settings.device)
    if settings.compile and settings.shard:
        raise ValueError("--compile and --shard: expected one of them, got both")
    if settings.compile and settings.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(
            "--compile: expected a C++ compiler, found no g++; install one, name another in CXX, or leave --compile out"
        )


def check_evaluation(settings) -> None:
    """Raises ValueError naming the flag."""
    doing = [name for name in ("score", "calibrate", "merge_to") if getattr(settings, name)]
    if len(doing) > 1:
        raise ValueError("--score, --calibrate and --merge-to: expected one of them, got more")
    if bool(settings.score) != bool(settings.task):
        raise ValueError("--score and --task: expected both, rows and the task to ask of them; got one")
    if not settings.adapter and (doing or not settings.model):
        raise ValueError("--adapter: expected a run directory such as runs/default-seed0, got none")
    if settings.temperature and not settings.calibrate:
        raise ValueError("--temperature: expected --calibrate TASK beside it, got none")
    if settings.merge_to and (settings.shard or launched() > 1):
        raise ValueError(
            "--merge-to: expected one process and no --shard, got more; start it without torchrun"
        )
    if settings.score == "-" and (launched() > 1 or settings.resume):
        raise ValueError(
            "--score -: expected one process and no --resume, since a pipe is read once; give a file"
        )
    if settings.threshold is not None and not 0 <= settings.threshold <= 1:
        raise ValueError(f"--threshold: expected a P in [0, 1], got {settings.threshold}")
    if not 0 < settings.fpr < 1:
        raise ValueError(f"--fpr: expected a rate between 0 and 1, got {settings.fpr:g}")
    if settings.shots < 0:
        raise ValueError(f"--shots: expected a number from 0, got {settings.shots}")
    check_device(settings.device)
    if settings.merge_to:
        check_output(settings.merge_to, settings.overwrite, "--merge-to")
    elif settings.out and not doing:
        check_output(settings.out, settings.overwrite)
