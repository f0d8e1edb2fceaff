"""The study: effects and intervals on made scores, the plan of cells, and a small one end to end."""

import json

import numpy as np
import pytest

import train
from minimon.study import __main__ as study
from minimon.run.cli import parse
from minimon.study.findings import Runs, against, difference, six_answers, uplift, verdict
from minimon.metrics import DRAWS, Scores, intervals
from minimon.study.figures import write_figures
from minimon.study.results import results
from minimon.tasks import load_mixture
from test_train import ROOT


def scores(name, seed, gain, n=60, domain="d"):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2

    def side(gain):
        z = gain * (y == 0) + rng.normal(size=n)
        return np.stack([1 / (1 + np.exp(-z)), 1 - 1 / (1 + np.exp(-z))], axis=1)
    return Scores(name, domain, y, np.array([f"{name}{i}" for i in range(n)]), side(0.5), side(gain))


def run(seed, gain, far=0.5):
    return {"new_domain": {"adjacent": [scores("a", seed, gain)], "far": [scores("f", seed + 50, far)]},
            "new_prompt": {"reversed": [scores("r", seed + 70, -1.5)]}}


def test_an_effect_is_the_mean_over_seeds_with_seeds_and_transcripts_drawn():
    even = [(0.3, np.full(DRAWS, 0.3)), (0.5, np.full(DRAWS, 0.5))]
    found = difference(even, [(0.1, np.full(DRAWS, 0.1))] * 2)
    assert found["mean"] == pytest.approx(0.3) and found["seeds"] == pytest.approx([0.2, 0.4]) and found["ci95"] == pytest.approx([0.2, 0.4])
    one = run(0, 2.0)
    assert uplift(Runs([one]), "new_domain", "adjacent")["ci95"] == intervals(one["new_domain"]["adjacent"])["auroc"]["uplift"]
    many = Runs([run(seed, 2.0) for seed in range(5)])
    assert verdict(uplift(many, "new_domain", "adjacent")) == "more" and verdict(uplift(many, "new_prompt", "reversed")) == "less"
    same = against(many, many, "new_domain")
    assert same["mean"] == 0 and same["ci95"] == [0, 0] and verdict(same) == "not shown"


def test_the_six_questions_are_answered_from_the_regimes_there_are():
    regimes = {name: Runs([run(seed, gain) for seed in range(3)]) for name, gain in (("none", 2.0), ("joint", 2.0), ("self", 1.5))}
    answers = six_answers(regimes)
    assert {answer["question"] for answer in answers} == {1, 2, 3, 6} and all(len(answer["seeds"]) == 3 for answer in answers)
    kept = next(answer for answer in answers if answer["measure"] == "new_domain / adjacent: joint - classification alone")
    assert kept["mean"] == 0 and kept["verdict"] == "not shown"
    assert six_answers({"joint": regimes["joint"]}) == []


def test_the_plan_holds_every_cell_once_and_mixtures_that_load(tmp_path):
    settings = study.Settings(out=str(tmp_path), seeds=2, side_seeds=1)
    mixture = load_mixture(ROOT / "data/mixtures/default.toml")
    (tmp_path / "mixtures").mkdir()
    cells = study.plan(settings, mixture, tmp_path, list(study.PARTS))
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names)) and [name for name in names if name.endswith("-seed1")] == [f"{name}-seed1" for name in study.REGIMES]
    paths = sorted({cell.flags[cell.flags.index("--mixture") + 1] for cell in cells})
    for path in paths[::16]:                    # a few of the kinds
        made = load_mixture(path)
        assert made.splits and made.train
    few = load_mixture(tmp_path / "mixtures/tasks8-seed0.toml")
    assert len(few.train) == 8 and sum(len(few.train_rows(task, 0)) for task in few.train) == pytest.approx(
        sum(len(made.train_rows(task, 0)) for made in [load_mixture(tmp_path / "mixtures/tasks32-seed0.toml")] for task in made.train), rel=0.1)
    one = load_mixture(tmp_path / "mixtures/from-shell.toml")
    assert {task.domain for task in one.train} == {"shell"} and {task.domain for task in one.splits["trained"][""]} == {"shell"}
    starts = {cell.name: cell for cell in cells if cell.name.startswith("scarce-")}
    assert all((cell.after is not None) == ("-adapter-" in name) for name, cell in starts.items()) and len(starts) == 3 * 4 * 2


