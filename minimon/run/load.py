"""The base as a run's settings ask for it."""

import torch

from minimon.checkpoint import default_dtype, load_model
from minimon.run.processes import shard


def load_base(directory, *, dtype: str | None, device: str, sharded: bool = False):
    """dtype: None for what the device does fast. sharded: over torchrun's processes, from the host's memory."""
    dtype = getattr(torch, dtype) if dtype else default_dtype(directory, device)
    model = load_model(directory, dtype=dtype, device="cpu" if sharded else device)
    if sharded:
        shard(model, device)
    return model
