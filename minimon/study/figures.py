"""Figures of the study, where matplotlib is installed: the six answers; adjacency and scarce labels."""

from pathlib import Path

import numpy as np


def write_figures(numbers: dict, out: Path) -> bool:
    """study.png, the six answers, and transfer.png, adjacency and scarce labels. False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if numbers["regimes"]:
        figure = Figure(figsize=(13, 7), layout="constrained")
        FigureCanvasAgg(figure)
        six_panels(figure.subplots(2, 3), numbers)
        figure.savefig(out / "study.png", dpi=110, metadata={"Software": None})
    if numbers["transfer"] or numbers["scarce"]:
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        heat_map(figure, left, numbers["transfer"])
        scarce_panel(right, numbers["scarce"])
        figure.savefig(out / "transfer.png", dpi=110, metadata={"Software": None})
    return True


def six_panels(axes, numbers):
    regimes, ways = numbers["regimes"], ("none", "joint", "after", "only")
    names = {"none": "classification", "joint": "joint", "after": "then instructions", "only": "instructions only", "self": "self labels"}

    def panel(axis, title, shown, split):
        groups = [group for group in regimes["none"] if group == split or group.startswith(f"{split} / ")]
        for i, way in enumerate(way for way in shown if way in regimes):
            entries = [regimes[way][group]["auroc"]["uplift"] for group in groups]
            x = np.arange(len(groups)) + (i - (len(shown) - 1) / 2) * 0.16
            y = np.array([entry["mean"] for entry in entries])
            bounds = np.array([entry["ci95"] for entry in entries]).T
            axis.errorbar(x, y, yerr=np.abs(bounds - y), fmt="o", capsize=2, markersize=4, label=names[way])
        ticks = [group.split(" / ")[-1].replace("_", "\n") if "/" in group else "all" for group in groups]
        axis.set_xticks(range(len(groups)), ticks, fontsize=8)
        finish(axis, title)
        axis.legend(frameon=False, fontsize=7)

    panel(axes[0, 0], "1. New domains", ways, "new_domain")
    panel(axes[0, 1], "2, 3. Changed prompts, trained domains", ways, "new_prompt")
    axis = axes[0, 2]
    if points := numbers["dilution"]["fraction"]:
        groups = [where for where in points[0] if where.startswith("new_domain /")]
        broken = [where for where in points[0] if where.startswith("new_prompt /") and points[0][where]["ci95"][1] < 0]
        for where in groups + broken:          # the gain, and what has to be repaired
            x, y = [point["x"] for point in points], [point[where]["mean"] for point in points]
            ends = [[abs(point[where]["ci95"][side] - point[where]["mean"]) for point in points] for side in (0, 1)]
            axis.errorbar(x, y, yerr=ends, marker="o", markersize=3, capsize=2, label=where)
        axis.set_ylim(top=axis.get_ylim()[1] + 0.3 * (axis.get_ylim()[1] - axis.get_ylim()[0]))
        axis.legend(frameon=False, fontsize=7, loc="upper right")
        axis.set_xlabel("share of instruction rows", fontsize=8)
        finish(axis, "3. Dilution")
    else:
        axis.set_axis_off()
    if any(group.startswith("thinking") for group in regimes["none"]):
        panel(axes[1, 0], "4. With thinking", ways, "thinking")
    if any(group.startswith("summary") for group in regimes["none"]):
        panel(axes[1, 1], "5. Summaries, judged by the base", ways, "summary")
    panel(axes[1, 2], "6. Labels of its own", ("none", "self"), "new_domain")


def finish(axis, title):
    axis.axhline(0, color="0.8", linewidth=1, zorder=0)
    axis.set_title(title, fontsize=10)
    axis.set_ylabel("uplift in AUROC", fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def heat_map(figure, axis, table):
    if not table:
        return axis.set_axis_off()
    columns = list(dict.fromkeys([*table, *(column for row in table.values() for column in row)]))
    values = np.array([[row.get(column, {"mean": np.nan})["mean"] for column in columns] for row in table.values()])
    most = np.nanmax(np.abs(values))
    image = axis.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(table)), list(table), fontsize=8)
    for i, j in np.ndindex(values.shape):
        axis.text(j, i, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=7)
    axis.set_title("Trained on one domain (row): uplift in AUROC on each", fontsize=10)
    figure.colorbar(image, ax=axis)


def scarce_panel(axis, points):
    if not points:
        return axis.set_axis_off()
    ticks = list(dict.fromkeys(point["k"] for point in points))
    for start, label in (("base", "from the base"), ("adapter", "from the cross-domain adapter")):
        mine = [point for point in points if point["start"] == start]
        y, bounds = np.array([point["mean"] for point in mine]), np.array([point["ci95"] for point in mine]).T
        axis.errorbar([ticks.index(point["k"]) for point in mine], y, yerr=np.abs(bounds - y), marker="o", capsize=3, label=label)
    axis.set_xticks(range(len(ticks)), ["all" if k is None else k for k in ticks])
    axis.set_xlabel("labelled rows of the new domain")
    axis.set_ylabel("AUROC there")
    axis.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
