"""Adapters cross over both ways between minimon and PEFT: golden values always, PEFT itself where it is installed."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minimon.checkpoint import load_model, save_model
from minimon.lora import (
    LoRAConfig,
    adapter_tensors,
    add_lora,
    enable_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "adapters.json").read_text())
CASES = GOLDEN["cases"]
TOLERANCE = 1e-4  # of the logits' standard deviation: fp32, other kernels on another machine
IDS = tiny.tokens(GOLDEN["length"])
BASE = dict(tiny.QWEN3, num_hidden_layers=2)


def write_base(directory, config=BASE):
    return tiny.write_checkpoint(directory, config, rename=tiny.wrapped if "text_config" in config else str)


def write_adapter(directory, name, tensors=None, **changes):
    """PEFT's files of a golden case, its config or tensors changed."""
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({**CASES[name]["adapter_config"], **changes}))
    save_file(
        tiny.adapter_weights(CASES[name]["tensors"]) if tensors is None else tensors,
        directory / "adapter_model.safetensors",
    )
    return directory


def fill(model):
    """Random values for both halves of an adapter: a trained one."""
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                parameter = getattr(layer, part).weight
                parameter.copy_(
                    tiny.adapter_weights({f"{path}.{part}": tuple(parameter.shape)})[f"{path}.{part}"]
                )
    return model


def error(logits, case) -> float:
    there = logits[0, GOLDEN["positions"]]
    return float((there - torch.tensor(case["logits"])).abs().max() / case["std"])


@pytest.fixture(params=CASES)
def loaded(request, tmp_path):
    """A golden case: its name, and its base with PEFT's adapter loaded."""
    model = load_model(write_base(tmp_path / "base", CASES[request.param]["base"]))
    load_adapter(model, write_adapter(tmp_path / "peft", request.param))
    return request.param, model


def test_an_adapter_of_pefts_gives_the_logits_it_gave_there(loaded):
    name, model = loaded
    assert error(tiny.logits(model, IDS), CASES[name]) < TOLERANCE
    enable_lora(model, False)
    assert error(tiny.logits(model, IDS), CASES[name]) > 100 * TOLERANCE


def test_an_adapter_written_again_has_the_same_tensors_and_loads_the_same(loaded, tmp_path):
    name, model = loaded
    save_adapter(model, tmp_path / "again", base="base")
    theirs, ours = (
        tiny.adapter_weights(CASES[name]["tensors"]),
        load_file(tmp_path / "again" / "adapter_model.safetensors"),
    )
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "again")
    assert torch.equal(tiny.logits(again, IDS), tiny.logits(model, IDS))


def test_merged_equals_unmerged_and_can_be_saved(loaded, tmp_path):
    name, model = loaded
    unmerged = tiny.logits(model, IDS)
    merged = tiny.logits(merge_lora(model), IDS)
    assert (merged - unmerged).abs().max() < TOLERANCE * CASES[name]["std"] and not lora_layers(model)
    save_model(model, tmp_path / "merged", tmp_path / "base")
    assert torch.equal(tiny.logits(load_model(tmp_path / "merged"), IDS), merged)


@pytest.mark.parametrize(
    "name, change",
    [("rslora", {"use_rslora": False}), ("names", {"lora_alpha": 9}), ("patterns", {"alpha_pattern": {}})],
)
def test_a_setting_of_the_scale_changed_breaks_the_equality(name, change, tmp_path):
    model = load_model(write_base(tmp_path / "base"))
    load_adapter(model, write_adapter(tmp_path / "peft", name, **change))
    assert error(tiny.logits(model, IDS), CASES[name]) > 100 * TOLERANCE


def test_what_an_adapter_config_leaves_out_is_pefts_default(tmp_path):
    """lora_alpha 8, which that adapter has; r 8, which it has not."""
    model = load_model(write_base(tmp_path / "base"))
    load_adapter(model, write_adapter(tmp_path / "peft", "gaussian", lora_alpha=None))
    assert error(tiny.logits(model, IDS), CASES["gaussian"]) < TOLERANCE
    with pytest.raises(ValueError, match="r: expected at most 4, as in the weights, got 8"):
        load_adapter(load_model(tmp_path / "base"), write_adapter(tmp_path / "other", "gaussian", r=None))


