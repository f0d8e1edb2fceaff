"""Rows -> ids -> ragged passes: a prompt that texts share once, then what differs, without padding; and the seeded order of training.

N tokens of a pass, B texts in it, P tokens of a shared prefix.
"""

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch

from minimon.attention import Span
from minimon.tasks import Conversation, Mixture, Row, Task
from minimon.tokenizer import Tokenizer

CUT = "\n[... {} tokens left out ...] "  # stands in a text for its middle; what follows cannot pose as a line of its own
PASS_TOKENS = {"cpu": 2048, "cuda": 65536}  # of a pass at most: larger ones gain nothing
WINDOW = 8  # groups whose rows are sorted by length together


# ---- a row as ids ----------------------------------------------------------------------------------------------------


class Limit(NamedTuple):
    """How many tokens a row may have."""

    tokens: float = math.inf  # of the row itself
    positions: float = math.inf  # of the row and what is written after it: what the base can tell apart


NO_LIMIT = Limit()


class EncodedRow(NamedTuple):
    ids: list[int]
    left_out: int  # tokens of the text that were cut out of its middle


def row_limit(config, max_tokens: int | None) -> Limit:
    """How long a row may be for a base of this ModelConfig. Raises ValueError for more than it has positions for."""
    positions = min(rope.longest_text for rope in config.rope.values())
    if max_tokens is not None and not 16 <= max_tokens <= positions:
        raise ValueError(
            f"--max-tokens: expected a number from 16 to the longest text of the base, {positions}; got {max_tokens}"
        )
    return Limit(max_tokens or positions, positions)


def encode_row(
    tokenizer: Tokenizer,
    task: Task,
    text: str,
    *,
    limit: Limit = NO_LIMIT,
    thinking: bool = False,
    room: int = 0,
) -> EncodedRow:
    """The prompt as system turn, the text as user turn, up to the answer; or the prompt after the text, in one turn.

    room: tokens to be written after the row. Raises ValueError naming the task."""
    prompt = task.prompt + (tokenizer.think_request if thinking else "")

    def encode(text: str) -> list[int]:
        if task.prompt_position == "after":
            messages = [{"role": "user", "content": f"{text}\n\n{prompt}"}]
        else:
            messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
        return tokenizer.chat(messages, thinking=thinking)

    try:
        return fit(tokenizer, text, encode, limit, room)
    except ValueError as error:
        raise ValueError(f"{task.where}: task {task.name!r}: {error}") from error


@dataclass(frozen=True)
class Encoded:
    """Rows of one task as ids, up to the answer."""

    ids: list[list[int]]
    label_ids: list[int]  # of the task
    left_out: list[int]  # tokens of each text that were cut to fit
    labels: list[int]  # index of each row's label; none of mere texts
    complete: list[bool] | None = None  # of each thought: it ended by itself, in the form that was asked for

    @property
    def tokens(self) -> int:
        """With the shared prefix once."""
        return sum(map(len, self.ids)) - common_prefix(self.ids) * (len(self.ids) - 1)

    def parts(self, batch_tokens: int) -> list["Encoded"]:
        """Of at most `batch_tokens`, or of one row."""
        if self.tokens <= batch_tokens or len(self.ids) == 1:
            return [self]
        middle, found = (len(self.ids) + 1) // 2, []
        for half in (slice(middle), slice(middle, None)):
            part = Encoded(self.ids[half], self.label_ids, self.left_out[half], self.labels[half])
            found += part.parts(batch_tokens)
        return found


def encode(tokenizer: Tokenizer, task: Task, rows, limit: Limit) -> Encoded:
    """rows: tasks.Row, or texts."""
    encoded = [encode_row(tokenizer, task, text, limit=limit) for text in texts_of(rows)]
    return Encoded(
        ids=[row.ids for row in encoded],
        label_ids=task_label_ids(tokenizer, task),
        left_out=[row.left_out for row in encoded],
        labels=[row.label for row in rows if isinstance(row, Row)],
    )


def texts_of(rows) -> list[str]:
    return [row if isinstance(row, str) else row.text for row in rows]


