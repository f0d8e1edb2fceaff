"""Control tokens and text kept apart. Every added token of tokenizer.json is a control token, special or not;
only whitespace, which Gemma and GPT-NeoX list as well, is text.

A usual tokenizer turns a message that spells a control token out into the token. So here:
  1. In a message every character that a control token begins with is held back: a private character stands
  for it, and
     whatever the template does with the text, no control string comes of it.
  2. The template renders. Control strings found now are the template's own; each is renamed to a nonce that
  no text holds.
  3. The held characters return, and all of it is encoded at once by a copy of the tokenizer that knows the
  nonces only.
On text without control strings the ids are those of the usual encoding of a conversation.
"""

import re

NONCE, NONCE_END, GAP, MARK = "\U0010ff00", "\U0010ff01", "\U0010ff02", "\U0010ff03"  # private use
HELD = 0x100000  # stands for the first of the characters that control tokens begin with; private use as well
SURROGATES = list(map(chr, range(0xD800, 0xE000)))
LONGEST = 1024  # characters of a control token; every ending of it is looked for


class ControlStrings:
    """ids: text -> id of every control token."""

    def __init__(self, ids):
        self.ids = ids
        firsts = sorted({text[0] for text in ids})
        held = {char: chr(HELD + i) for i, char in enumerate(firsts)}
        reserved = [*SURROGATES, NONCE, NONCE_END, GAP, MARK, *held.values()]
        self.holding = str.maketrans({**dict.fromkeys(reserved, "\ufffd"), **held})
        self.releasing = str.maketrans({GAP: "", **{private: char for char, private in held.items()}})
        longest_first = sorted(ids, key=len, reverse=True)  # as tokenizers prefers them
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.longest = len(longest_first[0]) if ids else 0
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
        return self.pattern.sub(lambda match: nonce(self.ids[match.group()]), text), written

    def renamed_tokenizer(self, data):
        """tokenizer.json with every control token spelled as its nonce, in the vocabulary too; ids stay."""

        def rename(text):
            return nonce(self.ids[text]) if text in self.ids else text

        model = dict(data["model"])
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {rename(text): i for text, i in vocab.items()}
        else:
            model["vocab"] = [[rename(text), score] for text, score in vocab]
        if model.get("unk_token"):
            model["unk_token"] = rename(model["unk_token"])
        if model.get("merges"):  # text must not be merged into a control token either
            model["merges"] = [[a, b] for a, b in merges(model) if not self.ids.keys() & {a, b, a + b}]
        added = []
        for token in data.get("added_tokens", []):
            added.append({**token, "content": rename(token["content"])})
        return {**data, "added_tokens": added, "model": model, "truncation": None, "padding": None}


def nonce(token_id):
    return f"{NONCE}{token_id}{NONCE_END}"


def merges(model):
    """Pairs of pieces, of either spelling in tokenizer.json."""
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges") or ()]


def check_sizes(data):
    """tokenizers cuts this prefix off a word's later pieces; where it is missing the process goes down."""
    added = data.get("added_tokens", [])
    if any(len(token["content"]) > LONGEST for token in added):
        raise ValueError(f"an added token of more than {LONGEST} characters")
    prefix = data["model"].get("continuing_subword_prefix") or ""
    if not all(pair[1].startswith(prefix) for pair in merges(data["model"])):
        raise ValueError(f"continuing_subword_prefix {prefix[:20]!r} is not in the merges")
