"""Model x tasks -> scores of each row: the log-odds of its labels at the answer position, the prompt run once for a whole task.

In the splits thinking and summary the model writes first: its reasoning, or a summary that the base then judges in its place.

n rows, N labels, B rows of a batch, C hidden_size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minimon.batch import (
    NO_LIMIT,
    PASS_TOKENS,
    Encoded,
    EncodedRow,
    Limit,
    common_prefix,
    encode,
    encode_row,
    fit,
    in_halves,
    pack,
    rope_switch,
    task_label_ids,
    texts_of,
    token_batches,
)
from minimon.generate import generate
from minimon.lora import enable_lora
from minimon.loss import CHUNK
from minimon.metrics import Scores, SplitScores
from minimon.model import Decoder
from minimon.tasks import Mixture, Options, Row, Task
from minimon.tokenizer import Tokenizer

PREFIX_SHARE = 16
SHARES = ("label_mass", "well_formed")
REFERENCES = ("transcript", "empty")  # what the judge of summaries says of the whole text, and of none


class Question(NamedTuple):
    """One task of one split, asked of its test rows."""

    task: Task
    rows: list[Row] | list[str]

    @property
    def texts(self) -> list[str]:
        return texts_of(self.rows)


class Reading(NamedTuple):
    """What is read at the answer positions of n rows, on the CPU."""

    log_odds: Tensor  # (n, N) of each label against the other labels: log P - log(1 - P)
    label_mass: Tensor  # (n,) the labels' share of the probability over the whole vocabulary
    label_first: Tensor  # (n,) bool: the likeliest token of the vocabulary is a label
    left_out: Tensor  # (n,) tokens of the row's text that were cut to fit
    # (n,) bool, of thoughts: complete, and a label is the likeliest token after it
    well_formed: Tensor | None = None
    hidden: Tensor | None = None  # (n, C) after the final norm, where asked for

    @property
    def P(self) -> Tensor:
        """(n, N): softmax over the labels alone."""
        return self.log_odds.sigmoid()


# of one question: log_odds (n, N); label_mass, left_out, well_formed (n,); REFERENCES (n, N)
Side = dict[str, np.ndarray]


# ---- a mixture -------------------------------------------------------------------------------------------------------


def evaluate(
    model: Decoder, tokenizer: Tokenizer, mixture: Mixture, *, base: dict | None = None, **options
) -> SplitScores:
    """Every split of the mixture under base (the adapter off) and adapter -> {split: {group: [Scores]}}.

    base: {split: sides} that are already measured. options: of `measure`."""
    base = measure(model, tokenizer, mixture, adapter=False, measured=base, **options)
    adapter = measure(model, tokenizer, mixture, adapter=True, **options)
    return compare(mixture, base, adapter)


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    mixture: Mixture,
    *,
    adapter: bool,
    measured: dict[str, list[Side | None]] | None = None,
    on_split: Callable | None = None,
    **options,
) -> dict[str, list[Side]]:
    """{split: [Side]} with the adapter on or off, one for each of the split's questions in order; those `measured` are kept.

    on_split(split, sides): a split is done. options: of `Reader`."""
    reader = Reader(model, tokenizer, **options)
    enable_lora(model, adapter)
    sides = {}
    for split, questions in questions_of(mixture).items():
        sides[split] = list((measured or {}).get(split) or [None] * len(questions))
        missing = [i for i, side in enumerate(sides[split]) if side is None]
        asked = [questions[i] for i in missing]
        reader.on_rows(count_rows(questions) - count_rows(asked))
        if split == "thinking":
            new = reader.after_thinking(asked, mixture.options[split])
        elif split == "summary":
            new = reader.of_summaries(asked, mixture.options[split], adapter)
        else:
            new = reader.at_once(asked)
        for i, side in zip(missing, new):
            sides[split][i] = side
        if on_split:
            on_split(split, sides[split])
    return sides


def compare(mixture: Mixture, base: dict[str, list[Side]], adapter: dict[str, list[Side]]) -> SplitScores:
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
        clusters=np.array(question.texts, dtype=object),
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


def count_rows(questions: list[Question]) -> int:
    return sum(len(question.rows) for question in questions)


def check_questions(tokenizer: Tokenizer, mixture: Mixture, limit: Limit) -> None:
    """Raises ValueError naming file and task where a label is no token of its own, or where prompt and what is to be written leave
    no room for a text: before anything is trained or measured."""
    for task in mixture.all_tasks():
        task_label_ids(tokenizer, task)
        encode_row(tokenizer, task, "", limit=limit)
    for task in mixture.split_tasks("thinking"):
        task_label_ids(tokenizer, task, thinking=True)
        thought_prompt(tokenizer, task, "", mixture.options["thinking"].max_new_tokens, limit)
    if mixture.split_tasks("summary"):
        summary_prompt(tokenizer, "", mixture.options["summary"], limit)


def evaluation_rows(mixture: Mixture) -> int:
    """Rows that `evaluate` scores, base and adapter together."""
    return 2 * sum(map(count_rows, questions_of(mixture).values()))


# ---- the splits ------------------------------------------------------------------------------------------------------


def ignore(rows: int) -> None:
    """Where nobody counts the rows that are done."""


@dataclass(frozen=True)
class Reader:
    """How a mixture's questions are put to a model."""

    model: Decoder
    tokenizer: Tokenizer
    limit: Limit = NO_LIMIT
    batch_tokens: int | None = None  # of a pass
    each: Callable = map  # each(work, items): work(item) of every item, in order
    on_rows: Callable = ignore  # on_rows(n): n more rows are done, of `evaluation_rows`

    def at_once(self, questions: list[Question]) -> list[Side]:
        encoded = [encode(self.tokenizer, *question, self.limit) for question in questions]
        return self.sides_of(encoded, self.on_rows)

    def after_thinking(self, questions: list[Question], options: Options) -> list[Side]:
        """The thoughts of all questions are decoded together."""
        thoughts = write_thoughts(
            self.model,
            self.tokenizer,
            questions,
            max_new_tokens=options.max_new_tokens,
            limit=self.limit,
            each=self.each,
            on_rows=self.on_rows,
        )
        return self.sides_of(thoughts)  # their rows are counted as they are written

    def sides_of(self, encoded: list[Encoded], on_rows: Callable = ignore) -> list[Side]:
        read = partial(read_encoded, self.model, batch_tokens=self.batch_tokens, on_rows=on_rows)
        return list(map(as_side, self.each(read, encoded)))

    def of_summaries(self, questions: list[Question], options: Options, adapter: bool) -> list[Side]:
        """The model as it is summarizes each text once; the base reads the summaries alone.

        Of the base also what it says of the whole texts, and of none: REFERENCES."""
        texts = list(dict.fromkeys(text for question in questions for text in question.texts))
        encoded = [summary_prompt(self.tokenizer, text, options, self.limit) for text in texts]
        answers = generate(
            self.model,
            [row.ids for row in encoded],
            max_new_tokens=options.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
            each=self.each,
            on_rows=self.on_rows,
        )
        self.on_rows(count_rows(questions) - len(texts))
        summaries = {text: self.tokenizer.decode(answer.ids) for text, answer in zip(texts, answers)}
        # text -> its prompt, and the summary as it was generated
        written = dict(zip(texts, zip(encoded, answers)))
        judge = replace(self, on_rows=ignore)
        enable_lora(self.model, False)
        sides = judge.at_once(
            [Question(question.task, [summaries[text] for text in question.texts]) for question in questions]
        )
        if not adapter:
            whole = judge.at_once(questions)
            empty = judge.at_once(
                [Question(question.task, [""] * len(question.rows)) for question in questions]
            )
            for side, of_whole, of_empty in zip(sides, whole, empty):
                side |= {"transcript": of_whole["log_odds"], "empty": of_empty["log_odds"]}
        enable_lora(self.model, adapter)
        for question, side in zip(questions, sides):
            of_rows = [written[text] for text in question.texts]
            side["well_formed"] = np.array([answer.ended for _, answer in of_rows], dtype=np.float32)
            side["left_out"] = np.array([row.left_out for row, _ in of_rows], dtype=np.float32)
        return sides


