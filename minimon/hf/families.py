"""ModelConfig: what config.json says, in the decoder's own terms. What is not implemented is refused by key
and value.

A family is a row of FAMILIES: its structure, and the keys that it reads beside COMMON and SIZES. A key that a
file omits takes the value there, which is that of Hugging Face's configuration classes; only sizes have to be
in the file.
"""

from dataclasses import replace
from pathlib import Path

from minimon.files import read_json
from minimon.hf.rope import FULL, SLIDING, read_rope
from minimon.model import ModelConfig

SIZES = {  # at most; layers are built one by one, and that has to end
    "vocab_size": 2**24,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**24,
}
COMMON = dict(
    num_key_value_heads=None,  # None: as many as heads
    head_dim=None,  # None: hidden_size / num_attention_heads
    hidden_act="silu",
    max_position_embeddings=2048,
    original_max_position_embeddings=None,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    rope_theta=10_000.0,
    partial_rotary_factor=1.0,
    rope_scaling=None,
    rope_parameters=None,
)
STRUCTURE = dict(  # what no file says: the family's name stands for it
    norms="pre", norm_fp32=False, norm_plus_one=False, qk_norm=None, fused_projections=False, rope_fp32=False
)
BIASES = dict(attention_bias=False, mlp_bias=False)
GEMMA = dict(
    attention_bias=False,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    tie_word_embeddings=True,
    norm_fp32=True,
    norm_plus_one=True,
)
OLMO = dict(
    attention_bias=False, rms_norm_eps=1e-5, norms="post", norm_fp32=True, qk_norm="full", rope_fp32=True
)
QWEN = dict(
    max_position_embeddings=32768,
    num_key_value_heads=32,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
)
FAMILIES = {
    "llama": BIASES,
    "mistral": dict(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    "qwen2": QWEN,
    "qwen3": dict(QWEN, attention_bias=False, head_dim=128, qk_norm="head"),
    "smollm3": dict(
        BIASES,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_theta=2_000_000.0,
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=None,
        layer_types=None,
        no_rope_layers=None,
        no_rope_layer_interval=4,
    ),
    "olmo2": OLMO,
    "olmo3": dict(
        OLMO, sliding_window=4096, sliding_window_pattern=4, layer_types=None, rope_theta=500_000.0
    ),
    "phi3": dict(
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        sliding_window=None,
        fused_projections=True,
    ),
    "gemma": dict(GEMMA, num_key_value_heads=16, max_position_embeddings=8192),
    "gemma3_text": dict(
        GEMMA,
        vocab_size=262208,  # wrappers on the hub omit sizes as well
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        sliding_window=4096,
        sliding_window_pattern=6,
        layer_types=None,
        query_pre_attn_scalar=256,
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        hidden_activation="gelu_pytorch_tanh",
        norms="sandwich",
        qk_norm="head",
    ),
    "granite": dict(
        BIASES,
        embedding_multiplier=1.0,
        attention_multiplier=1.0,
        residual_multiplier=1.0,
        logits_scaling=1.0,
    ),
}
MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
WRAPPERS = {  # multimodal model_type -> the decoder in it, and the decoder's architecture
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "mistral3": ("mistral", "MistralForCausalLM"),
}


def read_config(directory) -> ModelConfig:
    """config.json of a checkpoint directory -> ModelConfig.

    Raises FileNotFoundError without the file, ValueError naming the file, key and value for anything else."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        expected = "expected a model's config.json there, found none; name a checkpoint directory or a hub id"
        raise FileNotFoundError(f"{path}: {expected}")
    raw = read_json(path)
    try:
        return config_from_dict(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_dict(raw: dict) -> ModelConfig:
    """The mapping of a config.json, of either generation of transformers (4.x or 5.x) -> ModelConfig."""
    refuse_unimplemented(raw)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in (*FAMILIES, *WRAPPERS):
        raise ValueError(f"model_type: expected one of {', '.join((*FAMILIES, *WRAPPERS))}; got {family!r}")
    if family in WRAPPERS:
        return replace(config_from_dict(text_decoder(raw)), wrapped=True)
    row = FAMILIES[family]
    defaults = {**dict.fromkeys(SIZES), **COMMON, **row}
    table = ConfigTable({key: raw[key] for key in defaults if key in raw}, defaults)

    sizes = {key: table.size(key, most) for key, most in SIZES.items()}
    hidden_size, heads, layers = (
        sizes[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    kv_heads = heads if table("num_key_value_heads") is None else table.size("num_key_value_heads")
    if heads % kv_heads:
        divisor = f"expected a divisor of num_attention_heads = {heads}"
        raise ValueError(f"num_key_value_heads: {divisor}, got {kv_heads}")
    head_dim = hidden_size // heads if table("head_dim") is None else table.size("head_dim")
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim: expected an even number (rotations turn pairs), got {head_dim}")

    rope_layers = no_rope_layers(table, layers) if family == "smollm3" else (True,) * layers
    window = sliding_window(table)
    biases = table.flag("attention_bias")
    return ModelConfig(
        model_type=family,
        **sizes,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=table.number("rms_norm_eps"),
        hidden_act=activation(table, family),
        max_position_embeddings=table.size("max_position_embeddings"),
        tie_word_embeddings=table.flag("tie_word_embeddings"),
        qkv_bias=biases or family == "qwen2",
        o_bias=biases,
        mlp_bias=table.flag("mlp_bias"),
        layer_types=layer_types(table, family, window, rope_layers),
        sliding_window=window,
        rope=read_rope(table, family, head_dim),
        rope_layers=rope_layers,
        wrapped=False,
        **multipliers(table, family, hidden_size, head_dim),
        **{key: row.get(key, value) for key, value in STRUCTURE.items()},
    )


class ConfigTable:
    """A table of config.json: what the file says, else the default.

    The typed reads raise ValueError naming key and value. `where`: the path of keys to a nested table."""

    def __init__(self, raw, defaults, where=""):
        self.raw, self.defaults, self.where = raw, defaults, where

    def __call__(self, key):
        """A null is none, and not the default."""
        return self.raw.get(key, self.defaults.get(key))

    def check(self, key, ok, expected):
        if not ok:
            where = self.where if key in self.raw or key not in self.defaults else ""
            raise ValueError(f"{where}{key}: expected {expected}, got {self(key)!r}")
        return self(key)

    def size(self, key, most=2**24):
        value = self(key)
        return self.check(key, type(value) is int and 0 < value <= most, f"a positive integer up to {most}")

    def number(self, key):
        return float(self.check(key, is_positive(self(key)), "a positive number"))

    def flag(self, key):
        """False where the family has no such key."""
        value = self(key)
        return bool(self.check(key, value is None or type(value) is bool, "true or false"))

    def table(self, key):
        value = self(key)
        table = self.check(key, value is None or type(value) is dict, "a table") or {}
        return ConfigTable(table, {}, f"{self.where}{key}.")

    def over(self, defaults, **wins):
        """With other defaults, and with values that win over what the file says."""
        return ConfigTable({**self.raw, **wins}, defaults, self.where)


def is_positive(value):
    return type(value) in (int, float) and 0 < value < 1e38


def refuse_unimplemented(raw):
    """Keys that change the arithmetic and are not implemented here; all of them are named in one message."""
    keys = ("quantization_config", "final_logit_softcapping", "use_bidirectional_attention")
    problems = [f"{key} = {raw[key]!r} is not implemented" for key in keys if raw.get(key)]
    if problems:
        raise ValueError("; ".join(problems))


def text_decoder(raw):
    """config.json of the decoder inside a multimodal wrapper, whose own key says whether the head is tied."""
    (family, _), text = WRAPPERS[raw["model_type"]], raw.get("text_config")
    if not isinstance(text, dict):
        raise ValueError(f"text_config: expected a table, got {text!r}")
    tied = raw.get("tie_word_embeddings")
    return {"model_type": family, **text, "tie_word_embeddings": True if tied is None else tied}


def activation(table, family):
    key = "hidden_activation" if family == "gemma3_text" else "hidden_act"
    name = table(key)
    if family == "gemma" and name == "gelu":  # the tanh form is meant, whatever the file says
        return "gelu_pytorch_tanh"
    return table.check(key, name in ("silu", "gelu_pytorch_tanh"), "'silu' or 'gelu_pytorch_tanh'")


def multipliers(table, family, hidden_size, head_dim):
    """Factors on the embedding, the scores, each residual branch and the logits."""
    if family == "granite":
        return {key: table.number(key) for key in MULTIPLIERS}
    scale = table.number("query_pre_attn_scalar") if family == "gemma3_text" else head_dim
    embedding = hidden_size**0.5 if family.startswith("gemma") else 1.0
    return dict(zip(MULTIPLIERS, (embedding, scale**-0.5, 1.0, 1.0), strict=True))


def sliding_window(table):
    if "use_sliding_window" in table.defaults and not table.flag("use_sliding_window"):
        return None
    return None if table("sliding_window") is None else table.size("sliding_window")


def layer_types(table, family, window, rope_layers):
    """An explicit list wins where the family has one; otherwise each family's rule."""
    layers, types = len(rope_layers), table("layer_types")
    if types is None:
        slides = sliding_layers(table, family, window, rope_layers)
        types = [SLIDING if sliding else FULL for sliding in slides]
    check_layers("layer_types", types, layers, (FULL, SLIDING))
    if SLIDING in types and window is None:
        expected = f"expected a sliding_window (and use_sliding_window) with '{SLIDING}'"
        raise ValueError(f"layer_types: {expected}, got none")
    return tuple(types)


def sliding_layers(table, family, window, rope_layers):
    layers = range(len(rope_layers))
    if family in ("olmo3", "gemma3_text"):  # the last of every few layers sees everything
        every = table.size("sliding_window_pattern")
        return [(i + 1) % every != 0 for i in layers]
    if window is None:
        return [False for _ in layers]
    if family == "smollm3":
        return [not rotated for rotated in rope_layers]
    first = table("max_window_layers") or 0
    return [i >= first for i in layers]


def no_rope_layers(table, layers):
    """Whether each layer rotates: in the file 1 says that it does, in spite of the key's name."""
    flags = table("no_rope_layers")
    if flags is None:
        every = table.size("no_rope_layer_interval")
        flags = [int((i + 1) % every != 0) for i in range(layers)]
    check_layers("no_rope_layers", flags, layers, (0, 1))
    return tuple(flag == 1 for flag in flags)


def check_layers(key, values, layers, choices):
    if not isinstance(values, list) or len(values) != layers or any(value not in choices for value in values):
        raise ValueError(
            f"{key}: expected a list of {layers}, each {choices[0]} or {choices[1]}, got {values!r}"
        )
