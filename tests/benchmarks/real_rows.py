"""Training steps and scoring on the real rows of a mixture, against transformers + peft on the same rows.

    python tests/benchmarks/real_rows.py --model DIRECTORY --mixture FILE
    python tests/benchmarks/real_rows.py --model DIRECTORY --mixture FILE --dtype float32 bfloat16 --threads 1 2 --rounds 3 --json

Both sides have the same frozen base, the same random adapter of all linears, and the same ids in the same steps and questions. Every side
is a process of its own, in turn, round after round:

    minimon        steps.training_step and evaluate.read, as train.py and eval.py call them
    peer, best     rows left-padded, sorted by length, logits at the last position alone, SDPA
    peer, packed   rows one after another with position_ids, as TRL packs them without padding; on a CPU SDPA with a mask of all rows

A peer takes as many rows at a time as were fastest on the first of them (--peer-batch for a fixed number). Training steps end in AdamW
with a learning rate of zero, so that all steps can be compared: losses, and the gradient of the first one.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minimon.batch import common_prefix, encode_row, row_limit, task_label_ids, training_order
from minimon.checkpoint import load_model
from minimon.evaluate import log_odds_of, questions_of, read
from minimon.lora import adapter_tensors
from minimon.run.memory import keep_memory, pass_tokens
from minimon.steps import encode_groups, training_step
from minimon.tasks import load_mixture
from minimon.tokenizer import load_tokenizer

DATE = "2026-01-31"  # what a chat template is told is today
SIZES = (4, 8, 16, 32)  # rows at a time that a peer tries
WRITTEN = ("thinking", "summary")  # splits in which the model writes first
VALUES = {"float32": 1e-3, "bfloat16": 0.3}  # losses and log-odds may differ by so much
GRADIENT = {"float32": 1e-3, "bfloat16": 0.2}  # norm of the gradients' difference over that of minimon's


def options(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="checkpoint directory")
    add("--mixture", required=True, help="TOML file of a mixture whose rows are there")
    add("--work", nargs="+", choices=("train", "score"), default=["train", "score"])
    add("--steps", type=int, default=3, help="timed training steps, after one that is not (%(default)s)")
    add("--batch-size", type=int, default=32, help="rows of a step (%(default)s)")
    add("--group-size", type=int, default=8, help="rows of one task in a step (%(default)s)")
    add("--batch-tokens", type=int, help="of a pass of minimon; train.py's default if not given")
    add("--score-tasks", type=int, default=4, help="test sets that are scored (%(default)s)")
    add("--score-rows", type=int, default=32, help="rows of each (%(default)s)")
    add("--max-tokens", type=int, help="of a row; the base's positions if not given")
    add("--r", type=int, default=16, help="rank of the adapter (%(default)s)")
    add("--rounds", type=int, default=1, help="times that each side is run (%(default)s)")
    add("--dtype", nargs="+", choices=common.TOLERANCE, default=["float32"])
    add("--threads", nargs="+", type=int, help="one run each; one thread, then all cores, if not given")
    add("--device", default="cpu")
    add("--memory", type=float, help="GB that a side may use on a CPU; 0.9 of what is available otherwise")
    add("--peer-batch", type=int, help="rows at a time of the peers; the fastest of some if not given")
    add("--peer-keeps-memory", action="store_true", help="glibc keeps freed memory in the peers as well")
    add("--no-peers", action="store_true", help="minimon's side alone")
    add("--json", action="store_true")
    add("--side", nargs=4, metavar=("WORK", "NAME", "DTYPE", "THREADS"), help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    chosen.threads = chosen.threads or sorted({1, os.cpu_count() or 1})
    chosen.memory = chosen.memory or 0.9 * common.available()
    return chosen


def main(argv=None) -> dict:
    o = options(argv)
    if o.side:
        work, name, dtype, threads = o.side
        o.dtype, o.threads = dtype, int(threads)
        print(json.dumps(common.limited(SIDES[work][name], o, o.folder)))
        return {}
    given = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), o)
        results = []
        for dtype in o.dtype:
            for threads in o.threads:
                for work in o.work:
                    sides = run_sides(o, given, Path(folder), work, dtype, threads)
                    results.append(summary(Path(folder), work, dtype, threads, sides, inputs))
    result = {"torch": torch.__version__, "device": o.device, "cores": os.cpu_count(), "results": results}
    result |= {key: getattr(o, key) for key in ("steps", "batch_size", "group_size", "r", "rounds")}
    print(json.dumps(result) if o.json else "\n\n".join(map(table, results)))
    return result


def run_sides(o, given, folder: Path, work: str, dtype: str, threads: int) -> dict[str, list[dict]]:
    """Each side of one work in turn, round after round -> its results."""
    names = ["minimon"] if o.no_peers else list(SIDES[work])
    found = {name: [] for name in names}
    for _ in range(o.rounds):
        for name in names:
            command = [sys.executable, __file__, *given, "--folder", str(folder), "--memory", str(o.memory)]
            command += ["--side", work, name, dtype, str(threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            lines = done.stdout.strip().splitlines()
            failed = done.returncode != 0 or not lines
            found[name].append({"error": common.failure(done)} if failed else json.loads(lines[-1]))
    return found


# ---- inputs ----------------------------------------------------------------------------------------------------------


class Rows:
    """What is trained on and scored: a function of the options, so the same in every process."""

    def __init__(self, o, config):
        self.tokenizer = load_tokenizer(o.model, date=DATE)
        self.limit = row_limit(config, o.max_tokens)
        mixture = load_mixture(o.mixture).restricted(eval_rows=o.score_rows)
        self.label_ids = {task.name: task_label_ids(self.tokenizer, task) for task in mixture.train}
        self.steps = training_order(
            mixture,
            {task.name: mixture.train_rows(task, 0) for task in mixture.train},
            [],
            seed=0,
            steps=o.steps + 1,
            batch_size=o.batch_size,
            group_size=o.group_size,
        )
        by_split = questions_of(mixture).items()
        questions = [question for split, asked in by_split if split not in WRITTEN for question in asked]
        self.questions = questions[:: math.ceil(len(questions) / o.score_tasks)]

    def encode(self, task, rows) -> list[list[int]]:
        return [encode_row(self.tokenizer, task, row.text, limit=self.limit).ids for row in rows]


def write_inputs(folder: Path, o) -> dict:
    """folder/adapter, random, and rows.json: what the peers take, who need no tokenizer; and the tokens that the method needs."""
    model = load_model(o.model)
    common.write_adapter(folder / "adapter", model, o.r, o.model)
    rows = Rows(o, model.config)
    steps, questions = [], []
    needed, timed_rows = {"train": 0, "score": 0}, {"train": 0, "score": 0}
    for number, groups in enumerate(rows.steps):
        steps.append({"rows": [], "answers": []})
        for group in groups:
            ids = rows.encode(group.task, group.rows)
            steps[-1]["rows"] += ids
            steps[-1]["answers"] += [rows.label_ids[group.task.name][row.label] for row in group.rows]
            if number:  # the first step is not timed
                needed["train"] += needed_tokens(ids)
                timed_rows["train"] += len(ids)
    for task, asked in rows.questions:
        ids = rows.encode(task, asked)
        questions.append({"rows": ids, "labels": task_label_ids(rows.tokenizer, task)})
        needed["score"] += needed_tokens(ids)
        timed_rows["score"] += len(ids)
    inputs = {"steps": steps, "questions": questions, "needed": needed, "timed_rows": timed_rows}
    (folder / "rows.json").write_text(json.dumps(inputs))
    return inputs


def needed_tokens(rows: list[list[int]]) -> int:
    """Of rows of one task: their common prefix once, then what differs."""
    shared = common_prefix(rows) if len(rows) > 1 else 0
    return shared + sum(len(ids) - shared for ids in rows)


# ---- minimon's side --------------------------------------------------------------------------------------------------


def train_minimon(o, folder: Path) -> dict:
    keep_memory()
    model = common.minimon_model(o, folder, o.model)
    rows, batch_tokens = Rows(o, model.config), pass_tokens(model, o.batch_tokens)
    parameters = adapter_tensors(model)

    def step(i: int) -> list[float]:
        groups = rows.steps[i]
        encoded = encode_groups(rows.tokenizer, groups, rows.limit)
        return [training_step(model, encoded, groups, batch_tokens=batch_tokens).losses["loss"]]

    return timed_steps(o, folder, model, step, parameters, "minimon")


def score_minimon(o, folder: Path) -> dict:
    keep_memory()
    model = common.minimon_model(o, folder, o.model)
    rows = Rows(o, model.config)

    def score(task, asked) -> list[float]:
        options = dict(limit=rows.limit, batch_tokens=o.batch_tokens)
        return read(model, rows.tokenizer, task, asked, **options).log_odds[:, 0].tolist()

    task, asked = rows.questions[0]
    score(task, asked[:4])
    return measured(o, model, lambda: [value for question in rows.questions for value in score(*question)])


# ---- the peers' sides ------------------------------------------------------------------------------------------------


def padded_logits(model, rows: list[list[int]]) -> torch.Tensor:
    """(B, V) at the rows' last tokens, rows padded on the left."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    options = dict(position_ids=positions, logits_to_keep=1, use_cache=False)
    return model(input_ids=tokens, attention_mask=mask, **options).logits[:, -1].float()


