"""Two steps of a block with their gradients written out: fewer passes over memory than autograd makes of them, the same values.

Forward they round as the formulas beside them do in PyTorch, so logits stay equal to transformers' to the bit. n stands for any
leading dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


class LoRAProduct(Function):
    """x (n, in) -> W x + b + scaling B A x (n, out), W (out, in) frozen, A (R, in) and B (out, R) in fp32 whatever W's dtype.

    dA = scaling B' dy x',  dB = scaling dy (A x)',  dx = W' dy + scaling A' B' dy, where ' is the transpose."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
    ) -> Tensor:
        low = x.float() @ A.T  # (n, R)
        ctx.save_for_backward(x, low, weight, A, B)
        ctx.scaling = scaling
        y = F.linear(x, weight, bias)
        if y.dtype == B.dtype and math.frexp(scaling)[0] == 0.5:  # times a power of two is exact: one pass
            y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), B.T, alpha=scaling)
            return y
        return (low @ B.T).mul_(scaling).add_(y).to(y.dtype)  # added in fp32, rounded once

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, low, weight, A, B = ctx.saved_tensors
        shape = x.shape
        x, low, dy = (a.reshape(-1, a.shape[-1]) for a in (x, low, dy))
        dlow = (dy.float() @ B).mul_(ctx.scaling)  # (n, R)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            dx = (dx.addmm_(dlow, A) if dx.dtype == A.dtype else dx.add_(dlow @ A)).view(shape)
        return dx, None, None, dlow.T @ x.float(), (dy.float().T @ low).mul_(ctx.scaling), None


class GatedSiLU(Function):
    """gate, up (n, F) -> silu(gate) up."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)
