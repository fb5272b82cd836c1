"""One side of a diff: its inventory in memory, the fields of its devices in a file that has no name."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Final

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from migsniff.compare.inventory import Inventory
from migsniff.core.events import (
    ChannelFound,
    DeviceSection,
    Event,
    Field,
    MultifdPacket,
)
from migsniff.show.extract import RamFiles
from migsniff.show.words import escape

IN_MEMORY: Final = 8 << 20
MAX_KEPT: Final = 2 << 30
"""Bytes of fields in the file: a million fields take some hundred MB."""

Key = tuple[str, int]


def _spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(IN_MEMORY)


_decoder: Final = msgspec.msgpack.Decoder(DeviceSection)


@dataclass(slots=True)
class Side:
    """A show sink; the session must decode fields. `label` is what this side is called.

    Of the fields one section at a time is in memory; `ram` is there if page contents are compared.
    """

    label: str
    inventory: Inventory = field(default_factory=Inventory)
    channels: Counter[str] = field(default_factory=Counter)
    methods: set[str] = field(default_factory=set)
    ram: RamFiles | None = None
    beyond: int = 0
    """Sections whose fields were not kept."""
    _file: IO[bytes] = field(default_factory=_spool)
    _end: int = 0
    _places: dict[Key, tuple[int, int, int]] = field(default_factory=dict)
    """Where a section begins in the file, its length, and how much room there is."""

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, ChannelFound):
            self.channels[event.role] += 1
        elif isinstance(event, MultifdPacket) and event.method != "none":
            self.methods.add(event.method)
        if isinstance(event, DeviceSection):
            self.inventory.show(migration, time, replace(event, fields=(), image=UNSET))
            if (event.idstr, event.instance_id) in self.inventory.sections:
                self._keep(event)
        else:
            self.inventory.show(migration, time, event)
        if self.ram is not None:
            self.ram.show(migration, time, event)

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        if self.ram is not None:
            self.ram.close()

    def section(self, key: Key) -> DeviceSection | None:
        """A device with its fields; None if they were not kept."""
        if key not in self._places:
            return None
        start, length, _ = self._places[key]
        self._file.seek(start)
        return _decoder.decode(self._file.read(length))

    def _keep(self, event: DeviceSection) -> None:
        """Write a section into the file: over what was said of it before, if it fits there."""
        key = event.idstr, event.instance_id
        event = replace(event, image=UNSET)  # it is one of the fields
        try:
            packed = msgspec.msgpack.encode(event)
        except UnicodeEncodeError:  # what a stream calls its fields
            packed = msgspec.msgpack.encode(replace(event, fields=_escaped(event.fields)))
        start, _, room = self._places.pop(key, (0, 0, 0))
        if len(packed) > room:
            start, room = self._end, len(packed)
            if start + room > MAX_KEPT:
                self.beyond += 1
                return
            self._end += room
        self._file.seek(start)
        self._file.write(packed)
        self._places[key] = start, len(packed), room


def _escaped(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    return tuple(
        replace(one, name=escape(one.name), type=escape(one.type), children=_escaped(one.children))
        for one in fields
    )
