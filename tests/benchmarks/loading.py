"""Memory of loading a checkpoint: `python tests/benchmarks/loading.py [--json]`.

A random checkpoint in the shape of Qwen3-0.6B is written in bf16, in shards (1.2 GB in a temporary directory), and loaded in a
fresh process by minimon, in bf16 and in fp32. Peak anonymous memory beyond what the process had before (RssAnon, sampled; the
file's mapped pages belong to the page cache and are not in it) over the weights' size in the loaded dtype: at most 1.15 is asked for.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import QWEN3, SHAPES, write_checkpoint

from minimon.checkpoint import load_model

SHAPE = {**QWEN3, **SHAPES["qwen3-0.6b"]}
SHARD = 300 * 2**20  # bytes, or one tensor


def anonymous() -> int:
    """Bytes of this process's memory that no file is behind."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def measure(directory: str, dtype: str) -> dict:
    before, peak, done = anonymous(), [0], threading.Event()

    def sample():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    model = load_model(directory, dtype=getattr(torch, dtype))
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    weights = sum(
        {
            value.data_ptr(): value.numel() * value.element_size() for value in model.state_dict().values()
        }.values()
    )
    extra = max(peak[0], anonymous()) - before
    return {
        "dtype": dtype,
        "seconds": seconds,
        "weights_bytes": weights,
        "peak_bytes": extra,
        "ratio_memory": extra / weights,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(measure(*sys.argv[2:])))
        sys.exit()
    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(Path(directory), SHAPE, torch.bfloat16, SHARD)
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, __file__, "--load", directory, dtype]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            result = json.loads(line)
            sizes = f"{result['weights_bytes'] / 1e9:.2f} GB of weights, {result['peak_bytes'] / 1e9:.2f} GB at the peak"
            print(
                line
                if "--json" in sys.argv
                else f"{dtype:8}: {sizes} ({result['ratio_memory']:.2f} x), {result['seconds']:.1f} s"
            )
