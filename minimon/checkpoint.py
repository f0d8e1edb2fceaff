"""A checkpoint directory or hub id -> Decoder, strictly: every tensor expected is there, in shape, and no other. And back."""

import os
import re
from pathlib import Path

import torch

from minimon.config import ModelConfig, read_config
from minimon.files import open_tensors, read_json, write_tensors
from minimon.model import Decoder

PATTERNS = ["*.json", "*.safetensors", "*.jinja"]
IGNORED = re.compile(r".*(rotary_emb\.inv_freq|\.position_ids)$|(model\.)?(vision_tower|multi_modal_projector)\..*")


def resolve(path_or_hub_id) -> Path:
    """A local directory as it is; otherwise a hub id, fetched or found in the cache."""
    if os.path.isdir(path_or_hub_id):
        return Path(path_or_hub_id)
    from huggingface_hub import snapshot_download          # slow to import, seldom needed
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{path_or_hub_id}: expected a checkpoint directory or a hub id, found neither ({reason}); "
                                "check the spelling, or download the model where there is a network and name its directory") from error


def load_model(path_or_hub_id, *, dtype=None, device="cpu") -> Decoder:
    """Decoder with frozen weights in eval mode. dtype: None for bf16 on CUDA, fp32 elsewhere.

    Raises FileNotFoundError or ValueError in one line naming the file, the tensor, what was expected and what was found."""
    directory = resolve(path_or_hub_id)
    config = read_config(directory)
    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    with torch.device("meta"):
        model = Decoder(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = find_tensors(directory, set(expected))
    check(found, expected, config, directory)
    state = {}
    for path in sorted(set(path for path, _, _ in found.values())):
        with open_tensors(path) as file:                   # mapped: pages are read as they are copied, or used in place
            for name, (owner, key, _) in found.items():
                if owner == path:
                    state[name] = file.get_tensor(key).to(device=device, dtype=dtype)
    if config.tie_word_embeddings:
        tie(state)
    model.load_state_dict(state, assign=True)
    if config.tie_word_embeddings and state["lm_head.weight"] is state["model.embed_tokens.weight"]:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def find_tensors(directory: Path, names: set[str]) -> dict[str, tuple]:
    """Tensor name -> (file, key in the file, shape), over the index's shards or the single file."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if index.is_file() and not single.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: expected a table weight_map, got {weight_map!r}")
        for shard in weight_map.values():
            if not isinstance(shard, str) or shard != os.path.basename(shard) or shard in ("", ".", ".."):
                raise ValueError(f"{index}: expected plain file names in weight_map, got {shard!r}")
        paths = [directory / shard for shard in sorted(set(weight_map.values()))]
    else:
        weight_map, paths = None, [single]
    found = {}
    for path in paths:
        with open_tensors(path) as file:
            for key in file.keys():
                if IGNORED.fullmatch(key) or (weight_map is not None and weight_map.get(key) != path.name):
                    continue
                name = canonical(key, names)
                if name in found:
                    raise ValueError(f"{path}: expected tensor {name} once, found it twice")
                found[name] = (path, key, tuple(file.get_slice(key).get_shape()))
    missing = sorted(set(weight_map or ()) - {key for _, key, _ in found.values()})
    missing = [key for key in missing if not IGNORED.fullmatch(key)]
    if missing:
        raise ValueError(f"{index}: expected {missing[0]} in {weight_map[missing[0]]}, found no such tensor there")
    return found


def canonical(key: str, names: set[str]) -> str:
    """Names of multimodal wrappers and of base models saved without a head -> those of a causal language model."""
    if "language_model." in key:
        head = re.sub(r"^(model\.)?language_model\.(model\.)?", "", key)
        return head if head.startswith("lm_head") else f"model.{head}"
    return f"model.{key}" if key not in names and f"model.{key}" in names else key


def check(found: dict, expected: dict, config: ModelConfig, directory: Path) -> None:
    """Every difference between what is there and what the config asks for, gathered into one line."""
    missing = sorted(set(expected) - set(found))
    if config.tie_word_embeddings and len({"lm_head.weight", "model.embed_tokens.weight"} & set(missing)) == 1:
        missing = [name for name in missing if name not in ("lm_head.weight", "model.embed_tokens.weight")]
    problems = [f"missing tensor {name} {expected[name]}" for name in missing]
    problems += [f"unexpected tensor {name} in {found[name][0].name}" for name in sorted(set(found) - set(expected))]
    problems += [f"{name} in {path.name}: expected shape {expected[name]}, got {shape}"
                 for name, (path, _, shape) in sorted(found.items()) if name in expected and shape != expected[name]]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{directory}: the weights do not fit config.json: {'; '.join(problems[:3])}{more}")


def tie(state: dict) -> None:
    """One tensor for embedding and head; two that differ stay two, as in transformers."""
    embed, head = state.get("model.embed_tokens.weight"), state.get("lm_head.weight")
    if embed is None or head is None or torch.equal(embed, head):
        state["model.embed_tokens.weight"] = state["lm_head.weight"] = embed if embed is not None else head


def save_model(model: Decoder, directory, like) -> None:
    """A plain checkpoint that transformers loads: the weights, and the other files of the checkpoint directory `like`."""
    directory, like = Path(directory), resolve(like)
    directory.mkdir(parents=True, exist_ok=True)
    for path in like.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.startswith("model.safetensors"):
            (directory / path.name).write_bytes(path.read_bytes())
    tensors = model.state_dict()
    if model.lm_head.weight is model.model.embed_tokens.weight:
        del tensors["lm_head.weight"]
    write_tensors(directory / "model.safetensors", tensors)
