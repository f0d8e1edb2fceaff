"""Metrics against their definitions, written out; intervals against what they must do."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minimon import metrics
from minimon.metrics import Scores, auroc, brier, ece, inter_task_generalization, intervals, measures, performance, ranks, tpr_at_fpr
from minimon.report.build import build_report, table, verdict_line, write_report


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


# ---- against scikit-learn, and where there is no number --------------------------------------------------------------------------


GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())


def one_task(p, y):
    P = np.stack([p, 1 - p], axis=1)
    return Scores("t", "d", np.where(y, 0, 1), np.array([f"row {i}" for i in range(len(p))], dtype=object), P, P)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["case"])
def test_metrics_are_those_of_scikit_learn(case):
    p, y = np.array(case["p"]), np.array(case["y"], dtype=bool)
    found = measures(one_task(p, y), "base")
    assert found["auroc"] == (None if case["auroc"] is None else pytest.approx(case["auroc"], abs=1e-12))
    assert found["brier"] == pytest.approx(case["brier"], abs=1e-12)
    if case["ece"] is not None:                # of one class scikit-learn refuses to give it
        assert found["ece"] == pytest.approx(case["ece"], abs=1e-12)
    if case["performance"] is not None:
        assert found["performance"] == pytest.approx(case["performance"], abs=1e-12)
    enough = (~y).sum() >= metrics.FEWEST_NEGATIVES
    assert found["tpr_at_1pct_fpr"] == (pytest.approx(case["tpr_at_1pct_fpr"], abs=1e-12) if enough else None)


def test_a_rate_of_the_negatives_is_exact_whatever_their_number():
    assert all(int(rate * n / 1000 + 1e-9) == rate * n // 1000 for n in range(100, 20_000, 100) for rate in (5, 10, 20, 29, 50, 100, 200))


@pytest.mark.parametrize("p, y, why", [
    ([0.3] * 4, [1, 0, 1, 0], {"auroc": "all scores are equal"}), ([0.5] * 4, [1, 0, 1, 0], {"performance": "4 rows with a tie"}),
    ([0.1, 0.9], [1, 1], {"auroc": "no negative rows"}), ([0.1, 0.9], [0, 0], {"auroc": "no positive rows", "tpr_at_1pct_fpr": "0 positives"}),
    ([], [], {"auroc": "no rows", "performance": "no rows", "brier": "no rows", "ece": "no rows"}),
    ([0.2] * 150, [1] + [0] * 149, {"auroc": "all scores are equal"})])
def test_a_number_that_is_none_or_a_convention_says_why(p, y, why):
    found = measures(one_task(np.array(p, dtype=float), np.array(y, dtype=bool)), "adapter")
    assert all(found["undefined"][key].startswith(words) for key, words in why.items())
    for key in ("performance", "auroc", "tpr_at_1pct_fpr", "brier", "ece"):
        assert found[key] is not None or key in found["undefined"]
    assert len(y) != 150 or "tpr_at_1pct_fpr" not in found["undefined"]


def test_a_report_over_one_class_or_no_rows_at_all_has_nulls_and_no_verdict(tmp_path):
    one = one_task(np.array([0.2, 0.7, 0.9]), np.array([True] * 3))
    none = one_task(np.zeros(0), np.zeros(0, dtype=bool))
    for tasks in ([one], [none], [one, none], [none, none], [task("t"), one, none]):
        scores = {"new_domain": {"": tasks}, "trained": {"far": tasks, "adjacent": tasks}}
        report = build_report(scores, model="m", adapter="a", seed=0, epsilon=0.5, run={})
        write_report(report, tmp_path, scores)
        written = json.loads((tmp_path / "report.json").read_text())
        assert ("inter_task" in written) == any(len(task.labels) for task in tasks)
        mean = written["splits"]["new_domain"]["mean"]["adapter"]
        assert (mean["auroc"] is None) == (len(tasks) < 3) and (mean["performance"] is None) == ("inter_task" not in written)
        assert "AUROC is not defined for" in table(written)
        assert verdict_line(written)


@pytest.mark.parametrize("P", [[[float("nan"), 0.5]], [[1.5, -0.5]], [[0.5, 0.5], [0.5, 0.5]], [0.5], [[0.5]]])
def test_scores_that_are_no_probabilities_are_refused_by_task(P):
    with pytest.raises(ValueError, match="task 't': expected P of each label in"):
        Scores("t", "d", np.array([1]), np.array(["x"]), np.array(P), np.array(P))
