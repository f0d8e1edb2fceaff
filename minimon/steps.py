"""What a run trains on, step by step: phases of classification and instruction following, their groups and their learning rates.

`settings` are train.py's.
"""

import math
import os
import shutil
from pathlib import Path

import torch

from minimon.batch import Group, training_order
from minimon.run.cli import check_device
from minimon.run.processes import deal, rank
from minimon.loss import response_loss
from minimon.tasks import Conversation, Mixture, load_conversations, schedule_of

PARTS = {"loss": False, "instruct_loss": True}             # of a step: whether the rows are conversations


def check_settings(settings) -> None:
    """Raises ValueError for what the command line got wrong."""
    for name in ("steps", "batch_size", "group_size", "batch_tokens", "save_every", "r", "instruct_steps", "label_samples"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a positive number, got {value}")
    if not 0 <= settings.epsilon <= 1:
        raise ValueError(f"--epsilon: expected a number in [0, 1], got {settings.epsilon}")
    if settings.instruct_fraction is not None and not 0 < settings.instruct_fraction < 1:
        raise ValueError(f"--instruct-fraction: expected a number between 0 and 1, got {settings.instruct_fraction}")
    for name in ("lr", "instruct_lr"):
        if not (0 < getattr(settings, name) < float("inf")):
            raise ValueError(f"--{name.replace('_', '-')}: expected a positive number, got {getattr(settings, name)}")
    if settings.init_adapter and not (Path(settings.init_adapter) / "adapter_config.json").is_file():
        raise ValueError(f"--init-adapter: expected a directory with adapter_config.json, found none in {settings.init_adapter}")
    check_device(settings.device)
    if settings.compile and settings.shard:
        raise ValueError("--compile and --shard: expected one of them, got both")
    if settings.compile and settings.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError("--compile: expected a C++ compiler, found no g++; install one, name another in CXX, or leave --compile out")


def instruction_plan(settings, mixture: Mixture) -> tuple[list[tuple[int, float, float]], list[Conversation]]:
    """-> phases [(steps, peak learning rate, share of rows that are conversations)], conversations."""
    given = mixture.instruct
    schedule = schedule_of(given, settings.instruct)
    if schedule == "none":
        return [(settings.steps, settings.lr, 0.0)], []
    if not given:
        raise ValueError(f"--instruct {schedule}: expected instruction data in {mixture.path}, got no table [instruct]; "
                         'add one with rows = "FILE.jsonl", a line {"messages": [...]} each')
    new = {task.prompt for split, groups in mixture.splits.items() if split != "trained" for tasks in groups.values() for task in tasks}
    conversations = load_conversations(given.path, new)
    fraction = settings.instruct_fraction or given.fraction
    return {"joint": [(settings.steps, settings.lr, fraction)], "only": [(settings.steps, settings.lr, 1.0)],
            "after": [(settings.steps, settings.lr, 0.0), (settings.instruct_steps, settings.instruct_lr, 1.0)]}[schedule], conversations


def training_steps(settings, mixture: Mixture, rows: dict, phases, conversations) -> list[tuple[list[Group], float]]:
    """(groups, learning rate) of each step. rows: of each training task."""
    plan = []
    for steps, lr, fraction in phases:
        order = training_order(mixture, rows, conversations, settings.seed, steps, settings.batch_size, settings.group_size, fraction)
        plan += [(groups, lr * lr_factor(i, steps, settings)) for i, groups in enumerate(order)]
    return plan


def lr_factor(step: int, steps: int, settings) -> float:
    """Of a phase's peak learning rate: linear warm-up, then linear or cosine decay to zero after its last step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(steps - settings.warmup, 1)
    return 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def share_of(groups, together: bool):
    """[(group, weight)] of this process, dealt out by length. Where all have to take part in every pass, since each holds a piece of the
    base, who has fewer groups of a kind than another repeats one, with weight 0."""
    kinds = [[group for group in groups if (group.task is None) == talk] for talk in PARTS.values()] if together else [groups]
    mine = []
    for kind in filter(None, kinds):
        shares = deal([sum(len(row.text) for row in group.rows) for group in kind])
        mine += [(kind[i], 1) for i in shares[rank()]]
        mine += [(kind[0], 0)] * (max(map(len, shares)) - len(shares[rank()])) if together else []
    return mine


def halved(share):
    """[(group, weight)] with each task's groups in two; conversations as they are, since their loss is a mean over the group's tokens. []
    where there is nothing left to halve."""
    parts = []
    for group, weight in share:
        middle = (len(group.rows) + 1) // 2 if group.task else len(group.rows)
        parts += [(Group(group.task, rows), weight) for rows in (group.rows[:middle], group.rows[middle:]) if rows]
    return parts if len(parts) > len(share) else []


# ---- conversations ----------------------------------------------------------------------------------------------------


def encode_conversation(tokenizer, conversation: Conversation) -> tuple[list[int], tuple[int, int]]:
    """Its ids, and where the assistant's last turn lies in them."""
    thinking = any(message.get("reasoning_content") for message in conversation.messages[-1:])
    try:
        return tokenizer.chat(list(conversation.messages), thinking=thinking)
    except ValueError as error:
        raise ValueError(f"{conversation.where}: {error}") from error


def refuse_long(tokenizer, conversations: list[Conversation], limit: int | None) -> None:
    """Nothing of a conversation can be left out: one of more than `limit` tokens is refused. (A token is a byte or more.)"""
    for conversation in conversations:
        if limit is not None and len(conversation.text.encode("utf-8", "replace")) > limit // 2:
            length = len(encode_conversation(tokenizer, conversation)[0])
            if length > limit:
                raise ValueError(f"{conversation.where}: expected at most {limit} tokens, got {length}; shorten the conversation, or take "
                                 "it out, or give more --max-tokens")


def conversation_loss(model, tokenizer, conversations: list[Conversation]):
    """Mean cross-entropy over all tokens of the assistants' last turns -> (loss (), tokens that went through the model)."""
    parts = [encode_conversation(tokenizer, conversation) for conversation in conversations]
    device = model.lm_head.weight.device
    tokens = torch.zeros(len(parts), max(len(ids) for ids, _ in parts), dtype=torch.long)          # (B, T), right-padded
    said = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (ids, (start, stop)) in enumerate(parts):
        tokens[i, :len(ids)] = torch.tensor(ids)
        said[i, start:stop] = True
    tokens, said = tokens.to(device), said.to(device)
    hidden = model(tokens[:, :-1])[said[:, 1:]]                                                    # (n, C) before each token said
    loss = response_loss(hidden, model.lm_head.weight, tokens[:, 1:][said[:, 1:]], scale=1 / model.config.logits_scaling)
    return loss, sum(len(ids) for ids, _ in parts)
