"""LoRA (Hu et al., 2021): y = W x + scaling B A x, with W frozen, in PEFT's file format both ways.

R rank r. lora_A (R, in) is drawn uniformly, lora_B (out, R) is zero, so a new adapter changes nothing. A PEFT tensor name is
"base_model.model." plus the module's path in transformers' model, which is the path here (see `peft_path`).
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from minimon.files import open_tensors, read_json, tensor, write_json, write_tensors
from minimon.ops import LoRAProduct

PREFIX = "base_model.model."
USED = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform",
        "layers_pattern")
INERT = {                                      # keys of adapter_config.json that leave the arithmetic of a trained adapter alone
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying", "runtime_config", *USED,
}
OFF = (None, False, "none", [], {})            # any other key must have one of these values
PLAIN_INITS = (True, False, None, "gaussian")  # others change the base weights as well


@dataclass
class LoRAConfig:
    """Settings of an adapter, named as in adapter_config.json. *_pattern: {regex: value} where modules differ."""

    r: int = 8
    lora_alpha: float = 16
    target_modules: list[str] | str = field(default_factory=list)
    use_rslora: bool = False
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self):
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, key), dict):
                raise ValueError(f"{key}: expected a table, got {getattr(self, key)!r}")
        for key, value in (("lora_alpha", self.lora_alpha), *self.alpha_pattern.items()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
                raise ValueError(f"{key}: expected a positive number, got {value!r}")
        for key, value in (("r", self.r), *self.rank_pattern.items()):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}: expected a positive integer, got {value!r}")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(f"layers_to_transform: expected a list for target_modules with it, got {self.target_modules!r}")

    def of(self, path: str) -> tuple[int, float]:
        """(r, scaling) of the module at `path`; scaling = lora_alpha / r, or / sqrt(r) with rslora (Kalajdzievski, 2023)."""
        def pattern(table, default):
            return next((value for key, value in table.items() if re.fullmatch(rf"(.*\.)?({key})", path)), default)

        r, alpha = pattern(self.rank_pattern, self.r), pattern(self.alpha_pattern, self.lora_alpha)
        return r, alpha / (math.sqrt(r) if self.use_rslora else r)


class LoRALinear(nn.Module):
    """(..., in) -> (..., out). The adapter is kept and computed in fp32 whatever the base's dtype."""

    def __init__(self, base_layer: nn.Linear, r: int, scaling: float):
        super().__init__()
        self.base_layer, self.scaling, self.enabled = base_layer.requires_grad_(False), scaling, True
        device = base_layer.weight.device
        self.lora_A = nn.Linear(base_layer.in_features, r, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(r, base_layer.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        if not self.enabled:
            return self.base_layer(x)
        return LoRAProduct.apply(x, self.base_layer.weight, self.base_layer.bias, self.lora_A.weight, self.lora_B.weight, self.scaling)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        delta = self.scaling * (self.lora_B.weight @ self.lora_A.weight)               # (out, in) in fp32
        self.base_layer.weight.copy_((self.base_layer.weight.float() + delta).to(self.base_layer.weight.dtype))
        return self.base_layer


def add_lora(model: nn.Module, r: int = 8, lora_alpha: float = 16, target_modules: list[str] | str = "all-linear",
             **options) -> LoRAConfig:
    """Wrap the targeted linears of `model` in place; only the adapter is trainable afterwards.

    target_modules: a list of names or paths, a regex for the whole path, or "all-linear" (all but the head).
    Raises ValueError where a target matches nothing."""
    config = LoRAConfig(r, lora_alpha, target_modules, **options)
    linears = linear_paths(model)
    entries = [target_modules] if isinstance(target_modules, str) else [[entry] for entry in target_modules or ()]
    for entry in entries or [None]:
        if not any(matches(peft_path(model, path), entry) for path in linears):
            known = sorted({path.rsplit(".", 1)[-1] for path in linears})
            shown = entry[0] if isinstance(entry, list) else entry
            raise ValueError(f"target_modules: {shown!r} matches no linear module; there are {', '.join(known)}")
    return wrap(model, config)


def wrap(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    if lora_layers(model):
        raise ValueError("expected a model without an adapter, got one that has one; merge_lora it first or load the base again")
    paths = [path for path in linear_paths(model) if targeted(peft_path(model, path), config)]
    if not paths:
        raise ValueError("target_modules: no linear module is left after exclude_modules and layers_to_transform")
    model.requires_grad_(False)
    for path in paths:
        parent, name = path.rsplit(".", 1)
        setattr(model.get_submodule(parent), name, LoRALinear(model.get_submodule(path), *config.of(peft_path(model, path))))
    model.lora_config = config
    return config


def linear_paths(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path != "lm_head"]


def peft_path(model: nn.Module, path: str) -> str:
    """The module's path in transformers' model: the same, but inside a multimodal wrapper."""
    wrapped = getattr(getattr(model, "config", None), "wrapped", False)
    return path.replace("model.", "model.language_model.", 1) if wrapped else path


def targeted(path: str, config: LoRAConfig) -> bool:
    """PEFT's rules: exclude_modules win; a whole path is meant as it is; a name holds in the layers asked for."""
    targets = config.target_modules
    if not matches(path, targets) or matches(path, config.exclude_modules or []):
        return False
    wanted = config.layers_to_transform
    if isinstance(targets, str) or wanted in (None, []) or path in targets:
        return True
    patterns = config.layers_pattern or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = (re.match(rf"(?:.*?\.)?{pattern}\.(?P<index>\d+)\.", path) for pattern in patterns)
    index = next((int(match["index"]) for match in found if match), None)
    return index in (wanted if isinstance(wanted, list) else [wanted])


def matches(path: str, targets) -> bool:
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or re.fullmatch(targets, path) is not None
    return any(path == entry or path.endswith(f".{entry}") for entry in targets or ())


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def enable_lora(model: nn.Module, enabled: bool) -> None:
    """Off, the model is its base again, to the bit."""
    for layer in lora_layers(model).values():
        layer.enabled = enabled


def merge_lora(model: nn.Module) -> nn.Module:
    """W + scaling B A into every wrapped linear, in fp32 and cast once; the wrappers go. Returns the model."""
    for path, layer in lora_layers(model).items():
        parent, name = path.rsplit(".", 1)
        setattr(model.get_submodule(parent), name, layer.merged())
    model.lora_config = None
    return model


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's names -> the adapter's parameters."""
    return {f"{PREFIX}{peft_path(model, path)}.{part}.weight": getattr(layer, part).weight
            for path, layer in lora_layers(model).items() for part in ("lora_A", "lora_B")}


def save_adapter(model: nn.Module, directory, base: str | None = None) -> None:
    """adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read them. `base`: what the adapter belongs to.

    vLLM reads one r and one lora_alpha for all modules, and passes over rank_pattern and alpha_pattern without a word."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config, paths = asdict(model.lora_config), sorted(lora_layers(model))
    targets, plain = config["target_modules"], not config["exclude_modules"]
    if any(peft_path(model, path) != path for path in paths):      # a name alone would be met in the wrapper's other towers too
        config.update(target_modules=[peft_path(model, path) for path in paths], exclude_modules=None, layers_to_transform=None,
                      layers_pattern=None)
    elif isinstance(targets, str):                         # vLLM wants a list, and "all-linear" means other things elsewhere
        names = sorted({path.rsplit(".", 1)[-1] for path in paths})
        config.update(target_modules=names if targets.lower() == "all-linear" and plain else paths, exclude_modules=None)
    else:
        config["target_modules"] = sorted(targets)
    if config["lora_alpha"] == int(config["lora_alpha"]):
        config["lora_alpha"] = int(config["lora_alpha"])
    write_json(directory / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": None, "inference_mode": True,
        **config, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "use_dora": False,
        "modules_to_save": None})
    write_tensors(directory / "adapter_model.safetensors", adapter_tensors(model))


def load_adapter(model: nn.Module, directory) -> LoRAConfig:
    """Wrap `model` as adapter_config.json says and load the weights; PEFT's adapters too. The tensors must be exactly those expected.

    Raises FileNotFoundError or ValueError in one line; the model may then be half wrapped and is to be dropped."""
    path = Path(directory) / "adapter_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: expected an adapter directory with adapter_config.json, found none")
    raw = read_json(path)
    refuse_options(raw, path)
    options = {key: raw[key] for key in USED if raw.get(key) is not None}
    weights = Path(directory) / "adapter_model.safetensors"
    try:
        config = LoRAConfig(**{"lora_alpha": 8, **options})                    # PEFT's own default, where the file has none
        if max(config.r, *config.rank_pattern.values(), 0) > largest_rank(weights):
            raise ValueError(f"r: expected at most {largest_rank(weights)}, as in the weights, got {config.r} and {config.rank_pattern}")
        wrap(model, config)
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{path}: {error}") from error
    load_tensors(model, weights)
    return config


def largest_rank(path: Path) -> int:
    """Of the file: memory is taken for no more than there is."""
    with open_tensors(path) as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if ".lora_A." in key]
    return max((shape[0] for shape in shapes if shape), default=0)


