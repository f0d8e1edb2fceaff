"""The study: effects and intervals on scores of known size, the plan of cells, and a small one end to end."""

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_world import talking

import train
from minimon.metrics import DRAWS, Scores, auroc, intervals
from minimon.report.scores import text_hash
from minimon.run.cli import parse
from minimon.study import __main__ as study
from minimon.study.budget import Speed, fit_in, tokens_of
from minimon.study.cells import PRESETS, REGIMES, Cell, Planner, plan
from minimon.study.figures import write_figures
from minimon.study.findings import (
    QUESTIONS,
    Run,
    against,
    answers,
    as_trained,
    by_place,
    direction,
    effect,
    level,
    same_words,
    trained_labels,
    uplift,
    verdict,
)
from minimon.study.results import results, text
from minimon.tasks import load_mixture

ROOT = Path(__file__).resolve().parent.parent
ADJACENT, REVERSED = "new_domain / adjacent", "new_prompt / reversed"


def scores(name, seed, gain, n=60, domain="d"):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2

    def side(gain):
        z = gain * (labels == 0) + rng.normal(size=n)
        return np.stack([z, -z], axis=1)

    clusters = np.array([f"{name}{i}" for i in range(n)], dtype=object)
    return Scores(name, domain, labels, clusters, side(0.5), side(gain))


def cell(name, kind="regime", seed=0, **fields):
    return Cell(f"{name}-seed{seed}", kind, seed, "base", None, "", **fields)


def run(seed, gain, far=0.5, name="none"):
    tasks = [scores("a", seed, gain), scores("b", seed + 20, gain)]
    splits = {
        "new_domain": {"adjacent": tasks, "far": [scores("f", seed + 50, far)]},
        "new_prompt": {"reversed": [scores("r", seed + 70, -1.5)]},
    }
    return Run(cell(name, seed=seed, label=name), by_place(splits))


def test_an_effect_is_the_mean_over_seeds_with_seeds_drawn_anew():
    def levels(*means):
        return np.broadcast_to(np.array(means)[:, None, None], (len(means), 2, 1 + DRAWS))

    found = effect(levels(0.3, 0.5) - levels(0.1, 0.1))
    assert found["mean"] == pytest.approx(0.3) and found["seeds"] == pytest.approx([0.2, 0.4])
    assert found["ci95"] == pytest.approx([0.2, 0.4])


def test_intervals_are_over_transcripts_and_over_tasks_and_the_wider_is_the_headline():
    one = run(0, 2.0)
    found, expected = uplift([one], ADJACENT), intervals(one.tasks[ADJACENT])["auroc"]["uplift"]
    assert found["transcripts_ci95"] == expected.transcripts and found["tasks_ci95"] == expected.tasks
    assert found["ci95"] == expected.headline
    many = [run(seed, 2.0) for seed in range(5)]
    assert direction(uplift(many, ADJACENT)) == "more" and direction(uplift(many, REVERSED)) == "less"


def test_a_gain_of_a_few_tasks_is_no_claim_about_tasks():
    gains = {name: gain for name, gain in zip("abcdef", (4.0, 0.5, 4.0, 0.5, 0.5, 0.5), strict=True)}
    tasks = [scores(name, ord(name), gain, n=400) for name, gain in gains.items()]
    found = uplift([Run(cell("none"), {"new_domain": tasks})], "new_domain")
    low, high = found["transcripts_ci95"]
    assert low > 0 and found["tasks_ci95"][1] - found["tasks_ci95"][0] > 2 * (high - low)
    assert found["ci95"] == found["tasks_ci95"]


def test_regimes_are_compared_on_the_seeds_that_both_have():
    many = [run(seed, 2.0) for seed in range(3)]
    same = against(many, ADJACENT, many[1:])
    assert same["mean"] == 0 and same["ci95"] == [0, 0] and len(same["seeds"]) == 2
    assert direction(same) == "not shown" and against(many[:1], ADJACENT, many[1:]) is None


def regimes_of(**gains):
    return {name: [run(seed, gain, name=name) for seed in range(3)] for name, gain in gains.items()}


