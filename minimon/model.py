"""Decoder: token ids -> hidden states. Modules are spelled as in the checkpoint, so loading needs no mapping.

The tokens of all texts of a pass stand in one ragged row, without padding (attention.py): x is (N, C) from the embedding to the
final norm.

N tokens of the row, B texts in it, C hidden_size, H heads, K key/value heads, D head_dim, F intermediate_size, V vocabulary.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimon.attention import SLIDING, Cache, DecodingStep, Layout, Span, rotate
from minimon.ops import GatedSiLU


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
    head_dim: int  # may differ from hidden_size / num_attention_heads
    rms_norm_eps: float
    hidden_act: str  # silu | gelu_pytorch_tanh
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    layer_types: tuple[str, ...]  # full_attention | sliding_attention, one a layer
    sliding_window: int | None  # keys visible to a query of a sliding layer, itself included
    rope: dict[str, object]  # by layer type
    rope_layers: tuple[bool, ...]  # False: no rotation in that layer (smollm3)
    rope_fp32: bool  # rotate in fp32 whatever the dtype (olmo)
    norms: str  # pre | post | sandwich: where a block's norms stand
    norm_fp32: bool  # multiply by the gain before the cast back, not after it
    norm_plus_one: bool  # the gain is 1 + weight (gemma)
    qk_norm: str | None  # head: per head; full: over all heads at once (olmo)
    fused_projections: bool  # qkv_proj and gate_up_proj (phi3)
    embedding_multiplier: float
    attention_multiplier: float  # scores are q k^T times this
    residual_multiplier: float
    logits_scaling: float  # logits are divided by this
    wrapped: bool  # the text decoder of a multimodal model


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        # recompute each block in the backward pass instead of keeping its activations
        self.gradient_checkpointing = False
        self.compiled = False  # training passes run Block.before and Block.after as torch.compile made them

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> hidden states after the final norm (B, T, C)."""
        B, T = tokens.shape
        return self.hidden(tokens.flatten(), [Span(B, T)]).view(B, T, -1)

    def hidden(self, tokens: Tensor, spans: list[Span]) -> Tensor:
        """tokens (N,) laid out as `spans` say -> hidden states of all of them (N, C)."""
        return self.run(tokens, self.layout(spans))[0]

    def last_hidden(self, tokens: Tensor, spans: list[Span], cache: Cache | None = None) -> Tensor:
        """tokens (N,) -> hidden states (B, C) at the last token of each text, where its answer is read.

        In the last block keys and values are needed everywhere, but queries, output projection and MLP for those B tokens only."""
        return self.run(tokens, self.layout(spans, cache), cache, last_only=True)[0]

    def prefix(self, tokens: Tensor) -> Cache:
        """tokens (P,) that many texts share -> Cache of one row, for spans that continue "cache"."""
        return self.prefill(tokens, [Span(1, len(tokens))], room=0)[1]

    def prefill(self, tokens: Tensor, spans: list[Span], room: int) -> tuple[Tensor, Cache]:
        """tokens (N,) of B prompts -> hidden states (B, C) at their last tokens, and their Cache (B, K, S, D) with `room` columns left
        for what is written after the longest."""
        layout = self.layout(spans)
        hidden, keys, values = self.run(tokens, layout, last_only=True, keep=True)
        keys, values = ([layout.text_rows(x, room) for x in kept] for kept in (keys, values))
        return hidden, Cache(keys, values)

    def decode(self, tokens: Tensor, positions: Tensor, cache: Cache, full_lengths: list[int]) -> Tensor:
        """One token of each text, tokens and positions (B,), after what is in the cache, which it joins -> hidden states (B, C)."""
        step = DecodingStep(self.config, positions, full_lengths, self.lm_head.weight.dtype)
        return self.run(tokens, step, cache)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)"""
        logits = self.lm_head(hidden)
        return logits / self.config.logits_scaling if self.config.logits_scaling != 1.0 else logits

    def layout(self, spans: list[Span], cache: Cache | None = None) -> Layout:
        weight = self.lm_head.weight
        return Layout(self.config, spans, cache, weight.dtype, weight.device)

    def run(self, tokens, layout, cache=None, *, last_only=False, keep=False):
        """Through all blocks -> (hidden states, keys and values of each layer where they are to be kept)."""
        x = self.model.embed_tokens(tokens)  # (N, C)
        if self.config.embedding_multiplier != 1.0:
            x = x * torch.tensor(self.config.embedding_multiplier, dtype=x.dtype, device=x.device)
        training = torch.is_grad_enabled()
        keys, values = [], []
        for i, block in enumerate(self.model.layers):
            past = (cache.keys[i], cache.values[i]) if cache else None
            at_last = last_only and block is self.model.layers[-1]
            arguments = (x, layout, past, at_last, self.compiled and training)
            if self.gradient_checkpointing and training:
                x, k, v = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, k, v = block(*arguments)
            if keep:
                keys.append(k)
                values.append(v)
        return self.model.norm(x), keys, values  # (N, C), or (B, C) at the last tokens


class Stack(nn.Module):
    """Holds the names `model.*` of the checkpoint; Decoder.run goes through it."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config)


