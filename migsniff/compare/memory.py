"""Guest memory of two migrations, page by page: which pages differ, never what is in them."""

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from migsniff.compare.difference import Difference, Said, Tally
from migsniff.compare.ignore import Ignore
from migsniff.compare.side import Side
from migsniff.compare.structure import block_path
from migsniff.show.extract import RamFiles
from migsniff.show.folder import Folder
from migsniff.show.pagestates import BROKEN, SEGMENT, UNSENT
from migsniff.show.words import name, several

MOST_FILES: Final = 256
MOST_RANGES: Final = 16
AT_ONCE: Final = 1 << 20
"""Bytes of each side that are compared at once."""

Flags = NDArray[np.bool_]


class Unnamed(Folder):
    """What RamFiles writes, in files that have no name: gone with the process, however it ends."""

    def __init__(self) -> None:
        self._files: dict[str, IO[bytes]] = {}

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def create(self, path: str) -> int:
        if len(self._files) >= MOST_FILES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._files[path] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the folder
        return self.open(path)

    def open(self, path: str) -> int:
        return os.dup(self._files[path].fileno())

    def remove(self, path: str) -> None:
        self._files.pop(path).close()


class Differing(NamedTuple):
    """Pages of a block: how many both have, how many of them differ, and in how many ranges.

    `ranges`: the first of these: address, address behind it, address of the first differing byte.
    """

    pages: int
    differing: int
    runs: int
    ranges: list[tuple[int, int, int]]


class Memory(NamedTuple):
    """The guest memory of one side, and whether all of it was sent."""

    side: Side
    files: RamFiles

    def known(self, block: str, number: int) -> Flags:
        """Which pages of a segment the destination has: what a whole stream does not send is zero."""
        whole = self.side.inventory.all_sent
        states = self.files.states.segment(block, number)
        if states is None:
            return np.full(SEGMENT, whole)
        known: Flags = (states & BROKEN) == 0
        return known if whole else known & (states != UNSENT)


def memory(left: Side, right: Side, ignore: Ignore, tally: Tally) -> Iterator[Difference]:
    """What differs in the blocks that both have, if page contents of both were kept."""
    if left.ram is None or right.ram is None:
        return
    sides = Memory(left, left.ram), Memory(right, right.ram)
    for side, files in sides:
        files.flush()
        tally.not_compared += [f"guest memory of {side.label}: {problem}" for problem in files.problems]
    page_size = left.inventory.page_size
    if page_size is None or page_size != right.inventory.page_size:
        tally.not_compared.append("guest memory: the pages are not of the same, known size")
        return
    for block in left.inventory.blocks:
        if block not in right.inventory.blocks or ignore.all_of(path := block_path(block)):
            continue
        if (found := _block(sides, block, page_size, tally)) is not None:
            said = Said(_text(found), value=found.differing)
            yield Difference(group="memory", what="pages", path=path, left=said, right=said)


def _block(sides: tuple[Memory, Memory], block: str, page_size: int, tally: Tally) -> Differing | None:
    """Compare the pages of a block; None if none differs."""
    numbers = [set(one.files.states.numbers(block)) for one in sides]
    if bool(numbers[0]) != bool(numbers[1]):
        without = sides[1 if numbers[0] else 0].side.label
        tally.not_compared.append(f"RAM block {name(block)}: {without} has no pages of it")
        return None
    length = min(one.side.inventory.blocks[block].length for one in sides)
    runs = _Runs(page_size)
    unknown = [0, 0]
    step = max(1, AT_ONCE // page_size)
    for number in sorted(numbers[0] | numbers[1]):
        known = [one.known(block, number) for one in sides]
        for side in (0, 1):
            unknown[side] += int(np.count_nonzero(known[1 - side] & ~known[side]))
        for first in range(0, SEGMENT, step):
            both = known[0][first : first + step] & known[1][first : first + step]
            start = (number * SEGMENT + first) * page_size
            if start < length and both.any():
                _compare(sides, block, start, min(length - start, step * page_size), both, runs)
    for one, count in zip(sides, unknown, strict=True):
        if count:
            tally.not_compared.append(
                f"RAM block {name(block)}: {several(count, 'page')} that {one.side.label} has not"
            )
    return runs.found() if runs.differing else None


def _compare(
    sides: tuple[Memory, Memory], block: str, start: int, size: int, known: Flags, runs: "_Runs"
) -> None:
    """Compare `size` bytes from `start`; pages that are not `known` do not count."""
    parts = [one.files.read(block, start, size) for one in sides]
    if parts[0] is None or parts[1] is None:
        return
    pages = -(-size // runs.page_size)
    runs.pages += int(np.count_nonzero(known[:pages]))
    if parts[0] == parts[1]:
        return
    one, other = (
        np.frombuffer(part.ljust(pages * runs.page_size, b"\0"), np.uint8) for part in parts if part
    )
    differ = (one != other).reshape(pages, -1)
    for page in np.flatnonzero(differ.any(axis=1) & known[:pages]).tolist():
        runs.add(start + page * runs.page_size, int(differ[page].argmax()))


class _Runs:
    """Differing pages, as they come, ascending."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages = 0
        self.differing = 0
        self._runs = 0
        self._end = -1
        self._ranges: list[tuple[int, int, int]] = []

    def add(self, address: int, first: int) -> None:
        """One more page; its byte `first` is the first that differs."""
        self.differing += 1
        end = address + self.page_size
        if address != self._end:
            self._runs += 1
            if len(self._ranges) < MOST_RANGES:
                self._ranges.append((address, end, address + first))
        elif self._runs == len(self._ranges):
            begin, _, byte = self._ranges[-1]
            self._ranges[-1] = (begin, end, byte)
        self._end = end

    def found(self) -> Differing:
        """What there is now."""
        return Differing(self.pages, self.differing, self._runs, self._ranges)


def _text(found: Differing) -> str:
    ranges = ", ".join(
        f"{start:#x}..{stop - 1:#x} (first at {byte:#x})" for start, stop, byte in found.ranges
    )
    more = f", and {found.runs - len(found.ranges)} more" if found.runs > len(found.ranges) else ""
    pages = f"{found.differing} of {several(found.pages, 'page')} differ"
    return f"{pages}, in {several(found.runs, 'range')}: {ranges}{more}"
