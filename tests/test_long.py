"""Rows that are too long: what is cut, that it is said, memory that grows with the length; and batches that did not fit."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_model import FAMILIES, loss_and_gradients, plain_answers, rows, same, tiny, ways
from test_train import ROOT, measured, mixture, report, run, settings  # noqa: F401

import eval as evaluation
import minimon.attention
import minimon.evaluate
import minimon.steps
import train
from minimon.batch import NO_LIMIT, Limit, encode_row, in_halves, row_limit
from minimon.checkpoint import load_model
from minimon.evaluate import read, think
from minimon.steps import check_conversations
from minimon.tasks import Conversation, load_task
from minimon.tokenizer import load_tokenizer

TASK = load_task(ROOT / "data/tasks/far.toml", "home-threaten")
LONG = " ".join(f"word{i} é 日本 \U0001f980," for i in range(400))


@pytest.fixture
def base():
    return load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base")


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("limit", [100, 101, 333, 1000])
def test_a_long_text_keeps_head_and_tail_and_says_how_much_is_left_out(base, position, limit):
    _, tokenizer = base
    task = replace(TASK, prompt_position=position)
    whole = encode_row(tokenizer, task, LONG).ids
    ids, left_out = encode_row(tokenizer, task, LONG, limit=Limit(limit))
    text = tokenizer.decode(ids)
    head, mark, tail = text.partition(f"\n[... {left_out} tokens left out ...] ")
    assert limit - 12 <= len(ids) <= limit < len(whole) and mark and TASK.prompt in text
    assert LONG.startswith(head[head.index("word0") :])
    assert len(whole) - left_out <= limit and "�" not in text
    rest = tail.split(TASK.prompt)[0] if position == "after" else tail
    assert LONG.endswith(rest[: rest.rindex(",") + 1])


def test_a_long_text_with_halves_of_surrogate_pairs_is_cut_as_any_other(base):
    _, tokenizer = base
    for text in ("\ud800" + LONG, LONG + "\udfff", LONG.replace(",", "\ud83e")):
        ids, left_out = encode_row(tokenizer, TASK, text, limit=Limit(300))
        plain = encode_row(tokenizer, TASK, re.sub("[\ud800-\udfff]", "\ufffd", text), limit=Limit(300))
        assert (ids, left_out) == plain and left_out > 0


def test_a_row_that_fits_is_left_as_it_is(base):
    _, tokenizer = base
    whole = encode_row(tokenizer, TASK, LONG).ids
    assert encode_row(tokenizer, TASK, LONG, limit=Limit(len(whole))) == (whole, 0)
    assert encode_row(tokenizer, TASK, LONG, limit=Limit(len(whole) - 1)).left_out > 0


def test_what_can_not_be_cut_is_refused(base):
    model, tokenizer = base
    with pytest.raises(
        ValueError, match=r"home-threaten.*expected room for a text, got 20 tokens.*--max-tokens"
    ):
        encode_row(tokenizer, TASK, LONG, limit=Limit(20))
    conversation = Conversation(
        ({"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes"}), "f:7"
    )
    with pytest.raises(ValueError, match="f:7: expected at most 50 tokens, got"):
        check_conversations(tokenizer, [conversation], Limit(50))
    check_conversations(tokenizer, [conversation], NO_LIMIT)
    thought = {"role": "assistant", "content": "Yes", "reasoning_content": LONG}
    conversation = Conversation(({"role": "user", "content": "x"}, thought), "f:8")
    with pytest.raises(ValueError, match="f:8: expected at most 50 tokens, got"):
        check_conversations(tokenizer, [conversation], Limit(50))
    assert LONG in conversation.text  # so that a prompt of the evaluation is found there as well
    with pytest.raises(ValueError, match="f:9: .*role"):
        check_conversations(
            tokenizer,
            [replace(conversation, messages=({"role": "x", "content": "y"},), where="f:9")],
            NO_LIMIT,
        )
    for wrong in (5, 10**6):
        with pytest.raises(ValueError, match="--max-tokens: expected a number from 16 to .* 2048; got"):
            row_limit(model.config, wrong)


def test_rows_beyond_the_bases_positions_are_cut_with_room_for_what_is_written(base):
    model, tokenizer = base
    text = LONG + LONG
    limit = row_limit(model.config, None)
    assert len(encode_row(tokenizer, TASK, text).ids) > 2048
    with_room = encode_row(tokenizer, TASK, text, limit=limit, room=48)
    assert len(with_room.ids) <= 2000 < len(encode_row(tokenizer, TASK, text, limit=limit).ids) <= 2048
    reading = read(model, tokenizer, TASK, ["Dims the lamp", text], limit=limit)
    assert reading.left_out[0] == 0 < reading.left_out[1] and ((0 < reading.P) & (reading.P < 1)).all()
    thought = think(model, tokenizer, TASK, ["Dims the lamp", text], max_new_tokens=2, limit=limit)
    assert thought.left_out[1] > 0


def test_cut_rows_are_counted_in_the_log_the_report_and_the_scores(mixture, tmp_path, capsys):  # noqa: F811
    assert train.main(settings(mixture, tmp_path / "x", steps=2, max_tokens=100)) == 0
    log = [json.loads(line) for line in (tmp_path / "x/log.jsonl").read_text().splitlines()]
    assert all(0 < line["rows_cut"] <= 12 for line in log)
    splits = report(tmp_path / "x")["splits"]
    assert all(
        0 < split["rows_cut"] <= sum(task["n"] for task in split["tasks"]) for split in splits.values()
    )
    assert "rows were too long and lost their middle" in capsys.readouterr().out
    assert "rows were too long and lost their middle" in (tmp_path / "x/report.md").read_text()
    again = evaluation.Settings(adapter=str(tmp_path / "x"), out=str(tmp_path / "again"))
    assert evaluation.main(again) == 0  # the run's own limit
    assert report(tmp_path / "again") == measured(tmp_path / "x")
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"text": LONG}) + "\n" + json.dumps({"text": "Dims the lamp"}) + "\n"
    )
    capsys.readouterr()
    task = f"{ROOT}/data/tasks/far.toml#home-threaten"
    assert (
        evaluation.main(
            evaluation.Settings(adapter=str(tmp_path / "x"), score=str(tmp_path / "t.jsonl"), task=task)
        )
        == 0
    )
    first, second = (json.loads(line) for line in capsys.readouterr().out.strip().splitlines())
    assert first["left_out"] > 1000 and "left_out" not in second


def test_a_run_without_long_rows_counts_none(run):  # noqa: F811
    assert all(split["rows_cut"] == 0 for split in report(run)["splits"].values())


# ---- memory that grows with the length ---------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("family", ("qwen3", "windowed"))
@pytest.mark.parametrize("entries", (1, 40, 200))
def test_queries_of_long_texts_are_taken_in_pieces_and_give_the_same_in_value_and_gradient(
    monkeypatch, answers, family, entries
):
    model, ids = tiny(FAMILIES[family]), rows(prefix=9, lengths=(25, 12, 1, 18))
    loss, expected = loss_and_gradients(model, answers(model, ids))
    sizes, masked = [], minimon.attention.masked_attention
    monkeypatch.setattr(minimon.attention, "MASK_ENTRIES", entries)

    def watched(q, k, v, visible, scale):
        sizes.append(0 if visible is None else visible.numel())
        return masked(q, k, v, visible, scale)

    monkeypatch.setattr(minimon.attention, "masked_attention", watched)
    again, gradients = loss_and_gradients(model, answers(model, ids))
    assert max(sizes, default=0) <= max(entries, 9 + 25) and again == pytest.approx(loss, abs=1e-6)
    for name in expected:
        same(gradients[name], expected[name], 1e-4)
    same(answers(model, ids), plain_answers(model, ids))


def test_a_window_looks_at_the_keys_that_it_can_see_and_no_others(monkeypatch):
    """8,000 tokens with a window of 100: no mask of all pairs, no scores of them."""
    q, k, v = torch.randn(3, 1, 2, 8000, 8, generator=torch.Generator().manual_seed(0))
    seen, masked = [], minimon.attention.masked_attention
    monkeypatch.setattr(minimon.attention, "MASK_ENTRIES", 2**19)

    def watched(q, k, v, visible, scale):
        seen.append((q.shape[2], k.shape[2]))
        return masked(q, k, v, visible, scale)

    monkeypatch.setattr(minimon.attention, "masked_attention", watched)
    y = minimon.attention.attend(q, k, v, 100, 0.3)
    assert all(keys <= queries + 99 for queries, keys in seen) and len(seen) > 50
    at = 7777
    weights = (q[0, :, at] * 0.3 * 1.0).unsqueeze(1) @ k[0, :, at - 99 : at + 1].transpose(1, 2)
    plain = (weights.softmax(-1) @ v[0, :, at - 99 : at + 1]).squeeze(1)
    torch.testing.assert_close(y[0, :, at], plain)


@pytest.mark.parametrize("visible", (True, False))
def test_query_heads_folded_into_the_queries_are_the_same_sum(visible):
    """What CUDA takes, where no fused kernel has a mask and grouped queries in fp32."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 6, 5, 8, generator=g),
        torch.randn(2, 2, 9, 8, generator=g),
        torch.randn(2, 2, 9, 8, generator=g),
    )
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4) if visible else None
    torch.testing.assert_close(
        minimon.attention.folded_attention(q, k, v, mask, 0.4),
        minimon.attention.masked_attention(q, k, v, mask, 0.4),
    )


