"""Labels of the base's own, from its thinking and from its answers at once: what is trained on, kept and refused."""

import json

import numpy as np
import pytest
import torch
from small_world import talking
from test_train import report

import train
from minimon.checkpoint import load_model
from minimon.evaluate import Reading, read
from minimon.study import self_labels as labelling
from minimon.study.self_labels import label_quality, labelled_rows, load_labels, save_labels, self_labels
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer


def base_of(world):
    return load_model(world / "base"), load_tokenizer(world / "base"), load_mixture(world / "talking.toml")


@pytest.mark.parametrize("kind", ["self", "self-at-once"])
def test_self_labels_are_trained_on_and_gold_ones_only_tell_how_good_they_are(world, tmp_path, kind):
    assert train.main(talking(world, tmp_path / "x", labels=kind)) == 0
    mixture = load_mixture(world / "talking.toml")
    labels = load_labels(tmp_path / "x/labels.jsonl", mixture, 0)
    assert len(labels) == 12 * len(mixture.train)
    assert report(tmp_path / "x")["labels"] == label_quality(labels, mixture)
    rows = labelled_rows(mixture, 0, labels)
    answers = {(label.task, label.where): label.label for label in labels}
    for task in mixture.train:
        assert rows[task.name]
        for row in rows[task.name]:
            assert list(task.labels)[row.label] == answers[task.name, row.where]
    turned = [labelling.replace(label, gold="Yes" if label.gold == "No" else "No") for label in labels]
    assert labelled_rows(mixture, 0, turned) == rows
    quality, of_turned = label_quality(labels, mixture), label_quality(turned, mixture)
    assert of_turned["right"] == pytest.approx(1 - quality["right"])


def test_labels_at_once_are_the_answers_without_thinking(world, monkeypatch):
    model, tokenizer, mixture = base_of(world)
    monkeypatch.setattr(labelling, "think", None)
    labels = self_labels(model, tokenizer, mixture, 0, thinking=False)
    for task in mixture.train:
        rows = labelling.unlabelled_rows(mixture, task, 0)
        of_task = [label for label in labels if label.task == task.name]
        reading = read(model, tokenizer, task, rows)
        z = np.array([label.log_odds for label in of_task])
        assert np.allclose(z, reading.log_odds.numpy(), atol=1e-5)  # the same passes, in fp32
        assert [label.label for label in of_task] == [list(task.labels)[i] for i in z.argmax(axis=1)]
        assert [label.gold for label in of_task] == [list(task.labels)[row.label] for row in rows]


def test_several_thoughts_count_by_their_mean_probability_and_do_not_saturate(world, monkeypatch):
    model, tokenizer, mixture = base_of(world)
    thoughts = iter([2.0, -1.0] + [40.0, 60.0])

    def think(model, tokenizer, task, texts, **options):
        z = torch.full((len(texts),), next(thoughts))
        n = torch.zeros(len(texts))
        return Reading(torch.stack([z, -z], dim=1), n, n.bool(), n.long(), torch.ones(len(texts)).bool())

    monkeypatch.setattr(labelling, "think", think)
    labels = self_labels(model, tokenizer, mixture, 0, samples=2)
    mean = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(1.0))) / 2
    assert labels[0].log_odds[0] == pytest.approx(np.log(mean / (1 - mean)), abs=1e-5)
    assert 40 < labels[-1].log_odds[0] < 41  # 1 - P is the mean of e^-40 and e^-60
    assert labels[-1].log_odds[1] == -labels[-1].log_odds[0]


def test_a_run_stopped_while_it_labels_goes_on(world, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt(2)

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "self_labels", stop)
        with pytest.raises(KeyboardInterrupt):
            train.main(talking(world, tmp_path / "x", labels="self"))
    assert not (tmp_path / "x/labels.jsonl").exists()
    assert train.main(talking(world, tmp_path / "x", labels="self", resume=True)) == 0
    assert (tmp_path / "x/report.json").exists()


def test_an_answer_that_cannot_be_read_after_a_thought_is_refused_before_anything_is_decoded(
    world, tmp_path, monkeypatch
):
    whole = labelling.task_label_ids

    def label_ids(tokenizer, task, *, thinking=False):
        if thinking:
            raise ValueError(f"task {task.name!r}: expected one token, got two")
        return whole(tokenizer, task)

    monkeypatch.setattr(labelling, "task_label_ids", label_ids)
    monkeypatch.setattr(labelling, "think", None)
    with pytest.raises(ValueError, match="expected one token"):
        train.main(talking(world, tmp_path / "x", labels="self"))
    assert train.main(talking(world, tmp_path / "y", labels="self-at-once")) == 0


def test_labels_of_other_rows_are_refused_by_file_and_line(world, tmp_path):
    model, tokenizer, mixture = base_of(world)
    labels, path = self_labels(model, tokenizer, mixture, 0, thinking=False), tmp_path / "labels.jsonl"
    save_labels(labels, path)
    assert load_labels(path, mixture, 0) == labels
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="labels.jsonl: expected 24 labels, got 23"):
        load_labels(path, mixture, 0)
    for change in (
        {"label": "Maybe"},
        {"log_odds": [1.0]},
        {"task": "other"},
        {"log_odds": [float("nan"), 0.0]},
    ):
        second = json.dumps({**json.loads(lines[1]), **change})
        path.write_text("\n".join([lines[0], second, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match="labels.jsonl:2: expected"):
            load_labels(path, mixture, 0)
