"""A run directory: its settings and files, whose they are, and the state that --resume goes on from."""

import json
import os
import re
from contextlib import ExitStack
from datetime import date
from functools import cached_property
from pathlib import Path

import torch

from minimon.files import (
    ROOT,
    json_row,
    open_tensors,
    read_json,
    read_text,
    tensor,
    write_json,
    write_tensors,
    write_text,
)
from minimon.run.cli import flag
from minimon.run.lock import locked
from minimon.run.processes import from_first, rank
from minimon.run.provenance import NAME as PROVENANCE
from minimon.run.provenance import check_same

SETTINGS, LOG, STATE, REPORT = "settings.json", "log.jsonl", "state.safetensors", "report.json"
MEASURED = "measured.safetensors"  # what the evaluation has done so far
FILES = (
    SETTINGS,
    LOG,
    "labels.jsonl",
    STATE,
    MEASURED,
    "adapter_config.json",
    "adapter_model.safetensors",
    "scores.jsonl",
    REPORT,
    "report.md",
    "report.html",
)  # of a run, beside its provenance, which by itself is none
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
    """`with RunDirectory(asdict(settings)) as run:` locks and looks; no file is written before `begin`, and a
    directory that is empty at the end is removed.

    run.path
    run.status     "new", "started" (goes on from its last save) or "finished"
    run.lines      of log.jsonl
    run.measured   file for what the evaluation has measured
    run.settings   what settings.json holds or will hold: paths that hold from anywhere; with --resume the date
                   and dtype that were recorded

    Raises ValueError where something else is in the directory, the run has other settings, or another process
    writes into it. All processes of a run call the same methods; the first alone writes."""

    def __init__(self, settings: dict):
        self.path = Path(settings["out"])
        self.measured = self.path / MEASURED
        self.settings = {name: from_anywhere(name, value) for name, value in settings.items()}
        self.status = "new"
        self.lines: list[dict] = []

    def __enter__(self):
        from_first(lambda: self.path.mkdir(parents=True, exist_ok=True))
        with ExitStack() as resources:
            resources.callback(remove_if_empty, self.path)
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
        if self.settings["overwrite"] or not names:
            return "new", {"date": self.settings["date"] or date.today().isoformat()}
        status = "finished" if REPORT in names else "started"
        if self.settings["resume"] and SETTINGS in names:
            saved = read_json(self.path / SETTINGS)
            self.check_settings(saved)
            return status, {name: saved.get(name) for name in RECORDED}
        what, more = ", ".join(names[:3]), ""
        if SETTINGS in names and status == "finished":
            what = "a finished run"
        elif SETTINGS in names:
            what, more = "a run that is not finished", ", or --resume to go on with it"
        raise ValueError(
            f"{self.path}: holds {what}; name another --out, or give --overwrite to replace it{more}"
        )

    def check_settings(self, saved: dict) -> None:
        changes = []
        for name, value in self.settings.items():
            before = saved.get(name)
            is_free = name in FREE_ON_RESUME or (name in RECORDED and value is None)
            if name == "save_every" and self.settings["stop_early"]:
                is_free = False  # that is when it looks
            if not is_free and value != before:
                changes.append(f"{flag(name)} was {before!r}, now {value!r}")
        if changes:
            raise ValueError(
                f"{self.path}: cannot resume with other settings: {'; '.join(changes)}; go on with the old ones, or name another --out"
            )

    def begin(self, provenance: dict, dtype: str) -> None:
        """Writes provenance.json and settings.json. A run that goes on is held against its provenance instead:
        ValueError where base or data are no longer the same files."""
        if self.status == "started":
            advice = "name another --out, or give --overwrite to start again"
            from_first(lambda: check_same(self.path, provenance, ("base", "data"), advice))
            return
        self.settings["dtype"] = dtype
        from_first(lambda: self.write_first_files(provenance))

    def write_first_files(self, provenance: dict) -> None:
        """settings.json goes first and comes last: with it there is a run."""
        for name in (*FILES, PROVENANCE):
            for path in (self.path / name, self.path / f"{name}.tmp"):
                path.unlink(missing_ok=True)
        write_json(self.path / PROVENANCE, provenance)
        write_json(self.path / SETTINGS, self.settings)

    def log(self, line: dict) -> None:
        """One more line of log.jsonl, to six digits; its numbers also go into TensorBoard's event files if asked
        for."""
        line = {name: float(f"{n:.6g}") if isinstance(n, float) else n for name, n in line.items()}
        self.lines.append(line)
        if rank() > 0:
            return
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(as_line(line))
        if self.settings["tensorboard"]:
            for name, value in line.items():
                self.events.add_scalar(name, value, line["step"])

    @cached_property
    def events(self):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, seldom wanted

        writer = SummaryWriter(str(self.path))
        self.resources.callback(writer.close)
        return writer

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
        with them. The optimizer's parameters are the adapter's, in order."""
        path, log, step = self.path / STATE, self.path / LOG, 0
        if path.exists():
            step = read_state(path, adapter, optimizer)
        if log.exists():
            lines = read_text(log).splitlines()[:step]  # what comes after may be half a line
            self.lines = [json_row(line, log) for line in lines]
            if rank() == 0:
                write_text(log, "".join(map(as_line, self.lines)))
        return step

    def finish(self) -> None:
        """With its report the run is finished; its state is of no more use. Of the first process alone."""
        for path in (self.path / STATE, self.measured):
            path.unlink(missing_ok=True)


def from_anywhere(name: str, value):
    """A setting's path as it can be read from another working directory: what the repository ships relative
    to it, see files.shipped, and a hub id as they are, all else absolute."""
    if name not in PATHS or value is None:
        return value
    if not os.path.exists(value) and (name == "model" or value.startswith("data/")):
        return value
    path = Path(os.path.abspath(value))
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT / "data") else str(path)


def as_line(record: dict) -> str:
    return json.dumps(record) + "\n"


def remove_if_empty(directory: Path) -> None:
    if rank() == 0 and not any(directory.iterdir()):
        directory.rmdir()


@torch.no_grad()
def read_state(path: Path, adapter: dict, optimizer) -> int:
    """The step of a state, whose tensors go into adapter and optimizer. Raises ValueError where it is not of
    such a run."""
    moments = {}
    with open_tensors(path) as file:
        step = (file.metadata() or {}).get("step", "")
        if not re.fullmatch("[0-9]{1,15}", step):
            raise ValueError(
                f"{path}: expected the state of this run, got something else; give --overwrite to start again"
            )
        for i, (name, parameter) in enumerate(adapter.items()):
            parameter.copy_(tensor(file, name, path, parameter.shape))
            moments[i] = {"step": tensor(file, f"{name}.step", path, ())}
            for key in ("exp_avg", "exp_avg_sq"):
                moments[i][key] = tensor(file, f"{name}.{key}", path, parameter.shape)
    load_moments(optimizer, moments)
    return int(step)


def load_moments(optimizer, moments: dict[int, dict]) -> None:
    """AdamW's state by way of load_state_dict, which puts each tensor where the optimizer wants it: the fused
    one its step beside the parameter."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
