"""LoRA (Hu et al., 2021): y = W x + scaling B A x, with W frozen, in PEFT's file format both ways.

R rank r. lora_A (R, in) is drawn uniformly, lora_B (out, R) is zero, so a new adapter changes nothing. A PEFT tensor name is
"base_model.model." plus the module's path here.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from minimon.files import open_tensors, read_json, write_json, write_tensors

PREFIX = "base_model.model."
REFUSED = {                                    # PEFT options that change the arithmetic: the value that leaves them off
    "use_dora": False, "lora_bias": False, "bias": "none", "modules_to_save": None, "layer_replication": None, "fan_in_fan_out": False,
    "alora_invocation_tokens": None, "kasa_config": None, "velora_config": None, "arrow_config": None, "monteclora_config": None,
    "use_bdlora": None, "use_qalora": False, "target_parameters": None, "trainable_token_indices": None, "megatron_config": None,
}
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
        y = self.base_layer(x)
        if not self.enabled:
            return y
        return y + (self.scaling * self.lora_B(self.lora_A(x.float()))).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        delta = self.scaling * (self.lora_B.weight @ self.lora_A.weight)               # (out, in) in fp32
        self.base_layer.weight.copy_((self.base_layer.weight.float() + delta).to(self.base_layer.weight.dtype))
        return self.base_layer


def add_lora(model: nn.Module, r: int = 8, lora_alpha: float = 16, target_modules: list[str] | str = "all-linear", **options) -> LoRAConfig:
    """Wrap the targeted linears of `model` in place; only the adapter is trainable afterwards.

    target_modules: a list of names or paths, a regex for the whole path, or "all-linear" (all but the head).
    Raises ValueError where a target matches nothing."""
    config = LoRAConfig(r, lora_alpha, target_modules, **options)
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r: expected a positive integer, got {r!r}")
    paths = target_paths(model, config)
    model.requires_grad_(False)
    for path in paths:
        parent, name = path.rsplit(".", 1)
        rank, scaling = config.of(path)
        setattr(model.get_submodule(parent), name, LoRALinear(model.get_submodule(path), rank, scaling))
    model.lora_config = config
    return config


def target_paths(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Paths of the modules to wrap, in the model's order, by PEFT's matching rules (interop 2.6)."""
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("expected a model without an adapter, got one that has one; merge_lora it first or load the base again")
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path != "lm_head"]
    targets = config.target_modules
    entries = [targets] if isinstance(targets, str) else list(targets or [])
    if not entries:
        raise ValueError("target_modules: expected names of linear modules, got none")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return [path for path in linears if not matches(path, config.exclude_modules)]
    for entry in entries:
        if not any(matches(path, entry if isinstance(targets, str) else [entry]) for path in linears):
            known = sorted({path.rsplit(".", 1)[-1] for path in linears})
            raise ValueError(f"target_modules: {entry!r} matches no linear module; there are {', '.join(known)}")
    paths = [path for path in linears if matches(path, targets) and not matches(path, config.exclude_modules)
             and in_layers(path, config)]
    if not paths:
        raise ValueError("target_modules: nothing is left after exclude_modules and layers_to_transform")
    return paths


def matches(path: str, targets) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == entry or path.endswith("." + entry) for entry in targets or [])


def in_layers(path: str, config: LoRAConfig) -> bool:
    if config.layers_to_transform is None:
        return True
    wanted = config.layers_to_transform
    pattern = config.layers_pattern or r"[^.]*"
    names = "|".join(pattern) if isinstance(pattern, list) else pattern
    index = re.match(rf".*?\.({names})\.(\d+)\.", path)
    return index is not None and int(index.group(2)) in (wanted if isinstance(wanted, list) else [wanted])


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
    return {f"{PREFIX}{path}.{part}.weight": getattr(layer, part).weight
            for path, layer in lora_layers(model).items() for part in ("lora_A", "lora_B")}


def save_adapter(model: nn.Module, directory, base: str | None = None) -> None:
    """adapter_config.json and adapter_model.safetensors, as PEFT and vLLM read them. `base`: what the adapter belongs to."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = asdict(model.lora_config)
    if isinstance(config["target_modules"], str):          # vLLM wants a list, and "all-linear" means other things elsewhere
        config["target_modules"] = sorted({path.rsplit(".", 1)[-1] for path in lora_layers(model)}) \
            if config["target_modules"].lower() == "all-linear" and not config["exclude_modules"] else sorted(lora_layers(model))
        config["exclude_modules"] = None
    elif isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
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
    keys = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "exclude_modules",
            "layers_to_transform", "layers_pattern")
    options = {key: raw[key] for key in keys if raw.get(key) is not None}
    try:
        config = add_lora(model, options.pop("r", 8), options.pop("lora_alpha", 8), **options)
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{path}: {error}") from error
    load_tensors(model, Path(directory) / "adapter_model.safetensors")
    return config


def refuse_options(raw: dict, path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: expected peft_type 'LORA', got {raw.get('peft_type')!r}")
    active = [f"{key} = {json.dumps(raw[key])}" for key, off in REFUSED.items() if raw.get(key) not in (off, None, False, [], {})]
    init = raw.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        active.append(f"init_lora_weights = {json.dumps(init)} (it changes the base weights; convert the adapter with PEFT first)")
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
                parameter.copy_(file.get_tensor(keys[name]))
