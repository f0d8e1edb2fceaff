"""What each process of a sharded model does; run by test_distributed.py, as torchrun would start it: sharded.py OUT."""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import tiny  # noqa: E402

from minimon.hf.families import config_from_dict  # noqa: E402
from minimon.lora import adapter_tensors, add_lora  # noqa: E402
from minimon.model import Decoder  # noqa: E402
from minimon.run import processes  # noqa: E402

IDS = tiny.tokens(12, rows=2)


def model_of(seed=0):
    model = Decoder(config_from_dict(tiny.QWEN3))
    model.load_state_dict(tiny.weights(tiny.QWEN3, seed), strict=False)
    return model.requires_grad_(False)


def with_adapter(model):
    torch.manual_seed(0)
    add_lora(model, 4)
    for i, tensor in enumerate(adapter_tensors(model).values()):
        torch.nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


def unsharded_bytes(model) -> int:
    """Of the blocks' frozen weights: what lies whole in this process at the moment."""
    frozen = [p for p in model.model.layers.parameters() if not p.requires_grad]
    return sum(p.numel() * p.element_size() for p in frozen if not isinstance(p, DTensor))


def gradients(model):
    """One pass forward and backward -> (bytes that lie whole after each of the two, gradients)."""
    hidden = model(IDS)
    after_forward = unsharded_bytes(model)
    F.cross_entropy(model.logits(hidden).flatten(0, 1), IDS.flatten()).backward()
    found = {name: tensor.grad.clone() for name, tensor in adapter_tensors(model).items()}
    model.zero_grad()
    return (after_forward, unsharded_bytes(model)), found


def main(out):
    processes.start("cpu")
    expected = gradients(with_adapter(model_of()))[1]
    plain, model = with_adapter(model_of()), model_of()
    processes.shard(model, "cpu")
    with_adapter(model)
    report = {"whole": unsharded_bytes(plain), "after set-up": unsharded_bytes(model)}
    with torch.inference_mode():
        report["inference differs"] = (model(IDS) - plain(IDS)).abs().max().item()
        report["after inference"] = unsharded_bytes(model)
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        (forward, backward), found = gradients(model)
        name = "checkpointing" if checkpointing else "plain"
        report |= {f"{name}, after forward": forward, f"{name}, after backward": backward}
        worst = max((found[key] - expected[key]).abs().max().item() for key in expected)
        report[f"{name}, gradients differ"] = worst / max(g.abs().max().item() for g in expected.values())
    Path(f"{out}{processes.rank()}.json").write_text(json.dumps(report))
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1])