def packed_logits(model, rows: list[list[int]]) -> torch.Tensor:
    """(B, V) at the rows' last tokens, rows one after another, told apart by their positions."""
    tokens = torch.tensor([[token for ids in rows for token in ids]], device=model.device)
    positions = torch.tensor([[i for ids in rows for i in range(len(ids))]], device=model.device)
    last = torch.tensor([len(ids) for ids in rows], device=model.device).cumsum(0) - 1
    options = dict(position_ids=positions, logits_to_keep=last, use_cache=False)
    return model(input_ids=tokens, **options).logits[0].float()


def by_length(rows: list[list[int]], size: int) -> list[list[int]]:
    """Indices in batches of so many rows, the shortest rows first."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def train_peer(o, folder: Path, logits, name: str) -> dict:
    if o.peer_keeps_memory:
        keep_memory()
    model = common.peer_model(o, folder, trainable=True, base=o.model).train()
    steps = json.loads((folder / "rows.json").read_text())["steps"]
    parameters = {
        parameter_name.replace(".default.", "."): parameter
        for parameter_name, parameter in model.named_parameters()
        if parameter.requires_grad
    }

    def step(i: int, size: int) -> list[float]:
        rows, answers = steps[i]["rows"], torch.tensor(steps[i]["answers"], device=model.device)
        total = 0.0
        for batch in by_length(rows, size):
            z = logits(model, [rows[row] for row in batch])
            loss = F.cross_entropy(z, answers[batch], reduction="sum") / len(rows)
            loss.backward()
            total += loss.item()
        return [total]

    def fresh_step(size: int) -> None:
        step(0, size)
        model.zero_grad()

    size = fastest(o, fresh_step, min(len(step["rows"]) for step in steps))
    found = timed_steps(o, folder, model, lambda i: step(i, size), parameters, name)
    return {**found, "note": f"{size} rows at a time"}


@torch.inference_mode()
def score_peer(o, folder: Path, logits, name: str) -> dict:
    if o.peer_keeps_memory:
        keep_memory()
    model = common.peer_model(o, folder, base=o.model).eval()
    questions = json.loads((folder / "rows.json").read_text())["questions"]

    def score(rows: list[list[int]], labels: list[int], size: int) -> list[float]:
        values = [0.0] * len(rows)
        for batch in by_length(rows, size):
            z = logits(model, [rows[row] for row in batch])[:, labels]
            for row, value in zip(batch, log_odds_of(z)[:, 0].tolist()):
                values[row] = value
        return values

    first = questions[0]["rows"]
    size = fastest(o, lambda size: score(first, questions[0]["labels"], size), len(first))
    found = measured(
        o,
        model,
        lambda: [value for asked in questions for value in score(asked["rows"], asked["labels"], size)],
    )
    return {**found, "note": f"{size} rows at a time"}


def fastest(o, work, most: int) -> int:
    """Rows at a time with which `work` is fastest, after a first run that is not counted."""
    sizes = [o.peer_batch] if o.peer_batch else [size for size in SIZES if size <= max(most, SIZES[0])]
    work(sizes[0])
    if len(sizes) == 1:
        return sizes[0]
    seconds = {}
    for size in sizes:
        begin = time.perf_counter()
        work(size)
        common.synchronize(o)
        seconds[size] = time.perf_counter() - begin
    return min(sizes, key=seconds.get)


SIDES = {
    "train": {
        "minimon": train_minimon,
        common.BEST: lambda o, folder: train_peer(o, folder, padded_logits, "best"),
        "peer, packed": lambda o, folder: train_peer(o, folder, packed_logits, "packed"),
    },
    "score": {
        "minimon": score_minimon,
        common.BEST: lambda o, folder: score_peer(o, folder, padded_logits, "best"),
        "peer, packed": lambda o, folder: score_peer(o, folder, packed_logits, "packed"),
    },
}


# ---- what is measured ------------------------------------------------------------------------------------------------


def timed_steps(o, folder: Path, model, step, parameters: dict, name: str) -> dict:
    """The first step's gradient is kept in a file, the others are timed. step(i) adds a gradient and gives its values."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, fused=True)
    first = step(0)
    gradients = {key: parameter.grad.detach().cpu().clone() for key, parameter in parameters.items()}
    save_file(gradients, folder / f"{name}-{o.dtype}.safetensors")
    del gradients

    def timed() -> list[float]:
        values = []
        for i in range(1, o.steps + 1):
            optimizer.zero_grad()
            values += step(i)
            optimizer.step()
        return values

    found = measured(o, model, timed)
    return {**found, "value": first + found["value"], "gradients": f"{name}-{o.dtype}.safetensors"}


