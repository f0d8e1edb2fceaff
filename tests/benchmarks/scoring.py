"""Scoring: `python tests/benchmarks/scoring.py --shape 0.1B --batch 256 [--json]`.

P(label) of B rows that share P tokens and have T of their own, base and adapter. The peer's best way asks for logits at one position, at
the batch size that is fastest on the first rows; its default way forms all logits, 8 rows at a time. Both use SDPA. The sides must agree in
every P. FLOPs that it needs: `Need.forward` in common.py.
"""

import time

import common
import torch

from minimon.batch import Encoded
from minimon.evaluate import read_encoded

LABELS = [5, 7]  # token ids
SIZES = (1, 4, 16, 64)  # rows of a batch that the peer tries
TRIED = 64  # rows that it tries them on


def minimon(o, folder) -> dict:
    model, (rows, _) = common.minimon_model(o, folder), common.rows_of(folder, o.device)
    return common.timed(
        lambda: read_encoded(model, Encoded(rows, LABELS, [0] * len(rows), [])).P[:, 0].tolist(), o
    )


@torch.inference_mode()
def peer(o, folder, best: bool) -> dict:
    model = common.peer_model(o, folder).eval()
    tokens = torch.tensor(common.rows_of(folder, o.device)[0], device=o.device)  # (B, P + T)

    def score(tokens, size):
        kept = {"logits_to_keep": 1} if best else {}
        parts = [
            model(input_ids=part, use_cache=False, **kept).logits[:, -1, LABELS].float().softmax(-1)
            for part in tokens.split(size)
        ]
        return torch.cat(parts)[:, 0].tolist()

    def seconds(size):
        start = time.perf_counter()
        score(tokens[:TRIED], size)
        return time.perf_counter() - start

    sizes = [size for size in SIZES if size <= min(TRIED, len(tokens))]
    score(tokens[:1], 1)
    size = min(sizes, key=seconds) if best else 8
    return {**common.timed(lambda: score(tokens, size), o), "note": f"{size} rows at a time"}


SIDES = {
    "minimon": minimon,
    common.BEST: lambda o, folder: peer(o, folder, True),
    "peer, default": lambda o, folder: peer(o, folder, False),
}


def flops(o, config) -> int:
    return common.Need(config, o.prefix, o.suffix, o.batch, o.r).forward()


if __name__ == "__main__":
    common.run(__file__, __doc__, SIDES, flops, batch=64, repeats=3)
