"""Decoder: token ids (+ a cached prefix) -> hidden states. Modules are spelled as in the checkpoint, so loading needs no mapping.

B batch, T tokens, P cached tokens, S = P + T, C hidden_size, H heads, K key/value heads, D head_dim, F intermediate_size, V vocabulary.
Rows are right-padded: under a causal mask a pad is never seen by what stands before it, so no row needs a mask of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimon.attention import rope_angles, rotate
from minimon.ops import GatedSiLU, Normalize

MASKED = 2 ** 22                               # entries of an attention mask, about; a long suffix goes without one
PAD_POSITION = 2 ** 30                         # later than any query, so never visible


@dataclass(frozen=True)
class ModelConfig:
    """One decoder. Names are those of config.json; where families differ in kind, a named part says which (norms, qk_norm)."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int                              # apart from hidden_size / num_attention_heads
    rms_norm_eps: float
    hidden_act: str                            # silu | gelu_pytorch_tanh
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layer_types: tuple[str, ...]               # full_attention | sliding_attention, one a layer
    sliding_window: int | None                 # keys visible to a query of a sliding layer, itself included
    rope: dict[str, object]                    # by layer type
    rope_layers: tuple[bool, ...]              # False: no rotation in that layer (smollm3)
    rope_fp32: bool                            # rotate in fp32 whatever the dtype (olmo)
    norms: str                                 # pre | post | sandwich: where a block's norms stand
    norm_fp32: bool                            # multiply by the gain before the cast back, not after it
    norm_plus_one: bool                        # the gain is 1 + weight (gemma)
    qk_norm: str | None                        # head: per head; full: over all heads at once (olmo)
    fused_projections: bool                    # qkv_proj and gate_up_proj (phi3)
    embedding_multiplier: float
    attention_multiplier: float                # scores are q k^T times this
    residual_multiplier: float
    logits_scaling: float                      # logits are divided by this
    wrapped: bool                              # the text decoder of a multimodal model


