"""Two real processes over gloo against one: the same adapter, the same scores; a process that dies; shards. And how work is dealt out."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from forks import Script
from safetensors.torch import load_file

from minimon import evaluate as evaluation
from minimon.checkpoint import load_model
from minimon.evaluate import evaluate
from minimon.lora import add_lora
from minimon.run import processes as distributed
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer

WORDS = [
    "--steps",
    20,
    "--batch-size",
    12,
    "--group-size",
    5,
    "--warmup",
    1,
    "--save-every",
    4,
    "--instruct",
    "joint",
    "--instruct-fraction",
    0.3,
]  # groups of 5, 3 and 1 rows, and of conversations


def of(world) -> list:
    return ["--model", world / "base", "--mixture", world / "talking.toml", *WORDS]


def start(*words, processes=2):
    """The processes of a run, in the environment that torchrun gives them."""
    import torch.distributed.fsdp  # noqa: F401  before the fork, since it takes a second

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [Script(words, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(processes)]


def finish(found, code=0):
    """(standard output, standard error) of each."""
    texts = [process.communicate() for process in found]
    assert all(process.returncode == code for process in found), texts
    return texts


def distance(out, other):
    """Norm of the difference of two adapters over the norm of one."""
    a, b = (
        torch.cat(
            [tensor.flatten() for _, tensor in sorted(load_file(run / "adapter_model.safetensors").items())]
        )
        for run in (out, other)
    )
    return ((a - b).norm() / b.norm()).item()


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(world, tmp_path_factory):
    """A finished run of one process, left alone."""
    out = tmp_path_factory.mktemp("runs") / "one"
    finish(start("train.py", *of(world), "--out", out, processes=1))
    return out


def check_two(out, one, written: str) -> None:
    """A finished run of two processes against that of one, and what they wrote to standard output."""
    assert distance(out, one) < 1e-4
    for line, expected in zip(log(out), log(one), strict=True):
        assert line["tokens"] == expected["tokens"] and line["step"] == expected["step"]
        for name in ("loss", "instruct_loss"):
            assert line.get(name) == pytest.approx(expected.get(name), rel=1e-3)
    assert written.count("inter-task generalization") == 1 and written.count("frozen parameters") == 1
    assert json.loads((out / "report.json").read_text())["run"]["processes"] == 2


def test_two_processes_train_the_adapter_of_one_and_only_the_first_speaks(one, world, tmp_path):
    texts = finish(start("train.py", *of(world), "--out", tmp_path / "two"))
    check_two(tmp_path / "two", one, "".join(out for out, _ in texts))


@pytest.mark.slow  # six imports of PyTorch
def test_torchrun_starts_them(one, world, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", *of(world)]
    command = [sys.executable, *map(str, words), "--out", tmp_path / "two"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_two(tmp_path / "two", one, done.stdout)


def test_two_processes_evaluate_and_score_as_one_does(one, tmp_path):
    finish(start("eval.py", "--adapter", one, "--out", tmp_path / "two"))
    assert (tmp_path / "two/scores.jsonl").read_bytes() == (one / "scores.jsonl").read_bytes()


def test_two_processes_score_a_file_in_its_order(one, world, tmp_path):
    rows = [{"id": i, "text": f"Posts the door code {i}" * (i % 3 + 1)} for i in range(600)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval.py", "--adapter", one, "--score", tmp_path / "t.jsonl", "--task", f"{world}/t.toml#new"]
    (first, _), (second, _) = finish(start(*words))
    assert first == finish(start(*words, processes=1))[0][0] and first.count("\n") == 600 and not second


def test_a_process_that_dies_ends_the_run_in_one_line_and_one_process_resumes_it(one, world, tmp_path):
    """In shards, so that they are tried as well."""
    out = tmp_path / "x"
    words = ["train.py", *of(world), "--out", out]
    first, second = start(*words, "--shard")
    while not (out / "state.safetensors").exists() and first.poll() is None:
        time.sleep(0.01)
    second.kill()
    (_, error), _ = first.communicate(), second.communicate()
    lines = [line for line in re.split(r"[\r\n]+", error) if line.strip() and not line.startswith("train:")]
    assert first.returncode == 2, error
    assert (
        len(lines) == 1
        and lines[0].startswith("error: another process of this run has ended")
        and "--resume" in lines[0]
    ), error
    finish(start(*words, "--resume", processes=1))
    assert distance(out, one) < 1e-4 and [line["step"] for line in log(out)] == list(range(1, 21))


def test_a_mistake_is_said_once(tmp_path):
    texts = finish(start("train.py", "--mixture", tmp_path / "none.toml", "--out", tmp_path / "o"), 2)
    assert sorted(error.count("error: ") for _, error in texts) == [0, 1]


# ---- in this process -----------------------------------------------------------------------------------------------------------


def test_work_is_dealt_out_evenly_and_wholly(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    shares = distributed.deal([5, 1, 4, 4, 2, 2])
    assert sorted(i for share in shares for i in share) == list(range(6)) and all(
        share == sorted(share) for share in shares
    )
    assert [sum([5, 1, 4, 4, 2, 2][i] for i in share) for share in shares] == [6, 6, 6]
    assert distributed.deal([7]) == [[0], [], []] and distributed.deal([]) == [[], [], []]


def test_a_shard_is_gathered_for_its_blocks_work_alone_and_gradients_are_those_of_the_whole_base(tmp_path):
    """Bytes of the blocks' weights that lie whole in a process: none after set-up, inference, forward and backward."""
    finish(start("tests/sharded.py", tmp_path / "rank"))
    for rank in range(2):
        report = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert report.pop("whole") > 100_000
        differences = [report.pop(name) for name in list(report) if "differ" in name]
        assert len(differences) == 3 and max(differences) < 1e-5
        assert len(report) == 6 and set(report.values()) == {0}, report


