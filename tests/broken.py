"""Broken files by code: what happens to files on their way, and what somebody could do to them on purpose.

`json_cases(value)`, `toml_cases(table)`, `text_cases(text)`, `tensor_cases(tensors)` and `byte_cases(data)`
give (name, bytes) pairs.
"""

import json
import random
import struct

import numpy as np
from safetensors.numpy import save

DEEP = 100_000
LONG = "x" * 100_000
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**8,
    2**31,
    2**70,
    10**400,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "x",
    "\0",
    "\ud800",
    "../../etc/passwd",
    LONG,
    [],
    [None],
    [[]],
    ["x", 1],
    {},
    {"a": 1},
    {"": None},
]
LITERALS = [
    "true",
    "false",
    "0",
    "-1",
    "1.5",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e400",
    "nan",
    "-inf",
    '""',
    '"x"',
    '"\\u0000"',
    '" "',
    '"../../x"',
    '"/x/*"',
    '"**/*"',
    '"a**b*"',
    '"*"',
    '"#"',
    '"["',
    '"{"',
    "[]",
    "[[]]",
    "[nan]",
    '["x", 1]',
    '["\\u0000"]',
    "{}",
    "{ a = 1 }",
    "{ a = [] }",
    "1979-05-27",
    "07:32:00",
    f'"{LONG}"',
]


def json_cases(value, each: int = 8):
    """Every place in a JSON value with `each` of VALUES there, or nothing; then what can happen to its text."""
    rng = random.Random(0)
    for path in places(value):
        for new in rng.sample(VALUES, each):
            yield (
                f"{'.'.join(map(str, path))} = {json.dumps(new)[:30]}",
                json.dumps(put(value, path, new)).encode(),
            )
        yield f"{'.'.join(map(str, path))} gone", json.dumps(put(value, path, ...)).encode()
    yield from ((json.dumps(other)[:20], json.dumps(other).encode()) for other in VALUES)
    yield from text_cases(json.dumps(value, indent=1))
    for name, text in (
        ("deep lists", "[" * DEEP),
        ("deep lists, closed", "[" * DEEP + "]" * DEEP),
        ("deep tables", '{"a":' * DEEP),
        ("a number of 5000 digits", f'{{"a": {"9" * 5000}}}'),
        ("a number beyond all", '{"a": 1e999}'),
    ):
        yield name, text.encode()
    if isinstance(value, dict) and value:
        first = json.dumps(next(iter(value)))
        yield "a key twice", f"{json.dumps(value)[:-1]}, {first}: 1}}".encode()


def text_cases(text: str):
    """Encodings, cuts, bytes that are no text."""
    data = text.encode()
    yield from [
        ("nothing", b""),
        ("white space", b" \n\n\t"),
        ("a byte order mark", b"\xef\xbb\xbf" + data),
        ("a mark alone", b"\xef\xbb\xbf"),
        ("UTF-16", text.encode("utf-16")),
        ("UTF-32", text.encode("utf-32")),
        ("bytes that are no text", b"\xff\xfe\xfd" + data),
        ("Latin-1", data + "é".encode("latin-1")),
        ("a surrogate in UTF-8", data + b"\xed\xa0\x80"),
        ("zeros", b"\0" * 100),
        ("zeros at the end", data + b"\0\0"),
        ("twice", data + data),
        ("Windows lines", data.replace(b"\n", b"\r\n")),
        ("old Mac lines", data.replace(b"\n", b"\r")),
        ("markup", b"<!DOCTYPE html><html>" + data),
        ("an archive", b"PK\x03\x04" + data),
        ("gzip that is none", b"\x1f\x8b\x08\0" + data),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ]
    yield from ((f"cut at {cut} of 12", data[: len(data) * cut // 12]) for cut in range(1, 12))


def byte_cases(data: bytes, count: int, seed: int = 0):
    """Bytes changed, left out, put in."""
    rng = random.Random(seed)
    for i in range(count):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 4, 32))):
            at = rng.randrange(min(len(broken), rng.choice((64, 1024, len(broken)))))
            if rng.random() < 0.6:
                broken[at] = rng.randrange(256)
            elif rng.random() < 0.5:
                del broken[at]
            else:
                broken.insert(at, rng.randrange(256))
        yield f"bytes {i}", bytes(broken)


def toml_cases(table: dict[str, str], head: str = ""):
    """table: key -> literal, under the line `head`. Each key with other literals, left out, given twice; then
    what can happen to the text."""

    def text(entries):
        return head + "".join(f"{key} = {literal}\n" for key, literal in entries.items())

    for key in table:
        for literal in LITERALS:
            yield f"{key} = {literal[:30]}", text(table | {key: literal}).encode()
        yield f"{key} gone", text({name: literal for name, literal in table.items() if name != key}).encode()
        yield f"{key} twice", (text(table) + f"{key} = {table[key]}\n").encode()
    yield from text_cases(text(table))
    for name, more in (
        ("deep lists", "z = " + "[" * DEEP),
        ("deep tables", "z = " + "{ a = " * DEEP),
        ("deep keys", ".".join("a" * 5000) + " = 1"),
        ("an unknown key", "zzz = 1"),
    ):
        yield name, (text(table) + more + "\n").encode()


def tensor_cases(tensors: dict[str, np.ndarray]):
    """A safetensors file with its header changed entry by entry, its length wrong, its data cut or no numbers."""
    data = save(tensors, {"format": "pt"})
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    for length in (0, 1, 7, size - 1, size + 1, size + 8, len(data), 2**31, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", struct.pack("<Q", length) + data[8:]
    for name, text in json_cases({key: header[key] for key in list(header)[:3]}):
        yield f"header: {name}", struct.pack("<Q", len(text)) + text + body
    for key in list(header)[1:4]:
        for dtype in ("F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X"):
            text = json.dumps({**header, key: {**header[key], "dtype": dtype}}).encode()
            yield f"header: {key} {dtype}", struct.pack("<Q", len(text)) + text + body
        for shape in (
            [],
            [0],
            [-1],
            [2**40, 2**40],
            [1] * 100,
            header[key]["shape"][::-1],
            [1, *header[key]["shape"]],
        ):
            text = json.dumps({**header, key: {**header[key], "shape": shape}}).encode()
            yield f"header: {key} {shape}", struct.pack("<Q", len(text)) + text + body
    for bad in (np.nan, np.inf):
        yield (
            f"{bad}",
            save({name: np.full_like(value, bad) for name, value in tensors.items()}, {"format": "pt"}),
        )
    yield "another tensor", save({**tensors, "zzz": np.zeros(3, np.float32)}, {"format": "pt"})
    yield from text_cases("no tensors")
    yield from byte_cases(data, 60)


def places(value, path=()):
    """Paths to all that is in a JSON value; of a list the first two."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def put(value, path, new):
    """A copy with `new` at the path; ... takes out what is there."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy
