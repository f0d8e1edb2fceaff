"""LoRA (Hu et al., 2021): y = W x + scaling B A x, with W frozen. Below it PEFT's file format, both ways.

R rank r. lora_A (R, in) is drawn uniformly, lora_B (out, R) is zero, so a new adapter changes nothing.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import nn

from minimon.checkpoint import check_tensors, list_tensors
from minimon.files import open_tensors, read_json, tensor, write_json, write_tensors
from minimon.ops import LoRAProduct


@dataclass
class LoRAConfig:
    """Of an adapter, named as in adapter_config.json. *_pattern: {regex: value} where modules differ."""

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
            if type(value) not in (int, float) or not 0 < value < 1e38:
                raise ValueError(f"{key}: expected a positive number, got {value!r}")
        for key, value in (("r", self.r), *self.rank_pattern.items()):
            if type(value) is not int or value < 1:
                raise ValueError(f"{key}: expected a positive integer, got {value!r}")
        targets = self.target_modules
        if isinstance(targets, str) and self.layers_to_transform is not None:
            expected = "expected a list for target_modules with it"
            raise ValueError(f"layers_to_transform: {expected}, got {targets!r}")

    def rank(self, path):
        """Of the module at `path`."""
        return first_match(self.rank_pattern, path, self.r)

    def scaling(self, path):
        """lora_alpha / r of the module at `path`; with rslora (Kalajdzievski, 2023) lora_alpha / sqrt(r)."""
        r = self.rank(path)
        return first_match(self.alpha_pattern, path, self.lora_alpha) / (
            math.sqrt(r) if self.use_rslora else r
        )


def first_match(patterns, path, default):
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


class LoRALinear(nn.Module):
    """(..., in) -> (..., out). The adapter is kept and computed in fp32 whatever the base's dtype."""

    def __init__(self, base_layer: nn.Linear, r: int, scaling: float):
        super().__init__()
        self.base_layer, self.scaling, self.enabled = base_layer.requires_grad_(False), scaling, True
        options = dict(bias=False, device=base_layer.weight.device, dtype=torch.float32)
        self.lora_A = nn.Linear(base_layer.in_features, r, **options)
        self.lora_B = nn.Linear(r, base_layer.out_features, **options)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        if not self.enabled:
            return self.base_layer(x)
        W, b = self.base_layer.weight, self.base_layer.bias
        return LoRAProduct.apply(x, W, b, self.lora_A.weight, self.lora_B.weight, self.scaling)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        W = self.base_layer.weight
        delta = self.scaling * (self.lora_B.weight @ self.lora_A.weight)  # (out, in) in fp32
        W.copy_((W.float() + delta).to(W.dtype))
        return self.base_layer


def add_lora(
    model: nn.Module,
    r: int = 8,
    lora_alpha: float = 16,
    target_modules: list[str] | str = "all-linear",
    **options,
) -> LoRAConfig:
    """Wrap the targeted linears of `model` in place; only the adapter is trainable afterwards.

    target_modules: a list of names or paths, a regex for the whole path, or "all-linear" (all but the head).
    Raises ValueError where a target matches nothing."""
    config = LoRAConfig(r, lora_alpha, target_modules, **options)
    linears = linear_paths(model)
    for target in [target_modules] if isinstance(target_modules, str) else target_modules or [None]:
        entry = target if isinstance(target_modules, str) else [target]
        if not any(matches(peft_path(model, path), entry) for path in linears):
            names = ", ".join(sorted({last_name(path) for path in linears}))
            raise ValueError(f"target_modules: {target!r} matches no linear module; there are {names}")
    return wrap(model, config)


def wrap(model, config):
    if lora_layers(model):
        raise ValueError(
            "expected a model without an adapter, got one that has one; "
            "merge_lora it first or load the base again"
        )
    paths = [path for path in linear_paths(model) if targeted(peft_path(model, path), config)]
    if not paths:
        raise ValueError(
            "target_modules: no linear module is left after exclude_modules and layers_to_transform"
        )
    model.requires_grad_(False)
    for path in paths:
        named, base_layer = peft_path(model, path), model.get_submodule(path)
        model.set_submodule(path, LoRALinear(base_layer, config.rank(named), config.scaling(named)))
    model.lora_config = config
    return config


def linear_paths(model):
    """Of every linear but the head."""
    modules = model.named_modules()
    return [path for path, module in modules if isinstance(module, nn.Linear) and path != "lm_head"]


def targeted(path, config):
    """PEFT's rules: exclude_modules win; a whole path holds as it is; a name in the layers asked for."""
    targets, layers = config.target_modules, config.layers_to_transform
    if not matches(path, targets) or matches(path, config.exclude_modules):
        return False
    if isinstance(targets, str) or layers in (None, []) or path in targets:
        return True
    return layer_index(path, config.layers_pattern or r"[^.]*") in (
        layers if isinstance(layers, list) else [layers]
    )


def matches(path, targets):
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets or ())


def layer_index(path, patterns):
    """The number after the first pattern that the path holds."""
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:.*?\.)?{pattern}\.(?P<index>\d+)\.", path)
        if match:
            return int(match["index"])
    return None


def last_name(path):
    return path.rsplit(".", 1)[-1]


