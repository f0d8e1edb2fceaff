"""Tiny random checkpoints, the same on every machine: a weight is a function of its name, its index and a seed.

Nothing is stored, so a golden file holds a config and a few logits, and whoever ports minimon can make the same weights:
element i of tensor `name` is splitmix64(2^32 crc32("seed name") + i), its top 24 bits as a number in [-1, 1); what a tensor is
for scales it (`weight`).
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from minimon.evaluate import Reading
from minimon.hf.families import config_from_dict
from minimon.model import Decoder

torch.set_num_threads(1)  # for models of this size a second thread only costs

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA = dict(SIZES, model_type="llama")
QWEN3 = dict(SIZES, model_type="qwen3", head_dim=16, tie_word_embeddings=True)


def uniform(name: str, shape, seed: int = 0) -> np.ndarray:
    """fp32 numbers in [-1, 1), by splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(
            zlib.crc32(f"{seed} {name}".encode()) << 32
        )
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)).reshape(shape)


def weight(name: str, shape, config: dict, seed: int = 0) -> torch.Tensor:
    """Gains near one, biases of a half, linears that keep the size of what they are given; sharp attention."""
    u = torch.from_numpy(uniform(name, shape, seed))
    if "norm" in name:
        return 0.4 * u if config.get("model_type", "gemma").startswith("gemma") else 1 + 0.4 * u
    if len(shape) == 1:
        return 0.5 * u
    if "embed_tokens" in name:
        return u
    return (
        u
        * (3 / shape[-1]) ** 0.5
        * (2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0)
    )


def weights(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensor name -> weight, for a config.json; a tied head is left out, as in files."""
    with torch.device("meta"):
        model = Decoder(config_from_dict(config))
    tied = model.config.tie_word_embeddings
    return {
        name: weight(name, tuple(value.shape), config.get("text_config", config), seed)
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def write_checkpoint(
    directory, config: dict, seed: int = 0, tensors: dict | None = None, rename=lambda name: name
) -> Path:
    """config.json and model.safetensors with those weights (or `tensors`), named by `rename`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = weights(config, seed) if tensors is None else tensors
    save_file(
        {rename(name): tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    return directory


def adapter_weights(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensor name -> weight of a trained adapter, for PEFT's names and shapes."""
    return {
        name: torch.from_numpy(uniform(name, shape, seed))
        * (0.5 if "lora_B" in name else (3 / shape[-1]) ** 0.5)
        for name, shape in shapes.items()
    }


def tokens(length: int = 48, rows: int = 1, vocab_size: int = 64) -> torch.Tensor:
    """(rows, length) token ids."""
    return torch.from_numpy(((uniform("tokens", (rows, length)) + 1) / 2 * vocab_size).astype(np.int64))


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, V) of minimon's decoder."""
    return model.logits(model(ids))


def wrapped(name: str) -> str:
    """The name in files of multimodal wrappers."""
    return f"language_model.{name}"


def peer_model(directory, dtype=torch.float32):
    """transformers' model of a checkpoint directory, every weight of the decoder found in it and none left over."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    auto = (
        transformers.AutoModelForImageTextToText
        if hasattr(config, "text_config")
        else transformers.AutoModelForCausalLM
    )
    model, info = auto.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if "vision" not in name and "projector" not in name]
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


@torch.no_grad()
def peer_logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def undecided(rows: int) -> Reading:
    """What a model reads that finds both labels as likely."""
    return Reading(
        torch.full((rows, 2), 0.5),
        torch.ones(rows),
        torch.ones(rows, dtype=torch.bool),
        torch.zeros(rows, dtype=torch.long),
    )
