"""One training step: `python tests/benchmarks/train_step.py --shape 0.1B --prefix 1024 --suffix 128 --batch 16 [--json]`.

Forward, backward and AdamW on a LoRA adapter of all linears, on B rows that share P tokens and have T of their own. The peer's default way
gives the model labels, -100 but for the answer; its best way asks for logits at one position (logits_to_keep=1). Both use SDPA. The sides
must agree in loss and in the norm of the gradient. FLOPs that a step needs: `Need.step` in common.py.
"""

import common
import torch
import torch.nn.functional as F

from minimon.batch import pack
from minimon.lora import adapter_tensors
from minimon.loss import vocab_token_loss


def minimon(o, folder) -> dict:
    model = common.minimon_model(o, folder)
    rows, answers = common.rows_of(folder, o.device)
    batch = pack([rows])
    tokens, answers = batch.tokens.to(o.device), answers[batch.order]

    def loss():
        hidden = model.last_hidden(tokens, batch.spans)  # (B, C)
        return vocab_token_loss(hidden, model.lm_head.weight, answers)

    return common.timed(stepper(loss, list(adapter_tensors(model).values())), o)


def peer(o, folder, best: bool) -> dict:
    model = common.peer_model(o, folder, trainable=True).train()
    rows, answers = common.rows_of(folder, o.device)
    tokens = torch.tensor(rows, device=o.device)  # (B, P + T)
    labelled = torch.cat(
        (tokens, answers[:, None]), dim=1
    )  # (B, P + T + 1): a label is that of the token before
    labels = torch.full_like(labelled, -100)
    labels[:, -1] = answers

    def loss():
        if best:
            return F.cross_entropy(
                model(input_ids=tokens, logits_to_keep=1, use_cache=False).logits[:, -1].float(), answers
            )
        return model(input_ids=labelled, labels=labels, use_cache=False).loss

    return common.timed(stepper(loss, [p for p in model.parameters() if p.requires_grad]), o)


def stepper(loss, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> list[float]:
        value = loss()
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        optimizer.step()
        optimizer.zero_grad()
        return [value.item(), norm.item()]

    return step


SIDES = {
    "minimon": minimon,
    common.BEST: lambda o, folder: peer(o, folder, True),
    "peer, default": lambda o, folder: peer(o, folder, False),
}


def flops(o, config) -> int:
    return common.Need(config, o.prefix, o.suffix, o.batch, o.r).step()


if __name__ == "__main__":
    common.run(__file__, __doc__, SIDES, flops)
