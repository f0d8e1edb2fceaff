"""Every family of decoders gives the logits that transformers gives: golden values always, transformers itself where it is installed."""

import importlib
import json
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimon.batch import row_limit
from minimon.checkpoint import load_model
from minimon.hf.families import FAMILIES, WRAPPERS, config_from_dict, read_config
from minimon.hf.rope import NEEDED, rope_frequencies
from minimon.model import ModelConfig, RMSNorm

GOLDEN = json.loads((Path(__file__).parent / "golden" / "families.json").read_text())
CASES = GOLDEN["cases"]
CONTROLS = [(name, control) for name, case in CASES.items() for control in case["controls"]]
TOLERANCE = 1e-4  # of the logits' standard deviation: fp32, other kernels on another machine
IDS = tiny.tokens(GOLDEN["length"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Name of a case -> its checkpoint directory, written when first asked for."""
    made = {}

    def write(name):
        if name not in made:
            config = CASES[name]["config"]
            made[name] = tiny.write_checkpoint(
                tmp_path_factory.mktemp("family"), config, rename=in_file(config)
            )
        return made[name]

    return write


def in_file(config):
    return tiny.wrapped if "text_config" in config else str


def golden_error(logits, case) -> float:
    """Largest difference from the golden logits (B, T, V), in standard deviations."""
    there = logits[0, GOLDEN["positions"]].float()
    return float((there - torch.tensor(case["logits"])).abs().max() / case["std"])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_that_transformers_gave(name, checkpoint):
    assert golden_error(tiny.logits(load_model(checkpoint(name)), IDS), CASES[name]) < TOLERANCE


@pytest.mark.parametrize("name, control", CONTROLS)
def test_a_setting_changed_breaks_the_equality(name, control, checkpoint, tmp_path):
    config = {
        key: value
        for key, value in {**CASES[name]["config"], **CASES[name]["controls"][control]}.items()
        if value != "(absent)"
    }
    tensors = tiny.weights(CASES[name]["config"])
    try:
        logits = tiny.logits(load_model(tiny.write_checkpoint(tmp_path, config, tensors=tensors)), IDS)
    except ValueError as error:  # without the setting the tensors are not those expected
        assert "the weights do not fit config.json" in str(error)
    else:
        assert golden_error(logits, CASES[name]) > 100 * TOLERANCE


def test_every_family_and_every_rope_type_has_a_golden_case_with_a_control():
    kinds = json.dumps([case["config"] for case in CASES.values()])
    assert set(FAMILIES) <= {case["config"]["model_type"] for case in CASES.values() if case["controls"]}
    assert [kind for kind in NEEDED if f'"{kind}"' not in kinds] == []


def test_bf16_is_as_near_to_fp32_as_transformers_bf16_is(checkpoint):
    """Rounding differs by kernel, its size does not: rms error over all logits, at most half as much again."""
    for name in CASES:
        fp32, bf16 = (
            tiny.logits(load_model(checkpoint(name), dtype=dtype), IDS).float()
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert 0 < (bf16 - fp32).pow(2).mean().sqrt() < 1.5 * CASES[name]["bf16_error"], name


RENAMES = {
    "a wrapper, on the hub": lambda name: f"language_model.{name}",
    "a wrapper, in transformers 5": lambda name: name.replace("model.", "model.language_model.", 1),
    "a wrapper, nested twice": lambda name: f"model.language_model.{name}",
    "a base model, saved without its head": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("files", RENAMES)
def test_other_files_spellings_of_the_names_give_the_same_model(files, tmp_path):
    plain = tiny.logits(load_model(tiny.write_checkpoint(tmp_path / "plain", tiny.QWEN3)), IDS)
    others = {
        "vision_tower.patch.weight": torch.ones(2),
        "model.multi_modal_projector.linear.bias": torch.ones(2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    directory = tiny.write_checkpoint(
        tmp_path / "other",
        tiny.QWEN3,
        tensors={
            **{RENAMES[files](name): tensor for name, tensor in tiny.weights(tiny.QWEN3).items()},
            **others,
        },
    )
    assert torch.equal(tiny.logits(load_model(directory), IDS), plain)


TIES = [
    ("gemma3", None, None, True),
    ("gemma3", None, False, True),
    ("gemma3", False, True, False),
    ("mistral3", None, None, True),
    ("mistral3", False, None, False),
]


def wrapper_config(wrapper, outer, text):
    return {
        "model_type": wrapper,
        **({} if outer is None else {"tie_word_embeddings": outer}),
        "text_config": {
            **tiny.SIZES,
            "model_type": WRAPPERS[wrapper][0],
            **({} if text is None else {"tie_word_embeddings": text}),
        },
    }


@pytest.mark.parametrize("wrapper, outer, text, tied", TIES)
def test_a_wrappers_own_key_says_whether_the_head_is_tied(wrapper, outer, text, tied):
    assert config_from_dict(wrapper_config(wrapper, outer, text)).tie_word_embeddings is tied


# what is refused

SU = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}
REFUSED = {
    "no model_type": ({"model_type": None}, "model_type", "None"),
    "mixture of experts": ({"model_type": "mixtral"}, "model_type", "'mixtral'"),
    "qwen3 experts": ({"model_type": "qwen3_moe"}, "model_type", "'qwen3_moe'"),
    "gemma2": (
        {"model_type": "gemma2"},
        "model_type",
        "'gemma2'",
    ),
    "a list for a type": ({"model_type": ["llama"]}, "model_type", "['llama']"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config", "'awq'"),
    "logit softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping", "30.0"),
    "both directions": ({"use_bidirectional_attention": True}, "use_bidirectional_attention", "True"),
    "activation": ({"hidden_act": "relu"}, "hidden_act", "'relu'"),
    "gemma3 activation": (
        {"model_type": "gemma3_text", "hidden_activation": "gelu"},
        "hidden_activation",
        "'gelu'",
    ),
    "rope type": (
        {"rope_scaling": {"rope_type": "proportional"}},
        "rope_scaling.rope_type",
        "'proportional'",
    ),
    "mrope": ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_scaling.type", "'mrope'"),
    "rope type, new key": (
        {"rope_parameters": {"rope_type": "axial"}},
        "rope_parameters.rope_type",
        "'axial'",
    ),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "None"),
    "llama3 factor": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_scaling.low_freq_factor",
        "None",
    ),
    "longrope list": (
        {"model_type": "phi3", "rope_scaling": SU},
        "rope_scaling.type: expected settings that give finite angles",
        "[1.0, 1.0, 1.0]",
    ),
    "rope list": ({"rope_scaling": [1]}, "rope_scaling", "[1]"),
    "theta": ({"rope_theta": "10000"}, "rope_theta", "'10000'"),
    "endless angles": (
        {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1},
        "rope_scaling.type",
        "'factor': 2",
    ),
    "partial": ({"model_type": "phi3", "partial_rotary_factor": 2.0}, "partial_rotary_factor", "2.0"),
    "one rope for gemma3": (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 5.0}},
        "rope_parameters",
        "5.0",
    ),
    "olmo3's old theta": ({"model_type": "olmo3", "rope_theta": 5.0}, "rope_theta", "5.0"),
    "size": ({"hidden_size": "32"}, "hidden_size", "'32'"),
    "heads": ({"num_attention_heads": 0}, "num_attention_heads", "0"),
    "kv heads": ({"num_key_value_heads": 3}, "num_key_value_heads", "3"),
    "odd head": ({"head_dim": 5}, "head_dim", "5"),
    "eps": ({"rms_norm_eps": -1}, "rms_norm_eps", "-1"),
    "flag": ({"tie_word_embeddings": "false"}, "tie_word_embeddings", "'false'"),
    "layer types": (
        {"model_type": "qwen3", "layer_types": ["full_attention"]},
        "layer_types",
        "['full_attention']",
    ),
    "layer type": (
        {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 4},
        "layer_types",
        "chunked",
    ),
    "no window": ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4}, "layer_types", "none"),
    "window": ({"model_type": "mistral", "sliding_window": -1}, "sliding_window", "-1"),
    "pattern": ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern", "0"),
    "rotated layers": ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers", "[1, 0]"),
    "granite": ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling", "0"),
    "text_config is a list": ({"model_type": "gemma3", "text_config": [1]}, "text_config", "[1]"),
    "another text_config": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma2"}},
        "model_type",
        "'gemma2'",
    ),
    "another wrapper": (
        {"model_type": "paligemma", "text_config": {"model_type": "gemma"}},
        "model_type",
        "'paligemma'",
    ),
    "quantized wrapper": (
        {"model_type": "gemma3", "text_config": {}, "quantization_config": {"bits": 4}},
        "quantization_config",
        "4",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_config_that_is_not_implemented_is_refused_by_file_key_and_value(what, tmp_path):
    changes, key, value = REFUSED[what]
    (tmp_path / "config.json").write_text(json.dumps({**tiny.LLAMA, **changes}))
    with pytest.raises(ValueError) as raised:
        read_config(tmp_path)
    message = str(raised.value)
    assert (
        message.startswith(f"{tmp_path / 'config.json'}: {key}") and value in message and "\n" not in message
    )


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[1]", "expected a JSON object, got list"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[" * 10_000, "nested too deeply"),
        ('{"hidden_size": NaN}', "model_type"),
    ],
)
def test_a_config_that_is_not_a_json_object_is_refused_by_its_path(text, problem, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=problem) as raised:
        read_config(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_directory_without_a_config_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.config.json: expected a model's config.json"):
        read_config("nowhere")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["silu", "yarn", "dynamic", "longrope", "default", "full_attention", "x"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "full_attention", "short_factor", "model_type"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(CASES)), st.data())
def test_any_config_is_read_or_refused_in_one_line(name, data):
    config = CASES[name]["config"]
    keys = sorted(
        {
            *config,
            "rope_scaling",
            "rope_parameters",
            "layer_types",
            "head_dim",
            "partial_rotary_factor",
            "text_config",
        }
    )
    changes = data.draw(st.dictionaries(st.sampled_from(keys), JSON, min_size=1, max_size=3))
    try:
        read = config_from_dict({**config, **changes})
    except ValueError as error:
        assert ("expected" in str(error) or "not implemented" in str(error)) and "\n" not in str(error)
    else:
        assert isinstance(read, ModelConfig) and all(
            rope_frequencies(rope, length)[0].isfinite().all()
            for rope in read.rope.values()
            for length in (1, 100_000)
        )


# frequencies


def test_dynamic_ntk_stretches_the_trained_range_by_its_factor():
    scaling = {"rope_type": "dynamic", "factor": 1.5}
    config = config_from_dict(dict(tiny.LLAMA, max_position_embeddings=64, rope_scaling=scaling))
    assert row_limit(config, None).positions == 96


@pytest.mark.parametrize("name", ["llama", "llama, dynamic", "phi3, longrope, long"])
def test_frequencies_stay_on_the_device_for_all_lengths_that_share_them(name):
    rope = config_from_dict(CASES[name]["config"]).rope["full_attention"]
    last = rope.switch or 10_000
    for length in (1, last, last + 1, last + 2):
        frequencies, factor = rope.frequencies(length, torch.device("cpu"))
        expected, factor_expected = rope_frequencies(rope, length)
        assert torch.equal(frequencies, expected) and factor == factor_expected
        assert rope.frequencies(length, torch.device("cpu"))[0] is frequencies
        assert (
            rope.frequencies(length, torch.device("meta"))[0]
            is rope.frequencies(length, torch.device("meta"))[0]
        )
        assert rope.frequencies(length, torch.device("meta"))[0].device.type == "meta"
    kept = [rope.frequencies(length, torch.device("cpu"))[0] for length in (1, last, last + 1, last + 2)]
    assert kept[0] is kept[1] and (kept[0] is kept[2]) is (rope.switch is None)
    assert (kept[2] is kept[3]) is (rope.rope_type != "dynamic")
    assert torch.equal(rope.frequencies(1)[0], kept[0])  # without a device: on the CPU


def test_frequencies_first_asked_for_in_inference_serve_training(checkpoint):
    model = load_model(checkpoint("llama"))
    with torch.inference_mode():
        model(IDS)
    embedding = model.model.embed_tokens.weight.requires_grad_()
    model(IDS).sum().backward()
    assert embedding.grad.isfinite().all()


# live


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers", reason="compares with transformers: pip install '.[peers]'")
    module.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@pytest.mark.peers
@pytest.mark.parametrize("name", CASES)
def test_logits_are_bit_equal_to_transformers_from_its_files_and_from_the_hubs(
    name, checkpoint, transformers, tmp_path
):
    ids = tiny.tokens(GOLDEN["length"], rows=2)
    peer = tiny.peer_model(checkpoint(name))
    peer.save_pretrained(tmp_path)  # config.json of this generation, names as this version writes them
    expected = tiny.peer_logits(peer, ids)
    for directory in (checkpoint(name), tmp_path):
        assert torch.equal(tiny.logits(load_model(directory), ids), expected)


@pytest.mark.peers
@pytest.mark.parametrize("name", CASES)
def test_bf16_logits_are_bit_equal_to_transformers(name, checkpoint, transformers):
    """No tolerance: the operations and their order are the same, so are the roundings. Another order of the norm is seen."""
    expected = tiny.peer_logits(tiny.peer_model(checkpoint(name), torch.bfloat16), IDS)
    model = load_model(checkpoint(name), dtype=torch.bfloat16)
    assert torch.equal(tiny.logits(model, IDS), expected)
    for module in model.modules():
        if isinstance(module, RMSNorm) and not module.plus_one:
            module.in_fp32 = not module.in_fp32
    assert model.config.norm_plus_one or not torch.equal(tiny.logits(model, IDS), expected)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["qwen3", "gemma", "smollm3"])
def test_a_base_model_that_transformers_saved_loads(name, checkpoint, transformers, tmp_path):
    transformers.AutoModel.from_pretrained(checkpoint(name)).save_pretrained(tmp_path)
    assert torch.equal(tiny.logits(load_model(tmp_path), IDS), tiny.logits(load_model(checkpoint(name)), IDS))


@pytest.mark.peers
@pytest.mark.parametrize("wrapper, outer, text, tied", TIES)
def test_transformers_ties_the_heads_of_wrappers_alike(wrapper, outer, text, tied, transformers):
    assert (
        transformers.AutoConfig.for_model(**wrapper_config(wrapper, outer, text)).tie_word_embeddings is tied
    )


def peer_view(transformers, raw: dict) -> dict:
    """What transformers makes of a config: the values minimon names alike, and the rotations by layer type."""
    family = raw["model_type"].removesuffix("_text")
    config = transformers.AutoConfig.for_model(**raw)
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rope = next(getattr(code, name) for name in dir(code) if name.endswith("RotaryEmbedding"))(config)
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
    )
    view = {key: getattr(config, key) for key in same}
    view["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = getattr(config, "layer_types", None) or []
    view["layer_types"] = tuple(types) or None
    prefixes = [f"{kind}_" for kind in sorted(set(types))] if hasattr(rope, "layer_types") else [""]
    view["rope"] = [
        (getattr(rope, f"{prefix}inv_freq").tolist(), getattr(rope, f"{prefix}attention_scaling"))
        for prefix in prefixes
    ]
    return view


def our_view(config: ModelConfig, like: dict) -> dict:
    view = {key: getattr(config, key) for key in like if key not in ("rope", "layer_types")}
    view["layer_types"] = config.layer_types if like["layer_types"] else None
    kinds = (
        sorted(set(config.layer_types))
        if config.model_type in ("gemma3_text", "olmo3")
        else ["full_attention"]
    )
    lengths = {
        kind: config.rope[kind].original_positions if config.rope[kind].rope_type == "longrope" else 1
        for kind in kinds
    }
    view["rope"] = [
        (f.tolist(), m) for f, m in (rope_frequencies(config.rope[kind], lengths[kind]) for kind in kinds)
    ]
    return view


@pytest.mark.peers
def test_omitted_and_null_keys_mean_what_they_mean_to_transformers(transformers):
    """Nothing but the type and sizes; each case without one of its keys; each with an explicit null; old keys beside new ones."""
    raws = [{"model_type": family, **tiny.SIZES} for family in FAMILIES]
    for case in (case["config"] for case in CASES.values() if "text_config" not in case["config"]):
        raws += [
            {key: value for key, value in case.items() if key != left_out}
            for left_out in case
            if left_out != "model_type"
        ]
        raws += [
            {**case, key: None}
            for key in (
                "num_key_value_heads",
                "head_dim",
                "rope_scaling",
                "rope_parameters",
                "sliding_window",
            )
        ]
        raws += [
            {**case, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            {**case, "original_max_position_embeddings": 32},
            {**case, "rope_theta": 77.0},
            {**case, "partial_rotary_factor": 0.5},
            {**case, "max_position_embeddings": 300},
        ]
    compared = 0
    for raw in raws:
        try:
            expected = peer_view(transformers, json.loads(json.dumps(raw)))
        except Exception:  # transformers refuses it, in one of many ways; then so may we
            continue
        try:
            read = our_view(config_from_dict(raw), expected)
        except (
            ValueError
        ) as error:  # transformers makes a config of it, but no model that runs; or see read_rope on olmo3
            assert any(
                reason in str(error)
                for reason in (
                    "expected an even number",
                    "expected a divisor",
                    "got None",  # a size that the file does not have
                    "expected a sliding_window",
                    "versions of transformers read differently",
                )
            ), raw
            continue
        assert read == expected, raw
        compared += 1
    assert compared > 500
