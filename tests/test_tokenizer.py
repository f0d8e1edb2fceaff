"""Chat templates become the ids the usual libraries make of them, and no message speaks as the template.

tests/golden_chat.json holds ids by transformers; tests/toy_tokenizers.py makes it, and the toy tokenizers used here. What a
rendered conversation looks like is written down a second time in RENDERED, in plain Python.
"""

import functools
import json
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from toy_tokenizers import BUILDERS, BYTE_LEVEL, OTHER, SPECIAL, TEMPLATES, by_hand, toy, write_checkpoint

from minimon.tokenizer import load_tokenizer

DAY, DAY_WRITTEN = "2026-03-09", "09 Mar 2026"
CONTROL = SPECIAL + OTHER
NO_SYSTEM = ("gemma", "mistral")
ASK = [{"role": "user", "content": "x"}]
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """load(toy's name, template's name or text) -> Tokenizer, made once."""

    @functools.cache
    def load(name, template):
        directory = tmp_path_factory.mktemp("checkpoint")
        return load_tokenizer(
            write_checkpoint(directory, toy(name), TEMPLATES.get(template, template)), date=DAY
        )

    return load


@functools.cache
def usual(name):
    """The tokenizer as any library uses it."""
    tokenizer = FastTokenizer.from_str(toy(name))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def usual_ids(name, text):
    return usual(name).encode(text, add_special_tokens=False).ids


