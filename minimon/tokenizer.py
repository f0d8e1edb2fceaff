"""Chat messages -> token ids up to the first token of the answer. Control tokens come from the template,
never from a message: hf/control.py says how.

A model thinks before it answers by a *token* where its template closes a thought with the control token
</think>, else by *words*: the prompt asks for reasoning and then a line "Answer: X". Both go alike:

    prompt = chat([... task prompt + think_request ...], thinking=True)
    thought, stop = what the model writes up to one of thought_stops, or to the limit
    ids, complete = close(thought, stop)
    the label is read after prompt + ids, as one of label_ids(labels, thinking=True)
"""

import json
import re
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer as FastTokenizer

from minimon.files import one_line, read_json, resolve
from minimon.hf.control import MARK, NONCE_END, ControlStrings, check_sizes
from minimon.hf.templates import compile_template, eos_ids, find_template, special_tokens

ROLES, FIELDS = ("system", "user", "assistant", "tool"), ("content", "name", "reasoning_content")
USUAL = ("Yes", "No", "A", "B", "1", "0")  # labels
ASK = [{"role": "user", "content": "x"}]
BY_TOKEN, BY_WORDS = "</think>\n\n", "\nAnswer:"  # what stands between a thought and the answer
ANSWER_LINE = re.compile(r"^[*_#> ]*answer[*_ ]*:", re.IGNORECASE | re.MULTILINE)
THINK_REQUEST = """

Before you answer, reason about it in a few sentences. Then end with one more line of this form,
in which X is your answer:
Answer: X"""


class ClosedThought(NamedTuple):
    ids: list[int]  # the thought and what stands between it and the answer
    complete: bool  # it ended by itself, in the form that was asked for


def load_tokenizer(path_or_hub_id, *, date: str | None = None) -> "Tokenizer":
    """tokenizer.json and the chat template of a checkpoint. date: ISO, None for today; some write it.

    Raises FileNotFoundError or ValueError in one line naming the file."""
    directory = resolve(path_or_hub_id, ("*.json", "*.jinja"))
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a tokenizer there, found none; "
            "only this format is read, save_pretrained writes it"
        )
    try:
        day = datetime.fromisoformat(date) if date else datetime.now()
    except (ValueError, TypeError) as error:
        raise ValueError(f"date: expected one such as 2026-01-31, got {date!r}") from error
    return Tokenizer(directory, day)


