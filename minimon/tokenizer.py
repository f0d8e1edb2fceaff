"""Chat messages -> token ids up to the first token of the answer. Control tokens come from the template, never from a message.

Every added token of tokenizer.json is a control token, special or not. Text under judgement may spell one out; encoded by a usual
tokenizer it would become the token. Here the tokenizer's own copy of each control token is renamed to a nonce that no text holds,
the template's occurrences are renamed with it, and a message's occurrences stay the plain text they are (interop 3.4).
"""

import json
import re
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

NONCE, NONCE_END, HELD, HELD_END = "\U0010ff00", "\U0010ff01", "\U0010ff02", "\U0010ff03"      # private use; dropped from messages
ROLES = ("system", "user", "assistant", "tool")


def load_tokenizer(path_or_hub_id, *, date: str | None = None) -> "Tokenizer":
    """tokenizer.json and the chat template of a checkpoint. date: ISO, what a template is told is today; None for today.

    Raises FileNotFoundError or ValueError in one line naming the file."""
    directory = Path(path_or_hub_id)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download
        try:
            directory = Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.jinja"]))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"{path_or_hub_id}: expected a tokenizer's directory or a hub id, found neither "
                                    f"({str(error).strip().splitlines()[0]})") from error
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a tokenizer there, found none; only the tokenizer.json format is read")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        config = json.loads(text) if (text := read_optional(directory / "tokenizer_config.json")) else {}
        return Tokenizer(data, config, find_template(directory, config), datetime.fromisoformat(date) if date else datetime.now())
    except jinja2.TemplateError as error:
        raise ValueError(f"{directory}: the chat template does not work: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:                 # tokenizers raises bare Exception for a bad file
        raise ValueError(f"{path}: expected a tokenizer, got an error: {error}") from error


def read_optional(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def find_template(directory: Path, config: dict) -> str:
    """The default chat template, from the places of interop 3.1 in their order."""
    template = read_optional(directory / "chat_template.jinja") or config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None and (legacy := read_optional(directory / "chat_template.json")):
        template = json.loads(legacy).get("chat_template")
    if not isinstance(template, str):
        raise ValueError("expected a chat template in chat_template.jinja or tokenizer_config.json, found none; "
                         "a monitor's prompt needs one, so use an instruction-tuned checkpoint")
    return template


class Tokenizer:
    def __init__(self, data: dict, config: dict, template: str, date: datetime):
        self.date = date
        self.control = {token["content"]: token["id"] for token in data.get("added_tokens", []) if token["content"]}
        self.pattern = re.compile("|".join(re.escape(text) for text in sorted(self.control, key=len, reverse=True)) or "(?!)")
        self.longest = max(map(len, self.control), default=0)
        self.heads = {text[:n] for text in self.control for n in range(1, len(text)) if text[:n].strip()}
        self.tails = {text[n:] for text in self.control for n in range(1, len(text)) if text[n:].strip()}
        self.plain = FastTokenizer.from_str(json.dumps(data))                          # for decoding
        self.unknown = self.plain.token_to_id((data.get("model") or {}).get("unk_token") or "")
        self.encoder = FastTokenizer.from_str(json.dumps(rename_control(data, self.nonce)))
        special = {key: token_text(value) for key, value in config.items() if key.endswith("_token") and value}
        self.template = compile_template(template, date).render
        self.variables = {"tools": None, "documents": None, **special}
        self.eos = special.get("eos_token")
        probe = [{"role": "system", "content": "\u2603rule"}, {"role": "user", "content": "text"}]
        try:
            self.has_system = "\u2603rule" in self.render(probe, True, False)
        except jinja2.TemplateError:
            self.has_system = False

    # ---- messages -> ids ---------------------------------------------------------------------------------------------------

    def chat(self, messages: list[dict], *, thinking: bool = False):
        """[{"role", "content"}] -> ids with the generation prompt, up to the answer.

        A conversation that ends with an assistant turn gives (ids, (start, stop)): with that turn, and its span."""
        messages, held = self.hold(self.fold_system(messages))
        if messages[-1]["role"] != "assistant":
            return self.encode(self.render(messages, True, thinking), held)
        prompt, whole = self.render(messages[:-1], True, thinking), self.render(messages, False, thinking)
        answer = messages[-1]["content"]
        if not whole.startswith(prompt):       # the template writes past turns otherwise: its own prompt, then the turn and its end
            whole = prompt + answer + whole[whole.rindex(answer) + len(answer):]
        start, ids = len(self.encode(prompt, held)), self.encode(whole, held)
        return ids, (start, len(ids))

    def label_ids(self, labels: list[str], *, thinking: bool = False) -> list[int]:
        """Token id of each label where the answer begins. Raises ValueError for a label that is not one token there."""
        text = self.render([{"role": "user", "content": "x"}], True, thinking) + ("</think>\n\n" if thinking else "")
        prompt = self.encode(text, [])

        def answer(label):
            ids = self.encode(text + label, [])
            return ids[len(prompt)] if ids[:-1] == prompt and ids[-1] not in self.control.values() else None

        ids = [answer(label) for label in labels]
        for label, token in zip(labels, ids):
            if token is None:
                variants = dict.fromkeys([label.capitalize(), label.lower(), label.upper(), label.split()[0] if label.split() else ""])
                options = [word for word in variants if word not in ("", label) and answer(word) is not None]
                options += [word for word in ("Yes", "No", "A", "B", "1", "0") if word not in labels and answer(word) is not None]
                raise ValueError(f"label {label!r}: expected a word that is one token at the answer position, got one that is not; "
                                 f"one token there: {', '.join(options) or 'none tried'}")
        if len(set(ids)) < len(ids):
            raise ValueError(f"labels {labels!r}: expected a token of its own for each, got the same for two")
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.plain.decode(list(ids), skip_special_tokens=False)

    # ---- how -----------------------------------------------------------------------------------------------------------------

    def nonce(self, text: str) -> str:
        return f"{NONCE}{self.control[text]}{NONCE_END}"

    def fold_system(self, messages):
        """Where the template has no system role, the instruction opens the first user turn."""
        if self.has_system or messages[0]["role"] != "system":
            return messages
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return [first, *messages[2:]]

    def hold(self, messages):
        """Messages with every control string replaced by a placeholder, and the strings held back."""
        held = []

        def place(text):
            held.append(text)
            return f"{HELD}{len(held) - 1}{HELD_END}"

        safe = []
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"role: expected one of {', '.join(ROLES)}; got {message['role']!r}")
            text = re.sub(f"[{NONCE}{NONCE_END}{HELD}{HELD_END}]", "", message["content"])
            text = re.sub("[\ud800-\udfff]", "\ufffd", text)                           # half characters cannot be encoded
            text = self.pattern.sub(lambda match: place(match.group()), text)
            if any(text[-n:] in self.heads for n in range(1, self.longest)):           # the template must not complete it
                text += place("")
            if any(text[:n] in self.tails for n in range(1, self.longest)):
                text = place("") + text
            safe.append({**message, "content": text})
        return safe, held

    def render(self, messages, generation_prompt, thinking):
        return self.template(messages=messages, add_generation_prompt=generation_prompt, enable_thinking=thinking, **self.variables)

    def encode(self, rendered: str, held: list[str]) -> list[int]:
        """One joint encoding: the template's control strings as nonces, the messages' as the text they are."""
        written = []

        def rename(match):
            written.append(self.control[match.group()])
            return self.nonce(match.group())

        text = self.pattern.sub(rename, rendered)
        text = re.sub(f"{HELD}(\\d+){HELD_END}", lambda match: held[int(match.group(1))], text)
        ids = self.encoder.encode(text, add_special_tokens=False).ids
        control = set(self.control.values()) - {self.unknown}
        if [i for i in ids if i in control] != [i for i in written if i in control]:
            raise ValueError("expected control tokens from the chat template alone, got others; this tokenizer.json is not supported")
        return ids


def token_text(value) -> str:
    return value["content"] if isinstance(value, dict) else value


def rename_control(data: dict, nonce) -> dict:
    """A copy of tokenizer.json in which every added token is spelled as its nonce; ids stay."""
    data = json.loads(json.dumps(data))
    names = {token["content"] for token in data.get("added_tokens", []) if token["content"]}

    def rename(text):
        return nonce(text) if text in names else text

    for token in data.get("added_tokens", []):
        token["content"] = rename(token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(text): i for text, i in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = rename(model["unk_token"])
    if model.get("merges"):                    # text must not be merged into a control token either
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names]
    data["post_processor"] = None              # the template writes what a post-processor would add
    return data


# ---- the chat template's environment, as in transformers (interop 3.2) --------------------------------------------------------


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %}: the body, as it is."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, date: datetime) -> jinja2.Template:
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = date.strftime
    return environment.from_string(source)
