"""What runs there are: a cell is one run of train.py, and a preset says which cells a study has."""

import json
import random
import re
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from minimon.files import write_text
from minimon.tasks import Mixture, Task

REGIMES = {  # name -> flags of train.py
    "none": "",
    "joint": "--instruct joint",
    "joint0.75": "--instruct joint --instruct-fraction 0.75",
    "after": "--instruct after",
    "only": "--instruct only",
    "self": "--labels self",
    "self-at-once": "--labels self-at-once",
}
SCARCE_TASKS = 4  # of each held-out domain
CORE = ("new_domain", "new_prompt")  # splits that cells outside the regimes are measured on


@dataclass(frozen=True)
class Preset:
    """How large a study is; here that of the shipped world. Among counts None stands for all."""

    model: str = "data/base"
    mixture: str = "data/mixtures/default.toml"
    out: str = "runs/study"
    train: str = ""  # more flags for every run of train.py
    side_train: str = "--steps 150"  # and for those on one domain
    parts: tuple[str, ...] = ("regimes", "dilution", "transfer", "scarce", "baselines")
    regimes: tuple[str, ...] = ("none", "joint", "after", "only", "self", "self-at-once")
    seeds: int = 5  # of each regime
    side_seeds: int = 2  # of everything else
    shares: tuple[float, ...] = (0.1, 0.5, 0.75)  # of instruction rows, beside those of the regimes
    task_counts: tuple[int | None, ...] = (8, 32, None)  # training tasks, the number of rows fixed
    row_counts: tuple[tuple[int, int], ...] = ()  # training rows a task, and steps that see each once
    bases: tuple[str, ...] = ()  # other models
    labelled: tuple[int | None, ...] = (8, 32, 128, None)  # rows of a held-out domain
    domains: int = 3  # held-out domains with labelled rows
    label_cap: int | None = None  # rows a task that the base labels, and that baselines learn from
    jobs: int = 1  # cells at a time


