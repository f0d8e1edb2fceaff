"""Model x tasks -> scores of each row: the log-odds of its labels at the answer position, the prompt run once for a whole task.

In the splits thinking and summary the model writes first: its reasoning, or a summary that the base then judges in its place.

n rows, N labels, B rows of a batch, C hidden_size, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimon.batch import (
    NO_LIMIT,
    Limit,
    common_prefix,
    encode_row,
    fit,
    in_batches,
    pack,
    rope_switch,
    token_batches,
)
from minimon.generate import generate
from minimon.lora import enable_lora, lora_layers
from minimon.metrics import Scores
from minimon.model import Decoder
from minimon.tasks import Mixture, Options, Row, Task
from minimon.tokenizer import Tokenizer

BATCH_TOKENS = 2048  # of a pass
DECODE_TOKENS = 16384  # whose keys and values are kept while decoding
VOCABULARY_CHUNK = 8192  # rows of the head in fp32 at a time
SHARES = ("label_mass", "well_formed")
REFERENCES = ("transcript", "empty")  # what the judge of summaries says of the whole text, and of none


class Reading(NamedTuple):
    """What is read at the answer positions of n rows, on the CPU."""

    log_odds: Tensor  # (n, N) of each label against the other labels: log P - log(1 - P)
    label_mass: Tensor  # (n,) the labels' share of the probability over the whole vocabulary
    label_first: Tensor  # (n,) bool: the likeliest token of the vocabulary is a label
    left_out: Tensor  # (n,) tokens of the row's text that were cut to fit

    @property
    def P(self) -> Tensor:
        """(n, N): softmax over the labels alone."""
        return self.log_odds.sigmoid()


class Question(NamedTuple):
    """One task of one split, asked of its test rows."""

    task: Task
    rows: list[Row]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]


Side = dict[
    str, np.ndarray
]  # of one question: log_odds (n, N); label_mass, left_out, well_formed (n,); references (n, N)


# ---- a mixture -------------------------------------------------------------------------------------------------------


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    mixture: Mixture,
    *,
    limit: Limit = NO_LIMIT,
    batch_tokens: int | None = None,
    base: dict[str, list[Side | None]] | None = None,
    each=None,
    on_rows=None,
) -> dict[str, dict[str, list[Scores]]]:
    """Every split of the mixture under base (the adapter off) and adapter -> {split: {group: [Scores]}}.

    base: {split: sides} that are already measured. each(work, items, costs) -> [work(item)], a list comprehension if not given.
    on_rows(n): n more rows are done, of `evaluation_rows`."""
    options = dict(limit=limit, batch_tokens=batch_tokens, each=each, on_rows=on_rows)
    enable_lora(model, False)
    base = measure(model, tokenizer, mixture, known=base, references=True, **options)
    enable_lora(model, True)
    adapter = measure(model, tokenizer, mixture, **options)
    return compare(mixture, base, adapter)


def measure(
    model,
    tokenizer,
    mixture: Mixture,
    *,
    limit=NO_LIMIT,
    batch_tokens=None,
    known=None,
    references=False,
    each=None,
    on_rows=None,
) -> dict[str, list[Side]]:
    """{split: [Side]} of the model as it is, a side for each of the split's questions in order; those `known` are kept.

    references: with each summary also what its judge says of the whole text and of none."""
    sides = {}
    for split, questions in questions_of(mixture).items():
        found = list((known or {}).get(split) or [None] * len(questions))
        wanted = [i for i, side in enumerate(found) if side is None]
        if on_rows:
            on_rows(sum(len(question.rows) for question, side in zip(questions, found) if side is not None))
        options = dict(limit=limit, batch_tokens=batch_tokens, each=each or in_order, on_rows=on_rows)
        asked = [questions[i] for i in wanted]
        if split == "thinking":
            new = thinking_sides(model, tokenizer, asked, mixture.options[split], **options)
        elif split == "summary":
            new = summary_sides(
                model, tokenizer, asked, mixture.options[split], references=references, **options
            )
        else:
            new = answer_sides(model, tokenizer, asked, **options)
        for i, side in zip(wanted, new):
            found[i] = side
        sides[split] = found
    return sides


def compare(
    mixture: Mixture, base: dict[str, list[Side]], adapter: dict[str, list[Side]]
) -> dict[str, dict[str, list[Scores]]]:
    """Two measurements of the same questions -> {split: {group: [Scores]}}."""
    scores = {}
    for split, questions in questions_of(mixture).items():
        compared = [scores_of(*sides) for sides in zip(questions, base[split], adapter[split], strict=True)]
        scores[split] = {}
        for group, tasks in mixture.splits[split].items():
            scores[split][group], compared = compared[: len(tasks)], compared[len(tasks) :]
    return scores


def scores_of(question: Question, base: Side, adapter: Side) -> Scores:
    task, rows = question
    return Scores(
        task=task.name,
        domain=task.domain,
        labels=np.array([row.label for row in rows], dtype=int),
        clusters=np.array([row.text for row in rows], dtype=object),
        base=base["log_odds"],
        adapter=adapter["log_odds"],
        shares={
            "base": {name: base[name] for name in SHARES if name in base},
            "adapter": {name: adapter[name] for name in SHARES if name in adapter},
        },
        references={name: base[name] for name in REFERENCES if name in base},
        left_out=adapter["left_out"],
        criterion=task.criterion,
    )


def questions_of(mixture: Mixture) -> dict[str, list[Question]]:
    """Split -> a question for each of its tasks, group after group."""
    questions = {}
    for split in mixture.splits:
        tasks = mixture.split_tasks(split)
        questions[split] = [Question(task, mixture.test_rows(task, split)) for task in tasks]
    return questions


def evaluation_rows(mixture: Mixture) -> int:
    """Rows that `evaluate` scores, base and adapter together."""
    return 2 * sum(
        len(question.rows) for questions in questions_of(mixture).values() for question in questions
    )


def in_order(work, items: list, costs: list[float]) -> list:
    return [work(item) for item in items]


def costs_of(questions: list[Question]) -> list[float]:
    return [sum(map(len, question.texts)) + len(question.task.prompt) for question in questions]


# ---- the splits ------------------------------------------------------------------------------------------------------


def answer_sides(
    model, tokenizer, questions: list[Question], *, limit, batch_tokens, each, on_rows
) -> list[Side]:
    """The answer at once."""

    def side(question: Question) -> Side:
        reading = read(model, tokenizer, *question, limit=limit, batch_tokens=batch_tokens, on_rows=on_rows)
        return as_side(reading)

    return each(side, questions, costs_of(questions))


def thinking_sides(
    model, tokenizer, questions: list[Question], options: Options, *, limit, batch_tokens, each, on_rows
) -> list[Side]:
    """The answer after reasoning; the thoughts of all questions are decoded together."""
    thoughts = write_thoughts(
        model,
        tokenizer,
        questions,
        max_new_tokens=options.max_new_tokens,
        limit=limit,
        each=each,
        on_rows=on_rows,
    )

    def side(i: int) -> Side:
        reading, well_formed = read_thoughts(model, tokenizer, questions[i].task, thoughts[i], batch_tokens)
        return as_side(reading) | {"well_formed": well_formed.float().numpy()}

    return each(side, list(range(len(questions))), costs_of(questions))


def summary_sides(
    model,
    tokenizer,
    questions: list[Question],
    options: Options,
    *,
    limit,
    batch_tokens,
    each,
    on_rows,
    references,
) -> list[Side]:
    """The model as it is summarizes each text once; the base reads the summaries alone."""
    texts = list(dict.fromkeys(text for question in questions for text in question.texts))

    def prompt(text: str) -> list[int]:
        return tokenizer.chat(
            [{"role": "system", "content": options.prompt}, {"role": "user", "content": text}]
        )

    encoded = [fit(tokenizer, text, prompt, limit, options.max_new_tokens) for text in texts]
    answers = write(
        model,
        [row.ids for row in encoded],
        max_new_tokens=options.max_new_tokens,
        stop_ids=tokenizer.stop_ids,
        each=each,
        on_rows=on_rows,
    )
    if on_rows:
        on_rows(sum(len(question.rows) for question in questions) - len(texts))
    summaries = {text: tokenizer.decode(answer.ids) for text, answer in zip(texts, answers)}
    ended = {text: answer.ended for text, answer in zip(texts, answers)}
    left_out = {text: row.left_out for text, row in zip(texts, encoded)}
    writer_is_adapter = any(layer.enabled for layer in lora_layers(model).values())
    enable_lora(model, False)

    def side(question: Question) -> Side:
        def judged(texts: list[str]) -> Reading:
            return read(model, tokenizer, question.task, texts, limit=limit, batch_tokens=batch_tokens)

        found = as_side(judged([summaries[text] for text in question.texts]))
        found["well_formed"] = np.array([ended[text] for text in question.texts], dtype=np.float32)
        found["left_out"] = np.array([left_out[text] for text in question.texts], dtype=np.float32)
        if references:
            found["transcript"] = judged(question.texts).log_odds.numpy()
            found["empty"] = judged([""] * len(question.rows)).log_odds.numpy()
        return found

    sides = each(side, questions, costs_of(questions))
    enable_lora(model, writer_is_adapter)
    return sides


def as_side(reading: Reading) -> Side:
    return {
        "log_odds": reading.log_odds.numpy(),
        "label_mass": reading.label_mass.numpy(),
        "left_out": reading.left_out.float().numpy(),
    }


# ---- with thinking ---------------------------------------------------------------------------------------------------


class Thought(NamedTuple):
    ids: list[int]  # the prompt, the reasoning and what closes it: the label comes next
    complete: bool  # it ended by itself, in the form that was asked for
    left_out: int


def think(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    texts: list[str],
    *,
    max_new_tokens: int,
    limit: Limit = NO_LIMIT,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_tokens: int | None = None,
    on_rows=None,
) -> tuple[Reading, Tensor]:
    """The model writes its reasoning, then P(label | prompt, text, reasoning) is read at the answer position.

    -> (Reading, well-formed (n,) bool: the reasoning ended by itself and a label is the likeliest token after it). Reasoning
    that is cut at max_new_tokens, or ends the turn, is closed there and read like any other."""
    rows = [Row(text, 0, "test", "") for text in texts]
    (thoughts,) = write_thoughts(
        model,
        tokenizer,
        [Question(task, rows)],
        max_new_tokens=max_new_tokens,
        limit=limit,
        temperature=temperature,
        generator=generator,
        on_rows=on_rows,
    )
    return read_thoughts(model, tokenizer, task, thoughts, batch_tokens)


def write_thoughts(
    model, tokenizer, questions: list[Question], *, max_new_tokens, limit, each=None, on_rows=None, **sampling
) -> list[list[Thought]]:
    """A list of thoughts for each question, all of them decoded together."""
    room = max_new_tokens + len(tokenizer.close_thought)
    encoded = [
        encode_row(tokenizer, question.task, text, limit=limit, thinking=True, room=room)
        for question in questions
        for text in question.texts
    ]
    answers = write(
        model,
        [row.ids for row in encoded],
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.thought_stops,
        each=each,
        on_rows=on_rows,
        **sampling,
    )
    thoughts = []
    for row, answer in zip(encoded, answers):
        closed = tokenizer.close(answer.ids, answer.stop)
        thoughts.append(Thought(row.ids + closed.ids, closed.complete, row.left_out))
    by_question = []
    for question in questions:
        by_question.append(thoughts[: len(question.rows)])
        thoughts = thoughts[len(question.rows) :]
    return by_question


def read_thoughts(
    model, tokenizer, task: Task, thoughts: list[Thought], batch_tokens=None
) -> tuple[Reading, Tensor]:
    labels = tokenizer.label_ids(list(task.labels), thinking=True)
    reading = read_ids(model, [thought.ids for thought in thoughts], labels, batch_tokens=batch_tokens)
    reading = reading._replace(left_out=torch.tensor([thought.left_out for thought in thoughts]))
    complete = torch.tensor([thought.complete for thought in thoughts], dtype=torch.bool)
    return reading, complete & reading.label_first


def write(
    model, prompts: list[list[int]], *, max_new_tokens, each=None, temperature=0.0, on_rows=None, **options
) -> list:
    """`generate`, its batches dealt out by `each`; what is sampled is drawn in order, so by all processes alike."""
    options |= dict(
        max_new_tokens=max_new_tokens, temperature=temperature, on_rows=on_rows, batch_tokens=DECODE_TOKENS
    )
    if temperature:
        return generate(model, prompts, **options)
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    batches = token_batches(lengths, DECODE_TOKENS)
    written = (each or in_order)(
        lambda batch: generate(model, [prompts[i] for i in batch], **options),
        batches,
        [sum(lengths[i] for i in batch) for batch in batches],
    )
    answers = [None] * len(prompts)
    for batch, part in zip(batches, written):
        for i, answer in zip(batch, part):
            answers[i] = answer
    return answers


# ---- one task --------------------------------------------------------------------------------------------------------


def score(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    rows,
    *,
    limit: Limit = NO_LIMIT,
    batch_tokens: int | None = None,
    on_rows=None,
) -> Tensor:
    """P(label | prompt, text) of each row (a tasks.Row or a text): (n, N) in fp32 on the CPU, labels in the task's order.

    P = softmax over the label tokens of z at the answer position. batch_tokens: of a forward pass. on_rows(n): n more rows are
    done. Raises ValueError for labels that are not one token and for scores that are not finite."""
    return read(model, tokenizer, task, rows, limit=limit, batch_tokens=batch_tokens, on_rows=on_rows).P


def read(
    model, tokenizer, task: Task, rows, *, limit: Limit = NO_LIMIT, batch_tokens=None, on_rows=None
) -> Reading:
    """`score`, with what else the answer positions say."""
    texts = [row if isinstance(row, str) else row.text for row in rows]
    encoded = [encode_row(tokenizer, task, text, limit=limit) for text in texts]
    labels = tokenizer.label_ids(list(task.labels))
    reading = read_ids(
        model, [row.ids for row in encoded], labels, batch_tokens=batch_tokens, on_rows=on_rows
    )
    return reading._replace(left_out=torch.tensor([row.left_out for row in encoded]))


@torch.inference_mode()
def read_ids(
    model: Decoder,
    ids: list[list[int]],
    label_ids: list[int],
    *,
    batch_tokens: int | None = None,
    on_rows=None,
) -> Reading:
    """Rows of ids, their common prefix run once -> what stands at the position after each."""
    n, N = len(ids), len(label_ids)
    reading = Reading(
        torch.empty(n, N), torch.empty(n), torch.empty(n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
    )
    for rows, answers in at_answers(
        model, ids, lambda hidden: read_answers(hidden, model, label_ids), batch_tokens
    ):
        log_odds, label_mass, label_first = answers
        if not log_odds.isfinite().all():
            raise ValueError(
                "expected finite scores, got others: the adapter or the base does not go together with this dtype"
            )
        reading.log_odds[rows] = log_odds.cpu()
        reading.label_mass[rows] = label_mass.cpu()
        reading.label_first[rows] = label_first.cpu()
        if on_rows:
            on_rows(len(rows))
    return reading


def at_answers(model: Decoder, ids: list[list[int]], use, batch_tokens: int | None = None):
    """(indices of a batch's rows, use(hidden states (B, C) at their last tokens)), batch after batch.

    The rows' common prefix is run once. Rows beyond a rope switch rotate otherwise and share none."""
    if not ids:
        return
    device, switch = model.lm_head.weight.device, rope_switch(model.config)
    sharing = [row for row in ids if switch is None or len(row) <= switch]
    P = common_prefix(sharing) if sharing else 0
    cache = model.prefix(torch.tensor(sharing[0][:P], device=device)) if P else None

    def work(batch: list[int]):
        ragged = pack([[ids[i] for i in batch]], switch=switch, cached=P)
        hidden = model.last_hidden(ragged.tokens.to(device), ragged.spans, cache)  # (B, C)
        return [batch[i] for i in ragged.order], use(hidden)

    batches = token_batches([len(row) - P for row in ids], batch_tokens or BATCH_TOKENS)
    for _, result in in_batches(batches, work, can_halve=not getattr(model, "sharded", False)):
        yield result


def read_answers(hidden: Tensor, model: Decoder, label_ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (B, C) -> log-odds (B, N), label mass (B,), label first (B,). All logits are in fp32, whatever the base's dtype:
    the whole vocabulary's and the labels' are compared."""
    weight, scale = model.lm_head.weight, 1 / model.config.logits_scaling
    labels = torch.tensor(label_ids, device=weight.device)
    hidden = hidden.float() * scale
    z = hidden @ weight[labels].float().T  # (B, N)
    total = torch.full(
        (len(hidden),), float("-inf"), device=weight.device
    )  # (B,) running logsumexp over the vocabulary
    highest, likeliest = total.clone(), torch.zeros_like(total, dtype=torch.long)
    for begin in range(0, len(weight), VOCABULARY_CHUNK):
        logits = hidden @ weight[begin : begin + VOCABULARY_CHUNK].float().T  # (B, chunk)
        total = torch.logaddexp(total, logits.logsumexp(dim=-1))
        top, token = logits.max(dim=-1)
        likeliest = torch.where(top > highest, token + begin, likeliest)
        highest = torch.maximum(top, highest)
    label_mass = (z.logsumexp(dim=-1) - total).exp().clamp(max=1.0)
    return log_odds_of(z), label_mass, torch.isin(likeliest, labels)


def log_odds_of(z: Tensor) -> Tensor:
    """Label logits (B, N) -> (B, N): of each label against the rest, z_i - log sum over the others of exp z_j."""
    others = z[:, None].expand(-1, z.shape[1], -1).clone()  # (B, N, N)
    others.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    return z - others.logsumexp(dim=-1)
