"""Instruction-following training, self labels, an adapter to go on from: whole runs of train.py, and their losses against plain twins."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_world import settings, talking
from test_train import ROOT, report

import eval as evaluation
import train
from minimon.batch import row_limit
from minimon.checkpoint import load_model
from minimon.evaluate import Reader, check_questions
from minimon.lora import adapter_tensors, add_lora
from minimon.run.load import trained_before
from minimon.run.measured import MeasuredSides
from minimon.steps import conversation_loss, encode_conversations
from minimon.tasks import Conversation, load_conversations, load_mixture
from minimon.tokenizer import load_tokenizer

TALKS = [
    {
        "messages": [
            {"role": "system", "content": "How many lines are there?"},
            {"role": "user", "content": f"line {i}\nline"},
            {"role": "assistant", "content": "2" if i % 2 else "There are two of them."},
        ]
    }
    for i in range(9)
]


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_loss_of_conversations_is_that_of_each_by_itself():
    tokenizer, model = load_tokenizer(ROOT / "data/base"), load_model(ROOT / "data/base")
    torch.manual_seed(0)
    add_lora(model, 2)
    for name, parameter in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    parameters = list(adapter_tensors(model).values())
    thinking = {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "Yes", "reasoning_content": "So Yes."},
        ]
    }
    talks = [Conversation(tuple(talk["messages"]), "f:1") for talk in [*TALKS[:3], thinking]]
    tokens, loss = conversation_loss(model, encode_conversations(tokenizer, talks))
    found = torch.autograd.grad(loss, parameters)
    total, length = 0.0, 0
    for talk in talks:
        ids, (start, stop) = tokenizer.chat(list(talk.messages), thinking=talk is talks[-1])
        logits = model.logits(model(torch.tensor([ids])))[0].log_softmax(-1)
        total = total - sum(logits[i - 1, ids[i]] for i in range(start, stop))
        length += len(ids) - 1
        said = tokenizer.decode(ids[start:stop])
        assert (
            talk.messages[-1]["content"] in said
            and ("So Yes." in said) == (talk is talks[-1])
            and "line" not in said
        )
    expected = torch.autograd.grad(total, parameters)
    assert tokens == length and loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(found, expected))


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"messages": [{"role": "user", "content": "x"}]}', ["two turns or more"]),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}',
            ["the assistant's"],
        ),
        (
            '{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "y"}]}',
            ["text as content"],
        ),
        ('{"turns": []}', ["messages"]),
        ("[1]", ["one JSON object a line"]),
        (
            '{"messages": [{"role": "system", "content": "is  IT a\\nleak? Go on."}, {"role": "assistant", "content": "y"}]}',
            ["no prompt of the evaluation", "Is it a leak?"],
        ),
    ],
)
def test_conversations_that_cannot_be_trained_on_are_refused_by_line(tmp_path, line, words):
    (tmp_path / "t.jsonl").write_text(json.dumps(TALKS[0]) + "\n\n" + line + "\n")
    with pytest.raises(ValueError) as error:
        load_conversations(tmp_path / "t.jsonl", ["Is it a leak?"])
    assert "t.jsonl:3: " in str(error.value) and all(word in str(error.value) for word in words)


def test_instruction_rows_are_a_share_of_each_step_or_a_phase_after(world, tmp_path):
    assert train.main(talking(world, tmp_path / "joint", instruct="joint", instruct_fraction=0.5)) == 0
    assert all({"loss", "instruct_loss"} <= set(line) for line in log(tmp_path / "joint"))
    assert train.main(talking(world, tmp_path / "only", instruct="only")) == 0
    assert all("instruct_loss" in line and "loss" not in line for line in log(tmp_path / "only"))
    assert (
        train.main(talking(world, tmp_path / "after", instruct="after", instruct_steps=3, instruct_lr=1e-4))
        == 0
    )
    lines = log(tmp_path / "after")
    assert [("loss" in line, "instruct_loss" in line) for line in lines] == [(True, False)] * 4 + [
        (False, True)
    ] * 3
    assert [line["lr"] for line in lines[4:]] == pytest.approx([1e-4, 1e-4, 5e-5]) and lines[0]["lr"] == 3e-3
    assert (
        len(
            {
                (tmp_path / name / "adapter_model.safetensors").read_bytes()
                for name in ("joint", "only", "after")
            }
        )
        == 3
    )


def test_instruction_data_must_be_there_where_it_is_asked_for(world, tmp_path):
    (world / "silent.toml").write_text(
        (world / "m.toml").read_text().replace('[instruct]\nrows = "talks.jsonl"\n', "")
    )
    with pytest.raises(ValueError, match=r"--instruct joint: expected instruction data in .*\[instruct\]"):
        train.main(settings(world, tmp_path / "x", mixture=str(world / "silent.toml"), instruct="joint"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "regime",
    [dict(instruct="after", instruct_steps=3), dict(instruct="joint"), dict(labels="self", label_samples=2)],
    ids=["after", "joint", "self"],
)
def test_a_stopped_run_of_every_regime_goes_on_to_the_same_adapter(world, tmp_path, monkeypatch, regime):
    assert train.main(talking(world, tmp_path / "whole", **regime)) == 0
    whole, calls = train.training_step, []

    def step(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "training_step", step)
        with pytest.raises(KeyboardInterrupt):
            train.main(talking(world, tmp_path / "x", **regime))
    assert train.main(talking(world, tmp_path / "x", resume=True, **regime)) == 0
    for name in ("adapter_model.safetensors", "scores.jsonl"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert report(tmp_path / "x") == report(tmp_path / "whole")
    assert [line["step"] for line in log(tmp_path / "x")] == list(range(1, len(log(tmp_path / "whole")) + 1))


def test_training_goes_on_from_an_adapter(world, tmp_path):
    assert train.main(talking(world, tmp_path / "first", r=2, steps=2)) == 0
    assert (
        train.main(talking(world, tmp_path / "next", steps=1, lr=1e-9, init_adapter=str(tmp_path / "first")))
        == 0
    )
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "next"))
    assert before.keys() == after.keys() and all(
        (before[name] - after[name]).abs().max() < 1e-6 for name in before
    )
    with pytest.raises(ValueError, match="--init-adapter: expected a directory with adapter_config.json"):
        train.main(talking(world, tmp_path / "x", init_adapter=str(tmp_path)))


def test_what_an_adapter_was_trained_on_before_is_not_measured_as_new(world, tmp_path):
    """By its run, and by the run which that went on from; a run whose mixture has gone says nothing."""
    for name, file in (("new", "t.toml"), ("older", "more.toml")):
        (world / f"only-{name}.toml").write_text(
            f'[train]\ntasks = ["{file}#{name}"]\n[eval.trained]\ntasks = ["{file}#{name}"]\n'
        )
    first, second, refused = tmp_path / "first", tmp_path / "second", tmp_path / "refused"
    assert train.main(talking(world, first, steps=1, mixture=str(world / "only-new.toml"))) == 0
    then = {"steps": 1, "mixture": str(world / "only-older.toml"), "init_adapter": str(first)}
    assert train.main(talking(world, second, **then)) == 0
    message = "voids this measurement: .*new_domain: the prompt of 'new' was trained on"
    for directory in (first, second):
        with pytest.raises(ValueError, match=message):
            train.main(talking(world, refused, init_adapter=str(directory)))
        with pytest.raises(ValueError, match=message):
            evaluation.main(evaluation.Settings(str(directory), mixture=str(world / "talking.toml")))
    assert not refused.exists()
    (world / "only-new.toml").unlink()
    assert train.main(talking(world, refused, steps=1, splits="trained", init_adapter=str(second))) == 0


def test_scores_of_the_base_are_shared_between_runs_and_not_between_bases(world, tmp_path, monkeypatch):
    shared = dict(base_scores=str(tmp_path / "base.safetensors"), steps=1)
    assert train.main(talking(world, tmp_path / "a", **shared)) == 0
    sides, whole = [], MeasuredSides.sides

    def counted(self):
        found = whole(self)
        if self.path.name == "base.safetensors":
            sides.extend(side for split in found.values() for side in split if side is None)
        return found

    monkeypatch.setattr(MeasuredSides, "sides", counted)
    assert train.main(talking(world, tmp_path / "b", **shared)) == 0 and not sides
    assert report(tmp_path / "b") == report(tmp_path / "a")
    assert train.main(talking(world, tmp_path / "c", steps=1)) == 0
    assert report(tmp_path / "c") == report(tmp_path / "a")
    folder = tmp_path / "other"
    folder.mkdir()
    for path in (ROOT / "data/base").iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + (b" " if path.name == "config.json" else b""))
    sides.clear()
    assert train.main(talking(world, tmp_path / "d", model=str(folder), **shared)) == 0 and sides


@pytest.mark.parametrize("done", [1, 6])  # of four splits, twice
def test_an_evaluation_that_was_stopped_goes_on_after_the_last_split(world, tmp_path, monkeypatch, done):
    assert train.main(talking(world, tmp_path / "whole", steps=1)) == 0
    splits = list(report(tmp_path / "whole")["splits"])
    save, saved = MeasuredSides.save, []

    def stopping(self, split, sides):
        save(self, split, sides)
        saved.append(split)
        if len(saved) == done:
            raise KeyboardInterrupt

    monkeypatch.setattr(MeasuredSides, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.main(talking(world, tmp_path / "x", steps=1))
    assert (tmp_path / "x/measured.safetensors").exists() and len(splits) == 4
    asked, questions = [], Reader.at_once

    def counted(self, new):
        asked.append(len(new))
        return questions(self, new)

    monkeypatch.setattr(MeasuredSides, "save", save)
    monkeypatch.setattr(Reader, "at_once", counted)
    assert train.main(talking(world, tmp_path / "x", steps=1, resume=True)) == 0
    at_once = [split for split in 2 * splits if split != "thinking"]
    already = [split for split in (2 * splits)[:done] if split != "thinking"]
    assert asked.count(0) == len(already) and len(asked) == len(at_once)
    assert not (tmp_path / "x/measured.safetensors").exists()
    assert report(tmp_path / "x") == report(tmp_path / "whole")


def test_an_evaluation_task_of_the_same_name_with_other_labels_changes_nothing_in_training(world, tmp_path):
    text = (world / "talking.toml").read_text()
    assert (
        "turned" in text
        and load_mixture(world / "talking.toml").splits["new_prompt"]["turned"][0].name == "old"
    )
    (world / "without.toml").write_text(text.replace('[eval.new_prompt]\nturned = ["turned.toml"]\n', ""))
    for name in ("talking", "without"):
        assert train.main(talking(world, tmp_path / name, mixture=str(world / f"{name}.toml"))) == 0
    adapters = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("talking", "without")
    ]
    assert adapters[0] == adapters[1] and "new_prompt" not in report(tmp_path / "without")["splits"]


def test_what_cannot_be_asked_in_a_split_is_refused_before_training(world, tmp_path):
    """A word that is one token at once and none after thinking; a thought that leaves no room for a text."""
    tokenizer, model = load_tokenizer(world / "base"), load_model(world / "base")
    limit = row_limit(model.config, None)
    mixture = load_mixture(world / "talking.toml")
    check_questions(tokenizer, mixture, limit)
    long = replace(mixture.options["thinking"], max_new_tokens=512)
    with pytest.raises(
        ValueError, match="task 'new': expected room for a text, got 0 tokens.*fewer max_new_tokens"
    ):
        check_questions(tokenizer, replace(mixture, options=mixture.options | {"thinking": long}), limit)
    mixture = load_mixture(world / "m.toml")
    long = replace(mixture.options["summary"], max_new_tokens=511)
    with pytest.raises(ValueError, match="eval.summary: expected room for a text, got 1 tokens"):
        check_questions(tokenizer, replace(mixture, options=mixture.options | {"summary": long}), limit)

    def label_ids(labels, thinking=False):
        if thinking:
            raise ValueError("label 'Yes': expected one token there")
        return [1, 2]

    wordy = replace(mixture.splits["new_domain"][""][0], prompt="Is it new? " * 50)
    splits = mixture.splits | {"new_domain": {"": [wordy]}}
    with pytest.raises(ValueError, match="task 'new': expected room for a text, got 64 tokens.*--max-tokens"):
        check_questions(tokenizer, replace(mixture, splits=splits), limit._replace(tokens=64))
    tokenizer.label_ids = label_ids
    with pytest.raises(ValueError, match="task 'new': label 'Yes'"):
        check_questions(tokenizer, mixture, limit)


def test_an_adapters_past_is_known_as_far_as_its_files_are_there(world, tmp_path):
    out = tmp_path / "x"
    assert train.main(talking(world, out, steps=1)) == 0
    tasks, all_read = trained_before(out)
    assert [task.name for task in tasks] == ["old", "older"] and all_read
    rows = world / "older.jsonl"
    text = rows.read_text()
    rows.unlink()
    try:
        tasks, all_read = trained_before(out)
        assert [task.name for task in tasks] == ["old"] and not all_read
    finally:
        rows.write_text(text)
    assert trained_before(tmp_path) == ([], False)
