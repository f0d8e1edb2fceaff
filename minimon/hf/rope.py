"""Rotary position embedding (Su et al., 2021): angles for the six rope types of config.json, and its settings there.

d: rotated part of head_dim. Frequency k of d/2 is theta^(-2k/d); a rope type rescales the frequencies, and `factor` multiplies
cos and sin. Rotations turn the pair (x_k, x_{k + d/2}): split halves, as every Hugging Face checkpoint expects.
"""

import math
from dataclasses import dataclass, field

import torch

FULL, SLIDING = "full_attention", "sliding_attention"
NEEDED = {                                     # rope type -> the numbers it cannot do without
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": (), "longrope": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
OPTIONAL = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class RopeConfig:
    rope_type: str
    theta: float
    dim: int                                   # d, the rotated part of head_dim
    max_positions: int                         # max_position_embeddings
    original_positions: int                    # positions seen before the range was extended
    scaling: dict = field(default_factory=dict, hash=False)

    @property
    def switch(self) -> int | None:
        """Length beyond which the angles depend on the whole text's length; None where they never do."""
        return {"dynamic": self.max_positions, "longrope": self.original_positions}.get(self.rope_type)

    @property
    def longest_text(self) -> int:
        """Tokens of a text that the base can tell apart; dynamic NTK stretches the trained range by its factor."""
        return self.max_positions * (int(self.scaling["factor"]) if self.rope_type == "dynamic" else 1)

    def frequencies(self, length: int, device="cpu") -> tuple[torch.Tensor, float]:
        """(d / 2,) and the factor on cos and sin, for a text of `length` tokens in all."""
        frequencies, factor = rope_frequencies(self, length)
        return frequencies.to(device), factor


def rope_frequencies(config: RopeConfig, length: int) -> tuple[torch.Tensor, float]:
    """Frequencies (d/2,) and the factor on cos and sin; formulas in each rope type's function."""
    base = inverse_powers(config.theta, config.dim)
    if config.rope_type == "default":
        return base, 1.0
    return {"linear": linear, "dynamic": dynamic, "yarn": yarn, "llama3": llama3, "longrope": longrope}[config.rope_type](
        config, base, length)


def inverse_powers(theta, d: int, divisors=1.0) -> torch.Tensor:
    """(d/2,): theta^(-2k/d), each divided by its divisor."""
    return 1.0 / (divisors * theta ** (torch.arange(0, d, 2, device="cpu").float() / d))


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

    def dimension(rotations):                  # the k at which a frequency turns this often in the original range
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(given.get("beta_fast") or 32), dimension(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    keep = 1 - ((torch.arange(d // 2, device="cpu").float() - low) / (high - low or 0.001)).clamp(0, 1)

    def magnitude(a=1.0):
        return 1.0 if scale <= 1 else 0.1 * a * math.log(scale) + 1.0

    factor, mscale, mscale_all = (given.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if factor is None:
        factor = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude()
    return inverse_powers(config.theta, d, scale) * (1 - keep) + base * keep, factor


def llama3(config, base, length):
    """Llama 3.1: long wavelengths divided by factor, short ones kept, a ramp in wavelength between."""
    factor, low, high = (config.scaling[key] for key in NEEDED["llama3"])
    wavelength = 2 * math.pi / base
    smooth = ((config.original_positions / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * base / factor + smooth * base, 1.0


def longrope(config, base, length):
    """LongRoPE (Ding et al., 2024): one divisor a frequency, from one of two lists by the text's length."""
    divisors = torch.tensor(config.scaling["long_factor" if length > config.original_positions else "short_factor"], device="cpu")
    scale = config.scaling.get("factor") or config.max_positions / config.original_positions
    factor = config.scaling.get("attention_factor")
    if factor is None:
        factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(config.original_positions))
    return inverse_powers(config.theta, config.dim, divisors.float()), factor


def read_rope(get, model_type: str, head_dim: int) -> dict[str, RopeConfig]:
    """Layer type -> RopeConfig, from config.json's Settings `get`.

    Both generations are read: rope_theta and rope_scaling (transformers 4), rope_parameters (5); the old key wins."""
    scaling, params, theta = get.table("rope_scaling"), get.table("rope_parameters"), get("rope_theta")
    defaults = {"rope_theta": theta, "original_max_position_embeddings": get("max_position_embeddings"),
                "partial_rotary_factor": 1.0 if get("partial_rotary_factor") is None else get("partial_rotary_factor")}
    if model_type not in ("gemma3_text", "olmo3"):
        table = (scaling if scaling.raw else params).over(defaults)
        original = table if get("original_max_position_embeddings") is None else get       # the file's top level wins
        rope = rope_config(table, original, get, model_type, head_dim)
        return {FULL: rope, SLIDING: rope}
    if params.raw and not params.raw.keys() & {FULL, SLIDING}:
        raise ValueError(f"rope_parameters: expected a table for {FULL} and one for {SLIDING}, got {params.raw!r}")
    if model_type == "olmo3" and not params.raw and theta != get.family["rope_theta"]:
        raise ValueError(f"rope_theta: expected {get.family['rope_theta']}, got {theta!r}, which versions of transformers read "
                         f"differently for the sliding layers; give {FULL} and {SLIDING} theirs in rope_parameters")
    full = params.table(FULL)                            # scaling is for the full layers alone
    full = (scaling.over(full.raw) if scaling.raw else full).over(defaults)
    sliding = params.table(SLIDING).over({**defaults, "rope_theta": get("rope_local_base_freq") or theta})
    return {FULL: rope_config(full, full, get, model_type, head_dim),
            SLIDING: rope_config(sliding, sliding, get, model_type, head_dim)}


def rope_config(table, original, get, model_type: str, head_dim: int) -> RopeConfig:
    """`table`: Settings of one kind of layers. `original`: those that name original_max_position_embeddings."""
    key = "type" if table("rope_type") is None and table("type") is not None else "rope_type"
    rope_type = table(key) or "default"
    if model_type == "phi3" and rope_type in ("su", "yarn"):
        rope_type = "longrope"                           # older names of the same thing
    table.check(key, rope_type in tuple(NEEDED), f"one of {', '.join(NEEDED)}")
    partial = 1.0                                        # by default only phi3 rotates a part of each head, as in transformers
    if rope_type != "default" or model_type == "phi3":
        partial = table.number("partial_rotary_factor")
    d = int(head_dim * partial)
    table.check("partial_rotary_factor", 2 <= d <= head_dim, f"a part of head_dim = {head_dim}")
    for number in NEEDED[rope_type]:
        table.number(number)
    for number in OPTIONAL:
        table.check(number, table(number) is None or type(table(number)) in (int, float), "a number or null")
    for name in ("short_factor", "long_factor") if rope_type == "longrope" else ():
        table.check(name, type(table(name)) is list and len(table(name)) == d // 2 and all(
            type(x) in (int, float) and 0 < x < 1e38 for x in table(name)), f"a list of {d // 2} positive numbers")
    config = RopeConfig(rope_type, table.number("rope_theta"), d, get.size("max_position_embeddings"),
                        original.size("original_max_position_embeddings"), {**table.family, **table.raw})
    if not all(finite(config, length) for length in (1, config.max_positions + 1)):
        raise ValueError(f"{table.where}{key}: expected settings that give finite angles, got {config.scaling!r}")
    return config


def finite(config: RopeConfig, length: int) -> bool:
    try:
        frequencies, factor = rope_frequencies(config, length)
        return bool((frequencies * factor).isfinite().all())
    except (ArithmeticError, RuntimeError):              # a logarithm of one, a number beyond all bounds
        return False
