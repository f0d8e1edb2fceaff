"""Metrics against their definitions, written out; intervals against what they must do."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimon import metrics
from minimon.metrics import (
    Scores,
    auroc,
    bootstrap,
    brier,
    ece,
    inter_task_generalization,
    intervals,
    mean_measures,
    measures,
    performance,
    pooled,
    ranks,
    sigmoid,
    tpr_at_fpr,
)


def random_scores(n=60, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return (scores.round(decimals) if decimals else scores), rng.random(n) < 0.4


def task(name, n=40, seed=0, gain=1.0, clusters=None, criterion=""):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)

    def log_odds(strength):
        z = strength * (1 - 2 * labels) + rng.normal(size=n)
        return np.stack([z, -z], axis=1)

    clusters = np.array(clusters or [f"{name}{i}" for i in range(n)])
    return Scores(name, "d", labels, clusters, log_odds(0.3), log_odds(gain), criterion=criterion)


def test_the_worked_check_of_inter_task_generalization():
    mean, generalizes = inter_task_generalization([0.9, 0.8, 0.3, 0.2, 0.7], 0.6)
    assert mean == pytest.approx(0.58) and not generalizes
    assert inter_task_generalization([0.9, 0.8, 0.3, 0.2, 0.7], 0.5)[1]


def test_the_verdict_is_strictly_greater():
    assert (
        not inter_task_generalization([0.5, 1.0], 0.75)[1]
        and inter_task_generalization([0.5, 1.0], 0.7499)[1]
    )


@pytest.mark.parametrize(
    "values, epsilon",
    [([], 0.5), ([1.2], 0.5), ([-0.1], 0.5), ([float("nan")], 0.5), ([0.5], 1.5), ([0.5], float("nan"))],
)
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


def test_performance_is_the_share_of_likeliest_labels_and_a_tie_is_no_answer():
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


def test_tasks_with_few_negatives_and_with_many_have_a_mean_together():
    few, many = task("few", n=40), task("many", n=300)
    for tasks in ([few, many], [many, few]):
        mean = metrics.mean_measures(tasks, "adapter")
        assert mean["auroc"] == pytest.approx(
            (metrics.measures(few, "adapter")["auroc"] + metrics.measures(many, "adapter")["auroc"]) / 2
        )


def test_tpr_at_five_percent_fpr_needs_twenty_negatives():
    scores, labels = np.arange(20) / 20, np.arange(20) == 0
    assert tpr_at_fpr(scores, labels, 0.05) is None
    assert tpr_at_fpr(np.append(scores, 2.0), np.append(labels, False), 0.05) == 0.0
    few = measures(task("t", n=60), "adapter")
    assert few["tpr_at_1pct_fpr"] is None
    assert "30 negatives; 1 and 100 are needed" in few["undefined"]["tpr_at_1pct_fpr"]
    assert 0 <= few["tpr_at_5pct_fpr"] <= 1
    several = mean_measures([task(str(i), n=60, seed=i) for i in range(4)], "adapter")
    # 120 negatives, ranked within their task
    assert 0 <= several["tpr_at_1pct_fpr"] <= several["tpr_at_5pct_fpr"] <= 1


def test_scores_that_p_ties_in_fp32_are_still_ranked():
    """Beyond log-odds of about 17 P is 1.0 in fp32, and most rows of a sure model are beyond it."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    z = (28 + 8 * rng.normal(size=400) + 11 * (labels == 0)).astype(np.float32)
    scores = Scores(
        "t", "d", labels, np.array([f"row {i}" for i in range(400)]), *[np.stack([z, -z], axis=1)] * 2
    )
    found, p = measures(scores, "base"), sigmoid(z).astype(np.float32)
    # Phi(11 / (8 sqrt 2)), within the error of 400 rows
    assert found["auroc"] == pytest.approx(0.835, abs=0.03)
    assert auroc(p, labels == 0) < found["auroc"] - 0.1  # what is left of it in P
    assert found["tpr_at_1pct_fpr"] > tpr_at_fpr(p, labels == 0) and len(np.unique(ranks(z))) > 390
    low, high = intervals([scores])["auroc"]["adapter"].transcripts
    assert low < found["auroc"] < high


def test_brier_and_ece_by_hand():
    p, y = np.array([0.95, 0.97, 0.02, 0.5]), np.array([True, False, False, True])
    assert brier(p, y) == pytest.approx((0.05**2 + 0.97**2 + 0.02**2 + 0.5**2) / 4)
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
        low, high = bounds["auroc"][which].transcripts
        value = np.mean([auroc(t.of(which)[:, 0], t.positives) for t in tasks])
        assert low < value < high and 0 <= low and high <= 1


def test_an_interval_of_a_clear_gain_is_above_zero_and_of_none_is_not():
    better = intervals([task(str(i), seed=i, gain=3.0) for i in range(4)])["auroc"]["uplift"].headline
    none = intervals([task(str(i), seed=i, gain=0.3) for i in range(4)])["auroc"]["uplift"].headline
    assert better[0] > 0 and none[0] < 0 < none[1]


