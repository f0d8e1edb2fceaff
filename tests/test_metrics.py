"""Metrics against their definitions, written out; intervals against what they must do."""

import math

import numpy as np
import pytest

from minimon import metrics
from minimon.metrics import Scores, auroc, brier, ece, inter_task_generalization, intervals, performance, ranks, tpr_at_fpr


def random_scores(n=60, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return (scores.round(decimals) if decimals else scores), rng.random(n) < 0.4


def task(name, n=40, seed=0, gain=1.0, clusters=None):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)

    def probabilities(strength):
        p = 1 / (1 + np.exp(-(strength * (1 - 2 * labels) + rng.normal(size=n))))
        return np.stack([p, 1 - p], axis=1)

    return Scores(name, "d", labels, np.array(clusters or [f"{name}{i}" for i in range(n)]), probabilities(0.3), probabilities(gain))


def test_the_worked_check_of_inter_task_generalization():
    mean, generalizes = inter_task_generalization([0.9, 0.8, 0.3, 0.2, 0.7], 0.6)
    assert mean == pytest.approx(0.58) and not generalizes
    assert inter_task_generalization([0.9, 0.8, 0.3, 0.2, 0.7], 0.5)[1]


def test_the_verdict_is_strictly_greater():
    assert not inter_task_generalization([0.5, 1.0], 0.75)[1] and inter_task_generalization([0.5, 1.0], 0.7499)[1]


@pytest.mark.parametrize("values, epsilon", [([], 0.5), ([1.2], 0.5), ([-0.1], 0.5), ([float("nan")], 0.5), ([0.5], 1.5), ([0.5], float("nan"))])
def test_a_verdict_over_nothing_or_over_numbers_that_are_no_performance_is_refused(values, epsilon):
    with pytest.raises(ValueError, match="expected"):
        inter_task_generalization(values, epsilon)


@pytest.mark.parametrize("decimals", [None, 1])
def test_auroc_is_the_chance_that_a_positive_scores_higher_with_ties_half(decimals):
    scores, positives = random_scores(decimals=decimals)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positives] for n in scores[~positives]]
    assert auroc(scores, positives) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(-scores, positives) == pytest.approx(1 - auroc(scores, positives))


def test_auroc_of_one_class_is_none():
    assert auroc(np.array([0.1, 0.9]), np.array([True, True])) is None
    assert auroc(np.array([0.1, 0.9]), np.array([False, False])) is None


def test_performance_is_the_share_of_largest_p_and_a_tie_is_no_answer():
    p = np.array([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5], [0.5, 0.5]])
    assert performance(p, np.array([0, 0, 0, 1])).tolist() == [1, 0, 0, 0]
    assert performance(np.array([[0.2, 0.5, 0.3]]), np.array([1])).tolist() == [1]


def test_tpr_at_one_percent_fpr_lets_one_negative_in_a_hundred_through():
    negatives, positives = np.arange(200) / 200, np.array([0.991, 0.987, 0.5])
    scores = np.concatenate([negatives, positives])
    labels = np.arange(203) >= 200
    # two negatives (0.995 and 0.99) may lie above; the threshold is the third, 0.985
    assert tpr_at_fpr(scores, labels) == pytest.approx(2 / 3)


def test_tpr_at_one_percent_fpr_is_none_with_fewer_than_a_hundred_negatives():
    scores, labels = np.arange(100) / 100, np.arange(100) == 0
    assert tpr_at_fpr(scores, labels) is None
    assert tpr_at_fpr(np.append(scores, 1.0), np.append(labels, False)) is not None


def test_brier_and_ece_by_hand():
    p, y = np.array([0.95, 0.97, 0.02, 0.5]), np.array([True, False, False, True])
    assert brier(p, y) == pytest.approx((0.05 ** 2 + 0.97 ** 2 + 0.02 ** 2 + 0.5 ** 2) / 4)
    # bins of 1/15: 0.95 and 0.97 share the last one (mean 0.96, half positive), the others are alone
    assert ece(p, y) == pytest.approx((2 * abs(0.96 - 0.5) + 0.02 + 0.5) / 4)
    assert ece(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_ranks_average_ties_and_lie_between_0_and_1():
    assert ranks(np.array([0.3, 0.1, 0.3, 0.9])).tolist() == [0.5, 0.125, 0.5, 0.875]


def test_an_interval_holds_the_estimate_and_is_the_same_for_the_same_seed():
    tasks = [task("a", seed=1, gain=1.0), task("b", seed=2, gain=1.2)]
    bounds = intervals(tasks)
    assert bounds == intervals(tasks) != intervals(tasks, seed=1)
    for which in ("base", "adapter"):
        low, high = bounds["auroc"][which]
        value = np.mean([auroc(t.of(which)[:, 0], t.positives) for t in tasks])
        assert low < value < high and 0 <= low and high <= 1


def test_an_interval_of_a_clear_gain_is_above_zero_and_of_none_is_not():
    better = intervals([task(str(i), seed=i, gain=3.0) for i in range(4)])["auroc"]["uplift"]
    none = intervals([task(str(i), seed=i, gain=0.3) for i in range(4)])["auroc"]["uplift"]
    assert better[0] > 0 and none[0] < 0 < none[1]


def test_base_and_adapter_are_drawn_together():
    same = task("a", gain=0.3)
    same = Scores(same.task, same.domain, same.labels, same.clusters, same.base, same.base)
    assert intervals([same])["auroc"]["uplift"] == [0.0, 0.0] and intervals([same])["auroc"]["base"][0] < intervals([same])["auroc"]["base"][1]


def test_rows_of_one_transcript_are_drawn_together():
    """The same 40 transcripts under four prompts carry no more than 40 transcripts' worth of evidence."""
    def width(tasks):
        low, high = intervals(tasks)["performance"]["adapter"]
        return high - low

    one = task("t")
    copies = [Scores(str(i), "d", one.labels, one.clusters, one.base, one.adapter) for i in range(4)]
    apart = [Scores(str(i), "d", one.labels, np.array([f"{i}-{c}" for c in one.clusters]), one.base, one.adapter) for i in range(4)]
    assert width(copies) == pytest.approx(width([one]), rel=0.15) and width(apart) < 0.65 * width(copies)


def test_coverage_of_the_interval_is_about_what_it_says(monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 300)
    inside = 0
    for seed in range(120):
        t = task("t", n=80, seed=seed, gain=1.0)
        low, high = intervals([t])["auroc"]["adapter"]
        inside += low <= 0.92135 <= high      # P(N(1,1) > N(-1,1)) = Phi(2 / sqrt 2)
    assert 0.5 * (1 + math.erf(1.0)) == pytest.approx(0.92135, abs=1e-4)
    assert 0.85 <= inside / 120 <= 1.0


def test_a_class_lost_in_a_draw_leaves_no_nan():
    t = task("t", n=4)
    bounds = intervals([t])["auroc"]["adapter"]
    assert bounds is not None and all(math.isfinite(bound) for bound in bounds)
