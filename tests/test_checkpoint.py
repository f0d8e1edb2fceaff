"""Checkpoint files: what is loaded, how strictly, at what cost in memory; and what is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from minimon.checkpoint import WIDE, default_dtype, load_model, save_model
from minimon.files import write_tensors
from minimon.lora import add_lora, merge_lora

IDS = tiny.tokens(24, rows=2)
UNTIED = dict(tiny.QWEN3, tie_word_embeddings=False)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.2.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def shard(directory: Path, tensors: dict, **changes) -> Path:
    """The tensors in two files with an index; `changes` are put into its weight_map."""
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, directory / file)
    weight_map = {name: file for file, inside in files.items() for name in inside}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {**weight_map, **changes}}))
    (directory / "model.safetensors").unlink(missing_ok=True)
    return directory


@pytest.fixture
def directory(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model", tiny.QWEN3)


@pytest.fixture
def plain(directory):
    return tiny.logits(load_model(directory), IDS)


def refusal(directory, kind=ValueError) -> str:
    with pytest.raises(kind) as raised:
        load_model(directory)
    message = str(raised.value)
    assert "\n" not in message and str(directory) in message
    return message


def test_a_loaded_model_is_frozen_in_eval_mode_and_tied(directory):
    model = load_model(directory)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_shards_give_the_same_model_as_one_file(directory, plain):
    assert torch.equal(tiny.logits(load_model(shard(directory, tiny.weights(tiny.QWEN3))), IDS), plain)


def test_one_file_wins_over_an_index_beside_it(directory, plain):
    (directory / INDEX).write_text(
        json.dumps({"weight_map": {"nothing": "model-00001-of-00001.safetensors"}})
    )
    assert torch.equal(tiny.logits(load_model(directory), IDS), plain)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        "model\0.safetensors",
        "model.bin",
        3,
        None,
    ],
)
def test_an_index_entry_that_is_not_a_plain_file_name_is_refused(name, directory):
    message = refusal(shard(directory, tiny.weights(tiny.QWEN3), **{Q: name}))
    assert INDEX in message and repr(name) in message and "plain names" in message


@pytest.mark.parametrize(
    "text", ['{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {}}', "[]", "{", ""]
)
def test_an_index_without_a_weight_map_is_refused(text, directory):
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(text)
    assert INDEX in refusal(directory)


def test_a_missing_shard_is_named(directory):
    shard(directory, tiny.weights(tiny.QWEN3))
    (directory / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: expected a safetensors file, found none" in refusal(
        directory, FileNotFoundError
    )


def test_a_tensor_that_the_index_lists_and_no_shard_has_is_named(directory):
    tensors = tiny.weights(tiny.QWEN3)
    del tensors[Q]
    shard(directory, tensors, **{Q: "model-00001-of-00002.safetensors"})
    assert f"missing tensor {Q} (64, 32)" in refusal(directory)


def test_a_tensor_in_a_shard_that_the_index_does_not_list_is_not_overlooked(directory):
    shard(directory, {**tiny.weights(tiny.QWEN3), "zzz": torch.ones(2)})
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"]["zzz"]
    (directory / INDEX).write_text(json.dumps(index))
    assert "unexpected tensor zzz" in refusal(directory)


def test_a_directory_without_weights_says_what_was_expected_and_that_pickles_are_not_read(directory):
    (directory / "model.safetensors").unlink()
    assert f"expected model.safetensors or {INDEX}, found neither" in refusal(directory, FileNotFoundError)
    (directory / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights (.bin) are not read" in refusal(directory, FileNotFoundError)


def changed(directory, change) -> Path:
    tensors = tiny.weights(tiny.QWEN3)
    change(tensors)
    return tiny.write_checkpoint(directory, tiny.QWEN3, tensors=tensors)


def test_a_missing_tensor_is_named_with_its_shape(directory):
    message = refusal(changed(directory, lambda tensors: tensors.pop(Q)))
    assert f"the weights do not fit config.json: missing tensor {Q} (64, 32)" in message


def test_a_tensor_too_many_is_named_with_its_file(directory):
    message = refusal(
        changed(
            directory, lambda tensors: tensors.update({"model.layers.4.mlp.up_proj.weight": torch.ones(2, 2)})
        )
    )
    assert "unexpected tensor model.layers.4.mlp.up_proj.weight in model.safetensors" in message


def test_a_wrong_shape_is_named_with_both_shapes(directory):
    message = refusal(changed(directory, lambda tensors: tensors.update({Q: torch.ones(32, 64)})))
    assert f"{Q} in model.safetensors: expected shape (64, 32), got (32, 64)" in message


def test_many_differences_are_one_line_with_three_and_the_number_of_the_others(directory):
    message = refusal(tiny.write_checkpoint(directory, tiny.QWEN3, tensors={"a": torch.ones(1)}))
    assert message.count("missing tensor") == 3 and re.search(r"and \d+ more$", message)


def test_a_tensor_under_two_spellings_is_refused(directory):
    message = refusal(
        changed(directory, lambda tensors: tensors.update({Q.removeprefix("model."): tensors[Q].clone()}))
    )
    assert f"expected tensor {Q} once, found it twice" in message


def test_integer_weights_are_refused_by_their_type(directory):
    message = refusal(
        changed(directory, lambda tensors: tensors.update({Q: torch.ones(64, 32, dtype=torch.int8)}))
    )
    assert f"expected {Q} in one of F64, F32, F16, BF16, got I8" in message


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[:-5],
        lambda whole: whole[:300],
        lambda whole: whole[:4],
        lambda whole: b"",
        lambda whole: whole + b"more",
        lambda whole: b"PK\3\4" + whole,
        lambda whole: b"\xff" * 64,
    ],
)
def test_a_file_that_is_cut_or_not_safetensors_is_named(content, directory):
    file = directory / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    assert "model.safetensors: expected a whole safetensors file, got an error" in refusal(directory)


def test_a_tied_model_with_both_tensors_equal_is_tied(directory, plain):
    changed(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    model = load_model(directory)
    assert model.lm_head.weight is model.model.embed_tokens.weight and torch.equal(
        tiny.logits(model, IDS), plain
    )


def test_a_tied_model_whose_tensors_differ_keeps_both_as_transformers_does(directory, plain):
    changed(directory, lambda tensors: tensors.update({HEAD: 2 * tensors[EMBEDDING]}))
    model = load_model(directory)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(tiny.logits(model, IDS), 2 * plain)


def test_a_tied_model_with_the_head_alone_is_tied_to_it(directory, plain):
    changed(directory, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
    model = load_model(directory)
    assert model.lm_head.weight is model.model.embed_tokens.weight and torch.equal(
        tiny.logits(model, IDS), plain
    )


def test_a_model_that_is_not_tied_needs_its_head(directory):
    tiny.write_checkpoint(directory, UNTIED, tensors=tiny.weights(tiny.QWEN3))
    assert f"missing tensor {HEAD} (64, 32)" in refusal(directory)


def test_neither_embedding_nor_head_is_refused(directory):
    message = refusal(changed(directory, lambda tensors: tensors.pop(EMBEDDING)))
    assert f"missing tensor {EMBEDDING}" in message


def test_a_padded_vocabulary_is_that_of_config_and_tensors(tmp_path):
    """As Qwen's: more rows than the tokenizer has tokens. Nothing here asks the tokenizer."""
    model = load_model(tiny.write_checkpoint(tmp_path, dict(tiny.QWEN3, vocab_size=80)))
    assert tiny.logits(model, IDS).shape[-1] == 80


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("loaded", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_converted_to_the_dtype_asked_for(stored, loaded, directory):
    tensors = {name: tensor.to(stored) for name, tensor in tiny.weights(tiny.QWEN3).items()}
    model = load_model(tiny.write_checkpoint(directory, tiny.QWEN3, tensors=tensors), dtype=loaded)
    for name, value in model.state_dict().items():
        assert value.dtype == loaded and torch.equal(
            value, tensors[EMBEDDING if name == HEAD else name].to(loaded)
        ), name


ASKED = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu: does it multiply bf16 fast?
NARROW, WIDE_ENOUGH = (
    dict(tiny.LLAMA, num_hidden_layers=1),
    dict(tiny.LLAMA, num_hidden_layers=1, hidden_size=WIDE),
)


def processor(monkeypatch, *fast):
    for name in ASKED:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in fast, raising=False)


