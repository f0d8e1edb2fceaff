"""What the benchmarks share: shapes, one random checkpoint and adapter for all, a process for each side, FLOPs, the table.

A side is a function (options, folder) -> {"seconds": [a repeat each], "value": [numbers that the sides must agree on], ...}. Each runs in a
process of its own, so that peak memory is its own and one that runs out of it is a row of the table. Peaks are of the resident memory
from after loading on (on CUDA, of what PyTorch allocated). Ratios are minimon's median over that of the peer's best way.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minimon.checkpoint import load_model  # noqa: E402
from minimon.hf.families import config_from_dict  # noqa: E402
from minimon.lora import adapter_tensors, add_lora, load_adapter, lora_layers, save_adapter  # noqa: E402
from minimon.model import Decoder  # noqa: E402

QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    max_position_embeddings=40960,
    tie_word_embeddings=True,
    attention_bias=False,
    use_sliding_window=False,
    eos_token_id=1,
)
SHAPES = {
    "tiny": dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
    "0.1B": dict(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
    ),
    "qwen3-0.6b": dict(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "qwen3-4b": dict(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
}
BEST = "peer, best"  # the side that ratios are against
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


def options(doc: str, argv, defaults: dict) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    for name, value, help in (
        ("prefix", 256, "tokens that all rows share"),
        ("suffix", 64, "tokens of each row after them"),
        ("batch", 8, "rows"),
        ("repeats", 5, "timed runs, after one that is not"),
        ("r", 16, "rank of the adapter"),
        ("new", 64, "tokens to decode"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=defaults.get(name, value), help=f"{help} (%(default)s)"
        )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=TOLERANCE, help="float32 on a CPU, bfloat16 on cuda if not given")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; its own default if not given")
    parser.add_argument(
        "--memory", type=float, help="GB that a side may use on a CPU; 0.9 of what is available if not given"
    )
    parser.add_argument("--no-peers", action="store_true", help="minimon's side alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    chosen.dtype = chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")
    chosen.memory = chosen.memory or 0.9 * available()
    return chosen


def run(file: str, doc: str, sides: dict, flops, argv=None, **defaults) -> dict:
    """A benchmark: its sides in turn -> the result, printed as a table or as JSON. flops: (options, config) -> what the method needs."""
    o = options(doc, argv, defaults)
    if o.side:
        print(json.dumps(limited(sides[o.side], o, o.folder)))
        return {}
    given = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), o)
        found = {}
        for side in ["minimon"] if o.no_peers else sides:
            command = [
                sys.executable,
                file,
                *given,
                "--side",
                side,
                "--folder",
                folder,
                "--memory",
                str(o.memory),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = done.stdout.strip().splitlines()
            found[side] = (
                json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": failure(done)}
            )
    result = summary(o, found, flops(o, config_of(o)))
    print(json.dumps(result) if o.json else table(result))
    return result


def limited(side, o, folder) -> dict:
    if o.threads:
        torch.set_num_threads(o.threads)
    if not o.device.startswith("cuda"):  # of data: the mapped checkpoint is not in it
        resource.setrlimit(resource.RLIMIT_DATA, (int(o.memory * 1e9),) * 2)
    try:
        return side(o, folder)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "memory" in str(error):
            return {"error": "out of memory"}
        raise


def failure(done) -> str:
    return (
        "out of memory"
        if done.returncode == -9
        else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    )


# ---- inputs ------------------------------------------------------------------------------------------------------------------


def config_of(o):
    return config_from_dict({**QWEN3, **SHAPES[o.shape]})


def write_inputs(folder: Path, o) -> None:
    """folder/base and folder/adapter, both random, and rows.json: [ids] and the answers' ids."""
    config = {**QWEN3, **SHAPES[o.shape], "dtype": o.dtype, "torch_dtype": o.dtype}
    write_checkpoint(folder / "base", config, getattr(torch, o.dtype))
    with torch.device("meta"):
        model = Decoder(config_from_dict(config))
    write_adapter(folder / "adapter", model, o.r, str(folder / "base"))
    g = torch.Generator().manual_seed(1)
    count = o.prefix + o.batch * (o.suffix + 1)
    ids = torch.randint(3, config["vocab_size"], (count,), generator=g).tolist()
    shared, own, answers = ids[: o.prefix], ids[o.prefix : -o.batch], ids[-o.batch :]
    rows = [shared + own[i : i + o.suffix] for i in range(0, len(own), o.suffix)]
    (folder / "rows.json").write_text(json.dumps({"rows": rows, "answers": answers}))


