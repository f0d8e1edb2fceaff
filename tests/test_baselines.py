"""Baselines on made rows whose answers are known."""

import json

import numpy as np
import pytest
import torch

from minimon.study.baselines import BagOfWords, baselines, fitted_threshold, logistic, moved, same_criterion
from minimon.checkpoint import load_model
from minimon.evaluate import read
from minimon.metrics import auroc
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer
from test_train import ROOT

TASK = """
[[task]]
name = "{name}"
domain = "{domain}"
prompt = "Is it {name}?"
rows = "{domain}.jsonl"
text = "text"
label = "{label}"
labels = {{ Yes = [true], No = [false] }}
split = "side"
"""


@pytest.fixture
def mixture(tmp_path):
    """Word "bad" tells the leak in every domain; nothing tells the other label."""
    for domain in ("shell", "email", "home"):
        rows = [{"text": f"{domain} line {i} {'bad' if i % 2 else 'good'} word{i % 7}", "leak": i % 2 == 1, "other": i % 3 == 0,
                 "side": "train" if i < 60 else "test"} for i in range(120)]
        (tmp_path / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.toml").write_text("".join(TASK.format(name=f"{domain}-leak", domain=domain, label="leak") for domain in ("shell", "email")))
    (tmp_path / "new.toml").write_text("".join(TASK.format(name=f"home-{label}", domain="home", label=label) for label in ("leak", "other")))
    (tmp_path / "m.toml").write_text('[train]\ntasks = ["train.toml"]\n[eval.new_domain]\nknown = ["new.toml#home-leak"]\nunknown = ["new.toml#home-other"]\n')
    return load_mixture(tmp_path / "m.toml")


def test_a_bag_of_words_learns_the_word_that_domains_share(mixture):
    words = BagOfWords(mixture, {task.name: mixture.train_rows(task, 0) for task in mixture.train})
    known, unknown = (mixture.splits["new_domain"][group][0] for group in ("known", "unknown"))
    for task, low, high in ((known, 1.0, 1.0), (unknown, 0.25, 0.75)):
        rows = mixture.test_rows(task)
        assert low <= auroc(words(task, [row.text for row in rows]), np.array([row.label == 0 for row in rows])) <= high
    assert [task.name for task in same_criterion(mixture, known)] == ["shell-leak", "email-leak"] and not same_criterion(mixture, unknown)


def test_every_baseline_scores_what_it_can_beside_the_base(mixture):
    found = baselines(load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base"), mixture)
    assert set(found) == {"bag of words", "linear probe", "few-shot", "fitted threshold"}
    assert set(found["few-shot"]["new_domain"]) == {"known"} and set(found["linear probe"]["new_domain"]) == {"known", "unknown"}
    base = found["linear probe"]["new_domain"]["known"][0].base
    for splits in found.values():
        (scores,) = splits["new_domain"]["known"]
        assert np.array_equal(scores.base, base) and np.allclose(scores.adapter.sum(axis=1), 1) and scores.adapter.shape == base.shape
    (moved_scores,) = found["fitted threshold"]["new_domain"]["known"]
    assert auroc(moved_scores.adapter[:, 0], moved_scores.positives) == auroc(base[:, 0], moved_scores.positives)


def test_the_fitted_threshold_is_right_as_often_as_any(mixture):
    model, tokenizer = load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base")
    train = {task.name: mixture.train_rows(task, 0) for task in mixture.train}
    threshold = fitted_threshold(model, tokenizer, mixture, train)
    P = np.concatenate([read(model, tokenizer, task, train[task.name]).P[:, 0].numpy() for task in mixture.train])
    y = np.array([row.label == 0 for task in mixture.train for row in train[task.name]])
    candidates = np.concatenate([[0, 1], (np.sort(P)[1:] + np.sort(P)[:-1]) / 2])
    assert ((P > threshold) == y).sum() == max(((P > candidate) == y).sum() for candidate in candidates)
    p = np.linspace(0.01, 0.99, 50)
    assert (np.diff(moved(p, threshold)) > 0).all() and moved(np.array([0.3]), 0.3)[0] == pytest.approx(0.5)


def test_the_decay_is_chosen_on_domains_left_out():
    torch.manual_seed(0)
    domains = [name for name in "abc" for _ in range(30)]
    y = torch.tensor([i % 2 for i in range(90)]).float()
    shared = (2 * y - 1)[:, None] + 0.5 * torch.randn(90, 1)
    noise = torch.randn(90, 40)
    w = logistic(torch.cat((shared, noise), dim=1), y, domains)
    assert w[0] > 3 * w[1:-1].abs().max()