@pytest.mark.parametrize(
    "config, stored, fast, expected",
    [
        (WIDE_ENOUGH, torch.bfloat16, ASKED[:1], torch.bfloat16),
        (WIDE_ENOUGH, torch.float16, ASKED[1:], torch.bfloat16),
        (WIDE_ENOUGH, torch.bfloat16, (), torch.float32),
        (WIDE_ENOUGH, torch.float32, ASKED, torch.float32),
        (NARROW, torch.bfloat16, ASKED, torch.float32),
    ],
)
def test_without_a_dtype_a_cpu_gets_bf16_where_it_is_fast_and_the_weights_are_wide_and_of_16_bits(
    config, stored, fast, expected, monkeypatch, tmp_path
):
    tensors = {name: tensor.to(stored) for name, tensor in tiny.weights(config).items()}
    tiny.write_checkpoint(tmp_path, config, tensors=tensors)
    processor(monkeypatch, *fast)
    assert default_dtype(tmp_path) == default_dtype(tmp_path, torch.device("cpu")) == expected
    assert {value.dtype for value in load_model(tmp_path).state_dict().values()} == {expected}


def test_one_tensor_of_32_bits_keeps_all_in_fp32(monkeypatch, tmp_path):
    tensors = {
        name: tensor.to(torch.float32 if "norm" in name else torch.bfloat16)
        for name, tensor in tiny.weights(WIDE_ENOUGH).items()
    }
    processor(monkeypatch, *ASKED)
    assert default_dtype(tiny.write_checkpoint(tmp_path, WIDE_ENOUGH, tensors=tensors)) == torch.float32


