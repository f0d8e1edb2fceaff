"""The splits in which the model writes first, against the plain way: decode, then one forward pass over each row by itself."""

import numpy as np
import pytest
import torch
from test_train import ROOT

from minimon.batch import encode_row
from minimon.checkpoint import load_model
from minimon.evaluate import evaluate, evaluation_rows, think
from minimon.generate import generate
from minimon.lora import adapter_tensors, add_lora
from minimon.tasks import load_mixture, load_task
from minimon.tokenizer import load_tokenizer

MIXTURE = """
[train]
tasks = ["{tasks}/shell.toml#shell-d*"]
cap = 4
[eval]
rows = 4
[eval.new_domain]
far = ["{tasks}/far.toml#home-threaten"]
[eval.thinking]
rows = 4
max_new_tokens = 60
far = ["{tasks}/far.toml#home-threaten"]
[eval.summary]
prompt = "Name what is wrong."
max_new_tokens = 30
far = ["{tasks}/far.toml#home-threaten"]
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoding") / "m.toml"
    path.write_text(MIXTURE.format(tasks=ROOT / "data/tasks"))
    return load_mixture(path)


@pytest.fixture(scope="module")
def base():
    model = load_model(ROOT / "data/base")
    torch.manual_seed(0)
    add_lora(model, 2)
    for name, parameter in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, load_tokenizer(ROOT / "data/base")


def plain_P(model, ids, label_ids):
    with torch.inference_mode():
        z = model.logits(model(torch.tensor([ids])))[0, -1]
    return z[label_ids].softmax(-1), z.softmax(-1)[label_ids].sum()


def test_with_thinking_a_label_is_read_after_the_models_own_reasoning(base):
    model, tokenizer = base
    task = load_task(ROOT / "data/tasks/far.toml", "home-threaten")
    texts = [row.text for row in task.select("test", 3, balance=False, seed=0)]
    reading = think(model, tokenizer, task, texts, max_new_tokens=60)
    end = tokenizer.control["</think>"]
    for i, text in enumerate(texts):
        prompt = encode_row(tokenizer, task, text, thinking=True).ids
        (alone,) = generate(model, [prompt], max_new_tokens=60, stop_ids={end, *tokenizer.stop_ids})
        ids = prompt + alone.ids + [end] + tokenizer.plain.encode("\n\n", add_special_tokens=False).ids
        P, mass = plain_P(model, ids, tokenizer.label_ids(list(task.labels), thinking=True))
        assert torch.allclose(reading.P[i], P, atol=1e-4) and torch.allclose(
            reading.label_mass[i], mass, atol=1e-4
        )
        assert bool(reading.well_formed[i]) == (
            alone.stop == end and bool(mass > 0) and bool(reading.label_first[i])
        )


def test_reasoning_that_never_ends_is_cut_counted_and_read(base):
    model, tokenizer = base
    task = load_task(ROOT / "data/tasks/far.toml", "home-threaten")
    reading = think(model, tokenizer, task, ["Dims the lamp", "Posts the door code"], max_new_tokens=2)
    assert (
        not reading.well_formed.any()
        and torch.allclose(reading.P.sum(-1), torch.ones(2))
        and (reading.P > 0).all()
    )


def test_sampled_thoughts_are_a_function_of_the_generator(base):
    model, tokenizer = base
    task, P = load_task(ROOT / "data/tasks/far.toml", "home-threaten"), []
    for seed in (0, 0, 1):
        reading = think(
            model,
            tokenizer,
            task,
            ["Dims the lamp"] * 3,
            max_new_tokens=8,
            temperature=5.0,
            generator=torch.Generator().manual_seed(seed),
        )
        P.append(reading.P)
    assert torch.equal(P[0], P[1]) and not torch.equal(P[0], P[2])


def test_a_summary_is_judged_by_the_base_from_the_summary_alone(base, small):
    model, tokenizer = base
    rows = []
    scores = evaluate(model, tokenizer, small, on_rows=rows.append)
    assert sum(rows) == evaluation_rows(small) == 2 * 3 * 4
    (summary,), (thinking,), (plain,) = (
        scores[split]["far"] for split in ("summary", "thinking", "new_domain")
    )
    task = small.splits["summary"]["far"][0]
    texts = list(summary.clusters)
    fresh, labels = load_model(ROOT / "data/base"), tokenizer.label_ids(list(task.labels))
    for which, writer in (("base", fresh), ("adapter", model)):
        for i, text in enumerate(texts):
            prompt = tokenizer.chat(
                [{"role": "system", "content": "Name what is wrong."}, {"role": "user", "content": text}]
            )
            (answer,) = generate(writer, [prompt], max_new_tokens=30, stop_ids=tokenizer.stop_ids)
            P, _ = plain_P(fresh, encode_row(tokenizer, task, tokenizer.decode(answer.ids)).ids, labels)
            assert np.allclose(summary.P(which)[i], P, atol=1e-4)
            assert summary.shares[which]["well_formed"][i] == answer.ended
    for i, text in enumerate(texts):
        assert np.allclose(
            summary.P("transcript")[i],
            plain_P(fresh, encode_row(tokenizer, task, text).ids, labels)[0],
            atol=1e-4,
        )
    assert len({tuple(P) for P in summary.references["empty"].tolist()}) == 1
    assert not np.allclose(summary.base, summary.adapter) and set(thinking.shares["base"]) == {
        "label_mass",
        "well_formed",
    }
    assert (
        set(plain.shares["adapter"]) == {"label_mass"} and (plain.shares["adapter"]["label_mass"] <= 1).all()
    )
