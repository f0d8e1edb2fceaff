"""What a run's directory holds of its report."""

from pathlib import Path

from minimon.files import write_json, write_text
from minimon.metrics import SplitScores
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
    """report.md and report.html. note: on the texts in report.html."""
    write_text(Path(directory) / "report.md", markdown(report))
    write_text(Path(directory) / "report.html", page(report, scores, note))
