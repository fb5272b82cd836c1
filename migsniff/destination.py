"""What is known of a destination: a stream of its own, or what its -dump-vmstate wrote."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from migsniff.compare.checker import Local
from migsniff.compare.inventory import Inventory
from migsniff.compare.schema import read_schema
from migsniff.compare.watch import Watch
from migsniff.core.errors import CaptureError, UsageError
from migsniff.descriptions import Learning
from migsniff.feed.descriptions import Described, Entry, entries_of
from migsniff.feed.dumpvmstate import HEAD, MAX_BYTES, from_dump, is_dump
from migsniff.offline import survey
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


def open_destination(path: str) -> Destination:
    """What read_destination does. Raises UsageError: nothing is known yet of any migration."""
    try:
        return read_destination(path)
    except CaptureError as error:
        raise UsageError(str(error)) from error


def read_destination(path: str) -> Destination:
    """What a file tells of a destination. Raises CaptureError."""
    try:
        with open(path, "rb") as file:
            if is_dump(file.read(HEAD)):
                file.seek(0)
                return _of_dump(path, file.read(MAX_BYTES + 1))
    except OSError:  # a folder, or not there: open_source tells it in its own words
        pass
    found: list[Inventory] = []
    described: list[Described] = []

    def begin(migration: str) -> list[Sink]:
        if found:
            raise CaptureError(f"{path}: several migrations, which of them is the destination's?")
        found.append(Inventory())
        return [found[0], Learning(described.append)]

    survey(path, begin, lambda migration: None, fields=True)
    if not found or not (found[0].sections or found[0].blocks):
        told = found[0].verdict.message if found and found[0].verdict else "nothing in it"
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
