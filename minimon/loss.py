"""One-token losses. The logits are never all there at once: one pass over the head, a chunk at a time, gives loss and gradient.

B rows, C hidden_size, V vocabulary, N labels. With z_i = W h_i (times `scale`, where logits are scaled):

    L = (1/B) sum_i (log sum_v exp z_iv - z_iy)          dL/dh_i = (scale/B) (softmax(z_i) W - W[y_i])

the cross-entropy over the whole vocabulary or over the label rows of W alone. W is frozen.
"""

import torch
from torch import Tensor

CHUNK = 8192  # rows of the head in fp32 at a time


def vocab_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0) -> Tensor:
    """hidden (B, C), head weight (V, C), targets (B,) token ids -> mean loss () in fp32.

    What SFT on a one-token answer minimises."""
    return OneTokenLoss.apply(hidden, weight, targets, scale)


def label_token_loss(hidden: Tensor, weight: Tensor, label_ids, targets: Tensor, *, scale: float = 1.0):
    """The same over the label tokens alone: label_ids (N,) token ids, targets (B,) indices into them."""
    label_ids = torch.as_tensor(label_ids, device=weight.device)
    return OneTokenLoss.apply(hidden, weight[label_ids], targets, scale)


class OneTokenLoss(torch.autograd.Function):
    """Walks the head once in chunks with a running maximum: online softmax (Milakov and Gimelshein, 2018)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, scale):
        check(hidden, weight, targets)
        h = hidden.detach().float() * scale  # (B, C)
        maximum = h.new_full((len(h),), float("-inf"))  # (B,) running maximum of z
        total = torch.zeros_like(maximum)  # (B,) sum of exp(z - maximum)
        # (B, C) sum of exp(z - maximum) W
        weighted = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        for rows in weight.split(CHUNK):
            rows = rows.float()  # (chunk, C)
            z = h @ rows.T  # (B, chunk)
            highest = torch.maximum(maximum, z.amax(dim=1))
            z = z.sub_(highest[:, None]).exp_()
            shrink = (maximum - highest).exp_()
            total = total * shrink + z.sum(dim=1)
            if weighted is not None:
                weighted = torch.addmm(weighted * shrink[:, None], z, rows)
            maximum = highest
        answer = weight[targets].float()  # (B, C)
        losses = maximum + total.log() - (h * answer).sum(dim=1)  # (B,)
        if weighted is not None:
            ctx.save_for_backward((weighted / total[:, None] - answer) * (scale / len(h)))
            ctx.dtype = hidden.dtype
        return losses.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return (ctx.saved_tensors[0] * grad).to(ctx.dtype), None, None, None


def check(hidden, weight, targets):
    if weight.requires_grad:
        raise ValueError(
            "expected a frozen head, got a weight that requires a gradient; call weight.requires_grad_(False)"
        )
    if targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (hidden, weight, targets))
        raise ValueError(f"expected hidden (B, C), weight (V, C), targets (B,); got {shapes}")
    if targets.device.type != "cpu" or not len(targets):
        return  # to look here would be to wait for the device, which refuses an index beyond the end by itself
    low, high = int(targets.min()), int(targets.max())
    if not 0 <= low <= high < len(weight):
        raise ValueError(f"expected targets from 0 to {len(weight) - 1}, got {low} to {high}")
