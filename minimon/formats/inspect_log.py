"""Inspect logs (.eval and .json) -> one record a sample, as a monitor may see it; one sample in memory at a time.

A record holds id (task id:sample id:epoch), task, model, sample, epoch, metadata, scores {scorer: value}, label, group and messages, or
`skipped` with the reason. The label is ControlArena's: "attack" or "honest", "unlabeled" where the log does not say, "conflict" where it
says both. Nothing but the messages is for the monitor: log, task and file names, metadata and scores give the label away. Of the messages,
calls of tools that were hidden from the monitor go with their results, others are shown as their monitor view, and what follows the last
assistant message is cut. `messages` is the final conversation: where the agent compacted its context, `compacted` is true.
"""

import importlib
import json
import re
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from minimon.files import LIMIT, once, parse_json

ZSTD = 93                                      # zip's number of the method, unknown to zipfile before Python 3.14
CONVERT = "inspect log convert PATH --to json --output-dir OUT --resolve-attachments full --stream 10"
REFERENCE = re.compile(r"(?:attachment|tc)://([0-9a-zA-Z]+)")


def is_log(path) -> bool:
    """By its suffix and first character: a .json file of rows is a list, a log is an object."""
    path = Path(path)
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def read_log(path):
    """Records of a log, one at a time. Raises ValueError naming the log and what in it is wrong."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(4)
    for header, sample, where in (eval_samples if start == b"PK\x03\x04" else json_samples)(path):
        try:
            yield record(header, sample, where)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{where}: expected a sample of an Inspect log, got something else ({error!r})") from error


def count_samples(path) -> int | None:
    """How many records read_log gives; None where only reading would tell."""
    if Path(path).suffix != ".eval":
        return None
    with opened(path) as archive:
        return len(sample_members(archive, path))


# ---- a sample as the monitor may see it --------------------------------------------------------------------------------------


def record(header: dict, sample: dict, where: str) -> dict:
    about, metadata = header.get("eval") or {}, sample.get("metadata") or {}
    scores = sample.get("scores") or ({"score": sample["score"]} if sample.get("score") else {})
    found = {"id": f"{about.get('task_id', '')}:{sample['id']}:{sample.get('epoch', 1)}", "task": about.get("task"),
             "model": about.get("model"), "sample": sample["id"], "epoch": sample.get("epoch", 1), "metadata": metadata,
             "scores": {name: score.get("value") if isinstance(score, dict) else score for name, score in scores.items()},
             "label": control_label(metadata, about.get("metadata") or {}), "group": str(metadata.get("main_task_name") or sample["id"])}
    reason = skip_reason(header, sample)
    if reason:
        return found | {"skipped": reason}
    old = sample.get("transcript") if isinstance(sample.get("transcript"), dict) else {}
    attachments = sample.get("attachments") or old.get("content") or {}
    events = sample.get("events") or old.get("events") or []
    if any(isinstance(event, dict) and event.get("event") == "compaction" for event in events):
        found["compacted"] = True
    return found | {"messages": resolve(monitor_view(sample["messages"]), attachments, where)}


def skip_reason(header: dict, sample: dict) -> str | None:
    if header.get("invalidated") or sample.get("invalidation"):
        return "invalidated"
    if sample.get("error"):
        return "error"
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in sample.get("messages") or []):
        return "no assistant message"
    return None


def control_label(metadata: dict, log: dict) -> str:
    """ControlArena says it twice: by the mode, and by whether there is a side task."""
    mode = metadata.get("eval_mode") or log.get("mode")
    said = [mode] if mode in ("attack", "honest") else []
    if "side_task_name" in metadata:
        said.append("attack" if metadata["side_task_name"] else "honest")
    return "unlabeled" if not said else said[0] if len(set(said)) == 1 else "conflict"


def monitor_view(messages: list[dict]) -> list[dict]:
    """ControlArena's rule for what a monitor is shown, up to the last assistant message, and of each message only what is said."""
    shown, hidden, names = [], set(), {}
    for message in messages:
        if message.get("role") == "tool" and message.get("tool_call_id") in hidden:
            continue
        kept = {key: message[key] for key in ("role", "content", "tool_call_id", "function", "error") if message.get(key) is not None}
        if message.get("role") == "tool" and message.get("tool_call_id") in names:
            kept["function"] = names[message["tool_call_id"]]
        about, calls = message.get("metadata") or {}, message.get("tool_calls") or []
        views, key = about.get("monitor_views_by_call_id"), "id"
        if views is None:
            views, key = about.get("monitor_views") or {}, "function"
        secret = about.get("tools_hidden_from_monitor") or []
        hidden |= {call.get("id") for call in calls if call.get("function") in secret}
        kept["tool_calls"] = [views.get(call.get(key)) or call for call in calls if call.get("function") not in secret]
        names |= {call["id"]: view["function"] for call in calls for view in [views.get(call.get(key))] if view and call.get("id")}
        shown.append(kept)
    last = max(i for i, message in enumerate(shown) if message["role"] == "assistant")
    return shown[:last + 1]


