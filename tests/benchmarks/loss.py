"""The loss alone: `python tests/benchmarks/loss.py --shape qwen3-0.6b --batch 32 [--json]`.

Hidden states to loss and their gradient, with a frozen head. minimon's one-token loss on the B answer positions; the peer's default way on
logits of all P + T positions of each row (transformers' own loss); its best way on logits at the answers alone; and torch's fused
linear_cross_entropy there. The sides must agree in the loss and in the norm of the gradient. FLOPs that it needs: z = W h and
W' softmax(z), 4 B V C.
"""

import common
import torch
import torch.nn.functional as F

from minimon.loss import vocab_token_loss


def inputs(o, positions: int):
    """Hidden states (B, positions, C), the last of them the same for every side; the head (V, C); answers (B,)."""
    config, g = common.config_of(o), torch.Generator().manual_seed(0)
    dtype, C = getattr(torch, o.dtype), config.hidden_size
    head = torch.randn(config.vocab_size, C, generator=g).mul_(C**-0.5).to(o.device, dtype)
    last = torch.randn(o.batch, 1, C, generator=g)
    answers = torch.randint(config.vocab_size, (o.batch,), generator=g).to(o.device)
    hidden = (
        torch.cat((torch.randn(o.batch, positions - 1, C, generator=g), last), dim=1)
        .to(o.device, dtype)
        .requires_grad_()
    )
    return hidden, head, answers


def side(o, positions: int, loss) -> dict:
    hidden, head, answers = inputs(o, positions)

    def work() -> list[float]:
        hidden.grad = None
        value = loss(hidden, head, answers)
        value.backward()
        return [value.item(), hidden.grad.float().norm().item()]

    return common.timed(work, o)


def all_positions(hidden, head, answers):
    from transformers.loss.loss_utils import ForCausalLMLoss

    labels = torch.full(hidden.shape[:2], -100, device=hidden.device)
    labels[:, -1] = answers
    return ForCausalLMLoss(F.linear(hidden, head), None, vocab_size=len(head), shift_labels=labels)


def fused(hidden, head, answers):
    options = torch.nn.LinearCrossEntropyOptions()
    return (
        F.linear_cross_entropy(hidden[:, 0], head, answers, reduction="none", options=options).float().mean()
    )  # in bf16 means are off


SIDES = {
    "minimon": lambda o, folder: side(
        o, 1, lambda hidden, head, answers: vocab_token_loss(hidden[:, 0], head, answers)
    ),
    common.BEST: lambda o, folder: side(
        o, 1, lambda hidden, head, answers: F.cross_entropy(F.linear(hidden[:, 0], head).float(), answers)
    ),
    "peer, default": lambda o, folder: side(o, o.prefix + o.suffix, all_positions),
    "torch, fused": lambda o, folder: side(o, 1, fused),
}


def flops(o, config) -> int:
    return 4 * o.batch * config.vocab_size * config.hidden_size


if __name__ == "__main__":
    common.run(__file__, __doc__, SIDES, flops, batch=32, repeats=9)
