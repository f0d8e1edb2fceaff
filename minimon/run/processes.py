"""Several processes, one run: torchrun's set-up, work dealt out and gathered, one all-reduce a step, the base in shards.

Every process holds the same adapter and takes the same steps; the first (rank 0) alone prints and writes. gloo carries what lies on a CPU,
NCCL what lies on CUDA. With one process all of this is the identity.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

SMALL = 10_000_000                             # parameters of a model whose operations are too short to share among cores
CORES = 4                                      # that one interpreter keeps busy with them, about


def start(device: str) -> str:
    """Joins the processes that torchrun started, if it did -> the device of this one: of `cuda` the GPU of its own.

    What all but the first write to standard output goes nowhere."""
    if launched() == 1 or dist.is_initialized():
        return device
    cuda = device.startswith("cuda")
    if cuda:                                                                           # pragma: no cover
        device, there = f"cuda:{os.environ['LOCAL_RANK']}", torch.cuda.device_count()
        if int(os.environ["LOCAL_RANK"]) >= there:
            raise ValueError(f"--nproc-per-node: expected at most {there} processes, one a GPU, got {os.environ['LOCAL_WORLD_SIZE']}")
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=1))       # the first may be long at work alone
    if rank():
        sys.stdout = open(os.devnull, "w")
    return device


def launched() -> int:
    """Processes that torchrun started, joined or not."""
    return int(os.environ.get("WORLD_SIZE", 1))


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process has gone: gloo and NCCL have no exception of their own for it."""
    said = str(error).lower()
    return size() > 1 and any(word in said for word in ("gloo", "nccl", "connection closed", "connection reset", "broken pipe"))


def speaks() -> bool:
    """Whether this process is the first of the run to fail. The others fail for want of it, or for the same reason, and need not say so."""
    if size() == 1:
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:                       # the store has gone with the process that kept it
        return True


def from_first(work: Callable):
    """What work() gives, or raises, on the first process: on all of them."""
    if size() == 1:
        return work()
    found = [None, None]
    if rank() == 0:
        try:
            found[0] = work()
        except (ValueError, OSError, KeyboardInterrupt) as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def deal(costs: list[float]) -> list[list[int]]:
    """Indices for each process, the dearest first, each to whom has least: about equal sums, equal on all processes, perhaps none."""
    shares, loads = [[] for _ in range(size())], [0.0] * size()
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += costs[i]
    return [sorted(share) for share in shares]


def each(costs: list[float], work: Callable, model) -> list:
    """work(i) for every i, dealt out by cost -> all results in order, on all processes. With shards all take part in each."""
    if size() == 1 or getattr(model, "sharded", False):
        return in_threads(work, list(range(len(costs))), model)
    share = deal(costs)[rank()]
    mine, gathered = dict(zip(share, in_threads(work, share, model))), [None] * size()
    dist.all_gather_object(gathered, mine)
    found = {i: result for part in gathered for i, result in part.items()}
    return [found[i] for i in range(len(costs))]


def in_threads(work: Callable, items: list, model) -> list:
    """[work(item) ...]. A small model on a CPU leaves most of a second core idle, so each core takes an item of its own."""
    threads = min(torch.get_num_threads(), CORES)
    if min(threads, len(items)) < 2 or model.lm_head.weight.is_cuda or sum(p.numel() for p in model.parameters()) > SMALL:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(torch.get_num_threads() // threads,)) as pool:
        return list(pool.map(work, items))


def counter(bar, together: bool, stopped=()):
    """on_rows(n) for a progress bar: counts for the other processes as well, unless all work on the same rows `together`; ends the loop
    where a signal has come."""
    def on_rows(count):
        bar.update(min(count * (1 if together else size()), bar.total - bar.n))
        if stopped:
            raise KeyboardInterrupt
    return on_rows


def copy_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Every process gets the first one's values, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def sum_gradients(parameters: list[torch.Tensor], numbers: list[float]) -> list[float]:
    """Gradients become their sums over the processes -> the sums of `numbers`, in fp32. One all-reduce for all; who has none adds zeros."""
    if size() == 1:
        return numbers
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    whole = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor(numbers)])
    dist.all_reduce(whole)
    *gradients, sums = whole.split([*(part.numel() for part in parts), len(numbers)])
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.view_as(parameter)
    return sums.tolist()


def shard(model, device: str) -> None:
    """Spreads each block's frozen weights over the processes (FSDP2); a block is gathered while it is at work. What is added later, as an
    adapter, stays whole everywhere, and so do embedding, norm and head, which are moved to `device`."""
    from torch.distributed.fsdp import fully_shard                                     # takes a second to import
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")      # no block changes one in place
    if size() == 1:
        raise ValueError("--shard: expected several processes, got one; start it with torchrun --nproc-per-node N")
    mesh = init_device_mesh(torch.device(device).type, (size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
        block.unshard()                        # here and not first in inference mode, whose tensors no backward pass may use
        block.reshard()
    for module in (model.model.embed_tokens, model.model.norm, model.lm_head):
        module.to(device)
    model.sharded = True
