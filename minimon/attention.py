"""Attention over a ragged row: texts of any length, one after another, each seeing itself and the prompt before it.

The linear layers of a decoder take tokens one by one, so prompts and texts of many tasks stand in one row of N tokens without
padding, and each weight is read once for all of them. Attention alone has to know where a text begins and ends: a `Layout` says it.

N tokens of the row, B texts, T tokens of one text, P of the prefix before it, S = P + T, H heads, K key/value heads, D head_dim,
d <= D the rotated part of it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"  # layer types, as in config.json
MASK_ENTRIES = 2**22  # of an attention mask at a time; more queries are taken piece by piece


class Cache(NamedTuple):
    """Keys and values that later tokens attend to, a layer each: (B, K, S, D), rotated. A prefix has one row for all texts."""

    keys: list[Tensor]
    values: list[Tensor]


@dataclass(frozen=True)
class Span:
    """`texts` of equal length, one after another in the row, and what each of them continues."""

    texts: int
    tokens: int  # T of each
    # None: they begin by themselves; "prefix": the last prefix in the row; "cache": the cached prefix
    continues: str | None = None
    is_prefix: bool = False  # what stands here is continued by the spans after it and is no text of its own
    # of a text with its prefix and what will be written after it, for rotations that depend on it
    full_length: int | None = None


class Layout:
    """Where each token of a ragged row stands: its position, its rotation, and the keys that it sees."""

    def __init__(self, config, spans: list[Span], cache: Cache | None, dtype: torch.dtype, device):
        self.spans = spans
        self.sizes = [span.texts * span.tokens for span in spans]
        start_of = {None: 0, "cache": cache.keys[0].shape[2] if cache else 0}
        positions, lengths, last, row = [], [], [], 0
        for span, size in zip(spans, self.sizes):
            begin = start_of[span.continues]
            end = begin + span.tokens
            if span.is_prefix:
                start_of["prefix"] = end
            else:
                last.append(torch.arange(row + span.tokens - 1, row + size, span.tokens, device=device))
            positions.append(torch.arange(begin, end, device=device).repeat(span.texts))
            lengths.append(span.full_length or end)
            row += size
        self.rotations = rotations(config, positions, lengths, dtype)
        self.last = torch.cat(last)  # (B,) where in the row each text ends

    def attend(self, q, k, v, past, window, scale) -> Tensor:
        """q (N, H, D), or (B, H, D) at the texts' last tokens alone; k, v (N, K, D); past (1, K, P, D) twice -> (N or B, H D)."""
        q_sizes = self.sizes
        if len(q) < len(k):
            q_sizes = [0 if span.is_prefix else span.texts for span in self.spans]
        parts = zip(self.spans, q.split(q_sizes), k.split(self.sizes), v.split(self.sizes))
        before, outputs = {"cache": past}, []
        for span, q_span, k_span, v_span in parts:
            k_span, v_span = by_text(k_span, span.texts), by_text(v_span, span.texts)  # (texts, K, T, D)
            if span.is_prefix:
                before["prefix"] = k_span, v_span
            elif span.continues:
                earlier_k, earlier_v = before[span.continues]
                k_span = joined(earlier_k, k_span)  # (texts, K, P + T, D)
                v_span = joined(earlier_v, v_span)
            if len(q_span):
                q_span = by_text(q_span, span.texts)  # (texts, H, T or 1, D)
                y = attend(q_span, k_span, v_span, window, scale)
                outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))  # (texts T, H D)
        return torch.cat(outputs)

    def text_rows(self, x: Tensor, room: int) -> Tensor:
        """Keys or values (N, K, D) -> (B, K, S + room, D): each text with its prefix from column 0 on, zeros after it."""
        rows, prefix = [], x[:0]
        for span, part in zip(self.spans, x.split(self.sizes)):
            if span.is_prefix:
                prefix = part
                continue
            before = prefix if span.continues else x[:0]
            rows += [torch.cat((before, text)) for text in part.split(span.tokens)]
        columns = max(map(len, rows)) + room
        rows = [F.pad(text, (0, 0, 0, 0, 0, columns - len(text))) for text in rows]  # (S + room, K, D)
        return torch.stack(rows).transpose(1, 2)


class DecodingStep:
    """One more token of each of B texts, whose earlier keys and values stand in a cache with room for it, from column 0 on."""

    def __init__(self, config, positions: Tensor, full_lengths: list[int], dtype: torch.dtype):
        self.positions = positions  # (B,)
        self.rotations = rotations(config, list(positions.split(1)), full_lengths, dtype)

    def attend(self, q, k, v, past, window, scale) -> Tensor:
        """q (B, H, D), k and v (B, K, D), past (B, K, S, D) twice, written in place -> (B, H D)."""
        keys, values = past
        rows = torch.arange(len(q), device=q.device)
        keys[rows, :, self.positions] = k
        values[rows, :, self.positions] = v
        columns = torch.arange(keys.shape[2], device=q.device)
        visible = columns <= self.positions[:, None]  # (B, S)
        if window is not None:
            visible &= columns > self.positions[:, None] - window
        return masked_attention(q[:, :, None], keys, values, visible[:, None, None], scale).flatten(1)


