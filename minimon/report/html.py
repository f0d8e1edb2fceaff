"""report.html: one file that a browser opens anywhere. No script, nothing fetched; every text is escaped.

Its figures are those of report.json; the texts come from the scores.
"""

import math
import unicodedata
from html import escape

import numpy as np

from minimon.metrics import Scores
from minimon.report.data import SIDES
from minimon.report.text import HEADER, cells, interval, number, parts, reading, verdict_line

STYLE = """
:root { --ink: #1c1c1e; --paper: #fff; --line: #d8d8dc; --faint: #6b6b70; --base: #8a8a8f; --adapter: #1f6feb;
  --positive: #c2410c; --negative: #0f766e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --paper: #161618; --line: #3a3a3e; --faint: #a0a0a6;
  --base: #9a9aa0; --adapter: #6ea8fe; --positive: #fb923c; --negative: #2dd4bf; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.note { text-align: left; color: var(--faint); }
details { margin: .4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; border-left: 3px solid var(--line);
  padding-left: .8rem; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
figcaption, .faint { color: var(--faint); font-size: .875rem; }
svg { max-width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 11px; }
.axis { stroke: var(--line); fill: none; }
.base { stroke: var(--base); fill: none; stroke-dasharray: 4 3; }
.adapter { stroke: var(--adapter); fill: none; }
.point { fill: var(--adapter); }
.positive { fill: var(--positive); }
.negative { fill: var(--negative); }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST = 4000  # characters of a text that are shown
WORST = 3  # texts of each class in a task


def page(report: dict, scores: dict[str, dict[str, list[Scores]]], note: str = "") -> str:
    """note: why texts are shown by their hashes, where they are."""
    title = f"{escape(str(report['model']))}, seed {report['seed']}"
    sentences = "".join(f"<li>{escape(line)}</li>" for line in reading(report))
    sections = [
        f"<h1>{title}</h1><p><strong>{escape(verdict_line(report))}</strong></p>",
        f"<h2>Reading your result</h2><ul>{sentences}</ul>",
        summary_table(report),
        "<h2>Uplift in AUROC, task by task</h2>",
        *(uplift_table(split, part) for split, part in report["splits"].items()),
        "<h2>ROC</h2><p class=faint>Rows pooled after ranking within their task; solid: adapter, dashed: base.</p>",
        *(roc(split, part["curves"]) for split, part in report["splits"].items()),
        "<h2>Scores by class</h2><p class=faint>Rows by log-odds; positives upwards, negatives downwards.</p>",
        *(histograms(split, part["histogram"]) for split, part in report["splits"].items()),
        f"<h2>Most wrong under the adapter</h2><p class=faint>{escape(note)}</p>",
        *(wrong_in_split(split, groups) for split, groups in scores.items()),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are markup already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def summary_table(report: dict) -> str:
    rows = [[escape(part.name), *map(escape, cells(part))] for part in parts(report)]
    for split, reason in report.get("not_measured", {}).items():
        rows.append([escape(split), f"not measured: {escape(reason)}"])
    return html_table(HEADER, rows)


def uplift_table(split: str, part: dict) -> str:
    rows = []
    for task in part["tasks"]:
        uplift, bounds = task["uplift"]["auroc"], task["uplift"]["ci95"]
        sides = [number(task[which]["auroc"]) for which in SIDES]
        drawn = interval_svg(uplift, *bounds) if bounds and uplift is not None else ""
        rows.append([escape(task["task"]), drawn, number(uplift, True), interval(bounds), *sides])
    header = ["task", "-1 to +1", "uplift", "95% interval", "base", "adapter"]
    return folded(f"{escape(split)}: {len(rows)} tasks", html_table(header, rows))


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"


def interval_svg(value: float, low: float, high: float) -> str:
    left, right, point = (round(100 + 98 * x, 1) for x in (low, high, value))
    return (
        '<svg width=200 height=16 viewBox="0 0 200 16"><path class=axis d="M100 0V16M2 8H198"/>'
        f'<path class=adapter stroke-width=3 d="M{left} 8H{right}"/><circle class=point cx={point} cy=8 r=4 /></svg>'
    )


def roc(split: str, curves: dict) -> str:
    """A figure a group, and one of the whole split."""
    return "".join(
        roc_svg(f"{split} / {group}" if group else split, curve) for group, curve in curves.items()
    )


def roc_svg(name: str, curve: dict) -> str:
    fewest = min(curve["fpr"])

    def at(fpr, tpr):
        return f"{40 + 250 * (1 - math.log(fpr) / math.log(fewest)):.1f} {180 - 170 * tpr:.1f}"

    paths = []
    for which in SIDES:
        points = [
            at(fpr, tpr) for fpr, tpr in zip(curve["fpr"], curve[which], strict=True) if tpr is not None
        ]
        if points:
            paths.append(f'<path class={which} stroke-width=2 d="M{"L".join([*points, at(1, 1)])}"/>')
    chance = "L".join(at(fpr, fpr) for fpr in [*curve["fpr"], 1])
    ticks = "".join(f'<text x="{at(fpr, 0).split()[0]}" y=196>{fpr:g}</text>' for fpr in (0.001, 0.01, 0.1))
    return (
        '<figure><svg width=300 height=200 viewBox="0 0 300 200"><path class=axis d="M40 10V180H290"/>'
        f'<path class=axis d="M{chance}"/>{"".join(paths)}{ticks}<text x=10 y=16>1</text><text x=10 y=180>0</text>'
        f"</svg><figcaption>{escape(name)}: {curve['positives']} positives, {curve['negatives']} negatives"
        "</figcaption></figure>"
    )


def histograms(split: str, histogram: dict | None) -> str:
    if histogram is None:
        return ""
    counts = [count for which in SIDES for side in histogram[which].values() for count in side]
    return "".join(histogram_svg(split, which, histogram, max(counts)) for which in SIDES)


def histogram_svg(split: str, which: str, histogram: dict, most: int) -> str:
    edges, bars = histogram["edges"], []
    width = 280 / (len(edges) - 1)
    for name, sign in (("positive", 1), ("negative", -1)):
        for i, count in enumerate(histogram[which][name]):
            height = 70 * count / most
            top = 80 - height if sign > 0 else 80
            x = 10 + i * width
            bars.append(
                f"<rect class={name} x={x:.1f} y={top:.1f} width={width - 1:.1f} height={height:.1f} />"
            )
    return (
        f'<figure><svg width=300 height=175 viewBox="0 0 300 175">{"".join(bars)}<path class=axis d="M10 80H290"/>'
        f"<text x=10 y=170>{edges[0]:+.1f}</text><text x=255 y=170>{edges[-1]:+.1f}</text></svg>"
        f"<figcaption>{escape(split)}, {which}</figcaption></figure>"
    )


# ---- texts


def wrong_in_split(split: str, groups: dict[str, list[Scores]]) -> str:
    tasks = [task for members in groups.values() for task in members]
    found = "\n".join(folded(escape(task.task), wrong_in_task(task)) for task in tasks)
    return folded(f"{escape(split)}: {len(tasks)} tasks", found)


def wrong_in_task(task: Scores) -> str:
    """The negatives that score highest and the positives that score lowest."""
    order = np.argsort(task.adapter[:, 0], kind="stable")
    positives = [i for i in order if task.positives[i]][:WORST]
    negatives = [i for i in order[::-1] if not task.positives[i]][:WORST]
    items = []
    for i in [*negatives, *positives]:
        scores = [f"{which} {task.P(which)[i, 0]:.3f} ({task.of(which)[i, 0]:+.1f})" for which in SIDES]
        kind = "positive" if task.positives[i] else "negative"
        text = visible(task.clusters[i])
        opening = escape(" ".join(text[:80].split()))
        items.append(
            folded(f"{kind}: P {', '.join(scores)}: <bdi>{opening}</bdi>", f"<pre>{escape(text)}</pre>")
        )
    return "\n".join(items)


def visible(text: str) -> str:
    """Control and formatting characters by their number: they neither hide nor turn round what is read."""
    shown = "".join(f"[U+{ord(c):04X}]" if hidden(c) else c for c in text[:LONGEST])
    return shown + (f" [... {len(text) - LONGEST} more characters]" if len(text) > LONGEST else "")


def hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t"
