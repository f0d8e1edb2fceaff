"""A run directory: its settings, and the state that --resume goes on from."""

from pathlib import Path

import torch

from minimon.distributed import rank
from minimon.files import open_tensors, read_json, write_json, write_tensors, write_text

# what may differ from the saved run
FREE_ON_RESUME = {"out", "overwrite", "resume", "save_every", "device", "batch_tokens", "epsilon", "base_scores"}
OURS = ("settings.json", "log.jsonl", "labels.jsonl", "state.safetensors", "adapter_config.json", "adapter_model.safetensors",
        "scores.jsonl", "report.json", "report.md", "report.png")


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


def start_run(out: Path, settings: dict, day: str) -> int:
    out.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        (out / name).unlink(missing_ok=True)
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
    path = out / "state.safetensors"
    step = 0
    if path.exists():
        with open_tensors(path) as file, torch.no_grad():
            step = int(file.metadata()["step"])
            for name, parameter in adapter.items():
                parameter.copy_(file.get_tensor(name))
                optimizer.state[parameter] = {key: file.get_tensor(f"{name}.{key}").to(parameter.device if key != "step" else "cpu")
                                              for key in ("step", "exp_avg", "exp_avg_sq")}
    log = out / "log.jsonl"
    if rank() == 0:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[:step] if log.exists() else []
        write_text(log, "".join(lines))
    return step
