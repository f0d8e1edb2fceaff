"""Rows that are too long: what is cut, that it is said, memory that grows with the length; and batches that did not fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as evaluation
import minimon.model
import train
from minimon.batch import encode_row, fit_row, make_batch
from minimon.checkpoint import load_model
from minimon.evaluate import limit_rows, read, think
from minimon.generate import generate
from minimon.steps import refuse_long
from minimon.tasks import Conversation
from minimon.memory import in_batches
from minimon.tasks import load_task
from minimon.tokenizer import load_tokenizer
from test_model import QWEN3, loss_and_gradients, plain_answers, rows, same, tiny, ways
from test_train import ROOT, mixture, report, run, settings  # noqa: F401

TASK = load_task(ROOT / "data/tasks/far.toml", "home-threaten")
LONG = " ".join(f"word{i} é 日本 \U0001f980," for i in range(400))


@pytest.fixture
def base():
    return load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("limit", [100, 101, 333, 1000])
def test_a_long_text_keeps_head_and_tail_and_says_how_much_is_left_out(base, position, limit):
    _, tokenizer = base
    task = SimpleNamespace(prompt=TASK.prompt, prompt_position=position, where="w", name="n")
    whole = encode_row(tokenizer, task, LONG)
    tokenizer.max_tokens = limit
    ids, left_out = fit_row(tokenizer, task, LONG)
    text = tokenizer.decode(ids)
    head, mark, tail = text.partition(f"\n[... {left_out} tokens left out ...]\n")
    assert limit - 12 <= len(ids) <= limit < len(whole) and mark and TASK.prompt in text
    assert LONG.startswith(head[head.index("word0"):])
    assert len(whole) - left_out <= limit and "�" not in text
    rest = tail.split(TASK.prompt)[0] if position == "after" else tail
    assert LONG.endswith(rest[:rest.rindex(",") + 1])


def test_a_row_that_fits_is_left_as_it_is(base):
    _, tokenizer = base
    whole = encode_row(tokenizer, TASK, LONG)
    tokenizer.max_tokens = len(whole)
    assert fit_row(tokenizer, TASK, LONG) == (whole, 0)
    tokenizer.max_tokens = len(whole) - 1
    assert fit_row(tokenizer, TASK, LONG)[1] > 0


def test_what_can_not_be_cut_is_refused(base):
    model, tokenizer = base
    tokenizer.max_tokens = 20
    with pytest.raises(ValueError, match=r"home-threaten.*expected room for a text, got 20 tokens.*--max-tokens"):
        fit_row(tokenizer, TASK, LONG)
    talk = Conversation(({"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes"}), "f:7")
    with pytest.raises(ValueError, match="f:7: expected at most 50 tokens, got"):
        refuse_long(tokenizer, [talk], 50)
    refuse_long(tokenizer, [talk], None)
    for wrong in (5, 10 ** 6):
        with pytest.raises(ValueError, match="--max-tokens: expected a number from 16 to .* 2048; got"):
            limit_rows(tokenizer, model, wrong)


def test_rows_beyond_the_bases_positions_are_cut_with_room_for_what_is_written(base):
    model, tokenizer = base
    text = LONG + LONG
    assert len(encode_row(tokenizer, TASK, text)) > 2048
    limit_rows(tokenizer, model, None)
    assert len(fit_row(tokenizer, TASK, text, room=48)[0]) <= 2000 < len(fit_row(tokenizer, TASK, text)[0]) <= 2048
    reading = read(model, tokenizer, TASK, ["Dims the lamp", text])
    assert reading.left_out[0] == 0 < reading.left_out[1] and ((0 < reading.P) & (reading.P < 1)).all()
    assert think(model, tokenizer, TASK, ["Dims the lamp", text], max_new_tokens=2)[0].left_out.tolist()[1] > 0


def test_cut_rows_are_counted_in_the_log_the_report_and_the_scores(mixture, tmp_path, capsys):  # noqa: F811
    assert train.main(settings(mixture, tmp_path / "x", steps=2, max_tokens=100)) == 0
    log = [json.loads(line) for line in (tmp_path / "x/log.jsonl").read_text().splitlines()]
    assert all(0 < line["rows_cut"] <= 12 for line in log)
    splits = report(tmp_path / "x")["splits"]
    assert all(0 < split["rows_cut"] <= sum(task["n"] for task in split["tasks"]) for split in splits.values())
    assert "rows were too long and lost their middle" in capsys.readouterr().out
    assert "rows were too long and lost their middle" in (tmp_path / "x/report.md").read_text()
    assert evaluation.main(evaluation.Settings(adapter=str(tmp_path / "x"), out=str(tmp_path / "again"))) == 0      # the run's own limit
    assert report(tmp_path / "again") == report(tmp_path / "x")
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": LONG}) + "\n" + json.dumps({"text": "Dims the lamp"}) + "\n")
    capsys.readouterr()
    task = f"{ROOT}/data/tasks/far.toml#home-threaten"
    assert evaluation.main(evaluation.Settings(adapter=str(tmp_path / "x"), score=str(tmp_path / "t.jsonl"), task=task)) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.strip().splitlines())
    assert first["left_out"] > 1000 and "left_out" not in second


def test_a_run_without_long_rows_counts_none(run):  # noqa: F811
    assert all(split["rows_cut"] == 0 for split in report(run)["splits"].values())


# ---- memory that grows with the length ---------------------------------------------------------------------------------------


@ways
def test_a_long_suffix_goes_without_a_mask_and_gives_the_same_in_value_and_gradient(monkeypatch, answers):
    model, ids = tiny(QWEN3), rows(prefix=9, lengths=(25, 12, 1, 18))
    batch = make_batch(ids, [0] * len(ids), 9)

    def run():
        return loss_and_gradients(model, answers(model, batch))
    (loss, expected), made = run(), []
    monkeypatch.setattr(minimon.model, "MASKED", 0)
    visible = minimon.model.View.visible
    monkeypatch.setattr(minimon.model.View, "visible", lambda view, queries: made.append(queries.shape[1]) or visible(view, queries))
    again, gradients = run()
    assert set(made) == {1} and again == pytest.approx(loss, abs=1e-6)                 # masks at the answer positions alone
    for name in expected:
        same(gradients[name], expected[name], 1e-4)
    same(answers(model, batch), plain_answers(model, ids))


@ways
def test_a_suffix_shorter_than_its_prefix_keeps_its_mask(monkeypatch, answers):
    monkeypatch.setattr(minimon.model, "MASKED", 0)
    model, ids = tiny(QWEN3), rows(prefix=30, lengths=(5, 12))
    batch = make_batch(ids, [0] * len(ids), 30)
    same(answers(model, batch), plain_answers(model, ids))
    plain = [model.logits(model(torch.tensor([row]))[:, -1]).argmax().item() for row in ids]
    assert [answer.ids[0] for answer in generate(model, ids, max_new_tokens=3, stop_ids=())] == plain


# ---- out of memory -------------------------------------------------------------------------------------------------------------


def test_an_out_of_memory_halves_the_batch_and_goes_on():
    lengths, tried = [3, 9, 1, 4, 4, 2, 8, 5], []

    def work(batch):
        tried.append(len(batch) * max(lengths[i] for i in batch))
        if tried[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch
    done = list(in_batches(None, lengths, 64, work))
    assert sorted(i for batch, _ in done for i in batch) == list(range(8)) and all(batch == found for batch, found in done)
    assert tried[0] > 20 and sum(tokens > 20 for tokens in tried) <= 3                 # later batches are not tried in the old size
    with pytest.raises(ValueError, match="out of memory at 1 x 9 tokens; give a lower --batch-tokens or --max-tokens"):
        list(in_batches(None, [9], 64, lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError())))
    with pytest.raises(ValueError, match="out of memory at 2 x 9 tokens"):
        list(in_batches(SimpleNamespace(sharded=True), [9, 9], 64, lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError())))


def test_scores_and_answers_are_the_same_where_memory_ran_out(base, monkeypatch):
    model, tokenizer = base
    texts = [f"Posts the door code {i}" * (i % 4 + 1) for i in range(9)]
    expected = read(model, tokenizer, TASK, texts)
    thought, formed = think(model, tokenizer, TASK, texts, max_new_tokens=4)
    whole = model.run

    def run_small(tokens, *arguments, **options):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens, *arguments, **options)
    monkeypatch.setattr(model, "run", run_small)
    assert torch.allclose(read(model, tokenizer, TASK, texts).P, expected.P, atol=1e-5)
    again, formed_again = think(model, tokenizer, TASK, texts, max_new_tokens=4)
    assert torch.allclose(again.P, thought.P, atol=1e-5) and torch.equal(formed, formed_again)


def test_a_step_that_ran_out_of_memory_is_taken_in_halves(mixture, tmp_path, monkeypatch):  # noqa: F811
    assert train.main(settings(mixture, tmp_path / "whole", steps=2)) == 0
    answer_loss = train.answer_loss

    def loss(kind, model, hidden, *arguments):
        if len(hidden) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_loss(kind, model, hidden, *arguments)
    monkeypatch.setattr(train, "answer_loss", loss)
    assert train.main(settings(mixture, tmp_path / "halves", steps=2)) == 0
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "halves")]
    assert np.allclose(*[[line["loss"] for line in log] for log in logs], rtol=1e-4)
    monkeypatch.setattr(train, "answer_loss", lambda *arguments: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ValueError, match="out of memory in a step.*--group-size"):
        train.main(settings(mixture, tmp_path / "none", steps=2))
