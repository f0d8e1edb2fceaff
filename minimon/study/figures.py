"""Figures of the study, where matplotlib is installed: the six answers; transfer and the curves that explain them."""

from pathlib import Path

import numpy as np

from minimon.study.findings import Table, split_of

NAMES = {
    "none": "classification",
    "after": "then instructions",
    "only": "instructions only",
    "self": "self labels",
}
PLAIN, OWN = ("none", "joint", "joint0.75", "after", "only"), ("self", "self-at-once")
SIX = (  # title, regimes and split of a panel; changed prompts with and without instruction rows stand in one
    ("1. New domains", PLAIN, "new_domain"),
    ("2, 3. Changed prompts, trained domains", PLAIN, "new_prompt"),
    ("4. With thinking", PLAIN, "thinking"),
    ("5. Summaries, judged by the base", PLAIN, "summary"),
    ("6. Labels of its own", OWN, "new_domain"),
)
TRANSFER, SCARCE = "Uplift by domain trained on", "AUROC by labelled rows of a new domain"
# the sixth panel is the first of these that is a curve
LAST = ("Uplift by share of instruction rows", SCARCE)
AROUND = (
    TRANSFER,
    SCARCE,
    "Uplift by training rows a task",
    "Uplift by training tasks",
    "Uplift by base",
)


def write_figures(numbers: dict, out: Path) -> bool:
    """study.png, the six answers, and transfer.png, what surrounds them. False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    tables = numbers["effects"] | numbers["levels"]
    figure = Figure(figsize=(13, 7), layout="constrained")
    *axes, last = figure.subplots(2, 3).flat
    for axis, (title, regimes, split) in zip(axes, SIX):
        panel(axis, title, of_regimes(tables["Uplift over the base"], regimes, split))
    curves = [title for title in LAST if len(tables[title]) > 1] or LAST
    panel(last, curves[0], of_curve(tables[curves[0]]), joined=True)
    figure.savefig(out / "study.png", dpi=110, metadata={"Software": None})
    titles = [title for title in AROUND if tables[title]]
    if titles:
        figure = Figure(figsize=(6 * len(titles), 4.5), layout="constrained")
        axes = figure.subplots(1, len(titles), squeeze=False).flat
        for axis, title in zip(axes, titles):
            if title == TRANSFER:
                heat_map(axis, title, tables[title])
            else:
                panel(axis, title, of_curve(tables[title]), joined=True)
        figure.savefig(out / "transfer.png", dpi=110, metadata={"Software": None})
    return True


def of_regimes(table: Table, regimes: tuple[str, ...], split: str) -> Table:
    """Series -> tick -> effect: the groups of a split, beside classification alone; nothing where none of the regimes was
    measured there."""
    found = {}
    for regime in dict.fromkeys(("none", *regimes)):
        for place, effect in table.get(regime, {}).items():
            if effect and split_of(place) == split:
                group = "all" if place == split else place.split(" / ")[1].replace("_", "\n")
                found.setdefault(NAMES.get(regime, regime), {})[group] = effect
    return found if any(NAMES.get(regime, regime) in found for regime in regimes) else {}


def of_curve(table: Table) -> Table:
    """Series -> tick -> effect: a series is a row of the table, without the many changed prompts."""
    found = {}
    for tick, effects in table.items():
        for row, effect in effects.items():
            if effect and (row == "new_prompt" or row.startswith(("new_domain", "from the"))):
                found.setdefault(row, {})[tick] = effect
    return found


def panel(axis, title: str, series: Table, joined: bool = False) -> None:
    """Effects with their intervals; the series beside each other, or each joined by a line."""
    axis.set_title(title, fontsize=10)
    if not series:
        axis.text(0.5, 0.5, "not measured", ha="center", color="0.5", fontsize=9)
        return axis.set_axis_off()
    ticks = list(dict.fromkeys(tick for effects in series.values() for tick in effects))
    for i, (label, effects) in enumerate(series.items()):
        shift = 0 if joined else (i - (len(series) - 1) / 2) * 0.12
        x = [ticks.index(tick) + shift for tick in effects]
        y = np.array([effect["mean"] for effect in effects.values()])
        bounds = np.array([effect["ci95"] for effect in effects.values()]).T
        line = "o-" if joined else "o"
        axis.errorbar(
            x,
            y,
            yerr=np.abs(bounds - y),
            fmt=line,
            capsize=2,
            markersize=4,
            label=label,
        )
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axis.legend(frameon=False, fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if not title.startswith("AUROC"):
        axis.axhline(0, color="0.8", linewidth=1, zorder=0)
        axis.set_ylabel("uplift in AUROC", fontsize=8)


def heat_map(axis, title: str, table: Table) -> None:
    rows = list(dict.fromkeys(row for effects in table.values() for row in effects))
    values = np.full((len(rows), len(table)), np.nan)
    for column, effects in enumerate(table.values()):
        for row, effect in effects.items():
            if effect:
                values[rows.index(row), column] = effect["mean"]
    most = np.nanmax(np.abs(values))
    image = axis.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    names = [row.removeprefix("new_domain / ") for row in rows]
    axis.set_xticks(range(len(table)), table, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.figure.colorbar(image, ax=axis)
