"""Rotary position embedding (Su et al., 2021): angles for the six rope types of config.json, and their keys.

d: rotated part of head_dim. Frequency k of d/2 is theta^(-2k/d); a rope type rescales the frequencies, and
`factor` multiplies cos and sin. Rotations turn the pair (x_k, x_{k + d/2}): split halves, as every Hugging
Face checkpoint expects.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimon.attention import FULL, SLIDING

NEEDED = {  # rope type -> the numbers it cannot do without
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "longrope": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True)
class RopeConfig:
    rope_type: str
    theta: float
    dim: int  # d, the rotated part of head_dim
    max_positions: int  # max_position_embeddings
    original_positions: int  # positions seen before the range was extended
    scaling: dict = field(default_factory=dict, hash=False)
    kept: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def switch(self) -> int | None:
        """Length beyond which the angles depend on the whole text's length; None where they never do."""
        if self.rope_type == "dynamic":
            return self.max_positions
        return self.original_positions if self.rope_type == "longrope" else None

    @property
    def longest_text(self) -> int:
        """Tokens of a text that the base can tell apart; dynamic NTK stretches the trained range by its factor."""
        stretch = self.scaling["factor"] if self.rope_type == "dynamic" else 1
        return int(self.max_positions * stretch)

    def frequencies(self, length: int, device=None) -> tuple[Tensor, float]:
        """Frequencies (d/2,) on `device` and the factor on cos and sin, for a text of `length` tokens.

        They stay on the device: one copy up to the switch, one beyond (dynamic: one a length)."""
        beyond = self.switch is not None and length > self.switch
        key = length if beyond and self.rope_type == "dynamic" else beyond, device
        if key not in self.kept:
            frequencies, factor = rope_frequencies(self, length)
            self.kept[key] = frequencies.to(device), factor
        return self.kept[key]


def rope_frequencies(config: RopeConfig, length: int) -> tuple[Tensor, float]:
    """Frequencies (d/2,) on the CPU and the factor on cos and sin; formulas in each rope type's function."""
    return RESCALE[config.rope_type](config, inverse_powers(config.theta, config.dim), length)


def inverse_powers(theta, d, divisors=1.0):
    """(d/2,): theta^(-2k/d), each divided by its divisor."""
    return 1.0 / (divisors * theta ** (torch.arange(0, d, 2, device="cpu").float() / d))


def default(config, base, length):
    return base, 1.0


def linear(config, base, length):
    """Position interpolation (Chen et al., 2023): f / factor."""
    return base / config.scaling["factor"], 1.0


def dynamic(config, base, length):
    """NTK-aware: theta grows with the length beyond max_position_embeddings; f unchanged up to there."""
    if length <= config.max_positions:
        return base, 1.0
    factor, d = config.scaling["factor"], config.dim
    growth = factor * torch.tensor(length, device="cpu") / config.max_positions - (factor - 1)
    return inverse_powers(config.theta * growth ** (d / (d - 2)), d), 1.0


