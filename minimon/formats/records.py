"""Rows as they lie in public files and logs -> records, by options of the task file instead of a script for each set.

A record is a dict of fields. Fields that begin with @ are made here: @file, the file it came from; @name and @value, of the field that
gave this row where one record gives many (`each`); @join, the record of another file that a field points to.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from minimon.files import find_files, read_rows, sha256
from minimon.formats.inspect_log import is_log, read_log

FORMATS = ("jsonl", "json", "csv", "tsv", "lines", "log")
KEYS = {"format", "columns", "each", "join", "keep", "drop", "source"}
MISSING = object()


@dataclass(frozen=True)
class Source:
    """Where public files come from. They lie below the folder that the task's `rows` names, under the address's own path."""

    address: str                               # https://host/owner/name/commit
    files: dict[str, str]                      # path below the address -> sha256 in hex
    licence: str                               # "none found" where none is: fetched only when asked

    @property
    def folder(self) -> str:
        return urlsplit(self.address).path.strip("/")

    @property
    def licensed(self) -> bool:
        return not self.licence.startswith("none")


@dataclass(frozen=True)
class Reading:
    """How records are read."""

    format: str | None = None                  # one of FORMATS; the file's suffix says it if None
    columns: tuple = ()                        # names of the columns of a table without header and quoting
    each: tuple = ()                           # fields that give a row each
    join: dict = field(default_factory=dict)   # field: what points, file and key: what is pointed to
    keep: dict = field(default_factory=dict)   # field -> values: other rows are left out; a text that ends with * stands for many
    drop: dict = field(default_factory=dict)   # field -> values: these rows are left out
    source: Source | None = None


def make_reading(table: dict, problems: list[str]) -> Reading:
    """The options of a task's table; what is wrong with them is added to `problems`."""
    kind, source, join = table.get("format"), table.get("source"), table.get("join", {})
    if kind is not None and kind not in FORMATS:
        problems.append(f"expected format to be one of {', '.join(FORMATS)}, got {kind!r}")
    for key in ("columns", "each"):
        if not isinstance(table.get(key, []), list) or not all(isinstance(name, str) for name in table.get(key, [])):
            problems.append(f"expected a list of field names for {key}, got {table[key]!r}")
    for key in ("keep", "drop"):
        if not isinstance(table.get(key, {}), dict) or not all(isinstance(values, list) for values in table.get(key, {}).values()):
            problems.append(f"expected {key} = {{ field = [values] }}, got {table[key]!r}")
    if join and (not isinstance(join, dict) or set(join) != {"field", "file", "key"} or not all(map(is_name, join.values()))):
        problems.append(f"expected join = {{ field = ..., file = ..., key = ... }}, got {join!r}")
    if source is not None:
        problems += source_problems(source)
    if problems:
        return Reading()
    return Reading(kind, tuple(table.get("columns", ())), tuple(table.get("each", ())), join, table.get("keep", {}), table.get("drop", {}),
                   Source(**source) if source is not None else None)


def is_name(value) -> bool:
    return isinstance(value, str) and "\0" not in value


def source_problems(source) -> list[str]:
    if not isinstance(source, dict) or set(source) != {"address", "files", "licence"} or not isinstance(source["files"], dict):
        return [f"expected a table source with address, files and licence, got {source!r}"]
    problems = [f"source: expected 64 hex digits of sha256 for {name!r}, got {digest!r}" for name, digest in source["files"].items()
                if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef")]
    problems += [f"source: expected a path below the address, got {name!r}" for name in source["files"]
                 if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    address = str(source["address"])
    parts = PurePosixPath(urlsplit(address).path.strip("/")).parts
    if not address.startswith(("https://", "http://")) or not parts or ".." in parts:
        problems.append(f"source: expected the address of a folder on the web, got {address!r}")
    if not isinstance(source["licence"], str) or not source["licence"].strip() or not source["files"]:
        problems.append("source: expected a licence in words, or \"none found\", and at least one file")
    return problems


def records(path: Path, reading: Reading):
    """(file:line, record) of every row of the task's files. Raises FileNotFoundError or ValueError naming file and line."""
    pointed = joined(path, reading) if reading.join else {}
    for name, file in row_files(path, reading):
        for number, record in cached_rows(file, reading.format, reading.columns):
            where = f"{file}:{number}"
            record = {**record, "@file": name}
            if reading.join:
                value = str(lookup(record, reading.join["field"], where))
                if value not in pointed:
                    raise ValueError(f"{where}: expected {reading.join['field']} to point to a row of {reading.join['file']}, got "
                                     f"{value!r}")
                record["@join"] = pointed[value]
            for row in [{**record, "@name": name, "@value": lookup(record, name, where)} for name in reading.each] or [record]:
                if kept(row, reading, where):
                    yield where, row


def row_files(path: Path, reading: Reading) -> list[tuple[str, Path]]:
    """[(name, file)] of the rows; those of a source are held to their hashes."""
    if reading.source:
        names = [name for name in reading.source.files if name != reading.join.get("file")]
        return [(name, source_file(path, reading.source, name)) for name in names]
    files = find_files(path.parent, path.name)
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: expected a file of rows, found none")
    return [(file.name, file) for file in files]


def source_file(folder: Path, source: Source, name: str) -> Path:
    path = folder / source.folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of {source.address}, found none; fetch it with: python data/download.py")
    key = path.resolve(), path.stat().st_mtime_ns
    if key not in CHECKED:
        if (found := sha256(path)) != f"sha256:{source.files[name]}":
            raise ValueError(f"{path}: expected sha256 {source.files[name]}, got {found[7:]}; remove it and fetch it again with: "
                             "python data/download.py")
        CHECKED.add(key)
    return path


def joined(path: Path, reading: Reading) -> dict[str, dict]:
    name, key = reading.join["file"], reading.join["key"]
    file = source_file(path, reading.source, name) if reading.source else path.parent / name
    return {str(lookup(record, key, f"{file}:{number}")): record for number, record in cached_rows(file, None, ())}


def kept(record: dict, reading: Reading, where: str) -> bool:
    def among(name, values):
        value = lookup(record, name, where, MISSING)
        return any(isinstance(v, str) and v.endswith("*") and isinstance(value, str) and value.startswith(v[:-1]) or same(value, v)
                   for v in values)
    return all(among(*item) for item in reading.keep.items()) and not any(among(*item) for item in reading.drop.items())


ROWS = {}                                      # (path, format, columns) -> (modification time, rows): many tasks share a file
CHECKED = set()                                # (path, modification time) of files whose hash was right


def cached_rows(path: Path, kind: str | None, columns: tuple) -> list[tuple]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of rows, found none")
    key, stamp = (path.resolve(), kind, columns), path.stat().st_mtime_ns
    if ROWS.get(key, (None,))[0] != stamp:
        if kind == "log" or kind is None and is_log(path):
            rows = [(record["id"], record) for record in read_log(path) if "skipped" not in record]
        else:
            rows = read_rows(path, kind, columns)
        ROWS[key] = stamp, rows
    return ROWS[key][1]


def lookup(record: dict, name: str, where: str, default=...):
    """The field `name`; dots descend. `default` where it is missing, an error if none is given."""
    value = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or key not in value:
            if default is not ...:
                return default
            raise ValueError(f"{where}: expected a field {name!r}, got {', '.join(map(str, record)) or 'an empty row'}")
        value = value[key]
    return value


def same(a, b) -> bool:
    """Equal in value and in kind: 1 is not true."""
    return type(a) is type(b) and a == b or {type(a), type(b)} == {int, float} and a == b
