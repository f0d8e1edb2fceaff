"""What a command line names: the base as a run's settings ask for it, a task."""

import torch

from minimon.checkpoint import default_dtype, load_model
from minimon.run.cli import shipped
from minimon.run.processes import shard
from minimon.tasks import Task, load_task


def load_base(directory, *, dtype: str | None, device: str, sharded: bool = False):
    """dtype: None for what the device does fast. sharded: over torchrun's processes, from the host's memory."""
    dtype = getattr(torch, dtype) if dtype else default_dtype(directory, device)
    model = load_model(directory, dtype=dtype, device="cpu" if sharded else device)
    if sharded:
        shard(model, device)
    return model


def named_task(entry: str) -> Task:
    """The task of FILE, or of FILE#NAME."""
    file, _, name = entry.partition("#")
    return load_task(shipped(file), name or None)
