"""ModelConfig: what config.json says, in the decoder's own terms. What is not implemented is refused by key and value.

A family is a row of FAMILIES: only the values in which it differs from Llama. Keys that a file omits take the family's
defaults, which are those of Hugging Face's configuration classes.
"""

from pathlib import Path
from typing import NamedTuple

from minimon.files import read_json
from minimon.hf.rope import FULL, SLIDING, read_rope
from minimon.model import ModelConfig

COMMON = dict(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=None, head_dim=None, hidden_act="silu", max_position_embeddings=2048, rms_norm_eps=1e-6,
    tie_word_embeddings=False, attention_bias=False, mlp_bias=False, sliding_window=None, use_sliding_window=False,
    rope_theta=10_000.0, norms="pre", norm_fp32=False, norm_plus_one=False, qk_norm=None, fused_projections=False, rope_fp32=False)
GEMMA = dict(head_dim=256, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, norm_fp32=True, norm_plus_one=True)
OLMO = dict(vocab_size=50304, rms_norm_eps=1e-5, norms="post", norm_fp32=True, qk_norm="full", rope_fp32=True)
QWEN = dict(vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768, num_key_value_heads=32,
            sliding_window=4096, max_window_layers=28)
FAMILIES = {
    "llama": {},
    "mistral": dict(intermediate_size=14336, max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    "qwen2": QWEN,
    "qwen3": dict(QWEN, head_dim=128, qk_norm="head"),
    "smollm3": dict(vocab_size=128256, hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=4,
                    max_position_embeddings=32768, rope_theta=2_000_000.0, tie_word_embeddings=True, no_rope_layer_interval=4),
    "olmo2": OLMO,
    "olmo3": dict(OLMO, sliding_window=4096, rope_theta=500_000.0),
    "phi3": dict(vocab_size=32064, hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096,
                 original_max_position_embeddings=4096, rms_norm_eps=1e-5, fused_projections=True),
    "gemma": dict(GEMMA, vocab_size=256000, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28,
                  num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=8192),
    "gemma3_text": dict(GEMMA, vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
                        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=131072, sliding_window=4096,
                        sliding_window_pattern=6, query_pre_attn_scalar=256, rope_theta=1_000_000.0,
                        rope_local_base_freq=10_000.0, hidden_activation="gelu_pytorch_tanh", norms="sandwich", qk_norm="head"),
    "granite": dict(embedding_multiplier=1.0, attention_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0),
}


class Wrapper(NamedTuple):
    """A multimodal model_type around a decoder."""

    family: str
    architecture: str                          # of the decoder alone
    tied: bool                                 # the wrapper's own tie_word_embeddings where the file has none


WRAPPERS = {
    "gemma3": Wrapper("gemma3_text", "Gemma3ForCausalLM", True),
    "mistral3": Wrapper("mistral", "MistralForCausalLM", True),
    "llava": Wrapper("llama", "LlamaForCausalLM", False),
}


def read_config(directory) -> ModelConfig:
    """config.json of a checkpoint directory -> ModelConfig.

    Raises FileNotFoundError without the file, ValueError naming the file, key and value for anything else."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a model's config.json there, found none; name a checkpoint directory or a hub id")
    raw = read_json(path)
    try:
        return config_from_dict(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_dict(raw: dict) -> ModelConfig:
    """The mapping of a config.json, of either generation of transformers (4.x or 5.x) -> ModelConfig."""
    refuse_unimplemented(raw)
    wrapped = raw.get("text_config") is not None
    if wrapped:
        raw = text_decoder(raw)
        refuse_unimplemented(raw)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        softcaps = "; gemma2's softcaps of scores and logits are not implemented" if model_type == "gemma2" else ""
        raise ValueError(f"model_type: expected one of {', '.join(FAMILIES)}; got {model_type!r}{softcaps}")
    get = Settings(raw, {**COMMON, **FAMILIES[model_type]})
    layers, heads, hidden_size = get.size("num_hidden_layers", 1024), get.size("num_attention_heads"), get.size("hidden_size", 2 ** 20)
    kv_heads = heads if get.is_null("num_key_value_heads") else get.size("num_key_value_heads")
    if heads % kv_heads:
        raise ValueError(f"num_key_value_heads: expected a divisor of num_attention_heads = {heads}, got {kv_heads}")
    head_dim = hidden_size // heads if get("head_dim") is None else get.size("head_dim", 2 ** 16)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim: expected an even number (rotations turn pairs), got {head_dim}")
    gemma, granite = model_type.startswith("gemma"), model_type == "granite"
    rope_layers = no_rope_layers(get, layers) if model_type == "smollm3" else (True,) * layers
    window = sliding_window(get, model_type)
    biases = model_type not in ("mistral", "qwen2", "phi3") and get.flag("attention_bias")
    scale = get.number("attention_multiplier") if granite else (
        get.number("query_pre_attn_scalar") if model_type == "gemma3_text" else head_dim) ** -0.5
    return ModelConfig(
        model_type=model_type, vocab_size=get.size("vocab_size"), hidden_size=hidden_size,
        intermediate_size=get.size("intermediate_size"), num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=get.number("rms_norm_eps"),
        hidden_act=activation(get, model_type), max_position_embeddings=get.size("max_position_embeddings"),
        tie_word_embeddings=get.flag("tie_word_embeddings"), qkv_bias=biases or model_type == "qwen2", o_bias=biases,
        mlp_bias=model_type in ("llama", "smollm3", "granite") and get.flag("mlp_bias"),
        layer_types=layer_types(get, model_type, layers, window, rope_layers), sliding_window=window,
        rope=read_rope(get, model_type, head_dim), rope_layers=rope_layers,
        embedding_multiplier=hidden_size ** 0.5 if gemma else get.number("embedding_multiplier") if granite else 1.0,
        attention_multiplier=scale, residual_multiplier=get.number("residual_multiplier") if granite else 1.0,
        logits_scaling=get.number("logits_scaling") if granite else 1.0, wrapped=wrapped,
        **{key: get.family[key] for key in ("rope_fp32", "norms", "norm_fp32", "norm_plus_one", "qk_norm", "fused_projections")})


class Settings:
    """What a table of the file says, else the family's default. The typed reads raise ValueError naming key and value."""

    def __init__(self, raw: dict, family: dict, where: str = ""):
        self.raw, self.family, self.where = raw, family, where

    def __call__(self, key):
        value = self.raw.get(key)
        return self.family.get(key) if value is None else value

    def is_null(self, key) -> bool:            # a key that is not there takes the default, one that says null need not
        return self.raw.get(key, self.family.get(key)) is None

    def check(self, key, ok: bool, expected: str):
        if not ok:
            where = "" if key in self.family and key not in self.raw else self.where
            raise ValueError(f"{where}{key}: expected {expected}, got {self(key)!r}")
        return self(key)

    def size(self, key, most: int = 2 ** 31 - 1) -> int:
        """most: what is built a piece at a time, as layers are, has to end."""
        return self.check(key, type(self(key)) is int and 0 < self(key) <= most, f"a positive integer up to {most}")

    def number(self, key) -> float:
        return float(self.check(key, type(self(key)) in (int, float) and 0 < self(key) < 1e38, "a positive number"))

    def flag(self, key) -> bool:
        return self.check(key, type(self(key)) is bool, "true or false")

    def table(self, key) -> "Settings":
        table = self.check(key, self.is_null(key) or type(self(key)) is dict, "a table") or {}
        return Settings(table, {}, f"{self.where}{key}.")

    def over(self, defaults: dict) -> "Settings":
        return Settings(self.raw, {**defaults, **self.family}, self.where)


def refuse_unimplemented(raw: dict) -> None:
    """Settings that change the arithmetic and are not implemented here; all of them are named in one message."""
    keys = [key for key in ("quantization_config", "final_logit_softcapping", "use_bidirectional_attention") if raw.get(key)]
    if keys:
        raise ValueError("; ".join(f"{key} = {raw[key]!r} is not implemented" for key in keys))


def text_decoder(raw: dict) -> dict:
    """The settings of the text decoder inside a multimodal wrapper; the wrapper's own key says whether the head is tied."""
    text, wrapper = raw["text_config"], raw.get("model_type")
    if not isinstance(wrapper, str) or wrapper not in WRAPPERS:
        raise ValueError(f"model_type: expected one of {', '.join(WRAPPERS)} around a text_config, got {wrapper!r}")
    if not isinstance(text, dict):
        raise ValueError(f"text_config: expected a table, got {text!r}")
    tied = raw.get("tie_word_embeddings")
    if tied is None:
        tied = WRAPPERS[wrapper].tied
    if wrapper == "llava":                               # there either place will do
        tied = tied or text.get("tie_word_embeddings", False)
    return {"model_type": WRAPPERS[wrapper].family, **text, "tie_word_embeddings": tied}


def activation(get, model_type: str) -> str:
    key = "hidden_activation" if model_type == "gemma3_text" else "hidden_act"
    if model_type == "gemma" and get(key) == "gelu":     # the tanh form is meant, whatever the file says
        return "gelu_pytorch_tanh"
    return get.check(key, get(key) in ("silu", "gelu_pytorch_tanh"), "'silu' or 'gelu_pytorch_tanh'")


def sliding_window(get, model_type: str) -> int | None:
    if model_type in ("llama", "gemma", "granite", "olmo2"):
        return None
    if model_type in ("qwen2", "qwen3", "smollm3") and not get.flag("use_sliding_window"):
        return None
    return None if get.is_null("sliding_window") else get.size("sliding_window")       # an explicit null means none


def layer_types(get, model_type: str, layers: int, window: int | None, rope_layers) -> tuple[str, ...]:
    """An explicit list wins where the family has one; otherwise each family's rule."""
    listed = model_type in ("qwen2", "qwen3", "smollm3", "olmo3", "gemma3_text")
    types = get("layer_types") if listed else None
    if types is None:
        every = 4 if model_type == "olmo3" else get.size("sliding_window_pattern") if model_type == "gemma3_text" else None
        if every is not None:
            sliding = [(i + 1) % every != 0 for i in range(layers)]
        elif model_type == "smollm3":
            sliding = [window is not None and not rotated for rotated in rope_layers]
        else:
            sliding = [window is not None and i >= (get("max_window_layers") or 0) for i in range(layers)]
        types = [SLIDING if slides else FULL for slides in sliding]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (FULL, SLIDING) for kind in types):
        raise ValueError(f"layer_types: expected a list of {layers}, each '{FULL}' or '{SLIDING}', got {types!r}")
    if SLIDING in types and window is None:
        raise ValueError(f"layer_types: expected a sliding_window (and use_sliding_window) with '{SLIDING}', got none")
    return tuple(types)


def no_rope_layers(get, layers: int) -> tuple[bool, ...]:
    flags = get("no_rope_layers")                        # 1 = rotated, 0 = not, in spite of the name
    if flags is None:
        every = get.size("no_rope_layer_interval")
        flags = [int((i + 1) % every != 0) for i in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise ValueError(f"no_rope_layers: expected a list of {layers}, each 0 or 1, got {flags!r}")
    return tuple(flag == 1 for flag in flags[:layers])
