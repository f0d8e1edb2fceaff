"""A checkpoint directory or hub id -> Decoder, strictly: every tensor expected and no other. And back."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from minimon.files import open_tensors, read_json, refuse, replacing, resolve, write_json, write_tensors
from minimon.hf.families import WRAPPERS, read_config, text_decoder
from minimon.model import Decoder

FLOATS = ("F64", "F32", "F16", "BF16")
WIDE = 512  # hidden_size from which products in bf16 take less time than casts to it
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IGNORED = re.compile(
    r".*(rotary_emb\.inv_freq|\.position_ids)$|(model\.)?(vision_tower|multi_modal_projector)\..*"
)


class Stored(NamedTuple):
    """Where a tensor lies."""

    path: Path
    key: str  # in that file
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it


def load_model(path_or_hub_id, *, dtype: torch.dtype | None = None, device="cpu") -> Decoder:
    """Decoder with frozen weights in eval mode. dtype: None for `default_dtype`.

    Raises FileNotFoundError or ValueError in one line naming file and tensor, what was expected and got."""
    directory = resolve(path_or_hub_id)
    config = read_config(directory)
    with torch.device("meta"):
        model = Decoder(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    stored = find_tensors(directory, set(expected))
    tied = config.tie_word_embeddings and tie(stored)
    if tied:
        del expected[HEAD]
    check_tensors(stored, expected, f"{directory}: the weights do not fit config.json")
    dtype = dtype or choose_dtype(config, stored, device)
    state = {}
    for path in sorted({tensor.path for tensor in stored.values()}):
        with open_tensors(path) as file:  # mapped: pages are read as they are copied, or used in place
            for name, tensor in stored.items():
                if tensor.path == path:
                    state[name] = file.get_tensor(tensor.key).to(device=device, dtype=dtype)
    model.load_state_dict(state, strict=False, assign=True)  # check_tensors was strict
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def default_dtype(path_or_hub_id, device="cpu") -> torch.dtype:
    """The dtype for a checkpoint on the device that will run it, whichever it is loaded on.

    bf16 on CUDA, and on a CPU that multiplies it fast if weights are wide and of 16 bits; fp32 elsewhere."""
    directory = resolve(path_or_hub_id)
    return choose_dtype(read_config(directory), find_tensors(directory, set()), device)


def choose_dtype(config, stored, device):
    kind = torch.device(device).type
    of_16_bits = {tensor.dtype for tensor in stored.values()} <= {"F16", "BF16"}
    fast = kind == "cpu" and of_16_bits and config.hidden_size >= WIDE and cpu_multiplies_bf16()
    return torch.bfloat16 if kind == "cuda" or fast else torch.float32


def cpu_multiplies_bf16():
    """By AVX512-BF16 or AMX. A PyTorch that cannot say so counts as one without."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def tie(stored):
    """Whether the head is the embedding, of which one is left then. Two that differ stay two, as in
    transformers."""
    embedding, head = stored.get(EMBEDDING), stored.get(HEAD)
    if embedding and head and not equal(embedding, head):
        return False
    if head:
        stored.setdefault(EMBEDDING, stored.pop(HEAD))
    return True


def equal(one, two):
    with open_tensors(one.path) as first, open_tensors(two.path) as second:
        return torch.equal(first.get_tensor(one.key), second.get_tensor(two.key))


def find_tensors(directory, names):
    """Every tensor by its name in the model, over the single file or the index's shards."""
    single, stored = directory / "model.safetensors", {}
    for path in [single] if single.is_file() else find_shards(directory):
        for tensor in list_tensors(path):
            if IGNORED.fullmatch(tensor.key):
                continue
            name = canonical(tensor.key, names)
            if name in stored:
                raise ValueError(f"{path}: expected tensor {name} once, found it twice")
            if tensor.dtype not in FLOATS:
                expected = f"expected {tensor.key} in one of {', '.join(FLOATS)}"
                raise ValueError(f"{path}: {expected}, got {tensor.dtype}")
            stored[name] = tensor
    return stored


def list_tensors(path):
    with open_tensors(path) as file:
        slices = [(key, file.get_slice(key)) for key in file.keys()]
        return [Stored(path, key, tuple(part.get_shape()), part.get_dtype()) for key, part in slices]


def find_shards(directory):
    """The files that the index names, each a plain file name beside it."""
    path = directory / "model.safetensors.index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: expected model.safetensors or {path.name}, found neither; "
            "pickled weights (.bin) are not read: convert them"
        )
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: expected a table weight_map, got {weight_map!r}")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            expected = "expected plain names of .safetensors files in weight_map"
            raise ValueError(f"{path}: {expected}, got {shard!r}")
    return [directory / shard for shard in sorted(set(weight_map.values()))]


def canonical(key, names):
    """The name in a causal language model, of one in a multimodal wrapper or a base model without a head."""
    if "language_model." in key:
        inner = re.sub(r"^(model\.)?language_model\.(model\.)?", "", key)
        return inner if inner.startswith("lm_head") else f"model.{inner}"
    return f"model.{key}" if key not in names and f"model.{key}" in names else key


def check_tensors(stored, expected, what):
    """Gathers every difference between the tensors found and the shapes expected into one line."""
    missing = sorted(set(expected) - set(stored))
    problems = [f"missing tensor {name} {expected[name]}" for name in missing]
    for name, tensor in sorted(stored.items()):
        file = tensor.path.name
        if name not in expected:
            problems.append(f"unexpected tensor {name} in {file}")
        elif tensor.shape != expected[name]:
            problems.append(f"{name} in {file}: expected shape {expected[name]}, got {tensor.shape}")
    refuse(problems, f"{what}: ")


def save_model(model: Decoder, directory, like) -> None:
    """A plain checkpoint that transformers loads: the weights, and the other files of the checkpoint
    directory `like`.

    config.json takes the weights' dtype; of a multimodal wrapper it keeps the text decoder, whose weights
    these are."""
    directory, like = Path(directory), resolve(like)
    directory.mkdir(parents=True, exist_ok=True)
    copy_others(like, directory)
    config = read_json(like / "config.json")
    if config["model_type"] in WRAPPERS:
        _, architecture = WRAPPERS[config["model_type"]]
        config = {**text_decoder(config), "architectures": [architecture]}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    config |= {"dtype": dtype, "torch_dtype": dtype, "tie_word_embeddings": tied}
    write_json(directory / "config.json", config)
    tensors = model.state_dict()
    if tied:
        del tensors[HEAD]
    write_tensors(directory / "model.safetensors", tensors)


def copy_others(source, directory):
    """The tokenizer and the like: what is neither weights nor config.json."""
    for path in sorted(source.iterdir()):
        ours = path.name.startswith(("model.safetensors", "config.json"))
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and not ours:
            with replacing(directory / path.name) as temporary:
                shutil.copyfile(path, temporary)