class Cache(NamedTuple):
    """What later tokens need of earlier ones. A prefix has one row and is expanded to the batch that follows it."""

    keys: list[Tensor]                         # a layer: (1 or B, K, S, D), rotated; S or more, see `with_room`
    values: list[Tensor]                       # a layer: (1 or B, K, S, D)
    positions: Tensor                          # (1 or B, S), PAD_POSITION for pads
    length: int                                # of the whole text, for rotations that depend on it

    def without_pads(self, lengths: Tensor) -> "Cache":
        """Hide the columns beyond each row's `lengths` (B,), counted with the prefix; decoding goes on from there."""
        columns = torch.arange(self.positions.shape[1], device=lengths.device)
        pads = (columns >= lengths[:, None]) & (self.positions < PAD_POSITION)
        return self._replace(positions=torch.where(pads, PAD_POSITION, self.positions))

    def with_room(self, room: int) -> "Cache":
        """So many columns more, into which decoding writes in place."""
        return self._replace(keys=[F.pad(k, (0, 0, 0, room)) for k in self.keys], values=[F.pad(v, (0, 0, 0, room)) for v in self.values])


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False    # recompute each block in the backward pass instead of keeping its activations
        self.compiled = None                   # Block.__call__ as torch.compile makes it, for passes with gradients
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, cache: Cache | None = None, at: Tensor | None = None) -> Tensor:
        """tokens (B, T) after the `cache`d ones -> hidden states after the final norm: (B, T, C), or (B, C) at positions `at` (B,).

        With `at`, the last block computes queries, output projection and MLP for that one position alone."""
        return self.run(tokens, cache, at)[0]

    def prefix(self, tokens: Tensor, length: int | None = None) -> Cache:
        """tokens (1, P) shared by a batch -> Cache; gradients flow back through it. `length`: of the longest whole text to come."""
        return self.run(tokens, keep=True, hidden=False, length=length)[1]

    def packed(self, prefix: Tensor, suffix: Tensor, at: Tensor) -> Tensor:
        """model(suffix, model.prefix(prefix), at) in one pass: prefix (1, P), suffix (B, T), at (B,) -> (B, C).

        The P + B T tokens stand in one row, so each weight is read once and its products are as large as they can be; attention alone
        takes them apart."""
        (B, T), P = suffix.shape, prefix.shape[1]
        if not P:
            return self(suffix, at=at)
        columns = torch.arange(P + T, device=suffix.device)[None]
        views = {kind: Packed(View(self.config, kind, columns[:, :P], columns[:, :P], P + T, True),
                              View(self.config, kind, columns[:, P:], columns, P + T, True), B) for kind in set(self.config.layer_types)}
        places = P + T * torch.arange(B, device=suffix.device) + at                    # (B,) in the row
        return self.walk(torch.cat((prefix, suffix.view(1, -1)), dim=1), views, at=places[None])[0][0]

    def run(self, tokens, cache=None, at=None, *, positions=None, keep=False, hidden=True, length=None):
        """forward and prefix in one, returning (hidden states or None, Cache or None). `positions` (B, T) where rows differ."""
        B, T = tokens.shape
        P = cache.positions.shape[1] if cache else 0
        at = None if at is None else at[:, None]                                       # (B, 1)
        queries = torch.arange(P, P + T, device=tokens.device)[None] if positions is None else positions     # (1 or B, T)
        columns = queries if cache is None else torch.cat(
            (cache.positions.expand(len(queries), P), queries.expand(len(cache.positions), T)), dim=1)      # (1 or B, S)
        length = length or (cache.length if cache else P + T)
        shared = positions is None and (cache is None or len(cache.positions) == 1)    # columns 0 to S - 1, the same for all rows
        views = {kind: View(self.config, kind, queries, columns, length, shared) for kind in set(self.config.layer_types)}
        x, keys, values = self.walk(tokens, views, cache, at, keep, hidden)
        return x if at is None or not hidden else x[:, 0], Cache(keys, values, columns, length) if keep else None

    def compile_blocks(self, **options) -> None:
        """One graph for all blocks and lengths. The first passes take minutes; evaluation, whose passes differ more, goes without."""
        self.compiled = torch.compile(Block.__call__, dynamic=True, **options)

    def walk(self, tokens, views, cache=None, at=None, keep=False, hidden=True):
        """Through all blocks -> (hidden states, keys and values of each layer to keep)."""
        x = self.model.embed_tokens(tokens)                                            # (B, T, C)
        if self.config.embedding_multiplier != 1.0:
            x = x * torch.tensor(self.config.embedding_multiplier, dtype=x.dtype, device=x.device)
        keys, values, last, training = [], [], len(self.model.layers) - 1, torch.is_grad_enabled()
        run = self.compiled if self.compiled and training else Block.__call__
        for i, block in enumerate(self.model.layers):
            view, past = views[self.config.layer_types[i]], (cache.keys[i], cache.values[i]) if cache else None
            arguments = (block, x, view, past, at if i == last else None, hidden or i < last)
            x, k, v = checkpoint(run, *arguments, use_reentrant=False) if self.gradient_checkpointing and training else run(*arguments)
            if keep:
                keys.append(k)
                values.append(v)
        if hidden:
            x = self.model.norm(x)                                                     # (B, T, C), or (B, 1, C) with `at`
        return x, keys, values

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)"""
        logits = self.lm_head(hidden)
        return logits / self.config.logits_scaling if self.config.logits_scaling != 1.0 else logits


class Stack(nn.Module):
    """Holds the names `model.*` of the checkpoint; Decoder.walk goes through it."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config)


