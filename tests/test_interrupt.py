"""A run is stopped at any instant and goes on to the bit-identical adapter; what cannot be written damages nothing.

Processes are forked and killed for real: SIGKILL at seeded instants, before and after each rename, and inside of each phase.
"""

import json
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from small_world import settings
from tqdm import tqdm

import train
from minimon import files
from minimon.files import open_tensors
from minimon.run.cli import StopSignals, one_line_errors

REGIMES = {
    "none": {},
    "joint": {"instruct": "joint"},
    "after": {"instruct": "after", "instruct_steps": 8},
    "only": {"instruct": "only"},
    "self": {"labels": "self", "label_samples": 2},
}


def forked(chosen, before=None, told=os.devnull) -> int:
    """The id of a process that runs train.py with these settings; `before` is called in it first. What it prints goes into files that
    begin with `told`."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            for number, suffix in ((1, ".out"), (2, ".err")):
                os.dup2(
                    os.open(told if told == os.devnull else f"{told}{suffix}", os.O_WRONLY | os.O_CREAT),
                    number,
                )
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            drawn = [name for name in sys.modules if name.startswith("matplotlib")]
            sys.modules.update(dict.fromkeys(["matplotlib", *drawn]))  # a figure is drawn in other tests
            # tqdm's own lock is shared by all forks, and one that is killed while holding it never lets go
            tqdm.set_lock(threading.RLock())
            if before:
                before()
            with one_line_errors("the same command with --resume"):
                code = train.main(chosen)
        except SystemExit as exit:
            code = exit.code
        finally:
            os._exit(code)
    return pid


def wait(pid) -> int:
    """Exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


WHOLE = {}


def whole(world, regime):
    """(directory, seconds) of a run that was left alone."""
    if (world, regime) not in WHOLE:
        started = time.time()
        assert wait(forked(settings(world, world / f"whole-{regime}", **REGIMES[regime]))) == 0
        WHOLE[world, regime] = world / f"whole-{regime}", time.time() - started
    return WHOLE[world, regime]


def same(out, expected):
    for name in ("adapter_model.safetensors", "scores.jsonl"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, expected)]
    assert all(report.pop("run") for report in reports) and reports[0] == reports[1]
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, expected)
    ]
    assert [[line["step"], line.get("loss"), line.get("instruct_loss")] for line in logs[0]] == [
        [line["step"], line.get("loss"), line.get("instruct_loss")] for line in logs[1]
    ]
    assert not [path.name for path in out.iterdir() if path.name.startswith("state")]


def saved_step(out) -> int:
    """Of the state that is there, which is whole at every instant; 0 where there is none yet."""
    path = out / "state.safetensors"
    if not path.exists():
        return 0
    with open_tensors(path) as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())
        return int(file.metadata()["step"])