PRESETS = {
    "world": Preset(),
    "real": Preset(
        model="data/smollm2",
        mixture="data/mixtures/real.toml",
        out="data/results/real",
        train="--steps 200 --instruct-steps 60 --instruct-lr 2e-4",
        side_train="--steps 40",
        parts=("regimes", "dilution", "scarce", "baselines"),
        regimes=tuple(REGIMES),
        seeds=3,
        side_seeds=1,
        shares=(),
        task_counts=(5, 10, 20, 40),
        row_counts=((30, 75), (100, 250), (250, 625)),
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
    kind: str  # regime | share | tasks | rows | base | transfer | scarce
    seed: int
    model: str
    mixture: Mixture
    flags: str
    label: str = ""  # the regime, the domain that is trained on, or the other model
    x: float | None = None  # place on a curve: a share, or a count (None: all)
    start: str = "base"  # base | adapter
    after: str | None = None  # the cell whose adapter this one starts from


def plan(preset: Preset, mixture: Mixture, out: Path) -> list[Cell]:
    """All cells; whole regimes first, seed by seed, so that a study cut short has whole seeds. Writes their mixtures into `out`."""
    planner, cells = Planner(preset, mixture, out), []
    if "regimes" in preset.parts:
        for seed in range(preset.seeds):
            cells += planner.regimes(seed)
    for seed in range(preset.side_seeds):
        if "transfer" in preset.parts:
            cells += planner.transfer(seed)
        if "dilution" in preset.parts:
            cells += planner.curves(seed)
        if "scarce" in preset.parts:
            cells += planner.scarce(seed)
    return cells


@dataclass(frozen=True)
class Planner:
    preset: Preset
    mixture: Mixture
    out: Path

    def cell(
        self,
        name: str,
        kind: str,
        seed: int,
        mixture: Mixture,
        flags: str = "",
        **fields,
    ) -> Cell:
        fields = {"model": self.preset.model, **fields}
        flags = f"{self.preset.train} {flags}"
        return Cell(f"{name}-seed{seed}", kind, seed, mixture=mixture, flags=flags, **fields)

    def derive(
        self,
        name: str,
        train: list[Task],
        cap: int | None,
        splits: dict,
    ) -> Mixture:
        """A mixture like the study's with other training tasks and splits, and its file."""
        path = self.out / "mixtures" / f"{name}.toml"
        mixture = replace(self.mixture, name=name, path=path, train=train, cap=cap, splits=splits)
        write_text(path, as_toml(mixture))
        return mixture

    def core(self, train: list[Task]) -> dict:
        """The core splits, without changed prompts on domains that these tasks do not train."""
        domains, kept = {task.domain for task in train}, {}
        for split in CORE:
            for group, tasks in self.mixture.splits.get(split, {}).items():
                tasks = [task for task in tasks if split == "new_domain" or task.domain in domains]
                if tasks:
                    kept.setdefault(split, {})[group] = tasks
        return kept

    def regimes(self, seed: int) -> list[Cell]:
        instruct, cells = self.mixture.instruct, []
        shares = {
            "none": 0.0,
            "joint": instruct and instruct.fraction,
            "joint0.75": 0.75,
        }
        for name in self.preset.regimes:
            flags = REGIMES[name]
            if self.preset.label_cap and "--labels" in flags:
                flags += f" --cap {self.preset.label_cap}"
            if instruct or "--instruct" not in flags:
                cells.append(
                    self.cell(name, "regime", seed, self.mixture, flags, label=name, x=shares.get(name))
                )
        return cells

    def curves(self, seed: int) -> list[Cell]:
        """Shares of instruction rows, training rows a task, training tasks, and other bases."""
        cells, train, cap = [], self.mixture.train, self.mixture.cap
        small = self.derive("small", train, cap, self.core(train))
        for share in self.preset.shares if self.mixture.instruct else ():
            flags = f"--instruct joint --instruct-fraction {share}"
            cells.append(self.cell(f"joint{share:g}", "share", seed, small, flags, x=share))
        for model in self.preset.bases:
            cells.append(self.cell(f"base-{Path(model).name}", "base", seed, small, model=model, label=model))
        for count, steps in self.preset.row_counts:
            mixture = self.derive(f"rows{count}", train, count, self.core(train))
            cells.append(self.cell(f"rows{count}", "rows", seed, mixture, f"--steps {steps}", x=count))
        counts = [min(count or len(train), len(train)) for count in self.preset.task_counts]
        for count in dict.fromkeys(counts):
            tasks = random.Random(f"tasks-{seed}-{count}").sample(train, count)
            rows = max(2, (cap or 64) * min(counts) // count)  # of each task, as many in all
            mixture = self.derive(f"tasks{count}-seed{seed}", tasks, rows, self.core(tasks))
            cells.append(self.cell(f"tasks{count}", "tasks", seed, mixture, x=count))
        return cells

    def transfer(self, seed: int) -> list[Cell]:
        """Trained on one domain, measured on all: the prompts that other domains were trained with are new to it."""
        cells, splits = [], self.mixture.splits
        new = list(splits.get("new_domain", {}).values())
        measured = [task for tasks in splits.get("trained", {}).values() for task in tasks] + sum(new[:1], [])
        for domain in dict.fromkeys(task.domain for task in self.mixture.train):
            name, trained, others = f"from-{plain(domain)}", {}, {}
            for task in measured:
                groups, group = (trained, "") if task.domain == domain else (others, task.domain)
                groups.setdefault(group, []).append(task)
            train = [task for task in self.mixture.train if task.domain == domain]
            mixture = self.derive(name, train, self.mixture.cap, {"trained": trained, "new_domain": others})
            cells.append(self.cell(name, "transfer", seed, mixture, self.preset.side_train, label=domain))
        return cells

    def scarce(self, seed: int) -> list[Cell]:
        """A few labelled rows of a held-out domain, from the base and from the classification adapter of its seed."""
        cells, flags, first = [], f"{self.preset.side_train} --batch-size 8", f"none-seed{seed}"
        starts = {"base": None}
        if "regimes" in self.preset.parts:
            starts["adapter"] = first
        for domain, tasks in self.held_out():
            for count in self.preset.labelled:
                name, cap = f"scarce-{plain(domain)}-{count or 'all'}", count and max(2, count // len(tasks))
                mixture = self.derive(name, tasks, cap, {"trained": {"": tasks}})
                for start, after in starts.items():
                    about = {
                        "label": domain,
                        "x": count,
                        "start": start,
                        "after": after,
                    }
                    cells.append(self.cell(f"{name}-{start}", "scarce", seed, mixture, flags, **about))
        return cells

    def held_out(self) -> list[tuple[str, list[Task]]]:
        """The first domains with training rows of their own, groups of new_domain in turn, and their first tasks."""
        domains, usable = {}, []
        for tasks in zip_longest(*self.mixture.splits.get("new_domain", {}).values()):
            for task in filter(None, tasks):
                domains.setdefault(task.domain, []).append(task)
        for domain, tasks in domains.items():
            tasks = tasks[:SCARCE_TASKS]
            if all(task.select("train", 2, balance=True, seed=0) for task in tasks):
                usable.append((domain, tasks))
        return usable[: self.preset.domains]


def plain(name: str) -> str:
    """As a file may be called."""
    return re.sub(r"[^\w.+-]+", "-", name)


def as_toml(mixture: Mixture) -> str:
    lines = [f"name = {json.dumps(mixture.name)}"]
    lines += ["[train]", f"tasks = {entries(mixture.train)}", f"balance = {json.dumps(mixture.balance)}"]
    lines += [f"cap = {mixture.cap}"] if mixture.cap else []
    if mixture.instruct:
        lines += ["[instruct]", f"rows = {json.dumps(str(mixture.instruct.path.resolve()))}"]
    lines.append("[eval]")
    lines += [f"rows = {mixture.eval_rows}"] if mixture.eval_rows else []
    for split, groups in mixture.splits.items():
        rows = mixture.options[split].rows if split in mixture.options else None
        lines += [f"[eval.{split}]"] if groups else []
        lines += [f"rows = {rows}"] if groups and rows else []
        for group, tasks in groups.items():
            lines.append(f"{json.dumps(group or 'tasks')} = {entries(tasks)}")
    return "\n".join(lines) + "\n"


def entries(tasks: list[Task]) -> str:
    return json.dumps([f"{Path(task.where).resolve()}#{task.name}" for task in tasks])
