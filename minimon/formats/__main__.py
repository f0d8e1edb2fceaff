"""Logs and chats -> plain rows, once: a line {"id", "text", "label", "group"} each, on standard output.

python -m minimon.formats logs/*.eval > rows.jsonl         # Inspect logs, .eval or .json
python -m minimon.formats chats.jsonl > rows.jsonl         # lines {"messages": [...]}, or {"text": ...}
"""

import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

from minimon.files import read_rows
from minimon.formats.inspect_log import is_log, read_log
from minimon.formats.transcript import text_of
from minimon.run.cli import OneLineParser, one_line_errors


def main(argv: list[str] | None = None) -> int:
    about = {"description": __doc__, "formatter_class": RawDescriptionHelpFormatter}
    parser = OneLineParser("python -m minimon.formats", **about)
    parser.add_argument("files", nargs="+", type=Path, help="Inspect logs, or rows with messages or text")
    parser.add_argument("--reasoning", action="store_true", help="show the reasoning of models in the texts")
    options = parser.parse_args(argv)
    skipped = Counter()
    for file in options.files:
        for where, record in records_of(file):
            if "skipped" in record:
                skipped[record["skipped"]] += 1
            else:
                print(json.dumps(plain_row(record, where, options.reasoning)))
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        sys.stderr.write(f"samples left out: {reasons}\n")
    return 0


def records_of(file: Path):
    """(where, record) of each row or sample."""
    if is_log(file):
        for record in read_log(file):
            yield f"{file}: {record['id']}", record
    else:
        for number, record in read_rows(file):
            yield f"{file}:{number}", {"id": f"{file.name}:{number}", **record}


def plain_row(record: dict, where: str, reasoning: bool) -> dict:
    text = text_of(record, "messages" if "messages" in record else "text", where, reasoning=reasoning)
    kept = {key: record[key] for key in ("label", "group") if key in record}
    return {"id": record["id"], "text": text, **kept}


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