def measured(o, model, work) -> dict:
    """work() once -> its values, seconds, share of system time, peak memory, tokens through the first block, and how long the matrix
    products with the base's weights take alone."""
    products = ProductCounter(model)
    common.reset_peak(o)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    values = work()
    common.synchronize(o)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    peak = common.peak_bytes(o)
    products.stop()
    product_seconds, product_flops = products.measure(o)
    return {
        "value": values,
        "seconds": seconds,
        "cpu_seconds": user + system,
        "system_share": system / max(user + system, 1e-9),
        "peak_bytes": peak,
        "tokens": products.tokens,
        "product_seconds": product_seconds,
        "product_flops": product_flops,
    }


class ProductCounter:
    """Every product of the base's linear layers from here to `stop`: its weight's shape, its tokens, whether it is differentiated."""

    def __init__(self, model):
        self.calls, self.tokens = Counter(), 0
        self.weights: dict[tuple, list[torch.Tensor]] = {}
        linears = [m for name, m in model.named_modules() if is_base_linear(name, m)]
        self.first = linears[0]
        self.hooks = [linear.register_forward_pre_hook(self.count) for linear in linears]
        for linear in linears:
            weight = plain(linear).weight
            self.weights.setdefault(tuple(weight.shape), []).append(weight)

    def count(self, linear, arguments) -> None:
        x = arguments[0]
        tokens = x.numel() // x.shape[-1]
        self.calls[tuple(plain(linear).weight.shape), tokens, x.requires_grad] += 1
        if linear is self.first:
            self.tokens += tokens

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def measure(self, o) -> tuple[float, float]:
        """-> (seconds, FLOPs) of the same products, forward and backward, and of nothing else."""
        seconds, flops = 0.0, 0
        for ((rows, columns), tokens, differentiated), count in self.calls.items():
            weights = self.weights[rows, columns]
            x = torch.randn(tokens, columns, dtype=weights[0].dtype, device=o.device)
            y = torch.randn(tokens, rows, dtype=weights[0].dtype, device=o.device)
            once = median_seconds(o, lambda weight, x=x, y=y: torch.mm(x, weight.T, out=y), weights)
            if differentiated:
                once += median_seconds(o, lambda weight, x=x, y=y: torch.mm(y, weight, out=x), weights)
            seconds += count * once
            flops += count * 2 * tokens * rows * columns * (2 if differentiated else 1)
        return seconds, flops


