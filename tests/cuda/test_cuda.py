"""Everything that only a GPU can tell, as one command for the day there is one: python -m pytest tests/cuda

Without CUDA each test is skipped by name. Sizes are tiny: a minute on any card."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from small_world import settings
from torch.nn.attention import SDPBackend, sdpa_kernel

import train
from minimon.attention import attend
from minimon.batch import Group
from minimon.checkpoint import load_model
from minimon.evaluate import read, think
from minimon.lora import adapter_tensors, add_lora
from minimon.steps import encode_groups, training_step
from minimon.tasks import load_task
from minimon.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
}  # of the largest entry: another order of sums; 8 bits of mantissa


def close(a, b, dtype):
    a, b = a.float().cpu(), b.float().cpu()
    assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


def parts(world, device, dtype=torch.float32):
    model = load_model(world / "base", dtype=dtype, device=device)
    torch.manual_seed(0)
    add_lora(model, 4)
    for i, tensor in enumerate(adapter_tensors(model).values()):
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i))
        tensor.data.copy_(0.1 * values)
        tensor.requires_grad_(True)
    tokenizer = load_tokenizer(world / "base", date="2026-01-31")
    return model, tokenizer, load_task(world / "t.toml", "old")


def step(world, device, dtype=torch.float32, copies=1, **options):
    """One step over the training rows -> (result, gradients)."""
    model, tokenizer, task = parts(world, device, dtype)
    rows = [row for row in task.rows if row.side == "train"] * copies
    groups = [Group(task, rows)]
    result = training_step(model, encode_groups(tokenizer, groups), groups, **options)
    return result, {name: tensor.grad for name, tensor in adapter_tensors(model).items()}


def command(*words):
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_is_loaded_onto_the_device(world, dtype):
    model = load_model(world / "base", dtype=dtype, device="cuda")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cuda", dtype)}
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        close(
            model.logits(model(ids.cuda())), (plain := load_model(world / "base")).logits(plain(ids)), dtype
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["vocab", "label"])
def test_one_step_has_the_loss_and_gradients_of_a_cpu(world, dtype, loss):
    (expected, gradients), (result, found) = (
        step(world, d, t, loss=loss) for d, t in (("cpu", torch.float32), ("cuda", dtype))
    )
    assert result.losses["loss"] == pytest.approx(expected.losses["loss"], rel=TOLERANCE[dtype])
    everything = [torch.cat([g.flatten().float().cpu() for g in of.values()]) for of in (found, gradients)]
    assert (everything[0] - everything[1]).norm() < 2 * TOLERANCE[dtype] * everything[1].norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_thoughts_are_those_of_a_cpu(world, dtype):
    texts = [f"old {i} of 1" * (i % 5 + 1) for i in range(30)]
    (cpu, tokenizer, task), (cuda, _, _) = parts(world, "cpu"), parts(world, "cuda", dtype)
    close(read(cuda, tokenizer, task, texts).log_odds, read(cpu, tokenizer, task, texts).log_odds, dtype)
    if dtype == torch.float32:
        ours, theirs = (
            think(model, tokenizer, task, texts, max_new_tokens=6).log_odds for model in (cuda, cpu)
        )
        close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads, T, S, window",
    [(8, 64, 64, None), (8, 40, 104, None), (8, 1, 104, None), (2, 64, 64, None), (8, 64, 64, 16)],
)
def test_attention_takes_a_fused_kernel_and_is_right(dtype, heads, T, S, window):
    """Without one the scores of all heads are formed. The four forms of a pass: whole texts, texts after a prefix, a last
    token, heads without groups; and a sliding window."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(3, n, length, 64, device="cuda", dtype=dtype, requires_grad=True)
        for n, length in ((heads, T), (2, S), (2, S))
    )
    with sdpa_kernel(FUSED):
        y = attend(q, k, v, window, 0.125)
        y.float().square().sum().backward()
    with sdpa_kernel([SDPBackend.MATH]):
        close(y, attend(*(a.detach().float() for a in (q, k, v)), window, 0.125), dtype)
    assert all(a.grad.isfinite().all() for a in (q, k, v))


