"""Files: JSON and TOML read with errors that name the file and line, safetensors read lazily, everything written by one rename."""

import csv
import glob
import gzip
import hashlib
import io
import json
import os
import tomllib
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

LIMIT = 2 ** 31                                # bytes that a compressed file, or a member of one, may hold


def resolve(path_or_hub_id, patterns=("*.json", "model*.safetensors", "*.jinja")) -> Path:
    """A checkpoint's directory: a local one as it is; otherwise a hub id's, its files fetched or found in the cache."""
    if os.path.isdir(path_or_hub_id):
        return Path(path_or_hub_id)
    from huggingface_hub import snapshot_download          # slow to import, seldom needed
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{path_or_hub_id}: expected a checkpoint directory or a hub id, found neither ({reason}); "
                                "check the spelling, or download the model where there is a network and name its directory") from error


def read_text(path) -> str:
    """UTF-8 text, a byte order mark dropped; of a .gz file what it holds, which may be LIMIT bytes."""
    if Path(path).suffix != ".gz":
        data = Path(path).read_bytes()
    else:
        with open(path, "rb") as file, gzip.GzipFile(fileobj=file) as content:
            try:
                data = content.read(LIMIT + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: expected a whole gzip file, got an error: {error}; fetch it again") from error
        if len(data) > LIMIT:
            raise ValueError(f"{path}: expected at most {LIMIT} bytes in a compressed file, got more; unpack it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at offset {error.start}; "
                         "convert the file to UTF-8") from error


def parse_json(text: str, where, expected: str = "JSON"):
    """A JSON value; a key that stands twice in an object is refused, since readers differ in which they take."""
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:      # of many lines the message says which
        where, problem = f"{where}:{error.lineno}" if "\n" in text.strip() else where, error.msg
    except RecursionError:
        problem = "one that is nested too deeply"
    except ValueError as error:                # a number of thousands of digits, a key twice
        problem = str(error)
    raise ValueError(f"{where}: expected {expected}, got {problem}")


def once(pairs: list[tuple]) -> dict:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in table if names.count(name) > 1)!r} twice in an object")
    return table


def read_json(path) -> dict:
    """A JSON object."""
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_toml(path) -> dict:
    """A TOML table, whose values can be told in a message."""
    text = read_text(path).replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
        repr(table)                            # neither nested beyond all bounds nor with numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected TOML, got an error: {error}") from error
    return table


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The file of that name, or those that a name with * or ? stands for, in order."""
    if "\0" in pattern:
        raise ValueError(f"{folder}: expected the path of a file, got {pattern!r}")
    names = sorted(glob.glob(pattern, root_dir=folder, recursive=True)) if set(pattern) & set("*?") else [pattern]
    return [folder / name for name in names]


def read_rows(path, kind: str | None = None, columns: tuple = ()) -> list[tuple[int, dict]]:
    """Rows of a file with the line (json: the number) each began on. kind: jsonl, json, csv, tsv or lines; by the suffix if None.

    Lines give rows {"line"}. With columns a table has no header and no quoting."""
    path = Path(path)
    kind = kind or path.with_suffix("" if path.suffix == ".gz" else path.suffix).suffix.lstrip(".")
    if kind == "jsonl":
        return list(read_jsonl(path))
    if kind == "json":
        return list(enumerate(json_rows(path), 1))
    if kind in ("csv", "tsv"):
        return list(csv_rows(path, "\t" if kind == "tsv" else ",", columns))
    if kind in ("lines", "txt"):
        return [(number, {"line": line.rstrip("\r")}) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    raise ValueError(f"{path}: expected rows in a .jsonl, .json, .csv, .tsv or .txt file, or such a .gz, got "
                     f"{path.suffix or 'no suffix'!r}; give the task a format")


def read_jsonl(path):
    """(line number, object) of each line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, json_row(line, f"{path}:{number}")


def json_row(line: str, where: str) -> dict:
    row = parse_json(line, where, "one JSON object a line")
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected one JSON object a line, got {type(row).__name__}")
    return row


def json_rows(path):
    rows = parse_json(read_text(path), path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a JSON list of objects, got something else; one object a line belongs in a .jsonl file")
    return rows


def csv_rows(path, delimiter: str, columns: tuple = ()):
    options = {"fieldnames": columns, "quoting": csv.QUOTE_NONE} if columns else {"strict": True}
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, **options)
    csv.field_size_limit(2 ** 31 - 1)
    try:
        if reader.fieldnames is None:
            raise ValueError(f"{path}: expected a header line, got an empty file")
        if len(set(reader.fieldnames)) < len(reader.fieldnames):
            raise ValueError(f"{path}:1: expected a name of its own for each column, got {', '.join(reader.fieldnames)}")
        before = reader.line_num
        for row in reader:
            if None in row or None in row.values():
                source = "columns" if columns else "the header"
                raise ValueError(f"{path}:{before + 1}: expected {len(reader.fieldnames)} fields, as in {source}; got another number")
            yield before + 1, row
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected a well-formed line, got {error}") from error


def open_tensors(path):
    """A safetensors file, opened lazily: keys(), get_slice(), get_tensor(), metadata()."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file, found none")
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got an error: {error}; fetch or write it again") from error


def tensor(file, name: str, path, shape: tuple | None = None):
    """One tensor of an opened file, of finite numbers. Raises ValueError naming file and tensor."""
    try:
        found = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected tensor {name}, got an error: {error}") from error
    if not found.is_floating_point() or not found.isfinite().all() or shape not in (None, tuple(found.shape)):
        raise ValueError(f"{path}: expected finite numbers{f' in shape {tuple(shape)}' if shape is not None else ''} in {name}, got others "
                         f"({found.dtype}, {tuple(found.shape)})")
    return found


def sha256(path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path):
    """A temporary name to write to; then on disk and renamed: a reader sees the old file or the new one. What fails leaves the old one."""
    temporary = f"{path}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise OSError(f"{path}: expected to write it, got an error: {error}; what was there before is as it was") from error


def write_text(path, text: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def write_json(path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    with replacing(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt", **(metadata or {})})
