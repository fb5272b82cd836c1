"""-T json and -T ndjson: one documented object a record (docs/json.md)."""

import json
import math
import re
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quoted
from typing import Final

import msgspec
from msgspec.structs import replace

from migsniff.core.events import (
    UNLISTED,
    DescriptionFound,
    DeviceSection,
    Event,
    Field,
    record,
)
from migsniff.show.select import Wanted, selected

_encode: Final = msgspec.json.Encoder().encode
_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode
_NO_FIELDS: Final = '"fields":[]'  # in a text the quotes would be escaped
PIECE: Final = 4096  # elements of an array
_UNSAFE: Final = re.compile(r"[^\x00-\x7e]")


class JsonLog:
    """A show sink: with `array` one JSON array of records, otherwise an object a line.

    `write` gets one record a call. What ends the array goes to `write_last`, which must not lose it, so that
    the array is valid JSON whenever `close` was called. `sections` and `wanted`: see show/select.py.
    """

    ignores: Final[tuple[type[Event], ...]] = UNLISTED

    def __init__(
        self,
        write: Callable[[str], None],
        array: bool,
        *,
        sections: set[str] | None = None,
        wanted: Wanted | None = None,
        write_last: Callable[[str], None] | None = None,
    ) -> None:
        self._write = write
        self._write_last = write_last or write
        self._array = array
        self._sections = sections
        self._wanted = wanted
        self._began = False
        self._migration: str | None = None

    def show(self, migration: str, time: int, event: Event) -> None:
        """Write the record of one event; runs of pages have no record."""
        if isinstance(event, self.ignores) or not selected(self._sections, event):
            return
        if self._wanted is not None and not self._wanted(migration, time, event):
            return
        self._migration = migration
        self._write(self._element(object_text(migration, time, event)))

    def extra(self, record: dict[str, object]) -> None:
        """Write a record that is of no event."""
        self._write(self._element(_dumps(_plain(record))))

    def dropped(self, count: int) -> str:
        """The record that says how many records are missing here."""
        return self._element(json.dumps({"migration": self._migration, "type": "dropped", "count": count}))

    def close(self) -> None:
        """End the array."""
        if self._array:
            self._write_last("\n]\n" if self._began else "[]\n")

    def _element(self, text: str) -> str:
        if not self._array:
            return text + "\n"
        separator = ",\n" if self._began else "[\n"
        self._began = True
        return separator + text


def object_text(migration: str, time: int, event: Event) -> str:
    """The JSON object of `record`, in ASCII; raw bytes are hexadecimal, numbers that are not finite null."""
    if isinstance(event, DeviceSection) and event.fields:
        before, empty, behind = _dumps(record(migration, time, replace(event, fields=()))).partition(
            _NO_FIELDS
        )
        return _ascii(f"{before}{empty[:-1]}{_fields_text(event.fields)}]{behind}")
    if isinstance(event, DescriptionFound):
        return _ascii(_dumps(record(migration, time, event)))
    if isinstance(event, DeviceSection):
        event = replace(event, image=msgspec.UNSET)
    try:
        fields = _encode(event).decode()
    except UnicodeEncodeError:
        return _ascii(_dumps(record(migration, time, event)))
    text = f'{{"migration":{_encode(migration).decode()},"time":{time / 1e6:.6f},{fields[1:]}'
    return text if text.isascii() and "\x7f" not in text else _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _ascii(text: str) -> str:
    return text.replace("\x7f", "\\u007f")


def _fields_text(fields: tuple[Field, ...]) -> str:
    return ",".join(map(_field_text, fields))


def _field_text(field: Field) -> str:
    """As `record` has it, but made bit by bit: no call may hold the interpreter for long."""
    text = f'{{"name":{_quoted(field.name)},"type":{_quoted(field.type)}'
    text += f',"offset":{field.offset},"size":{field.size}'
    if field.array_len is not None:
        text += f',"array_len":{field.array_len}'
    if field.index is not None:
        text += f',"index":{field.index}'
    if field.version is not None:
        text += f',"version":{field.version}'
    if field.raw:
        text += f',"raw":"{field.raw.hex()}"'
    if (value := field.value) is not None:
        text += f',"value":{_array_text(value) if isinstance(value, tuple) else _dumps(_finite(value))}'
    if field.children:
        text += f',"children":[{_fields_text(field.children)}]'
    if field.meaning:
        text += f',"meaning":{_quoted(field.meaning)}'
    return text + "}"


def _array_text(values: tuple[object, ...]) -> str:
    pieces = (values[at : at + PIECE] for at in range(0, len(values), PIECE))
    return f"[{','.join(_dumps([_finite(value) for value in piece])[1:-1] for piece in pieces)}]"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    match value:
        case dict():
            return {key: _plain(element) for key, element in value.items()}
        case list() | tuple():
            return [_plain(element) for element in value]
        case _:
            return _finite(value)
