"""What is known of a destination: a stream of its own, or what its -dump-vmstate wrote."""

from collections.abc import Sequence
from io import BufferedReader
from typing import Final, NamedTuple

from migsniff.compare.checker import Local
from migsniff.compare.inventory import Inventory
from migsniff.compare.schema import read_schema
from migsniff.compare.watch import Watch
from migsniff.core.errors import CaptureError, UsageError
from migsniff.descriptions import Learning
from migsniff.feed.descriptionstore import Described, Entry, entries_of
from migsniff.feed.dumpvmstate import HEAD, MAX_BYTES, from_dump, is_dump
from migsniff.feed.files import look_into, open_source
from migsniff.offline import survey_source
from migsniff.pipeline import Finder, Sink
from migsniff.show.words import escape
from migsniff.whole import Whole

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
    file = look_into(path)
    try:
        if file is not None and is_dump(file.first(HEAD)):
            with BufferedReader(file) as dump:
                return _of_dump(path, dump.read(MAX_BYTES + 1))
    except OSError as error:
        raise CaptureError(f"{escape(path)}: {error.strerror or error}") from None
    source = open_source(path, file=file)
    inventory = Inventory()
    whole = Whole(source, inventory)
    begun: list[str] = []
    described: list[Described] = []

    def begin(migration: str) -> list[Sink]:
        if begun:
            raise CaptureError(f"{path}: several migrations, which of them is the destination's?")
        begun.append(migration)
        return [whole, Learning(described.append)]

    survey_source(source, begin, lambda migration: None, fields=True)
    if not inventory.sections and not inventory.blocks:
        told = whole.strange or (inventory.verdict.message if inventory.verdict else "nothing in it")
        raise CaptureError(f"{path}: nothing of a destination in it: {escape(told)}")
    try:
        entries = entries_of(described[-1]) if described else []
    except CaptureError:  # it is not needed to compare what needs no description
        entries = []
    return Destination(inventory, entries)


def _of_dump(path: str, text: bytes) -> Destination:
    try:
        return Destination(read_schema(text), from_dump(text, escape(path)[-200:])[1])
    except CaptureError as error:
        raise CaptureError(f"{escape(path)}: {error}") from None
