"""Control tokens and text kept apart. Every added token of tokenizer.json is a control token, special or not;
only whitespace, which Gemma and GPT-NeoX list as well, is text.

A usual tokenizer turns a message that spells a control token out into the token. So here:
  1. In a message every character that a control token begins with is held back: a private character stands
     for it, and whatever the template does with the text, no control string comes of it.
  2. The template renders. Control strings found now are the template's own; each is renamed to a nonce that
     no text holds.
  3. The held characters return, and all of it is encoded at once by a copy of the tokenizer that knows the
     nonces only.
On text without control strings the ids are those of the usual encoding of a conversation.
"""

import re

# private characters, which no message holds when it is rendered
NONCE, NONCE_END = "\U0010ff00", "\U0010ff01"  # around a control token's id: its new spelling
GAP = "\U0010ff02"  # keeps a message's text from completing a control string; dropped before the encoding
MARK = "\U0010ff03"  # stands for a turn's content, to see what the template writes around it
HELD = 0x100000  # and what follows stand for the first characters of control tokens
SURROGATES = [chr(code) for code in range(0xD800, 0xE000)]
LONGEST = 1024  # characters of a control token; every ending of it is looked for


class ControlStrings:
    """ids: text -> id of every control token."""

    def __init__(self, ids):
        self.ids = ids
        reserved = [*SURROGATES, NONCE, NONCE_END, GAP, MARK]
        self.holding, self.releasing = {}, {ord(GAP): ""}  # as str.translate reads them
        for i, char in enumerate(sorted({text[0] for text in ids})):
            private = chr(HELD + i)
            reserved.append(private)
            self.holding[ord(char)] = private
            self.releasing[ord(private)] = char
        for char in reserved:
            self.holding[ord(char)] = "\ufffd"

        longest_first = sorted(ids, key=len, reverse=True)  # as tokenizers prefers them
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.longest = max(map(len, ids), default=0)
        self.tails = {text[i:] for text in ids for i in range(1, len(text))}
        self.inner = GAP.join(text[1:] for text in ids)

    def hold(self, text):
        """A message's text for the template. Private characters and half surrogate pairs become U+FFFD."""
        text = text.translate(self.holding)
        trimmed = len(text) - len(text.lstrip())
        for start in sorted({0, trimmed}, reverse=True):  # the template may trim it
            if self.completes(text[start:]):
                text = text[:start] + GAP + text[start:]
        return text

    def completes(self, text):
        """Whether it may, right after characters of the template, end a control string or lie in one."""
        if any(text[:n] in self.tails for n in range(1, self.longest)):
            return True
        return any(part and part in self.inner for part in (text, text.rstrip()))

    def release(self, text):
        return text.translate(self.releasing)

    def rename(self, text):
        """Control strings become nonces. Also their ids in order."""
        written = [self.ids[name] for name in self.pattern.findall(text)]
        return self.pattern.sub(lambda match: self.renamed(match.group()), text), written

    def renamed(self, token):
        return f"{NONCE}{self.ids[token]}{NONCE_END}" if token in self.ids else token

    def renamed_tokenizer(self, data):
        """tokenizer.json with every control token spelled as its nonce, in the vocabulary too; ids stay."""
        model = dict(data["model"])
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {self.renamed(token): i for token, i in vocab.items()}
        else:
            model["vocab"] = [[self.renamed(token), score] for token, score in vocab]
        if model.get("unk_token"):
            model["unk_token"] = self.renamed(model["unk_token"])
        if model.get("merges"):  # text must not be merged into a control token either
            model["merges"] = [[a, b] for a, b in merges(model) if not {a, b, a + b} & self.ids.keys()]
        added = []
        for token in data.get("added_tokens", []):
            added.append({**token, "content": self.renamed(token["content"])})
        return {**data, "added_tokens": added, "model": model, "truncation": None, "padding": None}


def merges(model):
    """Pairs of pieces, of either spelling in tokenizer.json."""
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges") or ()]


def check_sizes(data):
    """tokenizers cuts this prefix off a word's later pieces; where it is missing the process goes down."""
    if any(len(token["content"]) > LONGEST for token in data.get("added_tokens", [])):
        raise ValueError(f"an added token of more than {LONGEST} characters")
    prefix = data["model"].get("continuing_subword_prefix") or ""
    if not all(pair[1].startswith(prefix) for pair in merges(data["model"])):
        raise ValueError(f"continuing_subword_prefix {prefix[:20]!r} is not in the merges")
