"""What runs there are: a cell is one run of train.py, and a preset says which cells a study has."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from minimon.files import write_text
from minimon.run.settings import settings_of
from minimon.tasks import Mixture, Options, Task, load_mixture

REGIMES = {  # name -> flags of train.py
    "none": "",
    "joint": "--instruct joint",
    "joint0.75": "--instruct joint --instruct-fraction 0.75",
    "after": "--instruct only",  # from the adapter of "none", which is the same as --instruct after
    "only": "--instruct only",  # as many steps, from the base
    "self": "--labels self",
    "self-at-once": "--labels self-at-once",
}
SCARCE_DOMAINS, SCARCE_TASKS = 3, 4  # held-out domains with labelled rows, and tasks of each
CORE = ("new_domain", "new_prompt")  # splits that cells outside the regimes are measured on


@dataclass(frozen=True)
class Preset:
    """How large a study is; here that of the shipped world. Among counts None stands for all."""

    model: str = "data/base"
    mixture: str = "data/mixtures/default.toml"
    out: str = "runs/study"
    train: str = "--steps 400"  # more flags for every run of train.py
    first: str = ""  # a mixture of few tasks: classification with gold labels goes on from their adapter
    first_train: str = ""  # flags of the run on these few
    then_train: str = ""  # and of those that go on from it
    side_train: str = "--steps 150"  # and for those on one domain
    parts: tuple[str, ...] = ("regimes", "dilution", "transfer", "scarce", "baselines")
    regimes: tuple[str, ...] = ("none", "joint", "after", "only", "self", "self-at-once")
    seeds: int = 5  # of each regime
    side_seeds: int = 2  # of everything else
    shares: tuple[float, ...] = (0.1, 0.5, 0.75)  # of instruction rows, beside those of the regimes
    task_counts: tuple[int | None, ...] = (8, 32, None)  # training tasks, the number of rows fixed
    row_counts: tuple[int, ...] = ()  # training rows a task, the number of steps fixed
    bases: tuple[str, ...] = ()  # other models
    labelled: tuple[int | None, ...] = (8, 32, 128, None)  # rows of a held-out domain
    label_cap: int | None = None  # rows a task that the base labels, and that baselines learn from
    jobs: int = 1  # cells at a time


PRESETS = {
    "world": Preset(),
    "real": Preset(
        model="data/smollm2",
        mixture="data/mixtures/real.toml",
        out="data/results/real",
        train="--batch-size 32 --steps 400 --eval-rows 40 --instruct-steps 30 --instruct-lr 5e-4",
        first="data/mixtures/real-small.toml",
        first_train="--splits trained --steps 120",
        then_train="--steps 240 --lr 1e-3",
        side_train="--steps 40",
        parts=("regimes", "dilution", "scarce", "baselines"),
        regimes=tuple(REGIMES),
        seeds=3,
        side_seeds=1,
        shares=(),
        task_counts=(5, 10, 20, 40),
        row_counts=(30, 100, 250),
        bases=("data/base",),
        labelled=(8, 32, 128),
        label_cap=80,  # what the steps see: a thought costs a hundred times an answer
        jobs=2,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run of train.py, in the directory cells/<name>."""

    name: str
    kind: str  # first | regime | share | base | rows | tasks | transfer | scarce
    seed: int
    model: str
    mixture: Mixture
    flags: str
    label: str = ""  # the regime, or the domain that is trained on
    x: float | None = None  # place on a curve: a share, or a count (None: all)
    after: str | None = None  # the cell whose adapter this one starts from; the base if None


def plan(preset: Preset, mixture: Mixture, out: Path) -> list[Cell]:
    """All cells: classification alone of every seed, which all others are compared with, and what it goes on from; then the
    other regimes and at last what surrounds them, seed by seed, so that a study cut short has whole seeds. Writes their
    mixtures into `out`."""
    planner, cells = Planner(preset, mixture, out), []
    if "regimes" in preset.parts:
        for seed in range(preset.seeds):
            cells += planner.regimes(seed)
        cells.sort(key=lambda cell: cell.kind != "first" and cell.label != "none")
    for seed in range(preset.side_seeds):
        if "transfer" in preset.parts:
            cells += planner.transfer(seed)
        if "dilution" in preset.parts:
            cells += planner.dilution(seed)
        if "scarce" in preset.parts:
            cells += planner.scarce(seed)
    return cells