def test_the_questions_are_answered_from_the_regimes_there_are():
    gains = {"none": 2.0, "joint": 2.0, "self": 1.5, "self-at-once": 0.5}
    runs = [run(seed, gain, name=name) for name, gain in gains.items() for seed in range(3)]
    effects = results(runs, {})["effects"]
    assert [question[0] for question in effects["The six questions"]["verdict"]] == ["1", "2", "3", "6"]
    assert all(len(found["seeds"]) == 3 for found in effects["The six questions"]["effect"].values())
    kept = effects["Uplift over classification alone"]["joint"][ADJACENT]
    assert kept["mean"] == 0 and direction(kept) == "not shown"
    assert direction(effects["Uplift over self labels at once"]["self"][ADJACENT]) == "more"


def around(mean, half):
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def test_the_verdict_on_a_question_says_whether_the_study_could_have_told():
    whole, group = "new_domain: none - base", "new_domain / adjacent: none - base"
    assert verdict({whole: around(0.1, 0.05)}, 1) == verdict({whole: around(-0.1, 0.05)}, -1) == "shown"
    assert verdict({whole: around(0.0, 0.02), group: around(0.1, 0.05)}, 1) == "in part"
    assert verdict({whole: around(0.1, 0.05), "new_prompt: joint - none": around(0.0, 0.05)}, 1) == "in part"
    assert verdict({whole: around(0.0, 0.02)}, 1) == verdict({whole: around(-0.2, 0.1)}, 1) == "not shown"
    assert verdict({whole: around(0.01, 0.05)}, 1) == "not answerable at this size"


def test_the_old_question_share_is_of_the_pairs_on_which_the_questions_differ():
    task = scores("r", 0, 0.5, n=40)
    old = 1 - task.labels
    z = np.where(old == 0, 2.0, -2.0)  # the adapter answers the trained question, whatever is asked
    stuck = replace(task, adapter=np.stack([z, -z], axis=1))
    texts = dict(zip(task.clusters, old.tolist(), strict=True))
    same = {text: label for text, label in zip(task.clusters, task.labels.tolist(), strict=True)}
    groups = {"new_prompt": {"turned": [stuck]}}
    runs = [Run(cell("none"), {"turned": as_trained(groups, {("turned", "r"): texts})["turned"]})]
    share = level(runs, "turned", key="performance")
    assert share["mean"] == 1 and share["ci95"] == [1, 1]
    right = (task.base.argmax(axis=1) == task.labels).mean()
    assert level(runs, "turned", which="base", key="performance")["mean"] == pytest.approx(1 - right)
    assert as_trained(groups, {("turned", "r"): same}) == as_trained(groups, {}) == {}


def test_the_plan_holds_every_cell_once_and_mixtures_that_load(tmp_path):
    preset = replace(PRESETS["world"], seeds=2, side_seeds=1)
    mixture = load_mixture(ROOT / "data/mixtures/default.toml")
    (tmp_path / "mixtures").mkdir()
    cells = plan(preset, mixture, tmp_path)
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    assert names[:2] == ["none-seed0", "none-seed1"]  # what all others are compared with
    assert [name for name in names if name.endswith("-seed1")] == [f"{name}-seed1" for name in preset.regimes]
    by_name, speed = {cell.name: cell for cell in cells}, Speed(1.0, {})
    for name in ("joint0.1", "tasks8", "from-shell", "scarce-clinic-8-base"):
        planned = by_name[f"{name}-seed0"].mixture
        written = load_mixture(planned.path)
        assert [task.name for task in written.train] == [task.name for task in planned.train]
        assert written.cap == planned.cap and written.splits.keys() == planned.splits.keys()

    def rows_of(name):
        rows = tokens_of(replace(by_name[name], flags=f"{by_name[name].flags} --labels self-at-once"), speed)
        return rows["read"] - tokens_of(by_name[name], speed)["read"]

    assert len(by_name["tasks8-seed0"].mixture.train) == 8
    assert rows_of("tasks8-seed0") == pytest.approx(rows_of("tasks32-seed0"), rel=0.1)
    shell = by_name["from-shell-seed0"].mixture
    assert (
        {task.domain for task in shell.train}
        == {task.domain for task in shell.splits["trained"][""]}
        == {"shell"}
    )
    assert by_name["after-seed1"].after == "none-seed1"
    starts = [cell for cell in cells if cell.kind == "scarce"]
    assert len(starts) == 3 * 4 * 2
    for cell in starts:
        assert cell.after == ("none-seed0" if "-adapter-" in cell.name else None)