def of(world, out, **changes):
    return study.Settings(model=str(world / "base"), mixture=str(world / "talking.toml"), out=str(out), seeds=1, **changes)


def in_process(monkeypatch, stop_at=None):
    """train.py's main in place of a process, a few steps each."""
    done = []

    def call(command, **keywords):
        if len(done) == stop_at:
            return type("Result", (), {"returncode": 130})
        done.append(command[command.index("--out") + 1])
        return type("Result", (), {"returncode": train.main(parse(train.Settings, [*command[2:], "--steps", "2", "--batch-size", "4",
                                                                                   "--instruct-steps", "1"]))})
    monkeypatch.setattr(study.subprocess, "run", call)
    monkeypatch.setattr(train, "stop_signals", list)       # signals reach the main thread alone
    return done


def test_a_study_that_was_stopped_goes_on_and_reports(world, tmp_path, monkeypatch, capsys):
    settings = of(world, tmp_path, parts="regimes,baselines")
    with monkeypatch.context() as patch:
        first = in_process(patch, stop_at=2)
        assert study.main(settings) == 130 and len(first) == 2 and "goes on" in capsys.readouterr().out
    second = in_process(monkeypatch)
    assert study.main(settings) == 0 and len(second) == 3 and not set(first) & set(second)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cells"] == found["planned"] == 5 and {answer["question"] for answer in found["answers"]} == {1, 2, 3, 4, 6}
    assert found["labels"]["self-seed0"]["rows"] > 0 and "bag of words" in found["baselines"]
    assert "# Results of the study" in (tmp_path / "results.md").read_text() and "5 of 5 cells" in capsys.readouterr().out
    assert study.main(of(world, tmp_path, parts="regimes,baselines", results=True)) == 0


def test_a_cell_that_fails_ends_the_study_with_its_last_line(world, tmp_path, monkeypatch):
    def call(command, stdout, **keywords):
        stdout.write("loading\nerror: no such thing\n")
        return type("Result", (), {"returncode": 2})
    monkeypatch.setattr(study.subprocess, "run", call)
    with pytest.raises(ValueError, match="none-seed0: train.py ended with 2: error: no such thing"):
        study.main(of(world, tmp_path, parts="regimes"))


def test_curves_transfer_and_scarce_labels_come_from_the_names_of_cells(tmp_path):
    report = {"splits": {}, "inter_task": {"mean": 0.6, "base_mean": 0.5, "epsilon": 0.75, "generalizes": False}}
    cells = {f"{name}-seed{seed}": (run(seed, gain), report) for seed in (0, 1)
             for name, gain in (("none", 2.0), ("joint", 1.5), ("joint0.1", 1.0), ("joint0.5", 3.0), ("tasks8", 1.0))}
    for seed in (0, 1):
        cells[f"from-shell-seed{seed}"] = ({"trained": {"": [scores("s", seed, 3.0, domain="shell")]},
                                            "new_domain": {"home": [scores("h", seed, 0.5, domain="home")]}}, report)
        for k, gain in (("8", 1.0), ("all", 3.0)):
            for start in ("base", "adapter"):
                cells[f"scarce-d-{k}-{start}-seed{seed}"] = ({"trained": {"": [scores("a", seed, gain)]}}, report)
    found = results(cells, None, 0.25)
    numbers = found["numbers"]
    assert [point["x"] for point in numbers["dilution"]["fraction"]] == [0, 0.1, 0.25, 0.5] and numbers["dilution"]["tasks"][0]["x"] == 8
    assert numbers["dilution"]["fraction"][3]["new_domain / adjacent"]["mean"] > numbers["dilution"]["fraction"][1]["new_domain / adjacent"]["mean"]
    assert numbers["transfer"]["shell"]["shell"]["mean"] > 0.2 > abs(numbers["transfer"]["shell"]["home"]["mean"])
    assert [(point["k"], point["start"]) for point in numbers["scarce"]] == [(k, s) for k in (0, 8, None) for s in ("adapter", "base")]
    assert numbers["seeds"] == {"none": 2, "joint": 2} and "## Scarce labels" in found["text"]
    pytest.importorskip("matplotlib", reason="figures need the plot extra")
    assert write_figures(numbers, tmp_path) and (tmp_path / "study.png").stat().st_size > 10_000 and (tmp_path / "transfer.png").exists()
