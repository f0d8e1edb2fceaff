"""Model x tasks -> per-row scores: P(label) at the answer position, the prompt run once for a whole task."""

import numpy as np
import torch

from minimon.batch import common_prefix, encode_row, make_batch, token_batches
from minimon.lora import enable_lora
from minimon.metrics import Scores
from minimon.model import Decoder
from minimon.tasks import Mixture, Task
from minimon.tokenizer import Tokenizer

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}             # a CPU gains nothing from more, and pads more


def evaluate(model: Decoder, tokenizer: Tokenizer, mixture: Mixture, *, batch_tokens: int | None = None, on_rows=None):
    """Every split of the mixture under base (the adapter off) and adapter -> {split: {group: [Scores]}}.

    on_rows(n) is called after n more rows; there are `evaluation_rows` of them."""
    scores = {split: {group: [] for group in groups} for split, groups in mixture.splits.items()}
    for split, groups in mixture.splits.items():
        for group, tasks in groups.items():
            for task in tasks:
                rows, sides = mixture.test_rows(task), []
                for enabled in (False, True):
                    enable_lora(model, enabled)
                    sides.append(score(model, tokenizer, task, rows, batch_tokens=batch_tokens, on_rows=on_rows).numpy())
                scores[split][group].append(Scores(task.name, task.domain, np.array([row.label for row in rows]),
                                                   np.array([row.text for row in rows]), *sides))
    return scores


def evaluation_rows(mixture: Mixture) -> int:
    """Rows that `evaluate` scores, base and adapter together."""
    return 2 * sum(len(mixture.test_rows(task)) for groups in mixture.splits.values() for tasks in groups.values() for task in tasks)


@torch.inference_mode()
def score(model: Decoder, tokenizer: Tokenizer, task: Task, rows, *, batch_tokens: int | None = None, on_rows=None) -> torch.Tensor:
    """P(label | prompt, text) of each row (a tasks.Row or a text): (rows, N labels) in fp32 on the CPU, labels in the task's order.

    P = softmax over the label tokens of z at the answer position. batch_tokens: of a forward pass, padding
    included; None for BATCH_TOKENS. on_rows(n) is called after n more rows."""
    label_ids = torch.tensor(tokenizer.label_ids(list(task.labels)))
    ids = [encode_row(tokenizer, task, row if isinstance(row, str) else row.text) for row in rows]
    probabilities = torch.empty(len(ids), len(label_ids))
    if not ids:
        return probabilities
    device = model.lm_head.weight.device
    head = model.lm_head.weight[label_ids.to(device)].float()                          # (N, C)
    P, switch = common_prefix(ids), rope_switch(model)
    cached, alone = [], []
    for i, row in enumerate(ids):
        (cached if switch is None or len(row) <= switch else alone).append(i)
    prefix = model.prefix(torch.tensor([ids[0][:P]], device=device), switch) if P and cached else None
    batch_tokens = batch_tokens or BATCH_TOKENS["cuda" if device.type == "cuda" else "cpu"]
    batches = [[cached[i] for i in batch] for batch in token_batches([len(ids[i]) - P for i in cached], batch_tokens)]
    for batch, cache, start in [(batch, prefix, P if prefix else 0) for batch in batches] + [([i], None, 0) for i in alone]:
        part = make_batch([ids[i] for i in batch], [0] * len(batch), start).to(device)
        hidden = model(part.suffix, cache, at=part.lengths - 1)                        # (B, C)
        z = hidden.float() @ head.T / model.config.logits_scaling                      # (B, N)
        probabilities[batch] = z.softmax(dim=-1).cpu()
        if on_rows:
            on_rows(len(batch))
    return probabilities


def rope_switch(model: Decoder) -> int | None:
    """Rows longer than this rotate otherwise (dynamic NTK, longrope), so they can't share a prefix with shorter ones."""
    return min((rope.switch for rope in model.config.rope.values() if rope.switch), default=None)
