"""A world in which a whole run takes less than a second: a base of two tiny random layers, a few rows, every split.

m.toml has what every run needs and the splits that decode; talking.toml has all splits, and two training tasks.
"""

import json
import signal
from dataclasses import replace

import pytest
import tiny
import toy_tokenizers

import train

MIXTURE = """
[train]
tasks = ["t.toml#old"]
cap = 12
[instruct]
rows = "talks.jsonl"
[eval]
rows = 4
[eval.new_domain]
tasks = ["t.toml#new"]
[eval.thinking]
max_new_tokens = 6
tasks = ["t.toml#new"]
[eval.summary]
max_new_tokens = 6
tasks = ["t.toml#new"]
"""
TALKING = """
[train]
tasks = ["t.toml#old", "more.toml#older"]
cap = 12
[instruct]
rows = "talks.jsonl"
[eval]
rows = 8
[eval.trained]
tasks = ["t.toml#old"]
[eval.new_domain]
adjacent = ["t.toml#new"]
far = ["more.toml#far"]
[eval.new_prompt]
turned = ["turned.toml"]
[eval.thinking]
rows = 4
max_new_tokens = 4
tasks = ["t.toml#new"]
"""
TASK = """[[task]]
name = "{name}"
domain = "{name}"
prompt = "Is it {name}?"
rows = "{name}.jsonl"
text = "text"
label = "y"
labels = {{ Yes = [1], No = [0] }}
split = "split"
"""
TURNED = TASK.replace("Is it {name}?", "Is it other than {name}?").replace(
    "Yes = [1], No = [0]", "No = [1], Yes = [0]"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    toy_tokenizers.write_checkpoint(
        folder / "base", toy_tokenizers.by_hand(), toy_tokenizers.TEMPLATES["qwen3"]
    )
    size = len(json.loads((folder / "base/tokenizer.json").read_text())["model"]["vocab"]) + 40
    tiny.write_checkpoint(
        folder / "base", dict(tiny.QWEN3, vocab_size=size, num_hidden_layers=2, max_position_embeddings=512)
    )
    for name in ("old", "new", "older", "far"):
        rows = [
            {"text": f"{name} {i} of {i % 2}", "y": i % 2, "split": "train" if i < 12 else "test"}
            for i in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.toml").write_text(TASK.format(name="old") + TASK.format(name="new"))
    (folder / "more.toml").write_text(TASK.format(name="older") + TASK.format(name="far"))
    (folder / "turned.toml").write_text(TURNED.format(name="old"))
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        for i in range(12)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (folder / "m.toml").write_text(MIXTURE)
    (folder / "talking.toml").write_text(TALKING)
    return folder


@pytest.fixture(autouse=True)
def signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def settings(world, out, **changes):
    """Of a run over m.toml, 16 steps."""
    return replace(
        train.Settings(
            model=str(world / "base"),
            mixture=str(world / "m.toml"),
            steps=16,
            batch_size=6,
            group_size=3,
            warmup=1,
            lr=3e-3,
            r=8,
            lora_alpha=16.0,
            save_every=3,
            date="2026-01-31",
            out=str(out),
        ),
        **changes,
    )


def talking(world, out, **changes):
    """Of a run over talking.toml, 4 steps."""
    return settings(
        world,
        out,
        **{
            "mixture": str(world / "talking.toml"),
            "steps": 4,
            "batch_size": 12,
            "group_size": 5,
            "save_every": 2,
            **changes,
        },
    )