def is_base_linear(name: str, module) -> bool:
    """A linear layer of a block, with or without an adapter around it; its parts do not count again."""
    parts = ("base_layer", "lora_A", "lora_B", "default", "lm_head")
    is_linear = isinstance(module, torch.nn.Linear) or hasattr(module, "base_layer")
    return is_linear and not any(part in name.split(".") for part in parts)


def plain(linear) -> torch.nn.Linear:
    return getattr(linear, "base_layer", linear)


def median_seconds(o, product, weights, repeats: int = 4) -> float:
    """Of product(weight), a weight of another layer each time, after one that is not counted."""
    seconds = []
    for i in range(repeats):
        common.synchronize(o)
        begin = time.perf_counter()
        product(weights[i % len(weights)])
        common.synchronize(o)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


# ---- the table -------------------------------------------------------------------------------------------------------


def summary(folder: Path, work, dtype, threads, sides: dict[str, list[dict]], inputs: dict) -> dict:
    """One work in one dtype with so many threads: medians of the rounds, and minimon over the peers."""
    rows, needed = inputs["timed_rows"][work], inputs["needed"][work]
    result = {
        "work": work,
        "dtype": dtype,
        "threads": threads,
        "rows": rows,
        "needed_tokens": needed,
        "sides": {},
    }
    for name, rounds in sides.items():
        failed = [found for found in rounds if "error" in found]
        result["sides"][name] = failed[0] if failed else side_summary(rounds, rows, needed)
    ours = result["sides"]["minimon"]
    if "error" in ours:
        return result
    for name, side in result["sides"].items():
        if name == "minimon" or "error" in side:
            continue
        side["ratio_time"] = ours["seconds"] / side["seconds"]
        side["ratio_cpu_time"] = ours["cpu_seconds"] / side["cpu_seconds"]
        side["ratio_memory"] = ours["peak_bytes"] / side["peak_bytes"]
        side["difference"] = common.difference(sides["minimon"][0]["value"], sides[name][0]["value"])
        side["agrees"] = side["difference"] <= VALUES[dtype]
        if work == "train":
            files = [folder / sides[side_name][0]["gradients"] for side_name in ("minimon", name)]
            side["gradient_difference"] = gradient_difference(*files)
            side["agrees"] = side["agrees"] and side["gradient_difference"] <= GRADIENT[dtype]
    reference = folder / "minimon-float32.safetensors"
    if work == "train" and dtype != "float32" and reference.exists():
        for name, side in result["sides"].items():
            if "error" not in side:
                path = folder / sides[name][0]["gradients"]
                side["gradient_error"] = gradient_difference(reference, path)
    best = result["sides"].get(common.BEST, {})
    result |= {key: best[key] for key in ("ratio_time", "ratio_memory") if key in best}
    result["utilisation"] = ours["utilisation"]
    result["agree"] = all(side.get("agrees", True) for side in result["sides"].values())
    return result


