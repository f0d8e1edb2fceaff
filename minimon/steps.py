"""What a run trains on step by step, and one step of it: phases, learning rate, passes, losses.

A step has `batch_size` rows: classification rows of many tasks, conversations, or both. Its tokens go through the model in as few
passes as `batch_tokens` allows; the gradient is that of the mean over the step's rows whatever the passes are.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from minimon.attention import Span
from minimon.batch import (
    NO_LIMIT,
    Group,
    Limit,
    Pass,
    common_prefix,
    encode_row,
    pack,
    rope_switch,
    token_batches,
    training_order,
)
from minimon.loss import label_token_loss, vocab_token_loss
from minimon.tasks import Conversation, Mixture, Row, load_conversations, schedule_of
from minimon.tokenizer import Tokenizer

FEWEST_TOKENS = 64  # of a pass; what does not fit in so few does not fit


# ---- phases ----------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    steps: int
    lr: float  # peak learning rate
    fraction: float  # of a step's rows that are conversations


class Step(NamedTuple):
    groups: list[Group]
    lr: float


def instruction_plan(settings, mixture: Mixture) -> tuple[list[Phase], list[Conversation]]:
    """Phases and conversations of the schedule that --instruct or the mixture asks for; settings: train.py's."""
    schedule = schedule_of(mixture.instruct, settings.instruct)
    if schedule == "none":
        return [Phase(settings.steps, settings.lr, 0.0)], []
    if not mixture.instruct:
        raise ValueError(
            f"--instruct {schedule}: expected instruction data in {mixture.path}, got no table [instruct]; "
            'add one with rows = "FILE.jsonl", a line {"messages": [...]} each'
        )
    fraction = {"joint": settings.instruct_fraction or mixture.instruct.fraction, "only": 1.0, "after": 0.0}
    plan = [Phase(settings.steps, settings.lr, fraction[schedule])]
    if schedule == "after":
        plan.append(Phase(settings.instruct_steps, settings.instruct_lr, 1.0))
    return plan, load_conversations(mixture.instruct.path, mixture.new_prompts())


def training_steps(
    mixture: Mixture,
    rows: dict[str, list[Row]],
    conversations: list[Conversation],
    plan: list[Phase],
    settings,
) -> list[Step]:
    """Every step of all phases. rows: of each training task. settings: train.py's, its warmup a share of a phase's steps if
    below 1, else steps."""
    found = []
    for phase in plan:
        order = training_order(
            mixture,
            rows,
            conversations,
            seed=settings.seed,
            steps=phase.steps,
            batch_size=settings.batch_size,
            group_size=settings.group_size,
            fraction=phase.fraction,
        )
        share = settings.warmup if settings.warmup < 1 else settings.warmup / phase.steps
        warmup = round(share * phase.steps)
        for i, groups in enumerate(order):
            found.append(Step(groups, phase.lr * lr_factor(i, phase.steps, warmup, settings.schedule)))
    return found


