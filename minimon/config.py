"""ModelConfig: what config.json says, in the decoder's own terms. What is not implemented is refused by key and value.

A family is a row of FAMILIES: only the values in which it differs from Llama. Keys that a file omits take the family's
defaults, which are those of Hugging Face's configuration classes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path


ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    rope_type: str
    theta: float
    dim: int                                   # d, the rotated part of head_dim
    max_positions: int                         # max_position_embeddings
    original_positions: int                    # positions seen before the range was extended
    scaling: dict = field(default_factory=dict, hash=False)

    def number(self, key: str, default=None) -> float:
        value = self.scaling.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"rope_type {self.rope_type!r}: expected a number for {key}, got {value!r}")
        return value

    @property
    def switch(self) -> int | None:
        """Length beyond which the angles depend on the whole text's length; None where they never do."""
        return {"dynamic": self.max_positions, "longrope": self.original_positions}.get(self.rope_type)


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
    rope: dict[str, RopeConfig]                # by layer type
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


COMMON = dict(
    head_dim=None, hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
    num_attention_heads=32, num_key_value_heads=None, sliding_window=None, rope_theta=10_000.0, norms="pre", norm_fp32=False,
    norm_plus_one=False, qk_norm=None, fused_projections=False, rope_fp32=False)
GEMMA = dict(
    head_dim=256, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, norm_fp32=True, norm_plus_one=True)
OLMO = dict(
    vocab_size=50304, max_position_embeddings=2048, rms_norm_eps=1e-5, norms="post", norm_fp32=True, qk_norm="full", rope_fp32=True)
