"""Fetch the public data sets of a mixture, each file from its pinned address, and hold it to its sha256.

    python data/download.py                                                  # the twelve sets of data/mixtures/public.toml
    python data/download.py --from https://mirror.example                    # the same paths at another address, or below a folder

A file lies where its task reads it, data/public/<owner>/<name>/<commit>/<path>. What is there and whole is left alone, what was cut off is
gone on with. Each set has its own licence, which is printed; a set without one is fetched with --unlicensed only.
"""

import os
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minimon.run.cli import one_line_errors, parse, setting, shipped  # noqa: E402
from minimon.files import sha256  # noqa: E402
from minimon.tasks import load_mixture  # noqa: E402

BLOCK = 2 ** 16                                # bytes
TIMEOUT = 30                                   # seconds without an answer


@dataclass(frozen=True)
class Settings:
    mixture: str = setting("data/mixtures/public.toml", "fetch the sets of this mixture's tasks")
    from_: str | None = setting(None, "a mirror's address or a folder, holding <owner>/<name>/<commit>/<path>; each set's own if not given")
    unlicensed: bool = setting(False, "fetch also sets for which no licence was found")


def main(settings: Settings) -> int:
    mixture = load_mixture(shipped(settings.mixture), check=False)
    tasks = mixture.all_tasks()
    sources = {(source.address, *source.files): task for task in tasks if (source := task.reading.source)}
    if not sources:
        raise ValueError(f"{settings.mixture}: expected tasks with a source, got none; there is nothing to fetch")
    refused = [task.name for task in sources.values() if not task.reading.source.licensed]
    if refused and not settings.unlicensed:
        raise ValueError(f"{settings.mixture}: no licence was found for the sets of {', '.join(refused)}; give --unlicensed to fetch them "
                         "all the same, or leave them out of the mixture")
    failures, files = [], 0
    for task in sources.values():
        source = task.reading.source
        print(f"{task.name}: {source.address}, licence: {source.licence}")
        for name, digest in source.files.items():
            files += 1
            try:
                fetch(wanted(source.address, name, settings.from_), task.path / source.folder / name, digest)
            except (OSError, ValueError) as error:             # the others are fetched all the same
                failures.append(" ".join(str(error).split()))
                print(f"  {name}: failed")
    if failures:
        raise ValueError(f"{len(failures)} of {files} files failed; run it again to go on: {'; '.join(failures[:3])}"
                         + (f"; and {len(failures) - 3} more" if len(failures) > 3 else ""))
    print(f"{files} files, all as pinned; train with: python train.py --mixture {settings.mixture}")
    return 0


def wanted(address: str, name: str, base: str | None) -> str:
    """Where a file is fetched from: its own address, or the same path at or below `base`."""
    path = f"{urlsplit(address).path.strip('/')}/{name}"
    if base is None:
        return f"{address}/{quote(name)}"
    return f"{base.rstrip('/')}/{quote(path)}" if "://" in base else str(Path(base) / path)


def fetch(address: str, path: Path, digest: str) -> None:
    """Into path.part, then by a rename to path. Raises OSError or ValueError."""
    if path.is_file() and sha256(path) == f"sha256:{digest}":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        with opened(address, have) as (stream, begin, total), open(part, "r+b" if have else "wb") as file:
            file.seek(begin)
            file.truncate()
            with tqdm(desc=path.name[:40], total=total, initial=begin, unit="B", unit_scale=True, leave=False,
                      ncols=min(100, shutil.get_terminal_size().columns)) as bar:
                while block := stream.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        raise ValueError(f"{address}: expected the file, got {error.code} {error.reason}") from error
    if total is not None and part.stat().st_size < total:
        raise ValueError(f"{address}: expected {total} bytes, got {part.stat().st_size} before the connection ended")
    if (found := sha256(part)) != f"sha256:{digest}":
        part.unlink()
        raise ValueError(f"{address}: expected sha256 {digest}, got {found[7:]}; nothing was kept; the address serves another file")
    os.replace(part, path)


class opened:
    """(stream, the byte it begins at, bytes in all or None), from `begin` on where the server can."""

    def __init__(self, address: str, begin: int):
        self.address, self.begin = address, begin

    def __enter__(self):
        if "://" not in self.address:
            self.stream = open(self.address, "rb")
            return self.stream, 0, os.fstat(self.stream.fileno()).st_size
        self.stream, begin = self.request(self.begin)
        length = self.stream.headers.get("Content-Length")
        return self.stream, begin, begin + int(length) if length else None

    def request(self, begin: int):
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        try:
            stream = urllib.request.urlopen(urllib.request.Request(self.address, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if begin and error.code == 416:                    # the part is as long as the file, or longer: from the start
                return self.request(0)
            raise
        resumed = stream.status == 206 and stream.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
        return stream, begin if resumed else 0

    def __exit__(self, *error):
        self.stream.close()


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(parse(Settings, description=__doc__.split("\n")[0])))
