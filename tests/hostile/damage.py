"""Bytes and JSON values damaged in every way, as hypothesis draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

GONE = "<gone>"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 7, 10**20, 0.5, 1e308, float("nan"), float("inf"), "", "x", "0", "../../x", "/dev/zero", "\0"),
    *("{a:>3000000000}", "9" * 400, [], {}, [[]], [1, 2], ["a"], {"a": {}}, {"": None}, [None] * 3, GONE),
)
PIECES = (
    b"",
    b"\0" * 64,
    b"\xff" * 8,
    b"[" * 50_000,
    b"9" * 5000,
    b"{}",
    b"null",
    b"\n",
    b"\x80\x00\x00",
    b"PK\3\4",
    b"-512",
)


class Damage(NamedTuple):
    """One change of a file: at the share ``where`` of its length (or of its JSON values)."""

    kind: str
    where: float
    length: int
    piece: bytes
    value: Any


def damages() -> st.SearchStrategy[list[Damage]]:
    """One to three changes."""
    place = st.floats(0, 1, exclude_max=True)
    kinds = st.sampled_from(("flip", "flip", "cut", "insert", "drop", "zero", "copy", "value", "value", "value"))
    pieces = st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=16))
    one = st.builds(Damage, kinds, place, st.integers(1, 300), pieces, st.sampled_from(VALUES))
    return st.lists(one, min_size=1, max_size=3)


def damaged(name: str, content: bytes, changes: list[Damage]) -> bytes:
    """The content of the file ``name`` after all changes."""
    for change in changes:
        content = _changed(name, content, change)
    return content


def _changed(name: str, content: bytes, change: Damage) -> bytes:
    at = int(change.where * len(content))
    until = at + change.length
    match change.kind:
        case "flip":
            return content[:at] + bytes([content[at] ^ (change.length % 255 + 1)]) + content[at + 1 :] if content else b""
        case "cut":
            return content[:at]
        case "insert":
            return content[:at] + change.piece + content[at:]
        case "drop":
            return content[:at] + content[until:]
        case "zero":
            return content[:at] + bytes(len(content[at:until])) + content[until:]
        case "copy":
            return content[:at] + content[: change.length] + content[until:]
    return _other_value(name, content, change)


def _other_value(name: str, content: bytes, change: Damage) -> bytes:
    """Another value in the JSON that a file is, or holds; the content as it is where there is none."""
    try:
        if name.endswith(".json"):
            return _swapped(content, change)
        if name.endswith(".jsonl"):
            lines = content.splitlines(keepends=True)
            number = change.length % len(lines)
            lines[number] = _swapped(lines[number], change) + b"\n"
            return b"".join(lines)
        if name.endswith(".safetensors"):
            return _in_header(content, change)
    except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError, RecursionError):  # damaged before
        pass
    return content


def _in_header(content: bytes, change: Damage) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end]
    if change.length % 3:  # in the JSON text inside, for the most part
        found = json.loads(header)
        texts = [name for name, text in found["__metadata__"].items() if text.startswith("{")]
        inside = found["__metadata__"][texts[0]]
        found["__metadata__"][texts[0]] = _swapped(inside.encode(), change).decode()
        header = json.dumps(found).encode()
    else:
        header = _swapped(header, change)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _swapped(text: bytes, change: Damage) -> bytes:
    found = json.loads(text)
    places = list(_places(found))
    if not places:
        return json.dumps(change.value).encode()
    holder, key = places[int(change.where * len(places))]
    if change.value == GONE:
        del holder[key]
    else:
        holder[key] = change.value
    return json.dumps(found).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in list(items):
        yield value, key
        yield from _places(inside)
