"""Model x tasks -> per-row scores: P(label) at the answer position, the prompt run once for a whole task.

In the splits thinking and summary the model writes first: its reasoning, or a summary that the base then judges in its place. Several
processes deal the tasks out among themselves, and the batches of what is written: each is scored as by one process.
"""

from typing import NamedTuple

import numpy as np
import torch

from minimon.batch import common_prefix, fit, fit_row, make_batch, token_batches
from minimon.run.processes import each
from minimon.generate import Answer, generate
from minimon.lora import enable_lora
from minimon.memory import batch_tokens_of, decode_tokens_of, in_batches
from minimon.metrics import Scores
from minimon.model import Decoder
from minimon.tasks import SPLITS, Mixture, Options, Task
from minimon.tokenizer import Tokenizer

HEAD_ROWS = 512                                          # whose logits over the vocabulary are formed at a time


class Reading(NamedTuple):
    """What is read at the answer positions of n rows, on the CPU."""

    P: torch.Tensor                            # (n, N) P(label), softmax over the labels alone
    label_mass: torch.Tensor                   # (n,) the labels' share of the probability over the whole vocabulary
    label_first: torch.Tensor                  # (n,) bool: no token is likelier than the likeliest label
    left_out: torch.Tensor                     # (n,) tokens of the row's text that were cut to fit


def evaluate(model: Decoder, tokenizer: Tokenizer, mixture: Mixture, *, batch_tokens: int | None = None, known=None, on_rows=None):
    """Every split of the mixture under base (the adapter off) and adapter -> {split: {group: [Scores]}}; see `measured_splits`.

    known: a Known, whose scores of the base are taken and added to. on_rows(n) is called after n more rows; there are
    `evaluation_rows` of them."""
    scores = {}
    for split, groups in measured_splits(mixture, tokenizer).items():
        asked = [(task, mixture.test_rows(task, split)) for tasks in groups.values() for task in tasks]
        pairs = [(task, [row.text for row in rows]) for task, rows in asked]
        base = base_sides(model, tokenizer, split, pairs, mixture.options[split], batch_tokens, known, on_rows)
        enable_lora(model, True)
        adapter = SIDES[split](model, tokenizer, pairs, mixture.options[split], batch_tokens, on_rows)
        sides = iter(zip(asked, base, adapter))
        scores[split] = {group: [scores_of(*next(sides)) for _ in tasks] for group, tasks in groups.items()}
    enable_lora(model, True)
    return scores


def scores_of(asked, base: dict, adapter: dict) -> Scores:
    task, rows = asked
    shares = {which: {name: side[name] for name in SHARES if name in side} for which, side in (("base", base), ("adapter", adapter))}
    labels, texts = np.array([row.label for row in rows], dtype=int), np.array([row.text for row in rows], dtype=object)
    return Scores(task.name, task.domain, labels, texts, base["P"], adapter["P"], shares,
                  {name: base[name] for name in REFERENCES if name in base}, adapter["left_out"])


def measured_splits(mixture: Mixture, tokenizer: Tokenizer) -> dict:
    """The splits that can be measured: thinking needs a token that closes a thought."""
    return {split: groups for split, groups in mixture.splits.items() if split != "thinking" or tokenizer.think_end is not None}


def evaluation_rows(mixture: Mixture, tokenizer: Tokenizer) -> int:
    """Rows that `evaluate` scores, base and adapter together."""
    return 2 * sum(len(mixture.test_rows(task, split)) for split, groups in measured_splits(mixture, tokenizer).items()
                   for tasks in groups.values() for task in tasks)


SHARES, REFERENCES = ("label_mass", "well_formed"), ("transcript", "empty")


def base_sides(model, tokenizer, split, pairs, options: Options, batch_tokens, known, on_rows) -> list[dict[str, np.ndarray]]:
    """The base's side of each task, as far as it is not known; for summaries also what bounds them: P given the transcript, and nothing."""
    enable_lora(model, False)
    keys = [known.key(split, task, texts, options) if known else None for task, texts in pairs]
    sides = [known.get(key) if known else None for key in keys]
    new = [i for i, side in enumerate(sides) if side is None]
    if on_rows:
        on_rows(sum(len(texts) for (_, texts), side in zip(pairs, sides) if side))
    asked = [pairs[i] for i in new]
    found = SIDES[split](model, tokenizer, asked, options, batch_tokens, on_rows)
    if split == "summary":
        def references(i):
            task, texts = asked[i]
            return {name: score(model, tokenizer, task, judged, batch_tokens=batch_tokens).numpy()
                    for name, judged in (("transcript", texts), ("empty", [""] * len(texts)))}
        found = [side | more for side, more in zip(found, each(costs(asked), references, model))]
    for i, side in zip(new, found):
        sides[i] = side
        if known:
            known.put(keys[i], side)
    return sides


def costs(pairs) -> list[int]:
    """Of reading each (task, texts), about."""
    return [sum(map(len, texts)) + len(task.prompt) for task, texts in pairs]


def answer_sides(model, tokenizer, pairs, options, batch_tokens, on_rows) -> list[dict[str, np.ndarray]]:
    """The answer at once, for each (task, texts): P (n, N), and shares (n,)."""
    return each(costs(pairs), lambda i: as_side(read(model, tokenizer, *pairs[i], batch_tokens=batch_tokens, on_rows=on_rows)), model)


def thinking_sides(model, tokenizer, pairs, options: Options, batch_tokens, on_rows) -> list[dict[str, np.ndarray]]:
    found = think_all(model, tokenizer, pairs, max_new_tokens=options.max_new_tokens, batch_tokens=batch_tokens, on_rows=on_rows)
    return [as_side(reading, well_formed.float().numpy()) for reading, well_formed in found]


def summary_sides(model, tokenizer, pairs, options: Options, batch_tokens, on_rows) -> list[dict[str, np.ndarray]]:
    """The model as it is summarizes each transcript once; the base reads the summaries alone. Leaves the adapter off."""
    texts = list(dict.fromkeys(text for _, texts in pairs for text in texts))
    prompts, left_out = zip(*(fit(tokenizer, text, lambda text: tokenizer.chat(
        [{"role": "system", "content": options.prompt}, {"role": "user", "content": text}]), options.max_new_tokens) for text in texts))
    answers = write(model, list(prompts), max_new_tokens=options.max_new_tokens, stop_ids=tokenizer.stop_ids, batch_tokens=batch_tokens,
                    on_rows=on_rows)
    if on_rows:
        on_rows(sum(len(texts) for _, texts in pairs) - len(texts))
    enable_lora(model, False)
    summary = {text: (tokenizer.decode(answer.ids), answer.ended, cut) for text, answer, cut in zip(texts, answers, left_out)}

    def side(i):
        task, texts = pairs[i]
        summaries, ended, cut = zip(*(summary[text] for text in texts))
        reading = read(model, tokenizer, task, summaries, batch_tokens=batch_tokens)
        return as_side(reading._replace(left_out=torch.tensor(cut)), np.array(ended, dtype=np.float32))
    return each(costs(pairs), side, model)


def as_side(reading: Reading, well_formed: np.ndarray | None = None) -> dict[str, np.ndarray]:
    side = {"P": reading.P.numpy(), "label_mass": reading.label_mass.numpy(), "left_out": reading.left_out.float().numpy()}
    return side if well_formed is None else {**side, "well_formed": well_formed}


SIDES = {split: answer_sides for split in SPLITS} | {"thinking": thinking_sides, "summary": summary_sides}


def think(model: Decoder, tokenizer: Tokenizer, task: Task, texts: list[str], *, max_new_tokens: int, temperature: float = 0.0,
          generator: torch.Generator | None = None, batch_tokens: int | None = None, on_rows=None) -> tuple[Reading, torch.Tensor]:
    """The model writes its reasoning, then P(label | prompt, text, reasoning) is read at the answer position.

    -> (Reading, well-formed (n,) bool: the reasoning ended by itself and a label is the likeliest token after it). Reasoning that is cut at
    max_new_tokens, or ends the turn, is closed there and read like any other."""
    return think_all(model, tokenizer, [(task, texts)], max_new_tokens=max_new_tokens, temperature=temperature, generator=generator,
                     batch_tokens=batch_tokens, on_rows=on_rows)[0]


def think_all(model, tokenizer, pairs, *, max_new_tokens, temperature=0.0, generator=None, batch_tokens=None, on_rows=None) -> list:
    """`think` for each (task, texts), all of them decoded together."""
    room = max_new_tokens + len(tokenizer.close_thought)
    fitted = [fit_row(tokenizer, task, text, thinking=True, room=room) for task, texts in pairs for text in texts]
    prompts = [ids for ids, _ in fitted]
    thoughts = write(model, prompts, max_new_tokens=max_new_tokens, stop_ids={tokenizer.think_end, *tokenizer.stop_ids},
                     temperature=temperature, generator=generator, batch_tokens=batch_tokens, on_rows=on_rows)
    written = iter(zip(fitted, thoughts))
    some = [[next(written) for _ in texts] for _, texts in pairs]

    def reading(i):
        ids = [prompt + thought.ids + tokenizer.close_thought for (prompt, _), thought in some[i]]
        found = read_ids(model, ids, tokenizer.label_ids(list(pairs[i][0].labels), thinking=True), batch_tokens)
        ended = torch.tensor([thought.stop == tokenizer.think_end for _, thought in some[i]], dtype=torch.bool)
        return found._replace(left_out=torch.tensor([cut for (_, cut), _ in some[i]])), ended & found.label_first
    return each(costs(pairs), reading, model)


def write(model, prompts, *, max_new_tokens, batch_tokens=None, temperature=0.0, on_rows=None, **options) -> list[Answer]:
    """`generate`, its batches dealt out; what is sampled is drawn in order, so by all processes alike."""
    batch_tokens = decode_tokens_of(model, batch_tokens)
    options |= dict(max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, temperature=temperature, on_rows=on_rows)
    if temperature:
        return generate(model, prompts, **options)
    batches = token_batches([len(prompt) + max_new_tokens for prompt in prompts], batch_tokens)

    def answers(n):
        batch, found = batches[n], {}
        lengths = [len(prompts[i]) + max_new_tokens for i in batch]
        for some, part in in_batches(model, lengths, batch_tokens,
                                     lambda some: generate(model, [prompts[batch[i]] for i in some], **options)):
            found |= {batch[i]: answer for i, answer in zip(some, part)}
        return found
    found = {i: answer for part in each([sum(len(prompts[i]) for i in batch) for batch in batches], answers, model)
             for i, answer in part.items()}
    return [found[i] for i in range(len(prompts))]


def score(model: Decoder, tokenizer: Tokenizer, task: Task, rows, *, batch_tokens: int | None = None, on_rows=None) -> torch.Tensor:
    """P(label | prompt, text) of each row (a tasks.Row or a text): (rows, N labels) in fp32 on the CPU, labels in the task's order.

    P = softmax over the label tokens of z at the answer position. batch_tokens: of a forward pass, padding
    included; None for memory.BATCH_TOKENS. on_rows(n) is called after n more rows."""
    return read(model, tokenizer, task, rows, batch_tokens=batch_tokens, on_rows=on_rows).P


def read(model, tokenizer, task: Task, rows, *, batch_tokens: int | None = None, on_rows=None) -> Reading:
    """`score`, with what else the answer positions say."""
    fitted = [fit_row(tokenizer, task, row if isinstance(row, str) else row.text) for row in rows]
    found = read_ids(model, [ids for ids, _ in fitted], tokenizer.label_ids(list(task.labels)), batch_tokens, on_rows)
    return found._replace(left_out=torch.tensor([cut for _, cut in fitted]))


@torch.inference_mode()
def read_ids(model: Decoder, ids: list[list[int]], label_ids: list[int], batch_tokens: int | None = None, on_rows=None) -> Reading:
    """Rows of ids, their common prefix run once -> what stands at the position after each."""
    reading = Reading(torch.empty(len(ids), len(label_ids)), torch.empty(len(ids)), torch.empty(len(ids), dtype=torch.bool),
                      torch.zeros(len(ids), dtype=torch.long))
    labels = torch.tensor(label_ids, device=model.lm_head.weight.device)               # (N,)
    for batch, hidden in last_states(model, ids, batch_tokens):
        for some, hidden in zip([batch[i:i + HEAD_ROWS] for i in range(0, len(batch), HEAD_ROWS)], hidden.split(HEAD_ROWS)):
            z = hidden.float() @ model.lm_head.weight[labels].float().T / model.config.logits_scaling      # (B, N)
            rest = model.logits(hidden).float()                                        # (B, V)
            reading.P[some] = z.softmax(dim=-1).cpu()
            if not reading.P[some].isfinite().all():
                raise ValueError("expected finite scores, got others: the adapter or the base does not go together with this dtype")
            reading.label_mass[some] = (z.logsumexp(dim=-1) - rest.logsumexp(dim=-1)).exp().clamp(max=1.0).cpu()
            reading.label_first[some] = torch.isin(rest.argmax(dim=-1), labels).cpu()
        if on_rows:
            on_rows(len(batch))
    return reading


def last_states(model: Decoder, ids: list[list[int]], batch_tokens: int | None = None):
    """(indices of a batch's rows, hidden states (B, C) at the last position of each), the rows' common prefix run once."""
    if not ids:
        return
    device, P, switch = model.lm_head.weight.device, common_prefix(ids), rope_switch(model)
    cached, alone = [], []
    for i, row in enumerate(ids):
        (cached if switch is None or len(row) <= switch else alone).append(i)
    prefix = model.prefix(torch.tensor([ids[0][:P]], device=device), switch) if P and cached else None

    def states(rows, cache, start):
        part = make_batch([ids[i] for i in rows], [0] * len(rows), start).to(device)
        return model(part.suffix, cache, at=part.lengths - 1)                          # (B, C)
    batches = in_batches(model, [len(ids[i]) - P for i in cached], batch_tokens_of(model, batch_tokens),
                         lambda batch: states([cached[i] for i in batch], prefix, P if prefix else 0))
    for batch, hidden in batches:
        yield [cached[i] for i in batch], hidden
    for i in alone:
        yield [i], states([i], None, 0)


def limit_rows(tokenizer: Tokenizer, model: Decoder, max_tokens: int | None) -> None:
    """Longer rows are cut from now on: to max_tokens, and to what the base has positions for. Raises ValueError for more than those."""
    ropes = model.config.rope.values()
    there = min(rope.max_positions * (int(rope.scaling["factor"]) if rope.rope_type == "dynamic" else 1) for rope in ropes)
    if max_tokens is not None and not 16 <= max_tokens <= there:
        raise ValueError(f"--max-tokens: expected a number from 16 to the base's max_position_embeddings, {there}; got {max_tokens}")
    tokenizer.max_tokens, tokenizer.max_positions = max_tokens, there


def rope_switch(model: Decoder) -> int | None:
    """Rows longer than this rotate otherwise (dynamic NTK, longrope), so they can't share a prefix with shorter ones."""
    return min((rope.switch for rope in model.config.rope.values() if rope.switch), default=None)
