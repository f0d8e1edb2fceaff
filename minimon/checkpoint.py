"""A checkpoint directory or hub id -> Decoder, strictly: every tensor expected is there, in shape, and no other. And back."""

import os
import re
import shutil
from pathlib import Path

import torch

from minimon.hf.families import WRAPPERS, read_config, text_decoder
from minimon.files import open_tensors, read_json, resolve, write_json, write_tensors
from minimon.model import Decoder, ModelConfig

FLOATS = ("F64", "F32", "F16", "BF16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IGNORED = re.compile(r".*(rotary_emb\.inv_freq|\.position_ids)$|(model\.)?(vision_tower|multi_modal_projector)\..*")


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
    if config.tie_word_embeddings and same_tensor(found.get(EMBEDDING), found.get(HEAD)):
        del found[HEAD]
    state = {}
    for path in sorted(set(path for path, _, _ in found.values())):
        with open_tensors(path) as file:                   # mapped: pages are read as they are copied, or used in place
            for name, (owner, key, _) in found.items():
                if owner == path:
                    state[name] = file.get_tensor(key).to(device=device, dtype=dtype)
    tied = len({EMBEDDING, HEAD} & set(state)) == 1
    if tied:
        state[EMBEDDING] = state[HEAD] = state.get(EMBEDDING, state.get(HEAD))
    model.load_state_dict(state, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def same_tensor(*found) -> bool:
    """Whether a tied checkpoint holds embedding and head as equal copies; two that differ stay two, as in transformers."""
    if None in found:
        return False
    tensors = []
    for path, key, _ in found:
        with open_tensors(path) as file:
            tensors.append(file.get_tensor(key))
    return torch.equal(*tensors)


def find_tensors(directory: Path, names: set[str]) -> dict[str, tuple]:
    """Tensor name -> (file, key in the file, shape), over the single file or the index's shards."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    weight_map = {} if single.is_file() else read_index(index)
    found = {}
    for path in sorted({directory / shard for shard in weight_map.values()}) or [single]:
        with open_tensors(path) as file:
            for key in file.keys():
                if IGNORED.fullmatch(key) or weight_map.get(key, path.name) != path.name:
                    continue
                name, tensor = canonical(key, names), file.get_slice(key)
                if name in found:
                    raise ValueError(f"{path}: expected tensor {name} once, found it twice")
                if tensor.get_dtype() not in FLOATS:
                    raise ValueError(f"{path}: expected {key} in one of {', '.join(FLOATS)}, got {tensor.get_dtype()}")
                found[name] = (path, key, tuple(tensor.get_shape()))
    missing = sorted(key for key in set(weight_map) - {key for _, key, _ in found.values()} if not IGNORED.fullmatch(key))
    if missing:
        raise ValueError(f"{index}: expected {missing[0]} in {weight_map[missing[0]]}, found no such tensor there")
    return found


def read_index(path: Path) -> dict[str, str]:
    """Tensor name in the files -> shard, which is a plain file name beside the index."""
    if not path.is_file():
        pickled = "; pickled weights (.bin) are not read: convert them" if any(path.parent.glob("*.bin")) else ""
        raise FileNotFoundError(f"{path.parent}: expected model.safetensors or {path.name}, found neither{pickled}")
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: expected a table weight_map, got {weight_map!r}")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ValueError(f"{path}: expected plain names of .safetensors files in weight_map, got {shard!r}")
    return weight_map


def canonical(key: str, names: set[str]) -> str:
    """Names of multimodal wrappers and of base models saved without a head -> those of a causal language model."""
    if "language_model." in key:
        head = re.sub(r"^(model\.)?language_model\.(model\.)?", "", key)
        return head if head.startswith("lm_head") else f"model.{head}"
    return f"model.{key}" if key not in names and f"model.{key}" in names else key


def check(found: dict, expected: dict, config: ModelConfig, directory: Path) -> None:
    """Every difference between what is there and what the config asks for, gathered into one line."""
    missing = sorted(set(expected) - set(found))
    if config.tie_word_embeddings and len({EMBEDDING, HEAD} & set(missing)) == 1:
        missing = [name for name in missing if name not in (EMBEDDING, HEAD)]
    problems = [f"missing tensor {name} {expected[name]}" for name in missing]
    problems += [f"unexpected tensor {name} in {found[name][0].name}" for name in sorted(set(found) - set(expected))]
    problems += [f"{name} in {path.name}: expected shape {expected[name]}, got {shape}"
                 for name, (path, _, shape) in sorted(found.items()) if name in expected and shape != expected[name]]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{directory}: the weights do not fit config.json: {'; '.join(problems[:3])}{more}")


def save_model(model: Decoder, directory, like) -> None:
    """A plain checkpoint that transformers loads: the weights, and the other files of the checkpoint directory `like`.

    config.json takes the weights' dtype; of a multimodal wrapper it keeps the text decoder, whose weights these are."""
    directory, like = Path(directory), resolve(like)
    directory.mkdir(parents=True, exist_ok=True)
    for path in like.iterdir():
        kept = path.suffix in (".json", ".jinja", ".model", ".txt") and not path.name.startswith(("model.safetensors", "config.json"))
        if kept and path.is_file() and like.resolve() != directory.resolve():
            shutil.copyfile(path, directory / f"{path.name}.tmp")
            os.replace(directory / f"{path.name}.tmp", directory / path.name)
    config = read_json(like / "config.json")
    if config.get("text_config") is not None:
        config = {**text_decoder(config), "architectures": [WRAPPERS[config["model_type"]].architecture]}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    write_json(directory / "config.json", {**config, "dtype": dtype, "torch_dtype": dtype})
    tensors = model.state_dict()
    if model.lm_head.weight is model.model.embed_tokens.weight:
        del tensors[HEAD]
    write_tensors(directory / "model.safetensors", tensors)
