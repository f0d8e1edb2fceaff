"""A run directory: its settings and files, whose they are, and the state that --resume goes on from."""

import json
import os
import re
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import torch

from minimon.files import (
    open_tensors,
    read_json,
    read_jsonl,
    read_text,
    tensor,
    write_json,
    write_tensors,
    write_text,
)
from minimon.run.cli import ROOT
from minimon.run.lock import locked
from minimon.run.processes import from_first, rank
from minimon.run.provenance import NAME as PROVENANCE
from minimon.run.provenance import check_same

SETTINGS, LOG, STATE, REPORT = "settings.json", "log.jsonl", "state.safetensors", "report.json"
FILES = (
    SETTINGS,
    PROVENANCE,
    LOG,
    "labels.jsonl",
    STATE,
    "adapter_config.json",
    "adapter_model.safetensors",
    "scores.jsonl",
    REPORT,
    "report.md",
    "report.html",
)
PATHS = ("model", "mixture", "init_adapter", "base_scores", "out")  # settings that name a file or directory
# what --resume may change: where and how the work is done, not what comes of it
FREE_ON_RESUME = {
    "out",
    "overwrite",
    "resume",
    "save_every",
    "device",
    "batch_tokens",
    "epsilon",
    "base_scores",
    "shard",
    "gradient_checkpointing",
    "compile",
}
RECORDED = ("date", "dtype")  # settings that are resolved once, when the run begins, and kept when it goes on


class RunDirectory:
    """`with RunDirectory(asdict(settings)) as run:` locks and looks; nothing is written before `begin`.

    run.path
    run.status     "new", "started" (goes on from its last save) or "finished"
    run.settings   what settings.json holds or will hold: paths that hold from anywhere; with --resume the date
                   and dtype that were recorded

    Raises ValueError where something else is in the directory, the run has other settings, or another process
    writes into it. All processes of a run call the same methods; the first alone writes."""

    def __init__(self, settings: dict):
        self.path = Path(settings["out"])
        self.settings = {name: from_anywhere(name, value) for name, value in settings.items()}
        self.status = "new"
        self.resources = ExitStack()  # the lock, the open log
        self.log_file = None

    def __enter__(self):
        with ExitStack() as resources:
            if from_first(self.path.is_dir):
                resources.enter_context(locked(self.path))
            self.status, recorded = from_first(self.look)
            self.settings |= recorded
            self.resources = resources.pop_all()
        return self

    def __exit__(self, *error):
        self.resources.close()

    def look(self) -> tuple[str, dict]:
        """-> (status, recorded settings)"""
        names = [name for name in FILES if (self.path / name).exists()]
        overwrite, resume = self.settings["overwrite"], self.settings["resume"]
        never_began = resume and names == [PROVENANCE]  # it was killed before settings.json
        if overwrite or never_began or not names:
            return "new", {"date": self.settings["date"] or date.today().isoformat()}
        if SETTINGS not in names:
            what = ", ".join(names[:3])
            raise ValueError(
                f"{self.path}: holds {what}; name another --out, or give --overwrite to replace it"
            )
        status = "finished" if REPORT in names else "started"
        if not resume:
            what = "a finished run" if status == "finished" else "a run that is not finished"
            advice = "" if status == "finished" else ", or --resume to go on with it"
            raise ValueError(
                f"{self.path}: holds {what}; name another --out, or give --overwrite to replace it{advice}"
            )
        saved = read_json(self.path / SETTINGS)
        self.check_settings(saved)
        return status, {name: saved.get(name) for name in RECORDED}

    def check_settings(self, saved: dict) -> None:
        changes = []
        for name, value in self.settings.items():
            before = from_anywhere(name, saved.get(name))
            is_free = name in FREE_ON_RESUME or (name in RECORDED and value is None)
            if not is_free and value != before:
                changes.append(f"--{name.replace('_', '-')} was {before!r}, now {value!r}")
        if changes:
            raise ValueError(f"{self.path}: cannot resume with other settings: {'; '.join(changes)}")

    def begin(self, provenance: dict, **resolved) -> None:
        """Writes provenance.json and settings.json, `resolved` (dtype="bfloat16" ...) in place of what was
        not given. A run that goes on is held against its provenance instead: ValueError where base or data
        are no longer the same files."""
        if self.status == "started":
            advice = "name another --out, or give --overwrite to start again"
            from_first(lambda: check_same(self.path, provenance, ("base", "data"), advice))
            return
        self.settings |= resolved
        if not from_first(self.path.is_dir):
            from_first(lambda: self.path.mkdir(parents=True))
            self.resources.callback(remove_if_empty, self.path)
            self.resources.enter_context(locked(self.path))
        from_first(lambda: self.write_first_files(provenance))

    def write_first_files(self, provenance: dict) -> None:
        """settings.json goes first and comes last: with it there is a run."""
        for name in FILES:
            for path in (self.path / name, self.path / f"{name}.tmp"):
                path.unlink(missing_ok=True)
        write_json(self.path / PROVENANCE, provenance)
        write_json(self.path / SETTINGS, self.settings)

    def log(self, line: dict) -> None:
        """One more line of log.jsonl."""
        if rank() > 0:
            return
        if self.log_file is None:
            file = open(self.path / LOG, "a", encoding="utf-8", buffering=1)
            self.log_file = self.resources.enter_context(file)
        self.log_file.write(json.dumps(line) + "\n")

    def logged(self) -> list[dict]:
        """The lines of log.jsonl, for all processes."""
        log = self.path / LOG
        if not from_first(log.exists):
            return []
        return from_first(lambda: [line for _, line in read_jsonl(log)])

    def save_state(self, adapter: dict, optimizer, step: int) -> None:
        """Adapter and optimizer in one file, so that one rename decides which state counts."""
        if rank() > 0:
            return
        tensors = dict(adapter)
        for name, parameter in adapter.items():
            for key, value in optimizer.state[parameter].items():
                tensors[f"{name}.{key}"] = value
        write_tensors(self.path / STATE, tensors, {"step": str(step)})

    def load_state(self, adapter: dict, optimizer) -> int:
        """Steps that are done, 0 for a new run: adapter and optimizer go back to the last save, and the log
        with them."""
        path, log = self.path / STATE, self.path / LOG
        if self.status == "new":
            return 0
        step = read_state(path, adapter, optimizer) if from_first(path.exists) else 0
        if rank() == 0 and log.exists():
            write_text(log, "".join(read_text(log).splitlines(keepends=True)[:step]))
        return step

    def finish(self) -> None:
        """With its report the run is finished; its state is of no more use."""
        if rank() == 0:
            (self.path / STATE).unlink(missing_ok=True)


