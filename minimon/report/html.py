"""report.html: one file that a browser opens anywhere. No script, nothing fetched; every text is escaped."""

import unicodedata
from html import escape

import numpy as np

from minimon.metrics import Scores, SplitScores
from minimon.report.data import SIDES, all_tasks
from minimon.report.svg import STYLE as SVG_STYLE
from minimon.report.svg import bar, figures
from minimon.report.text import Section, interval, number, sections

STYLE = """
:root { color-scheme: light dark; --line: #8886; --faint: #8889; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child { text-align: left; }
tr:first-child td { font-weight: bold; }
summary { cursor: pointer; margin: .4rem 0; }
details details { margin-left: 1rem; }
pre { white-space: pre-wrap; unicode-bidi: plaintext; border-left: 3px solid var(--line);
  padding-left: .8rem; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST = 4000  # characters of a text that are shown
WORST = 3  # texts of each class in a task


def page(report: dict, scores: SplitScores, note: str = "") -> str:
    """note: why texts are shown by their hashes, where they are."""
    first, second, *others = sections(report)
    body = [f"<h1>{escape(first.title)}</h1>", content(first)]
    body += [f"<h2>{escape(second.title)}</h2>", content(second), figures(report)]
    body.append("<h2>Uplift in AUROC, task by task, from -1 to +1</h2>")
    body += [folded(escape(split), uplifts(part["tasks"])) for split, part in report["splits"].items()]
    body.append("<h2>All numbers, task by task</h2>")
    body += [folded(escape(section.title), content(section)) for section in others]
    body.append(f"<h2>Most wrong, or least sure, under the adapter</h2><p>{escape(note)}</p>")
    for split, groups in scores.items():
        tasks = [folded(escape(task.task), most_wrong(task)) for task in all_tasks(groups)]
        body.append(folded(f"{escape(split)}: {len(tasks)} tasks", "\n".join(tasks)))
    head = (
        '<meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>{escape(first.title)}</title><style>{STYLE}{SVG_STYLE}</style>"
    )
    lines = "\n".join(body)
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n{lines}\n</body></html>\n"


def content(section: Section) -> str:
    """Of a section, without its title."""
    points = "".join(f"<li>{escape(point)}</li>" for point in section.points)
    rows = ""
    for cells in section.table:
        rows += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n"
    table = f"<div class=wide><table>\n{rows}</table></div>"
    return f"<p>{escape(section.text)}</p>\n{table}\n<ul>{points}</ul>"


def uplifts(tasks: list[dict]) -> str:
    rows = ""
    for task in tasks:
        name, uplift = escape(task["task"]), task["uplift"]
        value = f"{number(uplift['auroc'], '+')} {interval(uplift['ci95'])}"
        rows += f"<tr><td>{name}</td><td>{bar(uplift)}</td><td>{value}</td></tr>\n"
    return f"<div class=wide><table>\n{rows}</table></div>"


def folded(summary: str, content: str) -> str:
    """Of markup."""
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"


def most_wrong(task: Scores) -> str:
    """The negatives that score highest and the positives that score lowest."""
    order = np.argsort(task.adapter[:, 0], kind="stable")
    positives = [i for i in order if task.positives[i]][:WORST]
    negatives = [i for i in order[::-1] if not task.positives[i]][:WORST]
    items = []
    for i in [*negatives, *positives]:
        kind = "positive" if task.positives[i] else "negative"
        scores = [f"{which} {task.P(which)[i, 0]:.3f} ({task.of(which)[i, 0]:+.1f})" for which in SIDES]
        text = visible(task.clusters[i])
        opening = escape(" ".join(text[:80].split()))
        summary = f"{kind}: P {', '.join(scores)}: <bdi>{opening}</bdi>"
        items.append(folded(summary, f"<pre>{escape(text)}</pre>"))
    return "\n".join(items)


def visible(text: str) -> str:
    """Control and formatting characters by their number: they neither hide nor turn round what is read."""
    shown = "".join(f"[U+{ord(c):04X}]" if hidden(c) else c for c in text[:LONGEST])
    return shown + (f" [... {len(text) - LONGEST} more characters]" if len(text) > LONGEST else "")


def hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t"
