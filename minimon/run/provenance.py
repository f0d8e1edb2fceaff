"""What a run came of: versions, the command line, sha256 of the base's files and of the data files; provenance.json beside the adapter.

So a run goes on with the files that it began with, and an adapter is measured on the base that it was trained on.
"""

import os
import platform
import sys
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch

import minimon
from minimon.files import read_json, sha256
from minimon.tasks import Mixture

NAME = "provenance.json"
BASE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
        "additional_chat_templates/*.jinja", "model*.safetensors", "model.safetensors.index.json")


def provenance(command: list[str], base: Path, mixture: Mixture | None = None, *more) -> dict:
    """What is kept of a run. `more`: files beside those of the mixture that it came of."""
    packages = {module.__name__: module.__version__ for module in (minimon, torch, tokenizers, safetensors, numpy)}
    return {"command": command, "versions": {"python": platform.python_version(), **packages, "cuda": torch.version.cuda},
            "base": base_files(base), **({"data": data_files(mixture, *more)} if mixture else {})}


def base_files(directory: Path) -> dict[str, str]:
    """Name -> sha256 of the files of a checkpoint that anything follows from."""
    return {str(path.relative_to(directory)): sha256(path) for pattern in BASE for path in sorted(Path(directory).glob(pattern))}


def data_files(mixture: Mixture, *more) -> dict[str, str]:
    """Path, relative to the mixture -> sha256 of the mixture, its task files, their rows, its conversations, and `more` files."""
    files = {mixture.path, *map(Path, filter(None, more))}
    for task in mixture.all_tasks():
        files |= {Path(task.where), *task.files()}
    if mixture.instruct and mixture.instruct.path.is_file():
        files.add(mixture.instruct.path)
    return {os.path.relpath(path, mixture.path.parent): sha256(path) for path in sorted(files)}


def check_same(directory, now: dict, kinds, advice: str) -> None:
    """Raises ValueError where files of `kinds`, "base" or "data", are not those that provenance.json in the directory was written with."""
    path = Path(directory) / NAME
    told = read_json(path) if path.is_file() else {}
    for kind in kinds:
        before = told.get(kind, now[kind])
        if not isinstance(before, dict):
            raise ValueError(f"{path}: {kind}: expected a table of files, got {before!r}")
        changed = sorted(name for name in {*before, *now[kind]} if before.get(name) != now[kind].get(name))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(f"{path}: was trained with another {kind}: {', '.join(changed[:3])}{more} differ by sha256; {advice}")