def side_summary(rounds: list[dict], rows: int, needed: int) -> dict:
    def median(key):
        return statistics.median(found[key] for found in rounds)

    side = {key: median(key) for key in ("seconds", "cpu_seconds", "system_share", "peak_bytes")}
    side["spread"] = [min(found["seconds"] for found in rounds), max(found["seconds"] for found in rounds)]
    side |= {
        "rows_per_second": rows / side["seconds"],
        "needed_tokens_per_second": needed / side["seconds"],
        "computed_tokens": rounds[0]["tokens"],
        "needed_over_computed": needed / rounds[0]["tokens"],
        "product_flops_per_second": statistics.median(
            found["product_flops"] / found["product_seconds"] for found in rounds
        ),
        "utilisation": statistics.median(found["product_seconds"] / found["seconds"] for found in rounds),
    }
    if "note" in rounds[0]:
        side["note"] = rounds[0]["note"]
    return side


def gradient_difference(reference: Path, other: Path) -> float:
    """Norm of the difference over that of the reference, all tensors of the adapter together."""
    ours, theirs = load_file(reference), load_file(other)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"expected gradients of the same tensors, got {len(ours)} and {len(theirs)} of which "
            f"{len(ours.keys() & theirs.keys())} have the same names"
        )
    squares = sum((ours[name] - theirs[name]).square().sum() for name in ours)
    return (squares / sum(tensor.square().sum() for tensor in ours.values())).sqrt().item()


def table(result: dict) -> str:
    work = {"train": "training steps", "score": "scoring"}[result["work"]]
    heads = ("side", "seconds", "CPU s", "rows/s", "tokens/s", "needed", "peak GB", "system", "products")
    widths = (14, 9, 8, 8, 9, 7, 8, 7, 9)
    cells = [heads]
    notes = []
    for name, side in result["sides"].items():
        if "error" in side:
            notes.append(f"{name}: {side['error']}")
            continue
        cells.append(
            (
                name,
                f"{side['seconds']:.2f}",
                f"{side['cpu_seconds']:.2f}",
                f"{side['rows_per_second']:.2f}",
                f"{side['needed_tokens_per_second']:.0f}",
                f"{side['needed_over_computed']:.3f}",
                f"{side['peak_bytes'] / 1e9:.2f}",
                f"{side['system_share']:.0%}",
                f"{side['utilisation']:.0%}",
            )
        )
        notes.append(note(name, side))
    lines = [
        f"{work}, {result['dtype']}, threads: {result['threads']}, {result['needed_tokens']} tokens needed"
    ]
    for row in cells:
        lines.append(" ".join(text.rjust(width) for text, width in zip(row, widths)))
    return "\n".join([*lines, *filter(None, notes)])


def note(name: str, side: dict) -> str:
    parts = [side["note"]] if "note" in side else []
    if "ratio_time" in side:
        parts.append(f"minimon over it: time {side['ratio_time']:.3f}, memory {side['ratio_memory']:.3f}")
        parts.append(f"values differ by {side['difference']:.2g}")
    if "gradient_difference" in side:
        parts.append(f"gradients by {side['gradient_difference']:.2g}")
    if "gradient_error" in side:
        parts.append(f"gradient error against fp32 {side['gradient_error']:.2g}")
    if "agrees" in side:
        parts.append("they agree" if side["agrees"] else "THEY DO NOT AGREE")
    return f"{name}: {'; '.join(parts)}" if parts else ""


if __name__ == "__main__":
    main()
