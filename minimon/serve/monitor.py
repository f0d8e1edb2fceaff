"""A trained monitor in a program: texts or conversations -> log-odds, P and a decision each.

n items, N labels of the task; the positive label is the first.
"""

import threading
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimon.batch import NO_LIMIT, Limit, row_limit, task_label_ids
from minimon.evaluate import read
from minimon.files import read_optional, resolve, sha256
from minimon.formats.transcript import text_of
from minimon.lora import load_adapter
from minimon.metrics import sigmoid
from minimon.model import Decoder
from minimon.run.cli import check_device
from minimon.run.load import load_base, named_task
from minimon.run.provenance import base_files, check_same
from minimon.serve.thresholds import find_calibration, tempered
from minimon.tasks import Task
from minimon.tokenizer import Tokenizer, load_tokenizer

# log-odds are rounded before they are compared and written: a decision can be made again from what is written
DIGITS = 6


@dataclass(frozen=True)
class RunSettings:
    """What measuring and scoring take from a run's settings.json."""

    model: str | None = None
    mixture: str | None = None
    splits: str | None = None
    eval_rows: int | None = None
    instruct: str | None = None
    dtype: str | None = None
    date: str = field(default_factory=lambda: date.today().isoformat())  # that a chat template may print
    seed: int = 0
    epsilon: float = 0.75
    max_tokens: int | None = None
    batch_tokens: int | None = None


class Scored(NamedTuple):
    """Scores of n items, in their order."""

    log_odds: np.ndarray  # (n,) of the positive label against the rest, natural logarithm
    P: np.ndarray  # (n,) sigmoid(log_odds)
    decision: np.ndarray | None  # (n,) bool: log_odds > threshold; None where the monitor has no threshold
    by_label: np.ndarray  # (n, N) log-odds of each label against the rest
    left_out: np.ndarray  # (n,) tokens of the middle of a text that was too long

    def line(self, row: int) -> dict:
        """Of one item, as JSON has it."""
        return {
            "log_odds": float(self.log_odds[row]),
            "P": float(f"{self.P[row]:.6g}"),
            "decision": None if self.decision is None else bool(self.decision[row]),
        }


