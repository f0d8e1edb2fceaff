"""A file of rows or a log of any kind that is read -> records, which are dicts of fields."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from minimon.files import read_rows
from minimon.formats.inspect_log import is_log, read_log


def read_records(path: Path) -> Iterator[tuple[str, dict]]:
    """(file:line, record) of each row of a file; of a log (log:id, record) of each sample not skipped."""
    for number, record in cached_records(path.resolve(), path.stat().st_mtime_ns, path):
        yield f"{path}:{number}", record


@lru_cache(maxsize=64)
def cached_records(resolved: Path, modified: int, path: Path) -> list[tuple]:
    """Many tasks share a file: it is read once for as long as it was not modified."""
    if not is_log(path):
        return read_rows(path)
    return [(record["id"], record) for record in read_log(path) if "skipped" not in record]


def lookup(record: dict, name: str, where: str, default=...):
    """The field `name`; dots descend. `default` where it is missing, ValueError if none is given."""
    value = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or key not in value:
            if default is not ...:
                return default
            fields = ", ".join(map(str, record)) or "an empty row"
            raise ValueError(f"{where}: expected a field {name!r}, got {fields}")
        value = value[key]
    return value


def same(a, b) -> bool:
    """Equal in value and in kind: 1 is 1.0, but not true."""
    numbers = {type(a), type(b)} == {int, float}
    return (numbers or type(a) is type(b)) and a == b
