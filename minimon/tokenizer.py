"""Chat messages -> token ids up to the first token of the answer. Control tokens come from the template, never from a message.

Every added token of tokenizer.json is a control token, special or not; only whitespace, which Gemma and GPT-NeoX list as well, is
text. A usual tokenizer turns a message that spells one out into the token. So here:
  1. In a message every character that a control token begins with is held back: a private character stands for it, and whatever
     the template does with the text, no control string comes of it.
  2. The template renders. Control strings found now are the template's own; each is renamed to a nonce that no text holds.
  3. The held characters return, and all of it is encoded at once by a copy of the tokenizer that knows the nonces only.
On text without control strings the ids are those of the usual encoding of a conversation.
"""

import json
import re
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from minimon.files import read_json, resolve
from minimon.hf.templates import compile_template, eos_ids, find_template, one_line, special_tokens

NONCE, NONCE_END, GAP, ANSWER = "\U0010ff00", "\U0010ff01", "\U0010ff02", "\U0010ff03"     # private use, as HELD + i is, which
LONGEST = 1024                                 # characters of a control token; every ending of it is looked for
HELD = 0x100000                                # stands for the i-th of the characters that control tokens begin with
ROLES, FIELDS = ("system", "user", "assistant", "tool"), ("content", "name", "reasoning_content")


def load_tokenizer(path_or_hub_id, *, date: str | None = None) -> "Tokenizer":
    """tokenizer.json and the chat template of a checkpoint. date: ISO, what a template is told is today; None for today.

    Raises FileNotFoundError or ValueError in one line naming the file."""
    directory = resolve(path_or_hub_id, ("*.json", "*.jinja"))
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a tokenizer there, found none; only this format is read, save_pretrained writes it")
    try:
        today = datetime.fromisoformat(date) if date else datetime.now()
    except (ValueError, TypeError) as error:
        raise ValueError(f"date: expected one such as 2026-01-31, got {date!r}") from error
    return Tokenizer(path, *find_template(directory), today, special_tokens(directory), eos_ids(directory))


