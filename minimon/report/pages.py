"""What a run's directory holds of its report."""

from pathlib import Path

from minimon.files import write_json, write_text
from minimon.metrics import Scores
from minimon.report.figure import write_figure
from minimon.report.html import page
from minimon.report.scores import write_scores
from minimon.report.text import markdown


def write_report(report: dict, directory, scores: dict[str, dict[str, list[Scores]]]) -> None:
    """scores.jsonl, the pages, and report.json last: with it a run is finished."""
    directory = Path(directory)
    write_scores(scores, directory / "scores.jsonl")
    write_pages(report, directory, scores)
    write_json(directory / "report.json", report)


def write_pages(report: dict, directory, scores: dict[str, dict[str, list[Scores]]], note: str = "") -> None:
    """report.md, report.html, and report.png where matplotlib is there. note: on the texts in report.html."""
    directory, pages = Path(directory), {}
    pages["report.md"] = markdown(report)
    pages["report.html"] = page(report, scores, note)
    for name, text in pages.items():
        write_text(directory / name, text)
    write_figure(report, directory / "report.png")
