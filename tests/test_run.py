"""What surrounds a run: one owner for its directory, what --resume may change, devices, memory, children; without a GPU as far as it goes."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from small_world import settings
from test_interrupt import forked, killed_in, saved_step, wait
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from minimon.hf.families import config_from_dict
from minimon.lora import add_lora
from minimon.model import Decoder
from minimon.run import busy as busy_machine
from minimon.run import cli, directory, memory, validation
from minimon.run.children import Children, last_line
from minimon.run.cli import check_device, check_output, one_line_errors, peak_memory_gb
from minimon.run.directory import RunDirectory, from_anywhere, load_moments
from minimon.run.lock import locked
from minimon.run.measured import MeasuredSides, read_sides
from minimon.tasks import load_mixture

PROVENANCE = {"base": {}, "data": {}}


def given(out, **changes) -> dict:
    return {**asdict(train.Settings(out=str(out))), **changes}


def begun(out, **changes):
    """A run that has written its first files and was stopped."""
    with RunDirectory(given(out, **changes)) as run:
        run.begin(PROVENANCE, dtype="float32")


def python(code: str, *arguments, **options):
    """A process that imports minimon and runs `code`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, **options)


# ---- one owner -------------------------------------------------------------------------------------------------------

HOLDING = """
import sys, time
from minimon.run.lock import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """A directory that another process writes into, and that process."""
    process = python(HOLDING, tmp_path)
    assert process.stdout.readline() == "locked\n"
    yield tmp_path, process
    process.kill()
    process.communicate()


def test_a_directory_has_one_owner_which_is_named_and_a_killed_one_leaves_no_lock(owner):
    out, process = owner
    with pytest.raises(
        ValueError, match=rf"in use by process {process.pid} on .+ since 2\d\d\d-.*; wait until it has ended"
    ):
        with locked(out):
            pass
    process.kill()
    process.wait()
    with locked(out):
        assert (out / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not list(out.iterdir())


@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_run_in_the_same_directory_is_refused_and_the_first_goes_on(world, tmp_path, changes):
    out = tmp_path / "x"
    first = forked(settings(world, out, steps=20000))  # more than it can take before the signal comes
    while not (out / "settings.json").exists():
        time.sleep(0.02)
    before = (out / "settings.json").read_bytes()
    assert wait(forked(settings(world, out, **changes), told=tmp_path / "told")) == 2
    error = (tmp_path / "told.err").read_text().strip()
    assert len(error.splitlines()) == 1 and error.startswith(f"error: {out}: in use by process {first} on ")
    assert (out / "settings.json").read_bytes() == before
    while not (out / "log.jsonl").exists():  # it is among its steps
        time.sleep(0.02)
    os.kill(first, signal.SIGTERM)
    assert wait(first) == 143 and not (out / "lock").exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(95, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass


# ---- what is in the directory ----------------------------------------------------------------------------------------


def test_a_refused_run_leaves_no_directory_behind(world, tmp_path):
    bad = world / "bad.toml"
    bad.write_text((world / "t.toml").read_text().replace("Yes = [1]", "Yes-and-no-and-perhaps = [1]"))
    (world / "bad-m.toml").write_text((world / "m.toml").read_text().replace("t.toml#new", "bad.toml#new"))
    for changes, message in (
        ({"mixture": str(world / "bad-m.toml")}, "token"),
        ({"max_tokens": 3}, "--max-tokens"),
        ({"model": str(world)}, "tokenizer.json"),
        ({"device": "mps"}, "--device"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train.main(settings(world, tmp_path / "runs/x", **changes))
        assert not (tmp_path / "runs/x").exists()


def test_what_is_there_is_not_replaced_without_overwrite(tmp_path):
    out = tmp_path / "x"
    begun(out)
    with pytest.raises(
        ValueError,
        match="holds a run that is not finished; name another --out, or give --overwrite .*, or --resume",
    ):
        RunDirectory(given(out)).__enter__()
    (out / "report.json").write_text("{}")
    with pytest.raises(
        ValueError, match="holds a finished run; name another --out, or give --overwrite to replace it$"
    ):
        RunDirectory(given(out)).__enter__()
    begun(out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"provenance.json", "settings.json"}


@pytest.mark.parametrize("resume", [False, True])
def test_an_adapter_or_a_report_of_others_is_not_replaced_without_overwrite(tmp_path, resume):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"mine")
    with pytest.raises(
        ValueError, match="holds adapter_model.safetensors; name another --out, or give --overwrite"
    ):
        RunDirectory(given(tmp_path, resume=resume)).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]


def test_a_run_that_was_killed_before_its_settings_were_written_begins_with_resume(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    with RunDirectory(given(tmp_path, resume=True)) as run:
        assert run.status == "new"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_one_rule_for_every_output_that_is_there(tmp_path, kind):
    (tmp_path / "x").write_text("mine") if kind == "file" else (tmp_path / "x/y").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="--merge-to: .*x is already there; name another, or give --overwrite to replace"
    ):
        check_output(tmp_path / "x", False, "--merge-to")
    check_output(tmp_path / "x", True)
    (tmp_path / "empty").mkdir()
    for free in ("none", "empty"):
        check_output(tmp_path / free, False)


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_memory_settings_may_change_when_a_run_goes_on(world, tmp_path, capsys):
    out = tmp_path / "x"
    assert (
        wait(
            forked(
                settings(world, out),
                killed_in(os.replace, directory.write_text.__globals__["os"], "replace", 6, True),
            )
        )
        == -9
    )
    step = saved_step(out)
    assert step > 0
    assert train.main(settings(world, out, resume=True, gradient_checkpointing=True, batch_tokens=4096)) == 0
    assert f"step {step}" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == list(
        range(1, 17)
    )


def test_other_settings_may_not(tmp_path):
    begun(tmp_path, seed=1)
    with pytest.raises(
        ValueError, match="cannot resume with other settings: --seed was 1, now 2; --lr was None, now 0.1"
    ):
        RunDirectory(given(tmp_path, resume=True, seed=2, lr=0.1)).__enter__()


def test_date_and_dtype_are_resolved_once_and_kept(tmp_path):
    """So --device cuda does not turn a base in fp32, the default of a CPU, into one in bf16, the default there."""
    begun(tmp_path, date="2026-01-31")
    assert json.loads((tmp_path / "settings.json").read_text())["dtype"] == "float32"
    with RunDirectory(
        given(tmp_path, resume=True, device="cuda", gradient_checkpointing=True, compile=True, batch_tokens=9)
    ) as run:
        assert (run.status, run.settings["date"], run.settings["dtype"]) == (
            "started",
            "2026-01-31",
            "float32",
        )
    with pytest.raises(ValueError, match="--dtype was 'float32', now 'bfloat16'"):
        RunDirectory(given(tmp_path, resume=True, dtype="bfloat16")).__enter__()


def test_a_finished_run_says_so(world, tmp_path, capsys):
    assert wait(forked(settings(world, tmp_path / "x"))) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    assert train.main(settings(world, tmp_path / "x", resume=True)) == 0
    assert "finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


def test_paths_in_settings_hold_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/m.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    begun("runs/x", mixture="mine/m.toml", model="some/model", base_scores="s.safetensors")
    saved = json.loads((tmp_path / "runs/x/settings.json").read_text())
    assert saved["mixture"] == str(tmp_path / "mine/m.toml") and saved["base_scores"] == str(
        tmp_path / "s.safetensors"
    )
    assert saved["model"] == "some/model" and saved["out"] == str(tmp_path / "runs/x")  # a hub id
    monkeypatch.chdir(tmp_path / "mine")
    with RunDirectory(given("../runs/x", mixture="m.toml", model="some/model", resume=True)) as run:
        assert run.status == "started"
    for place in (ROOT, tmp_path):  # what is shipped is found from anywhere, wherever the project moves
        monkeypatch.chdir(place)
        assert from_anywhere("mixture", "data/mixtures/default.toml") == "data/mixtures/default.toml"
        assert (
            from_anywhere("mixture", str(ROOT / "data/mixtures/default.toml")) == "data/mixtures/default.toml"
        )


def test_fused_adamw_finds_its_steps_beside_the_parameters_on_cuda_after_resuming():
    """With fake tensors, which need no GPU; on a CPU the step stays there."""
    saved = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameter = torch.nn.Parameter(torch.empty(2, device="cuda"))
        optimizer = torch.optim.AdamW([parameter], fused=True)
        load_moments(optimizer, saved)
        state = optimizer.state[parameter]
        assert {value.device.type for value in state.values()} == {"cuda"} and state[
            "step"
        ].dtype == torch.float32
        parameter.grad = torch.empty(2, device="cuda")
        optimizer.step()
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    load_moments(optimizer, saved)
    assert optimizer.state[parameter]["step"].item() == 3.0 and optimizer.state[parameter][
        "exp_avg"
    ].tolist() == [1, 1]


def test_a_run_that_goes_on_remembers_what_validation_said(world, tmp_path):
    """A whole run and one killed between saves measure the same losses and, with --stop-early, stop at the same step."""
    chosen = {"steps": 60, "lr": 1.0, "save_every": 3, "stop_early": True, "mixture": str(world / "v.toml")}
    (world / "v.toml").write_text((world / "m.toml").read_text().replace("t.toml#old", "v-t.toml#old"))
    (world / "v-t.toml").write_text(
        (world / "t.toml").read_text().replace('split = "split"', "split = { train = 0.5, validation = 0.5 }")
    )
    assert wait(forked(settings(world, tmp_path / "whole", **chosen))) == 0
    pid = forked(
        settings(world, tmp_path / "x", **chosen),
        killed_in(os.replace, directory.write_text.__globals__["os"], "replace", 6, True),
    )
    assert wait(pid) == -signal.SIGKILL
    # that is when it looks
    with pytest.raises(ValueError, match="other settings: --save-every was 3, now 6"):
        train.main(settings(world, tmp_path / "x", resume=True, **chosen | {"save_every": 6}))
    assert wait(forked(settings(world, tmp_path / "x", resume=True, **chosen))) == 0
    logs = []
    for name in ("whole", "x"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        logs.append([(line["step"], line["loss"], line.get("validation_loss")) for line in lines])
    assert logs[0] == logs[1] and len(logs[0]) < 60 and logs[0][2][2] is not None


# ---- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "hpu", "cpu:1", "gpu", "cuda:x", "cuda:", ""])
def test_devices_that_were_never_tried_are_refused_by_name(device):
    with pytest.raises(
        ValueError, match=f"--device: expected cpu, cuda or cuda:N, got '{device}', which is not supported"
    ):
        check_device(device)


def test_a_cuda_device_must_be_there(monkeypatch):
    check_device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(
        ValueError, match="expected a CUDA device, got 'cuda:2' where PyTorch sees 2; use --device cpu"
    ):
        check_device("cuda:2")


def test_memory_is_that_of_the_device_that_did_the_work(monkeypatch):
    assert 0.05 < peak_memory_gb() < 64
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:1": 3 * 2**30}.get)
    assert peak_memory_gb("cuda:1") == 3.0


# ---- memory ----------------------------------------------------------------------------------------------------------


REUSE = """
import resource, sys, torch
from minimon.run.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def work():
    first = torch.ones(12 * 2**20)
    second = torch.ones(20 * 2**20)
