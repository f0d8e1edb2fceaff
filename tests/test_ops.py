"""Each step with a written-out gradient against autograd through its plain twin: value to the bit, gradient to rounding."""

import pytest
import torch
import torch.nn.functional as F

from minimon.ops import GatedSiLU, LoRAProduct, Normalize, Rotate


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def lora(x, weight, bias, A, B, scaling=1.3):
    y = F.linear(x, weight, bias)
    return (y + scaling * (x.float() @ A.T @ B.T)).to(y.dtype)


def angles(T, d):
    turns = torch.outer(torch.arange(T).double(), torch.linspace(0.1, 1.0, d // 2).double()).repeat(1, 2)
    return turns.cos(), turns.sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def normalize(x):
    return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)


CASES = {  # name: (written out, its plain twin, shapes of what has a gradient)
    "normalize": (lambda x: Normalize.apply(x, 1e-6), normalize, [(3, 5, 16)]),
    "gated silu": (GatedSiLU.apply, lambda gate, up: F.silu(gate) * up, [(3, 5, 16)] * 2),
    "rotate": (
        lambda x: Rotate.apply(x, *(a.to(x.dtype) for a in angles(5, 8))),
        lambda x: rotate(x, *(a.to(x.dtype) for a in angles(5, 8))),
        [(2, 3, 5, 8)],
    ),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_plain_twins(name, dtype):
    written, plain, shapes = CASES[name]
    ours, theirs = tensors(*shapes, dtype=dtype), tensors(*shapes, dtype=dtype)
    y, z = written(*ours), plain(*theirs)
    assert torch.equal(y, z) and y.dtype == z.dtype
    dy = tensors(y.shape, dtype=y.dtype)[0].detach()
    for a, b in zip(torch.autograd.grad(y, ours, dy), torch.autograd.grad(z, theirs, dy)):
        torch.testing.assert_close(
            a,
            b,
            rtol=2e-2 if dtype == torch.bfloat16 else 1e-5,
            atol=3e-2 if dtype == torch.bfloat16 else 1e-6,
        )


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("biased", (False, True))
@pytest.mark.parametrize("scaling", (1.3, 2.0, 0.25))  # a power of two goes another way
@pytest.mark.parametrize("r", (4, 16, 64))
def test_lora_product_equals_its_plain_twin(dtype, biased, scaling, r):
    x, weight, bias = tensors((3, 5, 96), (200, 96), (200,), dtype=dtype)
    A, B = tensors((r, 96), (200, r), dtype=torch.float32)
    frozen = weight.detach(), bias.detach() if biased else None
    y, z = LoRAProduct.apply(x, *frozen, A, B, scaling), lora(x, *frozen, A, B, scaling)
    assert torch.equal(y, z) and y.dtype == dtype
    dy = tensors(y.shape, dtype=dtype)[0].detach()
    for a, b in zip(torch.autograd.grad(y, (x, A, B), dy), torch.autograd.grad(z, (x, A, B), dy)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * b.abs().max()


def test_a_frozen_input_has_no_gradient():
    x, weight, A, B = tensors((5, 16), (24, 16), (4, 16), (24, 4), dtype=torch.float32)
    LoRAProduct.apply(x.detach(), weight.detach(), None, A, B, 2.0).sum().backward()
    assert x.grad is None and A.grad.abs().sum() > 0 and B.grad.abs().sum() > 0
