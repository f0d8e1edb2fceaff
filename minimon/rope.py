"""Rotary position embedding (Su et al., 2021): angles for the six rope types of config.json.

d: rotated part of head_dim. Frequency k of d/2 is theta^(-2k/d); a rope type rescales the frequencies, and `factor` multiplies
cos and sin. Rotations turn the pair (x_k, x_{k + d/2}): split halves, as every Hugging Face checkpoint expects.
"""

import math

import torch

from minimon.config import RopeConfig


def rope_angles(config: RopeConfig, positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """positions (..., T) -> cos, sin (..., T, d) in fp32, for a text of `length` tokens in all."""
    frequencies, factor = rope_frequencies(config, length)
    angles = positions[..., None].float() * frequencies.to(positions.device)          # (..., T, d/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, D), cos and sin broadcastable to (B, 1, T, d); the last D - d dimensions pass."""
    d = cos.shape[-1]
    rotated, rest = x[..., :d], x[..., d:]
    half = torch.cat((-rotated[..., d // 2:], rotated[..., : d // 2]), dim=-1)
    rotated = rotated * cos + half * sin
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def rope_frequencies(config: RopeConfig, length: int) -> tuple[torch.Tensor, float]:
    """Frequencies (d/2,) and the factor on cos and sin; formulas in each rope type's function."""
    base = 1.0 / config.theta ** (torch.arange(0, config.dim, 2, dtype=torch.int64).float() / config.dim)
    if config.rope_type == "default":
        return base, 1.0
    return {"linear": linear, "dynamic": dynamic, "yarn": yarn, "llama3": llama3, "longrope": longrope}[config.rope_type](
        config, base, length)


def linear(config, base, length):
    """Position interpolation (Chen et al., 2023): f / factor."""
    return base / config.number("factor"), 1.0


def dynamic(config, base, length):
    """NTK-aware: theta grows with the length beyond max_position_embeddings; f unchanged up to there."""
    length = max(length, config.max_positions)
    factor, d = config.number("factor"), config.dim
    theta = config.theta * ((factor * length / config.max_positions) - (factor - 1)) ** (d / (d - 2))
    return 1.0 / theta ** (torch.arange(0, d, 2, dtype=torch.int64).float() / d), 1.0


def yarn(config, base, length):
    """YaRN (Peng et al., 2023): fast rotations kept, slow ones interpolated, a linear ramp between."""
    d, original = config.dim, config.original_positions
    scale = config.scaling.get("factor") or config.max_positions / original

    def dimension(rotations):                  # the k at which a frequency turns this often in the original range
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(config.number("beta_fast", 32)), dimension(config.number("beta_slow", 1))
    if config.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2).float() - low) / (high - low + (0.001 if low == high else 0))).clamp(0, 1)

    def magnitude(a=1.0):
        return 1.0 if scale <= 1 else 0.1 * a * math.log(scale) + 1.0

    mscale, mscale_all = config.scaling.get("mscale"), config.scaling.get("mscale_all_dim")
    factor = config.scaling.get("attention_factor")
    if factor is None:
        factor = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude()
    return base / scale * ramp + base * (1 - ramp), factor


def llama3(config, base, length):
    """Llama 3.1: long wavelengths divided by factor, short ones kept, a ramp in wavelength between."""
    factor, low, high = (config.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi / base
    smooth = ((config.original_positions / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * base / factor + smooth * base, 1.0


def longrope(config, base, length):
    """LongRoPE (Ding et al., 2024): one divisor a frequency, from one of two lists by the text's length."""
    long = length > config.original_positions
    key = "long_factor" if long else "short_factor"
    divisors = config.scaling.get(key)
    if not isinstance(divisors, list) or len(divisors) != config.dim // 2:
        raise ValueError(f"rope_type 'longrope': expected {config.dim // 2} numbers in {key}, got {divisors!r}")
    scale = config.scaling.get("factor") or config.max_positions / config.original_positions
    factor = config.scaling.get("attention_factor")
    if factor is None:
        factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(config.original_positions))
    exponent = torch.arange(0, config.dim, 2, dtype=torch.int64).float() / config.dim
    return 1.0 / (torch.tensor(divisors, dtype=torch.float32) * config.theta ** exponent), factor