for _ in range(12):                            # until the free pieces have come to fit
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_that_was_freed_is_not_faulted_in_again():
    """128 MB freed and asked for again four times: 131,072 pages of 4 KiB without, next to none with it."""
    faults = {how: int(python(REUSE, how).communicate()[0]) for how in ("kept", "given back")}
    assert faults["kept"] < 0.1 * faults["given back"]


def test_a_training_pass_on_a_cpu_keeps_half_a_gib_of_activations_at_most():
    """Counted is what autograd saves of two layers; a model of many more such layers takes passes that keep as much."""
    config = config_from_dict(dict(tiny.LLAMA, hidden_size=64, intermediate_size=176, num_hidden_layers=2))
    model = Decoder(config)
    add_lora(model)
    assert memory.pass_tokens(model) == 2048 and memory.pass_tokens(model, 100) == 100
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    frozen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.arange(1024).view(16, 64) % config.vocab_size)
    a_token = sum(size for pointer, size in saved.items() if pointer not in frozen) / 1024
    deep = SimpleNamespace(lm_head=model.lm_head, config=replace(config, num_hidden_layers=200))
    assert 0.7 < memory.pass_tokens(deep) * a_token * 100 / memory.KEPT < 1.4
    endless = SimpleNamespace(lm_head=model.lm_head, config=replace(config, num_hidden_layers=10**6))
    assert memory.pass_tokens(endless) == memory.FEWEST_TOKENS


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory.keep_memory()
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_memory()