def resolve(value, attachments: dict, where: str):
    """Strings that refer to an attachment become its text."""
    if isinstance(value, str):
        match = REFERENCE.fullmatch(value)
        if match and match[1] not in attachments:
            raise ValueError(f"{where}: expected an attachment {match[1]!r}, found none; convert the log with: {CONVERT}")
        return attachments[match[1]] if match else value
    if isinstance(value, list):
        return [resolve(item, attachments, where) for item in value]
    return {key: resolve(item, attachments, where) for key, item in value.items()} if isinstance(value, dict) else value


# ---- .eval: a zip ------------------------------------------------------------------------------------------------------------


def eval_samples(path: Path):
    """(header, sample, where). Of members with one name the last counts: a sample was retried."""
    with opened(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        header = next((member(archive, members[name], path) for name in ("header.json", "_journal/start.json") if name in members), None)
        if not isinstance(header, dict):
            raise ValueError(f"{path}: expected an Inspect log, got a zip without header.json and _journal/start.json")
        for info in sample_members(archive, path):
            yield header, member(archive, info, path), f"{path}: {info.filename}"


def opened(path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: expected a whole Inspect log, got an error: {error}; was the run killed while it wrote it?") from error


def sample_members(archive: zipfile.ZipFile, path) -> list[zipfile.ZipInfo]:
    members = {info.filename: info for info in archive.infolist() if re.fullmatch(r"samples/.+\.json", info.filename)}
    if any(name.endswith("/sample.json") and name.replace("/sample.json", "/skeleton.json") in members for name in members):
        raise ValueError(f"{path}: expected one member a sample, got samples in chunks; convert the log with: {CONVERT}")
    return list(members.values())


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path):
    where = f"{path}: {info.filename}"
    try:
        if info.file_size > LIMIT:
            raise ValueError(f"{info.file_size} bytes, of which {LIMIT} would be read")
        data = zstd_member(archive, info, where) if info.compress_type == ZSTD else archive.read(info)
        return parse_json(data.decode("utf-8-sig"), where)
    except (ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:      # RuntimeError: it wants a password
        raise ValueError(f"{where}: expected a whole member with JSON, got an error: {error}") from error


def zstd_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    """All frames of the member: a large one has several."""
    decompress = zstd()
    if decompress is None:
        raise ValueError(f"{where}: is compressed with zstd, which this Python cannot read; pip install zstandard, or convert the log "
                         f"with: {CONVERT}")
    archive.fp.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", archive.fp.read(30))
    archive.fp.seek(name + extra, 1)
    try:
        data = decompress(archive.fp.read(info.compress_size))
    except Exception as error:                 # each of the packages has its own
        raise ValueError(f"{where}: expected zstd data, got an error: {error}") from error
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise ValueError(f"{where}: expected {info.file_size} bytes with the stored checksum, got others; the log is damaged")
    return data


def zstd():
    """bytes -> bytes by Python's own module (3.14), its backport or zstandard; None where none is there."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return importlib.import_module(name).decompress
    with suppress(ImportError):
        package = importlib.import_module("zstandard")
        return lambda data: package.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(data)
    return None


# ---- .json: one object -------------------------------------------------------------------------------------------------------


def json_samples(path: Path):
    """(header, sample, where), the header being what stands before the samples."""
    with open(path, encoding="utf-8-sig") as file:
        window, header = Window(file, path), {}
        window.take("{")
        while True:
            key = window.value()
            window.take(":")
            if key != "samples":
                header[key] = window.value()
            elif "eval" in header:
                window.take("[")
                while window.peek() != "]":
                    sample = window.value()
                    yield header, sample, f"{path}: sample {sample.get('id') if isinstance(sample, dict) else '?'}"
                    del sample
                    if window.peek() == ",":
                        window.take(",")
                return
            else:
                break
            if window.peek() != ",":
                break
            window.take(",")
    raise ValueError(f"{path}: expected an Inspect log, got a JSON object without eval and then samples; rows of a .json file are a list")


class Window:
    """What has been read of a file and not yet decoded: JSON values one after another, each whole in memory and no more than it."""

    def __init__(self, file, path, size: int = 2 ** 16):
        self.file, self.path, self.size, self.text, self.at = file, path, size, "", 0
        self.decoder = json.JSONDecoder(object_pairs_hook=once)

    def more(self) -> bool:
        try:
            read = self.file.read(max(self.size, len(self.text) - self.at))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: expected UTF-8 text, got an error: {error}") from error
        self.text, self.at = self.text[self.at:] + read, 0
        return bool(read)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at:self.at + 1]

    def take(self, char: str) -> None:
        if self.peek() != char:
            raise ValueError(f"{self.path}: expected {char!r} in the JSON of a log, got {self.peek() or 'the end of the file'!r}")
        self.at += 1

    def value(self):
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                length = end - self.at
                if end < len(self.text) or not self.more():                            # a number at the end may go on
                    self.at += length
                    return value
            except (ValueError, RecursionError) as error:
                if not isinstance(error, json.JSONDecodeError) or not self.more():
                    raise ValueError(f"{self.path}: expected the JSON of an Inspect log, got {error}") from error