def refuse_options(raw: dict, path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: expected peft_type 'LORA', got {raw.get('peft_type')!r}")
    active = [f"{key} = {json.dumps(value)}" for key, value in raw.items() if key not in INERT and value not in OFF]
    if raw.get("init_lora_weights", True) not in PLAIN_INITS:
        active.append(f"init_lora_weights = {json.dumps(raw['init_lora_weights'])} (it changes the base weights: convert the adapter "
                      "with PEFT first)")
    if not raw.get("target_modules"):
        active.append(f"target_modules = {json.dumps(raw.get('target_modules'))} (PEFT's defaults by architecture)")
    if active:
        raise ValueError(f"{path}: not implemented: {'; '.join(active)}")


def load_tensors(model: nn.Module, path: Path) -> None:
    expected = adapter_tensors(model)
    with open_tensors(path) as file:
        keys = {key.replace(".default.", "."): key for key in file.keys()}
        problems = [f"missing tensor {name}" for name in sorted(set(expected) - set(keys))]
        problems += [f"unexpected tensor {name}" for name in sorted(set(keys) - set(expected))]
        shapes = {name: tuple(file.get_slice(keys[name]).get_shape()) for name in set(keys) & set(expected)}
        problems += [f"{name}: expected shape {tuple(expected[name].shape)}, got {shape}"
                     for name, shape in sorted(shapes.items()) if shape != tuple(expected[name].shape)]
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(f"{path}: the adapter does not fit the model: {'; '.join(problems[:3])}{more}")
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensor(file, keys[name], path))