def test_a_pytorch_that_cannot_say_what_the_processor_does_means_fp32(monkeypatch, tmp_path):
    for name in ASKED:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    tensors = {name: tensor.bfloat16() for name, tensor in tiny.weights(WIDE_ENOUGH).items()}
    assert default_dtype(tiny.write_checkpoint(tmp_path, WIDE_ENOUGH, tensors=tensors)) == torch.float32


def test_the_dtype_is_that_of_the_device_that_runs_the_model_not_of_the_one_it_is_loaded_on(directory):
    """As with --shard, where every process loads on its CPU and gives the GPU its part."""
    assert (
        default_dtype(directory, "cuda")
        == default_dtype(directory, torch.device("cuda", 1))
        == torch.bfloat16
    )
    model = load_model(directory, dtype=default_dtype(directory, "cuda"), device="cpu")
    assert model.lm_head.weight.dtype == torch.bfloat16 and model.lm_head.weight.device.type == "cpu"


def test_the_shipped_base_stays_in_fp32_on_every_processor(monkeypatch):
    processor(monkeypatch, *ASKED)
    assert default_dtype(Path(__file__).resolve().parents[1] / "data/base") == torch.float32


# not there


def test_a_hub_id_that_cannot_be_found_is_explained_in_one_line(tmp_path):
    code = "from minimon.checkpoint import load_model\ntry: load_model('nobody/no-such-model')\nexcept FileNotFoundError as e: print(e)"
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert re.fullmatch(
        r"nobody/no-such-model: expected a checkpoint directory or a hub id, found neither \(.+\); check the spelling, "
        r"or download .+\n",
        run.stdout,
    ), (run.stdout, run.stderr)


@pytest.mark.parametrize("name", ["./no/such/directory", "a b", ""])
def test_a_path_that_is_not_there_and_no_hub_id_is_explained_in_one_line(name):
    with pytest.raises(
        FileNotFoundError,
        match=r"\A.*: expected a checkpoint directory or a hub id, found neither \(.*\); .*\Z",
    ):
        load_model(name)


def test_a_hub_id_is_fetched_without_pickles_and_read_from_its_snapshot(directory, plain, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.update(options, name=name) or str(directory),
    )
    assert torch.equal(tiny.logits(load_model("some/model"), IDS), plain)
    assert asked["name"] == "some/model" and not any(
        "bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"]
    )


# memory


