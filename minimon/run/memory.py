"""Memory: how much a pass may take, and freed memory that a CPU process keeps for its next tensors."""

import ctypes
import sys

from minimon.batch import PASS_TOKENS

FEWEST_TOKENS = 256  # of a pass on a CPU: smaller ones cost time
KEPT = 2**29  # bytes of activations that such a pass keeps for its backward pass, about
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pass_tokens(model, given: int | None = None) -> int:
    """Tokens of a training pass: `given`, or as many as gain something; on a CPU as many as keep half a GiB of activations.
    Where CUDA holds less, steps.training_step finds out and takes smaller ones."""
    device, config = model.lm_head.weight.device.type, model.config
    if given or device != "cpu":
        return given or PASS_TOKENS[device]
    # floats of a token: inputs of norms and products
    a_layer = 6 * config.hidden_size + 3 * config.intermediate_size
    fitting = KEPT // (4 * config.num_hidden_layers * a_layer)
    return min(max(fitting, FEWEST_TOKENS), PASS_TOKENS[device])


def keep_memory() -> None:
    """Tells glibc to keep memory that was freed. By default it gives tensors of some megabytes back to the
    kernel, which zeroes the same pages again for the next ones. Called once, before there are tensors; where
    the C library is another one nothing happens.

    Seven tensors of 30 to 200 MB, allocated and filled again and again by one thread: 4.6 s without, 0.6 s
    with it, and a third more memory."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)  # only larger ones are mapped, and unmapped, by themselves
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # free memory at the end of the heap stays
