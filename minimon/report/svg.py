"""The figures of report.html: ROC on a log axis, scores by class, uplift task by task. Numbers are report.json's."""

import math
from html import escape

from minimon.report.data import RATES, SIDES
from minimon.report.text import number

STYLE = """
figure { display: inline-block; width: 300px; margin: .5rem 1rem .5rem 0; vertical-align: top; }
svg text { fill: currentColor; font-size: 11px; }
path, circle { fill: none; stroke: #1f6feb; stroke-width: 2; }
.axis { stroke: #8888; }
.base { stroke: #8a8a8f; stroke-dasharray: 4 3; }
.positive { fill: #d9480f; }
.negative { fill: #0f9d8a; }
"""
WIDTH, HEIGHT = 300, 200
LEFT, RIGHT, TOP, BOTTOM = 30, 290, 10, 180  # of the axes


def figure(caption: str, drawn: str) -> str:
    svg = f'<svg width={WIDTH} height={HEIGHT} viewBox="0 0 {WIDTH} {HEIGHT}">{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


def figures(report: dict) -> str:
    """Of every split: ROC, and base's and adapter's scores by class."""
    drawn = []
    for split, part in report["splits"].items():
        for group, curve in part["curves"].items():
            drawn.append(roc(f"ROC, {split} {group}", curve))
        if part["histogram"]:
            drawn += [histogram(split, which, part["histogram"]) for which in SIDES]
    return "".join(drawn)


def roc(caption: str, curve: dict) -> str:
    """curve: TPR at each of RATES, base and adapter; None where it is not defined."""
    diagonal = points([*RATES, 1], [*RATES, 1])
    drawn = f'<path class=axis d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/><path class=axis d="M{diagonal}"/>'
    for which in SIDES:
        defined = [(fpr, tpr) for fpr, tpr in zip(RATES, curve[which]) if tpr is not None]
        drawn += f'<path class={which} d="M{points(*zip(*defined, (1, 1)))}"/>'
    for fpr in (0.001, 0.01, 0.1):
        drawn += f"<text x={roc_x(fpr):.0f} y={BOTTOM + 15}>{fpr:g}</text>"
    return figure(f"{caption}; dashed: base", drawn)


def points(fprs, tprs) -> str:
    """A path through them."""
    places = [(roc_x(fpr), BOTTOM - (BOTTOM - TOP) * tpr) for fpr, tpr in zip(fprs, tprs)]
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def roc_x(fpr: float) -> float:
    return RIGHT - (RIGHT - LEFT) * math.log(fpr) / math.log(min(RATES))


def histogram(split: str, which: str, counts: dict) -> str:
    """Positives upwards, negatives downwards, over log-odds."""
    edges, middle = counts["edges"], (TOP + BOTTOM) / 2
    width = (RIGHT - LEFT) / (len(edges) - 1)
    most = max(max(counts[side][kind]) for side in SIDES for kind in ("positive", "negative"))
    drawn = ""
    for kind in ("positive", "negative"):
        for i, count in enumerate(counts[which][kind]):
            height = (middle - TOP) * count / most
            y = middle - height if kind == "positive" else middle
            place = f"x={LEFT + i * width:.1f} y={y:.1f} width={width - 1:.1f} height={height:.1f}"
            drawn += f"<rect class={kind} {place} />"
    for edge, x in ((edges[0], LEFT), (edges[-1], RIGHT - 35)):
        drawn += f"<text x={x} y={BOTTOM + 15}>{number(edge, '+')}</text>"
    return figure(f"{split}, {which}: positives up, negatives down, by log-odds", drawn)


def bar(uplift: dict) -> str:
    """AUROC's uplift with its interval, on an axis from -1 to +1."""
    if uplift["auroc"] is None or uplift["ci95"] is None:
        return ""
    low, high, value = (round(100 + 98 * x, 1) for x in (*uplift["ci95"], uplift["auroc"]))
    return (
        '<svg width=200 height=16 viewBox="0 0 200 16"><path class=axis d="M100 0V16M2 8H198"/>'
        f'<path d="M{low} 8H{high}"/><circle cx={value} cy=8 r=3 /></svg>'
    )
