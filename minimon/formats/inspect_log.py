"""Inspect logs (.eval and .json) -> one record a sample, as a monitor may see it.

A record holds id (task id:sample id:epoch), task, model, sample, epoch, metadata, scores {scorer: value},
label, group and messages, or `skipped` with the reason. The label is ControlArena's: "attack" or "honest",
"unlabeled" where the log does not say, "conflict" where it says both. Nothing but the messages is for the
monitor: log, task and file names, metadata and scores give the label away. Of the messages, calls of tools
that were hidden from the monitor go with their results, others are shown as their monitor view, and what
follows the last assistant message is cut. `messages` is the final conversation: where the agent compacted its
context, `compacted` is true. Of an .eval log one sample is in memory at a time, a .json log is read whole.
"""

import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minimon.files import MAX_BYTES, parse_json, read_json

ZSTD = 93  # zip's number of the method
CONVERT = "inspect log convert PATH --to json --output-dir OUT --resolve-attachments full --stream 10"
ATTACHMENT = re.compile(r"attachment://([0-9a-zA-Z]+)")
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
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def read_log(path) -> Iterator[dict]:
    """Records of a log, one at a time. Raises ValueError naming the log and what in it is wrong."""
    path = Path(path)
    for found in zip_samples(path) if path.suffix == ".eval" else json_samples(path):
        try:
            yield record_of(found)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{found.where}: expected a sample of an Inspect log, got something else ({error!r})"
            ) from error


# ---- a sample as the monitor may see it ----------------------------------------------------------


def record_of(found: Sample) -> dict:
    header, sample = found.header, found.sample
    log, metadata = header.get("eval") or {}, sample.get("metadata") or {}
    epoch, scores = sample.get("epoch", 1), sample.get("scores") or {}
    record = {
        "id": f"{log.get('task_id', '')}:{sample['id']}:{epoch}",
        "task": log.get("task"),
        "model": log.get("model"),
        "sample": sample["id"],
        "epoch": epoch,
        "metadata": metadata,
        "scores": {name: score.get("value") for name, score in scores.items()},
        "label": control_label(metadata, log.get("metadata") or {}),
        "group": str(metadata.get("main_task_name") or sample["id"]),
    }
    messages = sample.get("messages") or []
    reason = skip_reason(header, sample, messages)
    if reason:
        return {**record, "skipped": reason}
    if any(event.get("event") == "compaction" for event in sample.get("events") or []):
        record["compacted"] = True
    attachments = sample.get("attachments") or {}
    try:
        return {**record, "messages": with_attachments(monitor_view(messages), attachments)}
    except LookupError:  # anybody in a conversation can write such a reference
        return {**record, "skipped": "missing attachment"}


def skip_reason(header: dict, sample: dict, messages: list[dict]) -> str | None:
    if header.get("invalidated") or sample.get("invalidation"):
        return "invalidated"
    if sample.get("error"):
        return "error"
    if not any(message.get("role") == "assistant" for message in messages):
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


def with_attachments(value, attachments: dict):
    """Strings that refer to an attachment become its text. Raises LookupError for one that is not there."""
    if isinstance(value, list):
        return [with_attachments(item, attachments) for item in value]
    if isinstance(value, dict):
        return {key: with_attachments(item, attachments) for key, item in value.items()}
    match = ATTACHMENT.fullmatch(value) if isinstance(value, str) else None
    return attachments[match[1]] if match else value


# ---- .eval: a zip --------------------------------------------------------------------------------


def zip_samples(path: Path) -> Iterator[Sample]:
    with open_zip(path) as archive:
        names = dict.fromkeys(archive.namelist())  # of one name the last member counts: a sample was retried
        samples = [name for name in names if re.fullmatch(r"samples/.+\.json", name)]
        if any(name.endswith("/skeleton.json") for name in samples):
            raise ValueError(
                f"{path}: expected one member a sample, got samples in chunks; convert the log with: {CONVERT}"
            )
        unfinished = "header.json" not in names
        header = read_member(archive, "_journal/start.json" if unfinished else "header.json", path)
        for name in samples:
            yield Sample(header, read_member(archive, name, path), f"{path}: {name}")


def open_zip(path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path}: expected a whole Inspect log, got an error: {error}; "
            "was the run killed while it wrote it?"
        ) from error


def read_member(archive: zipfile.ZipFile, name: str, path):
    try:
        member = archive.getinfo(name)
        if member.file_size > MAX_BYTES:
            raise ValueError(f"{member.file_size} bytes, of which {MAX_BYTES} would be read")
        zstd = member.compress_type == ZSTD and sys.version_info < (3, 14)
        data = read_zstd(archive, member) if zstd else archive.read(member)
        return parse_json(data.decode("utf-8-sig"), name)
    except Exception as error:  # zipfile, zlib and zstandard have many
        raise ValueError(f"{path}: {name}: expected a member with JSON, got an error: {error}") from error


def read_zstd(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member compressed with zstd, which zipfile itself reads from Python 3.14 on."""
    import zstandard

    archive.fp.seek(member.header_offset)
    name_size, extra_size = struct.unpack("<26xHH", archive.fp.read(30))
    archive.fp.seek(name_size + extra_size, 1)
    frames = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    data = frames.decompress(archive.fp.read(member.compress_size))
    if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
        raise ValueError(f"other than {member.file_size} bytes with the stored checksum; the log is damaged")
    return data


# ---- .json: one object ---------------------------------------------------------------------------


def json_samples(path: Path) -> Iterator[Sample]:
    log = read_json(path)
    if "eval" not in log or not isinstance(log.get("samples"), list):
        raise ValueError(
            f"{path}: expected an Inspect log, got a JSON object without eval and samples; "
            "rows of a .json file are a list"
        )
    for number, sample in enumerate(log["samples"], 1):
        yield Sample(log, sample, f"{path}: sample {number}")