@dataclass(frozen=True)
class Planner:
    preset: Preset
    mixture: Mixture
    out: Path

    @cached_property
    def few(self) -> Mixture:
        """What the first run of each seed is trained on."""
        return load_mixture(self.preset.first)

    def has_regimes(self, seed: int) -> bool:
        """Whether there are adapters of this seed to start from."""
        return "regimes" in self.preset.parts and seed < self.preset.seeds

    def cell(self, kind: str, name: str, seed: int, flags: str = "", **about) -> Cell:
        """On the study's model and mixture unless `about` has others."""
        about = {"model": self.preset.model, "mixture": self.mixture, **about}
        return Cell(f"{name}-seed{seed}", kind, seed, flags=f"{self.preset.train} {flags}", **about)

    def derive(self, name: str, train: list[Task], splits: dict) -> Mixture:
        """A mixture like the study's with other training tasks and splits, all rows of them, and its file."""
        path = self.out / "mixtures" / f"{name}.toml"
        options = {split: self.mixture.options.get(split, Options()) for split in splits}
        own = {"train": train, "cap": None, "splits": splits, "options": options}
        mixture = replace(self.mixture, name=name, path=path, **own)
        write_text(path, as_toml(mixture))
        return mixture

    def regimes(self, seed: int) -> Iterator[Cell]:
        preset, instruct = self.preset, self.mixture.instruct
        if preset.first:
            yield self.cell("first", "first", seed, preset.first_train, mixture=self.few)
        shares = {"none": 0.0, "joint": instruct and instruct.fraction, "joint0.75": 0.75}
        for name in preset.regimes:
            flags, about = REGIMES[name], {"label": name, "x": shares.get(name)}
            if "--labels" in flags:
                flags += capped(preset.label_cap)
            if name in ("after", "only"):
                given = settings_of(preset.train)
                flags += f" --steps {given.instruct_steps} --lr {given.instruct_lr}"
            if name == "after":
                about["after"] = f"none-seed{seed}"
            if not instruct and "--instruct" in flags:
                continue
            make = self.going_on if name in shares else self.cell
            yield make("regime", name, seed, flags, **about)

    def going_on(self, kind: str, name: str, seed: int, flags: str = "", **about) -> Cell:
        """A cell that goes on from the adapter of a few tasks, where the preset has such a run."""
        if self.preset.first and self.has_regimes(seed):
            flags, about = f"{self.preset.then_train} {flags}", {**about, "after": f"first-seed{seed}"}
        return self.cell(kind, name, seed, flags, **about)

    def dilution(self, seed: int) -> Iterator[Cell]:
        """Shares of instruction rows, other bases, training rows a task, and training tasks: on the core splits alone."""
        preset, train = self.preset, self.mixture.train
        core = ",".join(split for split in CORE if split in self.mixture.splits)
        if not core:
            return
        core = f"--splits {core}"
        for share in preset.shares if self.mixture.instruct else ():
            flags = f"{core} --instruct joint --instruct-fraction {share}"
            yield self.going_on("share", f"joint{share:g}", seed, flags, x=share)
        for model in preset.bases:
            yield self.cell("base", f"base-{Path(model).name}", seed, core, model=model)
        for count in preset.row_counts:
            yield self.rows(seed, count, core)
        counts = [min(count or len(train), len(train)) for count in preset.task_counts]
        for count in dict.fromkeys(counts):
            tasks = random.Random(f"tasks-{seed}-{count}").sample(train, count)
            rows = max(2, (self.mixture.cap or 64) * min(counts) // count)  # of each task, as many in all
            mixture = self.derive(f"tasks{count}-seed{seed}", tasks, self.core_splits(tasks))
            yield self.cell("tasks", f"tasks{count}", seed, f"--cap {rows}", mixture=mixture, x=count)

    def rows(self, seed: int, count: int, core: str) -> Cell:
        """So many training rows of each task, from a new adapter: of the few tasks of the first run where the preset has one,
        since it has seen more rows than that."""
        flags, about = f"{core} --cap {count}", {}
        if self.preset.first:
            few = self.few.train
            about["mixture"] = self.derive("few", few, self.core_splits(few))
            flags = f"{self.preset.first_train} {flags}"
        return self.cell("rows", f"rows{count}", seed, flags, x=count, **about)

    def core_splits(self, train: list[Task]) -> dict:
        """Without changed prompts on domains that these tasks do not train."""
        domains, changed = {task.domain for task in train}, {}
        for group, tasks in self.mixture.splits.get("new_prompt", {}).items():
            changed[group] = [task for task in tasks if task.domain in domains]
        return {"new_domain": self.mixture.splits.get("new_domain", {}), "new_prompt": changed}

    def transfer(self, seed: int) -> Iterator[Cell]:
        """Trained on one domain, measured on all: the prompts that other domains were trained with are new to it."""
        flags = self.preset.side_train + capped(self.mixture.cap)
        new = self.mixture.splits.get("new_domain", {}).values()
        measured = by_domain(self.mixture.split_tasks("trained") + next(iter(new), []))
        for domain, tasks in by_domain(self.mixture.train).items():
            name, others = f"from-{plain(domain)}", dict(measured)
            trained = others.pop(domain, [])
            mixture = self.derive(name, tasks, {"trained": {"": trained}, "new_domain": others})
            yield self.cell("transfer", name, seed, flags, mixture=mixture, label=domain)

    def scarce(self, seed: int) -> Iterator[Cell]:
        """A few labelled rows of a held-out domain, from the base and from the classification adapter of its seed."""
        starts = {"base": None}
        if self.has_regimes(seed):
            starts["adapter"] = f"none-seed{seed}"
        for domain, tasks in self.held_out().items():
            mixture = self.derive(f"scarce-{plain(domain)}", tasks, {"trained": {"": tasks}})
            for count in self.preset.labelled:
                flags = f"{self.preset.side_train} --batch-size 8"
                flags += capped(count and max(2, count // len(tasks)))
                for start, after in starts.items():
                    name = f"{mixture.name}-{count or 'all'}-{start}"
                    about = {"mixture": mixture, "label": domain, "x": count, "after": after}
                    yield self.cell("scarce", name, seed, flags, **about)

    def held_out(self) -> dict[str, list[Task]]:
        """The first domains with training rows of their own, groups of new_domain in turn, and their first tasks."""
        groups, usable = self.mixture.splits.get("new_domain", {}).values(), {}
        in_turn = [task for tasks in zip_longest(*groups) for task in tasks if task]
        for domain, tasks in by_domain(in_turn).items():
            tasks = tasks[:SCARCE_TASKS]
            if all(task.select("train", 2, balance=True, seed=0) for task in tasks):
                usable[domain] = tasks
        return dict(list(usable.items())[:SCARCE_DOMAINS])


def by_domain(tasks: list[Task]) -> dict[str, list[Task]]:
    found = {}
    for task in tasks:
        found.setdefault(task.domain, []).append(task)
    return found


def capped(rows: int | None) -> str:
    """The flag for so many rows of each training task."""
    return f" --cap {rows}" if rows else ""


def plain(name: str) -> str:
    """As a file may be called."""
    return re.sub(r"[^\w.+-]+", "-", name)


def as_toml(mixture: Mixture) -> str:
    tables = {
        "train": {"tasks": entries(mixture.train), "balance": mixture.balance},
        "eval": {"rows": mixture.eval_rows},
    }
    for split, groups in mixture.splits.items():
        named = {group or "tasks": entries(tasks) for group, tasks in groups.items() if tasks}
        if named:
            tables[f"eval.{split}"] = {"rows": mixture.options[split].rows, **named}
    lines = [f"name = {as_json(mixture.name)}"]
    for table, keys in tables.items():
        lines.append(f"[{table}]")
        for key, value in keys.items():
            if value is not None:
                lines.append(f"{as_json(key)} = {as_json(value)}")
    return "\n".join(lines) + "\n"


def as_json(value) -> str:
    """TOML writes strings, numbers and lists alike, but for characters in two halves."""
    return json.dumps(value, ensure_ascii=False)


def entries(tasks: list[Task]) -> list[str]:
    return [f"{Path(task.where).resolve()}#{task.name}" for task in tasks]
