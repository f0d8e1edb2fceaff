"""Rotary position embedding of queries and keys."""

import torch

from minimon.ops import Rotate


def rope_angles(config, positions: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """positions (..., T) -> cos, sin (..., T, d) in fp32, for a text of `length` tokens in all."""
    frequencies, factor = config.frequencies(length)
    angles = positions[..., None].float() * frequencies.to(positions.device)          # (..., T, d/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, D), cos and sin broadcastable to (B, 1, T, d); the last D - d dimensions pass."""
    d = cos.shape[-1]
    rotated, rest = Rotate.apply(x[..., :d], cos, sin), x[..., d:]
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
