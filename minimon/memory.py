"""Batches that fit the memory there is: of so many tokens on a CPU, of as many as are free on CUDA, and half where that was too much."""

import torch

from minimon.batch import token_batches

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}    # at most, if not given: a CPU gains nothing from more, and pads more
DECODE_TOKENS = {"cpu": 16384, "cuda": 262144}             # a step of decoding is one token a row


def batch_tokens_of(model, given: int | None) -> int:
    return given or fitting(model, BATCH_TOKENS)


def decode_tokens_of(model, given: int | None) -> int:
    """Keys and values of all layers stay."""
    c = model.config
    cached = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * model.lm_head.weight.element_size()
    return max(given or 0, fitting(model, DECODE_TOKENS, cached))


def fitting(model, most: dict[str, int], more_bytes: int = 0) -> int:
    """Tokens of a forward pass: on CUDA what half of the free memory holds, if that is less than `most`.

    A token takes a block's activations, in the base's dtype and some in fp32, and `more_bytes`."""
    weight = model.lm_head.weight
    if weight.device.type != "cuda":
        return most["cpu"]
    free = torch.cuda.mem_get_info(weight.device)[0] + torch.cuda.memory_reserved(weight.device)                # pragma: no cover
    free -= torch.cuda.memory_allocated(weight.device)                                                          # pragma: no cover
    return max(1, min(most["cuda"], free // 2 // (token_bytes(model) + more_bytes)))                            # pragma: no cover


def token_bytes(model) -> int:
    """Of one token's activations in one block without gradients, about."""
    c = model.config
    heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    narrow = 4 * c.hidden_size + 2 * heads + 3 * c.intermediate_size                   # in the base's dtype
    wide = 3 * (c.hidden_size + max(c.intermediate_size, heads))                       # in fp32: norms and the adapter
    return narrow * model.lm_head.weight.element_size() + 4 * wide


def in_batches(model, lengths: list[int], batch_tokens: int, work):
    """(indices of a batch, work(indices)) over all rows. Where CUDA is out of memory it goes on from there in batches of half the tokens.

    Raises ValueError for a single row, and with shards, whose processes must all do the same."""
    batches = token_batches(lengths, batch_tokens)
    while batches:
        rows, longest = len(batches[0]), lengths[batches[0][-1]]
        try:
            found = work(batches[0])
        except torch.OutOfMemoryError as error:
            if rows == 1 or getattr(model, "sharded", False):
                raise ValueError(f"out of memory at {rows} x {longest} tokens; give a lower --batch-tokens or --max-tokens") from error
        else:
            yield batches.pop(0), found
            continue
        torch.cuda.empty_cache()               # after the error, whose traceback held tensors
        rest = [i for batch in batches for i in batch]
        batches = [[rest[i] for i in batch] for batch in token_batches([lengths[i] for i in rest], rows * longest // 2)]
