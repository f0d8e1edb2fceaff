"""Inspect logs (.eval and .json) -> one record a sample, as a monitor may see it.

A record holds id (task id:sample id:epoch), task, model, sample, epoch, metadata, scores {scorer: value},
label, group and messages, or `skipped` with the reason. The label is ControlArena's: "attack" or "honest",
"unlabeled" where the log does not say, "conflict" where it says both. Nothing but the messages is for the
monitor: log, task and file names, metadata and scores give the label away. Of the messages, calls of tools
that were hidden from the monitor go with their results, others are shown as their monitor view, and what
follows the last assistant message is cut. `messages` is the final conversation: where the agent compacted its
context, `compacted` is true. One sample is in memory at a time.
"""

import importlib
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minimon.files import MAX_BYTES, parse_json, unique_keys

ZSTD = 93  # zip's number of the method, unknown to zipfile before Python 3.14
CONVERT = "inspect log convert PATH --to json --output-dir OUT --resolve-attachments full --stream 10"
ATTACHMENT = re.compile(r"(?:attachment|tc)://([0-9a-zA-Z]+)")
MESSAGE_FIELDS = ("role", "content", "tool_call_id", "function", "error")


class Sample(NamedTuple):
    header: dict  # what the log says of all samples
    sample: dict
    where: str  # log and sample


def is_log(path) -> bool:
    """By its suffix and first character: a .json file of rows is a list, a log is an object."""
    path = Path(path)
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def read_log(path) -> Iterator[dict]:
    """Records of a log, one at a time. Raises ValueError naming the log and what in it is wrong."""
    path = Path(path)
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    for found in zip_samples(path) if zipped else json_samples(path):
        try:
            yield record_of(found)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{found.where}: expected a sample of an Inspect log, got something else ({error!r})"
            ) from error


# ---- a sample as the monitor may see it ----------------------------------------------------------


def record_of(found: Sample) -> dict:
    header, sample, where = found
    log, metadata = header.get("eval") or {}, sample.get("metadata") or {}
    epoch = sample.get("epoch", 1)
    record = {
        "id": f"{log.get('task_id', '')}:{sample['id']}:{epoch}",
        "task": log.get("task"),
        "model": log.get("model"),
        "sample": sample["id"],
        "epoch": epoch,
        "metadata": metadata,
        "scores": scores_of(sample),
        "label": control_label(metadata, log.get("metadata") or {}),
        "group": str(metadata.get("main_task_name") or sample["id"]),
    }
    reason = skip_reason(header, sample)
    if reason:
        return {**record, "skipped": reason}
    old = sample.get("transcript") if isinstance(sample.get("transcript"), dict) else {}
    events = sample.get("events") or old.get("events") or []
    if any(isinstance(event, dict) and event.get("event") == "compaction" for event in events):
        record["compacted"] = True
    attachments = sample.get("attachments") or old.get("content") or {}
    messages = with_attachments(monitor_view(sample["messages"]), attachments, where)
    return {**record, "messages": messages}


def scores_of(sample: dict) -> dict:
    """Old logs have one `score` in place of scores by name."""
    scores = sample.get("scores") or ({"score": sample["score"]} if sample.get("score") else {})
    return {name: score.get("value") if isinstance(score, dict) else score for name, score in scores.items()}


def skip_reason(header: dict, sample: dict) -> str | None:
    if header.get("invalidated") or sample.get("invalidation"):
        return "invalidated"
    if sample.get("error"):
        return "error"
    messages = sample.get("messages") or []
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        return "no assistant message"
    return None


def control_label(metadata: dict, log: dict) -> str:
    """ControlArena says it twice: by the mode, and by whether there is a side task."""
    mode = metadata.get("eval_mode") or log.get("mode")
    labels = {label for label in ("attack", "honest") if label == mode}
    if "side_task_name" in metadata:
        labels.add("attack" if metadata["side_task_name"] else "honest")
    if len(labels) > 1:
        return "conflict"
    return labels.pop() if labels else "unlabeled"


def monitor_view(messages: list[dict]) -> list[dict]:
    """What ControlArena shows a monitor, up to the last assistant message; of each message only its words."""
    shown, hidden, renamed, end = [], set(), {}, 0  # hidden: ids of calls; renamed: id of a call -> tool
    for message in messages:
        result_of = message.get("tool_call_id")
        if message.get("role") == "tool" and result_of in hidden:
            continue
        kept = {key: message[key] for key in MESSAGE_FIELDS if message.get(key) is not None}
        if message.get("role") == "tool" and result_of in renamed:
            kept["function"] = renamed[result_of]
        metadata = message.get("metadata") or {}
        secret = metadata.get("tools_hidden_from_monitor") or []
        kept["tool_calls"] = []
        for call in message.get("tool_calls") or []:
            if call.get("function") in secret:
                hidden.add(call.get("id"))
                continue
            view = call_view(call, metadata)
            if view and call.get("id"):
                renamed[call["id"]] = view["function"]
            kept["tool_calls"].append(view or call)
        shown.append(kept)
        end = len(shown) if message["role"] == "assistant" else end
    return shown[:end]


def call_view(call: dict, metadata: dict) -> dict | None:
    """How a call is shown to monitors where it is not shown as it is; old logs tell it by the tool's name."""
    views = metadata.get("monitor_views_by_call_id")
    if views is None:
        return (metadata.get("monitor_views") or {}).get(call.get("function"))
    return views.get(call.get("id"))