def summary_prompt(tokenizer: Tokenizer, text: str, options: Options, limit: Limit) -> EncodedRow:
    def encode(text: str) -> list[int]:
        turns = [{"role": "system", "content": options.prompt}, {"role": "user", "content": text}]
        return tokenizer.chat(turns)

    try:
        return fit(tokenizer, text, encode, limit, options.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"eval.summary: {error}") from error


def as_side(reading: Reading) -> Side:
    side = {name: getattr(reading, name) for name in ("log_odds", "label_mass", "left_out", "well_formed")}
    return {name: values.float().numpy() for name, values in side.items() if values is not None}


# ---- with thinking ---------------------------------------------------------------------------------------------------


def think(
    model: Decoder, tokenizer: Tokenizer, task: Task, rows, *, batch_tokens: int | None = None, **writing
) -> Reading:
    """The model writes its reasoning, then P(label | prompt, text, reasoning) is read at the answer position.

    writing: of `write_thoughts`. Reasoning that is cut at max_new_tokens, or ends the turn, is closed there and read like any
    other; `well_formed` says which did not need it."""
    (thoughts,) = write_thoughts(model, tokenizer, [Question(task, rows)], **writing)
    return read_encoded(model, thoughts, batch_tokens=batch_tokens)


def write_thoughts(
    model, tokenizer, questions: list[Question], *, max_new_tokens: int, limit: Limit = NO_LIMIT, **sampling
) -> list[Encoded]:
    """Rows with the thoughts about them, closed; all of them are decoded together. sampling: of `generate`."""
    prompts = [
        thought_prompt(tokenizer, question.task, text, max_new_tokens, limit)
        for question in questions
        for text in question.texts
    ]
    answers = generate(
        model,
        [row.ids for row in prompts],
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.thought_stops,
        **sampling,
    )
    found, first = [], 0
    for question in questions:
        own = slice(first, first + len(question.rows))
        closed = [tokenizer.close(answer.ids, answer.stop) for answer in answers[own]]
        found.append(
            Encoded(
                ids=[row.ids + thought.ids for row, thought in zip(prompts[own], closed)],
                label_ids=task_label_ids(tokenizer, question.task, thinking=True),
                left_out=[row.left_out for row in prompts[own]],
                labels=[],
                complete=[thought.complete for thought in closed],
            )
        )
        first += len(question.rows)
    return found


