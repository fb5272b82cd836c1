"""Fields of device state by their path: `device.pckbd.kbd.status`, `device.cpu.env.regs[3]`.

A path is compared part by part. Names that QEMU wrote with dots and indices (`ar.pm1.evt.sts`, `config[0]`)
are parts of their own; one that is no such word is one part, `["..."]` in a filter. An index may be left out,
which means all elements; so may what stands before the last parts, if no field has exactly that path.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from migsniff.core.events import DeviceSection, Field
from migsniff.filter.tree import Part

_WORD: Final = r"[A-Za-z0-9_/-]+"
_NAME: Final = re.compile(rf"{_WORD}(?:\[\d{{1,9}}\])*(?:\.{_WORD}(?:\[\d{{1,9}}\])*)*")
_PART: Final = re.compile(rf"{_WORD}|\[(\d+)\]")
_PLAIN: Final = re.compile(_WORD)
_ESCAPED: Final = re.compile(r'[\\"]|[^\x20-\x7e]')


@lru_cache(maxsize=8192)  # the same names for each element, each device, each migration
def parts_of(name: str) -> tuple[Part, ...]:
    """The parts of a name that QEMU gave: "regs[3].x" is regs, 3, x."""
    if not _NAME.fullmatch(name):
        return (name,)
    return tuple(int(match[1]) if match[1] else match[0] for match in _PART.finditer(name))


def parts_of_field(field: Field) -> tuple[Part, ...]:
    """The parts that a field adds to the path of what it stands in."""
    parts = parts_of(field.name)
    return parts if field.index is None else (*parts, field.index)


class Found(NamedTuple):
    """A field, or an element of it: what its value is, in all the ways in which it can be compared."""

    value: object
    raw: bytes
    meaning: str = ""


class Device(NamedTuple):
    """A path in the state of a device: its name, and the parts behind it."""

    name: str
    path: tuple[Part, ...]

    def __str__(self) -> str:
        return "device" + written((self.name, *self.path))

    def has(self, section: DeviceSection) -> bool:
        """Whether a section is of this device: by its idstr or that's last part, with its instance or not."""
        idstr, name = section.idstr, self.name
        if idstr == name or idstr.rpartition("/")[2] == name:
            return True
        short, slash, instance = name.rpartition("/")
        if not slash or instance != str(section.instance_id):
            return False
        return short in (idstr, idstr.rpartition("/")[2])

    def found(self, section: DeviceSection) -> list[Found]:
        """The fields of a section with this path."""
        if not self.has(section):
            return []
        whole, ends = _search(section.fields, self.path)
        if not whole and not ends and isinstance(self.path[-1], int):  # an element of a plain array
            whole, ends = _search(section.fields, self.path[:-1])
            elements = (_element(field, self.path[-1]) for field in whole or ends)
            return [element for element in elements if element is not None]
        return [Found(field.value, field.raw, field.meaning) for field in whole or ends]


def _search(fields: Sequence[Field], path: tuple[Part, ...]) -> tuple[list[Field], list[Field]]:
    """Fields whose path is `path`, and those whose path ends with it."""
    whole: list[Field] = []
    ends: list[Field] = []
    if path:
        for field, parts in walk(fields):
            left = _left(parts, path)
            if left == 0:
                whole.append(field)
            elif left is not None:
                ends.append(field)
    return whole, ends


def walk(fields: Iterable[Field]) -> Iterator[tuple[Field, tuple[Part, ...]]]:
    """All fields, those inside behind what they stand in, with their paths."""
    waiting: list[tuple[Iterator[Field], tuple[Part, ...]]] = [(iter(fields), ())]
    while waiting:
        rest, above = waiting[-1]
        field = next(rest, None)
        if field is None:
            waiting.pop()
            continue
        path = above + parts_of_field(field)
        yield field, path
        if field.children:
            waiting.append((iter(field.children), path))


def _left(parts: tuple[Part, ...], path: tuple[Part, ...]) -> int | None:
    """How many of `parts` stand before its end that `path` names; None if it does not end so."""
    at = len(parts)
    for wanted in reversed(path):
        while at and parts[at - 1] != wanted and isinstance(parts[at - 1], int) and isinstance(wanted, str):
            at -= 1
        if not at or parts[at - 1] != wanted:
            return None
        at -= 1
    return at


def _element(field: Field, index: int) -> Found | None:
    """One element of an array of plain values, or one byte of what is only bytes."""
    count = len(field.value) if isinstance(field.value, tuple) else field.array_len
    if count is None:
        return Found(field.raw[index], field.raw[index : index + 1]) if index < len(field.raw) else None
    if index >= count:
        return None
    size = len(field.raw) // count
    value = field.value[index] if isinstance(field.value, tuple) else None
    return Found(value, field.raw[index * size : (index + 1) * size])


def written(parts: Iterable[Part]) -> str:
    """A path as it is written in a filter, behind what it is a path in."""
    return "".join(
        f"[{part}]"
        if isinstance(part, int)
        else f".{part}"
        if _PLAIN.fullmatch(part)
        else f"[{_quoted(part)}]"
        for part in parts
    )


def device_name(section: DeviceSection) -> str:
    """`device.NAME` of a section, by the last part of its idstr."""
    return "device" + written((section.idstr.rpartition("/")[2] or section.idstr,))


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(_escape, text) + '"'


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\{match[0]}" if match[0] in '\\"' else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