# ---- a busy machine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [True, False])
def test_slow_steps_on_a_busy_machine_are_explained_once(monkeypatch, busy):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0 if busy else 1.0, 0, 0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    watch = busy_machine.LoadWatch()
    lines = [
        watch.line(seconds, tokens)
        for seconds, tokens in ((1.0, 1000), (3.0, 3000), (1.5, 1000), (9.0, 1000), (9.0, 1000))
    ]
    assert [line is not None for line in lines] == [False, False, False, busy, False]
    assert not busy or "load 6.0 on 2 cores" in lines[3] and "OMP_NUM_THREADS=1" in lines[3]


# ---- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_that_a_package_swallowed_stops_the_run_after_a_step():
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        try:
            cli.interrupt(signal.SIGTERM, None)
        except:  # noqa: E722  as packages do around an import
            pass
        with cli.StopSignals() as stop:
            assert stop
            stop.leave()
    assert ended.value.code == 143
    with cli.StopSignals() as stop:
        assert not stop


# ---- children --------------------------------------------------------------------------------------------------------

CHILD = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = """
import sys
from minimon.run.children import Children
from minimon.run.cli import one_line_errors
with one_line_errors(), Children() as children:
    children.run([sys.executable, "-c", sys.argv[1]], sys.argv[2])
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(condition) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path, number):
    log = tmp_path / "log"
    parent = python(
        PARENT, CHILD, log, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    assert soon(lambda: log.exists() and log.read_text().endswith("\n"))
    child = int(log.read_text())
    assert is_running(child)
    parent.send_signal(number)
    parent.communicate()
    assert soon(lambda: not is_running(child))
    assert parent.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]


def test_a_child_whose_parent_died_before_it_could_ask_does_not_start(tmp_path):
    from minimon.run.children import LAUNCHER

    done = subprocess.run([sys.executable, "-c", LAUNCHER, "1", "touch", str(tmp_path / "x")])
    assert done.returncode == 143 and not (tmp_path / "x").exists()


def test_a_child_that_fails_is_quoted_and_after_the_end_none_starts(tmp_path):
    log = tmp_path / "log"
    with Children() as children:
        assert (
            children.run(
                [sys.executable, "-c", "import sys; print('first'); sys.exit('error: no such task')"], log
            )
            == 1
        )
        assert last_line(log) == "error: no such task"
        assert (
            children.run(
                [sys.executable, "-c", "import os; print(os.environ['MINE'])"], log, env={"MINE": "5"}
            )
            == 0
        )
        assert last_line(log) == "5"
        assert children.run([sys.executable, "-c", ""], log) == 0 and last_line(log) == "no output"
    assert (
        children.run([sys.executable, "-c", ""], tmp_path / "late") == -signal.SIGTERM
        and not (tmp_path / "late").exists()
    )


# ---- scores of the base ----------------------------------------------------------------------------------------------


def test_scores_of_the_base_are_kept_by_all_that_they_depend_on(world, tmp_path):
    mixture, path = train.load_mixture(world / "m.toml"), tmp_path / "base.safetensors"
    about = [{"config.json": "sha256:1"}, ["float32", "cpu"]]
    new = MeasuredSides(path, mixture, about)
    assert new.sides() == {split: [None] for split in mixture.splits}
    n, z = 4, np.array([[30.5, -30.5], [20.25, -20.25], [0, 0], [-50, 50]], dtype=np.float32)
    new.save("new_domain", [{"log_odds": z, "label_mass": np.ones(n, dtype=np.float32), "empty": z / 2}])
    again = MeasuredSides(path, mixture, about).sides()
    (side,) = again["new_domain"]
    assert set(side) == {"log_odds", "label_mass", "empty"} and np.array_equal(side["log_odds"], z)
    assert again["thinking"] == [None]
    for base, precision in (("sha256:2", "float32"), ("sha256:1", "bfloat16")):
        other = MeasuredSides(path, mixture, [{"config.json": base}, [precision, "cpu"]])
        assert other.sides()["new_domain"] == [None]


def test_a_second_run_takes_the_bases_scores_and_reports_the_same(world, tmp_path, monkeypatch):
    shared = str(tmp_path / "base.safetensors")
    assert wait(forked(settings(world, tmp_path / "a", base_scores=shared))) == 0
    before = Path(shared).read_bytes()
    assert wait(forked(settings(world, tmp_path / "b", base_scores=shared))) == 0
    assert Path(shared).read_bytes() == before
    assert (tmp_path / "a/scores.jsonl").read_bytes() == (tmp_path / "b/scores.jsonl").read_bytes()


# ---- the command line ------------------------------------------------------------------------------------------------


def test_a_progress_bar_is_drawn_by_the_first_process_alone(monkeypatch):
    with cli.progress(3, 1, "score", "row") as bar:
        assert not bar.disable and bar.n == 1
    monkeypatch.setattr(cli, "rank", lambda: 1)
    with cli.progress(3, 0, "score", "row") as bar:
        assert bar.disable


def test_runs_that_share_a_file_of_scores_write_it_one_after_the_other(world, tmp_path):
    mixture, path = load_mixture(world / "talking.toml"), tmp_path / "base.safetensors"

    def write(name):
        for i in range(20):
            MeasuredSides(path, mixture, [name, i]).save(
                "thinking", [{"log_odds": np.zeros((2, 2), np.float32)}]
            )

    pids = []
    for name in "abc":
        pids.append(os.fork())
        if not pids[-1]:
            try:
                write(name)
                os._exit(0)
            finally:
                os._exit(1)
    assert [wait(pid) for pid in pids] == [0, 0, 0]
    assert len(read_sides(path)) == 60


def test_a_device_without_memory_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as error, one_line_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
    said = capsys.readouterr().err
    assert error.value.code == 2 and said.count("\n") == 1
    assert said.startswith(
        "error: out of memory: CUDA out of memory. Tried to allocate 2 GiB. More.; give a lower"
    )


def test_a_validation_loss_is_finite_where_P_is_zero(monkeypatch):
    log_odds = torch.tensor([[-200.0, 200.0]])
    reading = SimpleNamespace(log_odds=log_odds)
    monkeypatch.setattr(validation, "read", lambda *given, **more: reading)
    found = validation.validate(None, None, [(None, [SimpleNamespace(label=0)])], limit=None)
    assert found == {"validation_loss": 200.0}
