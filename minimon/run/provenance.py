"""Where a run's results come from: versions, the command line, sha256 of the base's files and of the data
files.

Kept in provenance.json beside the adapter, so that a run goes on with the files that it began with, and an
adapter is measured on the base that it was trained on."""

import os
import platform
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch

import minimon
from minimon.files import read_optional, sha256
from minimon.run.processes import size

NAME = "provenance.json"
BASE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
)


def provenance(command: list[str], base: Path, mixture, adapter=None) -> dict:
    """base, adapter: directories of a checkpoint, and of an adapter that training starts from."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for module in (minimon, torch, tokenizers, safetensors, numpy):
        versions[module.__name__] = module.__version__
    data = data_files(mixture, adapter)
    return {"command": command, "versions": versions, "base": base_files(base), "data": data}


def about_run(source: dict, settings: dict, directory, **more) -> dict:
    """What a report says of the run behind it: `source`, from provenance, date and device of its settings, and `more`."""
    of_settings = {name: settings[name] for name in ("date", "device")}
    more = {name: round(value, 2) if isinstance(value, float) else value for name, value in more.items()}
    return {**source, "directory": directory and str(directory), **of_settings, "processes": size(), **more}


def base_files(directory: Path) -> dict[str, str]:
    """Name -> sha256 of the files of a checkpoint that scores depend on."""
    paths = [path for pattern in BASE for path in sorted(Path(directory).glob(pattern))]
    return {str(path.relative_to(directory)): sha256(path) for path in paths}


def data_files(mixture, adapter) -> dict[str, str]:
    """Path, relative to the mixture -> sha256 of the mixture, its task files, their rows, its conversations,
    and an adapter's weights."""
    paths = {mixture.path}
    for task in mixture.all_tasks():
        paths |= {Path(task.where), *task.files()}
    if mixture.instruct and mixture.instruct.path.is_file():
        paths.add(mixture.instruct.path)
    if adapter:
        paths.add(Path(adapter, "adapter_model.safetensors"))
    return {os.path.relpath(path, mixture.path.parent): sha256(path) for path in sorted(paths)}


def check_same(directory, record: dict, kinds, advice: str) -> None:
    """Raises ValueError where files of `kinds`, "base" or "data", are not those of the provenance.json in the
    directory."""
    path = Path(directory) / NAME
    saved = read_optional(path)
    for kind in kinds:
        before, now = saved.get(kind, record[kind]), record[kind]
        if not isinstance(before, dict):
            raise ValueError(f"{path}: {kind}: expected a table of files, got {before!r}")
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            names = ", ".join(changed[:3] + ["..."] * (len(changed) > 3))
            raise ValueError(f"{path}: was trained with another {kind}: {names} differ by sha256; {advice}")
