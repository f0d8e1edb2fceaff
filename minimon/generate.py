"""Batched decoding: the prompts in one ragged pass, their common prefix once, then a token a step for every row that goes on."""

from typing import NamedTuple

import torch

from minimon.attention import Cache
from minimon.batch import in_halves, pack, rope_switch, token_batches
from minimon.model import Decoder


class Answer(NamedTuple):
    ids: list[int]  # what was written, without the token that ended it
    stop: int | None  # that token; None: cut at max_new_tokens

    @property
    def ended(self) -> bool:
        return self.stop is not None


class Prompts(NamedTuple):
    """A batch, an item for `each`."""

    ids: list[list[int]]


def generate(
    model: Decoder,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_tokens: int = 16384,
    each=map,
    on_rows=None,
) -> list[Answer]:
    """Prompts (ids) -> answers, in order; greedy at temperature 0, otherwise sampled with `generator`.

    batch_tokens: of prompts and answers whose keys and values are kept at a time. each(work, items): work(item) of every item, in
    order; not used where answers are sampled, which all processes do alike. on_rows(n): n more rows are done."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected a positive number, got {max_new_tokens}")

    def write(batch: Prompts) -> list[Answer]:
        try:
            answers = decode(model, batch.ids, max_new_tokens, set(stop_ids), temperature, generator)
        except torch.OutOfMemoryError as error:
            smaller = in_halves([batch.ids], error, model, can_halve=not temperature)
        else:
            if on_rows:
                on_rows(len(answers))
            return answers
        return [answer for half in smaller for answer in write(Prompts(half))]

    batches = token_batches([len(prompt) + max_new_tokens for prompt in prompts], batch_tokens)
    items = [Prompts([prompts[i] for i in batch]) for batch in batches]
    answers: list[Answer | None] = [None] * len(prompts)
    for batch, written in zip(batches, (map if temperature else each)(write, items)):
        for i, answer in zip(batch, written):
            answers[i] = answer
    return answers


@torch.inference_mode()
def decode(
    model, prompts, max_new_tokens: int, stop_ids: set[int], temperature: float, generator
) -> list[Answer]:
    """One batch. Rows that have ended are dropped from it once they are half of it."""
    device = model.lm_head.weight.device
    batch = pack([prompts], switch=rope_switch(model.config), room=max_new_tokens)
    hidden, cache = model.prefill(batch.tokens.to(device), batch.spans, max_new_tokens)  # (B, C)
    rows = batch.order  # index of the prompt of each row that goes on
    positions = torch.tensor([len(prompts[i]) for i in rows], device=device)  # (B,) of the next token
    written: list[list[int]] = [[] for _ in prompts]
    stops: list[int | None] = [None] * len(prompts)
    for step in range(max_new_tokens):
        tokens = choose(model.logits(hidden), temperature, generator)  # (B,)
        for row, token in zip(rows, tokens.tolist()):
            if stops[row] is not None:
                continue
            if token in stop_ids:
                stops[row] = token
            else:
                written[row].append(token)
        alive = [i for i, row in enumerate(rows) if stops[row] is None]
        if not alive or step == max_new_tokens - 1:
            break
        if 2 * len(alive) <= len(rows):
            keep = torch.tensor(alive, device=device)
            rows, tokens, positions = [rows[i] for i in alive], tokens[keep], positions[keep]
            cache = Cache([k[keep] for k in cache.keys], [v[keep] for v in cache.values])
        full_lengths = [len(prompts[row]) + max_new_tokens for row in rows]
        hidden = model.decode(tokens, positions, cache, full_lengths)
        positions = positions + 1
    return [Answer(ids, stop) for ids, stop in zip(written, stops)]


def choose(logits: torch.Tensor, temperature: float, generator) -> torch.Tensor:
    """(B, V) -> (B,) token ids."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits.float() / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
