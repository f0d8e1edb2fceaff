"""What a run's directory holds of its report."""

from pathlib import Path

from minimon.files import write_json, write_text
from minimon.report.data import SplitScores
from minimon.report.figure import write_figure
from minimon.report.html import page
from minimon.report.scores import write_scores
from minimon.report.text import markdown


def write_report(report: dict, directory, scores: SplitScores) -> None:
    """scores.jsonl, the pages, and report.json last: with it a run is finished."""
    directory = Path(directory)
    write_scores(scores, directory / "scores.jsonl")
    write_pages(report, directory, scores)
    write_json(directory / "report.json", report)


def write_pages(report: dict, directory, scores: SplitScores, note: str = "") -> None:
    """report.md, report.html, and report.png where matplotlib is there. note: on the texts in report.html."""
    directory = Path(directory)
    write_text(directory / "report.md", markdown(report))
    png = directory / "report.png"
    figure = png.read_bytes() if write_figure(report, png) else b""
    write_text(directory / "report.html", page(report, scores, note, figure))