class View:
    """What the layers of one type share in a pass: rotations, and which columns each query sees."""

    def __init__(self, config, kind, queries, columns, length, shared):
        self.queries, self.columns, self.shared = queries, columns, shared
        self.window = config.sliding_window if kind == "sliding_attention" else None
        if self.window is not None and shared and columns.shape[1] <= self.window:
            self.window = None                                                         # the window holds everything
        self.cos, self.sin = (a[:, None] for a in rope_angles(config.rope[kind], queries, length))       # (1 or B, 1, T, d)
        T, S = queries.shape[1], columns.shape[1]
        causal = shared and self.window is None and (T == S or T > S // 2 and T * S > MASKED)      # plain causal attention will do
        self.mask = None if causal else self.visible(queries)

    def visible(self, queries: Tensor) -> Tensor:
        """Positions (1 or B, T) -> bool mask (1 or B, 1, T, S): a column is seen unless it is later, or a window or more before."""
        distance = queries[:, :, None] - self.columns[:, None, :]
        seen = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        return seen[:, None]

    def attend(self, q, k, v, at, scale):
        """q (B, H, T, D), or (B, H, 1, D) at positions `at` (B, 1), k and v (B, K, S, D) -> (B, T or 1, H D)."""
        mask = self.mask if at is None else self.visible(pick(self.queries.expand(len(q), -1), at))
        return attend(q, k, v, mask, scale).transpose(1, 2).flatten(2)


class Packed:
    """A View of a prefix and the B rows after it as one row of P + B T tokens."""

    def __init__(self, prefix: View, suffix: View, B: int):
        self.prefix, self.suffix, self.B = prefix, suffix, B
        self.cos, self.sin = (torch.cat((first, rest.repeat(1, 1, B, 1)), dim=2)
                              for first, rest in ((prefix.cos, suffix.cos), (prefix.sin, suffix.sin)))   # (1, 1, P + B T, d)

    def attend(self, q, k, v, at, scale):
        """q (1, H, P + B T, D), or (1, H, B, D) at places `at` (1, B), k and v (1, K, P + B T, D) -> (1, P + B T or B, H D)."""
        P, T = self.prefix.queries.shape[1], self.suffix.queries.shape[1]
        parts = (P, self.B * T)
        (k, k_rows), (v, v_rows) = k.split(parts, dim=2), v.split(parts, dim=2)
        keys, values = (extended(a, self.rows(b), P + T) for a, b in ((k, k_rows), (v, v_rows)))
        if at is not None:
            return self.suffix.attend(self.rows(q), keys, values, (at - P).view(-1, 1) % T, scale).view(1, self.B, -1)
        q, q_rows = q.split(parts, dim=2)
        first = self.prefix.attend(q, k, v, None, scale)                                                 # (1, P, H D)
        rest = self.suffix.attend(self.rows(q_rows), keys, values, None, scale)                          # (B, T, H D)
        return torch.cat((first, rest.reshape(1, -1, rest.shape[2])), dim=1)

    def rows(self, a):
        """(1, heads, B T, D) -> (B, heads, T, D)"""
        return a[0].unflatten(1, (self.B, -1)).transpose(0, 1)


NORMS = {                                      # placement: before attention, after it, before the MLP, after it
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "sandwich": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.residual_multiplier = config.residual_multiplier
        self.norms = NORMS[config.norms]
        for name in filter(None, self.norms):
            setattr(self, name, RMSNorm(config.hidden_size, config))

    def forward(self, x, view, past, at, hidden):
        """x (B, T, C) -> x at the positions asked for, or all, and the layer's keys and values (B, K, S, D)."""
        before_attention, after_attention, before_mlp, after_mlp = self.norms
        y, k, v = self.self_attn(self.norm(before_attention, x), view, past, at, hidden)
        if not hidden:                                                                 # a prefix: keys and values were all
            return x, k, v
        x = self.add(pick(x, at), self.norm(after_attention, y))
        x = self.add(x, self.norm(after_mlp, self.mlp(self.norm(before_mlp, x))))
        return x, k, v

    def norm(self, name, x):
        return x if name is None else getattr(self, name)(x)

    def add(self, x, branch):
        return x + branch if self.residual_multiplier == 1.0 else x + branch * self.residual_multiplier


def pick(x: Tensor, at: Tensor | None) -> Tensor:
    """(B, T, ...) -> (B, 1, ...) at positions `at` (B, 1)."""
    return x if at is None else x[torch.arange(len(x), device=x.device)[:, None], at]


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        C, H, K, D = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.sizes, self.head_dim, self.scale = (H * D, K * D, K * D), D, config.attention_multiplier
        self.fused, self.rotates, self.rope_fp32 = config.fused_projections, config.rope_layers[index], config.rope_fp32
        self.norm_heads = config.qk_norm == "head"
        if self.fused:
            self.qkv_proj = nn.Linear(C, sum(self.sizes), bias=config.qkv_bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(C, size, bias=config.qkv_bias) for size in self.sizes)
        self.o_proj = nn.Linear(H * D, C, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(D if self.norm_heads else size, config) for size in self.sizes[:2])

    def forward(self, x, view, past, at, hidden):
        """x (B, T, C) -> (B, T, C), or (B, 1, C) at positions `at`; with the keys and values of past and present."""
        q, k, v = self.project(x, at)                                                  # (B, heads, T, D)
        if self.rotates:
            cos, sin = view.cos, view.sin
            k = self.rotate(k, cos, sin)
            if at is not None:
                cos, sin = (pick(a[:, 0].expand(len(x), -1, -1), at)[:, None] for a in (cos, sin))       # (B, 1, 1, d)
            q = self.rotate(q, cos, sin)
        kept = k, v
        if past is not None:
            S = view.columns.shape[1]
            kept = [extended(old, new, S) for old, new in zip(past, kept)]
            k, v = (a[:, :, :S] for a in kept)
        return self.o_proj(view.attend(q, k, v, at, self.scale)) if hidden else None, *kept

    def project(self, x, at):
        """Queries at the positions asked for, keys and values everywhere: (B, H, T or 1, D), (B, K, T, D) twice."""
        if self.fused:
            q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
            q = pick(q, at)
        else:
            q, k, v = self.q_proj(pick(x, at)), self.k_proj(x), self.v_proj(x)
        if hasattr(self, "q_norm") and not self.norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (a.unflatten(-1, (-1, self.head_dim)) for a in (q, k, v))            # (B, T, heads, D)
        if hasattr(self, "q_norm") and self.norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def rotate(self, x, cos, sin):
        if self.rope_fp32:
            return rotate(x.float(), cos, sin).to(x.dtype)
        return rotate(x, cos.to(x.dtype), sin.to(x.dtype))


def extended(old: Tensor, new: Tensor, S: int) -> Tensor:
    """(1 or B, K, P, D) and (B, K, T, D) -> (B, K, S, D) of both, S = P + T; in place where `old` has room for them."""
    if old.shape[2] < S:
        return torch.cat((old.expand(len(new), -1, -1, -1), new), dim=2)
    old[:, :, S - new.shape[2]:S] = new
    return old


def attend(q, k, v, mask, scale):
    """q (B, H, T, D), k and v (B, K, S, D), mask (1 or B, 1, T, S) or None for plain causal -> (B, H, T, D).

    Without a mask queries are put in for the S - T columns before q, and their answers dropped: memory grows with S, not with T S."""
    before = k.shape[2] - q.shape[2]
    if mask is None and before:
        return attend(F.pad(q, (0, 0, before, 0)), k, v, None, scale)[:, :, before:]
    groups = q.shape[1] // k.shape[1]
    if mask is not None and q.is_cuda and groups > 1:                                  # no fused CUDA kernel takes both
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, F_, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.fused, self.activation = config.fused_projections, config.hidden_act
        if self.fused:
            self.gate_up_proj = nn.Linear(C, 2 * F_, bias=bias)
        else:
            self.gate_proj, self.up_proj = nn.Linear(C, F_, bias=bias), nn.Linear(C, F_, bias=bias)
        self.down_proj = nn.Linear(F_, C, bias=bias)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(GatedSiLU.apply(gate, up) if self.activation == "silu" else F.gelu(gate, approximate="tanh") * up)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times the gain (Zhang and Sennrich, 2019), normalised in fp32."""

    def __init__(self, size, config):
        super().__init__()
        self.eps, self.in_fp32, self.plus_one = config.rms_norm_eps, config.norm_fp32, config.norm_plus_one
        self.weight = nn.Parameter(torch.zeros(size) if self.plus_one else torch.ones(size))

    def forward(self, x):
        y = Normalize.apply(x, self.eps)
        if not self.in_fp32:                                                           # Llama's order: cast, then the gain
            return self.weight * y.to(x.dtype)
        gain = 1.0 + self.weight.float() if self.plus_one else self.weight.float()
        return (gain * y).to(x.dtype)
