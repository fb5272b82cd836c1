"""RAM blocks, and how many of their page records of each kind came."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.events import BlockPages, PageCounts, RamBlock


class GuestBlock:
    """One RAM block: its announced facts, and in which pass each of its pages was sent last.

    That is the one byte of state a guest page: NEVER, LONG_AGO, a number for the pass or round, or
    IN_POSTCOPY: sent since postcopy began, when each that is missing is sent once. It stands in segments that
    are made when the first of their pages comes, so that an announced length costs nothing.
    """

    __slots__ = ("index", "length", "name", "page_count", "segments")

    def __init__(self, index: int, announced: RamBlock) -> None:
        self.index = index
        self.name = announced.name
        self.length = announced.length
        self.page_count = 0
        self.segments: dict[int, NDArray[np.uint8]] = {}


class Tally:
    """Page records of one block, being counted."""

    __slots__ = ("bytes", "compressed", "first", "last", "normal", "resent", "xbzrle", "zero")

    def __init__(self) -> None:
        self.normal = self.zero = self.xbzrle = self.compressed = 0
        self.bytes = self.resent = 0
        self.first, self.last = -1, -1

    def add(self, other: "Tally") -> None:
        """Count what another tally has counted."""
        self.normal += other.normal
        self.zero += other.zero
        self.xbzrle += other.xbzrle
        self.compressed += other.compressed
        self.bytes += other.bytes
        self.resent += other.resent
        self.span(other.first, other.last)

    def span(self, first: int, last: int) -> None:
        """Widen the range of addresses."""
        if self.first < 0 or first < self.first:
            self.first = first
        if last > self.last:
            self.last = last

    @property
    def pages(self) -> int:
        """Pages of all kinds."""
        return self.normal + self.zero + self.xbzrle + self.compressed

    def freeze(self) -> PageCounts:
        """The counts as an event carries them."""
        return PageCounts(self.normal, self.zero, self.xbzrle, self.compressed, self.bytes, self.resent)


NO_PAGES: Final = PageCounts()
Tallies = dict[GuestBlock, Tally]


def summary(tallies: Tallies) -> tuple[PageCounts, tuple[BlockPages, ...]]:
    """The sum over all blocks, and each block's part."""
    if not tallies:
        return NO_PAGES, ()
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    blocks = tuple(BlockPages(b.name, t.first, t.last, t.freeze()) for b, t in tallies.items())
    return total.freeze(), blocks


def tally_of(tallies: Tallies, block: GuestBlock) -> Tally:
    """The block's tally in a table, a new one if it has none."""
    tally = tallies.get(block)
    if tally is None:
        tally = tallies[block] = Tally()
    return tally


def fold(tallies: Tallies, into: Tallies) -> None:
    """Add each block's tally to that of another table."""
    for block, tally in tallies.items():
        into.setdefault(block, Tally()).add(tally)
