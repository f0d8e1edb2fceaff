"""python -m minimon.report RUN: report.md, report.html and report.png anew, of any finished run."""

import argparse
from pathlib import Path

from minimon.files import read_json
from minimon.report import read_scores, reading, table, verdict_line, write_pages
from minimon.report.scores import text_hash
from minimon.run.cli import one_line_errors, shipped
from minimon.tasks import load_mixture


def main(directory: Path) -> None:
    for name in ("report.json", "scores.jsonl"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: expected a file of a finished run, found none")
    report = read_json(directory / "report.json")
    scores, note = with_texts(read_scores(directory / "scores.jsonl"), directory)
    try:
        write_pages(report, directory, scores, note)
        lines = [table(report), "", verdict_line(report), *reading(report)]
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{directory / 'report.json'}: expected a report of this version, got another ({error!r}); "
            "measure the run again: python eval.py --adapter RUN --out DIRECTORY"
        ) from error
    print("\n".join(lines))


def with_texts(scores: dict, directory: Path) -> tuple[dict, str]:
    """Hashes replaced by the texts that the mixture of the run still has, and what to say of the others."""
    try:
        mixture = load_mixture(shipped(read_json(directory / "settings.json")["mixture"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return (
            scores,
            f"Texts are shown by their hashes, since the mixture cannot be read: {error}",
        )
    texts = {}
    for task in mixture.all_tasks():
        texts |= {text_hash(row.text): row.text for row in task.rows}
    missing = 0
    for groups in scores.values():
        for task in [task for tasks in groups.values() for task in tasks]:
            missing += sum(name not in texts for name in task.clusters)
            task.clusters[:] = [texts.get(name, name) for name in task.clusters]
    return (
        scores,
        f"{missing} texts are shown by their hashes: the mixture has them no more" if missing else "",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    with one_line_errors():
        main(parser.parse_args().run)