def thought_prompt(tokenizer, task: Task, text: str, max_new_tokens: int, limit: Limit) -> EncodedRow:
    room = max_new_tokens + len(tokenizer.close_thought)
    return encode_row(tokenizer, task, text, limit=limit, thinking=True, room=room)


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


def read(model, tokenizer, task: Task, rows, *, limit: Limit = NO_LIMIT, **options) -> Reading:
    """`score`, with what else the answer positions say. options: of `read_encoded`."""
    return read_encoded(model, encode(tokenizer, task, rows, limit), **options)


def read_encoded(
    model: Decoder,
    rows: Encoded,
    *,
    batch_tokens: int | None = None,
    on_rows=None,
    keep_hidden: bool = False,
) -> Reading:
    """What stands at the answer positions. The rows' common prefix is run once; those beyond a rope switch rotate otherwise and
    share none."""
    ids, device, switch = rows.ids, model.lm_head.weight.device, rope_switch(model.config)
    n, N, C = len(ids), len(rows.label_ids), model.config.hidden_size
    reading = Reading(
        log_odds=torch.empty(n, N),
        label_mass=torch.empty(n),
        label_first=torch.empty(n, dtype=torch.bool),
        left_out=torch.tensor(rows.left_out, dtype=torch.long),
        hidden=torch.empty(n, C) if keep_hidden else None,
    )
    sharing = [row for row in ids if switch is None or len(row) <= switch]
    P = common_prefix(sharing) if sharing else 0
    with torch.inference_mode():
        cache = model.prefix(torch.tensor(sharing[0][:P], device=device)) if P else None
        # a text's share of the prefix stands for the copy of its keys and values that attention makes
        lengths = [len(row) - P + P // PREFIX_SHARE for row in ids]
        waiting = token_batches(lengths, batch_tokens or PASS_TOKENS[device.type])
        while waiting:
            batch = pack([[ids[i] for i in waiting[0]]], switch=switch, cached=P)
            try:
                hidden = model.last_hidden(batch.tokens.to(device), batch.spans, cache)  # (B, C)
                log_odds, label_mass, label_first = read_answers(hidden, model, rows.label_ids)
            except torch.OutOfMemoryError as error:
                waiting = in_halves(waiting, error, model)
                continue
            if not log_odds.isfinite().all():
                raise ValueError(
                    "expected finite scores, got others: the adapter or the base does not go together with this dtype"
                )
            read = [waiting[0][i] for i in batch.order]
            reading.log_odds[read] = log_odds.cpu()
            reading.label_mass[read] = label_mass.cpu()
            reading.label_first[read] = label_first.cpu()
            if keep_hidden:
                reading.hidden[read] = hidden.float().cpu()
            done = waiting.pop(0)
            if on_rows:
                on_rows(len(done))
    if rows.complete is not None:
        well_formed = reading.label_first & torch.tensor(rows.complete, dtype=torch.bool)
        return reading._replace(well_formed=well_formed)
    return reading


def read_answers(hidden: Tensor, model: Decoder, label_ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (B, C) -> log-odds (B, N), label mass (B,), label first (B,). All logits are in fp32, whatever the base's dtype:
    the whole vocabulary's and the labels' are compared."""
    weight, scale = model.lm_head.weight, 1 / model.config.logits_scaling
    labels = torch.tensor(label_ids, device=weight.device)
    hidden = hidden.float() * scale
    z = hidden @ weight[labels].float().T  # (B, N)
    # (B,) running logsumexp over the vocabulary
    total = torch.full((len(hidden),), float("-inf"), device=weight.device)
    highest, likeliest = total.clone(), torch.zeros_like(total, dtype=torch.long)
    for begin in range(0, len(weight), CHUNK):
        logits = hidden @ weight[begin : begin + CHUNK].float().T  # (B, chunk)
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
