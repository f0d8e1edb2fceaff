"""Where the time of minimon's training step goes: shares of the operators' own time, on the rows of a mixture.

    python tests/benchmarks/step_profile.py --model DIRECTORY --mixture FILE --group-size 4

Flags are those of real_rows.py; the first dtype and number of threads count. The profiler slows short operators down, so shares of
what is made of many of them are a little too large.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import common
import torch
from real_rows import Rows, options, write_inputs
from torch.profiler import ProfilerActivity, profile

from minimon.loss import CHUNK
from minimon.run.memory import keep_memory, pass_tokens
from minimon.steps import encode_groups, training_step

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
PARTS = {  # words in an operator's name -> what it is part of
    "LoRAProduct": "adapter",
    "scaled_dot_product": "attention",
    "silu": "activation",
}
OTHER = "norms, rotation, sums, copies, dispatch"


def main(argv=None) -> dict[str, float]:
    o = options(argv)
    o.dtype, o.threads = o.dtype[0], o.threads[0]
    torch.set_num_threads(o.threads)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), o)
        model = common.minimon_model(o, Path(folder), o.model)
    rows, batch_tokens = Rows(o, model.config), pass_tokens(model, o.batch_tokens)

    def step(groups) -> None:
        encoded = encode_groups(rows.tokenizer, groups, rows.limit)
        training_step(model, encoded, groups, batch_tokens=batch_tokens)

    step(rows.steps[0])  # not counted
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for groups in rows.steps[1:]:
            step(groups)
    V = model.config.vocab_size
    head = {min(CHUNK, V), V % CHUNK} - {0}
    seconds = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        seconds[part(event, o.r, head)] += event.self_cpu_time_total / 1e6
    shares = {name: value / seconds.total() for name, value in seconds.most_common()}
    if o.json:
        print(json.dumps(shares))
    else:
        print("\n".join(f"{share:6.1%}  {name}" for name, share in shares.items()))
    return shares


def part(event, r: int, head: set[int]) -> str:
    """What an operator of these shapes belongs to: an adapter's products have its rank among their sizes, the head's a chunk of
    the vocabulary."""
    if event.key in PRODUCTS:
        sizes = {size for shape in event.input_shapes for size in shape}
        if r in sizes:
            return "adapter"
        return "head and loss" if sizes & head else "products with the base's weights"
    found = [name for word, name in PARTS.items() if word in event.key]
    return found[0] if found else OTHER


if __name__ == "__main__":
    main(sys.argv[1:])