NORMS = {  # placement: before attention, after it, before the MLP, after it
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
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

    def forward(self, x, layout, past, last_only, compiled):
        """x (N, C) -> x (N, C), or (B, C) at the texts' last tokens; and the layer's keys and values (N, K, D) of these tokens."""
        before, after = compiled_halves() if compiled else (Block.before, Block.after)
        last = layout.last if last_only else None
        cos, sin = layout.rotations[self.self_attn.kind]
        q, k, v = before(self, x, cos, sin, last)
        window, scale = self.self_attn.window, self.self_attn.scale
        y = layout.attend(q, k, v, past, window, scale)  # (N or B, H D)
        return after(self, x if last is None else x[last], y), k, v

    def before(self, x, cos, sin, last):
        return self.self_attn.project(self.norm(self.norms[0], x), cos, sin, last)

    def after(self, x, y):
        _, after_attention, before_mlp, after_mlp = self.norms
        x = self.add(x, self.norm(after_attention, self.self_attn.o_proj(y)))
        return self.add(x, self.norm(after_mlp, self.mlp(self.norm(before_mlp, x))))

    def norm(self, name, x):
        return x if name is None else getattr(self, name)(x)

    def add(self, x, branch):
        return x + branch if self.residual_multiplier == 1.0 else x + branch * self.residual_multiplier


@cache
def compiled_halves():
    """Block.before and Block.after, one graph each for all blocks and lengths; attention between them takes texts apart as it is."""
    return torch.compile(Block.before, dynamic=True), torch.compile(Block.after, dynamic=True)


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.kind = config.layer_types[index]
        self.window = config.sliding_window if self.kind == SLIDING else None
        self.rotates = config.rope_layers[index]
        self.scale = config.attention_multiplier
        self.head_dim, self.sizes = D, (H * D, K * D, K * D)
        if config.fused_projections:
            self.qkv_proj = nn.Linear(C, sum(self.sizes), bias=config.qkv_bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (
                nn.Linear(C, size, bias=config.qkv_bias) for size in self.sizes
            )
        self.o_proj = nn.Linear(H * D, C, bias=config.o_bias)
        self.fused, self.qk_norm = config.fused_projections, config.qk_norm
        if self.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(D if self.qk_norm == "head" else size, config) for size in self.sizes[:2]
            )

    def project(self, x, cos, sin, last):
        """x (N, C) -> q (N, H, D), or (B, H, D) at the tokens `last` (B,), k (N, K, D), both rotated, and v (N, K, D)."""
        at = slice(None) if last is None else last
        if self.fused:
            q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
            q = q[at]
        else:
            q, k, v = self.q_proj(x[at]), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (a.unflatten(-1, (-1, self.head_dim)) for a in (q, k, v))  # (N, heads, D)
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = rotate(q, cos[at], sin[at]), rotate(k, cos, sin)
        return q, k, v


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
        if self.fused:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (N, F) each
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        if self.activation == "silu":
            return self.down_proj(GatedSiLU.apply(gate, up))
        return self.down_proj(F.gelu(gate, approximate="tanh") * up)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times the gain (Zhang and Sennrich, 2019), normalised in fp32."""

    def __init__(self, size, config):
        super().__init__()
        self.eps, self.in_fp32, self.plus_one = config.rms_norm_eps, config.norm_fp32, config.norm_plus_one
        self.weight = nn.Parameter(torch.zeros(size) if self.plus_one else torch.ones(size))

    def forward(self, x):
        y = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        if not self.in_fp32:  # Llama's order: cast, then the gain
            return self.weight * y.to(x.dtype)
        gain = 1.0 + self.weight.float() if self.plus_one else self.weight.float()
        return (gain * y).to(x.dtype)