def test_a_phase_of_instructions_is_a_run_from_the_adapter_of_classification(world, tmp_path):
    both = {"instruct": "after", "instruct_steps": 3, "instruct_lr": 1e-3}
    assert train.main(talking(world, tmp_path / "none")) == 0
    assert train.main(talking(world, tmp_path / "after", **both)) == 0
    second = {"instruct": "only", "steps": 3, "lr": 1e-3, "init_adapter": str(tmp_path / "none")}
    assert train.main(talking(world, tmp_path / "second", **second)) == 0
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("none", "after", "second")]
    none, after, second = (file.read_bytes() for file in files)
    assert none != after == second


def test_the_presets_differ_in_size_alone():
    world, real = PRESETS["world"], PRESETS["real"]
    assert set(world.regimes) | {"joint0.75"} == set(real.regimes) == set(REGIMES)
    assert set(real.parts) <= set(world.parts)


def test_runs_on_many_tasks_go_on_from_a_first_one_on_few(world, tmp_path, children, monkeypatch):
    few = str(world / "talking.toml")
    flags = {"first": few, "first_train": "--steps 3", "train": "--lr 1e-3", "then_train": "--lr 1e-4"}
    preset = replace(PRESETS["world"], seeds=1, side_seeds=1, shares=(0.5,), row_counts=(4,), **flags)
    (tmp_path / "mixtures").mkdir()
    cells = plan(preset, load_mixture(world / "talking.toml"), tmp_path)
    assert [cell.name for cell in cells[:2]] == ["first-seed0", "none-seed0"]
    assert str(cells[0].mixture.path) == few and "--steps 3" in cells[0].flags
    by_name = {cell.name.removesuffix("-seed0"): cell for cell in cells}
    for name in ("none", "joint", "joint0.5"):
        assert by_name[name].after == "first-seed0" and by_name[name].flags.split()[:4:3] == ["--lr", "1e-4"]
    assert by_name["after"].after == "none-seed0"
    assert "--steps 3" in by_name["rows4"].flags and by_name["rows4"].flags.endswith("--cap 4")
    written = load_mixture(by_name["rows4"].mixture.path)
    assert [task.name for task in written.train] == [task.name for task in cells[0].mixture.train]
    assert set(written.splits) == {"new_domain", "new_prompt"}
    for name in ("first", "only", "self", "self-at-once", "rows4"):
        assert by_name[name].after is None and "1e-4" not in by_name[name].flags
    monkeypatch.setattr(children, "trains", False)
    children.codes["first-seed0"] = 2  # then neither those after it nor those after these
    running = study.Study(preset, tmp_path, cells, {})
    running.run({})
    assert running.failed == {"first-seed0"}
    assert {"only-seed0", "self-seed0"} <= set(children.done)
    assert not {"none-seed0", "joint-seed0", "after-seed0"} & set(children.done)


def test_a_budget_leaves_out_the_last_cells(world):
    mixture = load_mixture(world / "talking.toml")
    cells = [
        replace(cell(name), mixture=mixture, flags="--steps 10 --batch-size 6 --steps 20") for name in "abc"
    ]
    speed = Speed(1.0, {"trained": 1.0, "read": 1e9, "written": 1e9})  # a token is a character
    tokens = tokens_of(cells[0], speed)
    lengths = [len(task.prompt + row.text) for task in mixture.train for row in task.rows]
    assert tokens["trained"] == pytest.approx(20 * 6 * np.mean(lengths))  # the last of a flag counts
    assert tokens["written"] == 4 * 4  # the thinking split's rows and tokens
    labelled = replace(cells[0], flags="--labels self")
    assert tokens_of(labelled, speed)["written"] == 4 * 4 + 24 * 4
    few = replace(cells[0], flags="--labels self --cap 4 --eval-rows 2")
    assert tokens_of(few, speed)["written"] == 2 * 4 + 8 * 4
    hours = tokens["trained"] / 3600
    kept, arithmetic = fit_in(cells, speed, 1, None)
    assert kept == cells and "for 3 cells, 1 at a time" in arithmetic and "leaves out" not in arithmetic
    kept, arithmetic = fit_in(cells, speed, 2, 1.01 * hours)  # two at a time
    assert kept == cells[:2] and "leaves out c-seed0." in arithmetic