def write_adapter(directory: Path, model: Decoder, r: int, base: str) -> None:
    """A random adapter of all linears of `model`, which it is added to."""
    model.requires_grad_(False)
    add_lora(model, r, 2 * r)
    g = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            std = 0.2 * part.weight.shape[1] ** -0.5
            part.weight = torch.nn.Parameter(torch.empty(part.weight.shape).normal_(std=std, generator=g))
    save_adapter(model, directory, base=base)


def write_checkpoint(directory: Path, config: dict, dtype, shard_bytes: int = 2**29) -> None:
    """config.json and random weights in shards: gains of one, linears that keep the size of what they are given."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Decoder(config_from_dict(config))
    shapes = {name: value.shape for name, value in model.state_dict().items() if name != "lm_head.weight"}
    weight_map, shard, size, g = {}, {}, 0, torch.Generator().manual_seed(0)

    def flush():
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, directory / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in shapes.items():
        std = 0.02 if "embed" in name else shape[-1] ** -0.5
        shard[name] = (
            torch.ones(shape, dtype=dtype)
            if len(shape) == 1
            else torch.empty(shape, dtype=dtype).normal_(std=std, generator=g)
        )
        size += shard[name].nbytes
        if size > shard_bytes:
            flush()
            size = 0
    if shard:
        flush()
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def rows_of(folder: Path, device) -> tuple[list[list[int]], torch.Tensor]:
    """(rows of ids, their answers (B,))"""
    found = json.loads((folder / "rows.json").read_text())
    return found["rows"], torch.tensor(found["answers"], device=device)


def minimon_model(o, folder: Path, base=None):
    """The checkpoint at `base`, or the random one in `folder`, with the adapter in `folder`."""
    model = load_model(base or folder / "base", dtype=getattr(torch, o.dtype), device=o.device)
    load_adapter(model, folder / "adapter")
    for parameter in adapter_tensors(model).values():
        parameter.requires_grad_(True)
    return model


def peer_model(o, folder: Path, trainable: bool = False, base=None):
    """The same in transformers with its SDPA attention, and peft with its fp32 adapter."""
    import peft
    import transformers

    options = dict(dtype=getattr(torch, o.dtype), attn_implementation="sdpa")
    model = transformers.AutoModelForCausalLM.from_pretrained(base or folder / "base", **options)
    return peft.PeftModel.from_pretrained(model.to(o.device), folder / "adapter", is_trainable=trainable)


# ---- what is measured ------------------------------------------------------------------------------------------------


def timed(work, o) -> dict:
    """work() once, whose value is kept, then o.repeats times -> seconds, value, peak_bytes, and the rate of matrix products before and
    after each repeat: a shared machine's speed changes within seconds."""
    reset_peak(o)
    value, seconds, rates = work(), [], [matrix_rate(o)]
    for _ in range(o.repeats):
        synchronize(o)
        start = time.perf_counter()
        work()
        synchronize(o)
        seconds.append(time.perf_counter() - start)
        rates.append(matrix_rate(o))
    around = [(before + after) / 2 for before, after in zip(rates, rates[1:])]
    return {"seconds": seconds, "value": value, "peak_bytes": peak_bytes(o), "matrix_flops": around}


def synchronize(o) -> None:
    if o.device.startswith("cuda"):
        torch.cuda.synchronize()


def reset_peak(o) -> None:
    if o.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(o) -> int:
    if o.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/status").exists():
        return kilobytes("/proc/self/status", "VmHWM") * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available() -> float:
    """GB"""
    path = "/proc/meminfo"
    return kilobytes(path, "MemAvailable") / 1e6 if Path(path).exists() else 16.0


def kilobytes(path: str, name: str) -> int:
    """Of a line `name: 123 kB` in a file of /proc."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{path}: expected a line {name}, got none")


def matrix_rate(o) -> float:
    """FLOP/s of square matrix products on this device in this dtype, the median of several."""
    n = 8192 if o.device.startswith("cuda") else 1024 if o.shape != "tiny" else 256
    a, b = (torch.randn(n, n, dtype=getattr(torch, o.dtype), device=o.device) for _ in range(2))
    seconds = []
    for _ in range(12):
        synchronize(o)
        start = time.perf_counter()
        a @ b
        synchronize(o)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[2:])


class Need:
    """Multiplications with an addition that the method needs: the prefix once; the last block's queries, output projection and MLP, and
    the head, at one position a row. B rows of T tokens after P shared ones, n = P + B T, L blocks, R rank; C, H, K, D, F, V as in model.py.

        base(n, m)  = L n 2 C K D + ((L - 1) n + m) (2 C H D + 3 C F)           m: positions of the last block
        lora(n, m)  = R (L n 2 (C + K D) + ((L - 1) n + m) (2 (C + H D) + 3 (C + F)))
        attention   = 2 H D ((L - 1) (P (P + 1) / 2 + B (T P + T (T + 1) / 2)) + B (P + T))
        head        = B V C
    """

    def __init__(self, config, P: int, T: int, B: int, r: int):
        C, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        HD, KD = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        n = P + B * T
        self.base = L * n * 2 * C * KD + ((L - 1) * n + B) * (2 * C * HD + 3 * C * F)
        self.lora = r * (L * n * 2 * (C + KD) + ((L - 1) * n + B) * (2 * (C + HD) + 3 * (C + F)))
        self.attention = (
            2 * HD * ((L - 1) * (P * (P + 1) // 2 + B * (T * P + T * (T + 1) // 2)) + B * (P + T))
        )
        self.head = B * config.vocab_size * C
        self.first = n * C * (HD + 2 * KD)  # gradients to the embedding, which nothing needs

    def forward(self) -> int:
        return 2 * (self.base + self.lora + self.attention + self.head)

    def step(self) -> int:
        """Forward, and backward: inputs' gradients of frozen weights but not theirs, both for the adapter."""
        return self.forward() + 2 * (self.base - self.first + 2 * self.lora + 2 * self.attention + self.head)


