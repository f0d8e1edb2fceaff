"""Batched decoding with the same cache: the prompts' common prefix once, then a token a step for every row that goes on."""

from typing import NamedTuple

import torch

from minimon.batch import common_prefix, make_batch, token_batches
from minimon.model import Cache, Decoder


class Answer(NamedTuple):
    ids: list[int]                             # what was written, without the token that ended it
    stop: int | None                           # that token; None: cut at max_new_tokens

    @property
    def ended(self) -> bool:
        return self.stop is not None


@torch.inference_mode()
def generate(model: Decoder, prompts: list[list[int]], *, max_new_tokens: int, stop_ids, temperature: float = 0.0,
             generator: torch.Generator | None = None, batch_tokens: int = 8192, on_rows=None) -> list[Answer]:
    """Prompts (ids) -> answers, in order; greedy at temperature 0, otherwise sampled with `generator`. on_rows(n): n rows are done."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected a positive number, got {max_new_tokens}")
    answers: list[Answer | None] = [None] * len(prompts)
    for batch in token_batches([len(prompt) + max_new_tokens for prompt in prompts], batch_tokens):
        parts = decode([prompts[i] for i in batch], model, max_new_tokens, set(stop_ids), temperature, generator)
        for i, answer in zip(batch, parts):
            answers[i] = answer
        if on_rows:
            on_rows(len(batch))
    return answers


def decode(prompts, model, max_new_tokens, stop_ids, temperature, generator) -> list[Answer]:
    """One batch. Rows that have ended are dropped from it once they are half of it."""
    device = model.lm_head.weight.device
    batch = make_batch(prompts, [0] * len(prompts), common_prefix(prompts)).to(device)
    P, length = batch.prefix.shape[1], max(map(len, prompts)) + max_new_tokens
    prefix = model.prefix(batch.prefix, length) if P else None
    hidden, cache = model.run(batch.suffix, prefix, batch.lengths - 1, keep=True, length=length)      # (B, C)
    cache = cache.without_pads(P + batch.lengths).with_room(max_new_tokens)
    rows, positions, written = list(range(len(prompts))), P + batch.lengths, [[] for _ in prompts]
    stops: list[int | None] = [None] * len(prompts)
    for step in range(max_new_tokens):
        tokens = choose(model.logits(hidden), temperature, generator)                  # (B,)
        for row, token in zip(rows, tokens.tolist()):
            if stops[row] is None:
                stops[row] = token if token in stop_ids else None
                written[row] += [] if token in stop_ids else [token]
        alive = [i for i, row in enumerate(rows) if stops[row] is None]
        if not alive or step == max_new_tokens - 1:
            break
        if 2 * len(alive) <= len(rows):
            keep = torch.tensor(alive, device=device)
            rows, tokens, positions = [rows[i] for i in alive], tokens[keep], positions[keep]
            cache = Cache([k[keep] for k in cache.keys], [v[keep] for v in cache.values], cache.positions[keep], cache.length)
        hidden, cache = model.run(tokens[:, None], cache, positions=positions[:, None], keep=True)
        hidden, positions = hidden[:, 0], positions + 1
    return [Answer(ids, stop) for ids, stop in zip(written, stops)]


def choose(logits: torch.Tensor, temperature: float, generator) -> torch.Tensor:
    """(B, V) -> (B,) token ids."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits.float() / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