def from_anywhere(name: str, value):
    """A setting's path as it can be read from another working directory: what the repository ships relative
    to it, see cli.shipped, and a hub id as they are, all else absolute."""
    if name not in PATHS or not isinstance(value, str):
        return value
    is_relative_to_nothing = not os.path.exists(value) and (name == "model" or value.startswith("data/"))
    if is_relative_to_nothing:
        return value
    path = Path(os.path.abspath(value))
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT / "data") else str(path)


def remove_if_empty(directory: Path) -> None:
    if rank() == 0 and directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


@torch.no_grad()
def read_state(path: Path, adapter: dict, optimizer) -> int:
    """The step of a state, whose tensors go into adapter and optimizer. Raises ValueError where it is not of
    such a run."""
    shapes = {}
    for name, parameter in adapter.items():
        shapes[name] = shapes[f"{name}.exp_avg"] = shapes[f"{name}.exp_avg_sq"] = tuple(parameter.shape)
        shapes[f"{name}.step"] = ()
    with open_tensors(path) as file:
        step = (file.metadata() or {}).get("step", "")
        if not re.fullmatch("[0-9]{1,15}", step) or set(file.keys()) != set(shapes):
            raise ValueError(
                f"{path}: expected the state of this run, got something else; give --overwrite to start again"
            )
        saved = {name: tensor(file, name, path, shape) for name, shape in shapes.items()}
    for name, parameter in adapter.items():
        parameter.copy_(saved[name])
    load_moments(optimizer, adapter, saved)
    return int(step)


def load_moments(optimizer, adapter: dict, saved: dict) -> None:
    """AdamW's state by way of load_state_dict, which puts each tensor where the optimizer wants it: the fused
    one its step beside the parameter."""
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in adapter.items()}
    for i, parameter in enumerate(parameters):
        name = names[parameter]
        whole["state"][i] = {key: saved[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    optimizer.load_state_dict(whole)
