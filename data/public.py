"""Fetches public data sets, each file from its pinned address, and writes their rows for data/tasks/public.

    python data/public.py                                  # the sets of real.toml and real-small.toml, 45 MB
    python data/public.py --mixture data/mixtures/real-small.toml
    python data/public.py question spam --unlicensed       # sets by name; --list names them all
    python data/public.py --from https://mirror.example    # the same paths elsewhere, or below a folder
    python data/public.py --answers data/smollm2           # a model's own answers to the instructions

A file goes to data/public/<owner>/<name>/<commit>/<path> and is held to its sha256 (public.toml); what is
there and whole is left alone, what was cut off is continued. formatters.py turns a set into rows,
data/public/rows/<set>.jsonl. Each set has its own licence, which is printed; one for which no licence was
found is fetched with --unlicensed only.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import formatters  # noqa: E402

from minimon.files import ROOT, one_line, read_toml, refuse, sha256, write_text  # noqa: E402
from minimon.run.cli import OneLineParser, one_line_errors  # noqa: E402
from minimon.tasks import load_conversations, load_mixture  # noqa: E402

REGISTRY = ROOT / "data/public.toml"
MIXTURES = ["data/mixtures/real.toml", "data/mixtures/real-small.toml"]
FOLDER = ROOT / "data/public"
BLOCK = 2**16  # bytes
TIMEOUT = 30  # seconds without an answer
UNLICENSED = "none found"
LABEL_ROWS = 2000  # rows of a label kept of each set, picked by a hash: enough for any task, quick to read
ANSWER_TOKENS = 160  # the longest answer that a model gives to an instruction


def main(argv: list[str] | None = None) -> int:
    settings = parse(argv)
    sets = read_toml(settings.registry)
    if settings.list:
        print("\n".join(f"{name}: {table['licence']}" for name, table in sets.items()))
        return 0
    if settings.answers:
        return write_answers(settings.answers, Path(settings.folder) / "rows")
    chosen = choose(sets, settings)
    failures = []
    for name, table in chosen.items():
        print(f"{name}: {table['address']}, licence: {table['licence']}")
        failed = fetch_set(table, Path(settings.folder), settings.from_)
        failures += failed
        if not failed:
            write_rows(name, table, Path(settings.folder))
    refuse(failures, f"{len(failures)} files failed; run it again to go on: ")
    print(f"{len(chosen)} sets, their rows in {settings.folder}/rows")
    if not settings.sets:
        mixture = settings.mixture or MIXTURES[-1]
        print(f"train with: python train.py --model data/smollm2 --mixture {mixture}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("sets", nargs="*", help="names of sets; those of a mixture if none is given")
    parser.add_argument("--mixture", help="a mixture whose sets to fetch; if not given, real and real-small")
    parser.add_argument(
        "--from", dest="from_", help="a mirror's address or a folder, holding <owner>/<name>/<commit>/<path>"
    )
    parser.add_argument(
        "--unlicensed", action="store_true", help="fetch also sets for which no licence was found"
    )
    parser.add_argument(
        "--answers", metavar="MODEL", help="write this model's answers to the instructions fetched before"
    )
    parser.add_argument("--list", action="store_true", help="name the sets and their licences, fetch nothing")
    parser.add_argument("--folder", default=str(FOLDER), help="where files and rows go")
    parser.add_argument("--registry", default=str(REGISTRY), help="a TOML file of sets")
    return parser.parse_args(argv)


def choose(sets: dict, settings: argparse.Namespace) -> dict:
    mixtures = [settings.mixture] if settings.mixture else MIXTURES
    names = settings.sets or dict.fromkeys(name for mixture in mixtures for name in sets_of(mixture, sets))
    unknown = sorted(set(names) - set(sets))
    if unknown:
        raise ValueError(f"expected sets of {settings.registry}, got {', '.join(unknown)}; --list names them")
    refused = [name for name in names if sets[name]["licence"] == UNLICENSED]
    if refused and not settings.unlicensed:
        raise ValueError(
            f"no licence was found for {', '.join(refused)}; give --unlicensed to fetch them all the same"
        )
    return {name: sets[name] for name in names}


def sets_of(mixture_path: str, sets: dict) -> list[str]:
    """The sets that a mixture's tasks and instructions read."""
    mixture = load_mixture(mixture_path, check=False)
    paths = [task.path for task in mixture.all_tasks()]
    if mixture.instruct:
        paths.append(mixture.instruct.path)
    names = {set_of(path, sets) for path in paths if path.resolve().parent == FOLDER / "rows"}
    if not names:
        raise ValueError(f"{mixture_path}: expected tasks that read public sets, got none; nothing to fetch")
    return [name for name in sets if name in names]


def set_of(path: Path, sets: dict) -> str:
    """The set that a file of rows belongs to: the longest name that the file's begins with."""
    names = [name for name in sets if f"{path.stem}-".startswith(f"{name}-")]
    if not names:
        raise ValueError(
            f"{path}: expected the rows of a set of {REGISTRY.name}, got none; --list names them"
        )
    return max(names, key=len)


# ---- files ---------------------------------------------------------------------------------------