def test_a_rank_that_patterns_leave_to_no_module_is_not_asked_for(tmp_path):
    model = load_model(write_base(tmp_path / "base"))
    add_lora(model, 16, 16, ["q_proj", "v_proj"], rank_pattern={"q_proj": 4, "v_proj": 8, "gate_proj": 99})
    save_adapter(model, tmp_path / "ours")
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(tiny.logits(again, IDS), tiny.logits(model, IDS))


# what is refused


def refusal(tmp_path, name="names", **how) -> str:
    model = load_model(write_base(tmp_path / "base", CASES[name]["base"]))
    with pytest.raises(ValueError) as raised:
        load_adapter(model, write_adapter(tmp_path / "peft", name, **how))
    assert "\n" not in str(raised.value) and str(tmp_path / "peft") in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["mlp.experts"]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [5]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1.0}),
        ("velora_config", {"scale": 1.0}),
        ("monteclora_config", {"num_samples": 2}),
        ("use_bdlora", {"nblocks": 2}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "orthogonal"),
        ("an_option_of_a_later_version", True),
        ("target_modules", None),
        ("target_modules", []),
    ],
)
def test_an_option_that_changes_the_arithmetic_is_refused_by_name(key, value, tmp_path):
    message = refusal(tmp_path, **{key: value})
    assert "adapter_config.json: not implemented: " in message and f"{key} = {json.dumps(value)}" in message


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"peft_type": "IA3"}, "expected peft_type 'LORA', got 'IA3'"),
        ({"r": 0}, "r: expected a positive integer, got 0"),
        ({"r": "4"}, "r: expected a positive integer, got '4'"),
        ({"lora_alpha": -1}, "lora_alpha: expected a positive number, got -1"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj: expected a positive integer, got 0"),
        ({"rank_pattern": [1]}, "rank_pattern: expected a table"),
        ({"target_modules": ["nothing"]}, "no linear module is left"),
        ({"target_modules": "("}, "adapter_config.json: "),
        ({"target_modules": 3}, "adapter_config.json: "),
        ({"layers_to_transform": [7]}, "no linear module is left"),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": [0]},
            "layers_to_transform: expected a list for target_modules",
        ),
        ({"r": 3}, r"expected shape (3, 32), got (4, 32)"),
        ({"target_modules": ["q_proj", "v_proj"]}, "missing tensor"),
        (
            {"target_modules": ["q_proj"]},
            "unexpected tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
        ),
    ],
)
def test_an_adapter_config_that_does_not_fit_is_refused_in_one_line(changes, problem, tmp_path):
    assert problem in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda tensors: tensors.popitem(), "missing tensor base_model.model.model.layers"),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}),
            "unexpected tensor base_model.model.lm_head.weight",
        ),
        (
            lambda tensors: tensors.update(
                {key.removeprefix("base_model."): tensors.pop(key) for key in list(tensors)}
            ),
            "missing tensor",
        ),
        (
            lambda tensors: tensors.update({key: value.T.contiguous() for key, value in tensors.items()}),
            "expected shape",
        ),
    ],
)
def test_tensors_must_be_exactly_those_expected(change, problem, tmp_path):
    tensors = tiny.adapter_weights(CASES["names"]["tensors"])
    change(tensors)
    message = refusal(tmp_path, tensors=tensors)
    assert "adapter_model.safetensors: the adapter does not fit the model: " in message and problem in message


def test_names_with_the_adapters_name_in_them_load_as_in_peft(tmp_path):
    tensors = {
        key.replace(".weight", ".default.weight"): value
        for key, value in tiny.adapter_weights(CASES["names"]["tensors"]).items()
    }
    model = load_model(write_base(tmp_path / "base"))
    load_adapter(model, write_adapter(tmp_path / "peft", "names", tensors=tensors))
    assert error(tiny.logits(model, IDS), CASES["names"]) < TOLERANCE