class Tokenizer:
    """control: text -> id of every control token. eos: the tokenizer's own end token, or None.
    stop_ids: ids that end a turn. think_end: the id that closes a thought, None if the model thinks by words.
    think_request: what such a model's prompt adds, else ""."""

    def __init__(self, directory, date):
        self.path = directory / "tokenizer.json"
        self.plain, self.encoder, self.strings, unknown = read_tokenizer(self.path)
        self.control = self.strings.ids
        self.control_ids = set(self.control.values()) - {unknown}  # any character may be an unknown one
        self.source, self.where = find_template(directory)
        self.template = compile_template(self.source, self.where, date)
        self.special = special_tokens(directory)
        self.eos = self.special.get("eos_token")
        self.think_end = self.control.get("</think>") if "</think>" in self.source else None
        self.think_request = THINK_REQUEST if self.think_end is None else ""
        self.closing = BY_WORDS if self.think_end is None else BY_TOKEN
        everything = {"role": "user", "content": " ".join(["text", *map(str, self.control_ids)])}
        self.label_tokens = {}  # what label_ids has found
        self.has_system = False
        with suppress(ValueError):  # the template may refuse a system turn, or leave it out
            turns = [{"role": "system", "content": MARK}, everything]
            self.has_system = MARK in self.render(turns, True, False)
        self.chat([everything])  # refuses what can never work, as a normalizer that drops parts of a nonce
        self.stop_ids = eos_ids(directory) or {self.plain.token_to_id(self.eos or "")} - {None}
        with suppress(ValueError):  # a template may be for prompts alone
            _, _, after = self.turn([everything], False)
            self.stop_ids |= set(self.strings.rename(after)[1][:1])

    def chat(self, messages: list[dict], *, thinking: bool = False):
        """[{"role", "content"}] -> ids with the generation prompt, up to the answer or the thought before it.

        A conversation that ends with an assistant turn gives (ids, (start, stop)): ids[:start] is
        chat(messages[:-1]), and ids[start:stop] is the turn and what ends it. Raises ValueError for what is
        no message and for what the template refuses."""
        messages, thinking = self.hold_back(messages), thinking and self.think_end is not None
        if messages[-1]["role"] != "assistant":
            return self.encode(self.prompt(messages, thinking))
        *before, answer = messages
        if not before:
            raise ValueError("messages: expected a turn before the assistant's, got none")
        prompt, whole = self.prompt(before, thinking), self.render(messages, False, thinking)
        if whole.startswith(prompt):
            rest = whole[len(prompt) :]
        else:  # the template writes a past turn otherwise: here as it would be generated
            _, _, after = self.turn(before, thinking)
            rest = answer["content"] + after
            if self.opens_thought(prompt):
                rest = f"{answer.get('reasoning_content', '')}\n{BY_TOKEN}{rest}"
        ids, rest_ids = self.encode(prompt), self.follow(prompt, rest)
        return ids + rest_ids, (len(ids), len(ids) + len(rest_ids))

    def label_ids(self, labels: list[str], *, thinking: bool = False) -> list[int]:
        """Token id of each label where the answer begins: after the generation prompt, or a closed thought.

        Raises ValueError for a label that is not one token there, and for two that are the same one."""
        key = (*labels, thinking)
        if key not in self.label_tokens:
            self.label_tokens[key] = self.find_label_ids(labels, thinking)
        return list(self.label_tokens[key])

    def find_label_ids(self, labels, thinking):
        by_words = self.think_end is None
        prompt, lead, _ = self.turn(ASK, thinking and not by_words)
        if thinking:
            prompt, lead = prompt + self.closing, " " if by_words else ""
        elif lead:
            after = [self.follow(prompt, lead + self.strings.hold(label))[1:] for label in labels]
            if after == [self.follow(prompt, self.strings.hold(label)) for label in labels]:
                lead = ""  # a token of its own before the label: the tokenizer puts a space there as well

        def one_token(label):
            ids = self.follow(prompt, lead + self.strings.hold(label))
            return ids[0] if len(ids) == 1 and ids[0] not in self.control.values() else None

        found = []
        for label in labels:
            token = one_token(label)
            if token is None:
                words = dict.fromkeys([label.capitalize(), label.lower(), *USUAL])
                others = [word for word in words if word not in labels and one_token(word) is not None]
                raise ValueError(
                    f"label {label!r}: expected a word that is one token at the answer position, "
                    f"got one that is not; one token there: {', '.join(others) or 'none of those tried'}"
                )
            if token in found:
                raise ValueError(
                    f"labels {labels[found.index(token)]!r} and {label!r}: expected a token of its own "
                    f"for each, got {token} for both; choose another word for one"
                )
            found.append(token)
        return found

    @property
    def thought_stops(self) -> set[int]:
        """Ids that end a thought, or the turn with it."""
        return (self.stop_ids | {self.think_end}) - {None}

    @cached_property
    def close_thought(self) -> list[int]:
        """What stands between a thought and the answer after it; `close` adds no more."""
        return self.follow(self.prompt(ASK, self.think_end is not None), self.closing)

    def close(self, thought: list[int], stop: int | None) -> ClosedThought:
        """thought: ids as generated; stop: the id that ended them, if one did -> ids up to the answer.

        By words, what was written from the line "Answer: X" on is replaced by that line up to X."""
        if self.think_end is not None:
            return ClosedThought(thought + self.close_thought, stop == self.think_end)
        text = self.decode(thought)
        line = ANSWER_LINE.search(text)
        kept, end = len(thought), line.start() if line else len(text)
        while len(self.decode(thought[:kept])) > end:
            kept -= 1
        reasoning = self.decode(thought[:kept])
        fresh_line = not reasoning or reasoning.endswith("\n")
        closing = self.follow("\n", BY_WORDS.lstrip()) if fresh_line else self.close_thought
        return ClosedThought(thought[:kept] + closing, line is not None)

    def decode(self, ids: list[int]) -> str:
        return self.plain.decode(list(ids), skip_special_tokens=False)

    def hold_back(self, messages):
        """Messages for the template. Where it takes no system role, the prompt opens the first user turn."""
        if not messages:
            raise ValueError("messages: expected at least one {role, content}, got none")
        messages = [check_message(i, message) for i, message in enumerate(messages, 1)]
        if messages[0]["role"] == "system" and not self.has_system:
            text, rest = messages[0]["content"], messages[1:]
            if rest and rest[0]["role"] == "user":
                text = f"{text}\n\n{rest.pop(0)['content']}"
            messages = [{"role": "user", "content": text}, *rest]
        hold = self.strings.hold
        return [{key: text if key == "role" else hold(text) for key, text in m.items()} for m in messages]

    def render(self, messages, generation_prompt, thinking):
        try:
            return self.template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                enable_thinking=thinking,
                **self.special,
            )
        except Exception as error:  # a template may raise anything
            raise ValueError(
                f"{self.where}: the chat template refuses these messages: {one_line(error)}"
            ) from error

    def prompt(self, messages, thinking):
        """Up to the answer or thought. A thought that the template opens unasked is closed empty."""
        text = self.render(messages, True, thinking)
        if not thinking and self.opens_thought(text):
            return f"{text.rstrip()}\n\n{BY_TOKEN}"
        return text

    def opens_thought(self, prompt):
        return "<think>" in self.source and prompt.rstrip().endswith("<think>")

    def turn(self, messages, thinking):
        """Around the assistant's answer: the prompt, what the template writes before it, and after it."""
        prompt = self.prompt(messages, thinking)
        whole = self.render([*messages, {"role": "assistant", "content": MARK}], False, thinking)
        before, found, after = whole.rpartition(MARK)
        if not found:
            raise ValueError(
                f"{self.where}: expected a chat template that writes an assistant's turn, "
                "got one that drops it"
            )
        return prompt, before[len(prompt) :] if before.startswith(prompt) else "", after

    def encode(self, rendered):
        text, written = self.strings.rename(rendered)
        try:
            ids = self.encoder.encode(self.strings.release(text), add_special_tokens=False).ids
        except Exception as error:  # none narrower: by a Unigram model without an unknown token, say
            raise ValueError(
                f"{self.path}: expected a tokenizer that can encode any text, got an error: {one_line(error)}"
            ) from error
        if [i for i in ids if i in self.control_ids] != [i for i in written if i in self.control_ids]:
            raise ValueError(
                f"{self.path}: expected control tokens from the chat template alone, "
                "got others; not supported"
            )
        return ids

    def follow(self, prompt, rest):
        """Ids of `rest` after `prompt`: as encoded together, or cut between where a token would span both."""
        ids, joint = self.encode(prompt), self.encode(prompt + rest)
        if joint[: len(ids)] == ids:
            return joint[len(ids) :]
        return self.encode(NONCE_END + rest)[len(self.encode(NONCE_END)) :]  # nothing merges with that