def with_attachments(value, attachments: dict, where: str):
    """Strings that refer to an attachment become its text."""
    if isinstance(value, list):
        return [with_attachments(item, attachments, where) for item in value]
    if isinstance(value, dict):
        return {key: with_attachments(item, attachments, where) for key, item in value.items()}
    match = ATTACHMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in attachments:
        raise ValueError(
            f"{where}: expected an attachment {match[1]!r}, found none; convert the log with: {CONVERT}"
        )
    return attachments[match[1]]


# ---- .eval: a zip --------------------------------------------------------------------------------


def zip_samples(path: Path) -> Iterator[Sample]:
    with open_zip(path) as archive:
        names = set(archive.namelist())
        starts = [name for name in ("header.json", "_journal/start.json") if name in names]
        header = read_member(archive, archive.getinfo(starts[0]), path) if starts else None
        if not isinstance(header, dict):
            raise ValueError(
                f"{path}: expected an Inspect log, got a zip without header.json and _journal/start.json"
            )
        for member in sample_members(archive, path):
            yield Sample(header, read_member(archive, member, path), f"{path}: {member.filename}")


def open_zip(path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: expected a whole Inspect log, got an error: {error}; "
            "was the run killed while it wrote it?"
        ) from error


def sample_members(archive: zipfile.ZipFile, path) -> list[zipfile.ZipInfo]:
    """Of members with one name the last counts: a sample was retried."""
    members = {}
    for member in archive.infolist():
        if re.fullmatch(r"samples/.+\.json", member.filename):
            members[member.filename] = member
    if any(name.endswith("/skeleton.json") for name in members):
        raise ValueError(
            f"{path}: expected one member a sample, got samples in chunks; convert the log with: {CONVERT}"
        )
    return list(members.values())


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path):
    where = f"{path}: {member.filename}"
    try:
        if member.file_size > MAX_BYTES:
            raise ValueError(f"{member.file_size} bytes, of which {MAX_BYTES} would be read")
        zstd = member.compress_type == ZSTD
        data = read_zstd(archive, member, where) if zstd else archive.read(member)
        return parse_json(data.decode("utf-8-sig"), where)
    except (
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
    ) as error:  # RuntimeError: encrypted
        raise ValueError(f"{where}: expected a whole member with JSON, got an error: {error}") from error


def read_zstd(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> bytes:
    decompress = zstd_decompressor()
    if decompress is None:
        raise ValueError(
            f"{where}: is compressed with zstd, which this Python cannot read; "
            f"pip install zstandard, or convert the log with: {CONVERT}"
        )
    archive.fp.seek(member.header_offset)
    name_size, extra_size = struct.unpack("<26xHH", archive.fp.read(30))
    archive.fp.seek(name_size + extra_size, 1)
    try:
        data = decompress(archive.fp.read(member.compress_size))
    except Exception as error:  # each of the packages has its own
        raise ValueError(f"{where}: expected zstd data, got an error: {error}") from error
    if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
        raise ValueError(
            f"{where}: expected {member.file_size} bytes with the stored checksum, got others; "
            "the log is damaged"
        )
    return data


def zstd_decompressor() -> Callable[[bytes], bytes] | None:
    """Of all frames (a large member has several), by Python's module (3.14), its backport or zstandard."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return importlib.import_module(name).decompress
    with suppress(ImportError):
        decompressor = importlib.import_module("zstandard").ZstdDecompressor()
        return lambda data: decompressor.decompressobj(read_across_frames=True).decompress(data)
    return None


# ---- .json: one object ---------------------------------------------------------------------------


def json_samples(path: Path) -> Iterator[Sample]:
    """The header is what stands before the samples."""
    with open(path, encoding="utf-8-sig") as file:
        stream, header = JsonStream(file, path), {}
        stream.take("{")
        while True:
            key = stream.value()
            stream.take(":")
            if key == "samples":
                break
            header[key] = stream.value()
            if stream.peek() != ",":
                break
            stream.take(",")
        if key != "samples" or "eval" not in header:
            raise ValueError(
                f"{path}: expected an Inspect log, got a JSON object without eval and then samples; "
                "rows of a .json file are a list"
            )
        stream.take("[")
        while stream.peek() != "]":
            sample = stream.value()
            identity = sample.get("id") if isinstance(sample, dict) else "?"
            yield Sample(header, sample, f"{path}: sample {identity}")
            del sample  # before the next one is read
            if stream.peek() == ",":
                stream.take(",")


class JsonStream:
    """JSON values one after another, each whole in memory and no more than it."""

    def __init__(self, file, path):
        self.file, self.path, self.text = file, path, ""  # text: what was read and not yet decoded
        self.decoder = json.JSONDecoder(object_pairs_hook=unique_keys)

    def more(self) -> bool:
        try:
            read = self.file.read(max(2**16, len(self.text)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: expected UTF-8 text, got an error: {error}") from error
        self.text += read
        return bool(read)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            self.text = self.text.lstrip()
            if self.text or not self.more():
                return self.text[:1]

    def take(self, char: str) -> None:
        if self.peek() != char:
            found = self.peek() or "the end of the file"
            raise ValueError(f"{self.path}: expected {char!r} in the JSON of a log, got {found!r}")
        self.text = self.text[1:]

    def value(self):
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text)
            except (ValueError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError)
                if not cut or not self.more():
                    raise ValueError(
                        f"{self.path}: expected the JSON of an Inspect log, got {error}"
                    ) from error
                continue
            if end < len(self.text) or not self.more():  # a number at the end may go on
                self.text = self.text[end:]
                return value