@dataclass(eq=False)
class Monitor:
    """One task asked of one model. Several threads may share a monitor: one of them scores at a time."""

    model: Decoder
    tokenizer: Tokenizer
    task: Task
    limit: Limit = NO_LIMIT
    batch_tokens: int | None = None
    threshold: float | None = None  # on log-odds at the temperature; None for no decision
    temperature: float = 1.0
    settings: RunSettings | None = None  # of the run, as the next two
    adapter: str | None = None  # its hash
    calibration: dict | None = None  # that threshold and temperature come from
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        task: Task | str | Path,
        device: str = "cpu",
        threshold: float | None = None,
        any_base: bool = False,
        sharded: bool = False,
        **changes,
    ) -> "Monitor":
        """The monitor of a run directory, or of any directory with an adapter in PEFT's format.

        task: whose prompt is asked, a Task, a task file, or FILE#NAME of a file with several. device: cpu,
        cuda or cuda:N. threshold: on log-odds; if not given the one that `eval.py --calibrate` picked for
        this task, with its temperature, or none. changes: model, dtype, max_tokens, batch_tokens or date in
        place of the run's own. any_base: take an adapter that was trained on another base. sharded: spread
        the base over torchrun's processes.

        Raises FileNotFoundError or ValueError in one line for a directory, task, base, device or calibration
        that is missing, broken, or belongs to another adapter."""
        task = task if isinstance(task, Task) else named_task(str(task))
        settings, adapter = run_settings(run, **changes), adapter_hash(run)
        entry = find_calibration(run, task, adapter) if threshold is None else None
        model, tokenizer = load_run(run, settings, device=device, any_base=any_base, sharded=sharded)
        task_label_ids(tokenizer, task)  # refused now, not at the first score
        return cls(
            model,
            tokenizer,
            task,
            limit=row_limit(model.config, settings.max_tokens),
            batch_tokens=settings.batch_tokens,
            threshold=entry["threshold"] if entry else threshold,
            temperature=entry["temperature"] if entry else 1.0,
            settings=settings,
            adapter=adapter,
            calibration=entry,
        )

    def score(self, items: list) -> Scored:
        """n texts, or conversations [{"role", "content", ...}, ...] in the shapes of formats/transcript.py ->
        Scored.

        Texts are put into batches and cut as in training: to the task's max_chars, then to the run's
        max_tokens. All of a text counts as text: control strings of a chat template in it have no effect.
        Raises ValueError naming the item that is neither a text nor a conversation."""
        if isinstance(items, (str, bytes, dict)):
            raise ValueError(f"items: expected a list of texts or conversations, got {type(items).__name__}")
        texts = []
        for i, item in enumerate(items, 1):
            if not isinstance(item, (str, list)):
                kind = type(item).__name__
                raise ValueError(
                    f"item {i}: expected a text or a conversation (a list of messages), got {kind}"
                )
            texts.append(
                text_of({"item": item}, "item", f"item {i}", self.task.max_chars, self.task.reasoning)
            )
        return self.score_texts(texts)

    def score_texts(self, texts: list[str]) -> Scored:
        """Texts that are already as the task shows them."""
        log_odds, left_out = self.read(texts)
        by_label = tempered(log_odds, self.temperature).round(DIGITS)
        positive = by_label[:, 0]
        decision = None if self.threshold is None else positive > self.threshold
        return Scored(positive, sigmoid(positive), decision, by_label, left_out)

    def read(self, texts: list[str], on_rows=None) -> tuple[np.ndarray, np.ndarray]:
        """-> ((n, N) log-odds before the temperature, (n,) tokens left out). on_rows(n) is called after n
        more."""
        options = {"limit": self.limit, "batch_tokens": self.batch_tokens, "on_rows": on_rows}
        with self.lock:
            reading = read(self.model, self.tokenizer, self.task, texts, **options)
        return reading.log_odds.double().numpy(), reading.left_out.numpy()


def run_settings(directory: str | Path | None, **given) -> RunSettings:
    """The settings of a run, where `given` has a value that one. A directory without settings.json has the
    defaults.

    Raises ValueError without a directory and for a value of another kind, TypeError for an unknown name."""
    if directory is not None and not Path(directory).is_dir():
        raise ValueError(f"--adapter: expected a directory, found none at {directory}; train.py writes one")
    path = Path(directory or "") / "settings.json"
    saved = {} if directory is None else read_optional(path)
    names = [setting.name for setting in fields(RunSettings)]
    found = {name: saved[name] for name in names if saved.get(name) is not None}
    found |= {name: value for name, value in given.items() if value is not None}
    settings = RunSettings(**found)
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if not isinstance(value, setting.type):
            raise ValueError(f"{path}: expected a run's settings, got {setting.name} = {value!r}")
    epsilon, batch_tokens = settings.epsilon, settings.batch_tokens
    if not 0 <= epsilon <= 1 or (batch_tokens or 1) < 1:
        raise ValueError(
            f"{path}: expected epsilon in [0, 1] and batch_tokens from 1, got {epsilon} and {batch_tokens}"
        )
    if settings.model is None:
        raise ValueError(f"--model: expected a base, since {directory} has no settings.json that names one")
    return settings


def load_run(adapter, settings: RunSettings, *, device: str, any_base: bool = False, sharded: bool = False):
    """-> (model with the adapter, tokenizer); adapter None for the base alone. sharded: over torchrun's
    processes."""
    check_device(device)
    base = resolve(settings.model)
    if adapter is not None and not any_base:
        advice = "name that base with --model, or give --any-base"
        check_same(adapter, {"base": base_files(base)}, ["base"], advice)
    model = load_base(base, dtype=settings.dtype, device=device, sharded=sharded)
    if adapter is not None:
        load_adapter(model, adapter)
    return model, load_tokenizer(base, date=settings.date)


def adapter_hash(directory: str | Path) -> str:
    return sha256(Path(directory) / "adapter_model.safetensors")
