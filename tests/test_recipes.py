"""What train.py fills in where the command line leaves it open, and what it shows before and while it trains."""

import sys
import types
from dataclasses import asdict, replace

import pytest
from small_world import settings

import train
from minimon.run.directory import RunDirectory
from minimon.run.settings import with_recipe, with_steps
from minimon.tasks import load_mixture


def test_the_shipped_base_and_another_have_recipes_of_their_own_and_what_is_given_stays(world):
    shipped = with_recipe(train.Settings())
    assert (shipped.lr, shipped.r, shipped.lora_alpha, shipped.batch_size, shipped.group_size) == (
        3e-3,
        8,
        16.0,
        24,
        8,
    )
    other = with_recipe(train.Settings(model=str(world / "base")))
    # as narrow as it is: the highest rate
    assert (other.lr, other.r, other.batch_size, other.group_size) == (3e-3, 16, 32, 4)
    assert with_recipe(train.Settings(model=str(world / "base"), lr=1e-4, r=2)).lr == 1e-4
    assert with_recipe(train.Settings(lr=1e-4)).lr == 1e-4


def test_the_learning_rate_falls_with_the_width(world, monkeypatch):
    def of_width(width):
        monkeypatch.setattr(
            "minimon.run.settings.read_config", lambda directory: types.SimpleNamespace(hidden_size=width)
        )
        return with_recipe(train.Settings(model=str(world / "base"))).lr

    assert [of_width(width) for width in (576, 1024, 2560, 4096)] == [1.5e-3, 8.4e-4, 3.4e-4, 2.1e-4]


def test_steps_follow_from_the_rows_where_they_are_not_given(world):
    mixture = load_mixture(world / "talking.toml")  # 24 training rows
    open_steps = replace(settings(world, "x"), steps=None)
    assert with_steps(open_steps, mixture).steps == 40  # ten passes in steps of six
    assert with_steps(replace(open_steps, epochs=1.5), mixture).steps == 6
    assert with_steps(replace(open_steps, batch_size=1, cap=None), mixture).steps == 240
    many = replace(open_steps, batch_size=1, epochs=100.0)
    assert with_steps(many, mixture).steps == 2400
    assert with_steps(settings(world, "x"), mixture).steps == 16


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(epochs=2.0), "--epochs: expected .*no --steps"),
        (dict(steps=None, epochs=0.0), "--epochs"),
        (dict(warmup=-1), "--warmup"),
        (dict(splits="new_domain,no_such"), "--splits"),
        (dict(eval_rows=1), "--eval-rows"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_and_leave_nothing_behind(
    world, tmp_path, change, words
):
    with pytest.raises(ValueError, match=words):
        train.main(settings(world, tmp_path / "x", **change))
    assert not (tmp_path / "x").exists()


def test_show_prints_the_row_its_ids_and_what_the_base_makes_of_the_labels(world, tmp_path, capsys):
    assert train.main(settings(world, tmp_path / "x", show=f"{world}/t.toml#old")) == 0
    text = capsys.readouterr().out
    assert "Is it old?" in text and "old 0 of 0" in text and "ids: " in text
    assert (
        "'Yes': token" in text
        and "'No': token" in text
        and "of the probability over the whole vocabulary" in text
    )
    assert not (tmp_path / "x").exists()


def test_show_needs_a_row(world, tmp_path):
    nothing = (world / "t.toml").read_text().replace("labels = {", "skip = [0, 1]\nlabels = {")
    (world / "nothing.toml").write_text(nothing)
    with pytest.raises(ValueError, match="nothing.toml: task 'old': expected a row to show, got none"):
        train.main(settings(world, tmp_path / "x", show=f"{world}/nothing.toml#old"))


def test_splits_and_rows_bound_the_evaluation(world, tmp_path):
    assert train.main(settings(world, tmp_path / "x", steps=1, splits="new_domain", eval_rows=2, cap=4)) == 0
    lines = (tmp_path / "x/scores.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all('"new_domain"' in line for line in lines)


def test_event_files_are_asked_for_by_name_and_refused_early_without_the_package(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("minimon.run.settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--tensorboard: .*pip install tensorboard"):
        train.main(settings(world, tmp_path / "x", tensorboard=True))
    assert not (tmp_path / "x").exists()


def test_event_files_hold_the_numbers_of_the_log(world, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, directory):
            written.append(directory)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter)
    )
    for out, tensorboard in (("without", False), ("with", True)):
        with RunDirectory(asdict(settings(world, tmp_path / out, tensorboard=tensorboard))) as run:
            run.log({"step": 3, "loss": 0.5, "lr": 0.1})
        assert (tmp_path / out / "log.jsonl").read_text() == '{"step": 3, "loss": 0.5, "lr": 0.1}\n'
    assert written == [
        str(tmp_path / "with"),
        ("step", 3, 3),
        ("loss", 0.5, 3),
        ("lr", 0.1, 3),
        "closed",
    ]