def of(world, out, **changes):
    changes = {"parts": "regimes,baselines", "seeds": 1, **changes}
    return study.Settings(
        model=str(world / "base"), mixture=str(world / "talking.toml"), out=str(out), **changes
    )


class InProcess(study.Children):
    """train.py's main in place of a process, a few steps each. `codes`: name of a cell -> how it ends instead."""

    codes: dict = {}
    done: list = []
    trains = True

    def run(self, command, log, env=None):
        name = command[command.index("--out") + 1].split("/")[-1]
        if self.is_closed:
            return -15
        if name in self.codes:
            self.is_closed = self.codes[name] == 130  # a signal goes to all
            with open(log, "w") as file:
                file.write("loading\nerror: no such thing\n")
            return self.codes[name]
        self.done.append(name)
        if not self.trains:
            return 0
        few = ["--steps", "2", "--batch-size", "4", "--instruct-steps", "1"]
        return train.main(parse(train.Settings, [*command[2:], *few]))


class NoSignals:
    """Signals reach the main thread alone, and here a cell runs in another."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __bool__(self):
        return False


@pytest.fixture
def children(monkeypatch):
    monkeypatch.setattr(study, "Children", InProcess)
    monkeypatch.setattr(train, "StopSignals", NoSignals)
    monkeypatch.setattr(study, "write_figures", lambda numbers, out: None)
    monkeypatch.setattr(InProcess, "codes", {})
    monkeypatch.setattr(InProcess, "done", [])
    return InProcess


def test_a_study_that_was_stopped_goes_on_and_reports(world, tmp_path, children, capsys):
    settings = of(world, tmp_path)
    children.codes["after-seed0"] = 130
    assert study.main(settings) == 130 and children.done == ["none-seed0", "joint-seed0"]
    assert "goes on" in capsys.readouterr().out
    part = json.loads((tmp_path / "results.json").read_text())
    assert part["cells"] == 2 and part["seeds"] == {"none": 1, "joint": 1}
    children.codes.clear()
    assert study.main(settings) == 0 and len(children.done) == len(set(children.done)) == 6
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cells"] == found["planned"] == 6
    effects, levels = found["effects"], found["levels"]
    assert [question[0] for question in effects["The six questions"]["verdict"]] == list("12346")
    assert levels["Self labels"]["self-seed0"]["rows"] > 0 and levels["AUROC"].keys() > {
        "bag of words",
        "base",
    }
    assert levels["Old-question share"]["none"]["old_question / turned"]["mean"] >= 0
    assert levels["Inter-task generalization"]["none"]["seeds above epsilon"] in ("0 of 1", "1 of 1")
    assert "# Results of the study" in (tmp_path / "results.md").read_text()
    assert "hours for 6 cells" in (tmp_path / "plan.md").read_text()
    assert "6 of 6 cells" in capsys.readouterr().out
    for path in tmp_path.glob("cells/*/scores.jsonl"):  # as a repository holds them
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert study.main(of(world, tmp_path, results=True)) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_a_study_does_not_go_on_from_reports_without_their_adapters(world, tmp_path, children):
    assert study.main(of(world, tmp_path, parts="regimes,scarce", side_seeds=1)) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "cells/none-seed0" / name).unlink()
    (tmp_path / "cells/after-seed0/report.json").unlink()
    with pytest.raises(
        ValueError, match="none-seed0: expected the adapter that after-seed0 starts from.*new --out"
    ):
        study.main(of(world, tmp_path, parts="regimes,scarce", side_seeds=1))


def test_a_study_can_be_planned_of_any_mixture(world, tmp_path):
    """Without new domains, without new rows of trained tasks, and under a name of any characters."""
    (tmp_path / "mixtures").mkdir()
    (world / "plain.toml").write_text(
        'name = "m"\n[train]\ntasks = ["t.toml#old"]\n[eval.trained]\ntasks = ["t.toml#old"]\n'
    )
    plain = load_mixture(world / "plain.toml")
    preset = replace(PRESETS["world"], seeds=1, side_seeds=1)
    assert {cell.kind for cell in plan(preset, plain, tmp_path)} == {"regime", "transfer"}
    for cell in plan(preset, load_mixture(world / "m.toml"), tmp_path):
        assert tokens_of(cell, Speed(1.0, {}))["trained"] > 0
    planner = Planner(preset, plain, tmp_path)
    crab = planner.derive("crab", plain.train, {"trained": {"\U0001f980": plain.train}})
    assert list(load_mixture(crab.path).splits["trained"]) == ["\U0001f980"]


def test_a_cell_that_fails_says_so_at_once_and_the_others_go_on(
    world, tmp_path, children, capsys, monkeypatch
):
    children.codes["none-seed0"] = 2
    monkeypatch.setattr(children, "trains", False)
    assert study.main(of(world, tmp_path, parts="regimes,scarce", side_seeds=1)) == 2
    errors = capsys.readouterr().err
    assert (
        "none-seed0: train.py ended with 2: error: no such thing" in errors and "failed: none-seed0" in errors
    )
    assert "joint-seed0" in children.done and "scarce-new-8-base-seed0" in children.done
    assert not [name for name in children.done if "-adapter-" in name]  # they start from the one that failed


@pytest.mark.slow
def test_a_study_that_gets_sigterm_leaves_no_child_computing(world, tmp_path):
    command = [sys.executable, "-m", "minimon.study", "--model", str(world / "base")]
    command += ["--mixture", str(world / "talking.toml"), "--out", str(tmp_path), "--parts", "regimes"]
    command += ["--seeds", "1", "--train", "--steps 100000 --batch-size 4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = tmp_path / "cells/none-seed0/log.jsonl"
    deadline = time.time() + 240
    while not log.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    process.terminate()
    said, _ = process.communicate(timeout=240)
    assert log.exists() and process.returncode == 143 and "the same command goes on" in said
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if str(tmp_path).encode() in line]


def test_what_cannot_be_studied_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="expected --parts of regimes"):
        study.main(of(world, tmp_path, parts="regime"))
    with pytest.raises(ValueError, match="--results: expected the cells of a study in .*nowhere, found none"):
        study.main(of(world, tmp_path / "nowhere", results=True))
    assert not (tmp_path / "nowhere").exists()


def test_curves_transfer_and_scarce_labels_are_made_of_the_fields_of_cells(tmp_path):
    report, runs = {"inter_task": {"generalizes": False}}, []
    for seed in (0, 1):
        for name, x, gain in (("none", 0.0, 2.0), ("joint", 0.25, 1.5)):
            runs.append(replace(run(seed, gain), cell=cell(name, seed=seed, label=name, x=x), report=report))
        for kind, x, gain in (("share", 0.1, 1.0), ("share", 0.5, 3.0), ("tasks", 8, 1.0), ("rows", 30, 1.0)):
            runs.append(replace(run(seed, gain), cell=cell(f"{kind}{x}", kind, seed, x=x)))
        other = replace(cell("base-other", "base", seed, label="other"), model="other")
        runs.append(replace(run(seed, 1.0), cell=other))
        splits = {
            "trained": {"": [scores("s", seed, 3.0, domain="shell")]},
            "new_domain": {"home": [scores("h", seed, 0.5, domain="home")]},
        }
        runs.append(Run(cell("from-shell", "transfer", seed, label="shell"), by_place(splits)))
        for k, gain in ((8, 1.0), (None, 3.0)):
            for start, after in (("base", None), ("adapter", f"none-seed{seed}")):
                few = cell(f"scarce-d-{k}-{start}", "scarce", seed, label="d", x=k, after=after)
                runs.append(Run(few, {"trained": [scores("a", seed, gain)]}))
    numbers = results(runs, {})
    effects, levels = numbers["effects"], numbers["levels"]
    fraction = effects["Uplift by share of instruction rows"]
    assert list(fraction) == ["0.0", "0.1", "0.25", "0.5"]
    assert fraction["0.5"][ADJACENT]["mean"] > fraction["0.1"][ADJACENT]["mean"]
    assert list(effects["Uplift by training tasks"]) == ["8"]
    assert list(effects["Uplift by training rows a task"]) == ["30"]
    assert list(effects["Uplift by base"]) == ["base", "other"]
    shell = effects["Uplift by domain trained on"]["shell"]
    assert shell["trained"]["mean"] > 0.2 > abs(shell["new_domain / home"]["mean"])
    few = levels["AUROC by labelled rows of a new domain"]
    assert list(few) == ["0", "8", "all"]
    assert all(set(starts) == {"from the base", "from the adapter"} for starts in few.values())
    (task, _), expected = run(0, 2.0).tasks[ADJACENT], few["0"]["from the adapter"]["seeds"]
    assert len(expected) == 2 and expected[0] == auroc(task.adapter[:, 0], task.positives)
    assert numbers["seeds"] == {"none": 2, "joint": 2} and "## AUROC by labelled rows" in text(numbers)
    pytest.importorskip("matplotlib", reason="figures need the plot extra")
    assert write_figures(numbers, tmp_path)
    assert (tmp_path / "study.png").stat().st_size > 10_000 and (tmp_path / "transfer.png").exists()


def test_the_trained_question_of_a_text_is_that_of_a_training_task_on_it(world):
    mixture = load_mixture(world / "talking.toml")
    (task,) = mixture.splits["new_prompt"]["turned"]
    found = trained_labels(mixture)
    asked = {row.text: list(task.labels)[row.label] for row in task.rows}
    trained = {row.text: list(mixture.train[0].labels)[row.label] for row in mixture.train[0].rows}
    assert set(found) == {("turned", "old")} and len(asked) == len(found["turned", "old"])
    for name, word in trained.items():
        assert list(task.labels)[found["turned", "old"][text_hash(name)]] == word != asked[name]


def test_runs_of_one_regime_may_have_measured_different_splits():
    whole, few = run(0, 2.0), run(1, 2.0)
    few = replace(few, tasks={place: tasks for place, tasks in few.tasks.items() if "new_domain" in place})
    other = run(2, 2.0)
    other = replace(
        other, tasks={place: tasks for place, tasks in other.tasks.items() if "new_prompt" in place}
    )
    whole = replace(whole, report={"inter_task": {"generalizes": True}})
    verdicts = results([whole, other], {})["levels"]["Inter-task generalization"]["none"]
    assert verdicts["seeds above epsilon"] == "1 of 1"
    for runs in ([whole, few], [few, whole]):
        shown = results(runs, {})
        uplifts = shown["effects"]["Uplift over the base"]["none"]
        assert len(uplifts[ADJACENT]["seeds"]) == 2 and len(uplifts[REVERSED]["seeds"]) == 1
        assert "(1 of 2 seeds)" in text(shown)
    assert against([whole, few], REVERSED, [few, whole])["seeds"] == [0.0]


def test_a_place_with_rows_of_one_class_has_no_effect():
    task = scores("f", 3, 1.0)
    only = replace(task, labels=np.zeros(60, dtype=int))
    one = run(0, 2.0)
    one = replace(one, tasks=one.tasks | {"new_domain / far": [only]})
    numbers = results([one], {})
    assert numbers["effects"]["Uplift over the base"]["none"]["new_domain / far"] is None
    assert "| new_domain / far | - |" in text(numbers)


def test_a_question_is_not_answered_without_what_it_compares():
    gain = {"new_domain": around(0.1, 0.05)}
    minus = {"base": {"joint": gain, "self": gain}, "none": {"joint": {}}, "self-at-once": {}}
    found = answers(minus)["verdict"]  # neither against classification alone nor against labels at once
    assert found == {QUESTIONS[5].words: "in part"}
    assert verdict(
        {"new_prompt: joint - none": around(0.0, 0.02), "new_domain: joint - base": around(0.0, 0.05)}, 1
    ) == ("not answerable at this size")


def test_an_answer_of_a_trained_question_may_have_no_place_in_the_new_one(world):
    (task,) = load_mixture(world / "talking.toml").splits["new_prompt"]["turned"]
    three = replace(task, labels={"A": [0], "B": [1], "No": [2], "D": [3]})
    assert list(task.labels) == ["No", "Yes"] and same_words(three, task) == [0, 1, 0, -1]
