"""Several processes, one run: torchrun's set-up, work dealt out and gathered, one all-reduce a step, the base
in shards.

Every process holds the same adapter and takes the same steps; the first (rank 0) alone prints and writes.
gloo carries what lies on a CPU, NCCL what lies on CUDA. With one process all of this is the identity."""

import os
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.utils import parameters_to_vector, vector_to_parameters

SMALL = 10_000_000  # parameters of a model whose operations are too short to share among cores
CORES = 4  # about as many as one interpreter keeps busy with such a model
LOST = re.compile("gloo|nccl|connection closed|connection reset|broken pipe", re.I)  # in the text of an error


def start(device: str) -> str:
    """Joins the processes that torchrun started, if it did -> the device of this one: of `cuda` the GPU of
    its own.

    What all but the first write to standard output goes nowhere."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return device
    backend = "gloo"
    if device.startswith("cuda"):  # pragma: no cover
        local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= count:
            asked = os.environ["LOCAL_WORLD_SIZE"]
            raise ValueError(f"--nproc-per-node: expected at most {count} processes, one a GPU, got {asked}")
        device, backend = f"cuda:{local_rank}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the first may be at work alone for long
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")
    return device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_lost_process(error: Exception) -> bool:
    """Whether an error says that another process has gone: gloo and NCCL have no exception of their own for
    it."""
    return size() > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def say_once(text: str) -> None:
    """To stderr, by the first process of the run that has such a last word. The others need not say it again."""
    try:
        if size() > 1 and dist.distributed_c10d._get_default_store().add("said", 1) > 1:
            return
    except RuntimeError:  # the store has gone with the process that kept it
        pass
    sys.stderr.write(text)


def from_first(work: Callable):
    """What work() returns, or raises, on the first process: on all of them."""
    if size() == 1:
        return work()
    answer = [None, None]
    if rank() == 0:
        try:
            answer = [work(), None]
        except (ValueError, OSError, KeyboardInterrupt) as error:
            answer = [None, error]
    dist.broadcast_object_list(answer)
    result, error = answer
    if error is not None:
        raise error
    return result


# ---- work dealt out -----------------------------------------------------------------------------------


def deal(costs: list[float]) -> list[list[int]]:
    """Indices for each process, the dearest first and turn about, as teams are picked: about equal sums, the
    same on all processes; a process may get none."""
    n = size()
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    return [sorted(order[i :: 2 * n] + order[2 * n - 1 - i :: 2 * n]) for i in range(n)]


def own_share(items: list, costs: list[float]) -> list:
    """Of items that are dealt out, those of this process."""
    return [items[i] for i in deal(costs)[rank()]]


def gathered(value) -> list:
    """Every process's value, on all of them."""
    values = [value]
    if size() > 1:
        values = [None] * size()
        dist.all_gather_object(values, value)
    return values


def length_of_ids(item) -> int:
    return sum(map(len, item.ids))


def dealing(model, cost: Callable = length_of_ids) -> Callable:
    """-> each(work, items): [work(item) for item in items], dealt out by cost(item), all results on all
    processes.

    With shards every process takes part in every item."""

    def each(work: Callable, items: list) -> list:
        if getattr(model, "sharded", False):
            return [work(item) for item in items]  # all processes gather the blocks in the same order
        if size() == 1:
            return in_threads(work, items, model)
        costs, results = [cost(item) for item in items], [None] * len(items)
        parts = gathered(in_threads(work, own_share(items, costs), model))
        for share, part in zip(deal(costs), parts):
            for i, result in zip(share, part):
                results[i] = result
        return results

    return each


def in_threads(work: Callable, items: list, model) -> list:
    """[work(item) ...]. A small model on a CPU leaves most of a second core idle, so each core takes an item
    of its own."""
    threads, weights = min(torch.get_num_threads(), CORES), list(model.parameters())
    is_small = sum(p.numel() for p in weights) <= SMALL and weights[0].device.type == "cpu"
    if min(threads, len(items)) < 2 or not is_small:
        return [work(item) for item in items]
    threads_of_one = torch.get_num_threads() // threads
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(threads_of_one,)) as pool:
        return list(pool.map(work, items))


def count_rows(bar, model) -> Callable:
    """on_rows(n) for a progress bar, which counts for the other processes as well; with shards all work on
    the same rows."""
    of_each = 1 if getattr(model, "sharded", False) else size()
    return lambda count: bar.update(min(count * of_each, bar.total - bar.n))


# ---- tensors ------------------------------------------------------------------------------------------


def sum_gradients(parameters: list[torch.Tensor], numbers: dict[str, float]) -> dict[str, float]:
    """Gradients become their sums over the processes -> the sums of `numbers`, in fp32. One all-reduce for
    all; a parameter without a gradient adds zeros."""
    if size() == 1:
        return numbers
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    whole = torch.cat([parameters_to_vector(gradients), gradients[0].new_tensor(list(numbers.values()))])
    dist.all_reduce(whole)
    vector_to_parameters(whole, gradients)
    return dict(zip(numbers, whole[-len(numbers) :].tolist()))


def shard(model, device: str) -> None:
    """Spreads each block's weights over the processes (FSDP2). A block is gathered while it is at work and
    given up after it, forward and backward. What is added later, as an adapter, stays
    whole everywhere, and so do embedding, norm and head, which are moved to `device`."""
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    if size() == 1:
        raise ValueError(
            "--shard: expected several processes, got one; start it with torchrun --nproc-per-node N"
        )
    # no block changes a tensor in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(torch.device(device).type, (size(),))
    whole = nn.ModuleList([model.model.embed_tokens, model.model.norm, model.lm_head]).to(device)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # one root, so that the blocks share streams and order
    fully_shard(model, mesh=mesh, ignored_params=set(whole.parameters()))
    # the first pass sets all up; outside of inference mode, whose tensors no backward pass may use
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=device))
    model.sharded = True
