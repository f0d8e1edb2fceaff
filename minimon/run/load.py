"""What a command line names: the base as a run's settings ask for it, a task."""

from pathlib import Path

import torch

from minimon.checkpoint import default_dtype, load_model
from minimon.files import read_optional
from minimon.run.processes import shard
from minimon.tasks import Mixture, Task, check_mixture, load_mixture, load_task


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
    return load_task(file, name or None)


def check_adapter(mixture: Mixture, directory) -> None:
    """Raises ValueError where an adapter was trained on what this mixture, checked already, measures as new."""
    before = [task for task in trained_before(directory)[0] if task not in mixture.train]
    if not before:
        return
    try:
        check_mixture(mixture, before)
    except ValueError as error:
        raise ValueError(f"the adapter in {directory} voids this measurement: {error}") from error


def trained_before(directory) -> tuple[list[Task], bool]:
    """The training tasks of the run in `directory` and of those that it went on from, as far as their files can still be read;
    and whether all of them could."""
    found, seen, all_read = [], set(), True
    while directory and directory not in seen:
        seen.add(directory)
        saved = read_optional(Path(directory, "settings.json"))
        try:
            tasks = load_mixture(saved["mixture"], check=False).train
        except (KeyError, OSError):
            tasks, all_read = [], False
        for task in tasks:
            try:
                task.files()
            except OSError:
                all_read = False
            else:
                found.append(task)
        directory = saved.get("init_adapter")
    return found, all_read