def kill_and_go_on(world, out, regime, kills, seed):
    expected, seconds = whole(world, regime)
    rng, chosen, step = random.Random(seed), settings(world, out, resume=True, **REGIMES[regime]), 0
    for _ in range(kills):
        pid = forked(chosen)
        time.sleep(rng.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        now = saved_step(out)
        assert now >= step or (out / "report.json").exists()
        step = now
    assert wait(forked(chosen)) == 0
    same(out, expected)


@pytest.mark.parametrize("regime, seed", [("none", 1), ("after", 2), ("self", 3)])
def test_a_run_killed_at_random_instants_goes_on_to_the_same_bits(world, tmp_path, regime, seed):
    kill_and_go_on(world, tmp_path / "x", regime, 2, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("regime", REGIMES)
def test_a_run_killed_at_many_more_instants_goes_on_to_the_same_bits(world, tmp_path, regime, seed):
    kill_and_go_on(world, tmp_path / "x", regime, 4, 100 + seed)


def killed_in(function, module, name, calls, after=False):
    """Called in the child: SIGKILL at that call of module.name, before or after it is done."""

    def before():
        done, inner = [], function

        def fatal(*arguments, **keywords):
            done.append(1)
            if len(done) == calls and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = inner(*arguments, **keywords)
            if len(done) == calls and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(module, name, fatal)

    return before


@pytest.mark.parametrize("calls, after", [(2, False), (5, False), (5, True), (-1, True)])
def test_a_run_killed_around_a_rename_goes_on_to_the_same_bits(world, tmp_path, calls, after):
    """A rename decides which state counts; negative numbers count from the last, with which the run is finished."""
    expected, _ = whole(world, "none")
    out = tmp_path / "x"
    total = 3 + 6 + 5 - 1  # provenance, settings, log; states of steps 3 to 16; adapter, scores and report
    pid = forked(
        settings(world, out),
        killed_in(os.replace, files.os, "replace", calls % (total + 1) if calls < 0 else calls, after),
    )
    assert wait(pid) == -signal.SIGKILL
    saved_step(out)
    assert wait(forked(settings(world, out, resume=True))) == 0
    if not (calls, after) == (-1, True):
        same(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("calls", range(1, 14))
def test_a_run_killed_around_any_rename_goes_on_to_the_same_bits(world, tmp_path, calls, after):
    expected, _ = whole(world, "self")
    chosen = settings(world, tmp_path / "x", **REGIMES["self"])
    assert wait(forked(chosen, killed_in(os.replace, files.os, "replace", calls, after))) == -signal.SIGKILL
    saved_step(tmp_path / "x")
    assert wait(forked(replace(chosen, resume=True))) == 0
    same(tmp_path / "x", expected)


@pytest.mark.parametrize(
    "where, name, calls, regime",
    [
        ("minimon.evaluate", "read_encoded", 3, "none"),
        ("minimon.generate", "choose", 8, "only"),
        ("minimon.generate", "choose", 3, "self"),
        ("minimon.metrics", "bootstrap", 1, "joint"),
        ("minimon.checkpoint", "open_tensors", 1, "none"),
    ],
    ids=["while it scores", "while it decodes", "while it labels", "while it reports", "before it saves"],
)
def test_a_run_killed_within_a_phase_goes_on_to_the_same_bits(world, tmp_path, where, name, calls, regime):
    module = sys.modules[where]
    chosen = settings(world, tmp_path / "x", **REGIMES[regime])
    assert wait(forked(chosen, killed_in(getattr(module, name), module, name, calls))) == -signal.SIGKILL
    assert wait(forked(replace(chosen, resume=True))) == 0
    same(tmp_path / "x", whole(world, regime)[0])


# ---- signals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, code, regime",
    [(signal.SIGTERM, 143, {"labels": "self", "label_samples": 5000}), (signal.SIGINT, 130, {})],
)
def test_a_stopped_process_says_in_one_line_how_to_go_on(world, tmp_path, number, code, regime):
    """While it labels, where nothing waits, and while it trains, where the step is waited for and saved."""
    out = tmp_path / "x"
    pid = forked(
        settings(world, out, **{**regime, "steps": 3000, "save_every": 5000}), told=tmp_path / "told"
    )
    while not (out / "settings.json").exists() or not regime and not (out / "log.jsonl").exists():
        time.sleep(0.02)
    time.sleep(1)
    os.kill(pid, number)
    assert wait(pid) == code
    error = (tmp_path / "told.err").read_text()
    assert (
        error.strip().splitlines()[-1].startswith("stopped; to go on: the same command with --resume")
        and "Traceback" not in error
    )
    assert (saved_step(out) > 0) == ("stopping after this step" in error) == (not regime)


def test_a_step_is_waited_for_but_the_signal_is_answered_at_once_and_a_second_does_not_wait(capfd):
    with (
        pytest.raises(SystemExit) as error,
        one_line_errors("the same command with --resume"),
        StopSignals() as stop,
    ):
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert (
            stop
            and capfd.readouterr().err.strip()
            == "stopping after this step, which is then saved; a second signal does not wait"
        )
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert error.value.code == 143
    assert capfd.readouterr().err.strip() == "stopped; to go on: the same command with --resume"


def test_a_signal_while_the_last_step_is_at_work_stops_the_run_before_its_evaluation(world, tmp_path):
    def signalled():
        step = train.training_step

        def last(*given, **more):
            train.processes.sum_gradients = (
                after  # asked once more after the step: whether the run is to stop
            )
            return step(*given, **more)

        def after(parameters, numbers):
            if numbers.get("tokens"):
                os.kill(os.getpid(), signal.SIGTERM)
            return numbers

        train.training_step = last

    out = tmp_path / "x"
    chosen = settings(world, out, steps=1)
    assert wait(forked(chosen, signalled)) == 143
    assert saved_step(out) == 1 and not (out / "adapter_model.safetensors").exists()
    assert wait(forked(replace(chosen, resume=True))) == 0


def test_outside_of_steps_a_signal_stops_at_once(capfd):
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with pytest.raises(SystemExit) as error, one_line_errors():
            with StopSignals():
                pass
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert error.value.code == code
    assert capfd.readouterr().err.count("stopped; to go on: the same command\n") == 2


def test_the_end_of_a_loop_that_was_stopped_names_the_signal():
    with pytest.raises(SystemExit) as error, one_line_errors(), StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop.leave()
    assert error.value.code == 130
    with pytest.raises(SystemExit) as error, one_line_errors(), StopSignals() as stop:
        stop.leave()  # the signal came to another process of the run
    assert error.value.code == 143


# ---- what cannot be written ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_ends_in_one_line_and_the_last_state_stays(world, tmp_path):
    """Files may not grow beyond half of what a state needs: the limit stands for the disk."""
    out = tmp_path / "x"
    # with a state or two
    pid = forked(settings(world, out), killed_in(os.replace, files.os, "replace", 6, True))
    assert wait(pid) == -signal.SIGKILL
    step, before = saved_step(out), (out / "state.safetensors").read_bytes()
    assert step > 0

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    assert wait(forked(settings(world, out, resume=True), limit, told=tmp_path / "told")) == 2
    error = (tmp_path / "told.err").read_text().strip()
    assert error.splitlines()[-1].startswith(f"error: {out}/state.safetensors: expected to write it"), error
    assert (
        "Traceback" not in error
        and (out / "state.safetensors").read_bytes() == before
        and not (out / "state.safetensors.tmp").exists()
    )
    assert wait(forked(settings(world, out, resume=True))) == 0
    same(out, whole(world, "none")[0])


def test_a_directory_that_cannot_be_written_to_is_refused_in_one_line(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        train.main(settings(world, tmp_path / "file/x"))
    assert (tmp_path / "file").read_text() == "mine"

    def denied(path, mode="r", *arguments, **keywords):
        if "w" in mode:
            raise OSError(30, "Read-only file system", path)
        return open(path, mode, *arguments, **keywords)

    monkeypatch.setattr(files, "open", denied, raising=False)
    with pytest.raises(
        OSError, match="x/provenance.json: expected to write it, got an error: .*Read-only file system"
    ):
        train.main(settings(world, tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_the_output_may_not_be_a_run_that_is_there(world, tmp_path):
    expected, _ = whole(world, "none")
    before = {path.name: path.read_bytes() for path in expected.iterdir()}
    with pytest.raises(ValueError, match="holds a finished run"):
        train.main(settings(world, expected))
    assert {path.name: path.read_bytes() for path in expected.iterdir()} == before


# ---- what changed meanwhile ------------------------------------------------------------------------------------------------------


def half_a_run(world, out):
    assert (
        wait(forked(settings(world, out), killed_in(os.replace, files.os, "replace", 6, True)))
        == -signal.SIGKILL
    )


def test_a_run_does_not_go_on_with_other_settings_rows_or_weights(world, tmp_path):
    out = tmp_path / "x"
    half_a_run(world, out)
    with pytest.raises(
        ValueError, match=r"cannot resume with other settings: --seed was 0, now 7; --lr was 0.003, now 0.1"
    ):
        train.main(settings(world, out, resume=True, lr=0.1, seed=7))
    for path, kind in (
        (world / "new.jsonl", "data"),
        (world / "t.toml", "data"),
        (world / "base/chat_template.jinja", "base"),
        (world / "base/model.safetensors", "base"),
    ):
        kept = path.read_bytes()
        path.write_bytes(kept + (b"\n" if kind == "data" else b" " if path.suffix == ".jinja" else b""))
        if path.suffix == ".safetensors":
            changed = bytearray(kept)
            changed[-1] ^= 1
            path.write_bytes(changed)
        try:
            with pytest.raises(
                ValueError, match=rf"trained with another {kind}: {path.name} differ by sha256"
            ):
                train.main(settings(world, out, resume=True))
        finally:
            path.write_bytes(kept)
    assert wait(forked(settings(world, out, resume=True))) == 0
    same(out, whole(world, "none")[0])
