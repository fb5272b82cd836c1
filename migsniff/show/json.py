"""-T json and -T ndjson: one documented object a record (docs/json.md)."""

import json
import math
import re
from collections.abc import Callable
from typing import Final

import msgspec

from migsniff.core.events import (
    UNLISTED,
    DescriptionFound,
    DeviceSection,
    Event,
    record,
)
from migsniff.show.select import Wanted, selected

_encode: Final = msgspec.json.Encoder().encode
_UNSAFE: Final = re.compile(r"[^\x00-\x7e]")


class JsonLog:
    """A show sink: with `array` one JSON array of records, otherwise an object a line.

    `write` gets one record a call. What ends the array goes to `write_last`, which must not lose it, so that
    the array is valid JSON whenever `close` was called. `sections` and `wanted`: see show/select.py.
    """

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
        if isinstance(event, UNLISTED) or not selected(self._sections, event):
            return
        if self._wanted is not None and not self._wanted(migration, time, event):
            return
        self._migration = migration
        self._write(self._element(object_text(migration, time, event)))

    def extra(self, record: dict[str, object]) -> None:
        """Write a record that is of no event."""
        self._write(self._element(json.dumps(_plain(record), separators=(",", ":"))))

    def dropped(self, count: int) -> str:
        """The record that says how many records are missing here because the log was read too slowly."""
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
    if isinstance(event, DescriptionFound) or (isinstance(event, DeviceSection) and event.fields):
        return json.dumps(_plain(record(migration, time, event)), separators=(",", ":")).replace(
            "\x7f", "\\u007f"
        )
    if isinstance(event, DeviceSection):
        event = msgspec.structs.replace(event, image=msgspec.UNSET)
    try:
        fields = _encode(event).decode()
    except UnicodeEncodeError:
        return json.dumps(record(migration, time, event), separators=(",", ":")).replace("\x7f", "\\u007f")
    text = f'{{"migration":{_encode(migration).decode()},"time":{time / 1e6:.6f},{fields[1:]}'
    return text if text.isascii() and "\x7f" not in text else _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _plain(element) for key, element in value.items()}
        case list() | tuple():
            return [_plain(element) for element in value]
        case _:
            return value
