"""Each step with a written-out gradient against autograd through its plain twin: value to the bit, gradient to rounding."""

import pytest
import torch
import torch.nn.functional as F

from minimon.ops import GatedSiLU, LoRAProduct


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def lora(x, weight, bias, A, B, scaling=1.3):
    y = F.linear(x, weight, bias)
    return (y + scaling * (x.float() @ A.T @ B.T)).to(y.dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_gated_silu_equals_its_plain_twin(dtype):
    ours, theirs = tensors(*[(3, 5, 16)] * 2, dtype=dtype), tensors(*[(3, 5, 16)] * 2, dtype=dtype)
    y, z = GatedSiLU.apply(*ours), F.silu(theirs[0]) * theirs[1]
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
