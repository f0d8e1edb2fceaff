"""Scores -> report.json, report.md, report.html and scores.jsonl."""

from minimon.report.data import build_report
from minimon.report.leakage import near_duplicates
from minimon.report.pages import write_report
from minimon.report.scores import read_scores
from minimon.report.text import attack_lines, closing_lines, reading, table, verdict_line

__all__ = [
    "attack_lines",
    "build_report",
    "closing_lines",
    "near_duplicates",
    "read_scores",
    "reading",
    "table",
    "verdict_line",
    "write_report",
]
