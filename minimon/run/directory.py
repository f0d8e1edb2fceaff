"""A run directory: its settings, and the state that --resume goes on from."""

import re
from pathlib import Path

import torch

from minimon.run.processes import rank
from minimon.files import open_tensors, read_json, read_text, tensor, write_json, write_tensors, write_text

# what may differ from the saved run
FREE_ON_RESUME = {"out", "overwrite", "resume", "save_every", "device", "batch_tokens", "epsilon", "base_scores", "shard"}
OURS = ("settings.json", "provenance.json", "log.jsonl", "labels.jsonl", "state.safetensors", "adapter_config.json",
        "adapter_model.safetensors", "scores.jsonl", "report.json", "report.md", "report.png")


def find_run(out: Path, settings: dict) -> dict | None:
    """The settings of the run in `out`, where --resume may go on with it; None for a new run."""
    if not (out / "settings.json").exists() or settings["overwrite"]:
        return None
    if not settings["resume"]:
        state = "a finished run" if (out / "report.json").exists() else "a run that is not finished"
        raise ValueError(f"{out}: holds {state}; name another --out, or give --overwrite to replace it"
                         + ("" if "not" not in state else ", or --resume to go on with it"))
    saved = read_json(out / "settings.json")
    changed = [f"--{key.replace('_', '-')} was {saved.get(key)!r}, now {value!r}" for key, value in settings.items()
               if key not in FREE_ON_RESUME and value != saved.get(key) and not (key == "date" and value is None)]
    if changed:
        raise ValueError(f"{out}: cannot resume with other settings: {'; '.join(changed)}")
    return saved


def start_run(out: Path, settings: dict, day: str, made: dict) -> int:
    """made: the run's provenance. settings.json goes first and comes last: with it there is a run."""
    out.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        for path in (out / name, out / f"{name}.tmp"):
            path.unlink(missing_ok=True)
    write_json(out / "provenance.json", made)
    write_json(out / "settings.json", {**settings, "out": str(out), "date": day})
    return 0


def save_state(out: Path, adapter: dict, optimizer, step: int) -> None:
    """Adapter and optimizer in one file, so that one rename decides which state counts."""
    tensors = dict(adapter)
    for name, parameter in adapter.items():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    write_tensors(out / "state.safetensors", tensors, {"step": str(step)})


def load_state(out: Path, adapter: dict, optimizer) -> int:
    """Back to the last save; the log is cut there. A run stopped before its first save starts over."""
    path, log = out / "state.safetensors", out / "log.jsonl"
    step = read_state(path, adapter, optimizer) if path.exists() else 0
    if rank() == 0:
        lines = read_text(log).splitlines(keepends=True)[:step] if log.exists() else []
        write_text(log, "".join(lines))
    return step


@torch.no_grad()
def read_state(path: Path, adapter: dict, optimizer) -> int:
    """The step of a state, whose tensors go into adapter and optimizer. Raises ValueError where it is not of such a run."""
    shapes = {name: {"": parameter.shape, ".step": (), ".exp_avg": parameter.shape, ".exp_avg_sq": parameter.shape}
              for name, parameter in adapter.items()}
    with open_tensors(path) as file:
        step = (file.metadata() or {}).get("step", "")
        if not re.fullmatch("[0-9]{1,15}", step) or set(file.keys()) != {name + part for name in shapes for part in shapes[name]}:
            raise ValueError(f"{path}: expected the state of this run, got something else; give --overwrite to start again")
        saved = {name: {part: tensor(file, name + part, path, tuple(shape)) for part, shape in parts.items()}
                 for name, parts in shapes.items()}
    for name, parameter in adapter.items():
        parameter.copy_(saved[name].pop(""))
        optimizer.state[parameter] = {part[1:]: value.to("cpu" if part == ".step" else parameter.device)
                                      for part, value in saved[name].items()}
    return int(step)
