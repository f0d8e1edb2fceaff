"""Memory of scoring a long file: `python tests/benchmarks/scoring_stream.py [--rows 100000] [--json]`.

Writes that many short rows of JSONL, scores them with a random adapter on the shipped base by `eval.py --score`, and samples the process's
anonymous memory (RssAnon) after each tenth of the rows. Flat is asked for: at most 1.05 times, the last tenth over the second.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from minimon.checkpoint import load_model  # noqa: E402
from minimon.lora import add_lora, save_adapter  # noqa: E402

TASK = 'name = "t"\ndomain = "d"\nprompt = "Leak?"\nrows = "none.jsonl"\ntext = "text"\nlabel = "y"\nlabels = { Yes = [1], No = [0] }\n'


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that no file is behind."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def write_inputs(folder: Path, rows: int) -> None:
    torch.manual_seed(0)
    model = load_model(ROOT / "data/base")
    add_lora(model, 8)
    (folder / "run").mkdir()
    save_adapter(model, folder / "run", base=str(ROOT / "data/base"))
    (folder / "run/settings.json").write_text(
        json.dumps({"model": str(ROOT / "data/base"), "date": "2026-01-31"})
    )
    (folder / "t.toml").write_text(TASK)
    with open(folder / "in.jsonl", "w") as file:
        for i in range(rows):
            file.write(json.dumps({"id": f"row {i}", "text": f"Dims lamp {i % 977}"}) + "\n")


def measure(folder: Path, rows: int) -> dict:
    command = [
        sys.executable,
        ROOT / "eval.py",
        "--adapter",
        folder / "run",
        "--score",
        folder / "in.jsonl",
        "--task",
        folder / "t.toml",
    ]
    start, samples, ids = time.perf_counter(), [], 0
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True)
        for line in process.stdout:
            assert json.loads(line)["id"] == f"row {ids}"
            ids += 1
            if ids % max(rows // 10, 1) == 0 and process.poll() is None:
                samples.append(anonymous(process.pid))
        code = process.wait()
    assert code == 0 and ids == rows, (folder / "errors").read_text()[-500:]
    return {
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "bytes": samples,
        "ratio_memory": samples[-2] / samples[1],
    }


if __name__ == "__main__":
    rows = int(sys.argv[sys.argv.index("--rows") + 1]) if "--rows" in sys.argv else 100_000
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), rows)
        result = measure(Path(folder), rows)
    sizes = ", ".join(f"{size / 1e6:.0f}" for size in result["bytes"])
    print(
        json.dumps(result)
        if "--json" in sys.argv
        else f"{rows} rows in {result['seconds']:.0f} s; MB after each tenth: {sizes} ({result['ratio_memory']:.3f} x)"
    )
