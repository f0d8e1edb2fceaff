"""The benchmarks run: minimon's side of each in its smallest shape; what they count; a side out of memory. No times are asked for."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent / "benchmarks"
SMALL = ["--prefix", "12", "--suffix", "5", "--batch", "3", "--new", "4", "--repeats", "2"]


@pytest.fixture
def load():
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("name", ["train_step", "scoring", "loss", "decoding"])
def test_minimons_side_of_each_benchmark_runs_and_is_summed_up(name, load, tmp_path):
    benchmark = load(name)
    common = benchmark["common"]
    o = common.options("", SMALL, {})
    common.write_inputs(tmp_path, o)
    side = benchmark["SIDES"]["minimon"](o, tmp_path)
    assert len(side["seconds"]) == 2 and side["value"]
    result = common.summary(
        o,
        {
            "minimon": side,
            common.BEST: {**side, "seconds": [2 * second for second in side["seconds"]]},
            "peer, default": {"error": "out of memory"},
        },
        benchmark["flops"](o, common.config_of(o)),
    )
    assert (
        result["ratio_time"] == pytest.approx(0.5)
        and result["ratio_memory"] == 1
        and result["agree"]
        and 0 < result["utilisation"] < 1
    )
    assert "out of memory" in common.table(result) and "they agree" in common.table(result)


@pytest.mark.slow
def test_a_benchmark_is_a_command_whose_sides_are_processes():
    done = subprocess.run(
        [sys.executable, FOLDER / "train_step.py", *SMALL, "--no-peers", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (
        result["shape"] == "tiny"
        and len(result["sides"]["minimon"]["seconds"]) == 2
        and result["sides"]["minimon"]["peak_bytes"] > 1e6
    )


def test_a_side_that_runs_out_of_memory_is_a_row(load, monkeypatch, tmp_path):
    common = load("train_step")["common"]
    monkeypatch.setattr(common.resource, "setrlimit", lambda *limits: None)
    o = common.options("", SMALL, {})
    assert common.limited(lambda o, folder: torch.empty(2**50), o, tmp_path) == {"error": "out of memory"}
    with pytest.raises(RuntimeError, match="another"):
        common.limited(lambda o, folder: (_ for _ in ()).throw(RuntimeError("another")), o, tmp_path)


def test_the_flops_needed_are_those_of_the_matrix_products(load):
    """Counted by PyTorch itself over a forward pass with the adapter, prefix and one position; attention apart."""
    from torch.utils.flop_counter import FlopCounterMode

    from minimon.batch import pack
    from minimon.lora import add_lora
    from minimon.model import Decoder

    common = load("train_step")["common"]
    o = common.options("", SMALL, {})
    config, need = common.config_of(o), common.Need(common.config_of(o), 12, 5, 3, o.r)
    model = Decoder(config).requires_grad_(False)
    add_lora(model, o.r, 3 * o.r)  # a scaling of 2 goes into addmm_, which the counter leaves out
    batch = pack([[[1] * 12 + [text] * 5 for text in (2, 3, 4)]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model.last_hidden(batch.tokens, batch.spans)
        model.logits(hidden)
    counted = sum(
        value for name, value in counter.get_flop_counts()["Global"].items() if "attention" not in str(name)
    )
    assert counted == 2 * (need.base + need.lora + need.head)


def real_rows(world, tmp_path, *more):
    """The module, its options on the small world, and what the sides take."""
    benchmark = runpy.run_path(str(FOLDER / "real_rows.py"))
    given = ["--model", str(world / "base"), "--mixture", str(world / "m.toml"), "--threads", "1", "--r", "4"]
    given += ["--steps", "2", "--batch-size", "6", "--group-size", "3", "--peer-batch", "4"]
    o = benchmark["options"]([*given, *more])
    inputs = benchmark["write_inputs"](tmp_path, o)
    o.dtype = "float32"
    return benchmark, o, inputs


def test_minimon_computes_hardly_more_than_the_needed_tokens_of_real_rows(world, tmp_path):
    benchmark, o, inputs = real_rows(world, tmp_path, "--batch-size", "12", "--group-size", "6")
    for work in ("train", "score"):
        side = benchmark["SIDES"][work]["minimon"](o, tmp_path)
        result = benchmark["summary"](tmp_path, work, "float32", 1, {"minimon": [side]}, inputs)
        assert result["sides"]["minimon"]["needed_over_computed"] >= 0.97
        assert result["rows"] == (24 if work == "train" else inputs["timed_rows"]["score"])
        assert 0 < result["sides"]["minimon"]["utilisation"] and "minimon" in benchmark["table"](result)


@pytest.mark.peers
@pytest.mark.parametrize("work", ["train", "score"])
def test_all_sides_of_real_rows_agree(work, world, tmp_path):
    pytest.importorskip("peft")
    benchmark, o, inputs = real_rows(world, tmp_path)
    sides = {name: [side(o, tmp_path)] for name, side in benchmark["SIDES"][work].items()}
    assert list(sides) == ["minimon", "peer, best", "peer, packed"]
    result = benchmark["summary"](tmp_path, work, "float32", 1, sides, inputs)
    assert result["agree"] and result["ratio_memory"] > 0, benchmark["table"](result)
    for side in list(result["sides"].values())[1:]:
        # prompts stand before every row
        assert side["difference"] < 1e-4 and side["needed_over_computed"] < 1


def test_products_are_counted_with_their_shapes_and_only_those_of_the_base(load):
    from minimon.lora import add_lora
    from minimon.model import Decoder

    benchmark = load("real_rows")
    common = benchmark["common"]
    o = common.options("", SMALL, {})
    model = Decoder(common.config_of(o)).requires_grad_(False)
    add_lora(model, o.r, 2 * o.r)
    counter = benchmark["ProductCounter"](model)
    model(torch.ones(2, 9, dtype=torch.long)).sum().backward()
    counter.stop()
    need = common.Need(common.config_of(o), 0, 9, 2, o.r)
    # `Need` counts the last block at two of 18
    at_all_positions = need.base + 16 * (2 * 64 * 64 + 3 * 64 * 128)
    _, flops = counter.measure(o)
    assert counter.tokens == 18 and flops == 2 * (2 * at_all_positions - need.first)


def test_a_profile_tells_the_parts_of_a_step_apart(world, load, capsys):
    given = ["--model", str(world / "base"), "--mixture", str(world / "m.toml"), "--threads", "1", "--r", "5"]
    given += ["--steps", "1", "--batch-size", "6", "--group-size", "3"]
    shares = load("step_profile")["main"](given)
    assert sum(shares.values()) == pytest.approx(1) and "adapter" in capsys.readouterr().out
    assert shares.keys() >= {"products with the base's weights", "adapter", "head and loss", "attention"}


@pytest.mark.slow
def test_real_rows_is_a_command_whose_sides_are_processes(world):
    command = [
        sys.executable,
        FOLDER / "real_rows.py",
        "--model",
        world / "base",
        "--mixture",
        world / "m.toml",
    ]
    command += ["--threads", "1", "--dtype", "float32", "bfloat16", "--steps", "1", "--batch-size", "6"]
    done = subprocess.run([*command, "--no-peers", "--json"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(result["dtype"], result["work"]) for result in results] == [
        (dtype, work) for dtype in ("float32", "bfloat16") for work in ("train", "score")
    ]
    assert results[2]["sides"]["minimon"]["gradient_error"] < 0.2
