"""report.png: uplift of each split and group, ROC on a log axis, reliability. Tasks are in report.html."""

from pathlib import Path

from minimon.report.data import RATES
from minimon.report.text import Part, parts

FAINT = {"color": "0.8", "linewidth": 1, "zorder": 0}


def write_figure(report: dict, path: Path) -> bool:
    """False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    uplift, roc, reliability = figure.subplots(1, 3)
    colors = {split: f"C{i}" for i, split in enumerate(report["splits"])}
    draw_uplift(uplift, parts(report), colors)
    for split, part in report["splits"].items():
        style = {"color": colors[split], "linewidth": 1.2}
        curve, bins = part["curves"][""], part["reliability"]["adapter"]
        roc.plot(RATES, curve["base"], ":", **style)
        roc.plot(RATES, curve["adapter"], "-", label=split, **style)
        reliability.plot(bins["mean"], bins["positive"], "o-", markersize=3, **style)
    roc.plot(RATES, RATES, **FAINT)
    roc.set(xscale="log", ylim=(0, 1), xlabel="FPR, log axis", ylabel="TPR (dotted: base)")
    roc.legend(frameon=False, fontsize=8)
    reliability.plot([0, 1], [0, 1], **FAINT)
    reliability.set(xlabel="mean P of a bin, adapter", ylabel="share of positives")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def draw_uplift(axes, parts: list[Part], colors: dict[str, str]) -> None:
    shown = [part for part in parts if part.numbers["uplift"]["headline_ci95"]]
    for i, part in enumerate(shown):
        uplift, color = part.numbers["uplift"], colors[part.split]
        axes.plot(uplift["headline_ci95"], [i, i], color=color)
        axes.plot(uplift["auroc"], i, "o", color=color)
    axes.axvline(0, **FAINT)
    axes.set_yticks(range(len(shown)), [part.name for part in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, adapter minus base, 95% interval (the wider)")
