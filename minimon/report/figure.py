"""report.png: uplift of each split and group, ROC on a log axis, reliability. Tasks are in report.html."""

from pathlib import Path

from minimon.report.data import RATES, SIDES
from minimon.report.text import parts

STYLES = {"base": ":", "adapter": "-"}


def write_figure(report: dict, path: Path) -> bool:
    """False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    uplift, roc, reliability = figure.subplots(1, 3)
    colors = {split: f"C{i}" for i, split in enumerate(report["splits"])}
    draw_uplift(uplift, parts(report), colors)
    draw_roc(roc, report["splits"], colors)
    draw_reliability(reliability, report["splits"], colors)
    for axes in (uplift, roc, reliability):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def draw_uplift(axes, parts, colors) -> None:
    shown = [part for part in parts if part.numbers["uplift"]["headline_ci95"]]
    for i, part in enumerate(shown):
        uplift, color = part.numbers["uplift"], colors[part.split]
        axes.plot(uplift["headline_ci95"], [i, i], color=color, linewidth=1.5)
        axes.plot(uplift["auroc"], i, "o", color=color, markersize=5)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_yticks(range(len(shown)), [part.name for part in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, adapter minus base, 95% interval (the wider)")


def draw_roc(axes, splits, colors) -> None:
    for split, part in splits.items():
        curve = part["curves"][""]
        for which in SIDES:
            label = split if which == "adapter" else None
            values = [float("nan") if rate is None else rate for rate in curve[which]]
            axes.plot(RATES, values, STYLES[which], color=colors[split], linewidth=1.2, label=label)
    axes.plot(RATES, RATES, color="0.8", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("FPR, log axis")
    axes.set_ylabel("TPR (dotted: base)")
    axes.legend(frameon=False, fontsize=8)


def draw_reliability(axes, splits, colors) -> None:
    for split, part in splits.items():
        side = part["reliability"]["adapter"]
        filled = [i for i, rows in enumerate(side["rows"]) if rows]
        mean, share = ([side[key][i] for i in filled] for key in ("mean", "positive"))
        axes.plot(mean, share, "o-", markersize=3, color=colors[split], label=split)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("mean P of a bin, adapter")
    axes.set_ylabel("share of positives")
