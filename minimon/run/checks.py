"""What the command line of train.py got wrong, found before anything is read."""

import math
import os
import shutil
from pathlib import Path

from minimon.run.cli import check_device

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
    for name in ("lr", "instruct_lr"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected a positive number, got {getattr(settings, name)}"
            )
    if settings.init_adapter and not (Path(settings.init_adapter) / "adapter_config.json").is_file():
        raise ValueError(
            f"--init-adapter: expected a directory with adapter_config.json, found none in {settings.init_adapter}"
        )
    check_device(settings.device)
    if settings.compile and settings.shard:
        raise ValueError("--compile and --shard: expected one of them, got both")
    if settings.compile and settings.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(
            "--compile: expected a C++ compiler, found no g++; install one, name another in CXX, or leave --compile out"
        )