QWEN = dict(vocab_size=151936, max_position_embeddings=32768, num_key_value_heads=32, max_window_layers=28)
FAMILIES = {
    "llama": dict(vocab_size=32000, max_position_embeddings=2048),
    "mistral": dict(vocab_size=32000, max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    "qwen2": dict(QWEN, sliding_window=4096),
    "qwen3": dict(QWEN, sliding_window=4096, head_dim=128, qk_norm="head"),
    "smollm3": dict(vocab_size=128256, max_position_embeddings=32768, num_attention_heads=16, num_key_value_heads=4,
                    rope_theta=2_000_000.0, tie_word_embeddings=True),
    "olmo2": OLMO,
    "olmo3": dict(OLMO, sliding_window=4096, rope_theta=500_000.0),
    "phi3": dict(vocab_size=32064, max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5,
                 fused_projections=True),
    "gemma": dict(GEMMA, vocab_size=256000, max_position_embeddings=8192, num_attention_heads=16, num_key_value_heads=16),
    "gemma3_text": dict(GEMMA, vocab_size=262208, max_position_embeddings=131072, num_attention_heads=8, num_key_value_heads=4,
                        sliding_window=4096, rope_theta=1_000_000.0, norms="sandwich", qk_norm="head"),
    "granite": dict(vocab_size=32000, max_position_embeddings=2048),
}
FULL, SLIDING = "full_attention", "sliding_attention"


def read_config(directory) -> ModelConfig:
    """config.json of a checkpoint directory -> ModelConfig.

    Raises FileNotFoundError without the file, ValueError naming the file, key and value for anything else."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a model's config.json there, found none; name a checkpoint directory or a hub id")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"expected a JSON object, got {type(raw).__name__}")
        return config_from_dict(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_dict(raw: dict) -> ModelConfig:
    """The mapping of a config.json, of either generation of transformers (4.x or 5.x) -> ModelConfig."""
    if "text_config" in raw:                   # a multimodal wrapper: its text decoder alone
        text = dict(raw["text_config"])
        text.setdefault("tie_word_embeddings", raw.get("tie_word_embeddings", True))
        raw = text
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"model_type: expected one of {', '.join(FAMILIES)}; got {model_type!r}")
    family = {**COMMON, **FAMILIES[model_type]}

    def get(key, default=None):
        value = raw.get(key)
        return family.get(key, default) if value is None else value

    refuse_unimplemented(raw, get)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "max_position_embeddings")
    hidden_size, intermediate_size, layers, vocab_size, heads, max_positions = (positive_int(key, get(key)) for key in sizes)
    no_default = model_type in ("llama", "phi3", "granite", "olmo2", "olmo3")       # null means as many as query heads
    kv_heads = positive_int("num_key_value_heads", heads if no_default and raw.get("num_key_value_heads") is None
                            else get("num_key_value_heads", heads))
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads: expected a divisor of num_attention_heads = {heads}, got {kv_heads}")
    head_dim = positive_int("head_dim", get("head_dim") or hidden_size // heads)
    if head_dim % 2:
        raise ValueError(f"head_dim: expected an even number (rotations turn pairs), got {head_dim}")
    gemma = model_type.startswith("gemma")
    granite = model_type == "granite"
    rope_layers = no_rope_layers(raw, layers) if model_type == "smollm3" else (True,) * layers
    window = sliding_window(raw, model_type, get)
    biases = bool(get("attention_bias")) and model_type not in ("mistral", "qwen2", "phi3")
    return ModelConfig(
        model_type=model_type, vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=intermediate_size,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        rms_norm_eps=float(get("rms_norm_eps")), hidden_act=activation(raw, model_type, get), max_position_embeddings=max_positions,
        tie_word_embeddings=bool(get("tie_word_embeddings")), qkv_bias=biases or model_type == "qwen2", o_bias=biases,
        mlp_bias=bool(get("mlp_bias")) and model_type in ("llama", "smollm3", "granite"),
        layer_types=layer_types(raw, model_type, layers, window, rope_layers), sliding_window=window,
        rope=rope_by_layer_type(raw, model_type, get, head_dim, max_positions), rope_layers=rope_layers,
        rope_fp32=family["rope_fp32"], norms=family["norms"], norm_fp32=family["norm_fp32"],
        norm_plus_one=family["norm_plus_one"], qk_norm=family["qk_norm"], fused_projections=family["fused_projections"],
        embedding_multiplier=hidden_size ** 0.5 if gemma else float(raw.get("embedding_multiplier", 1.0)) if granite else 1.0,
        attention_multiplier=float(raw.get("attention_multiplier", 1.0)) if granite
        else (raw.get("query_pre_attn_scalar") or 256) ** -0.5 if model_type == "gemma3_text" else head_dim ** -0.5,
        residual_multiplier=float(raw.get("residual_multiplier", 1.0)) if granite else 1.0,
        logits_scaling=float(raw.get("logits_scaling", 1.0)) if granite else 1.0)


def refuse_unimplemented(raw: dict, get) -> None:
    """Settings that change the arithmetic and are not implemented here; all of them are named in one message."""
    problems = [f"{key} = {raw[key]!r} is not implemented" for key in (
        "quantization_config", "final_logit_softcapping", "use_bidirectional_attention") if raw.get(key)]
    if raw.get("pretraining_tp", 1) not in (1, None):
        problems.append(f"pretraining_tp = {raw['pretraining_tp']!r} is not implemented")
    if problems:
        raise ValueError("; ".join(problems))


def positive_int(key: str, value) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2 ** 31:
        raise ValueError(f"{key}: expected a positive integer, got {value!r}")
    return value


def activation(raw: dict, model_type: str, get) -> str:
    key = "hidden_activation" if model_type == "gemma3_text" else "hidden_act"
    value = raw.get(key) or get("hidden_act")
    if model_type == "gemma" and value == "gelu":        # the tanh form is meant, whatever the file says (interop 1.5)
        value = "gelu_pytorch_tanh"
    if value not in ("silu", "gelu_pytorch_tanh"):
        raise ValueError(f"{key}: expected 'silu' or 'gelu_pytorch_tanh', got {value!r}")
    return value


def sliding_window(raw: dict, model_type: str, get) -> int | None:
    if model_type in ("llama", "gemma", "granite", "olmo2"):
        return None
    if model_type in ("qwen2", "qwen3", "smollm3") and not raw.get("use_sliding_window", False):
        return None
    window = raw["sliding_window"] if "sliding_window" in raw else get("sliding_window")      # null means none
    return None if window is None else positive_int("sliding_window", window)


def layer_types(raw: dict, model_type: str, layers: int, window: int | None, rope_layers) -> tuple[str, ...]:
    """An explicit list wins; otherwise each family's rule (interop 1.6)."""
    types = raw.get("layer_types")
    if types is None or model_type in ("llama", "mistral", "phi3", "gemma", "granite", "olmo2"):
        full_every = {"gemma3_text": raw.get("sliding_window_pattern") or 6, "olmo3": 4}.get(model_type)
        first = raw.get("max_window_layers", 28) if model_type in ("qwen2", "qwen3") else 0
        types = [FULL if window is None or i < first or (full_every and (i + 1) % full_every == 0)
                 or (model_type == "smollm3" and rope_layers[i]) else SLIDING for i in range(layers)]
    if len(types) != layers or not set(types) <= {FULL, SLIDING}:
        raise ValueError(f"layer_types: expected {layers} of '{FULL}' or '{SLIDING}', got {types!r}")
    return tuple(types)


def no_rope_layers(raw: dict, layers: int) -> tuple[bool, ...]:
    flags = raw.get("no_rope_layers")                    # 1 = rotated, 0 = not, in spite of the name
    if flags is None:
        interval = raw.get("no_rope_layer_interval", 4)
        flags = [(i + 1) % interval != 0 for i in range(layers)]
    if len(flags) != layers:
        raise ValueError(f"no_rope_layers: expected {layers} entries, got {len(flags)}")
    return tuple(bool(flag) for flag in flags)


def rope_by_layer_type(raw: dict, model_type: str, get, head_dim: int, max_positions: int) -> dict[str, RopeConfig]:
    """Both generations of config.json: rope_theta + rope_scaling (4.x), rope_parameters (5.x); the old key wins."""
    params = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(params, dict):
        raise ValueError(f"rope_scaling: expected a table, got {params!r}")
    both = {FULL: params, SLIDING: params}
    if FULL in params or SLIDING in params:
        both = {kind: params.get(kind) or {} for kind in (FULL, SLIDING)}
    elif model_type in ("gemma3_text", "olmo3"):         # scaling is for the full layers alone
        both[SLIDING] = {}
    local = raw.get("rope_local_base_freq", 10_000.0)
    return {kind: rope_config(table, raw, model_type, head_dim, max_positions,
                              local if model_type == "gemma3_text" and kind == SLIDING else get("rope_theta"))
            for kind, table in both.items()}


def rope_config(table: dict, raw: dict, model_type: str, head_dim: int, max_positions: int, theta) -> RopeConfig:
    rope_type = table.get("rope_type") or table.get("type") or "default"
    if model_type == "phi3" and rope_type in ("su", "yarn"):
        rope_type = "longrope"                           # older names of the same thing
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"rope_type: expected one of {', '.join(ROPE_TYPES)}; got {rope_type!r}")
    partial = table.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if rope_type == "default" and model_type != "phi3":
        partial = 1.0                                    # as in Hugging Face's code of these families
    original = raw.get("original_max_position_embeddings", 4096 if model_type == "phi3" else None) \
        or table.get("original_max_position_embeddings") or max_positions
    return RopeConfig(rope_type, float(table.get("rope_theta") or theta), int(head_dim * partial), max_positions, original,
                      {key: value for key, value in table.items() if key not in ("rope_type", "type", "rope_theta")})
