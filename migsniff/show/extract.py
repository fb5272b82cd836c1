"""Guest memory out of a stream: into sparse files, one a RAM block, and into the JSON of `analyze -m`.

Files follow the block names as far as these are harmless. Whatever a stream calls its blocks, and however
long it says they are: nothing outside the folder is reached, no two blocks share a file, and memory is
bounded by one byte of state a guest page, of which there are hardly more than page records.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event, MultifdPacket, RamBlocks, RamPages, RamSection
from migsniff.show.folder import Folder, file_names
from migsniff.show.script import INDENT
from migsniff.show.words import escape, several

ORDER_FILE: Final = "%order"  # no block's file is called so

OPEN_FILES: Final = 128  # a stream may announce many more blocks than a process may open files
MOST_BUFFERS: Final = 1024  # of one pwritev (IOV_MAX)
ZEROES: Final = bytes(1 << 16)

SEGMENT: Final = 4096  # pages whose state is made together
MAX_STATE_SLACK: Final = 16 << 20  # bytes of page state beside one for each page record
UNSENT, DATA, ZERO, MISSING = 0, 1, 2, 3

Pages = NDArray[np.uint64]

# ---------------------------------------------------------------- pages


def latest(addresses: Pages) -> "NDArray[np.intp]":
    """Index of the last record of each page, by ascending address."""
    if ascending(addresses):
        return np.arange(len(addresses))
    _, backwards = np.unique(addresses[::-1], return_index=True)
    return len(addresses) - 1 - backwards


def ascending(addresses: Pages) -> bool:
    """Whether no page comes twice or goes back."""
    return len(addresses) < 2 or bool((addresses[1:] > addresses[:-1]).all())


def runs(addresses: Pages, page_size: int) -> tuple[list[int], list[int]]:
    """Where runs of pages that stand side by side start and stop in ascending `addresses`."""
    cuts = (np.flatnonzero(np.diff(addresses) != page_size) + 1).tolist()
    return [0, *cuts], [*cuts, len(addresses)]


class RamFiles:
    """A show sink that writes each RAM block's pages into a sparse file of the block's length.

    `names` are those of the files, in the order of the stream's blocks, and with the slash that a block's
    name begins with if nothing else had to be changed. `problems` says which files are not complete and why.
    Pages that are neither whole nor zero are left as they were before: see `Unapplied`.
    """

    def __init__(self, folder: Folder) -> None:
        self.names: list[str] = []
        self.problems: list[str] = []
        self._folder = folder
        self._known: set[str] = set()
        self._paths: dict[str, str] = {}  # of the blocks that are being written
        self._written: dict[str, int] = {}  # behind the last byte ever written
        self._open: dict[str, int] = {}

    def show(self, migration: str, time: int, event: Event) -> None:
        """Make the files, write pages."""
        if isinstance(event, RamPages):
            if event.block in self._paths:
                self._guard(event.block, self._write, event)
        elif isinstance(event, RamBlocks):
            lengths = {block.name: block.length for block in event.blocks}
            for block, path in file_names(lengths).items():
                if block not in self._known:  # a list may come piece by piece, each with what came before
                    self._known.add(block)
                    self._paths[block] = path
                    self._guard(block, self._create, path, lengths[block])
                    if block in self._paths:
                        self.names.append(block if block == f"/{path}" else path)

    def read(self, block: str, address: int, size: int) -> bytes | None:
        """Bytes of a block as they are now; None if the file could not be written."""
        return os.pread(self._file(block), size, address) if block in self._paths else None

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _guard(self, block: str, write: Callable[..., None], *arguments: object) -> None:
        """What goes wrong with one file does not keep the others from being written."""
        try:
            write(*arguments)
        except (OSError, OverflowError) as error:
            path = self._paths.pop(block)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.problems.append(f"{escape(path)} is not complete: {reason}")

    # ------------------------------------------------------------ files

    def _create(self, path: str, length: int) -> None:
        file = self._folder.create(path)
        try:
            os.ftruncate(file, length)
        except (OSError, OverflowError):
            self._folder.remove(path)
            raise
        finally:
            os.close(file)

    def _file(self, block: str) -> int:
        file = self._open.get(block)
        if file is None:
            if len(self._open) == OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            file = self._open[block] = self._folder.open(self._paths[block])
        return file

    # ------------------------------------------------------------ pages

    def _write(self, event: RamPages) -> None:
        addresses, normal, bodies = event.addresses, event.normal, event.bodies
        usable = normal | event.zero
        if not usable.all():
            addresses, normal, bodies = addresses[usable], normal[usable], bodies[usable]
        if not ascending(addresses):
            last = latest(addresses)
            addresses, normal, bodies = addresses[last], normal[last], bodies[last]
        written = self._written.get(event.block, 0)
        zero = addresses[~normal]
        stale = zero[zero < written]
        if len(stale):
            file = self._file(event.block)
            for start, stop in zip(*runs(stale, event.page_size), strict=True):
                _clear(file, int(stale[start]), int(stale[stop - 1]) + event.page_size)
        addresses, bodies = addresses[normal], bodies[normal]
        if len(addresses):
            self._write_data(event, addresses, bodies.tolist())
            self._written[event.block] = max(written, int(addresses[-1]) + event.page_size)

    def _write_data(self, event: RamPages, addresses: Pages, bodies: list[int]) -> None:
        file, data, size = self._file(event.block), event.data, event.page_size
        for first in range(0, len(addresses), MOST_BUFFERS):
            part = addresses[first : first + MOST_BUFFERS]
            pages = [data[at : at + size] for at in bodies[first : first + MOST_BUFFERS]]
            starts, stops = runs(part, size)
            # the usual run is short: what is done for each is what extracting costs
            for start, stop, address in zip(starts, stops, part[starts].tolist(), strict=True):
                written = os.pwritev(file, pages[start:stop], address)
                if written != (stop - start) * size:
                    _write_all(file, b"".join(pages[start:stop])[written:], address + written)


def _write_all(file: int, data: bytes, address: int) -> None:
    """Write what is left of a short write; raises the OSError that was its reason."""
    while data:
        written = os.pwrite(file, data, address)
        data, address = data[written:], address + written


def _clear(file: int, start: int, stop: int) -> None:
    """Write zeroes where there is data between `start` and `stop`; holes stay."""
    while start < stop:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data up to the end of the file
                return
            raise
        hole = min(os.lseek(file, start, os.SEEK_HOLE), stop)
        while start < hole:
            start += os.pwrite(file, ZEROES[: hole - start], start)


# ---------------------------------------------------------------- what is not there


class PageStates:
    """One byte for each page, in segments that are made when the first of their pages comes."""

    def __init__(self) -> None:
        self._segments: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._records = 0

    def exchange(self, block: str, pages: Pages, states: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Set the states of ascending distinct page numbers; returns those they had before.

        Raises StreamProblem (pages-scattered) before few records could buy much memory; no guest is so.
        """
        self._records += len(pages)
        before = np.zeros(len(pages), np.uint8)
        numbers = pages // SEGMENT
        cuts = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(pages)], strict=True):
            segment = self._segment(block, int(numbers[start]))
            where = (pages[start:stop] % SEGMENT).astype(np.intp)
            before[start:stop] = segment[where]
            segment[where] = states[start:stop]
        return before

    def get(self, block: str, page: int) -> int:
        """The state of one page."""
        segment = self._segments.get((block, page // SEGMENT))
        return UNSENT if segment is None else int(segment[page % SEGMENT])

    def count(self, state: int) -> int:
        """How many pages are in a state other than UNSENT."""
        return sum(int(np.count_nonzero(segment == state)) for segment in self._segments.values())

    def _segment(self, block: str, number: int) -> NDArray[np.uint8]:
        segment = self._segments.get((block, number))
        if segment is None:
            if len(self._segments) * SEGMENT > MAX_STATE_SLACK + self._records:
                raise StreamProblem("pages-scattered", limit=MAX_STATE_SLACK)
            segment = self._segments[block, number] = np.zeros(SEGMENT, np.uint8)
        return segment


class Unapplied:
    """A show sink that knows which pages' last contents did not come as whole pages, and says so.

    XBZRLE deltas and compressed pages are not applied yet, and pages of multifd channels not looked at.
    """

    def __init__(self) -> None:
        self._states = PageStates()
        self._blocks: set[str] = set()
        self._multifd = self._flushes = 0
        self._problems: list[str] = []

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take note of page records."""
        if isinstance(event, MultifdPacket):
            self._multifd += event.normal + event.zero
        elif isinstance(event, RamSection):
            self._flushes += event.multifd_flushes
        elif isinstance(event, RamPages) and not self._problems:
            usable = event.normal | event.zero
            if event.block in self._blocks or not usable.all():
                self._blocks.add(event.block)
                last = latest(event.addresses)
                states = np.where(usable[last], np.uint8(UNSENT), np.uint8(MISSING))
                try:
                    self._states.exchange(event.block, event.addresses[last] // event.page_size, states)
                except StreamProblem as problem:
                    self._problems.append(problem.text)

    @property
    def problems(self) -> list[str]:
        """What is missing, in sentences."""
        problems = list(self._problems)
        if missing := self._states.count(MISSING):
            problems.append(f"{several(missing, 'page')} came last as XBZRLE or compressed: not applied yet")
        if self._multifd:
            problems.append(f"{several(self._multifd, 'page')} came over multifd channels: not applied yet")
        elif self._flushes:
            problems.append("pages went over multifd channels, which are not in this file")
        return problems

    def close(self) -> None:
        """Nothing is pending."""


# ---------------------------------------------------------------- analyze -m


class MemoryDump:
    """A show sink for what `analyze -m` prints: each page once, where it first came, as it was at last.

    The pages wait in sparse files and their order in another, all in `folder`, which only we can read.
    """

    def __init__(self, folder: Folder) -> None:
        self._files = RamFiles(folder)
        self._states = PageStates()
        self._order = os.fdopen(folder.create(ORDER_FILE), "w+b")
        self._blocks: dict[str, int] = {}
        self._page_size = 0
        self._problems: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What is missing, in sentences."""
        return self._files.problems + self._problems

    def show(self, migration: str, time: int, event: Event) -> None:
        """Keep pages, and the order in which they came first."""
        self._files.show(migration, time, event)
        if isinstance(event, RamPages) and not self._problems:
            try:
                self._note(event)
            except StreamProblem as problem:
                self._problems.append(problem.text)

    def _note(self, event: RamPages) -> None:
        self._page_size = event.page_size
        addresses = event.addresses
        last = latest(addresses)
        states = np.where(
            event.zero, np.uint8(ZERO), np.where(event.normal, np.uint8(DATA), np.uint8(MISSING))
        )
        before = self._states.exchange(event.block, addresses[last] // event.page_size, states[last])
        new = before == UNSENT
        if new.any():
            _, first = np.unique(addresses, return_index=True)
            fresh = addresses[np.sort(first[new])]
            block = self._blocks.setdefault(event.block, len(self._blocks))
            self._order.write(np.stack((np.full_like(fresh, block), fresh), axis=1).tobytes())

    def write(self, write: Callable[[str], object], indent: str) -> None:
        """Write the JSON object of all pages."""
        blocks = [(block, json.dumps(block)[:-1]) for block in self._blocks]
        head = "{\n"
        for index, address in self._in_order():
            block, quoted = blocks[index]
            value = self._value(block, address)
            if value is not None:
                write(f'{head}{indent}{INDENT}{quoted} (0x{address:016x})": "{value}"')
                head = ",\n"
        write("{}" if head == "{\n" else f"\n{indent}}}")

    def _in_order(self) -> Iterator[tuple[int, int]]:
        self._order.seek(0)
        while part := self._order.read(1 << 20):
            entries = np.frombuffer(part, np.uint64).reshape(-1, 2)
            yield from zip(entries[:, 0].tolist(), entries[:, 1].tolist(), strict=True)

    def _value(self, block: str, address: int) -> str | None:
        state = self._states.get(block, address // self._page_size)
        if state == ZERO:
            return "Filled with 0x00"
        if state == MISSING:
            return "XBZRLE or compressed, not applied"
        page = self._files.read(block, address, self._page_size)
        return None if page is None else page.hex(" ")

    def close(self) -> None:
        """Close the files."""
        self._files.close()
        self._order.close()
