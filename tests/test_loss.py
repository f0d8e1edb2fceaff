"""The fused losses against their plain twins: full logits, torch's cross-entropy, autograd."""

import pytest
import torch
import torch.nn.functional as F

from minimon import loss as module
from minimon.loss import label_token_loss, vocab_token_loss

B, C, V = 6, 24, 101


def tensors(dtype, seed=0, size=3.0):
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(B, C, generator=g) * size).to(dtype).requires_grad_()
    weight = torch.randn(V, C, generator=g).to(dtype)
    return hidden, weight, torch.randint(0, V, (B,), generator=g)


def plain(hidden, weight, targets, scale=1.0):
    """The specification: logits of the whole batch in fp64."""
    return F.cross_entropy(hidden.double() @ weight.double().T * scale, targets)


@pytest.mark.parametrize("chunk", [1, 7, 100, 101, 8192])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_vocabulary_loss_equals_full_logits_in_value_and_gradient(monkeypatch, chunk, dtype, tolerance):
    monkeypatch.setattr(module, "CHUNK", chunk)
    hidden, weight, targets = tensors(dtype)
    fused = vocab_token_loss(hidden, weight, targets)
    (grad,) = torch.autograd.grad(3 * fused, hidden)
    twin = plain(hidden, weight, targets)
    (expected,) = torch.autograd.grad(3 * twin, hidden)
    assert fused.dtype == torch.float32 and grad.dtype == dtype
    assert abs(fused.item() - twin.item()) < 1e-5 * twin.item()  # accumulated in fp32 whatever the dtype
    assert (grad.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_loss_equals_cross_entropy_over_the_label_tokens(dtype):
    hidden, weight, _ = tensors(dtype)
    ids, targets = torch.tensor([17, 4, 90]), torch.tensor([0, 2, 1, 1, 0, 2])
    fused = label_token_loss(hidden, weight, ids, targets)
    (grad,) = torch.autograd.grad(fused, hidden)
    twin = plain(hidden, weight[ids], targets)
    (expected,) = torch.autograd.grad(twin, hidden)
    assert abs(fused.item() - twin.item()) < 1e-5 * max(twin.item(), 1)
    assert (grad.double() - expected).abs().max() <= 1e-2 * expected.abs().max()
    # a plain list will do
    assert label_token_loss(hidden, weight, [17, 4, 90], targets).item() == fused.item()


def test_the_loss_carries_the_factor_of_families_that_scale_their_logits():
    hidden, weight, targets = tensors(torch.float32)
    fused, twin = vocab_token_loss(hidden, weight, targets, scale=0.25), plain(hidden, weight, targets, 0.25)
    (grad,), (expected,) = torch.autograd.grad(fused, hidden), torch.autograd.grad(twin, hidden)
    assert torch.allclose(grad, expected, atol=1e-6) and abs(fused.item() - twin.item()) < 1e-5


def test_large_logits_neither_overflow_nor_lose_the_gradient(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    hidden, weight, targets = tensors(torch.float32, size=300.0)
    fused = vocab_token_loss(hidden, weight, targets)
    (grad,) = torch.autograd.grad(fused, hidden)
    assert torch.isfinite(fused) and torch.isfinite(grad).all() and grad.abs().max() > 0
    assert abs(fused.item() - plain(hidden, weight, targets).item()) < 1e-4 * fused.item()


def test_a_loss_that_is_not_finite_says_so():
    hidden, weight, targets = tensors(torch.float32)
    assert torch.isnan(vocab_token_loss(hidden.detach() * float("nan"), weight, targets))


def test_without_a_gradient_to_form_none_is_formed():
    hidden, weight, targets = tensors(torch.float32)
    assert not vocab_token_loss(hidden.detach(), weight, targets).requires_grad


def test_a_head_that_is_not_frozen_is_refused():
    hidden, weight, targets = tensors(torch.float32)
    with pytest.raises(ValueError, match="frozen head"):
        vocab_token_loss(hidden, weight.requires_grad_(), targets)


@pytest.mark.parametrize(
    "change",
    [
        lambda h, w, t: (h, w, t[:-1]),
        lambda h, w, t: (h[:, 1:], w, t),
        lambda h, w, t: (h, w, t + V),
        lambda h, w, t: (h, w, t - V),
    ],
)
def test_wrong_shapes_and_targets_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        vocab_token_loss(*change(*tensors(torch.float32)))


def test_no_value_on_a_device_is_waited_for():
    """Tensors on meta have none, and raise where Python asks for one."""
    with torch.device("meta"):
        hidden, weight, targets = (
            torch.empty(B, C, requires_grad=True),
            torch.empty(V, C),
            torch.zeros(B, dtype=torch.long),
        )
        loss = vocab_token_loss(hidden, weight, targets)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert loss.shape == () and grad.shape == (B, C)
        with pytest.raises(RuntimeError):
            int(targets.min())


def test_no_logits_of_the_whole_vocabulary_outlive_a_chunk(monkeypatch):
    """The largest tensor alive during the loss is a chunk of the head, whatever V is."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            new = out if isinstance(out, torch.Tensor) else None
            if new is not None and not any(
                isinstance(a, torch.Tensor)
                and a.untyped_storage().data_ptr() == new.untyped_storage().data_ptr()
                for a in args
            ):
                self.elements = max(self.elements, new.numel())
            return out

    monkeypatch.setattr(module, "CHUNK", 16)
    g = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(B, C, generator=g, requires_grad=True),
        torch.randn(4096, C, generator=g).bfloat16(),
    )
    with Largest() as seen:
        vocab_token_loss(hidden, weight, torch.arange(B)).backward()
    assert 0 < seen.elements <= max(16 * C, B * C)