# ---- out of memory -------------------------------------------------------------------------------------------------------------


def test_an_out_of_memory_halves_all_batches_that_are_left(base, monkeypatch):
    model, tokenizer = base
    texts, tried, whole = ["the same length"] * 13, [], model.last_hidden

    def last_hidden(tokens, spans, cache):
        tried.append(sum(span.texts for span in spans))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens, spans, cache)

    monkeypatch.setattr(model, "last_hidden", last_hidden)
    monkeypatch.setattr(
        minimon.evaluate, "token_batches", lambda *_: [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    )
    P = read(model, tokenizer, TASK, texts).P
    assert torch.equal(P, P[:1].expand(13, -1))
    assert tried == [3, 5, 3, 2, 3, 2]  # the last batch is not tried in the old size


def test_texts_that_share_nearly_all_take_few_at_a_time(base, monkeypatch):
    """Each one's attention takes a copy of the keys and values of the prefix, however few tokens of its own it has."""
    model, tokenizer = base
    story, tried, whole = "The door is shut. " * 100, [], model.last_hidden

    def last_hidden(tokens, spans, cache):
        tried.append(sum(span.texts for span in spans))
        return whole(tokens, spans, cache)

    monkeypatch.setattr(model, "last_hidden", last_hidden)
    read(model, tokenizer, TASK, [f"{story}{i}" for i in range(40)], batch_tokens=200)
    assert sum(tried) == 40 and max(tried) < 200 / (len(tokenizer.encoder.encode(story).ids) / 16)


def test_a_single_text_and_a_shard_are_not_halved():
    error, whole, shards = torch.OutOfMemoryError(), SimpleNamespace(), SimpleNamespace(sharded=True)
    assert in_halves([[0, 1, 2], [3]], error, whole) == [[0, 1], [2], [3]]
    advice = "out of memory with 1 texts at a time; give a lower --batch-tokens or --max-tokens"
    with pytest.raises(ValueError, match=advice):
        in_halves([[0]], error, whole)
    for model, can_halve in ((shards, True), (whole, False)):
        with pytest.raises(ValueError, match="out of memory with 2 texts at a time"):
            in_halves([[0, 1]], error, model, can_halve=can_halve)


def test_scores_and_answers_are_the_same_where_memory_ran_out(base, monkeypatch):
    model, tokenizer = base
    texts = [f"Posts the door code {i}" * (i % 4 + 1) for i in range(9)]
    expected = read(model, tokenizer, TASK, texts)
    thought = think(model, tokenizer, TASK, texts, max_new_tokens=4)
    whole = model.run

    def run_small(tokens, layout, *arguments, **options):
        if len(getattr(layout, "last", tokens)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens, layout, *arguments, **options)

    monkeypatch.setattr(model, "run", run_small)
    assert torch.allclose(read(model, tokenizer, TASK, texts).P, expected.P, atol=1e-5)
    again = think(model, tokenizer, TASK, texts, max_new_tokens=4)
    assert torch.allclose(again.P, thought.P, atol=1e-5) and torch.equal(
        again.well_formed, thought.well_formed
    )


def test_a_step_that_ran_out_of_memory_is_taken_in_smaller_passes_from_then_on(
    mixture, tmp_path, monkeypatch
):  # noqa: F811
    assert train.main(settings(mixture, tmp_path / "whole", steps=2)) == 0
    answer_loss, tried = minimon.steps.answer_loss, []

    def loss(model, groups, kind):
        tried.append(sum(len(group.ids) for group in groups))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer_loss(model, groups, kind)

    monkeypatch.setattr(minimon.steps, "answer_loss", loss)
    assert train.main(settings(mixture, tmp_path / "halves", steps=2)) == 0
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "halves")
    ]
    assert np.allclose(*[[line["loss"] for line in log] for log in logs], rtol=1e-4)
    failed = max(i for i, rows in enumerate(tried) if rows > 3)
    assert sum(tried[failed + 1 :]) == 2 * 12  # the size that fitted the first step is kept for the second

    def never(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(minimon.steps, "answer_loss", never)
    with pytest.raises(ValueError, match="out of memory in a step.*--batch-tokens.*--gradient-checkpointing"):
        train.main(settings(mixture, tmp_path / "none", steps=2))
