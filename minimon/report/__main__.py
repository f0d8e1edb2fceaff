"""python -m minimon.report RUN: report.md and report.html anew, of any finished run."""

from pathlib import Path

from minimon.files import read_json
from minimon.report.data import all_tasks
from minimon.report.pages import write_pages
from minimon.report.scores import AGAIN, read_scores, scores_file, text_hash
from minimon.report.text import reading, table, verdict_line
from minimon.run.cli import OneLineParser, one_line_errors, program
from minimon.tasks import load_mixture


def main(directory: Path) -> None:
    files = directory / "report.json", scores_file(directory)
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of a finished run, found none")
    report, scores = read_json(files[0]), read_scores(files[1])
    note = put_texts(scores, directory)
    try:
        write_pages(report, directory, scores, note)
        lines = [table(report), "", verdict_line(report), *reading(report)]
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{directory / 'report.json'}: expected a report of this version, got another ({error!r}); {AGAIN}"
        ) from error
    print("\n".join(lines))


def put_texts(scores: dict, directory: Path) -> str:
    """Hashes become the texts that the run's mixture still has -> what to say of those that stay hashes."""
    try:
        mixture = load_mixture(read_json(directory / "settings.json")["mixture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"Texts are shown by their hashes, since the mixture cannot be read: {error}"
    texts = {}
    for task in mixture.all_tasks():
        texts |= {text_hash(row.text): row.text for row in task.rows}
    for groups in scores.values():
        for task in all_tasks(groups):
            task.clusters[:] = [texts.get(name, name) for name in task.clusters]
    return "Where the mixture has them no more, texts are shown by their hashes."


if __name__ == "__main__":
    parser = OneLineParser(program(), description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    with one_line_errors():
        main(parser.parse_args().run)