def test_base_and_adapter_are_drawn_together():
    same = task("a", gain=0.3)
    same = Scores(same.task, same.domain, same.labels, same.clusters, same.base, same.base)
    bounds = intervals([same])["auroc"]
    assert (
        bounds["uplift"].transcripts == [0.0, 0.0]
        and bounds["base"].transcripts[0] < bounds["base"].transcripts[1]
    )


def test_rows_of_one_transcript_are_drawn_together():
    """The same 40 transcripts under four prompts carry no more than 40 transcripts' worth of evidence."""

    def width(tasks):
        low, high = intervals(tasks)["performance"]["adapter"].transcripts
        return high - low

    one = task("t")
    copies = [Scores(str(i), "d", one.labels, one.clusters, one.base, one.adapter) for i in range(4)]
    apart = [
        Scores(str(i), "d", one.labels, np.array([f"{i}-{c}" for c in one.clusters]), one.base, one.adapter)
        for i in range(4)
    ]
    assert width(copies) == pytest.approx(width([one]), rel=0.15) and width(apart) < 0.65 * width(copies)


def test_coverage_of_the_interval_is_about_what_it_says(monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 300)
    inside = 0
    for seed in range(120):
        t = task("t", n=80, seed=seed, gain=1.0)
        low, high = intervals([t])["auroc"]["adapter"].transcripts
        inside += low <= 0.92135 <= high  # P(N(1,1) > N(-1,1)) = Phi(2 / sqrt 2)
    assert 0.5 * (1 + math.erf(1.0)) == pytest.approx(0.92135, abs=1e-4)
    assert 0.85 <= inside / 120 <= 1.0


def test_a_class_lost_in_a_draw_leaves_no_nan():
    t = task("t", n=4)
    bounds = intervals([t])["auroc"]["adapter"].transcripts
    assert bounds is not None and all(math.isfinite(bound) for bound in bounds)


def width(bounds):
    return bounds[1] - bounds[0]


def test_one_task_has_no_interval_over_tasks():
    bounds = intervals([task("a")])["auroc"]["uplift"]
    assert bounds.tasks is None and bounds.headline == bounds.transcripts


def test_an_interval_over_tasks_is_as_wide_as_tasks_differ():
    """Half of the tasks gain, half lose: over these tasks the mean is sure, over such tasks it is not."""
    tasks = [task(str(i), n=200, seed=i, gain=2.0 if i % 2 else -1.0) for i in range(12)]
    bounds = intervals(tasks)["auroc"]["uplift"]
    values = [
        auroc(t.of("adapter")[:, 0], t.positives) - auroc(t.of("base")[:, 0], t.positives) for t in tasks
    ]
    assert width(bounds.tasks) > 3 * width(bounds.transcripts) and bounds.headline == bounds.tasks
    assert width(bounds.tasks) == pytest.approx(2 * 1.96 * np.std(values) / 12**0.5, rel=0.15)
    assert bounds.tasks[0] < np.mean(values) < bounds.tasks[1]


def test_an_interval_over_tasks_of_one_kind_is_about_that_over_transcripts():
    """Rows are resampled in tasks that hold a sample of them already, so it is wider by at most sqrt 2."""
    bounds = intervals([task(str(i), seed=i) for i in range(20)])["auroc"]["adapter"]
    assert 1.0 < width(bounds.tasks) / width(bounds.transcripts) < 1.8


def test_tasks_of_one_criterion_are_drawn_together():
    gains = {"theft": 2.0, "lies": -1.0, "waste": 1.0, "noise": 0.0}

    def made(criterion_of):
        return [
            task(f"{name}{i}", n=100, seed=i, gain=gain, criterion=criterion_of(name))
            for name, gain in gains.items()
            for i in range(6)
        ]

    apart, together = (intervals(made(of))["auroc"]["uplift"] for of in (lambda name: "", lambda name: name))
    assert apart.transcripts == together.transcripts
    assert width(together.tasks) > 1.7 * width(apart.tasks)
    # a criterion that all share is no sample of criteria: its tasks are drawn
    assert intervals(made(lambda name: "one"))["auroc"]["uplift"] == apart


def test_draws_are_the_same_for_other_scores_of_the_same_rows():
    """So that a difference between two runs can be taken draw by draw."""

    def run(gain):
        return [
            task(str(i), gain=gain) for i in range(5)
        ]  # a seed for all: the labels and the base are the same

    one, other = bootstrap(run(0.5)), bootstrap(run(2.0))
    for over in ("transcripts", "tasks"):
        for key in ("auroc", "performance"):
            assert np.array_equal(one[over][key]["base"], other[over][key]["base"])
            assert one[over][key]["uplift"].shape == (metrics.DRAWS,)


# ---- against scikit-learn, and where there is no number


GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())