def by_text(x: Tensor, texts: int) -> Tensor:
    """(texts T, heads, D) -> (texts, heads, T, D)"""
    return x.unflatten(0, (texts, -1)).transpose(1, 2)


def joined(earlier: Tensor, new: Tensor) -> Tensor:
    """(1, K, P, D) of all texts, (texts, K, T, D) of each -> (texts, K, P + T, D)"""
    earlier = earlier.expand(len(new), -1, -1, -1)
    return torch.cat((earlier, new), dim=2)


# ---- rotary position embedding (Su et al., 2021) ---------------------------------------------------------------------


def rotations(
    config, positions: list[Tensor], full_lengths: list[int], dtype
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer type -> cos and sin (N, 1, d), cast once for all layers; some families rotate in fp32 whatever the dtype."""
    dtype = torch.float32 if config.rope_fp32 else dtype
    tables = {}
    for kind in sorted(set(config.layer_types)):
        cos, sin = rotation(config.rope[kind], positions, full_lengths)
        tables[kind] = cos.to(dtype), sin.to(dtype)
    return tables


def rotation(rope, positions: list[Tensor], full_lengths: list[int]) -> tuple[Tensor, Tensor]:
    """cos and sin (N, 1, d) in fp32 at the positions of each span; rope: of a layer type in the config.

    Where angles depend on the length of the whole text (rope.switch), each span rotates by its own."""
    if rope.switch is None:
        positions, full_lengths = [torch.cat(positions)], full_lengths[:1]
    cos, sin = [], []
    for where, length in zip(positions, full_lengths):
        frequencies, factor = rope.frequencies(length, where.device)  # (d / 2,)
        angles = where[:, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (T, 1, d)
        cos.append(angles.cos() * factor)
        sin.append(angles.sin() * factor)
    return torch.cat(cos), torch.cat(sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, heads, D) -> the same, its first d dimensions rotated in the dtype of cos and sin (N, 1, d), the others as they are."""
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    turned = turned.to(cos.dtype)
    one, two = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-two, one), dim=-1) * sin
    return torch.cat((turned.to(x.dtype), rest), dim=-1) if rest.shape[-1] else turned.to(x.dtype)


# ---- causal attention --------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    """q (B, H, T, D) of the last T of S tokens, k and v (B, K, S, D) of all -> (B, H, T, D): softmax(scale q k^T) v.

    A token sees itself and what stands before it, of a sliding window the last `window` tokens. A mask of T S entries is formed
    only where it is small; beyond that queries are taken in pieces, each with the keys that it can see."""
    T, S = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if T == 1:  # sees all that is there
        first = 0 if window is None else max(0, S - window)
        return masked_attention(q, k[:, :, first:], v[:, :, first:], None, scale)
    no_fused_kernel = grouped and q.is_cuda and q.dtype == torch.float32
    if T == S and (window is None or T <= window) and not no_fused_kernel:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    size = max(1, MASK_ENTRIES // S)
    pieces = []
    for begin in range(0, T, size):
        end = min(begin + size, T)
        last = S - T + end  # keys after the piece's last query are not seen
        first = 0 if window is None else max(0, S - T + begin - window + 1)
        queries = torch.arange(S - T + begin, last, device=q.device)[:, None]
        columns = torch.arange(first, last, device=q.device)
        visible = columns <= queries  # (end - begin, last - first)
        if window is not None:
            visible &= columns > queries - window
        piece = q[:, :, begin:end], k[:, :, first:last], v[:, :, first:last]
        pieces.append(masked_attention(*piece, visible, scale))
    return torch.cat(pieces, dim=2)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """q (B, H, T, D), k and v (B, K, S, D), visible (..., T, S) bool -> (B, H, T, D).

    On CUDA no fused kernel takes a mask and grouped queries in every dtype, so there the H / K query heads of a group are folded
    into the queries, which is the same sum."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.is_cuda:
        return folded_attention(q, k, v, visible, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=groups > 1)


def folded_attention(q, k, v, visible, scale) -> Tensor:
    """masked_attention with queries (B, K, H / K T, D) and the mask once for each head of a group."""
    groups = q.shape[1] // k.shape[1]
    folded = q.unflatten(1, (k.shape[1], groups)).flatten(2, 3)  # (B, K, groups T, D)
    if visible is not None:
        T, S = visible.shape[-2:]
        visible = visible.unsqueeze(-3).expand(*visible.shape[:-2], groups, T, S).flatten(-3, -2)
    y = F.scaled_dot_product_attention(folded, k, v, attn_mask=visible, scale=scale)
    return y.unflatten(2, (groups, -1)).flatten(1, 2)
