"""Decoding: `python tests/benchmarks/decoding.py --shape 0.1B --batch 16 --new 64 [--json]`.

Greedy, --new tokens for each of B prompts that share P tokens and have T of their own, base and adapter, none ended early. The peer's best
way is `generate` on all rows at once; its default way row by row. Both use SDPA and a cache. The sides must begin with the same tokens (with
random weights later ones may be as good as equally likely). FLOPs that it needs: those of scoring (`Need.forward` in common.py), then of each
new token, whose queries see all that is cached.
"""

import common
import torch

from minimon.generate import generate


def minimon(o, folder) -> dict:
    model, (rows, _) = common.minimon_model(o, folder), common.rows_of(folder, o.device)
    return common.timed(
        lambda: starts(
            [
                answer.ids
                for answer in generate(model, rows, max_new_tokens=o.new, stop_ids=(), batch_tokens=2**30)
            ]
        ),
        o,
    )


@torch.inference_mode()
def peer(o, folder, best: bool) -> dict:
    model = common.peer_model(o, folder).eval()
    tokens = torch.tensor(common.rows_of(folder, o.device)[0], device=o.device)  # (B, P + T)

    def decode():
        parts = [
            model.generate(
                input_ids=part,
                attention_mask=torch.ones_like(part),
                max_new_tokens=o.new,
                min_new_tokens=o.new,
                do_sample=False,
                pad_token_id=0,
            )
            for part in tokens.split(len(tokens) if best else 1)
        ]
        return starts(torch.cat(parts)[:, tokens.shape[1] :].tolist())

    return common.timed(decode, o)


def starts(answers: list[list[int]]) -> list[int]:
    """The first token of each row."""
    return [answer[0] for answer in answers]


SIDES = {
    "minimon": minimon,
    common.BEST: lambda o, folder: peer(o, folder, True),
    "peer, default": lambda o, folder: peer(o, folder, False),
}


def flops(o, config) -> int:
    first = common.Need(config, o.prefix, o.suffix, o.batch, o.r).forward()
    tokens, cached = o.batch * (o.new - 1), o.batch * sum(o.prefix + o.suffix + i for i in range(o.new - 1))
    attention = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * cached
    return first + tokens * common.Need(config, 0, 1, 1, o.r).forward() + attention


if __name__ == "__main__":
    common.run(__file__, __doc__, SIDES, flops, batch=16, repeats=3)
