"""Files: JSON, TOML and tables read with errors that name file and line, safetensors read lazily.

Everything is written by one rename.
"""

import csv
import glob
import gzip
import hashlib
import io
import json
import os
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2**31  # that a compressed file, or a member of one, may hold
ROW_FILES = ".jsonl, .json, .csv or .tsv file, or such a .gz"


def one_line(value) -> str:
    """A value as text, its white space as single spaces."""
    return " ".join(str(value).split())


def refuse(problems: list[str], where: str) -> None:
    """Raises ValueError with the first three, if there are any."""
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{where}{'; '.join(problems[:3])}{more}")


# ---- finding -------------------------------------------------------------------------------------


def shipped(path) -> Path:
    """Paths are relative to where you are; what the repository ships under data/ is also found from elsewhere."""
    path = Path(path)
    return ROOT / path if path.parts[:1] == ("data",) and not path.exists() else path


def resolve(path_or_hub_id, patterns=("*.json", "model*.safetensors", "*.jinja")) -> Path:
    """A local checkpoint's directory as it is, or a hub id's, its files fetched or found in the cache."""
    directory = shipped(path_or_hub_id)
    if path_or_hub_id != "" and directory.is_dir():
        return directory
    from huggingface_hub import snapshot_download  # slow to import, seldom needed

    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{path_or_hub_id}: expected a checkpoint directory or a hub id, found neither ({reason}); "
            "check the spelling, or download the model where there is a network and name its directory"
        ) from error


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The file of that name below `folder`, or in order those that a name with * or ? stands for."""
    if "\0" in pattern:
        raise ValueError(f"{folder}: expected the path of a file, got {pattern!r}")
    if not set(pattern) & set("*?"):
        return [folder / pattern]
    return [folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True))]


def sha256(path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


# ---- text, JSON, TOML ----------------------------------------------------------------------------


def read_text(path) -> str:
    """UTF-8 text without a byte order mark; of a .gz file its content, at most MAX_BYTES."""
    path = existing(path)
    return decoded(unpacked(path) if path.suffix == ".gz" else path.read_bytes(), path)


def existing(path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file, found none")
    return path


def decoded(data: bytes, where) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: expected UTF-8 text, got byte {error.object[error.start]:#04x} "
            f"at offset {error.start}; convert the file to UTF-8"
        ) from error


def unpacked(path) -> bytes:
    with gzip.open(path) as content:
        try:
            data = content.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file, got an error: {error}; fetch it again"
            ) from error
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"{path}: expected at most {MAX_BYTES} bytes in a compressed file, got more; unpack it"
        )
    return data


def parse_json(text: str, where, expected: str = "JSON"):
    """A JSON value. A key twice in an object is refused, since readers differ in which they take."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:  # of many lines the message says which
        where, problem = f"{where}:{error.lineno}" if "\n" in text.strip() else where, error.msg
    except RecursionError:
        problem = "one that is nested too deeply"
    except ValueError as error:  # a number of thousands of digits, a key twice
        problem = str(error)
    raise ValueError(f"{where}: expected {expected}, got {problem}")


def unique_keys(pairs: list[tuple]) -> dict:
    table = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r} twice in an object")
        table[key] = value
    return table


def read_json(path) -> dict:
    return json_row(read_text(path), path, "a JSON object")


def read_optional(path) -> dict:
    """The file's object; an empty one where there is no file."""
    return read_json(path) if Path(path).is_file() else {}


def json_row(text: str, where, expected: str = "one JSON object a line") -> dict:
    row = parse_json(text, where, expected)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected {expected}, got {type(row).__name__}")
    return row


def read_toml(path) -> dict:
    """A TOML table, whose values can be shown in a message."""
    text = read_text(path).replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
        repr(table)  # neither nested beyond all bounds nor with numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected TOML, got an error: {error}") from error
    return table


# ---- rows ----------------------------------------------------------------------------------------


def read_rows(path) -> list[tuple[int, dict]]:
    """Rows of a .jsonl, .json, .csv or .tsv file, or such a .gz, with the line each began on.

    Rows of a .json file have a number instead."""
    path = Path(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl":
        return list(read_jsonl(path))
    if kind == ".json":
        return list(enumerate(json_rows(path), 1))
    if kind in (".csv", ".tsv"):
        return list(table_rows(path, "," if kind == ".csv" else "\t"))
    raise ValueError(
        f"{path}: expected rows in a {ROW_FILES}, got {path.suffix or 'no suffix'!r}; convert it once"
    )


def read_jsonl(path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line that is not blank; a line at a time, but of a .gz file."""
    path = existing(path)
    if path.suffix == ".gz":
        yield from json_lines(unpacked(path).split(b"\n"), path)
        return
    with open(path, "rb") as lines:
        yield from json_lines(lines, path)


def json_lines(lines: Iterable[bytes], name, first: int = 1) -> Iterator[tuple[int, dict]]:
    """Lines of `name`, of which the first has this number -> (line number, object) of each that is not blank."""
    for number, line in enumerate(lines, first):
        where = f"{name}:{number}"
        text = decoded(line, where)
        if text.strip():
            yield number, json_row(text, where)


def json_rows(path) -> list[dict]:
    rows = parse_json(read_text(path), path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{path}: expected a JSON list of objects, got something else; "
            "one object a line belongs in a .jsonl file"
        )
    return rows


def table_rows(path, delimiter: str) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a table with a header line."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames
        if names is None:
            raise ValueError(f"{path}: expected a header line, got an empty file")
        if len(set(names)) < len(names):
            raise ValueError(f"{path}:1: expected a name of its own for each column, got {', '.join(names)}")
        line = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}:{line}: expected {len(names)} fields, as in the header; got another number"
                )
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected a well-formed line, got {error}") from error


# ---- safetensors ---------------------------------------------------------------------------------


def open_tensors(path):
    """A safetensors file, opened lazily: keys(), get_slice(), get_tensor(), metadata()."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got an error: {error}; fetch or write it again"
        ) from error


def tensor(file, name: str, path, shape: tuple | None = None):
    """One tensor of an opened file, of finite numbers. Raises ValueError naming file and tensor."""
    try:
        found = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected tensor {name}, got an error: {error}") from error
    fits = shape is None or tuple(found.shape) == tuple(shape)
    if not found.is_floating_point() or not found.isfinite().all() or not fits:
        in_shape = "" if shape is None else f" in shape {tuple(shape)}"
        raise ValueError(
            f"{path}: expected finite numbers{in_shape} in {name}, "
            f"got others ({found.dtype}, {tuple(found.shape)})"
        )
    return found


# ---- writing -------------------------------------------------------------------------------------


@contextmanager
def replacing(path):
    """A temporary name to write to, renamed at the end: readers see the old file or the new one.

    A failure keeps the old one."""
    temporary = f"{path}.tmp"
    try:
        yield temporary
        os.chmod(temporary, permissions())  # safetensors writes for its owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise OSError(
            f"{path}: expected to write it, got an error: {error}; what was there before is as it was"
        ) from error


def permissions() -> int:
    """Of a new file: what the umask leaves, which can only be read by setting it."""
    umask = os.umask(0o022)
    os.umask(umask)
    return 0o666 & ~umask


def write_text(path, text: str) -> None:
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(text)


def write_json(path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {"format": "pt", **(metadata or {})})
