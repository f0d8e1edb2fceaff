"""Baselines on rows whose answers are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minimon.checkpoint import load_model
from minimon.evaluate import Question
from minimon.metrics import auroc
from minimon.study.baselines import BASELINES, Methods, baselines, logistic
from minimon.tasks import Row, load_mixture
from minimon.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TASK = """
[[task]]
name = "{domain}-{label}"
domain = "{domain}"
criterion = "{label}"
prompt = "Is it {label} in {domain}?"
rows = "{domain}.jsonl"
text = "text"
label = "{label}"
labels = {{ Yes = [true], No = [false] }}
split = "side"
"""
MIXTURE = """
[train]
tasks = ["train.toml"]
[eval.new_domain]
known = ["new.toml#home-leak"]
unknown = ["new.toml#home-other"]
"""


@pytest.fixture
def mixture(tmp_path):
    """Word "bad" tells the leak in every domain; nothing tells the other label."""
    for domain in ("shell", "email", "home"):
        rows = []
        for i in range(120):
            text = f"{domain} line {i} {'bad' if i % 2 else 'good'} word{i % 7}"
            side = "train" if i < 60 else "test"
            rows.append({"text": text, "leak": i % 2 == 1, "other": i % 3 == 0, "side": side})
        (tmp_path / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = [TASK.format(domain=domain, label="leak") for domain in ("shell", "email")]
    (tmp_path / "train.toml").write_text("".join(trained))
    new = [TASK.format(domain="home", label=label) for label in ("leak", "other")]
    (tmp_path / "new.toml").write_text("".join(new))
    (tmp_path / "m.toml").write_text(MIXTURE)
    return load_mixture(tmp_path / "m.toml")


@pytest.fixture
def given(mixture):
    """What every baseline is made of."""
    return load_model(ROOT / "data/base"), load_tokenizer(ROOT / "data/base"), mixture


def test_a_bag_of_words_learns_the_word_that_domains_share(given):
    methods = Methods(*given)
    groups = methods.mixture.splits["new_domain"]
    for group, low, high in (("known", 1.0, 1.0), ("unknown", 0.25, 0.75)):
        (task,) = groups[group]
        rows = methods.mixture.test_rows(task)
        z = methods.bag_of_words(Question(task, rows)).numpy()
        assert low <= auroc(z, np.array([row.label == 0 for row in rows])) <= high


def test_every_baseline_scores_what_it_can_beside_the_base(given):
    found = baselines(*given)
    assert set(found) == set(BASELINES) and len(found) == 5
    assert set(found["few-shot"]["new_domain"]) == {"known"}  # no training task has the other criterion
    assert set(found["linear probe"]["new_domain"]) == {"known", "unknown"}
    base = found["zero-shot"]["new_domain"]["known"][0].base
    for splits in found.values():
        (scores,) = splits["new_domain"]["known"]
        assert np.array_equal(scores.base, base) and scores.adapter.shape == base.shape
        assert np.allclose(scores.adapter.sum(axis=1), 0)  # log-odds of two labels
    assert np.array_equal(found["zero-shot"]["new_domain"]["known"][0].adapter, base)
    (shifted,) = found["fitted threshold"]["new_domain"]["known"]
    assert auroc(shifted.adapter[:, 0], shifted.positives) == auroc(base[:, 0], shifted.positives)
    assert np.ptp(shifted.adapter[:, 0] - base[:, 0]) < 1e-5  # a shift of log-odds, to fp32's rounding


def test_the_fitted_threshold_is_right_as_often_as_any(given):
    methods = Methods(*given)
    threshold = methods.threshold.item()
    z = torch.cat([methods.zero_shot(old) for old in methods.training]).numpy()
    positive = np.array([row.label == 0 for old in methods.training for row in old.rows])
    ordered = np.sort(z)
    candidates = [ordered[0] - 1, ordered[-1] + 1, *(ordered[1:] + ordered[:-1]) / 2]
    best = max(((z > candidate) == positive).sum() for candidate in candidates)
    assert ((z > threshold) == positive).sum() == best


def test_the_decay_is_chosen_on_domains_left_out(mixture):
    torch.manual_seed(0)
    rows = [Row("", 1 - i % 2, "train", "") for i in range(30)]
    training = [Question(replace(mixture.train[0], domain=name), rows) for name in "abc"]
    y = torch.tensor([float(row.label == 0) for row in rows * 3])
    shared = (2 * y - 1)[:, None] + 0.5 * torch.randn(90, 1)
    w = logistic(torch.cat((shared, torch.randn(90, 40)), dim=1), training)
    assert w[0] > 3 * w[1:-1].abs().max()
