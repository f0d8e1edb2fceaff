"""What a run trains on step by step, and one step of it: phases, learning rate, passes, losses.

A step has `batch_size` rows: classification rows of many tasks, conversations, or both. Its tokens go through the model in as few
passes as `batch_tokens` allows; the gradient is that of the mean over the step's rows whatever the passes are.
"""

import math
from typing import NamedTuple

import torch

from minimon.attention import Span
from minimon.batch import (
    NO_LIMIT,
    Encoded,
    Group,
    Limit,
    encode,
    most_tokens,
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
        warmup = round(settings.warmup * (phase.steps if settings.warmup < 1 else 1))
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


class EncodedConversation(NamedTuple):
    ids: list[int]
    begin: int  # ids[begin:end] is the assistant's last turn, what is trained on
    end: int


EncodedGroups = list[Encoded | list[EncodedConversation]]


class StepPass(NamedTuple):
    """What goes through the model together: rows of one task or several, or conversations."""

    rows: list[Encoded]
    conversations: list[EncodedConversation]
    weight: float = 1.0  # of the loss of one token that is trained on, in the sum over the step's rows


class StepResult(NamedTuple):
    """Of the groups that one process took; losses and counts of several processes add up to those of the step."""

    # loss, instruct_loss: this part of the mean over the step's classification rows, conversations
    losses: dict[str, float]
    tokens: int  # that went through the model
    rows_cut: int  # rows whose text was cut to fit
    batch_tokens: int  # of a pass, as asked or as it fitted


def encode_groups(tokenizer: Tokenizer, groups: list[Group], limit: Limit = NO_LIMIT) -> EncodedGroups:
    """Each group's rows, or conversations, as ids."""
    encoded = []
    for group in groups:
        if group.task:
            encoded.append(encode(tokenizer, group.task, group.rows, limit))
        else:
            encoded.append(encode_conversations(tokenizer, group.rows))
    return encoded


def step_passes(groups: EncodedGroups, batch_tokens: int) -> list[StepPass]:
    """As few as `batch_tokens` allows, of about equal tokens. A group is cut only where it alone has more, since its parts repeat
    the prefix."""
    parts = [part for group in groups if isinstance(group, Encoded) for part in group.parts(batch_tokens)]
    passes = []
    for batch in token_batches([part.tokens for part in parts], batch_tokens):
        passes.append(StepPass([parts[i] for i in sorted(batch)], []))
    for group in groups:
        if not isinstance(group, Encoded):
            # the mean over the tokens that are said counts as much as the group's rows
            said = sum(text.end - text.begin for text in group)
            for batch in token_batches([len(text.ids) for text in group], batch_tokens):
                passes.append(StepPass([], [group[i] for i in batch], len(group) / said))
    return passes


def training_step(
    model,
    groups: EncodedGroups,
    step_groups: list[Group],
    *,
    loss: str = "vocab",
    batch_tokens: int = 2048,
    at_least: int = 0,
) -> StepResult:
    """Adds the gradient of these groups to the adapter's: their part of the mean over the rows of the whole step, `step_groups`,
    which several processes may share.

    loss: "vocab" or "label". at_least: so many passes, where all processes have to take equally many; those too many add nothing.
    Where CUDA is out of memory, once more in passes of half the tokens."""
    while True:
        try:
            passes = step_passes(groups, batch_tokens)
            losses, tokens = add_gradients(model, passes, step_groups, loss, at_least)
            left_out = [count for group in groups if isinstance(group, Encoded) for count in group.left_out]
            return StepResult(losses, tokens, sum(count > 0 for count in left_out), batch_tokens)
        except torch.OutOfMemoryError as error:
            if batch_tokens < 2 * FEWEST_TOKENS or at_least:
                raise ValueError(
                    "out of memory in a step; give a lower --batch-tokens or --max-tokens, or --gradient-checkpointing"
                ) from error
        model.zero_grad()
        torch.cuda.empty_cache()  # after the error, whose traceback held tensors
        batch_tokens //= 2


def add_gradients(
    model, passes: list[StepPass], step_groups: list[Group], loss: str, at_least: int
) -> tuple[dict[str, float], int]:
    """-> (losses, tokens) of a StepResult."""
    counts = {"loss": 0, "instruct_loss": 0}  # rows of the step, conversations of it
    for group in step_groups:
        counts["loss" if group.task else "instruct_loss"] += len(group.rows)
    sums, tokens = dict.fromkeys(counts, 0.0), 0
    for rows, conversations, weight in passes:
        if rows:
            name, (count, loss_sum) = "loss", answer_loss(model, rows, loss)
        else:
            name, (count, loss_sum) = "instruct_loss", conversation_loss(model, conversations)
        (loss_sum * weight / sum(counts.values())).backward()
        sums[name] = sums[name] + loss_sum.detach() * weight
        tokens += count
    nothing = torch.zeros(1, 1, dtype=torch.long, device=model.lm_head.weight.device)
    for _ in range(at_least - len(passes)):
        (model(nothing).sum() * 0.0).backward()
    return {name: float(sums[name]) / count for name, count in counts.items() if count}, tokens


def answer_loss(model, groups: list[Encoded], loss: str) -> tuple[int, torch.Tensor]:
    """-> (tokens that went through the model, sum () of the rows' losses)."""
    device, weight = model.lm_head.weight.device, model.lm_head.weight
    scale = 1 / model.config.logits_scaling
    batch = pack([group.ids for group in groups], switch=rope_switch(model.config))
    hidden = model.last_hidden(batch.tokens.to(device), batch.spans)
    hidden = hidden[torch.tensor(batch.order, device=device).argsort()]  # (B, C) in the order of the groups
    if loss == "vocab":
        targets = [group.label_ids[label] for group in groups for label in group.labels]
        targets = torch.tensor(targets, device=device)  # (B,)
        return len(batch.tokens), vocab_token_loss(hidden, weight, targets, scale=scale) * len(targets)
    total = 0.0
    for group, of_group in zip(groups, hidden.split([len(group.ids) for group in groups])):
        targets = torch.tensor(group.labels, device=device)
        mean = label_token_loss(of_group, weight, group.label_ids, targets, scale=scale)
        total = total + mean * len(targets)
    return len(batch.tokens), total


# ---- conversations ---------------------------------------------------------------------------------------------------


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


def check_conversations(tokenizer: Tokenizer, conversations: list[Conversation], limit: Limit) -> None:
    """Raises ValueError naming file and line for what the chat template refuses, and for more tokens than that: nothing of a
    conversation can be left out."""
    most = most_tokens(limit)
    for conversation, text in zip(conversations, encode_conversations(tokenizer, conversations)):
        if len(text.ids) > most:
            raise ValueError(
                f"{conversation.where}: expected at most {most} tokens, got {len(text.ids)}; shorten the conversation, "
                "or take it out, or give more --max-tokens"
            )