def test_shards_need_several_processes():
    with pytest.raises(ValueError, match="--shard: expected several processes.*torchrun"):
        distributed.shard(torch.nn.Module(), "cpu")


def test_one_process_gets_what_it_gave():
    parameter = torch.nn.Parameter(torch.ones(2))
    sums = distributed.sum_gradients([parameter], {"loss": 1.5, "tokens": 3})
    assert sums == {"loss": 1.5, "tokens": 3} and parameter.grad is None and distributed.gathered(5) == [5]
    assert distributed.start("cpu") == "cpu" and distributed.from_first(lambda: 5) == 5
    assert distributed.dealing(torch.nn.Linear(1, 1))(lambda i: -i, [1, 2]) == [-1, -2]


@pytest.mark.parametrize("together", [False, True])
def test_a_bar_counts_for_the_other_processes_unless_all_work_on_the_same_rows(monkeypatch, together):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    bar = SimpleNamespace(total=10, n=0, update=lambda count: setattr(bar, "n", bar.n + count))
    on_rows = distributed.count_rows(bar, SimpleNamespace(sharded=together))
    on_rows(2)
    assert bar.n == (2 if together else 6)
    on_rows(2)
    assert bar.n == (4 if together else 10)  # no more than there are


def test_each_core_takes_an_item_of_a_small_model_and_scores_are_the_same(world, monkeypatch):
    model, tokenizer, mixture = (
        load_model(world / "base"),
        load_tokenizer(world / "base"),
        load_mixture(world / "talking.toml"),
    )
    add_lora(model, 2)
    alone, threads, read = evaluate(model, tokenizer, mixture), set(), evaluation.read_encoded
    monkeypatch.setattr(
        evaluation,
        "read_encoded",
        lambda *given, **more: threads.add(threading.get_ident()) or read(*given, **more),
    )
    torch.set_num_threads(3)
    try:
        together = evaluate(model, tokenizer, mixture, each=distributed.dealing(model))
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyboardInterrupt):
            distributed.in_threads(lambda item: signal.default_int_handler(2, None), [1, 2], model)
        monkeypatch.setattr(distributed, "SMALL", 0)
        ran = distributed.in_threads(lambda item: threading.get_ident(), [1, 2], model)
    finally:
        torch.set_num_threads(1)
    assert len(threads) > 1 and ran == [threading.get_ident()] * 2
    for split, groups in alone.items():
        for a, b in zip(sum(groups.values(), []), sum(together[split].values(), []), strict=True):
            assert a.task == b.task
            # a product that a thread of a pool makes may add its terms in another order than one made alone: a rounding apart
            np.testing.assert_allclose(b.base, a.base, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(b.adapter, a.adapter, rtol=1e-5, atol=1e-5)