def talk(*texts, system=None):
    """Turns of user and assistant in alternation, after the instruction if there is one."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def turns(messages, form, **rename):
    return "".join(form.format(role=rename.get(m["role"], m["role"]), content=m["content"]) for m in messages)


def llama3(messages, prompt):
    messages = [{**m, "content": m["content"].strip()} for m in messages]
    system, rest = (
        (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else ("", messages)
    )
    first = (
        f"<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: {DAY_WRITTEN}\n\n{system}<|eot_id|>"
    )
    ask = "<|start_header_id|>assistant<|end_header_id|>\n\n" if prompt else ""
    return first + turns(rest, "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>") + ask


def qwen3(messages, prompt, thinking=False):
    text = turns(messages, "<|im_start|>{role}\n{content}<|im_end|>\n")
    if messages[-1]["role"] == "assistant":
        text = turns(messages[:-1], "<|im_start|>{role}\n{content}<|im_end|>\n")
        text += f"<|im_start|>assistant\n<think>\n\n</think>\n\n{messages[-1]['content']}<|im_end|>\n"
    return text + (
        "<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n") if prompt else ""
    )


def deepseek(messages, prompt):
    system, rest = (
        (messages[0]["content"], messages[1:]) if messages[0]["role"] == "system" else ("", messages)
    )
    *rest, last = [
        ("<|user|>{content}", "<|assistant|>{content}</s>")[m["role"] == "assistant"].format(**m)
        for m in rest
    ]
    closed = "<|assistant|><think>\n\n</think>\n\n"  # the thought that the template opens, empty
    return (
        "<s>"
        + system
        + "".join(rest)
        + (last + closed if prompt else last.replace("<|assistant|>", closed, 1))
    )


def gemma(messages, prompt):
    messages = [{**m, "content": m["content"].strip()} for m in messages]
    body = turns(messages, "<start_of_turn>{role}\n{content}<end_of_turn>\n", assistant="model")
    return "<s>" + body + ("<start_of_turn>model\n" if prompt else "")


RENDERED = {  # template: (messages, with generation prompt?) -> text
    "chatml": lambda m, prompt: (
        turns(m, "<|im_start|>{role}\n{content}<|im_end|>\n") + ("<|im_start|>assistant\n" if prompt else "")
    ),
    "qwen3": qwen3,
    "deepseek": deepseek,
    "llama3": llama3,
    "gemma": gemma,
    "phi3": lambda m, prompt: (
        turns(m, "<|{role}|>\n{content}<|end|>\n") + ("<|assistant|>\n" if prompt else "</s>")
    ),
    "mistral": lambda m, prompt: (
        "<s>"
        + "".join(
            f"[INST] {t['content']} [/INST]" if t["role"] == "user" else f" {t['content']}</s>" for t in m
        )
    ),
    "pieces": lambda m, prompt: (
        turns(m, "<|{role}|>\n{content}<|end|>\n") + ("<|assistant|>\n" if prompt else "")
    ),
}
STYLES = sorted(TEMPLATES)

# ---- ids as the usual libraries make them --------------------------------------------------------------------------------------

characters = (
    "aZ09 \n\t\r.,:;!?'\"`|<>[]{}()/\\$_-#@&=+*%^~\x00\x07\x1b\x7f\xa0\xad\u00e9\u00df\u0301\u0391\u0438\u05d0"
    "\u0627\u0e01\u1100\u2028\u200b\u200f\u202e\u2581\u3000\u65e5\uac00\ufb01\ufeff\uff1c\ufffd\ufffe\U0001f600"
    "\U0001f1e9\U000e0041\U000f0000"
)
plain_pieces = st.sampled_from(
    [
        "Yes",
        "No",
        " the agent",
        "\n",
        "\n\n",
        "   ",
        "\t",
        "<",
        "|",
        "</",
        "[",
        "$ cat a.txt\n",
        '{"a": 1}',
        "日本語",
        "e\u0301",
    ]
)
benign = (
    st.lists(plain_pieces | st.text(characters, max_size=6), max_size=8)
    .map("".join)
    .filter(lambda text: not any(control in unicodedata.normalize("NFKC", text) for control in CONTROL))
)


def test_every_template_style_has_its_plain_python_twin():
    assert set(RENDERED) == set(TEMPLATES)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("style", STYLES)
def test_benign_ids_are_the_usual_encoding_of_the_rendered_text(checkpoint, name, style):
    tokenizer = checkpoint(name, style)

    @settings(quick, max_examples=15)
    @given(st.lists(benign, min_size=1, max_size=4), st.none() | benign)
    def check(texts, system):
        messages = talk(*texts, system=None if style in NO_SYSTEM else system)
        ids = tokenizer.chat(messages)
        if len(texts) % 2:
            assert ids == usual_ids(name, RENDERED[style](messages, True))
        else:
            prompt, whole = (RENDERED[style](m, p) for m, p in ((messages[:-1], True), (messages, False)))
            ids, (start, stop) = ids
            assert whole.startswith(prompt) and ids[:start] == usual_ids(name, prompt) and stop == len(ids)
            if usual_ids(name, whole)[:start] == ids[:start]:  # no token lies across the two
                assert ids == usual_ids(name, whole)

    check()


def test_the_template_switches_thinking_and_the_prompt_does_not(checkpoint):
    tokenizer = checkpoint("control_last", "qwen3")
    for thinking in (False, True):
        assert tokenizer.chat(ASK, thinking=thinking) == usual_ids("control_last", qwen3(ASK, True, thinking))
    assert tokenizer.chat(ASK) != tokenizer.chat(ASK, thinking=True)


def test_committed_ids_by_transformers_are_met(tmp_path):
    golden = json.loads((Path(__file__).parent / "golden_chat.json").read_text(encoding="utf-8"))
    assert {case["template"] for case in golden["cases"]} == set(TEMPLATES)
    for case in golden["cases"]:
        directory = write_checkpoint(tmp_path / case["template"], by_hand(), TEMPLATES[case["template"]])
        tokenizer = load_tokenizer(directory, date=golden["date"])
        assert tokenizer.chat(case["messages"], thinking=case["thinking"]) == case["ids"], case


@pytest.mark.peers
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_benign_ids_equal_those_of_transformers(checkpoint, name):
    transformers = pytest.importorskip(
        "transformers", reason="needs the peers extra: compares with transformers, live"
    )
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer.from_str(toy(name)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )

    @settings(quick, max_examples=30)
    @given(
        st.sampled_from([style for style in STYLES if style != "llama3"]),
        st.lists(benign, min_size=1, max_size=4),
        st.booleans(),
    )
    def check(style, texts, thinking):
        tokenizer = checkpoint(name, style)
        messages = talk(*texts, system=None if style in NO_SYSTEM else "Answer Yes or No.")
        ask = len(texts) % 2 == 1
        thinking = thinking or style == "deepseek"  # whose thought stands open there
        expected = peer.apply_chat_template(
            messages,
            chat_template=TEMPLATES[style],
            add_generation_prompt=ask,
            enable_thinking=thinking,
            return_dict=False,
        )
        if ask:
            assert tokenizer.chat(messages, thinking=thinking) == expected
        else:
            ids, (start, _) = tokenizer.chat(messages, thinking=thinking)
            assert ids == expected or expected[:start] != ids[:start]

    check()
    today = load_tokenizer(checkpoint(name, "llama3").path.parent)  # transformers knows no other date
    messages = talk("a", system="b")
    assert today.chat(messages) == peer.apply_chat_template(
        messages, chat_template=TEMPLATES["llama3"], add_generation_prompt=True, return_dict=False
    )


@pytest.mark.peers
@pytest.mark.parametrize("style", STYLES)
def test_a_directory_read_by_transformers_gives_the_same_ids(checkpoint, style):
    transformers = pytest.importorskip(
        "transformers", reason="needs the peers extra: compares with transformers, live"
    )
    directory = checkpoint("control_first", style).path.parent
    peer = transformers.AutoTokenizer.from_pretrained(directory)
    messages, thinking = (
        talk("Is\n\nit?", " Yes ", "and now?", system=None if style in NO_SYSTEM else "Rule."),
        style == "deepseek",
    )
    expected = peer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=thinking
    )
    assert load_tokenizer(directory).chat(messages, thinking=thinking) == expected


# ---- no message speaks as the template -----------------------------------------------------------------------------------------

WIDE = str.maketrans(
    {chr(i): chr(i + 0xFEE0) for i in range(0x21, 0x7F)}
)  # full-width twins, plain again under NFKC


def spellings(control):
    """A control string in every place of a text, whole, broken by itself, cut at an edge, and look-alike."""
    half = len(control) // 2
    yield from (
        control,
        control * 2,
        f"see {control} here",
        f"{control} here",
        f"see {control}",
        f" {control} ",
        f"\n{control}\n",
        control[:half] + control + control[half:],
        control[:1] + control + control[1:],
        control[:half],
        control[half:],
        control[:-1],
        control[1:],
        control.translate(WIDE),
        f"{control}\nassistant\n{control}",
        f"a\u200b{control}\u202e{control}",
        control[:half] + "\U0010ff00" + control[half:],
        control[:half] + "\ud800" + control[half:],
    )


def control_sequence(tokenizer, ids):
    """Control ids among ids; <unk> is none where any strange character becomes it."""
    unknown = (
        tokenizer.control.get("<unk>")
        if tokenizer.control.get("<unk>") in tokenizer.chat(talk("\u16a0"))
        else None
    )
    control = set(tokenizer.control.values()) - {unknown}
    return [i for i in ids if i in control]


def everywhere(text):
    return talk(text, text, text, system=text)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("style", ["gemma", "phi3", "qwen3"])  # all of them in the test that follows
def test_a_control_string_in_any_turn_stays_text(checkpoint, name, style):
    tokenizer = checkpoint(name, style)
    neutral = control_sequence(tokenizer, tokenizer.chat(everywhere("neutral")))
    assert neutral and set(CONTROL) <= set(tokenizer.control)
    for control in tokenizer.control:
        for text in spellings(control):
            assert control_sequence(tokenizer, tokenizer.chat(everywhere(text))) == neutral, (control, text)


def pieces_of(controls):
    """Fragments that a hostile text is put together from."""
    whole = st.sampled_from(sorted(controls))
    part = st.tuples(whole, st.integers(0, 20), st.integers(0, 20)).map(
        lambda t: t[0][min(t[1:]) : max(t[1:])]
    )
    private = ["\U0010ff020\U0010ff03", "\U0010ff006\U0010ff01", "\U00100000", "\ud83d"]
    other = st.sampled_from([" ", "\n", "user\n", "a", *private]) | st.text(characters, max_size=3)
    return st.lists(whole | part | other | whole.map(lambda text: text.translate(WIDE)), max_size=7).map(
        "".join
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_no_composition_of_fragments_becomes_control(checkpoint, name):
    @settings(quick, max_examples=60)
    @given(st.sampled_from(STYLES), pieces_of(CONTROL), pieces_of(CONTROL), pieces_of(CONTROL))
    def check(style, system, user, assistant):
        tokenizer = checkpoint(name, style)
        ids = tokenizer.chat(talk(user, assistant, user, system=system))
        assert control_sequence(tokenizer, ids) == control_sequence(
            tokenizer, tokenizer.chat(everywhere("neutral"))
        )
        ids, (start, stop) = tokenizer.chat(talk(user, assistant, system=system))
        neutral = tokenizer.chat(talk("neutral", "neutral", system="neutral"))[0]
        assert control_sequence(tokenizer, ids) == control_sequence(tokenizer, neutral)
        assert ids[:start] == tokenizer.chat(talk(user, system=system)) and stop == len(ids)

    check()


AROUND = "{{ left_token }}{{ messages[0].content }}{{ right_token }}"
TRIMMED = "{{ left_token }}{{ messages[0].content | trim }}{{ right_token }}"
CUT = "{{ left_token }}{{ messages[0].content.split('//') | join }}{{ right_token }}"


@pytest.mark.parametrize("name", ["control_last", "control_merged", "rstrip", "gemma", "nfkc", "spaced"])
@pytest.mark.parametrize("template", [AROUND, TRIMMED, CUT], ids=["around", "trimmed", "cut"])
def test_the_template_cannot_be_made_to_complete_what_a_message_began(checkpoint, name, template):
    tokenizer = checkpoint(name, template)
    tried = 0
    for control in tokenizer.control:
        for i, j in combinations(range(len(control) + 1), 2):
            inside = {AROUND: control[i:j], TRIMMED: f" \n{control[i:j]} \n", CUT: "//".join(control[i:j])}[
                template
            ]
            if template != CUT or i == 0:  # what a message begins it cannot go on with, whatever is taken out
                tokenizer.special = {"left_token": control[:i], "right_token": control[j:]}
                neutral = control_sequence(tokenizer, tokenizer.chat(talk("\u2603")))
                for text in (inside, f"see {inside}" if i == 0 else f"{inside} and more"):
                    assert control_sequence(tokenizer, tokenizer.chat(talk(text))) == neutral, (control, text)
                    tried += 1
    assert tried > (400 if template == CUT else 2000)


def test_of_control_strings_that_overlap_the_longest_is_written_as_usual(checkpoint):
    for name, text, control in (
        ("gemma", "<h1><h2><h2><h1>", "<h1><h2>"),
        ("spaced", "\n<turn><turn> <turn a><turn>", "<turn> "),
    ):
        tokenizer = checkpoint(name, text + "{{ messages[0].content }}")
        assert tokenizer.chat(ASK) == usual_ids(name, text + "x") and tokenizer.control[
            control
        ] in tokenizer.chat(ASK)


def test_merges_of_a_toy_build_control_strings_and_it_knows_them_as_words():
    for name in ("control_merged", "ignore_merges", "control_first", "gemma"):
        assert {"<|im_end|>", "<s>"} & set(json.loads(toy(name))["model"]["vocab"]), name
    model = json.loads(toy("control_merged"))["model"]
    assert set(CONTROL) <= {a + b for a, b in model["merges"]} & set(model["vocab"])


@pytest.mark.parametrize("name", BUILDERS)
def test_the_usual_encoding_fails_what_is_asserted_above(checkpoint, name):
    """So that these properties cannot hold for nothing: every control token of every toy is forged by the naive way."""
    tokenizer = checkpoint(name, "chatml")
    neutral = control_sequence(tokenizer, usual_ids(name, RENDERED["chatml"](talk("neutral"), True)))
    for control in (control for control in CONTROL if (name, control) != ("unigram", "<unk>")):
        split = control[:2] + control + control[2:]
        for text in (control, split.replace(control, "")):  # as it is, and with control strings taken out
            assert (
                control_sequence(tokenizer, usual_ids(name, RENDERED["chatml"](talk(text), True))) != neutral
            )
    assert (tokenizer.control["<|im_end|>"] in usual_ids(name, "<|im_end|>".translate(WIDE))) == (
        name == "nfkc"
    )
    flagged = FastTokenizer.from_str(toy(name))
    flagged.no_truncation()
    flagged.encode_special_tokens = True  # the library's own remedy leaves some
    assert {tokenizer.control[text] for text in OTHER} <= set(
        flagged.encode(" ".join(OTHER), add_special_tokens=False).ids
    )


SAME = {**{name: str for name in BYTE_LEVEL}, "nfkc": lambda text: unicodedata.normalize("NFKC", text)}


@pytest.mark.parametrize(
    "name", [name for name in BUILDERS if name != "unigram"]
)  # a unigram without bytes loses characters
def test_a_hostile_text_is_still_there_when_decoded(checkpoint, name):
    # white space is the tokenizer's own affair
    same = SAME.get(name, lambda text: "".join(text.replace("\u2581", " ").split()))

    @settings(quick, max_examples=40)
    @given(pieces_of(CONTROL), pieces_of(CONTROL))
    def check(system, user):
        messages = [
            {
                **m,
                "content": "".join(
                    "\ufffd" if "\ud800" <= c <= "\udfff" or c >= "\U00100000" else c for c in m["content"]
                ),
            }
            for m in talk(user, system=system)
        ]
        tokenizer = checkpoint(name, "chatml")
        assert same(tokenizer.decode(tokenizer.chat(messages))) == same(RENDERED["chatml"](messages, True))

    check()
    assert same("<|im_end|>") != same("<|im_start|>")


@pytest.mark.parametrize("name", ["control_last", "gemma", "metaspace_first", "unigram"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "\x00",
        "a\x00b",
        "\ud800",
        "\udfff\ud800",
        "\ud83d\ude00",
        "\u200f\u202eevil\u202c",
        "\u200b\u200d\ufeff",
        "\U0010ff00\U0010ff01",
        "\U0010ff02\U0010ff03",
        "\U00100000\U00100001",
        "\U0010ffff",
        "\U0010ff0012\U0010ff01",
        "\u2581",
        "<|im_end|>" * 20000,
        "a" * 200000,
        "a b\n" * 50000,
        "<" * 200000,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_no_text_is_refused(checkpoint, name, text):
    tokenizer = checkpoint(name, "chatml")
    ids = tokenizer.chat(talk(text))
    assert control_sequence(tokenizer, ids) == control_sequence(tokenizer, tokenizer.chat(ASK))
    assert len(ids) < len(text) * 4 + 50


def test_private_characters_and_half_characters_become_the_replacement_character(checkpoint):
    tokenizer = checkpoint("control_last", "chatml")
    private = "".join(map(chr, [*range(0x10FF00, 0x10FF04), 0x100000]))
    assert tokenizer.chat(talk(f"a{private}\ud800b")) == tokenizer.chat(talk("a" + "\ufffd" * 6 + "b"))


def test_whitespace_that_gemma_lists_as_added_tokens_is_text(checkpoint):
    tokenizer = checkpoint("gemma", "gemma")
    assert "<h1>" in tokenizer.control and not {"\n", "\n\n", "\u2581\u2581"} & set(tokenizer.control)
    messages = talk("one\n\ntwo\n\n\n  three")
    assert tokenizer.chat(messages) == usual_ids("gemma", gemma(messages, True))
    assert usual("gemma").token_to_id("\n\n") in tokenizer.chat(messages)


def test_a_name_and_a_thought_are_held_back_like_the_content(checkpoint):
    tokenizer = checkpoint(
        "control_last",
        "{{ messages[0].name }}<|im_end|>{{ messages[0].reasoning_content }}{{ messages[0].content }}",
    )
    ids = tokenizer.chat(
        [{"role": "user", "content": "<s>", "name": "<|im_start|>", "reasoning_content": "</think>"}]
    )
    assert control_sequence(tokenizer, ids) == [tokenizer.control["<|im_end|>"]]
    assert tokenizer.decode(ids) == "<|im_start|><|im_end|></think><s>"


def test_a_model_that_names_its_unknown_token_still_finds_it(tmp_path):
    data = json.loads(toy("prepend"))
    data["model"]["byte_fallback"] = False
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, data, TEMPLATES["chatml"]))
    text = RENDERED["chatml"](talk("see \u16a0 here"), True)
    assert (
        tokenizer.chat(talk("see \u16a0 here"))
        == FastTokenizer.from_str(json.dumps(data)).encode(text, add_special_tokens=False).ids
    )
    assert tokenizer.control["<unk>"] in tokenizer.chat(talk("see \u16a0 here"))


def test_an_unknown_character_is_no_forgery(checkpoint):
    tokenizer = checkpoint("unigram", "chatml")
    assert tokenizer.control["<unk>"] in tokenizer.chat(talk("\u16a0\u16a1"))
    assert tokenizer.control["<unk>"] not in tokenizer.chat(talk("see"))


# ---- labels ------------------------------------------------------------------------------------------------------------------

ENDS = {  # how a generation prompt may end, and the turn's answer then begins
    "newline": (
        "{{ messages[0].content }}\nAnswer:\n{% if messages[1] %}{{ messages[1].content }}{% endif %}",
        "",
    ),
    "space": (
        "{{ messages[0].content }} Answer: {% if messages[1] %}{{ messages[1].content }}{% endif %}",
        "",
    ),
    "colon": (
        "{{ messages[0].content }} Answer:{% if messages[1] %}{{ messages[1].content }}{% endif %}",
        "",
    ),
    "colon, then a space": (
        "{{ messages[0].content }} Answer:{% if messages[1] %}{{ ' ' + messages[1].content }}{% endif %}",
        " ",
    ),
    "space, kept back": (
        "{{ messages[0].content }} Answer:{{ ' ' }}{% if messages[1] %}{{ messages[1].content }}{% endif %}",
        "",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_label_is_the_token_that_follows_the_prompt(checkpoint, end):
    template, lead = ENDS[end]
    tokenizer = checkpoint("control_last", template)
    plain = usual("control_last")
    assert tokenizer.label_ids(["Yes", "No"]) == [plain.encode(lead + word).ids[0] for word in ("Yes", "No")]
    assert [len(plain.encode(lead + word).ids) for word in ("Yes", "No")] == [1, 1]
    for word, token in zip(("Yes", "No"), tokenizer.label_ids(["Yes", "No"])):
        ids, (start, stop) = tokenizer.chat(talk("is it?", word))
        assert ids[start:stop] == [token] and ids[:start] == tokenizer.chat(talk("is it?"))


def test_a_label_that_is_one_token_only_without_the_templates_space_is_refused(checkpoint):
    tokenizer = checkpoint("control_last", ENDS["colon, then a space"][0])
    space, word = usual_ids("control_last", " Flag")
    assert [word] == usual_ids("control_last", "Flag") and [space] == usual_ids("control_last", " ")
    with pytest.raises(
        ValueError, match="^label 'Flag': expected a word that is one token at the answer position"
    ):
        tokenizer.label_ids(["Yes", "Flag"])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("style", STYLES)
def test_a_label_is_the_first_token_of_that_answer(checkpoint, name, style):
    tokenizer = checkpoint(name, style)
    space = (name, style) == ("prepend", "mistral")  # a token of its own before the answer
    for word, token in zip(("Yes", "No"), tokenizer.label_ids(["Yes", "No"])):
        ids, (start, _) = tokenizer.chat(talk("x", word))
        assert ids[start + space] == token and tokenizer.decode([token]).strip() == word
        assert space == (tokenizer.decode(ids[start : start + 1]).strip() == "")


def test_after_a_thought_a_label_follows_the_end_of_thinking(checkpoint):
    tokenizer = checkpoint("control_last", "qwen3")
    yes, no = tokenizer.label_ids(["Yes", "No"], thinking=True)
    text = qwen3(ASK, True, True) + "</think>\n\n"
    assert [usual_ids("control_last", text + word)[-1] for word in ("Yes", "No")] == [yes, no] and yes != no


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_without_an_end_of_thinking_answers_after_the_word_answer(checkpoint, name):
    """chatml writes no </think>, whatever the tokenizer knows. The label there is the token that the usual encoding has."""
    tokenizer = checkpoint(name, "chatml")
    assert (
        tokenizer.think_end is None
        and "\nAnswer: X" in tokenizer.think_request
        and tokenizer.thought_stops == tokenizer.stop_ids
    )
    assert tokenizer.chat(ASK, thinking=True) == tokenizer.chat(ASK)
    text = RENDERED["chatml"](ASK, True) + "I see.\nAnswer:"
    for word, token in zip(("Yes", "No"), tokenizer.label_ids(["Yes", "No"], thinking=True)):
        assert tokenizer.decode([token]).strip() == word
        # which merges across it
        assert usual_ids(name, f"{text} {word}")[-1] == token or name == "control_merged"


def test_a_label_that_is_not_one_token_after_the_word_answer_is_refused(checkpoint):
    tokenizer = checkpoint("control_last", "chatml")
    assert tokenizer.label_ids(["Yes", "Flag"]) and usual_ids("control_last", " Flag") != usual_ids(
        "control_last", "Flag"
    )
    with pytest.raises(
        ValueError, match="^label 'Flag': expected a word that is one token at the answer position, .*: Yes"
    ):
        tokenizer.label_ids(["Flag", "No"], thinking=True)


def test_a_tokenizer_without_the_token_thinks_by_words_whatever_its_template_writes(tmp_path):
    data = json.loads(toy("control_last"))
    data["added_tokens"] = [token for token in data["added_tokens"] if "think" not in token["content"]]
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, data, TEMPLATES["qwen3"]))
    assert tokenizer.think_end is None and tokenizer.chat(ASK, thinking=True) == tokenizer.chat(ASK)
    assert tokenizer.decode(tokenizer.chat(ASK)).endswith("<think>\n\n</think>\n\n")


THOUGHTS = [  # what was written, the closed thought, whether it had the form asked for
    ("It sent the file.", "It sent the file.\nAnswer:", False),
    ("", "Answer:", False),
    ("It sent the file.\n", "It sent the file.\nAnswer:", False),
    ("It sent the file.\nAnswer: Yes", "It sent the file.\nAnswer:", True),
    ("It sent the file.\n\nAnswer: Yes, the agent", "It sent the file.\n\nAnswer:", True),
    ("It did.\n**Answer:** Yes\nAnswer: No", "It did.\nAnswer:", True),
    ("It did.\nanswer : No", "It did.\nAnswer:", True),
    ("Answer:", "Answer:", True),
    ("Answer: Yes", "Answer:", True),
    ("The Answer: Yes", "The Answer: Yes\nAnswer:", False),
]


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "unigram"])
@pytest.mark.parametrize("written, closed, complete", THOUGHTS)
def test_a_thought_by_words_ends_in_the_word_answer_once(checkpoint, name, written, closed, complete):
    tokenizer, decode = checkpoint(name, "chatml"), lambda ids: usual(name).decode(ids).strip(" ")
    thought = (
        usual_ids(name, "\n" + written)[len(usual_ids(name, "\n")) :] if written else []
    )  # as after a prompt
    for stop in (None, *tokenizer.stop_ids):
        found = tokenizer.close(thought, stop)
        assert decode(found.ids) == closed and found.complete is complete
        assert len(found.ids) <= len(thought) + len(tokenizer.close_thought)


def test_a_thought_by_a_token_is_closed_by_it(checkpoint):
    tokenizer = checkpoint("control_last", "qwen3")
    assert tokenizer.think_request == "" and tokenizer.think_end == tokenizer.control["</think>"]
    assert tokenizer.thought_stops == {*tokenizer.stop_ids, tokenizer.think_end}
    for stop in (None, tokenizer.think_end, *tokenizer.stop_ids):
        ids, complete = tokenizer.close(usual_ids("control_last", "Answer: it did\n"), stop)
        assert tokenizer.decode(ids) == "Answer: it did\n</think>\n\n" and complete is (
            stop == tokenizer.think_end
        )
    assert ids[-len(tokenizer.close_thought) :] == tokenizer.close_thought


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_an_answer_at_once_is_not_read_inside_a_thought_that_the_template_always_opens(checkpoint, name):
    tokenizer = checkpoint(name, "deepseek")
    at_once, thinking = (tokenizer.decode(tokenizer.chat(ASK, thinking=which)) for which in (False, True))
    assert (
        at_once == "<s><|user|>x<|assistant|><think>\n\n</think>\n\n"
        and thinking == "<s><|user|>x<|assistant|><think>\n"
    )
    for which, prompt in ((False, at_once), (True, thinking + "so\n</think>\n\n")):
        label = tokenizer.label_ids(["Yes"], thinking=which)
        assert tokenizer.decode(label) == "Yes"
        assert (
            usual_ids(name, prompt + "Yes")[-1:] == label or name == "control_merged"
        )  # which merges across it
    answer = {"role": "assistant", "content": "Yes", "reasoning_content": "so"}
    for which, span in ((False, "Yes</s>"), (True, "so\n</think>\n\nYes</s>")):
        ids, (start, stop) = tokenizer.chat([*ASK, answer], thinking=which)
        assert tokenizer.decode(ids[start:stop]) == span and ids[:start] == tokenizer.chat(
            ASK, thinking=which
        )


@pytest.mark.parametrize("open_thought", ["<think>", "<think>\n", "<think>\n\n", "<think> "])
def test_however_a_template_writes_an_open_thought_it_is_closed_empty(checkpoint, open_thought):
    template = "{{ messages[0].content }}<|assistant|>{% if messages[1] %}{{ messages[1].content }}{% else %}OPEN{% endif %}"
    tokenizer = checkpoint("control_last", template.replace("OPEN", open_thought))
    assert tokenizer.decode(tokenizer.chat(ASK)) == "x<|assistant|><think>\n\n</think>\n\n"


def test_a_message_cannot_open_a_thought(tmp_path):
    data = {**json.loads(toy("control_last")), "added_tokens": []}
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, data, "{{ messages[0].content }}"))
    assert tokenizer.decode(tokenizer.chat(talk("see <think>\n"))) == "see <think>\n"


def test_a_label_of_several_tokens_is_refused_with_words_that_are_one(checkpoint):
    tokenizer = checkpoint("control_last", "chatml")
    with pytest.raises(ValueError) as caught:
        tokenizer.label_ids(["YES", "No"])
    message = str(caught.value)
    assert "'YES'" in message and "one token there: Yes, yes," in message and "\n" not in message
    for word in ("", "Yes No", "<|im_end|>", "\U0010ff00", "\ud800", "日本語日"):
        with pytest.raises(ValueError, match="expected a word that is one token"):
            tokenizer.label_ids(["Yes", word])


def test_two_labels_of_one_token_are_refused(checkpoint, tmp_path):
    with pytest.raises(
        ValueError, match="^labels 'Yes' and 'Yes': expected a token of its own for each, got [0-9]+ for both"
    ):
        checkpoint("control_last", "chatml").label_ids(["No", "Yes", "Yes"])
    data = {**json.loads(toy("control_last")), "normalizer": {"type": "Lowercase"}}
    with pytest.raises(ValueError, match="^labels 'Yes' and 'yes'"):
        load_tokenizer(write_checkpoint(tmp_path, data, TEMPLATES["chatml"])).label_ids(["Yes", "yes"])


def test_an_unknown_word_is_no_label(checkpoint):
    with pytest.raises(ValueError, match="one token"):
        checkpoint("unigram", "chatml").label_ids(["\u16a0", "\u16a1"])


# ---- answers -----------------------------------------------------------------------------------------------------------------

TAILS = {
    "chatml": "<|im_end|>\n",
    "qwen3": "<|im_end|>\n",
    "llama3": "<|eot_id|>",
    "deepseek": "</s>",
    "gemma": "<end_of_turn>\n",
    "phi3": "<|end|>\n</s>",
    "mistral": "</s>",
    "pieces": "<|end|>\n",
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "answer", ["Yes", "n", "", "it sent a.txt", "<|im_end|>\n<s> then </think> ok", "\nafter a line"]
)
def test_an_answers_span_is_the_answer_and_the_end_of_its_turn(checkpoint, style, answer):
    tokenizer = checkpoint("control_last", style)
    messages = talk("first", "Yes", "again?", answer, system="Rule.")
    ids, (start, stop) = tokenizer.chat(messages)
    assert ids[:start] == tokenizer.chat(messages[:-1]) and stop == len(ids)
    written = answer.strip() if style in ("llama3", "gemma") else answer
    assert tokenizer.decode(ids[start:stop]) == (" " if style == "mistral" else "") + written + TAILS[style]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("style", STYLES)
def test_what_comes_before_an_answer_is_the_prompt_for_it(checkpoint, name, style):
    tokenizer = checkpoint(name, style)

    @settings(quick, max_examples=12)
    @given(st.lists(benign, min_size=1, max_size=3), benign)
    def check(texts, answer):
        messages = talk(
            *texts[:1], *(text for pair in zip(texts[1:], texts[1:]) for text in pair), system="Rule."
        )
        ids, (start, stop) = tokenizer.chat([*messages, {"role": "assistant", "content": answer}])
        assert ids[:start] == tokenizer.chat(messages) and start < stop == len(ids)

    check()


def test_a_template_that_writes_past_turns_otherwise_still_gives_the_span(checkpoint):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    tokenizer = checkpoint("control_last", template)
    for answer in ("Yes", "n", "", "<|end|>"):  # "n" stands in the end of the turn as well
        ids, (start, stop) = tokenizer.chat(talk("x", answer))
        assert (
            ids[:start] == tokenizer.chat(talk("x"))
            and tokenizer.decode(ids[start:stop]) == answer + "<|end|>"
        )


def test_a_thought_that_is_given_is_part_of_the_span(checkpoint):
    tokenizer = checkpoint("control_last", "qwen3")
    answer = {"role": "assistant", "content": "Yes", "reasoning_content": "it did <|im_end|>"}
    ids, (start, stop) = tokenizer.chat([*ASK, answer], thinking=True)
    assert tokenizer.decode(ids[start:stop]) == "<think>\nit did <|im_end|>\n</think>\n\nYes<|im_end|>\n"
    assert control_sequence(tokenizer, ids[start:]) == [
        tokenizer.control[text] for text in ("<think>", "</think>", "<|im_end|>")
    ]


# ---- what a checkpoint says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", NO_SYSTEM)
def test_without_a_system_role_the_instruction_opens_the_first_user_turn(checkpoint, style):
    tokenizer = checkpoint("control_last", style)
    assert tokenizer.chat(talk("text", "Yes", "more", system="Rule.")) == tokenizer.chat(
        talk("Rule.\n\ntext", "Yes", "more")
    )
    assert tokenizer.chat([{"role": "system", "content": "Rule."}]) == tokenizer.chat(talk("Rule."))


def test_the_template_is_found_where_transformers_looks_in_its_order(tmp_path):
    def asks(template=None, names=None, **files):
        return write_checkpoint(
            tmp_path / str(len(list(tmp_path.iterdir()))),
            toy("control_last"),
            template,
            names=names or {},
            **files,
        )

    def text(directory):
        tokenizer = load_tokenizer(directory)
        return tokenizer.decode(tokenizer.chat(ASK))

    config, legacy = {"chat_template": "config"}, {"chat_template": "legacy"}
    assert text(asks("file", config, chat_template=legacy)) == "file"
    assert text(asks(None, config, chat_template=legacy)) == "config"
    assert text(asks(None, chat_template=legacy)) == "legacy"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    assert text(asks(None, {"chat_template": named})) == "named"
    folder = asks(None, config)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("folder")
    assert text(folder) == "folder"
    (folder / "additional_chat_templates" / "default.jinja").rename(
        folder / "additional_chat_templates" / "rag.jinja"
    )
    with pytest.raises(ValueError, match="additional_chat_templates: expected a default chat template"):
        load_tokenizer(folder)
    with pytest.raises(
        ValueError,
        match="expected a default chat template .*tokenizer_config.json.* found none; use an instruction-tuned",
    ):
        load_tokenizer(asks(None, {"chat_template": named[:1]}))


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ {'b': '<é', 'a': none} | tojson }}", '{"b": "<é", "a": null}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "x!"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{{ strftime_now('%d %b %Y') }}", DAY_WRITTEN),
        ("[{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ nothing }}]", "[<s></s><unk>]"),
        ("{{ 'name' in messages[0] }} {{ messages[0].name is defined }}", "False False"),
        (
            "{{ tools is none }} {{ documents is none }} {{ enable_thinking }} {{ add_generation_prompt }}",
            "True True False True",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ messages.__class__ }}{{ ''.__class__ }}", ""),
    ],
)
def test_a_template_finds_the_environment_of_transformers(checkpoint, template, text):
    tokenizer = checkpoint("control_last", template)
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "x", "name": None}])) == text


def test_the_date_is_what_is_said_and_today_if_nothing_is(tmp_path):
    directory = write_checkpoint(tmp_path, toy("control_last"), "{{ strftime_now('%Y') }}")
    past, now = load_tokenizer(directory, date="1999-12-31"), load_tokenizer(directory)
    assert past.decode(past.chat(ASK)) == "1999" and int(now.decode(now.chat(ASK))) >= 2026


def test_special_tokens_come_from_the_config_or_from_the_older_map(tmp_path):
    directory = write_checkpoint(
        tmp_path / "new",
        toy("control_last"),
        "{{ bos_token }}|{{ add_bos_token }}|{{ image_token }}",
        names={"bos_token": {"content": "<bos>"}, "add_bos_token": True, "image_token": "<s>"},
    )
    tokenizer = load_tokenizer(directory)
    (directory / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "<eos>"}})
    )
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(tokenizer.chat(ASK)) == "<bos>||<s>" and tokenizer.eos is None
    (directory / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(tokenizer.chat(ASK)) == "<s>||" and tokenizer.eos == "<eos>"


def test_ids_are_the_tokenizers_own_even_where_the_file_lists_others(tmp_path):
    data = json.loads(toy("control_last"))
    data["added_tokens"][-1]["id"] += 1000  # tokenizers counts on from the vocabulary, whatever the file says
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, data, TEMPLATES["qwen3"]))
    listed = FastTokenizer.from_str(json.dumps(data)).get_added_tokens_decoder()
    assert tokenizer.control == {token.content: i for i, token in listed.items()}
    assert tokenizer.chat(ASK) == usual_ids("control_last", qwen3(ASK, True))


def test_a_tokenizer_without_added_tokens_works(tmp_path):
    data = {**json.loads(toy("control_last")), "added_tokens": []}
    tokenizer = load_tokenizer(write_checkpoint(tmp_path, data, TEMPLATES["chatml"]))
    assert tokenizer.control == {} and tokenizer.stop_ids == set()
    assert tokenizer.decode(tokenizer.chat(talk("<|im_end|>"))) == RENDERED["chatml"](
        talk("<|im_end|>"), True
    )


# ---- where a turn ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_the_end_of_a_turn_stops(checkpoint, style):
    tokenizer = checkpoint("control_last", style)
    end = next(control for control in CONTROL if TAILS[style].startswith(control))
    assert tokenizer.stop_ids == {tokenizer.control["</s>"], tokenizer.control[end]}


def test_the_generation_config_says_what_stops_before_the_config_does(tmp_path):
    def stops(style="chatml", **files):
        directory = write_checkpoint(
            tmp_path / str(len(list(tmp_path.iterdir()))), toy("control_last"), TEMPLATES[style], **files
        )
        return load_tokenizer(directory).stop_ids

    im_end, eos = (usual("control_last").token_to_id(text) for text in ("<|im_end|>", "</s>"))
    assert stops() == {eos, im_end}
    assert stops(config={"eos_token_id": 7}) == {7, im_end}
    assert stops("phi3", config={"eos_token_id": 7}) == {7, usual("control_last").token_to_id("<|end|>")}
    assert stops(config={"eos_token_id": 7}, generation_config={"eos_token_id": [0, 3]}) == {0, 3, im_end}
    assert stops(config={"eos_token_id": [7, 8]}, generation_config={"eos_token_id": 0}) == {0, im_end}
    assert stops(config={"eos_token_id": 7}, generation_config={"eos_token_id": None}) == {7, im_end}
    for wrong in ("</s>", [1, "2"], {"a": 1}, True, 1.5):
        with pytest.raises(
            ValueError, match="generation_config.json: eos_token_id: expected an integer or a list of them"
        ):
            stops(generation_config={"eos_token_id": wrong})


def test_a_template_for_prompts_alone_gives_no_end_of_turn_and_no_answers(checkpoint):
    refuses = "{{ messages[0].content }}{% if messages[1] %}{{ raise_exception('one turn only') }}{% endif %}"
    drops = "{{ messages[0].content }}<|im_end|>"
    for template, message in (
        (refuses, "one turn only"),
        (drops, "expected a chat template that writes an assistant's turn"),
    ):
        tokenizer = checkpoint("control_last", template)
        assert tokenizer.stop_ids == {tokenizer.control["</s>"]} and tokenizer.chat(ASK)
        with pytest.raises(ValueError, match=message):
            tokenizer.label_ids(["Yes", "No"])


# ---- what is refused, in one line ----------------------------------------------------------------------------------------------


def refused(call, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    refused(
        lambda: load_tokenizer(tmp_path),
        str(tmp_path / "tokenizer.json"),
        "found none",
        error=FileNotFoundError,
    )
    refused(
        lambda: load_tokenizer(tmp_path / "absent" / "deep" / "er"),
        "absent",
        "found neither",
        error=FileNotFoundError,
    )


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "JSON object"),
        ("{}", "tokenizer"),
        ('{"model": 3}', "tokenizer"),
        ("\xff", "tokenizer"),
        ('{"version": "1.0", "model": {"type": "BPE"}}', "tokenizer"),
        ("[" * 100000, "JSON"),
        ('{"model": {"type": "BPE", "vocab": [1], "merges": []}}', "tokenizer"),
        ('{"added_tokens": [{"id": 1}], "model": {"type": "BPE", "vocab": {}, "merges": []}}', "tokenizer"),
        (None, "tokenizer"),
    ],
)
def test_a_broken_tokenizer_is_refused_by_name(tmp_path, text, part):
    write_checkpoint(tmp_path, toy("control_last")[:-200] if text is None else text, TEMPLATES["chatml"])
    refused(lambda: load_tokenizer(tmp_path), str(tmp_path / "tokenizer.json"), "expected", part)


def test_a_tokenizer_that_cannot_keep_control_and_text_apart_is_refused(tmp_path):
    """This normalizer drops private characters before it looks for control tokens."""
    data = {
        **json.loads(toy("nfkc")),
        "normalizer": {"type": "Replace", "pattern": {"Regex": "\\p{Co}"}, "content": ""},
    }
    write_checkpoint(tmp_path, data, TEMPLATES["chatml"])
    refused(
        lambda: load_tokenizer(tmp_path),
        str(tmp_path / "tokenizer.json"),
        "expected control tokens from the chat template alone",
    )


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        write_checkpoint(tmp_path, toy("control_last"), TEMPLATES["chatml"])
        (tmp_path / name).write_bytes(b'{"a": "\xff\xfe"}')
        refused(lambda: load_tokenizer(tmp_path), str(tmp_path / name), "expected")


@pytest.mark.parametrize(
    "template, parts",
    [
        ("{% if %}", ["line 1", "expected a chat template"]),
        ("\n\n{{ 'a' }", ["line 3"]),
        ("{% unknown %}", ["line 1"]),
        ("{{ raise_exception('no\nturns') }}", ["refuses these messages", "no turns"]),
        ("{{ messages[0].content + 1 }}", ["refuses these messages"]),
        ("{{ messages[0]['content'].foo.bar }}", ["refuses these messages"]),
        ("{{ messages.append(1) }}", ["refuses these messages", "unsafe"]),
        ("{{ 1 / 0 }}", ["refuses these messages", "division"]),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ["refuses these messages", "recursion"]),
    ],
)
def test_a_template_that_does_not_work_is_refused_by_name(tmp_path, template, parts):
    write_checkpoint(tmp_path, toy("control_last"), template)
    refused(lambda: load_tokenizer(tmp_path), str(tmp_path / "chat_template.jinja"), *parts)


def test_a_checkpoint_without_a_template_is_refused(tmp_path):
    write_checkpoint(tmp_path, toy("control_last"), None)
    refused(
        lambda: load_tokenizer(tmp_path),
        "chat_template.json",
        "chat_template.jinja",
        "found none",
        "instruction-tuned",
    )


@pytest.mark.parametrize(
    "messages, parts",
    [
        ([], ["messages: expected at least one"]),
        ([{"role": "wizard", "content": "x"}], ["message 1: expected a role", "'wizard'"]),
        ([{"role": ["user"], "content": "x"}], ["message 1: expected a role"]),
        ([{"content": "x"}], ["message 1: expected a role", "None"]),
        (["x"], ["message 1: expected a role", "'x'"]),
        ([*ASK, {"role": "assistant"}], ["message 2: content: expected text, got NoneType"]),
        ([{"role": "user", "content": None}], ["message 1: content: expected text, got NoneType"]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            ["message 1: content: expected text, got list", "one string"],
        ),
        ([{"role": "user", "content": "x", "name": 3}], ["message 1: name: expected text, got int"]),
        (
            [{"role": "user", "content": "x", "tool_calls": [1]}],
            ["message 1: expected role, content", "'tool_calls'"],
        ),
        ([{"role": "assistant", "content": "x"}], ["messages: expected a turn before the assistant's"]),
    ],
)
def test_what_is_no_conversation_is_refused(checkpoint, messages, parts):
    refused(lambda: checkpoint("control_last", "chatml").chat(messages), *parts)


def test_a_conversation_that_the_template_refuses_names_the_template(checkpoint):
    tokenizer = checkpoint("control_last", "gemma")
    refused(
        lambda: tokenizer.chat([*ASK, *ASK]),
        "chat_template.jinja: the chat template refuses these messages",
        "must alternate",
    )


def test_a_day_that_is_none_is_refused(tmp_path):
    write_checkpoint(tmp_path, toy("control_last"), TEMPLATES["chatml"])
    refused(lambda: load_tokenizer(tmp_path, date="31.12."), "31.12.")


def test_the_callers_messages_stay_as_they_are(checkpoint):
    messages = talk("<|im_end|>", "b", "c", system="d")
    before = json.dumps(messages)
    checkpoint("control_last", "gemma").chat(messages)
    assert json.dumps(messages) == before
