"""The tree below a log line (-V): what an event holds, and the fields of device state, each at its offset."""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

import msgspec

from migsniff.core.events import (
    DeviceSection,
    Event,
    Field,
    PageCounts,
)
from migsniff.show.words import escape, name

RAW_BYTES_SHOWN: Final = 32
RUNS_SHOWN: Final = 16
GUTTER: Final = 10

# on the log line already, shown as a tree of their own (an image is one of the fields), or too long to show
_NOT_LISTED: Final = {
    *("channel", "direction", "offset", "size", "section_type", "idstr", "instance_id"),
    *("fields", "image", "text"),
}
_ADDRESSES: Final = {"first", "last", "address", "length", "total", "start"}


def tree(event: Event) -> Iterator[str]:
    """Lines for everything that `event` holds: a gutter with wire offset and size, then name and value."""
    for attribute in event.__struct_fields__:
        if attribute == "evidence":
            yield from _evidence(event)
        elif attribute not in _NOT_LISTED:
            yield from _facts(attribute, getattr(event, attribute), 0)
    if isinstance(event, DeviceSection):
        for state in event.fields:
            yield from field_lines(state, 0)


def _evidence(event: Event) -> Iterator[str]:
    """The bytes that prove a finding, where they stand."""
    raw: str = getattr(event, "evidence", "")
    if raw:
        begin = event.offset - getattr(event, "inside", 0)
        pairs = " ".join(raw[at : at + 2] for at in range(0, len(raw), 2))
        yield _line(f"evidence: {escape(pairs)}", 0, begin, len(raw) // 2)


def field_lines(field: Field, depth: int) -> Iterator[str]:
    """Lines of one field of device state and of everything in it."""
    label = name(field.name)
    if field.index is not None:
        label += f"[{field.index}]"
    elif field.array_len is not None:
        label += f"[{field.array_len}]"
    version = "" if field.version is None else f" version {field.version}"
    value = "" if field.children and field.value is None else _value(field)
    text = ", ".join(filter(None, (value, escape(field.meaning))))
    yield _line(
        f"{label}:{text and ' '}{text}  ({escape(field.type)}{version})", depth, field.offset, field.size
    )
    for child in field.children:
        yield from field_lines(child, depth + 1)


def value_text(field: Field) -> str:
    """What a leaf holds, and what that means."""
    return ", ".join(filter(None, (_value(field), escape(field.meaning))))


def _line(text: str, depth: int, offset: int | str = "", size: int | str = "") -> str:
    return f"{offset:>{GUTTER}} {size:>7}  {'  ' * depth}{text}"


def _facts(label: str, value: object, depth: int) -> Iterator[str]:
    """Lines for an attribute of an event, in the names and the order that the JSON has."""
    match value:
        case PageCounts():
            yield _line(f"{label}: {counts_text(value)}", depth)
        case msgspec.Struct():
            yield _line(f"{label}:", depth)
            for attribute in value.__struct_fields__:
                yield from _facts(attribute, getattr(value, attribute), depth + 1)
        case dict():
            yield _line(f"{label}:" if value else f"{label}: none", depth)
            for key, argument in value.items():
                yield from _facts(name(str(key)), argument, depth + 1)
        case tuple() if any(isinstance(element, (msgspec.Struct, tuple)) for element in value):
            yield _line(f"{label}: {len(value)}", depth)
            for index, element in enumerate(value):
                yield from _facts(f"{label}[{index}]", element, depth + 1)
        case tuple():
            yield _line(f"{label}: {_array(value) if value else 'none'}", depth)
        case int() if label in _ADDRESSES:
            yield _line(f"{label}: {value:#x} ({value})", depth)
        case None | "":
            return
        case 0 if label == "inside":
            return
        case _:
            yield _line(f"{label}: {_plain(value)}", depth)


def counts_text(counts: PageCounts) -> str:
    """Pages by kind, those kinds that there are: normal=12 zero=3 resent=1."""
    text = f"normal={counts.normal}" if counts.normal else ""
    if counts.zero:
        text += f" zero={counts.zero}"
    if counts.xbzrle:
        text += f" xbzrle={counts.xbzrle}"
    if counts.compressed:
        text += f" compressed={counts.compressed}"
    if counts.resent:
        text += f" resent={counts.resent}"
    return text.lstrip() or "no pages"


def _value(field: Field) -> str:
    value = field.value
    if field.type == "timer":
        return _timers(value) if isinstance(value, tuple) else _timer(value)
    if field.type == "unused_buffer" and _zero(field.raw):
        return "unused, all zero"
    if field.type == "nullptr":
        return "NULL"
    if value is None:
        if field.raw:
            return _raw(field.raw)
        return "" if field.meaning else f"{field.size} bytes, not kept"
    return _plain(value)


def _timers(values: tuple[object, ...]) -> str:
    more = f", ... ({len(values)} in all)" if len(values) > RUNS_SHOWN else ""
    return ", ".join(map(_timer, values[:RUNS_SHOWN])) + more


def _timer(value: object) -> str:
    return f"{value} ns ({value / 1e9:.6f} s)" if isinstance(value, int) else "not armed"


def _plain(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if value < 10 else f"{value} ({value:#x})"
        case str():
            return f'"{escape(value)}"'
        case tuple():
            return _array(value)
        case bytes():
            return _raw(value)
        case None:
            return "NULL"
        case _:
            return escape(str(value))


def _array(values: tuple[object, ...]) -> str:
    """Elements of an array: equal neighbours once with their number, the first RUNS_SHOWN such runs."""
    shown: list[str] = []
    for runs, (value, equal) in enumerate(groupby(values)):
        if runs == RUNS_SHOWN:
            shown.append(f"... ({len(values)} in all)")
            break
        length = sum(1 for _ in equal)
        text = f"{value:#x}" if type(value) is int and value > 9 else _plain(value)
        shown.append(text if length == 1 else f"{text} x{length}")
    return " ".join(shown)


def _raw(raw: bytes) -> str:
    if _zero(raw):
        return f"{len(raw)} bytes, all zero"
    if len(raw) <= RAW_BYTES_SHOWN:
        return raw.hex()
    return f"{raw[:RAW_BYTES_SHOWN].hex()}... ({len(raw)} bytes)"


def _zero(raw: bytes) -> bool:
    return raw.count(0) == len(raw)