class Tokenizer:
    """control: text -> id of every control token. eos: the tokenizer's own end token, or None. stop_ids: ids that end a turn."""

    def __init__(self, path: Path, source: str, where: Path, date: datetime, special: dict[str, str], eos_ids: set[int]):
        data = read_json(path)
        try:
            check_sizes(data)
            self.plain = FastTokenizer.from_file(str(path))                            # decodes; does not know what is control
            self.control = {token.content: i for i, token in self.plain.get_added_tokens_decoder().items()
                            if token.content and (token.special or token.content.replace("\u2581", " ").strip())}
            self.encoder = FastTokenizer.from_str(json.dumps(rename_control(data, self.control)))
        except BaseException as error:         # tokenizers raises no narrower one than Exception, and panics beside it
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(f"{path}: expected a tokenizer, got an error: {one_line(error)}; fetch the file again") from error
        unknown = data["model"].get("unk_id", self.plain.token_to_id(data["model"].get("unk_token") or ""))
        self.control_ids = set(self.control.values()) - {unknown}                      # any character may be an unknown one
        self.path, self.source, self.where, self.template = path, source, where, compile_template(source, where, date)
        self.special, self.eos = special, special.get("eos_token")
        self.max_tokens = self.max_positions = None                                    # limits on a row: batch.fit
        self.prepare_holding()
        user = {"role": "user", "content": " ".join(["text", *map(str, self.control_ids)])}
        self.has_system = False
        with suppress(ValueError):             # the template may refuse a system turn, or leave it out
            self.has_system = ANSWER in self.render([{"role": "system", "content": ANSWER}, user], True, False)
        self.chat([user])                      # refuse here what can never work, as a normalizer that leaves of a nonce its digits
        self.stop_ids = eos_ids or {self.plain.token_to_id(self.eos or "")} - {None}
        with suppress(ValueError):             # a template may be for prompts alone
            self.stop_ids |= set(self.rename(self.turn([user], False)[2])[1][:1])

    def chat(self, messages: list[dict], *, thinking: bool = False):
        """[{"role", "content"}] -> ids with the generation prompt, up to the answer.

        A conversation that ends with an assistant turn gives (ids, (start, stop)): ids[:start] is chat(messages[:-1]), and
        ids[start:stop] is the turn and what ends it. Raises ValueError for what is no message and for what the template refuses."""
        messages = self.hold_back(messages)
        if messages[-1]["role"] != "assistant":
            return self.encode(self.render(messages, True, thinking))
        if len(messages) == 1:
            raise ValueError("messages: expected a turn before the assistant's, got none")
        prompt, whole = self.render(messages[:-1], True, thinking), self.render(messages, False, thinking)
        if whole.startswith(prompt):
            rest = whole[len(prompt):]
        else:                                  # the template writes a past turn otherwise: here as it would be generated
            rest = messages[-1]["content"] + self.turn(messages[:-1], thinking)[2]
        ids, answer = self.encode(prompt), self.follow(prompt, rest)
        return ids + answer, (len(ids), len(ids) + len(answer))

    def label_ids(self, labels: list[str], *, thinking: bool = False) -> list[int]:
        """Token id of each label where the answer begins: after the generation prompt, or after a thought.

        Raises ValueError for a label that is not one token there, and for two that are the same one."""
        prompt, lead, _ = self.turn([{"role": "user", "content": "x"}], thinking)
        if thinking and "</think>" not in self.control and "</think>" not in self.source:
            raise ValueError("thinking: expected </think> in the tokenizer or its chat template, got neither; ask without thinking")
        if thinking:
            prompt, lead = prompt + "</think>\n\n", ""

        def spell(label, lead):
            return self.follow(prompt, lead + self.hold(label))

        if lead and all(spell(label, lead)[1:] == spell(label, "") for label in labels):
            lead = ""                          # a token of its own before the label, as where the tokenizer puts a space there as well

        def answer(label):
            ids = spell(label, lead)
            return ids[0] if len(ids) == 1 and ids[0] not in self.control.values() else None

        ids = [answer(label) for label in labels]
        for i, (label, token) in enumerate(zip(labels, ids)):
            if token is None:
                words = [label.capitalize(), label.lower(), label.upper(), *label.split()[:1], "Yes", "No", "A", "B", "1", "0"]
                options = [word for word in dict.fromkeys(words) if word and word not in labels and answer(word) is not None]
                raise ValueError(f"label {label!r}: expected a word that is one token at the answer position, got one that is not; "
                                 f"one token there: {', '.join(options) or 'none of those tried'}")
            if token in ids[:i]:
                raise ValueError(f"labels {labels[ids.index(token)]!r} and {label!r}: expected a token of its own for each, "
                                 f"got {token} for both; choose another word for one")
        return ids

    @cached_property
    def think_end(self) -> int | None:
        """The control token that closes a thought; None where the tokenizer has none."""
        return self.control.get("</think>")

    @cached_property
    def close_thought(self) -> list[int]:
        """What stands between a thought and the answer after it."""
        prompt, _, _ = self.turn([{"role": "user", "content": "x"}], True)
        return self.follow(prompt, "</think>\n\n")

    def decode(self, ids: list[int]) -> str:
        return self.plain.decode(list(ids), skip_special_tokens=False)

    def prepare_holding(self):
        firsts = sorted({text[0] for text in self.control})
        self.held = {char: chr(HELD + i) for i, char in enumerate(firsts)}
        self.returned = {GAP: "", **{private: char for char, private in self.held.items()}}
        self.first = re.compile(f"[{re.escape(''.join(firsts))}]" if firsts else "(?!)")
        self.private = re.compile(f"[{''.join(self.returned)}]")
        self.unsafe = re.compile(f"[\ud800-\udfff{NONCE}-{ANSWER}{''.join(self.held.values())}{re.escape(''.join(firsts))}]")
        self.lengths = sorted({len(text) for text in self.control} or {0}, reverse=True)
        self.tails = {text[i:] for text in self.control for i in range(1, len(text))}
        self.inner = GAP.join(text[1:] for text in self.control)

    def hold_back(self, messages: list[dict]) -> list[dict]:
        """Messages as the template may see them. Where it has no system role, the instruction opens the first user turn."""
        if not messages:
            raise ValueError("messages: expected at least one {role, content}, got none")
        messages = [check_message(i, message) for i, message in enumerate(messages, 1)]
        if messages[0]["role"] == "system" and not self.has_system:
            text, rest = messages[0]["content"], messages[1:]
            if rest and rest[0]["role"] == "user":
                text = f"{text}\n\n{rest.pop(0)['content']}"
            messages = [{"role": "user", "content": text}, *rest]
        return [{key: text if key == "role" else self.hold(text) for key, text in message.items()} for message in messages]

    def hold(self, text: str) -> str:
        """U+FFFD stands for private characters and for halves of surrogate pairs."""
        text = self.unsafe.sub(lambda match: self.held.get(match.group(), "\ufffd"), text)
        for start in sorted({0, len(text) - len(text.lstrip())}, reverse=True):        # the template may trim it
            rest = text[start:]                # may it, right after characters of the template, end a control string or lie in one?
            if any(rest[:n] in self.tails for n in range(1, self.lengths[0])) or any(t and t in self.inner for t in (rest, rest.rstrip())):
                text = text[:start] + GAP + rest
        return text

    def render(self, messages, generation_prompt: bool, thinking: bool) -> str:
        try:
            return self.template.render(messages=messages, tools=None, documents=None, add_generation_prompt=generation_prompt,
                                        enable_thinking=thinking, **self.special)
        except Exception as error:             # a template may raise anything
            raise ValueError(f"{self.where}: the chat template refuses these messages: {one_line(error)}") from error

    def turn(self, messages, thinking: bool) -> tuple[str, str, str]:
        """Around the assistant's turn: the prompt, what the template writes between it and the answer, what it writes after."""
        prompt = self.render(messages, True, thinking)
        whole = self.render([*messages, {"role": "assistant", "content": ANSWER}], False, thinking)
        before, found, after = whole.rpartition(ANSWER)
        if not found:
            raise ValueError(f"{self.where}: expected a chat template that writes an assistant's turn, got one that drops it")
        return prompt, before[len(prompt):] if before.startswith(prompt) else "", after

    def rename(self, text: str) -> tuple[str, list[int]]:
        """Control strings, the longest first as in tokenizers, become nonces. Also their ids in order."""
        parts, done, written = [], 0, []
        for at in (match.start() for match in self.first.finditer(text)):
            name = next((name for n in self.lengths if (name := text[at:at + n]) in self.control), None) if at >= done else None
            if name is not None:
                parts += [text[done:at], NONCE, str(self.control[name]), NONCE_END]
                written.append(self.control[name])
                done = at + len(name)
        return "".join(parts) + text[done:], written

    def encode(self, rendered: str) -> list[int]:
        text, written = self.rename(rendered)
        text = self.private.sub(lambda match: self.returned[match.group()], text)
        try:
            ids = self.encoder.encode(text, add_special_tokens=False).ids
        except Exception as error:             # tokenizers raises no narrower one: a Unigram model without an unknown token, say
            raise ValueError(f"{self.path}: expected a tokenizer that can encode any text, got an error: {one_line(error)}") from error
        if [i for i in ids if i in self.control_ids] != [i for i in written if i in self.control_ids]:
            raise ValueError(f"{self.path}: expected control tokens from the chat template alone, got others; not supported")
        return ids

    def follow(self, prompt: str, rest: str) -> list[int]:
        """Ids of `rest` after the ids of `prompt`: as encoded together, or cut between the two where a token would span both."""
        ids, joint = self.encode(prompt), self.encode(prompt + rest)
        if joint[:len(ids)] != ids:
            ids, joint = self.encode(NONCE_END), self.encode(NONCE_END + rest)         # text that nothing merges with
        return joint[len(ids):]