def lr_factor(step: int, steps: int, warmup: int, decay: str) -> float:
    """Of a phase's peak learning rate: linear warm-up, then linear or cosine decay to zero after its last step."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


# ---- one step --------------------------------------------------------------------------------------------------------


class StepResult(NamedTuple):
    """Of the groups that one process took; losses and counts of several processes add up to those of the step."""

    # loss, instruct_loss: this part of the mean over the step's classification rows, conversations
    losses: dict[str, float]
    tokens: int  # that went through the model
    rows_cut: int  # rows whose text was cut to fit
    batch_tokens: int  # of a pass, as asked or as it fitted


@dataclass(frozen=True)
class EncodedGroup:
    """Classification rows of one task, encoded."""

    texts: list[list[int]]
    label_ids: list[int]  # of the task
    labels: list[int]  # index of each row's label
    rows_cut: int

    @property
    def tokens(self) -> int:
        """With the shared prefix once."""
        shared = common_prefix(self.texts) if len(self.texts) > 1 else 0
        return sum(map(len, self.texts)) - shared * (len(self.texts) - 1)

    def parts(self, batch_tokens: int) -> list["EncodedGroup"]:
        """Of at most `batch_tokens`, or of one row."""
        if self.tokens <= batch_tokens or len(self.texts) == 1:
            return [self]
        middle = (len(self.texts) + 1) // 2
        first = replace(self, texts=self.texts[:middle], labels=self.labels[:middle])
        rest = replace(self, texts=self.texts[middle:], labels=self.labels[middle:])
        return [*first.parts(batch_tokens), *rest.parts(batch_tokens)]


def training_step(model, *arguments, batch_tokens: int = 2048, passes: int = 0, **options) -> StepResult:
    """`add_gradients`; where CUDA is out of memory once more, in passes of half the tokens."""
    while True:
        try:
            return add_gradients(model, *arguments, batch_tokens=batch_tokens, passes=passes, **options)
        except torch.OutOfMemoryError as error:
            if batch_tokens < 2 * FEWEST_TOKENS or passes:
                raise ValueError(
                    "out of memory in a step; give a lower --batch-tokens or --max-tokens, or --gradient-checkpointing"
                ) from error
        model.zero_grad()
        torch.cuda.empty_cache()  # after the error, whose traceback held tensors
        batch_tokens //= 2


def add_gradients(
    model,
    tokenizer: Tokenizer,
    groups: list[Group],
    label_ids: dict[str, list[int]],
    *,
    step_groups: list[Group] | None = None,
    loss: str = "vocab",
    batch_tokens: int,
    limit: Limit = NO_LIMIT,
    passes: int = 0,
) -> StepResult:
    """Adds the gradient of these groups to the adapter's.

    label_ids: of each task, by name. step_groups: of the whole step, where several processes share it. loss: "vocab" or "label".
    passes: at least so many, where all processes have to take equally many; those too many add nothing."""
    step_groups = groups if step_groups is None else step_groups
    batch_size = sum(len(group.rows) for group in step_groups)
    conversation_count = sum(len(group.rows) for group in step_groups if group.task is None)
    answers = [encode_group(tokenizer, group, label_ids, limit) for group in groups if group.task]
    conversations = [encode_conversations(tokenizer, group.rows) for group in groups if group.task is None]

    sums = {"loss": 0.0, "instruct_loss": 0.0}
    tokens, taken = 0, 0
    for parts in answer_passes(answers, batch_tokens):
        batch, loss_sum = answer_loss(model, parts, loss)
        (loss_sum / batch_size).backward()
        sums["loss"] = sums["loss"] + loss_sum.detach()
        tokens += len(batch.tokens)
        taken += 1
    for texts in conversations:
        said = sum(text.end - text.begin for text in texts)
        for indices in token_batches([len(text.ids) for text in texts], batch_tokens):
            count, loss_sum = conversation_loss(model, [texts[i] for i in indices])
            weighted = (
                loss_sum / said * len(texts)
            )  # mean over the group's answer tokens, weighted by its rows
            (weighted / batch_size).backward()
            sums["instruct_loss"] = sums["instruct_loss"] + weighted.detach()
            tokens += count
            taken += 1
    nothing = torch.zeros(1, 1, dtype=torch.long, device=model.lm_head.weight.device)
    while taken < passes:  # a pass that all processes must take part in and that adds nothing
        (model(nothing).sum() * 0.0).backward()
        taken += 1

    losses = {}
    if conversation_count < batch_size:
        losses["loss"] = float(sums["loss"]) / (batch_size - conversation_count)
    if conversation_count:
        losses["instruct_loss"] = float(sums["instruct_loss"]) / conversation_count
    return StepResult(losses, tokens, sum(group.rows_cut for group in answers), batch_tokens)


def count_passes(
    tokenizer, groups: list[Group], label_ids, *, batch_tokens: int, limit: Limit = NO_LIMIT
) -> int:
    """How many passes training_step takes for these groups."""
    answers = [encode_group(tokenizer, group, label_ids, limit) for group in groups if group.task]
    count = len(answer_passes(answers, batch_tokens))
    for group in groups:
        if group.task is None:
            lengths = [len(text.ids) for text in encode_conversations(tokenizer, group.rows)]
            count += len(token_batches(lengths, batch_tokens))
    return count


# ---- classification rows -----------------------------------------------------------------------------------------


def encode_group(tokenizer, group: Group, label_ids: dict[str, list[int]], limit: Limit) -> EncodedGroup:
    encoded = [encode_row(tokenizer, group.task, row.text, limit=limit) for row in group.rows]
    return EncodedGroup(
        texts=[row.ids for row in encoded],
        label_ids=label_ids[group.task.name],
        labels=[row.label for row in group.rows],
        rows_cut=sum(row.left_out > 0 for row in encoded),
    )


def answer_passes(groups: list[EncodedGroup], batch_tokens: int) -> list[list[EncodedGroup]]:
    """Groups in passes of about equal tokens, at most `batch_tokens`. A group is cut only where it alone has more, since its
    parts repeat the prefix."""
    parts = [part for group in groups for part in group.parts(batch_tokens)]
    batches = token_batches([part.tokens for part in parts], batch_tokens)
    return [[parts[i] for i in sorted(batch)] for batch in batches]


def answer_loss(model, groups: list[EncodedGroup], loss: str) -> tuple[Pass, torch.Tensor]:
    """-> (the pass that was taken, the sum () of the rows' losses)."""
    device, weight = model.lm_head.weight.device, model.lm_head.weight
    scale = 1 / model.config.logits_scaling
    batch = pack([group.texts for group in groups], switch=rope_switch(model.config))
    hidden = model.last_hidden(batch.tokens.to(device), batch.spans)  # (B, C)
    if loss == "vocab":
        targets = [group.label_ids[label] for group in groups for label in group.labels]
        targets = torch.tensor([targets[i] for i in batch.order], device=device)  # (B,)
        return batch, vocab_token_loss(hidden, weight, targets, scale=scale) * len(targets)
    place = {text: row for row, text in enumerate(batch.order)}
    total, first = 0.0, 0
    for group in groups:
        rows = torch.tensor([place[first + i] for i in range(len(group.texts))], device=device)
        targets = torch.tensor(group.labels, device=device)
        mean = label_token_loss(hidden[rows], weight, group.label_ids, targets, scale=scale)
        total = total + mean * len(targets)
        first += len(group.texts)
    return batch, total


# ---- conversations ---------------------------------------------------------------------------------------------------


class EncodedConversation(NamedTuple):
    ids: list[int]
    begin: int  # ids[begin:end] is the assistant's last turn, what is trained on
    end: int


def encode_conversations(
    tokenizer: Tokenizer, conversations: list[Conversation]
) -> list[EncodedConversation]:
    """Raises ValueError naming file and line for what the chat template refuses."""
    encoded = []
    for conversation in conversations:
        thinking = bool(conversation.messages[-1].get("reasoning_content"))
        try:
            ids, (begin, end) = tokenizer.chat(list(conversation.messages), thinking=thinking)
        except ValueError as error:
            raise ValueError(f"{conversation.where}: {error}") from error
        encoded.append(EncodedConversation(ids, begin, end))
    return encoded


def conversation_loss(model, texts: list[EncodedConversation]) -> tuple[int, torch.Tensor]:
    """-> (tokens that went through the model, sum () of the cross-entropy over all tokens of the assistants' last turns)."""
    device = model.lm_head.weight.device
    tokens, spans, before, targets = [], [], [], []
    for text in texts:
        place = len(tokens) - 1  # before the text, and so before each token that is said
        before += range(place + text.begin, place + text.end)
        targets += text.ids[text.begin : text.end]
        tokens += text.ids[:-1]
        spans.append(Span(1, len(text.ids) - 1))
    hidden = model.hidden(torch.tensor(tokens, device=device), spans)  # (N, C)
    targets = torch.tensor(targets, device=device)  # (n,)
    scale = 1 / model.config.logits_scaling
    answering = hidden[torch.tensor(before, device=device)]  # (n, C)
    loss = vocab_token_loss(answering, model.lm_head.weight, targets, scale=scale)
    return len(tokens), loss * len(targets)


def check_conversations(tokenizer: Tokenizer, conversations: list[Conversation], limit: int | None) -> None:
    """Raises ValueError naming file and line for what the chat template refuses, and for more than `limit` tokens: nothing of a
    conversation can be left out."""
    for conversation, text in zip(conversations, encode_conversations(tokenizer, conversations)):
        if limit is not None and len(text.ids) > limit:
            raise ValueError(
                f"{conversation.where}: expected at most {limit} tokens, got {len(text.ids)}; shorten the conversation, "
                "or take it out, or give more --max-tokens"
            )