def read_tokenizer(path):
    """tokenizer.json -> the tokenizer as it is, which decodes; the one that encodes, with control tokens
    renamed; the control strings; and the id of the unknown token, or None."""
    data = read_json(path)
    try:
        check_sizes(data)
        plain = FastTokenizer.from_file(str(path))
        added = plain.get_added_tokens_decoder().items()
        control = {token.content: i for i, token in added if is_control(token)}
        strings = ControlStrings(control)
        encoder = FastTokenizer.from_str(json.dumps(strings.renamed_tokenizer(data)))
    except BaseException as error:  # tokenizers raises no narrower one than Exception, and panics beside it
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(
            f"{path}: expected a tokenizer, got an error: {one_line(error)}; fetch the file again"
        ) from error
    model = data["model"]
    return plain, encoder, strings, model.get("unk_id", plain.token_to_id(model.get("unk_token") or ""))


def is_control(token):
    """Whitespace that is not special is text."""
    return bool(token.content and (token.special or token.content.replace("\u2581", " ").strip()))


def check_message(number, message):
    """Its text by field; None is left out, as transformers does."""
    role = message.get("role") if isinstance(message, dict) else message
    if role not in ROLES:
        raise ValueError(f"message {number}: expected a role, one of {', '.join(ROLES)}; got {role!r}")
    message = {key: value for key, value in message.items() if value is not None}
    for key in ("content", *message):
        if key not in ("role", *FIELDS):
            raise ValueError(
                f"message {number}: expected role, {', '.join(FIELDS)}; got {key!r}; "
                "write what it says into the content"
            )
        text = message.get(key)
        if not isinstance(text, str):
            found = type(text).__name__
            raise ValueError(f"message {number}: {key}: expected text, got {found}; flatten it to one string")
    return message
