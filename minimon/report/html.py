"""report.html: one file that a browser opens anywhere. No script, nothing fetched; every text is escaped.

Its figures are those of report.json; the texts come from the scores.
"""

import math
import unicodedata
from html import escape

import numpy as np

from minimon.metrics import Scores
from minimon.report.data import RATES, SIDES
from minimon.report.text import HEADER, Part, cells, interval, notes, number, parts, reading, verdict_line

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --line: #d8d8dc; --faint: #6b6b70;
  --base: #8a8a8f; --adapter: #1f6feb; --positive: #c2410c; --negative: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --paper: #161618; --line: #3a3a3e;
  --faint: #a0a0a6; --base: #9a9aa0; --adapter: #6ea8fe; --positive: #fb923c; --negative: #2dd4bf; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 75rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.reason { text-align: left; }
summary { cursor: pointer; margin: .4rem 0; }
details details { margin-left: 1rem; }
pre { white-space: pre-wrap; unicode-bidi: plaintext; border-left: 3px solid var(--line);
  padding-left: .8rem; }
figure { display: inline-block; width: 300px; margin: .5rem 1rem .5rem 0; vertical-align: top; }
figcaption, p { color: var(--faint); }
strong { color: var(--ink); }
svg text { fill: var(--faint); font-size: 11px; }
path, circle { fill: none; stroke-width: 2; }
.axis { stroke: var(--line); }
.base { stroke: var(--base); stroke-dasharray: 4 3; }
.adapter { stroke: var(--adapter); }
.positive { fill: var(--positive); }
.negative { fill: var(--negative); }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST = 4000  # characters of a text that are shown
WORST = 3  # texts of each class in a task


def page(report: dict, scores: dict[str, dict[str, list[Scores]]], note: str = "") -> str:
    """note: why texts are shown by their hashes, where they are."""
    title = f"{escape(str(report['model']))}, seed {report['seed']}"
    splits = report["splits"].items()
    sections = [
        f"<h1>{title}</h1><p><strong>{escape(verdict_line(report))}</strong></p>",
        "<h2>Reading your result</h2>",
        bullets(reading(report)),
        "<h2>Splits and groups</h2>",
        summary_table(report),
        bullets(notes(report)),
        "<h2>Uplift in AUROC, task by task</h2>",
        *[uplift_table(split, part["tasks"]) for split, part in splits],
        "<h2>ROC</h2><p>Rows pooled after ranking within their task; solid: adapter, dashed: base.</p>",
        *[roc(part, report["splits"][part.split]["curves"][part.group]) for part in parts(report)],
        "<h2>Scores by class</h2><p>Rows by log-odds; positives upwards, negatives downwards.</p>",
        *[histogram(split, which, part["histogram"]) for split, part in splits for which in SIDES],
        f"<h2>Most wrong under the adapter</h2><p>{escape(note)}</p>",
        *[wrong_in_split(split, groups) for split, groups in scores.items()],
    ]
    head = (
        '<meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    body = "\n".join(sections)
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n{body}\n</body></html>\n"


def bullets(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def folded(summary: str, content: str) -> str:
    """Of markup, like all that follows."""
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"


def html_table(header: list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{name}" for name in header)
    return f"<div class=wide><table><thead><tr>{head}<tbody>{''.join(rows)}</table></div>"


def table_row(cells: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "\n"


def summary_table(report: dict) -> str:
    rows = [table_row([escape(part.name), *map(escape, cells(part))]) for part in parts(report)]
    for split, reason in report.get("not_measured", {}).items():
        reason = f"not measured: {escape(reason)}"
        rows.append(f"<tr><td>{escape(split)}</td><td class=reason colspan={len(HEADER) - 1}>{reason}</td>")
    return html_table(HEADER, rows)


def uplift_table(split: str, tasks: list[dict]) -> str:
    rows = []
    for task in tasks:
        uplift, bounds = task["uplift"]["auroc"], task["uplift"]["ci95"]
        drawn = interval_svg(uplift, *bounds) if bounds and uplift is not None else ""
        sides = [number(task[which]["auroc"]) for which in SIDES]
        rows.append(table_row([escape(task["task"]), drawn, number(uplift, True), interval(bounds), *sides]))
    header = ["task", "-1 to +1", "uplift", "95% interval", "base", "adapter"]
    return folded(f"{escape(split)}: {len(tasks)} tasks", html_table(header, rows))


def interval_svg(value: float, low: float, high: float) -> str:
    left, right, point = (round(100 + 98 * x, 1) for x in (low, high, value))
    return (
        '<svg width=200 height=16 viewBox="0 0 200 16"><path class=axis d="M100 0V16M2 8H198"/>'
        f'<path class=adapter d="M{left} 8H{right}"/><circle class=adapter cx={point} cy=8 r=3 /></svg>'
    )


def figure(caption: str, drawn: str) -> str:
    svg = f'<svg width=300 height=200 viewBox="0 0 300 200">{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


def roc(part: Part, curve: dict) -> str:
    least = math.log(min(RATES))

    def at(fpr, tpr):
        return f"{290 - 260 * math.log(fpr) / least:.1f} {180 - 170 * tpr:.1f}"

    def path(name, points):
        return f'<path class={name} d="M{"L".join(points)}"/>'

    drawn = '<path class=axis d="M30 10V180H290"/>'
    drawn += path("axis", [at(fpr, fpr) for fpr in [*RATES, 1]])
    for which in SIDES:
        points = [at(fpr, tpr) for fpr, tpr in zip(RATES, curve[which], strict=True) if tpr is not None]
        drawn += path(which, [*points, at(1, 1)])
    for fpr in (0.001, 0.01, 0.1):
        x = at(fpr, 0).split()[0]
        drawn += f"<text x={x} y=196>{fpr:g}</text>"
    return figure(f"{part.name}: {part.count('positives')} positives, {part.negatives} negatives", drawn)


def histogram(split: str, which: str, counts: dict | None) -> str:
    if counts is None:
        return ""
    edges = counts["edges"]
    width = 280 / (len(edges) - 1)
    most = max(max(counts[side][name]) for side in SIDES for name in ("positive", "negative"))
    drawn = ""
    for name in ("positive", "negative"):
        for i, count in enumerate(counts[which][name]):
            height = 85 * count / most
            top = 90 - height if name == "positive" else 90
            place = f"x={10 + i * width:.1f} y={top:.1f} width={width - 1:.1f} height={height:.1f}"
            drawn += f"<rect class={name} {place} />"
    drawn += f"<text x=10 y=196>{edges[0]:+.1f}</text><text x=255 y=196>{edges[-1]:+.1f}</text>"
    return figure(f"{split}, {which}", drawn)


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