def local(table: dict, name: str, folder: Path) -> Path:
    """Where a set's file lies: the path of its address, so that no two sets get in each other's way."""
    return folder / urlsplit(table["address"]).path.strip("/") / name


def fetch_set(table: dict, folder: Path, mirror: str | None) -> list[str]:
    """What went wrong, a line a file; the others are fetched all the same."""
    failures = []
    for name, digest in table["files"].items():
        path = local(table, name, folder)
        try:
            fetch(remote(table["address"], name, mirror), path, digest)
        except (OSError, ValueError) as error:
            failures.append(one_line(error))
            print(f"  {name}: failed")
    return failures


def remote(address: str, name: str, mirror: str | None) -> str:
    """A file's own address, or the same path at or below a mirror."""
    path = f"{urlsplit(address).path.strip('/')}/{name}"
    if mirror is None:
        return f"{address}/{quote(name)}"
    return f"{mirror.rstrip('/')}/{quote(path)}" if "://" in mirror else str(Path(mirror) / path)


def fetch(address: str, path: Path, digest: str) -> None:
    """Into path.part, then by a rename to path. Raises OSError or ValueError."""
    if path.is_file() and sha256(path) == f"sha256:{digest}":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        stream, begin, total = open_at(address, have)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{address}: expected the file, got {error.code} {error.reason}") from error
    width = min(100, shutil.get_terminal_size().columns)
    bar = tqdm(
        desc=path.name[:40], total=total, initial=begin, unit="B", unit_scale=True, leave=False, ncols=width
    )
    with closing(stream), bar, open(part, "r+b" if have else "wb") as file:
        file.seek(begin)
        file.truncate()
        while block := stream.read(BLOCK):
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and part.stat().st_size < total:
        raise ValueError(
            f"{address}: expected {total} bytes, got {part.stat().st_size} before the connection ended"
        )
    found = sha256(part).removeprefix("sha256:")
    if found != digest:
        part.unlink()
        raise ValueError(
            f"{address}: expected sha256 {digest}, got {found}; nothing was kept; it serves another file"
        )
    os.replace(part, path)


def open_at(address: str, begin: int):
    """(stream, the byte it begins at, bytes in all or None), from `begin` on where the server can."""
    if "://" not in address:
        return open(address, "rb"), 0, os.path.getsize(address)
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    try:
        stream = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if begin and error.code == 416:  # the part is as long as the file, or longer: from the start
            return open_at(address, 0)
        raise
    resumed = stream.status == 206 and stream.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
    begin = begin if resumed else 0
    length = stream.headers.get("Content-Length")
    return stream, begin, begin + int(length) if length else None


# ---- rows ----------------------------------------------------------------------------------------


def write_rows(name: str, table: dict, folder: Path) -> None:
    """rows/<set>.jsonl, or a file for each part that the formatter names."""
    formatter = getattr(formatters, name.replace("-", "_"))
    files = [local(table, file, folder) for file in table["files"]]
    parts = defaultdict(list)
    try:
        for row in formatter(files):
            part = row.pop("part", None)
            parts[f"{name}-{part}" if part else name].append(row)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{name}: expected what formatters.{formatter.__name__} reads, got {error!r}"
        ) from error
    for part, rows in parts.items():
        write_jsonl(folder / f"rows/{part}.jsonl", bounded(rows))


def bounded(rows: list[dict]) -> list[dict]:
    """At most LABEL_ROWS rows of each label, in order; whole groups as far as that goes."""
    by_label = defaultdict(list)
    for number, row in enumerate(rows):
        digest = hashlib.sha256(
            f"kept {row.get('group')}".encode()
        ).hexdigest()  # another hash than a split's
        by_label[row.get("label")].append((digest, number))
    kept = [number for places in by_label.values() for _, number in sorted(places)[:LABEL_ROWS]]
    return [rows[number] for number in sorted(kept)]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"  {path}: {len(rows)} rows")


def write_answers(model_name: str, rows: Path) -> int:
    """rows/instruct-self.jsonl: the instructions of rows/instruct.jsonl with a model's own greedy answers.

    Training on them keeps a model's ways of answering as they were. Answers cut at the limit are left out."""
    from minimon.checkpoint import load_model  # torch is slow to import, and fetching needs none
    from minimon.generate import generate
    from minimon.tokenizer import load_tokenizer

    questions = [
        list(conversation.messages[:-1]) for conversation in load_conversations(rows / "instruct.jsonl")
    ]
    model, tokenizer = load_model(model_name), load_tokenizer(model_name)
    prompts = [tokenizer.chat(messages) for messages in questions]
    with tqdm(total=len(prompts), unit="answer") as bar:
        options = {"max_new_tokens": ANSWER_TOKENS, "stop_ids": tokenizer.stop_ids}
        answers = generate(model, prompts, **options, on_rows=bar.update)
    ended = []
    for messages, answer in zip(questions, answers, strict=True):
        if answer.ended and answer.ids:
            turn = {"role": "assistant", "content": tokenizer.decode(answer.ids).strip()}
            ended.append({"messages": [*messages, turn], "model": model_name})
    write_jsonl(rows / "instruct-self.jsonl", ended)
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