@pytest.fixture(scope="module")
def benchmark():
    import loading

    return loading


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures memory by /proc")
@pytest.mark.parametrize("tensors", ["head left out", "head and embedding equal"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_hardly_more_memory_than_the_weights(dtype, tensors, benchmark, tmp_path):
    config = dict(tiny.QWEN3, vocab_size=40_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    weights = {name: tensor.bfloat16() for name, tensor in tiny.weights(config).items()}
    if tensors == "head and embedding equal":
        weights[HEAD] = weights[EMBEDDING].clone()
    tiny.write_checkpoint(tmp_path, config, tensors=weights)
    del weights
    assert benchmark.measure(str(tmp_path), dtype)["ratio_memory"] < 1.15


def test_weights_are_used_where_they_lie_and_the_file_is_never_written(directory):
    before = (directory / "model.safetensors").read_bytes()
    model = load_model(directory)
    add_lora(model, target_modules="all-linear")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    merge_lora(model)
    assert (directory / "model.safetensors").read_bytes() == before
    assert torch.equal(load_model(directory).model.norm.weight + 1.0, model.model.norm.weight)


# saving


@pytest.mark.parametrize("config", [tiny.QWEN3, UNTIED, tiny.LLAMA], ids=["tied", "untied", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_the_model(config, dtype, tmp_path):
    source = tiny.write_checkpoint(tmp_path / "model", config)
    (source / "tokenizer.json").write_text("{}")
    (source / "adapter.bin").write_bytes(b"no")
    model = load_model(source, dtype=dtype)
    save_model(model, tmp_path / "saved", source)
    assert torch.equal(tiny.logits(load_model(tmp_path / "saved", dtype=dtype), IDS), tiny.logits(model, IDS))
    assert sorted(os.listdir(tmp_path / "saved")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (HEAD in load_file(tmp_path / "saved" / "model.safetensors")) is not config.get(
        "tie_word_embeddings", False
    )
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    tied = config.get("tie_word_embeddings", False)
    assert saved == {
        **config,
        "dtype": str(dtype)[6:],
        "torch_dtype": str(dtype)[6:],
        "tie_word_embeddings": tied,
    }


def test_a_model_of_shards_can_be_saved_over_itself(directory, plain):
    shard(directory, tiny.weights(tiny.QWEN3))
    save_model(load_model(directory), directory, directory)
    shutil.rmtree(directory / INDEX, ignore_errors=True)
    assert torch.equal(tiny.logits(load_model(directory), IDS), plain)


@pytest.mark.parametrize(
    "wrapper, text, architecture",
    [
        (
            "gemma3",
            dict(tiny.SIZES, model_type="gemma3_text", head_dim=16, sliding_window=8),
            "Gemma3ForCausalLM",
        ),
        ("mistral3", dict(tiny.SIZES, model_type="mistral"), "MistralForCausalLM"),
    ],
)
def test_the_decoder_of_a_multimodal_wrapper_is_saved_as_a_model_of_its_own(
    wrapper, text, architecture, tmp_path
):
    config = {"model_type": wrapper, "text_config": text, "vision_config": {}}
    model = load_model(tiny.write_checkpoint(tmp_path / "model", config, rename=tiny.wrapped))
    save_model(model, tmp_path / "saved", tmp_path / "model")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (
        "text_config" not in saved and saved["architectures"] == [architecture] and {**saved, **text} == saved
    )
    assert torch.equal(tiny.logits(load_model(tmp_path / "saved"), IDS), tiny.logits(model, IDS))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["qwen3", "tied, differing", "gemma3"])
def test_transformers_loads_what_is_saved_with_equal_logits(name, tmp_path):
    pytest.importorskip("transformers", reason="compares with transformers: pip install '.[peers]'")
    tensors, rename, config = None, str, tiny.QWEN3
    if name == "gemma3":
        rename, config = (
            tiny.wrapped,
            {"model_type": "gemma3", "text_config": dict(tiny.SIZES, model_type="gemma3_text", head_dim=16)},
        )
    if name == "tied, differing":
        tensors = tiny.weights(config)
        tensors[HEAD] = 2 * tensors[EMBEDDING]
    model = load_model(tiny.write_checkpoint(tmp_path / "model", config, tensors=tensors, rename=rename))
    save_model(model, tmp_path / "saved", tmp_path / "model")
    said = json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"]
    assert said == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert torch.equal(
        tiny.peer_logits(tiny.peer_model(tmp_path / "saved", "auto"), IDS), tiny.logits(model, IDS)
    )


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
