"""Files: JSON and TOML read with errors that name the file and line, safetensors read lazily, everything written by one rename."""

import csv
import gzip
import hashlib
import io
import json
import os
import tomllib
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


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
    """UTF-8 text, a byte order mark dropped; of a .gz file what it holds."""
    data = Path(path).read_bytes()
    try:
        data = gzip.decompress(data) if Path(path).suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, got an error: {error}; fetch it again") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at offset {error.start}; "
                         "convert the file to UTF-8") from error


def read_json(path) -> dict:
    """A JSON object."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: expected JSON, got {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected JSON, got one that is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_toml(path) -> dict:
    try:
        return tomllib.loads(read_text(path).replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected TOML, got an error: {error}") from error


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
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else "one that is nested too deeply"
        raise ValueError(f"{where}: expected one JSON object a line, got {problem}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected one JSON object a line, got {type(row).__name__}")
    return row


def json_rows(path):
    try:
        rows = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}:{getattr(error, 'lineno', 1)}: expected JSON, got {getattr(error, 'msg', 'too deep a nesting')}") \
            from error
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


def sha256(path) -> str:
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path, text: str) -> None:
    """Write to a temporary name, flush to disk, rename: a reader sees the old file or the new one."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    temporary = f"{path}.tmp"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt", **(metadata or {})})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
