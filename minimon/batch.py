"""Rows -> batches: the prompt shared by a batch once, then what differs, right-padded; and the seeded order of training.

B rows of one task, P shared prefix tokens, T tokens of the longest suffix.
"""

import random
from dataclasses import dataclass

import torch


from minimon.tasks import Conversation, Mixture, Row, Task
from minimon.tokenizer import Tokenizer

CUT = "\n[... {} tokens left out ...]\n"        # stands in a text for its middle
WINDOW = 8                                     # groups whose rows are sorted by length together


@dataclass(frozen=True)
class Batch:
    prefix: torch.Tensor                       # (1, P) longest common prefix of the rows' ids; P may be 0
    suffix: torch.Tensor                       # (B, T) the rest of each row, right-padded with 0
    lengths: torch.Tensor                      # (B,) tokens of each suffix, at least 1
    targets: torch.Tensor                      # (B,) label indices
    cut: int = 0                               # rows whose text was cut to fit

    def to(self, device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in (self.prefix, self.suffix, self.lengths, self.targets)), self.cut)


def encode_row(tokenizer: Tokenizer, task: Task, text: str, *, thinking: bool = False) -> list[int]:
    """The prompt as system turn, the text as user turn, up to the answer; or the prompt after the text, in one turn."""
    return fit_row(tokenizer, task, text, thinking=thinking)[0]


def fit_row(tokenizer: Tokenizer, task: Task, text: str, *, thinking: bool = False, room: int = 0) -> tuple[list[int], int]:
    """encode_row -> (ids, tokens of the text that were left out to fit, see `fit`)."""
    def encode(text):
        if task.prompt_position == "after":
            return tokenizer.chat([{"role": "user", "content": f"{text}\n\n{task.prompt}"}], thinking=thinking)
        return tokenizer.chat([{"role": "system", "content": task.prompt}, {"role": "user", "content": text}], thinking=thinking)
    try:
        return fit(tokenizer, text, encode, room)
    except ValueError as error:
        raise ValueError(f"{task.where}: task {task.name!r}: {error}") from error


def fit(tokenizer: Tokenizer, text: str, encode, room: int = 0) -> tuple[list[int], int]:
    """encode(text), or what it gives for the text's head and tail, half each, with CUT between -> (ids, tokens left out).

    There are at most tokenizer.max_tokens ids, and with `room` for what is written after them at most tokenizer.max_positions. All but the
    text is whole. Raises ValueError where nothing of the text would be left."""
    ids, limit = encode(text), row_limit(tokenizer, room)
    if limit is None or len(ids) <= limit:
        return ids, 0
    spans = tokenizer.encoder.encode(text, add_special_tokens=False).offsets           # first and last character of each token
    kept = limit - (len(ids) - len(spans))
    while True:
        kept -= 1
        if kept < 2:
            raise ValueError(f"expected room for a text, got {limit} tokens, which prompt and template fill; give more --max-tokens")
        left_out = len(spans) - kept
        ids = encode(text[:spans[(kept + 1) // 2 - 1][1]] + CUT.format(left_out) + text[spans[-(kept // 2)][0]:])
        if len(ids) <= limit:
            return ids, left_out
        kept -= len(ids) - limit - 1


def row_limit(tokenizer: Tokenizer, room: int = 0) -> int | None:
    limits = [tokenizer.max_tokens, tokenizer.max_positions and tokenizer.max_positions - room]
    return min((limit for limit in limits if limit is not None), default=None)


def common_prefix(rows: list[list[int]]) -> int:
    """Length of the longest common prefix of the rows' ids, at least one token of each row left over."""
    first, last = min(rows), max(rows)         # in lexical order everything between shares what these two share
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def make_batch(rows: list[list[int]], targets: list[int], prefix_length: int | None = None) -> Batch:
    P = common_prefix(rows) if prefix_length is None else prefix_length
    lengths = torch.tensor([len(row) - P for row in rows])
    suffix = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        suffix[i, : len(row) - P] = torch.tensor(row[P:])
    return Batch(torch.tensor(rows[0][:P], dtype=torch.long)[None], suffix, lengths, torch.tensor(targets))


def token_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices sorted by length, cut so that rows x longest row stays within `batch_tokens` (a row alone may exceed it)."""
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


@dataclass(frozen=True)
class Group:
    """Rows of one task that go through the model together; or conversations, which have no task."""

    task: Task | None
    rows: list[Row] | list[Conversation]


def training_order(mixture: Mixture, rows: dict[str, list[Row]], conversations: list[Conversation], seed: int, steps: int,
                   batch_size: int, group_size: int, fraction: float = 0.0) -> list[list[Group]]:
    """Steps of groups, `batch_size` rows a step, that share of them conversations: all of it a function of the seed.

    `rows`: of each training task. Fractions of a row are carried on to later steps."""
    queues = {name: row_groups(f"{seed}-{name}", of_task, group_size) for name, of_task in rows.items()}
    talks = row_groups(f"{seed}-instruct", conversations, group_size)
    tasks, order, rest = task_order(mixture, seed), [], {}     # rest: of a group that a step cut
    for step in range(steps):
        groups, talk = [], int((step + 1) * fraction * batch_size + 1e-9) - int(step * fraction * batch_size + 1e-9)
        for talking, left in ((False, batch_size - talk), (True, talk)):
            while left:
                source = None if talking else next(tasks)
                name = source.name if source else None
                some = rest.pop(name, None) or next(queues[name] if source else talks)
                rest[name] = some[left:]
                groups.append(Group(source, some[:left]))
                left -= len(groups[-1].rows)
        order.append(groups)
    return order


def task_order(mixture: Mixture, seed: int):
    """Tasks in proportion to their weights: each time the one furthest behind its share, ties in an order drawn anew every round."""
    rng = random.Random(f"tasks-{seed}")
    weights = [mixture.weights.get(task.name, 1.0) for task in mixture.train]
    drawn, tie = [0] * len(weights), [rng.random() for _ in weights]
    while True:
        i = min(range(len(weights)), key=lambda i: ((drawn[i] + 1) / weights[i], tie[i]))
        drawn[i], tie[i] = drawn[i] + 1, rng.random()
        yield mixture.train[i]


def row_groups(seed: str, rows: list, size: int):
    """Epoch after epoch: rows in random order, sorted by length within a window, cut into groups of `size`."""
    rng = random.Random(f"order-{seed}")
    while rows:
        shuffled = rng.sample(rows, len(rows))
        groups = []
        for start in range(0, len(rows), WINDOW * size):
            window = sorted(shuffled[start: start + WINDOW * size], key=lambda row: len(row.text))
            groups += [window[i: i + size] for i in range(0, len(window), size)]
        rng.shuffle(groups)
        yield from groups