def yarn(config, base, length):
    """YaRN (Peng et al., 2023): fast rotations kept, slow ones interpolated, a linear ramp between."""
    d, original, given = config.dim, config.original_positions, config.scaling
    scale = given.get("factor") or config.max_positions / original

    def dimension(rotations):  # the k at which a frequency turns this often in the original range
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(given.get("beta_fast") or 32), dimension(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = (torch.arange(d // 2, device="cpu").float() - low) / (high - low or 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return inverse_powers(config.theta, d, scale) * (1 - keep) + base * keep, yarn_factor(given, scale)


def yarn_factor(given, scale):
    def magnitude(a=1.0):
        return 1.0 if scale <= 1 else 0.1 * a * math.log(scale) + 1.0

    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    if given.get("mscale") and given.get("mscale_all_dim"):
        return magnitude(given["mscale"]) / magnitude(given["mscale_all_dim"])
    return magnitude()


def llama3(config, base, length):
    """Llama 3.1: long wavelengths divided by factor, short ones kept, a ramp in wavelength between."""
    factor, low, high = (config.scaling[key] for key in NEEDED["llama3"])
    wavelength = 2 * math.pi / base
    smooth = ((config.original_positions / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * base / factor + smooth * base, 1.0


def longrope(config, base, length):
    """LongRoPE (Ding et al., 2024): one divisor a frequency, from one of two lists by the text's length."""
    original, given = config.original_positions, config.scaling
    divisors = torch.tensor(given["long_factor" if length > original else "short_factor"], device="cpu")
    frequencies = inverse_powers(config.theta, config.dim, divisors.float().view(config.dim // 2))
    scale, factor = given.get("factor") or config.max_positions / original, given.get("attention_factor")
    if factor is None:
        factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
    return frequencies, factor


RESCALE = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "longrope": longrope,
    "llama3": llama3,
}


def read_rope(table, family, head_dim):
    """Layer type -> RopeConfig, from config.json's ConfigTable.

    Both generations are read: rope_theta and rope_scaling (transformers 4), rope_parameters (5); the old key
    wins."""
    old, new, theta = table.table("rope_scaling"), table.table("rope_parameters"), table("rope_theta")
    limit = table.size("max_position_embeddings")
    defaults = {
        "rope_theta": theta,
        "original_max_position_embeddings": limit,
        "partial_rotary_factor": table("partial_rotary_factor"),
    }
    if family not in ("gemma3_text", "olmo3"):
        original = table("original_max_position_embeddings")  # at the top level it wins
        wins = {} if original is None else {"original_max_position_embeddings": original}
        scaling = (old if old.raw else new).over(defaults, **wins)
        rope = rope_config(scaling, limit, family, head_dim)
        return {FULL: rope, SLIDING: rope}
    if new.raw and not new.raw.keys() & {FULL, SLIDING}:
        expected = f"expected a table for {FULL} and one for {SLIDING}"
        raise ValueError(f"rope_parameters: {expected}, got {new.raw!r}")
    default_theta = table.defaults["rope_theta"]
    if family == "olmo3" and not new.raw and theta != default_theta:
        raise ValueError(
            f"rope_theta: expected {default_theta}, got {theta!r}, which versions of transformers read "
            f"differently for the sliding layers; give {FULL} and {SLIDING} theirs in rope_parameters"
        )
    full, local_theta = new.table(FULL), table("rope_local_base_freq") or theta
    scaling = old if old.raw else full  # for the full layers alone
    tables = {
        FULL: scaling.over({**defaults, **full.raw}),
        SLIDING: new.table(SLIDING).over({**defaults, "rope_theta": local_theta}),
    }
    return {kind: rope_config(tables[kind], limit, family, head_dim) for kind in tables}


def rope_config(table, limit, family, head_dim):
    """table: of one kind of layers; limit: max_position_embeddings."""
    key = "type" if table("rope_type") is None and table("type") is not None else "rope_type"
    rope_type = table(key) or "default"
    if family == "phi3" and rope_type in ("su", "yarn"):
        rope_type = "longrope"  # older names of the same thing
    table.check(key, rope_type in tuple(NEEDED), f"one of {', '.join(NEEDED)}")
    partial = 1.0  # by default only phi3 rotates a part of each head, as in transformers
    if rope_type != "default" or family == "phi3":
        partial = table.number("partial_rotary_factor")
    d = int(head_dim * partial)
    table.check("partial_rotary_factor", 2 <= d <= head_dim, f"a part of head_dim = {head_dim}")
    for name in NEEDED[rope_type]:
        table.number(name)
    original = table.size("original_max_position_embeddings")
    scaling = {**table.defaults, **table.raw}
    config = RopeConfig(rope_type, table.number("rope_theta"), d, limit, original, scaling)
    if not all(is_finite(config, length) for length in (1, limit + 1)):
        expected = "expected settings that give finite angles"
        raise ValueError(f"{table.where}{key}: {expected}, got {scaling!r}")
    return config


def is_finite(config, length):
    try:
        frequencies, factor = rope_frequencies(config, length)
        return bool((frequencies * factor).isfinite().all())
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # a logarithm of one, a word for a number
        return False
