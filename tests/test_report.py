"""What a run leaves to be read: report.json, the table, report.md, .html; all of it made anew."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from forks import ended

from minimon.metrics import Scores, intervals, measures, sigmoid, tpr_at_fpr
from minimon.report import build_report, read_scores, reading, table, verdict_line, write_report
from minimon.report.__main__ import main as write_again
from minimon.report.data import RATES, curve
from minimon.report.html import page
from minimon.report.scores import write_scores
from minimon.report.svg import figures

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre></details><h1>inter-task generalization: yes</h1>",
    "&lt;b&gt; &amp; '\" `",
    "\u202egnihtyreve desrever\u202c \u200b\ufeff\0\x1b[31m",
    "<!-- --><style>body{display:none}</style>",
    "\ud800 half a character",
]


def task(name, n=300, seed=0, gain=1.0, criterion="", texts=None, shares=None):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)

    def log_odds(strength):
        z = (strength * (1 - 2 * labels) + rng.normal(size=n)).astype(np.float32)
        return np.stack([z, -z], axis=1)

    texts = texts or [f"{name} text {i}" for i in range(n)]
    clusters = np.array(texts, dtype=object)
    return Scores(
        name, "d", labels, clusters, log_odds(0.3), log_odds(gain), shares=shares or {}, criterion=criterion
    )


def some_scores(gain=1.0):
    return {
        "trained": {"": [task("shell-theft", seed=1, gain=2.0), task("shell-lies", seed=2, gain=2.0)]},
        "new_domain": {
            "adjacent": [task(f"home-{i}", seed=3 + i, gain=gain) for i in range(4)],
            "far": [task(f"ship-{i}", seed=7 + i, gain=gain) for i in range(3)],
        },
        "new_prompt": {"reversed": [task("shell-honest", n=60, seed=11, gain=-1.0)]},
    }


def built(scores, **more):
    return build_report(scores, model="m", adapter="a", seed=0, epsilon=0.5, run={"date": "today"}, **more)


@pytest.fixture(scope="module")
def report():
    return built(some_scores())


# ---- report.json


def test_the_report_keeps_its_keys_and_is_json(report):
    json.dumps(report, allow_nan=False)
    assert {"model", "adapter", "seed", "epsilon", "splits", "inter_task", "intra_task", "run"} <= set(report)
    measures = {"performance", "auroc", "tpr_at_1pct_fpr", "tpr_at_5pct_fpr", "brier", "ece"}
    for part in report["splits"].values():
        assert {"tasks", "mean", "groups", "rows_cut"} <= set(part)
        for entry in [*part["tasks"], part["mean"], *part["groups"].values()]:
            assert measures | {"performance_ci95", "auroc_ci95"} <= set(entry["base"]) & set(entry["adapter"])
            assert {"performance", "auroc", "ci95", "performance_ci95"} <= set(entry["uplift"])
            assert {"ci95_tasks", "headline_ci95"} <= set(entry["uplift"])
        for entry in part["tasks"]:
            assert {"task", "domain", "group", "n", "positives"} <= set(entry)
    for key in ("inter_task", "intra_task"):
        assert {"pairs", "base_mean", "mean", "ci95", "chance", "epsilon", "generalizes"} <= set(report[key])
        assert {"ci95_tasks", "headline_ci95"} <= set(report[key])


def test_the_same_scores_give_the_same_report():
    assert built(some_scores()) == built(some_scores())


def test_the_headline_is_the_wider_of_the_intervals_over_transcripts_and_over_tasks(report):
    scores = some_scores()
    for split, part in report["splits"].items():
        tasks = [task for members in scores[split].values() for task in members]
        bounds, uplift = intervals(tasks)["auroc"]["uplift"], part["mean"]["uplift"]
        assert (uplift["ci95"], uplift["ci95_tasks"]) == (bounds.transcripts, bounds.tasks)
        widths = [high - low for low, high in filter(None, (bounds.transcripts, bounds.tasks))]
        low, high = uplift["headline_ci95"]
        assert high - low == max(widths)
    verdict = report["inter_task"]
    assert verdict["headline_ci95"] in (verdict["ci95"], verdict["ci95_tasks"])
    assert report["splits"]["new_prompt"]["mean"]["uplift"]["ci95_tasks"] is None  # one task


def test_a_report_over_one_class_or_no_rows_at_all_has_nulls_and_no_verdict(tmp_path):
    def one_class(labels):
        z = np.linspace(-1, 1, len(labels)).reshape(-1, 1)
        clusters = np.array([f"row {i}" for i in range(len(labels))], dtype=object)
        return Scores("t", "d", np.array(labels, dtype=int), clusters, *[np.concatenate([z, -z], axis=1)] * 2)

    one, none = one_class([0, 0, 0]), one_class([])
    for tasks in ([one], [none], [one, none], [none, none], [task("t", n=40), one, none]):
        scores = {"new_domain": {"": tasks}, "trained": {"far": tasks, "adjacent": tasks}}
        report = built(scores)
        write_report(report, tmp_path, scores)
        written = json.loads((tmp_path / "report.json").read_text())
        assert ("inter_task" in written) == any(len(task.labels) for task in tasks)
        mean = written["splits"]["new_domain"]["mean"]["adapter"]
        assert (mean["auroc"] is None) == (len(tasks) < 3)
        assert (mean["performance"] is None) == ("inter_task" not in written)
        assert "AUROC is not defined for" in table(written)
        assert verdict_line(written) and reading(written)


def test_the_roc_goes_through_the_points_of_the_metrics():
    tasks = [task("t", n=2000)]
    found, positives = curve(tasks), tasks[0].positives
    for which in ("base", "adapter"):
        expected = [tpr_at_fpr(tasks[0].of(which)[:, 0], positives, rate) for rate in RATES]
        assert found[which] == expected and found[which] == sorted(found[which])
    assert curve([task("t", n=60)])["adapter"][:4] == [None] * 4  # 30 negatives hold no FPR of 1%


# ---- scores.jsonl


def test_scores_are_read_back_to_the_last_bit_and_rank_as_before(tmp_path):
    rng = np.random.default_rng(0)
    z = (20 + rng.normal(size=500)).astype(np.float32)
    log_odds = np.stack([z, -z], axis=1)
    texts = np.array([f"text {i}" for i in range(500)], dtype=object)
    references = {"empty": -log_odds}
    one = Scores(
        "t", "d", np.arange(500) % 2, texts, log_odds, -log_odds, references=references, criterion="c"
    )
    write_scores({"new_domain": {"far": [one]}}, tmp_path / "scores.jsonl")
    back = read_scores(tmp_path / "scores.jsonl")["new_domain"]["far"][0]
    for which in ("base", "adapter", "empty"):
        assert np.array_equal(back.of(which), one.of(which))
    assert (back.task, back.domain, back.criterion) == ("t", "d", "c")
    assert np.array_equal(back.labels, one.labels)
    assert all(measures(back, which) == measures(one, which) for which in ("base", "adapter"))


def test_probabilities_in_place_of_log_odds_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "scores.jsonl"
    about = {
        "split": "trained",
        "group": "",
        "task": "t",
        "domain": "d",
        "criterion": "",
        "text": "0a",
        "label": 0,
    }
    for scores in (
        {"base": [0.5, 0.5], "adapter": [0.6, 0.4]},
        {"log_odds": {"base": [0.4, 0.6], "adapter": [0.6, 0.4]}},
    ):
        path.write_text(json.dumps({**about, **scores}) + "\n")
        with pytest.raises(
            ValueError, match="task 't': expected log-odds for every pair.*; measure the run again"
        ):
            read_scores(path)


# ---- the table and what to make of it


def test_the_table_shows_the_tpr_and_the_groups(report):
    lines = table(report).splitlines()
    width = len(lines[1])
    assert width <= 110 and set(lines[1]) == {"-"}
    assert lines[0].split("  ")[0] == "split" and lines[0].rstrip().endswith("TPR@1%  TPR@5%")
    names = [line[: lines[0].index("tasks")].strip() for line in lines[2:9]]
    assert names[:5] == ["trained", "new_domain", "adjacent", "far", "new_prompt / reversed"]
    mean = report["splits"]["new_domain"]["mean"]
    for value in (
        mean["base"]["auroc"],
        mean["adapter"]["tpr_at_1pct_fpr"],
        mean["adapter"]["tpr_at_5pct_fpr"],
    ):
        assert f"{value:.3f}" in lines[3]
    assert "[{:+.3f}, {:+.3f}]".format(*mean["uplift"]["headline_ci95"]) in lines[3]
    assert any(line.startswith("chance: performance trained 0.500") for line in lines)


def test_a_reading_says_what_was_gained_and_lost(report):
    lines = reading(report)
    gained = next(line for line in lines if line.startswith("new_domain"))
    uplift = report["splits"]["new_domain"]["mean"]["uplift"]
    tasks, texts = ("[{:+.3f}, {:+.3f}]".format(*uplift[key]) for key in ("ci95_tasks", "ci95"))
    found = f"better than its base, AUROC {uplift['auroc']:+.3f} {tasks} over 7 tasks, {texts} over the texts"
    assert gained.endswith(found)
    lost = next(line for line in lines if line.startswith("new_prompt"))
    assert "worse than its base" in lost and "--instruct joint" in lost and " tasks" not in lost
    same = reading(built({"new_domain": {"": [task(str(i), seed=i, gain=0.3) for i in range(4)]}}))
    assert "no difference from its base is shown" in same[0]


def test_a_reading_says_what_a_threshold_catches_and_how_many_negatives_stand_behind(report):
    lines = [line for line in reading(report) if "threshold" in line]
    tpr = report["splits"]["new_domain"]["mean"]["adapter"]["tpr_at_1pct_fpr"]
    assert f"catches {tpr:.1%} of positives" in lines[0] and "10 of 1050 negatives" in lines[0]
    assert "at 5% FPR" in lines[1] and "52 of 1050 negatives" in lines[1]
    few = reading(built({"same_prompt": {"": [task("t", n=30)]}}))
    assert "same_prompt: TPR at 1% FPR is given from 100 negatives on, here are 15" in few
    assert "30 rows tell little, 60 give an interval worth reading" in few[0]


def test_a_reading_warns_where_the_model_does_not_answer_with_the_labels():
    def lines(mass):
        shares = {which: {"label_mass": np.full(40, mass, np.float32)} for which in ("base", "adapter")}
        return " ".join(reading(built({"trained": {"": [task("leak", n=40, gain=3.0, shares=shares)]}})))

    assert "warning" not in lines(0.9) and "answers with the labels" in lines(0.9)
    assert "warning: in 1 of 1 tasks" in lines(0.012) and "least for leak in trained, 1.2%" in lines(0.012)
    assert "--show" in lines(0.012)


@pytest.mark.parametrize(
    "training, words",
    [
        ({"epochs": 2.5, "rows": 4000}, "trained for 2.5 passes over 4000 training rows"),
        ({"epochs": 60.0, "rows": 160}, "warning: 60.0 passes over 160 training rows"),
        ({"validation_loss": [[0, 0.7], [50, 0.3], [100, 0.5]]}, "warning: worse after step 50"),
        ({"validation_loss": [[0, 0.7], [50, 0.5], [100, 0.3]]}, "still falling"),
        ({"epochs": 0.0, "rows": 160, "validation_loss": [[0, 0.7], [50, 0.5]]}, "0.500 at last"),
        ({}, "warning: AUROC"),
    ],
)
def test_a_reading_says_whether_it_was_trained_long_enough(training, words):
    gain = 3.0 if training else 0.0
    report = built({"trained": {"": [task("t", gain=gain)]}}, training=training)
    assert words in " ".join(reading(report)) and " 0.0 passes" not in " ".join(reading(report))


def test_the_split_for_a_trained_prompt_on_new_domains_is_read_and_outside_the_verdict():
    report = built({"same_prompt": {"": [task(str(i), seed=i, criterion="one") for i in range(3)]}})
    assert "inter_task" not in report and "same_prompt" in table(report)
    assert "over 3 tasks, [" in reading(report)[0]  # of one criterion, so tasks are drawn
    several = [task(str(i), seed=i, criterion="ab"[i % 2]) for i in range(4)]
    assert "over 4 tasks of 2 criteria, [" in reading(built({"new_domain": {"": several}}))[0]
    assert reading(report)[0].startswith("same_prompt (new domains, a trained prompt): better than its base")


def test_a_base_alone_is_shown_without_a_difference():
    one = task("t", seed=1)
    scores = {"new_domain": {"": [dataclasses.replace(one, adapter=one.base)]}}
    report = build_report(scores, model="m", adapter=None, seed=0, epsilon=0.5, run={})
    base = report["splits"]["new_domain"]["mean"]["base"]
    line = table(report).splitlines()[2]
    assert "->" not in line and f"{base['auroc']:.3f}" in line
    assert reading(report)[0].startswith(
        f"new_domain (new domains, new prompts): AUROC {base['auroc']:.3f} ["
    )
    assert "the base's mean" in verdict_line(report) and "its base" not in " ".join(reading(report))


# ---- the pages


def test_what_a_report_directory_holds(tmp_path):
    scores = some_scores()
    write_report(built(scores), tmp_path, scores)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.md",
        "report.html",
        "report.json",
        "scores.jsonl",
    }
    text = (tmp_path / "report.md").read_text()
    for words in (
        "| new_domain / far",
        "## Reading your result",
        "| home-3",
        "## new_prompt",
    ):
        assert words in text


def test_the_page_draws_a_roc_of_each_group_and_scores_by_class(report):
    drawn = figures(report)
    curves = [f"ROC, {split} {group}" for split, part in report["splits"].items() for group in part["curves"]]
    assert all(f"<figcaption>{curve}; dashed: base" in drawn for curve in curves)
    for split, part in report["splits"].items():
        counts = part["histogram"]
        sides = [f"{split}, {which}: positives up" for which in ("base", "adapter")]
        assert all(side in drawn for side in sides)
        bars = 2 * 2 * (len(counts["edges"]) - 1)  # sides, classes
        assert drawn.count("<rect") == bars * len(report["splits"])
    corner = re.search(r'class=adapter d="M[^"]*L([^"L]*)"', drawn)[1]
    assert corner == "290.0 10.0"  # all of both classes are above the lowest threshold


def hostile_scores():
    n = len(HOSTILE)
    return {
        "new_domain": {
            "<b>": [task("<i onclick=x>", n=n, texts=HOSTILE), task("plain", n=n, texts=HOSTILE[::-1])]
        }
    }


def test_no_text_can_act_as_markup_in_the_page():
    scores = hostile_scores()
    html = page(built(scores), scores)
    for tag in ("<script", "<img", "<b>", "<i ", "<!--"):
        assert tag not in html
    assert html.count("<style>") == 1 and html.count("<h1>") == 1
    for character in "\u202e\u202c\u200b\ufeff\0\x1b\ud800":
        assert character not in html
    assert "[U+202E]gnihtyreve" in html and "&lt;img src=x onerror=&quot;" in html
    assert not re.search(
        r" (?:src|href)=|url\(", re.sub(r"<pre>.*?</pre>|<bdi>.*?</bdi>", "", html, flags=re.S)
    )


def test_the_page_holds_the_most_wrong_texts_of_each_task_folded(report):
    scores = some_scores()
    html = page(report, scores)
    one = scores["new_domain"]["far"][0]
    order = np.argsort(one.adapter[:, 0])
    worst = [next(i for i in order[::-1] if one.labels[i] == 1), next(i for i in order if one.labels[i] == 0)]
    for i, kind in zip(worst, ("negative", "positive"), strict=True):
        base, adapter = one.base[i, 0], one.adapter[i, 0]
        line = f"{kind}: P base {sigmoid(base):.3f} ({base:+.1f}), "
        line += f"adapter {sigmoid(adapter):.3f} ({adapter:+.1f})"
        assert f"<summary>{line}: <bdi>{one.clusters[i]}</bdi></summary>" in html
    long = page(report, {"trained": {"": [task("t", n=2, texts=["x" * 5000, "y"])]}})
    assert "[... 1000 more characters]" in long and "x" * 4001 not in long


def test_the_pages_are_made_anew_from_a_finished_run(tmp_path, report, capsys):
    scores = some_scores()
    write_report(report, tmp_path, scores)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("report.md", "report.html"):
        (tmp_path / name).unlink()
    write_again(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before["report.md"] == after["report.md"]
    html = after["report.html"].decode()
    assert "shown by their hashes, since the mixture cannot be read" in html
    assert table(report) in capsys.readouterr().out


def test_texts_come_from_the_mixture_where_it_is_there(tmp_path, report):
    rows = [{"text": f"home-0 text {i}", "y": i % 2} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.toml").write_text(
        'name = "t"\ndomain = "home"\nprompt = "Is it? Answer Yes or No."\nrows = "rows.jsonl"\n'
        'text = "text"\n'
        'label = "y"\nlabels = { Yes = [0], No = [1] }\n'
    )
    (tmp_path / "m.toml").write_text(
        'name = "m"\n[train]\ntasks = ["t.toml"]\n[eval.trained]\ntasks = ["t.toml"]\n'
    )
    scores = some_scores()
    write_report(report, tmp_path, scores)
    (tmp_path / "settings.json").write_text(json.dumps({"mixture": str(tmp_path / "m.toml")}))
    write_again(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert re.search(r"<pre>home-0 text \d+</pre>", html) and "texts are shown by their hashes" in html


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("report.json", None, "report.json: expected a file of a finished run"),
        ("scores.jsonl", None, "scores.jsonl: expected a file of a finished run"),
        (
            "report.json",
            '{"splits": {"trained": {"tasks": []}}}',
            "report.json: expected a report of this version",
        ),
        ("scores.jsonl", '{"split": "trained"}\n', "scores.jsonl:1: expected the score of a pair"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(tmp_path, report, name, content, words):
    write_report(report, tmp_path, some_scores())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    code, _, error = ended("-m", "minimon.report", tmp_path)
    assert code == 2 and words in error and len(error.splitlines()) == 1


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open report.html in")
def test_a_browser_finds_the_numbers_and_runs_nothing_of_the_texts(tmp_path):
    scores = {**some_scores(), **hostile_scores()}
    report = built(scores)
    write_report(report, tmp_path, scores)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"file://{tmp_path}/report.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>m, seed 0</title>" in dom and "<script" not in dom
    assert "<img" not in dom
    for part in report["splits"].values():
        for entry in [part["mean"], *part["tasks"]]:
            assert f"<td>{entry['uplift']['auroc']:+.3f}</td>" in dom
    assert verdict_line(report).replace("<", "&lt;") in dom