# ---- the table ---------------------------------------------------------------------------------------------------------------


def summary(o, found: dict, needed: int) -> dict:
    sides = {}
    for name, side in found.items():
        sides[name] = (
            side
            if "error" in side
            else {
                **{key: value for key, value in side.items() if key != "value"},
                "median_seconds": statistics.median(side["seconds"]),
                "spread": [min(side["seconds"]), max(side["seconds"])],
                "median_matrix_flops": statistics.median(side["matrix_flops"]),
            }
        )
    ours, best = sides["minimon"], sides.get(BEST, {})
    result = {
        key: getattr(o, key)
        for key in ("shape", "prefix", "suffix", "batch", "new", "r", "device", "dtype", "repeats")
    }
    result |= {"threads": o.threads or torch.get_num_threads(), "torch": torch.__version__, "sides": sides}
    if "error" in ours:
        return result
    result |= {
        "needed_flops": needed,
        "flops_per_second": needed / ours["median_seconds"],
        "utilisation": statistics.median(
            needed / seconds / rate for seconds, rate in zip(ours["seconds"], ours["matrix_flops"])
        ),
    }
    if "median_seconds" in best:
        result |= {
            "ratio_time": ours["median_seconds"] / best["median_seconds"],
            "ratio_memory": ours["peak_bytes"] / best["peak_bytes"],
        }
    others = {
        name: side["value"] for name, side in found.items() if "error" not in side and name != "minimon"
    }
    result["difference"] = {
        name: difference(found["minimon"]["value"], value) for name, value in others.items()
    }
    result["agree"] = all(value <= TOLERANCE[o.dtype] for value in result["difference"].values())
    return result


def difference(a: list, b: list) -> float:
    """Largest |a - b|, over |b| where that is above one."""
    return max(abs(x - y) / max(abs(y), 1.0) for x, y in zip(a, b, strict=True))


def table(result: dict) -> str:
    lines = [
        f"{result['shape']}, P={result['prefix']} T={result['suffix']} B={result['batch']}, {result['dtype']} on {result['device']}, "
        f"{result['repeats']} repeats",
        f"{'side':16} {'seconds':>9}  {'min to max':>17} {'peak GB':>9} {'GFLOP/s':>8} {'minimon /':>10}",
    ]
    ours = result["sides"]["minimon"]
    for name, side in result["sides"].items():
        if "error" in side:
            lines.append(f"{name:16} {side['error']}")
            continue
        ratio = f"{ours['median_seconds'] / side['median_seconds']:10.3f}" if "error" not in ours else ""
        lines.append(
            f"{name:16} {side['median_seconds']:9.4f}  {side['spread'][0]:8.4f} {side['spread'][1]:8.4f} "
            f"{side['peak_bytes'] / 1e9:9.2f} {side['median_matrix_flops'] / 1e9:8.4g} {ratio}"
            + (f"  ({side['note']})" if "note" in side else "")
        )
    if "utilisation" in result:
        lines.append(
            f"needed {result['needed_flops'] / 1e9:.4g} GFLOP: {result['flops_per_second'] / 1e9:.4g} GFLOP/s, "
            f"{result['utilisation']:.1%} of what matrix products beside each repeat reach"
        )
    if "ratio_time" in result:
        lines.append(
            f"minimon / {BEST}: time {result['ratio_time']:.3f}, memory {result['ratio_memory']:.3f}"
        )
    if result.get("difference"):
        worst = max(result["difference"].values())
        lines.append(
            f"values differ by {worst:.2g} at most: {'they agree' if result['agree'] else 'THEY DO NOT AGREE'}"
        )
    return "\n".join(lines)