def test_what_is_no_adapter_directory_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="expected an adapter directory with adapter_config.json, found none"
    ):
        load_adapter(load_model(write_base(tmp_path)), tmp_path)
    (write_adapter(tmp_path / "peft", "names") / "adapter_model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="adapter_model.safetensors: expected a safetensors file, found none"
    ):
        load_adapter(load_model(tmp_path), tmp_path / "peft")


def test_a_model_with_an_adapter_takes_no_second_one(loaded):
    with pytest.raises(ValueError, match="expected a model without an adapter"):
        add_lora(loaded[1], target_modules="all-linear")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["q_proj", "all-linear", "(", ".*", ""])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q_proj", "*"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(CASES["names"]["adapter_config"])), JSON, min_size=1, max_size=2
    )
)
def test_any_adapter_config_is_loaded_or_refused_in_one_line(changes, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("any")
    model = load_model(write_base(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "peft", "names", **changes)
    try:
        assert isinstance(load_adapter(model, adapter), LoRAConfig)
    except ValueError as refused:
        assert str(adapter) in str(refused) and "\n" not in str(refused)


# what is written


def test_a_written_adapter_is_what_vllm_requires(tmp_path):
    """vLLM reads r, lora_alpha and target_modules, a list; one r for all; names that end in lora_A.weight or lora_B.weight."""
    model = load_model(write_base(tmp_path))
    for target_modules in ("all-linear", ".*proj", ["v_proj", "q_proj"]):
        add_lora(model, r=4, lora_alpha=8.0, target_modules=target_modules)
        save_adapter(model, tmp_path / "adapter", base="some/base")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert (config["r"], config["lora_alpha"], config["peft_type"], config["bias"]) == (
            4,
            8,
            "LORA",
            "none",
        )
        assert type(config["lora_alpha"]) is int and config["base_model_name_or_path"] == "some/base"
        assert (
            config["use_dora"] is False and config["modules_to_save"] is None and config["rank_pattern"] == {}
        )
        assert isinstance(config["target_modules"], list) and config["target_modules"] == sorted(
            config["target_modules"]
        )
        targets = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in tensors}
        assert targets == set(lora_layers(model)) and all(
            path.endswith(tuple(config["target_modules"])) for path in targets
        )
        for name, tensor in tensors.items():
            assert name.startswith("base_model.model.model.layers.") and name.endswith(
                ("lora_A.weight", "lora_B.weight")
            )
            assert tensor.shape[0 if "lora_A" in name else 1] == 4 and tensor.dtype == torch.float32
        merge_lora(model)


def test_a_choice_of_layers_is_refused_beside_a_regex_as_in_peft():
    with pytest.raises(
        ValueError, match="layers_to_transform: expected a list for target_modules with it, got '.*_proj'"
    ):
        LoRAConfig(target_modules=".*_proj", layers_to_transform=[0])


# live


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip(
        "transformers", reason="compares with transformers and peft: pip install '.[peers]'"
    ).logging.set_verbosity_error()
    return pytest.importorskip("peft", reason="compares with transformers and peft: pip install '.[peers]'")


def in_peft(peft, base, adapter, dtype=torch.float32):
    """PEFT's model of our files, every tensor of the file in it and no other."""
    model = peft.PeftModel.from_pretrained(tiny.peer_model(base, dtype), adapter).eval()
    there, file = peft.get_peft_model_state_dict(model), load_file(adapter / "adapter_model.safetensors")
    assert there.keys() == file.keys() and all(torch.equal(there[key], file[key]) for key in file)
    return model


@pytest.mark.peers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_bit_equal_to_pefts_from_its_files_and_from_ours(loaded, dtype, peft, tmp_path):
    """In bf16 as well: the adapter is fp32 on both sides, its output is added in fp32 and rounded once."""
    model = load_model(tmp_path / "base", dtype=dtype)
    load_adapter(model, tmp_path / "peft")
    save_adapter(model, tmp_path / "ours", base=str(tmp_path / "base"))
    ours = tiny.logits(model, IDS)
    for adapter in (tmp_path / "peft", tmp_path / "ours"):
        assert torch.equal(tiny.peer_logits(in_peft(peft, tmp_path / "base", adapter, dtype), IDS), ours)


def rms(values, exact) -> float:
    """Size of the difference, as a share of the exact values' size; of tensors by name together."""
    difference, size = (
        sum(float((part.double()).pow(2).sum()) for part in parts)
        for parts in ([values[name].double() - exact[name] for name in exact], exact.values())
    )
    return (difference / size) ** 0.5


@pytest.mark.peers
def test_in_bf16_logits_and_gradients_are_as_near_to_fp64_as_pefts(loaded, peft, tmp_path):
    """Rounding differs with the order of sums, its size does not: at most a third more, over several texts. The adapter is a small
    part of each product, as trained ones are; for one as large as the base's part, what the adapter is computed in would tell."""
    name, base = loaded[0], tmp_path / "base"
    tensors = tiny.adapter_weights(CASES[name]["tensors"])
    small = {key: tensor * 0.02 if "lora_B" in key else tensor for key, tensor in tensors.items()}
    adapter = write_adapter(tmp_path / "small", name, tensors=small)
    ours = load_model(base, dtype=torch.bfloat16)
    load_adapter(ours, adapter)
    sides = {"ours": (lambda ids: ours.logits(ours(ids)), adapter_tensors(ours))}
    for name, dtype in (("peft", torch.bfloat16), ("exact", torch.float64)):
        model = in_peft(peft, base, adapter, dtype)
        if dtype == torch.float64:
            model.double()
        parameters = {
            key.replace(".default.", "."): value for key, value in model.named_parameters() if ".lora_" in key
        }
        sides[name] = (lambda ids, model=model: model(input_ids=ids, use_cache=False).logits, parameters)
    logits, gradients = {name: {} for name in sides}, {name: {} for name in sides}
    for seed in range(6):
        ids = tiny.tokens(12 + 5 * seed)
        for name, (forward, parameters) in sides.items():
            for parameter in parameters.values():
                parameter.requires_grad_()
            z = forward(ids)[0, -1]
            found = torch.autograd.grad(
                torch.nn.functional.cross_entropy(
                    z.to(torch.promote_types(z.dtype, torch.float32)), ids[0, 0]
                ),
                list(parameters.values()),
            )
            logits[name][seed] = z.detach()
            gradients[name].update({(seed, key): value for key, value in zip(parameters, found)})
    for kind in (logits, gradients):
        assert 0 < rms(kind["ours"], kind["exact"]) < 4 / 3 * rms(kind["peft"], kind["exact"])


@pytest.mark.peers
@pytest.mark.parametrize(
    "config, options",
    [
        (BASE, dict(target_modules="all-linear")),
        (BASE, dict(target_modules=["q_proj", "mlp.up_proj"], use_rslora=True)),
        (BASE, dict(target_modules=["q_proj"], layers_to_transform=[1])),
        (BASE, dict(target_modules="all-linear", exclude_modules=["k_proj"])),
        (
            BASE,
            dict(target_modules=r".*\.1\..*proj", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
        ),
        (dict(tiny.SIZES, model_type="phi3", num_hidden_layers=2), dict(target_modules="all-linear")),
        (CASES["gemma3"]["base"], dict(target_modules="all-linear")),
        (CASES["gemma3"]["base"], dict(target_modules=["q_proj"])),
    ],
)
def test_an_adapter_made_here_is_the_same_in_peft_merged_or_not(config, options, peft, tmp_path):
    model = load_model(write_base(tmp_path / "base", config))
    add_lora(model, r=4, lora_alpha=8, **options)
    save_adapter(fill(model), tmp_path / "ours")
    peer = in_peft(peft, tmp_path / "base", tmp_path / "ours")
    expected = tiny.peer_logits(peer, IDS)
    assert torch.equal(tiny.logits(model, IDS), expected)
    save_model(merge_lora(model), tmp_path / "merged", tmp_path / "base")
    assert torch.equal(tiny.peer_logits(tiny.peer_model(tmp_path / "merged"), IDS), tiny.logits(model, IDS))
    assert torch.equal(tiny.peer_logits(peer.merge_and_unload(), IDS), tiny.logits(model, IDS))
    enabled = (expected - tiny.peer_logits(tiny.peer_model(tmp_path / "base"), IDS)).abs().max()
    assert enabled > 100 * TOLERANCE * expected.std()