def one_task(p, y):
    z = np.log(np.maximum(p, 1e-18)) - np.log(np.maximum(1 - p, 1e-18))
    z = np.stack([z, -z], axis=1)
    return Scores(
        "t", "d", np.where(y, 0, 1), np.array([f"row {i}" for i in range(len(p))], dtype=object), z, z
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["case"])
def test_metrics_are_those_of_scikit_learn(case):
    p, y = np.array(case["p"]), np.array(case["y"], dtype=bool)
    found = measures(one_task(p, y), "base")
    assert found["auroc"] == (None if case["auroc"] is None else pytest.approx(case["auroc"], abs=1e-12))
    assert found["brier"] == pytest.approx(case["brier"], abs=1e-12)
    if case["ece"] is not None:  # of one class scikit-learn refuses to give it
        assert found["ece"] == pytest.approx(case["ece"], abs=1e-12)
    if case["performance"] is not None:
        assert found["performance"] == pytest.approx(case["performance"], abs=1e-12)
    enough = (~y).sum() >= 100
    assert found["tpr_at_1pct_fpr"] == (pytest.approx(case["tpr_at_1pct_fpr"], abs=1e-12) if enough else None)


def test_a_rate_of_the_negatives_is_exact_whatever_their_number():
    assert all(
        int(rate * n / 1000 + 1e-9) == rate * n // 1000
        for n in range(100, 20_000, 100)
        for rate in (5, 10, 20, 29, 50, 100, 200)
    )


@pytest.mark.parametrize(
    "p, y, why",
    [
        ([0.3] * 4, [1, 0, 1, 0], {"auroc": "all scores are equal"}),
        ([0.5] * 4, [1, 0, 1, 0], {"performance": "4 rows with a tie"}),
        ([0.1, 0.9], [1, 1], {"auroc": "no negative rows"}),
        ([0.1, 0.9], [0, 0], {"auroc": "no positive rows", "tpr_at_1pct_fpr": "0 positives"}),
        ([], [], {"auroc": "no rows", "performance": "no rows", "brier": "no rows", "ece": "no rows"}),
        ([0.2] * 150, [1] + [0] * 149, {"auroc": "all scores are equal"}),
    ],
)
def test_a_number_that_is_none_or_a_convention_says_why(p, y, why):
    found = measures(one_task(np.array(p, dtype=float), np.array(y, dtype=bool)), "adapter")
    assert all(found["undefined"][key].startswith(words) for key, words in why.items())
    for key in metrics.METRICS:
        assert found[key] is not None or key in found["undefined"]
    assert len(y) != 150 or "tpr_at_1pct_fpr" not in found["undefined"]


@pytest.mark.parametrize(
    "P",
    [
        [[float("nan"), 0.5]],
        [[float("inf"), -float("inf")]],
        [[0.4, 0.6]],
        [[1.5, -0.5]],
        [[0.5, -0.5], [0.5, -0.5]],
        [0.5],
        [[0.0]],
    ],
)
def test_scores_that_are_no_log_odds_are_refused_by_task(P):
    """P in their place, too: two P sum to 1, two log-odds to 0."""
    with pytest.raises(ValueError, match="task 't': expected finite log-odds of each label"):
        Scores("t", "d", np.array([1]), np.array(["x"]), np.array(P), np.array(P))


def test_a_rate_over_several_tasks_is_that_of_negatives_though_their_ranks_tie():
    """Each task has the same ranks: with 20 rows a task a whole rank of negatives lies on any threshold."""
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(40):
        labels = np.arange(20) % 2
        z = rng.normal(size=20) + 1.0 * (labels == 0)
        z = np.stack([z, -z], axis=1)
        tasks.append(
            Scores(f"t{i}", "d", labels, np.array([f"{i} {j}" for j in range(20)], dtype=object), z, z)
        )
    ranked, positives = pooled(tasks, "base")
    negatives = np.sort(ranked[~positives])[::-1]
    threshold, allowed = negatives[20], 20  # 5% of 400
    above, on = (negatives > threshold).sum(), (negatives == threshold).sum()
    assert above < allowed < above + on
    caught = ranked[positives]
    low, high = (caught > threshold).mean(), (caught >= threshold).mean()
    found = mean_measures(tasks, "base")["tpr_at_5pct_fpr"]
    assert low < found < high
    assert found == pytest.approx(low + (high - low) * (allowed - above) / on)
    assert tpr_at_fpr(ranked, positives, 0.05) == pytest.approx(low)


def test_intervals_do_not_depend_on_what_texts_are_called():
    rng = np.random.default_rng(0)
    labels, z = np.arange(60) % 2, rng.normal(size=(60, 1)) * [[1.0, -1.0]]
    found = []
    for names in ([f"text {i}" for i in range(60)], [f"{hash(str(i * 7919)):x}" for i in range(60)]):
        one = Scores(
            "t", "d", labels, np.array(names, dtype=object), z, 2 * z + labels[:, None] * [[-1.0, 1.0]]
        )
        found.append(intervals([one, replace(one, task="u", clusters=one.clusters[::-1])]))
    assert found[0] == found[1]
