"""The JSON document of QEMU's scripts/analyze-migration.py (10.2.2), byte for byte, for those who parse it.

The script keeps fields in dictionaries: fields of one name become one list, an array of one element becomes
that element, and of several subsections of one name only the last is left. Here that is so too, and nowhere
else. Integers are text: as many hexadecimal digits as they have, and the number behind if it is negative.
Whatever the script has no reader for, lists and inline groups among it, is bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Final, Literal, TextIO

from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    DescriptionFound,
    DeviceSection,
    Event,
    Field,
    LiveSection,
    RamBlock,
    RamBlocks,
    RamSection,
    Section,
)
from migsniff.core.wire import ANNOUNCED, FOOTER

INDENT: Final = "    "
SLICE: Final = 1 << 16  # array elements formatted at a time

Write = Callable[[str], object]
Format = Callable[[bytes, int, str], str]
"""Elements' bytes, the size of one, what separates them -> their JSON."""

_quoted = lru_cache(maxsize=4096)(json.dumps)
_encode = partial(json.dumps, indent=INDENT, separators=(",", ": "))


class ScriptDocument:
    """A show sink that, when closed, writes to `out` what the script prints for `-d state` or `-d desc`.

    Devices need their fields. What the script cannot read stands under the script's keys: a section without
    description as {"size": n, "data": hex} (no data where it was not kept), bytes without meaning under the
    name of their Field. `memory` writes the JSON object of the RAM contents, (write, indent), for `-m`.
    """

    def __init__(
        self,
        out: TextIO,
        dump: Literal["state", "desc"] = "state",
        memory: Callable[[Write, str], None] | None = None,
    ) -> None:
        self._out = out
        self._memory = memory
        self._dump = dump
        self._blocks: tuple[RamBlock, ...] = ()
        self._sections: dict[int, Section] = {}
        self._offsets: dict[int, int] = {}  # where each section id was first seen
        self._description: bytes | None = None

    @property
    def described(self) -> bool:
        """Whether there was a description; without one `-d desc` writes nothing."""
        return self._description is not None

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take note of sections, RAM blocks and the description."""
        match event:
            case RamBlocks():
                self._blocks = event.blocks
            case DescriptionFound():
                self._description = event.text
            case RamSection() | LiveSection() | DeviceSection():
                self._note(event)

    def _note(self, event: Section) -> None:
        known = self._sections.setdefault(event.section_id, event)
        self._offsets[event.section_id] = min(event.offset, self._offsets.get(event.section_id, event.offset))
        exact = isinstance(event, DeviceSection) and not event.provisional
        if exact or (event.section_type in ("START", "FULL") and not isinstance(known, DeviceSection)):
            self._sections[event.section_id] = event

    def close(self) -> None:
        """Write the document; raises StreamProblem (description-json) if the description is not JSON."""
        if self._dump == "state":
            self._state()
        elif self._description is not None:
            try:
                description = json.loads(self._description.decode())
            except (ValueError, RecursionError) as error:
                raise StreamProblem("description-json", detail=error) from None
            self._out.write(_encode(description) + "\n")

    def _state(self) -> None:
        write = self._out.write
        head = "{\n"
        for section_id in sorted(self._sections, key=self._offsets.__getitem__):
            section = self._sections[section_id]
            write(f"{head}{INDENT}{_quoted(f'{section.idstr} ({section_id})')}: ")
            match section:
                case RamSection():
                    self._ram(write)
                case DeviceSection(described=True):
                    _object(write, section.fields, INDENT)
                case DeviceSection():
                    _undescribed(write, section)
                case _:
                    write('""')
            head = ",\n"
        write("{}\n" if not self._sections else "\n}\n")

    def _ram(self, write: Write) -> None:
        document = _indented(
            {"section sizes": {block.name: f"0x{block.length:016x}" for block in self._blocks}}
        )
        if self._memory is None:
            write(document)
            return
        end = f"\n{INDENT}}}"
        write(document.removesuffix(end) + f',\n{INDENT}{INDENT}"memory": ')
        self._memory(write, INDENT + INDENT)
        write(end)


def _indented(value: object) -> str:
    """JSON of a section."""
    return _encode(value).replace("\n", f"\n{INDENT}")


def _undescribed(write: Write, section: DeviceSection) -> None:
    around = ANNOUNCED.least + len(section.idstr.encode()) + (FOOTER.least if section.footer else 0)
    document: dict[str, object] = {"size": section.size - around}
    if section.fields:
        document["data"] = b"".join(field.raw for field in section.fields).hex(" ")
    write(_indented(document))


def _object(write: Write, fields: Sequence[Field], indent: str) -> None:
    inner = indent + INDENT
    head = "{\n"
    for name, group in _by_name(fields).items():
        write(f"{head}{inner}{_quoted(name)}: ")
        if len(group) == 1 and group[0].array_len is None:
            _elements(write, group[0], "", inner)
        else:
            _list(write, group, inner)
        head = ",\n"
    write(f"\n{indent}}}" if fields else "{}")


def _by_name(fields: Sequence[Field]) -> dict[str, list[Field]]:
    groups: dict[str, list[Field]] = {}
    for field in fields:
        if field.type == "subsection":
            groups[field.name] = [field]
        else:
            groups.setdefault(field.name, []).append(field)
    return groups


def _list(write: Write, group: list[Field], indent: str) -> None:
    """Fields of one name: a list, unless all of them have but one element."""
    # elements without bytes would make much of nothing: QEMU describes none
    group = [field for field in group if field.array_len is None or field.raw]
    count = sum(1 if field.array_len is None else field.array_len for field in group)
    if count == 1:
        _elements(write, group[0], "", indent)
        return
    inner = indent + INDENT
    head = f"[\n{inner}"
    for field in group:
        write(head)
        _elements(write, field, f",\n{inner}", inner)
        head = f",\n{inner}"
    write(f"\n{indent}]" if group else "[]")


def _elements(write: Write, field: Field, separator: str, indent: str) -> None:
    """The JSON of one field, or of all elements of an array."""
    if field.type in ("struct", "subsection"):
        _object(write, field.children, indent)
        return
    form = _FORMATS.get(field.type, _bytes)
    if field.array_len is None:
        write(form(field.raw, len(field.raw), separator))
        return
    size = len(field.raw) // field.array_len
    head = ""
    for part in _slices(field.raw, size * SLICE):
        write(head + form(part, size, separator))
        head = separator


def _slices(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[at : at + size] for at in range(0, len(raw), size))


def _bytes(raw: bytes, size: int, separator: str) -> str:
    if len(raw) <= size:
        return f'"{raw.hex(" ")}"'
    return separator.join(f'"{element.hex(" ")}"' for element in _slices(raw, size))


def _unsigned(raw: bytes, size: int, separator: str) -> str:
    if len(raw) <= size:
        return f'"0x{raw.hex()}"'
    return f'"0x{raw.hex("|", size)}"'.replace("|", f'"{separator}"0x')


def _signed(raw: bytes, size: int, separator: str) -> str:
    if size > 8 or not raw or max(raw[::size]) < 0x80:
        return _unsigned(raw, size, separator)
    return separator.join(map(_signed_element, _slices(raw, size)))


def _signed_element(raw: bytes) -> str:
    value = int.from_bytes(raw, "big", signed=True)
    return f'"0x{raw.hex()} ({value})"' if value < 0 else f'"0x{raw.hex()}"'


def _bool(raw: bytes, size: int, separator: str) -> str:
    return separator.join("true" if first else "false" for first in raw[:: size or 1])


def _nullptr(raw: bytes, size: int, separator: str) -> str:
    return separator.join(['"nullptr"'] * len(raw))


_FORMATS: Final[dict[str, Format]] = {
    "int8": _signed,
    "int16": _signed,
    "int32": _signed,
    "int64": _signed,
    "int32 equal": _signed,
    "int32 le": _signed,
    "int64 equal": _signed,
    "uint8 equal": _signed,
    "uint16 equal": _signed,
    "uint8": _unsigned,
    "uint16": _unsigned,
    "uint32": _unsigned,
    "uint64": _unsigned,
    "uint32 equal": _unsigned,
    "bool": _bool,
    "nullptr": _nullptr,
}