def lora_layers(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def enable_lora(model: nn.Module, enabled: bool) -> None:
    """Off, the model is its base again, to the bit."""
    for layer in lora_layers(model).values():
        layer.enabled = enabled


def merge_lora(model: nn.Module) -> nn.Module:
    """W + scaling B A in every wrapped linear, in fp32 and cast once; unwraps them. Returns the model."""
    for path, layer in lora_layers(model).items():
        model.set_submodule(path, layer.merged())
    model.lora_config = None
    return model


# ---- PEFT's files: adapter_config.json and adapter_model.safetensors ---------------------------------------

PREFIX = "base_model.model."  # of tensor names; then comes the module's path in transformers' model
USED = tuple(setting.name for setting in fields(LoRAConfig))
# keys of adapter_config.json that leave the arithmetic of a trained adapter alone
INERT = """auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config inference_mode
    init_lora_weights loftq_config lora_dropout lora_ga_config megatron_config megatron_core peft_type
    peft_version qalora_group_size revision runtime_config task_type""".split()
OFF = (None, False, "none", [], {})  # any other key must have one of these values
PLAIN_INITS = (True, False, None, "gaussian")  # others change the base weights as well


def peft_path(model, path):
    """The module's path in transformers' model: the same, but inside a multimodal wrapper."""
    wrapped = getattr(getattr(model, "config", None), "wrapped", False)
    return path.replace("model.", "model.language_model.", 1) if wrapped else path


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's names -> the adapter's parameters."""
    tensors = {}
    for path, layer in lora_layers(model).items():
        name = PREFIX + peft_path(model, path)
        tensors[f"{name}.lora_A.weight"] = layer.lora_A.weight
        tensors[f"{name}.lora_B.weight"] = layer.lora_B.weight
    return tensors


def save_adapter(model: nn.Module, directory, base: str | None = None) -> None:
    """adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read them. `base`: what the adapter
    belongs to.

    vLLM reads one r and one lora_alpha for all modules, and passes over rank_pattern and alpha_pattern
    without a word."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {**asdict(model.lora_config), **portable_targets(model)}
    if config["lora_alpha"] == int(config["lora_alpha"]):
        config["lora_alpha"] = int(config["lora_alpha"])
    fixed = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": None}
    fixed |= {"inference_mode": True, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False}
    fixed |= {"init_lora_weights": True, "use_dora": False, "modules_to_save": None}
    write_json(directory / "adapter_config.json", {**fixed, **config})
    write_tensors(directory / "adapter_model.safetensors", adapter_tensors(model))


def portable_targets(model):
    """Which modules are wrapped, in keys of adapter_config.json that mean the same to every reader."""
    config, paths = model.lora_config, sorted(lora_layers(model))
    in_peft = [peft_path(model, path) for path in paths]
    if in_peft != paths:  # a name alone would be met in the wrapper's other towers too
        choice = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
        return {**choice, "target_modules": in_peft}
    if not isinstance(config.target_modules, str):
        return {"target_modules": sorted(config.target_modules)}
    # vLLM wants a list, and "all-linear" means other things elsewhere
    if config.target_modules.lower() == "all-linear" and not config.exclude_modules:
        paths = sorted({last_name(path) for path in paths})
    return {"target_modules": paths, "exclude_modules": None}


def load_adapter(model: nn.Module, directory) -> LoRAConfig:
    """Wrap `model` as adapter_config.json says and load the weights; PEFT's adapters too. The tensors must be
    exactly those expected.

    Raises FileNotFoundError or ValueError in one line; the model may then be half wrapped and is to be
    dropped."""
    path, weights = Path(directory) / "adapter_config.json", Path(directory) / "adapter_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: expected an adapter directory with adapter_config.json, found none"
        )
    raw = read_json(path)
    refuse_options(raw, path)
    options = {key: raw[key] for key in USED if raw.get(key) is not None}
    stored = {found.key.replace(".default.", "."): found for found in list_tensors(weights)}
    ranks = [found.shape[0] for name, found in stored.items() if ".lora_A." in name and found.shape]
    try:
        config = LoRAConfig(**{"lora_alpha": 8, **options})  # PEFT's own default, where the file has none
        paths = [peft_path(model, path) for path in linear_paths(model)]
        asked = max((config.rank(path) for path in paths if targeted(path, config)), default=0)
        largest = max(ranks, default=0)  # memory is taken for no more than there is
        if asked > largest:
            expected = f"expected at most {largest}, as in the weights"
            raise ValueError(f"r: {expected}, got {config.r} and {config.rank_pattern}")
        wrap(model, config)
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{path}: {error}") from error
    parameters = adapter_tensors(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_tensors(stored, shapes, f"{weights}: the adapter does not fit the model")
    with torch.no_grad(), open_tensors(weights) as file:
        for name, parameter in parameters.items():
            parameter.copy_(tensor(file, stored[name].key, weights))
    return config


def refuse_options(raw, path):
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: expected peft_type 'LORA', got {raw.get('peft_type')!r}")
    active = {key: "" for key, value in raw.items() if key not in (*INERT, *USED) and value not in OFF}
    if raw.get("init_lora_weights", True) not in PLAIN_INITS:
        active["init_lora_weights"] = " (it changes the base weights: convert the adapter with PEFT first)"
    if not raw.get("target_modules"):
        active["target_modules"] = " (PEFT's defaults by architecture)"
    if active:
        problems = [f"{key} = {json.dumps(raw.get(key))}{why}" for key, why in active.items()]
        raise ValueError(f"{path}: not implemented: {'; '.join(problems)}")