def task_label_ids(tokenizer: Tokenizer, task: Task, *, thinking: bool = False) -> list[int]:
    """The token of each of the task's labels. Raises ValueError naming file and task for one that is not a token of its own."""
    try:
        return tokenizer.label_ids(list(task.labels), thinking=thinking)
    except ValueError as error:
        raise ValueError(f"{task.where}: task {task.name!r}: {error}") from error


def fit(tokenizer: Tokenizer, text: str, encode, limit: Limit, room: int) -> EncodedRow:
    """encode(text), or what it gives for the text's head and tail, half each, with CUT between: all but the text is whole.

    Raises ValueError where nothing of the text would be left."""
    ids, most = encode(text), most_tokens(limit, room)
    if len(ids) <= most:
        return EncodedRow(ids, 0)
    # as `chat` reads it, character for character
    whole = tokenizer.strings.release(tokenizer.strings.hold(text))
    # first and last character of each token
    spans = tokenizer.encoder.encode(whole, add_special_tokens=False).offsets
    kept = most - (len(ids) - len(spans)) - 1
    while kept >= 2:
        left_out = len(spans) - kept
        head_end, tail_begin = spans[(kept + 1) // 2 - 1][1], spans[-(kept // 2)][0]
        ids = encode(text[:head_end] + CUT.format(left_out) + text[tail_begin:])
        if len(ids) <= most:
            return EncodedRow(ids, left_out)
        kept -= len(ids) - most
    raise ValueError(
        f"expected room for a text, got {max(0, most)} tokens, which prompt and template fill; give more --max-tokens, "
        "or fewer max_new_tokens where the model writes"
    )


def most_tokens(limit: Limit, room: int = 0) -> float:
    return min(limit.tokens, limit.positions - room)


def common_prefix(rows: list[list[int]]) -> int:
    """Length of the longest common prefix of the rows' ids, at least one token of each row left over."""
    first, last = min(rows), max(rows)  # in lexical order everything between shares what these two share
    limit = min(map(len, rows)) - 1
    for i in range(limit):
        if first[i] != last[i]:
            return i
    return limit


# ---- passes ----------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """What goes through the model together, as one ragged row."""

    tokens: torch.Tensor  # (N,)
    spans: list[Span]
    order: list[int]  # (B,) which of the texts it was made of each answer belongs to


def pack(groups: list[list[list[int]]], *, switch: int | None = None, cached: int = 0, room: int = 0) -> Pass:
    """Groups of texts (ids) -> one Pass. The texts of a group share their common prefix, which stands in the row once.

    switch: a text that is longer rotates otherwise, so it stands alone, with all its ids. cached: so many tokens of the other
    texts are in a cache and are left out. room: tokens that will be written after each text. `order` counts through all groups."""
    tokens, spans, order, first = [], [], [], 0
    for group in groups:
        lengths = [len(ids) for ids in group]
        sharing = [i for i, length in enumerate(lengths) if switch is None or length + room <= switch]
        alone = sorted(set(range(len(group))) - set(sharing))
        P, source = cached, "cache" if cached else None
        if not cached and len(sharing) > 1:
            P = common_prefix([group[i] for i in sharing])
            if P:
                source = "prefix"
                spans.append(Span(1, P, is_prefix=True))
                tokens += group[sharing[0]][:P]
        for indices, start, continues in ((sharing, P, source), (alone, 0, None)):
            indices = sorted(indices, key=lengths.__getitem__)  # the shortest first
            for length, equal in groupby(indices, lengths.__getitem__):
                equal = list(equal)
                spans.append(Span(len(equal), length - start, continues, full_length=length + room))
                for i in equal:
                    tokens += group[i][start:]
                    order.append(first + i)
        first += len(group)
    return Pass(torch.tensor(tokens, dtype=torch.long), spans, order)


def rope_switch(config) -> int | None:
    """Texts longer than this rotate otherwise (dynamic NTK, longrope), so they share no prefix with shorter ones."""
    return min((rope.switch for rope in config.rope.values() if rope.switch), default=None)


def token_batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices, the shortest first, in batches of at most `batch_tokens` (one text may exceed it) and about equal tokens."""
    goal = sum(lengths) / max(1, -(-sum(lengths) // batch_tokens))
    batches, tokens = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        full = not batches or tokens >= goal or tokens + lengths[i] > batch_tokens
        if full:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += lengths[i]
    return batches


def in_halves(
    batches: list[list], error: torch.OutOfMemoryError, model, *, can_halve: bool = True
) -> list[list]:
    """What is left to do after CUDA ran out of memory, each batch in halves.

    Raises ValueError for a single text, or where batches may not change (shards, whose processes must all do the same)."""
    if len(batches[0]) == 1 or not can_halve or getattr(model, "sharded", False):
        raise ValueError(
            f"out of memory with {len(batches[0])} texts at a time; give a lower --batch-tokens or --max-tokens"
        ) from error
    smaller = []
    for batch in batches:
        middle = (len(batch) + 1) // 2
        smaller += [half for half in (batch[:middle], batch[middle:]) if half]
    return smaller


# ---- the order of training -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Rows of one task that share their prompt; or conversations, which have no task."""

    task: Task | None
    rows: list[Row] | list[Conversation]

    @property
    def characters(self) -> int:
        return sum(len(row.text) for row in self.rows)


def training_order(
    mixture: Mixture,
    rows: dict[str, list[Row]],
    conversations: list[Conversation],
    *,
    seed: int,
    steps: int,
    batch_size: int,
    group_size: int,
    fraction: float = 0.0,
) -> list[list[Group]]:
    """Steps of groups, `batch_size` rows a step, that fraction of them conversations: all of it a function of the seed.

    `rows`: of each training task. Fractions of a row are carried on to later steps."""
    queues = {name: row_groups(f"{seed}-{name}", of_task, group_size) for name, of_task in rows.items()}
    queues[None] = row_groups(f"{seed}-instruct", conversations, group_size)
    tasks = task_order(mixture, seed)
    leftover: dict[str | None, list] = {}  # of a group that a step cut, by task
    order = []
    for step in range(steps):
        conversation_count = whole(step + 1, fraction * batch_size) - whole(step, fraction * batch_size)
        groups = []
        for is_task, wanted in ((True, batch_size - conversation_count), (False, conversation_count)):
            while wanted:
                task = next(tasks) if is_task else None
                name = task.name if task else None
                candidates = leftover.pop(name, None) or next(queues[name])
                groups.append(Group(task, candidates[:wanted]))
                leftover[name] = candidates[wanted:]
                wanted -= len(groups[-1].rows)
        order.append(groups)
    return order


def whole(count: int, share: float) -> int:
    """Whole rows in `count` shares; a sum of fractions that is a hair under a whole number counts as it."""
    return int(count * share + 1e-9)


def task_order(mixture: Mixture, seed: int):
    """Tasks in proportion to their weights: each time the one furthest behind its share, ties in an order drawn from the seed."""
    rng = random.Random(f"tasks-{seed}")
    weights = [mixture.weights.get(task.name, 1.0) for task in mixture.train]
    drawn, tie = [0] * len(weights), [rng.random() for _ in weights]
    while True:
        i = min(range(len(weights)), key=lambda i: ((drawn[i] + 1) / weights[i], tie[i]))
        drawn[i], tie[i] = drawn[i] + 1, rng.random()
        yield mixture.train[i]


def row_groups(seed: str, rows: list, size: int):
    """Epoch after epoch: rows in random order, sorted by length within a window, cut into groups of `size`.

    The labels take turns, so that a group holds its share of each: its gradient then says what tells the texts apart, not
    which label happened to be the commoner one."""
    rng = random.Random(f"order-{seed}")
    while rows:
        shuffled = labels_in_turn(rng.sample(rows, len(rows)))
        groups = []
        for start in range(0, len(rows), WINDOW * size):
            window = sorted(shuffled[start : start + WINDOW * size], key=lambda row: len(row.text))
            window = labels_in_turn(window)
            groups += [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(groups)
        yield from groups


def labels_in_turn(rows: list) -> list:
    """Rows of each label in the order they have, spread evenly over all; conversations have no label and stay as they are."""
    by_label = defaultdict(list)
    for row in rows:
        by_label[getattr(row, "label", None)].append(row)
    placed = []
    for _, of_label in sorted(by_label.items()):
        placed += [((i + 0.5) / len(of_label), row) for i, row in enumerate(of_label)]
    placed.sort(key=lambda place_and_row: place_and_row[0])
    return [row for _, row in placed]
