"""Logits that transformers and peft give, for the tests that run without them: `python tests/golden/make.py`, with the peers extra.

Written beside this file, with versions and date: families.json (a config and logits a case; `controls` are changes of the config
that must break the equality) and adapters.json. The weights are a function of their names (tests/tiny.py) and not stored.
"""

import json
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import peft
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
import tiny  # noqa: E402

LENGTH, POSITIONS = 48, (13, 47)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 2048,
    "rope_theta": 500.0,
    "mscale": 1.3,
    "mscale_all_dim": 0.4,
    "truncate": False,
    "beta_fast": 16,
    "beta_slow": 2,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 9.0]}
VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)
GONE = "(absent)"  # in a control: the key is taken out


def case(model_type, controls=None, **keys):
    return {"config": {"model_type": model_type, **tiny.SIZES, **keys}, "controls": controls or {}}


def off(key, value=GONE):
    return {key: value}


CASES = {
    # llama
    "llama": case("llama", {"other theta": off("rope_theta", 500.0)}, num_key_value_heads=None),
    "llama, biases": case(
        "llama",
        {"no attention bias": off("attention_bias", False), "no mlp bias": off("mlp_bias", False)},
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama, tied, head_dim": case(
        "llama",
        {"no head_dim": off("head_dim"), "untied": off("tie_word_embeddings", False)},
        head_dim=16,
        tie_word_embeddings=True,
    ),
    "llama, rope_theta": case("llama", {"theta left out": off("rope_theta")}, rope_theta=300.0),
    "llama, rope_parameters": case(
        "llama",
        {"theta left out": off("rope_parameters")},
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
    ),
    "llama, linear": case(
        "llama", {"unscaled": off("rope_scaling")}, rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "llama, linear, rope_parameters": case(
        "llama",
        {"unscaled": off("rope_parameters", {"rope_theta": 300.0})},
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
    ),
    "llama, dynamic": case(
        "llama",
        {"unscaled": off("rope_scaling"), "short enough": off("max_position_embeddings", 48)},
        max_position_embeddings=16,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "llama, llama3": case(
        "llama",
        {"unscaled": off("rope_scaling"), "linear": off("rope_scaling", {"type": "linear", "factor": 8.0})},
        head_dim=16,
        rope_theta=500.0,
        rope_scaling=LLAMA3,
    ),
    "llama, llama3, rope_parameters": case(
        "llama",
        {"unscaled": off("rope_parameters", {"rope_theta": 500.0})},
        head_dim=16,
        rope_parameters={**LLAMA3, "rope_theta": 500.0},
    ),
    "llama, yarn": case(
        "llama",
        {"unscaled": off("rope_scaling"), "linear": off("rope_scaling", {"type": "linear", "factor": 4.0})},
        head_dim=16,
        max_position_embeddings=256,
        rope_theta=500.0,
        rope_scaling=YARN,
    ),
    "llama, yarn with mscale": case(
        "llama",
        {
            f"no {key}": off("rope_parameters", {k: v for k, v in LONG_YARN.items() if k != key})
            for key in LONG_YARN
            if key not in ("rope_type", "factor", "rope_theta")
        },
        head_dim=16,
        max_position_embeddings=8192,
        rope_parameters=LONG_YARN,
    ),
    "llama, yarn with attention_factor": case(
        "llama",
        {"no attention_factor": off("rope_scaling", YARN)},
        head_dim=16,
        rope_theta=500.0,
        rope_scaling={**YARN, "attention_factor": 1.6},
    ),
    "llama, an old key beside a new one": case(
        "llama",
        {"the new one": off("rope_scaling")},
        head_dim=16,
        rope_scaling={"type": "linear", "factor": 4.0, "rope_theta": 300.0},
        rope_parameters={**LONG_YARN},
    ),
    # mistral
    "mistral, window": case(
        "mistral",
        {"no window": off("sliding_window", None), "one more": off("sliding_window", 9)},
        sliding_window=8,
        head_dim=16,
    ),
    "mistral, no window, biases it does not have": case(
        "mistral",
        {"window": off("sliding_window", 47)},
        sliding_window=None,
        rope_theta=1e6,
        attention_bias=True,
        mlp_bias=True,
    ),
    # qwen
    "qwen2": case(
        "qwen2", {"theta left out": off("rope_theta")}, rope_theta=1e6, sliding_window=8, max_window_layers=2
    ),
    "qwen2, window": case(
        "qwen2",
        {
            "no window": off("use_sliding_window", False),
            "all layers": off("max_window_layers", 0),
            "one more": off("sliding_window", 9),
        },
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
    ),
    "qwen3": case(
        "qwen3",
        {"untied": off("tie_word_embeddings", False), "eps": off("rms_norm_eps", 1e-2)},
        head_dim=16,
        tie_word_embeddings=True,
        rope_theta=1e6,
    ),
    "qwen3, layer_types": case(
        "qwen3",
        {"no window": off("layer_types", ["full_attention"] * 4), "no bias": off("attention_bias", False)},
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=8,
        rope_parameters={**YARN, "rope_theta": 500.0},
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    ),
    # smollm3
    "smollm3": case(
        "smollm3",
        {"all rotated": off("no_rope_layers", [1] * 6), "others": off("no_rope_layer_interval", 3)},
        num_hidden_layers=6,
    ),
    "smollm3, listed, window": case(
        "smollm3",
        {
            "one more rotated": off("no_rope_layers", [1, 0, 1, 1, 1, 1]),
            "no window": off("use_sliding_window", False),
        },
        num_hidden_layers=6,
        no_rope_layers=[1, 0, 1, 1, 0, 1],
        use_sliding_window=True,
        sliding_window=8,
        tie_word_embeddings=False,
        rope_theta=500.0,
    ),
    # olmo
    "olmo2": case("olmo2", {"other theta": off("rope_theta", 500.0), "eps": off("rms_norm_eps", 1e-2)}),
    "olmo3": case(
        "olmo3",
        {
            "window": off("sliding_window", 9),
            "theta": off(
                "rope_parameters",
                {"full_attention": {"rope_theta": 200.0}, "sliding_attention": {"rope_theta": 200.0}},
            ),
            "all full": off("layer_types", ["full_attention"] * 6),
        },
        num_hidden_layers=6,
        sliding_window=8,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 200.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "olmo3, yarn": case(
        "olmo3",
        {"unscaled": off("rope_scaling"), "window": off("sliding_window", 48)},
        num_hidden_layers=5,
        sliding_window=8,
        max_position_embeddings=256,
        rope_scaling={**YARN, "beta_fast": 16.0, "attention_factor": 1.4},
    ),
    # phi3
    "phi3": case("phi3", {"window": off("sliding_window", 8)}),
    "phi3, partial, window": case(
        "phi3",
        {"whole heads": off("partial_rotary_factor"), "no window": off("sliding_window", None)},
        partial_rotary_factor=0.5,
        sliding_window=8,
    ),
    "phi3, longrope, short": case(
        "phi3",
        {"unscaled": off("rope_scaling"), "long": off("original_max_position_embeddings", 47)},
        original_max_position_embeddings=48,
        max_position_embeddings=192,
        rope_scaling=LONGROPE,
    ),
    "phi3, longrope, long": case(
        "phi3",
        {"short": off("original_max_position_embeddings", 48), "factor": off("max_position_embeddings", 32)},
        original_max_position_embeddings=16,
        max_position_embeddings=64,
        rope_scaling=LONGROPE,
    ),
    # gemma
    "gemma": case(
        "gemma",
        {"silu": off("hidden_act", "silu"), "other theta": off("rope_theta", 500.0)},
        head_dim=16,
        num_key_value_heads=1,
        hidden_act="gelu",
    ),
    "gemma3_text": case(
        "gemma3_text",
        {
            "no window": off("layer_types", ["full_attention"] * 5),
            "local theta": off("rope_local_base_freq"),
            "global theta": off("rope_theta"),
            "unscaled": off("rope_scaling"),
            "scale": off("query_pre_attn_scalar", 16),
            "pattern": off("sliding_window_pattern", 2),
            "one more": off("sliding_window", 9),
        },
        num_hidden_layers=5,
        head_dim=16,
        sliding_window=8,
        sliding_window_pattern=3,
        rope_theta=500.0,
        rope_local_base_freq=50.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        query_pre_attn_scalar=24,
    ),
    "gemma3_text, rope_parameters": case(
        "gemma3_text",
        {
            "left out": off("rope_parameters"),
            "one theta": off(
                "rope_parameters",
                {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 500.0}},
            ),
        },
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    # granite
    "granite": case(
        "granite",
        {
            key: off(key)
            for key in (
                "embedding_multiplier",
                "attention_multiplier",
                "residual_multiplier",
                "logits_scaling",
            )
        },
        embedding_multiplier=12.0,
        attention_multiplier=0.2,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        attention_bias=True,
        mlp_bias=True,
    ),
    # multimodal wrappers: their text decoder
    "gemma3": {
        "config": {
            "model_type": "gemma3",
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "text_config": {
                "model_type": "gemma3_text",
                **tiny.SIZES,
                "head_dim": 16,
                "sliding_window": 8,
                "rope_theta": 500.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        },
        "controls": {},
    },
    "mistral3": {
        "config": {
            "model_type": "mistral3",
            "tie_word_embeddings": False,
            "vision_config": {"model_type": "pixtral", **VISION},
            "text_config": {"model_type": "mistral", **tiny.SIZES, "sliding_window": 8},
        },
        "controls": {},
    },
}

# adapters: a base and the arguments of peft.LoraConfig
SMALL = dict(tiny.QWEN3, num_hidden_layers=2)
PHI3 = dict(tiny.SIZES, model_type="phi3", num_hidden_layers=2)
BIASED = dict(tiny.LLAMA, num_hidden_layers=2, attention_bias=True, mlp_bias=True)
WRAPPER = {
    "model_type": "gemma3",
    "vision_config": {"model_type": "siglip_vision_model", **VISION},
    "text_config": {**tiny.SIZES, "model_type": "gemma3_text", "num_hidden_layers": 2, "head_dim": 16},
}
ADAPTERS = {
    "names": (SMALL, dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])),
    "a name that matches nothing": (SMALL, dict(r=4, lora_alpha=6.5, target_modules=["v_proj", "c_attn"])),
    "all linear": (SMALL, dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "all linear but some": (
        SMALL,
        dict(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules=["k_proj", "mlp.up_proj"]),
    ),
    "regex": (
        SMALL,
        dict(r=4, lora_alpha=8, target_modules=r".*layers\.1\.(self_attn|mlp)\.(q_proj|down_proj)"),
    ),
    "regex, excluded by regex": (
        SMALL,
        dict(r=4, lora_alpha=8, target_modules=r".*\.(q|v)_proj", exclude_modules=r".*\.0\..*v_proj"),
    ),
    "whole paths": (
        SMALL,
        dict(
            r=4,
            lora_alpha=8,
            target_modules=["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"],
        ),
    ),
    "rslora": (SMALL, dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "patterns": (
        SMALL,
        dict(
            r=4,
            lora_alpha=8,
            target_modules="all-linear",
            rank_pattern={"k_proj": 2, r"layers\.1\..*v_proj": 3},
            alpha_pattern={"mlp.up_proj": 1, "^model.layers.0.self_attn.o_proj": 2},
        ),
    ),
    "a layer": (
        SMALL,
        dict(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "up_proj"],
            layers_to_transform=[1],
            layers_pattern="layers",
        ),
    ),
    "a layer and a whole path": (
        SMALL,
        dict(
            r=4, lora_alpha=8, target_modules=["q_proj", "model.layers.0.mlp.up_proj"], layers_to_transform=1
        ),
    ),
    "gaussian": (
        SMALL,
        dict(r=4, lora_alpha=8, target_modules=["o_proj"], init_lora_weights="gaussian", lora_dropout=0.1),
    ),
    "phi3, fused": (PHI3, dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "gate_up_proj", "o_proj"])),
    "llama, biases": (BIASED, dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "gemma3": (WRAPPER, dict(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|up_proj)")),
}


def adapters(directory: Path) -> dict:
    """Name -> base config, adapter_config.json as peft writes it, its tensors' names and shapes, and logits."""
    ids, cases = tiny.tokens(LENGTH), {}
    for name, (config, options) in ADAPTERS.items():
        base = tiny.write_checkpoint(
            directory / name, config, rename=tiny.wrapped if "text_config" in config else str
        )
        model = tiny.peer_model(base)
        base_logits = tiny.peer_logits(model, ids)[0]
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        names = {key: list(value.shape) for key, value in peft.get_peft_model_state_dict(model).items()}
        peft.set_peft_model_state_dict(model, tiny.adapter_weights(names))
        model.save_pretrained(directory / f"{name} adapter")
        written = json.loads((directory / f"{name} adapter" / "adapter_config.json").read_text())
        written = {
            key: sorted(value) if isinstance(value, list) else value for key, value in written.items()
        }  # peft's come from sets
        logits = tiny.peer_logits(model, ids)[0]
        assert (logits - base_logits).abs().max() > 0.1 * logits.std(), name
        cases[name] = {
            "base": config,
            "adapter_config": {**written, "base_model_name_or_path": "base"},
            "tensors": names,
            "std": rounded(logits.std()),
            "logits": [[rounded(x) for x in logits[i]] for i in POSITIONS],
        }
    return cases


def families(directory: Path) -> dict:
    """Name -> the case with logits at POSITIONS, the standard deviation of all logits and how far bf16 is from fp32 (rms)."""
    ids, cases = tiny.tokens(LENGTH), {}
    for name, case in CASES.items():
        rename = tiny.wrapped if "text_config" in case["config"] else str
        path = tiny.write_checkpoint(directory / name, case["config"], rename=rename)
        logits = tiny.peer_logits(tiny.peer_model(path), ids)[0]
        bf16 = tiny.peer_logits(tiny.peer_model(path, torch.bfloat16), ids)[0].float()
        cases[name] = {
            **case,
            "std": rounded(logits.std()),
            "bf16_error": rounded((bf16 - logits).pow(2).mean().sqrt()),
            "logits": [[rounded(x) for x in logits[i]] for i in POSITIONS],
        }
    return cases


def rounded(x) -> float:
    """Seven digits: far below the tolerance."""
    return float(f"{float(x):.7g}")


def write(name: str, **content) -> None:
    made = {
        "by": "tests/golden/make.py",
        "date": str(date.today()),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "torch": torch.__version__,
    }
    text = json.dumps({"made": made, "length": LENGTH, "positions": POSITIONS, **content}, indent=1)
    text = re.sub(
        r"\[\s*([-\d.e+,\s]+?)\s*\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text
    )  # a list of numbers: one line
    (HERE / name).write_text(text + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        write("families.json", cases=families(Path(directory)))
        write("adapters.json", cases=adapters(Path(directory) / "adapters"))