def check_message(number: int, message: dict) -> dict:
    """Its text by field; None is left out, as transformers does."""
    role = message.get("role") if isinstance(message, dict) else message
    if role not in ROLES:
        raise ValueError(f"message {number}: expected a role, one of {', '.join(ROLES)}; got {role!r}")
    message = {key: value for key, value in message.items() if value is not None}
    for key in ("content", *message):
        if key not in ("role", *FIELDS):
            raise ValueError(f"message {number}: expected role, {', '.join(FIELDS)}; got {key!r}; write what it says into the content")
        if not isinstance(message.get(key), str):
            raise ValueError(f"message {number}: {key}: expected text, got {type(message.get(key)).__name__}; flatten it to one string")
    return message


def check_sizes(data: dict) -> None:
    """tokenizers cuts the prefix of a word's later pieces off without a look, and takes the process down where it is not there."""
    if any(len(token["content"]) > LONGEST for token in data.get("added_tokens", [])):
        raise ValueError(f"an added token of more than {LONGEST} characters")
    model = data["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or ()]
    if not all(pair[1].startswith(prefix) for pair in pairs):
        raise ValueError(f"continuing_subword_prefix {prefix[:20]!r} is not in the merges")


def rename_control(data: dict, control: dict[str, int]) -> dict:
    """tokenizer.json in which every control token is spelled as its nonce, in the vocabulary too; ids stay."""
    def rename(text):
        return f"{NONCE}{control[text]}{NONCE_END}" if text in control else text

    model = dict(data["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(text): i for text, i in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = rename(model["unk_token"])
    if model.get("merges"):                    # text must not be merged into a control token either
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & control.keys()]
    tokens = [{**token, "content": rename(token["content"])} for token in data.get("added_tokens", [])]
    return {**data, "added_tokens": tokens, "model": model, "truncation": None, "padding": None}    # neither cut nor padded
