"""What is known of a destination: a stream of its own, or what its -dump-vmstate wrote."""

from collections.abc import Sequence
from io import BufferedReader
from typing import Final, NamedTuple

from migsniff.compare.checker import Local
from migsniff.compare.inventory import Inventory
from migsniff.compare.schema import read_schema
from migsniff.compare.watch import Watch
from migsniff.core.errors import CaptureError, UsageError
from migsniff.core.events import ChannelFound, Event
from migsniff.descriptions import Learning
from migsniff.feed.descriptionstore import Described, Entry, entries_of
from migsniff.feed.dumpvmstate import HEAD, MAX_BYTES, from_dump, is_dump
from migsniff.feed.files import look_into, open_source
from migsniff.feed.pcap import PcapSource
from migsniff.offline import survey_source
from migsniff.pipeline import Finder, Sink
from migsniff.show.words import escape

NOT_A_STREAM: Final = ("not-a-stream", "empty", "opaque")
"""Outcomes of what nothing can be told of."""


class Destination(NamedTuple):
    """`local` is what a stream is compared with; `entries` describe the destination's devices."""

    local: Local
    entries: Sequence[Entry]

    def finders(self) -> list[Finder]:
        """What tells of a migration whether it will load there."""
        return [Watch(self.local)]


class _Own(Inventory):
    """Of what turns out to be no stream nothing more is wanted: /dev/zero has no end.

    `alone`: it holds nothing else that could be one.
    """

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self._alone = alone
        self.strange = ""

    @property
    def wants_no_more(self) -> bool:
        """Whether reading may end."""
        return bool(self.strange)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        if self._alone and isinstance(event, ChannelFound) and event.role == "unknown":
            self.strange = event.detail
        super().show(migration, time, event)


def open_destination(path: str) -> Destination:
    """What read_destination does. Raises UsageError: nothing is known yet of any migration."""
    try:
        return read_destination(path)
    except CaptureError as error:
        raise UsageError(str(error)) from error


def read_destination(path: str) -> Destination:
    """What a file tells of a destination. Raises CaptureError."""
    file = look_into(path)
    try:
        if file is not None and is_dump(file.first(HEAD)):
            with BufferedReader(file) as whole:
                return _of_dump(path, whole.read(MAX_BYTES + 1))
    except OSError as error:
        raise CaptureError(f"{escape(path)}: {error.strerror or error}") from None
    source = open_source(path, file=file)
    found: list[_Own] = []
    described: list[Described] = []

    def begin(migration: str) -> list[Sink]:
        if found:
            raise CaptureError(f"{path}: several migrations, which of them is the destination's?")
        found.append(_Own(alone=not isinstance(source, PcapSource) and source.capture is None))
        return [found[0], Learning(described.append)]

    survey_source(source, begin, lambda migration: None, fields=True)
    if not found or not (found[0].sections or found[0].blocks):
        told = found[0].verdict.message if found and found[0].verdict else "nothing in it"
        if found and found[0].wants_no_more:
            told = f"no QEMU migration stream: it {found[0].strange}"
        raise CaptureError(f"{path}: nothing of a destination in it: {escape(told)}")
    try:
        entries = entries_of(described[-1]) if described else []
    except CaptureError:  # it is not needed to compare what needs no description
        entries = []
    return Destination(found[0], entries)


def _of_dump(path: str, text: bytes) -> Destination:
    try:
        return Destination(read_schema(text), from_dump(text, escape(path)[-200:])[1])
    except CaptureError as error:
        raise CaptureError(f"{escape(path)}: {error}") from None
