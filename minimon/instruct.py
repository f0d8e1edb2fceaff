"""Instruction-following data: conversations as JSONL chat messages, read and checked; and their loss over the assistant's last turn."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minimon.files import read_jsonl
from minimon.loss import response_loss

SCHEDULES = ("none", "joint", "after", "only")


@dataclass(frozen=True)
class Instruct:
    """Instruction-following data of a mixture, and when to train on it unless --instruct says so."""

    path: Path
    schedule: str = "none"
    fraction: float = 0.25                     # of a step's rows, where trained jointly


def instruct_table(table, path: Path) -> Instruct:
    if not isinstance(table, dict) or not isinstance(table.get("rows"), str) or set(table) - {"rows", "schedule", "fraction"}:
        raise ValueError(f'{path}: instruct: expected rows = "FILE.jsonl", and schedule or fraction; got {table!r}')
    instruct = Instruct(path.parent / table["rows"], *(table.get(key, getattr(Instruct, key)) for key in ("schedule", "fraction")))
    if instruct.schedule not in SCHEDULES or not isinstance(instruct.fraction, float) or not 0 < instruct.fraction < 1:
        raise ValueError(f"{path}: instruct: expected a schedule of {', '.join(SCHEDULES)} and a fraction in (0, 1); "
                         f"got {instruct.schedule!r} and {instruct.fraction!r}")
    return instruct


def schedule_of(instruct: Instruct | None, asked: str | None) -> str:
    """What --instruct asks for, or else the mixture's."""
    return asked or (instruct.schedule if instruct else "none")


@dataclass(frozen=True)
class Conversation:
    messages: tuple[dict, ...]                 # role, content and perhaps reasoning_content; the last is the assistant's
    where: str                                 # file:line

    @property
    def text(self) -> str:
        """All that is said, for sorting by length and for the check against evaluation prompts."""
        return "\n".join(message["content"] for message in self.messages)


def load_conversations(path, refused=()) -> list[Conversation]:
    """Lines {"messages": [{"role", "content"}, ...]} that end with an assistant's turn. Raises ValueError naming file and line,
    also for one that holds a `refused` prompt, since what is evaluated must not be trained on."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a file of conversations, found none")
    conversations, refused = [], {normal(prompt): prompt for prompt in refused}
    for number, record in read_jsonl(path):
        where, messages = f"{path}:{number}", record.get("messages")
        if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f'{where}: expected {{"messages": [...]}} of two turns or more, got {str(record)[:80]}')
        if not all(isinstance(message.get("content"), str) for message in messages) or messages[-1].get("role") != "assistant":
            raise ValueError(f"{where}: expected turns with text as content, the last of them the assistant's; "
                             f"got {str(messages[-1])[:80]}")
        conversations.append(Conversation(tuple(messages), where))
        said = normal(conversations[-1].text)
        if found := next((refused[prompt] for prompt in refused if prompt in said), None):
            raise ValueError(f"{where}: expected no prompt of the evaluation, got {found!r}; take the line out")
    if not conversations:
        raise ValueError(f"{path}: expected conversations, got an empty file")
    return conversations


def normal(prompt: str) -> str:
    """Case and spacing do not make a prompt new."""
    return " ".join(prompt.casefold().split())


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
