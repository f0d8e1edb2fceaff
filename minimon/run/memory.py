"""Memory: passes that fit what is free on CUDA, and freed memory that a CPU process keeps for its next
tensors."""

import ctypes
import sys

import torch

PASS_TOKENS = {"cpu": 2048, "cuda": 65536}  # of a pass at most: larger ones gain nothing
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pass_tokens(model, given: int | None = None, training: bool = False) -> int:
    """Tokens of a pass: `given`, or what half of the memory that is free on CUDA holds, if less than usual.
    In training the activations of all blocks are kept, unless each block is recomputed.

    The keys and values of a prefix that stand before each text are not counted."""
    device = model.lm_head.weight.device
    if given or device.type != "cuda":
        return given or PASS_TOKENS["cpu"]
    keeps_all = training and not model.gradient_checkpointing
    of_one_token = activation_bytes(model) * (model.config.num_hidden_layers if keeps_all else 1)
    return max(1, min(PASS_TOKENS["cuda"], free_bytes(device) // 2 // of_one_token))


def free_bytes(device) -> int:
    """Of a CUDA device: what nobody uses, and what PyTorch's allocator holds without a use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def activation_bytes(model) -> int:
    """Of one token's activations in one block, about."""
    config = model.config
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    in_dtype = 4 * config.hidden_size + 2 * heads + 3 * config.intermediate_size
    in_fp32 = 3 * (config.hidden_size + max(config.intermediate_size, heads))  # norms and the adapter
    return in_dtype * model.lm_head.weight.element_size() + 4 * in_fp32


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