def test_a_step_that_runs_out_of_memory_is_taken_in_halves(world):
    _, expected = step(world, "cuda", copies=400, batch_tokens=4096)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / total)
    try:
        result, found = step(world, "cuda", copies=400, batch_tokens=2**20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.batch_tokens < 2**20
    for name in expected:
        close(found[name], expected[name], torch.float32)


def test_a_run_is_measured_by_the_memory_of_its_device_and_takes_bf16(world, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    assert train.main(settings(world, tmp_path / "x", device="cuda")) == 0
    run = json.loads((tmp_path / "x/report.json").read_text())["run"]
    assert run["peak_memory_gb"] == pytest.approx(torch.cuda.max_memory_allocated() / 2**30, abs=0.01)
    assert json.loads((tmp_path / "x/settings.json").read_text())["dtype"] == "bfloat16"
    assert all(
        tensor.isfinite().all() for tensor in load_file(tmp_path / "x/adapter_model.safetensors").values()
    )


def test_a_run_on_the_device_is_the_one_on_a_cpu(world, tmp_path):
    for device in ("cpu", "cuda"):
        assert train.main(settings(world, tmp_path / device, device=device, dtype="float32")) == 0
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-2)


def test_a_run_that_was_stopped_goes_on_with_its_optimizer(world, tmp_path):
    """The fused AdamW wants each step count beside its parameter."""
    chosen = [
        "train.py",
        "--model",
        world / "base",
        "--mixture",
        world / "m.toml",
        "--device",
        "cuda",
        "--dtype",
        "float32",
        "--warmup",
        1,
        "--batch-size",
        6,
        "--group-size",
        3,
        "--date",
        "2026-01-31",
    ]
    whole, out = tmp_path / "whole", tmp_path / "x"
    assert command(*chosen, "--steps", 400, "--out", whole).wait() == 0
    process = command(*chosen, "--steps", 400, "--out", out)
    while process.poll() is None and not (out / "log.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 143 and (out / "state.safetensors").exists(), error
    process = command(*chosen, "--steps", 400, "--out", out, "--resume", "--gradient-checkpointing")
    text, error = process.communicate()
    assert process.returncode == 0 and "step" in text, error
    assert losses(out) == pytest.approx(losses(whole), rel=5e-2, abs=1e-2)


def test_a_run_that_began_on_a_cpu_keeps_its_dtype(world, tmp_path):
    chosen = [
        "train.py",
        "--model",
        world / "base",
        "--mixture",
        world / "m.toml",
        "--steps",
        3000,
        "--out",
        tmp_path / "x",
    ]
    process = command(*chosen)
    while process.poll() is None and not (tmp_path / "x/log.jsonl").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    process = command(*chosen, "--resume", "--device", "cuda")
    while process.poll() is None and len(losses(tmp_path / "x")) < 3:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate()[1]
    assert process.returncode == 143, error
    assert json.loads((tmp_path / "x/settings.json").read_text())["dtype"] == "float32"


def test_compiled_blocks_train_as_others_do(world, tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        assert (
            train.main(
                settings(world, tmp_path / name, device="cuda", dtype="float32", steps=4, compile=compiled)
            )
            == 0
        )
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("shard", [False, True])
def test_two_devices_train_as_one_does(world, tmp_path, shard):
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = settings(world, one, device="cuda", dtype="float32")
    assert train.main(chosen) == 0
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "train.py",
        "--model",
        chosen.model,
        "--mixture",
        chosen.mixture,
        "--steps",
        16,
        "--batch-size",
        6,
        "--group-size",
        3,
        "--warmup",
        1,
        "--date",
        "2026-01-31",
        "--device",
        "cuda",
        "--dtype",
        "float32",
        "--out",
        two,
    ]
    process = command(*words, *(["--shard"] if shard else []))
    assert process.wait() == 0, process.communicate()[1]
    assert losses(two) == pytest.approx(losses(one), rel=1e-2)
