"""Figures of the study, where matplotlib is installed: the six answers; transfer and the curves that explain them."""

from pathlib import Path

import numpy as np

Series = dict[str, dict[str, dict]]  # label -> tick -> effect
NAMES = {
    "none": "classification",
    "after": "then instructions",
    "only": "instructions only",
    "self": "self labels",
}
PLAIN = ("none", "joint", "joint0.75", "after", "only")


def write_figures(numbers: dict, out: Path) -> bool:
    """study.png, the six answers, and transfer.png, what surrounds them. False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves = {title: series for title, series in around(numbers).items() if series}
    columns = len(curves) + bool(numbers["transfer"])
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, series) in zip(figure.subplots(2, 3).flat, six(numbers).items()):
        panel(axis, title, series, joined=title.startswith("3"))
    figure.savefig(out / "study.png", dpi=110, metadata={"Software": None})
    if columns:
        figure = Figure(figsize=(6 * columns, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, columns, squeeze=False).flat)
        if numbers["transfer"]:
            heat_map(figure, axes.pop(0), numbers["transfer"])
        for axis, (title, series) in zip(axes, curves.items()):
            panel(axis, title, series, joined=True)
        figure.savefig(out / "transfer.png", dpi=110, metadata={"Software": None})
    return True


def six(numbers: dict) -> dict[str, Series]:
    """A panel a question; changed prompts with and without instruction rows stand in one."""
    return {
        "1. New domains": of_regimes(numbers, PLAIN, "new_domain"),
        "2, 3. Changed prompts, trained domains": of_regimes(numbers, PLAIN, "new_prompt"),
        "3. Share of instruction rows": of_curve(numbers["dilution"]["fraction"]),
        "4. With thinking": of_regimes(numbers, PLAIN, "thinking"),
        "5. Summaries, judged by the base": of_regimes(numbers, PLAIN, "summary"),
        "6. Labels of its own": of_regimes(numbers, ("none", "self", "self-at-once"), "new_domain"),
    }


def around(numbers: dict) -> dict[str, Series]:
    few = {}
    for point in numbers["scarce"]:
        of_start = few.setdefault(f"from the {point['start']}", {})
        of_start["all" if point["k"] is None else str(point["k"])] = point
    found = {"AUROC after k labelled rows of a held-out domain": few}
    for key in ("rows", "tasks", "bases"):
        found[f"Uplift in AUROC by {key} trained on"] = of_curve(numbers["dilution"][key])
    return found


def of_regimes(
    numbers: dict,
    regimes: tuple[str, ...],
    split: str,
) -> Series:
    series = {}
    for regime in regimes:
        for place, entry in numbers["regimes"].get(regime, {}).items():
            if place.split(" / ")[0] == split:
                tick = place.split(" / ")[-1].replace("_", "\n") if "/" in place else "all"
                series.setdefault(NAMES.get(regime, regime), {})[tick] = entry["auroc"]["uplift"]
    return series


def of_curve(points: list[dict]) -> Series:
    series = {}
    for point in points:
        for place, entry in point.items():
            if place == "new_prompt" or place.startswith("new_domain"):
                series.setdefault(place, {})[str(point["x"])] = entry
    return series


def panel(
    axis,
    title: str,
    series: Series,
    joined: bool,
) -> None:
    """Effects with their intervals; the series beside each other, or each joined by a line."""
    if not series:
        return axis.set_axis_off()
    ticks = list(dict.fromkeys(tick for effects in series.values() for tick in effects))
    for i, (label, effects) in enumerate(series.items()):
        shift = 0 if joined else (i - (len(series) - 1) / 2) * 0.12
        x = [ticks.index(tick) + shift for tick in effects]
        y = np.array([entry["mean"] for entry in effects.values()])
        bounds = np.array([entry["ci95"] for entry in effects.values()]).T
        form = "o-" if joined else "o"
        axis.errorbar(x, y, yerr=np.abs(bounds - y), fmt=form, capsize=2, markersize=4, label=label)
    axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if not title.startswith("AUROC"):
        axis.axhline(0, color="0.8", linewidth=1, zorder=0)
        axis.set_ylabel("uplift in AUROC", fontsize=8)


def heat_map(figure, axis, table: dict) -> None:
    columns = list(dict.fromkeys([*table, *(column for row in table.values() for column in row)]))
    values = np.full((len(table), len(columns)), np.nan)
    for i, row in enumerate(table.values()):
        for column, entry in row.items():
            values[i, columns.index(column)] = entry["mean"]
    most = np.nanmax(np.abs(values))
    image = axis.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(table)), list(table), fontsize=8)
    axis.set_title("Trained on one domain (row): uplift in AUROC on each", fontsize=10)
    figure.colorbar(image, ax=axis)
