"""Memory: passes that fit what is free on CUDA, and freed memory that a CPU process keeps for its next
tensors."""

import ctypes
import sys

import torch

PASS_TOKENS = {"cpu": 1024, "cuda": 65536}  # of a forward pass at most: larger ones gain nothing
DECODE_TOKENS = {
    "cpu": 16384,
    "cuda": 262144,
}  # whose keys and values stay; a step of decoding is one token a row
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pass_tokens(model, given: int | None = None, prefix_tokens: int = 0) -> int:
    """Tokens of a forward pass: `given`, or on CUDA what fits beside the keys and values of a shared prefix,
    if less than usual."""
    device = model.lm_head.weight.device
    if given or device.type != "cuda":
        return given or PASS_TOKENS["cpu"]
    free = free_bytes(device) - prefix_tokens * cache_bytes(model)
    return max(1, min(PASS_TOKENS["cuda"], free // 2 // activation_bytes(model)))


def decode_tokens(model, given: int | None = None) -> int:
    """Tokens of the texts that are decoded together, prompt and answer, whose keys and values all stay."""
    device = model.lm_head.weight.device
    if device.type != "cuda":
        return max(given or 0, DECODE_TOKENS["cpu"])
    token = activation_bytes(model) + cache_bytes(model)
    return max(given or 0, 1, min(DECODE_TOKENS["cuda"], free_bytes(device) // 2 // token))


def free_bytes(device) -> int:
    """Of a CUDA device: what nobody uses, and what PyTorch's allocator holds without a use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def cache_bytes(model) -> int:
    """Of one token's keys and values in all layers."""
    config = model.config
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    return heads * config.head_dim * model.lm_head.weight.element_size()


def activation_bytes(model) -> int:
    """Of one token's activations in one block without gradients, about."""
    config = model.config
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    in_dtype = 4 * config.hidden_size + 2 * heads + 3 * config.intermediate_size
    in_fp32 = 3 * (config.hidden_size + max(config.intermediate_size, heads))  # norms and the adapter
    return in_dtype * model.lm_head.weight.element_size() + 4 * in_fp32


def keep_memory() -> None:
    """Tells glibc to keep memory that was freed. By default it gives tensors of some megabytes back to the kernel,
    which zeroes the same pages again for the next ones. Called once, before there are tensors; where the C library
    is another one nothing happens.

    Seven tensors of 30 to 200 MB, allocated and filled again and again by one thread: 4.6 s without, 0.6 s with it,
    and a third more memory."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)  # only larger ones are mapped, and unmapped, by themselves
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # free memory at the end of the heap stays
