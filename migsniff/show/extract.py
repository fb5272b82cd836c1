"""Guest memory out of a stream: into sparse files, one a RAM block.

Files follow the block names as far as these are harmless. Whatever a stream calls its blocks, and however
long it says they are: nothing outside the folder is reached, no two blocks share a file, and memory is
bounded by MOST_EDITED and one byte of state a guest page, of which there are hardly more than page records.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from migsniff.core.arrivals import Data
from migsniff.core.contents import apply_delta, inflate_page
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    CommandSent,
    Configuration,
    Event,
    MultifdPacket,
    RamBlocks,
    RamPages,
    RamSection,
)
from migsniff.show.folder import Folder, file_names
from migsniff.show.pagestates import BROKEN, UNSENT, ZERO, Pages, PageStates
from migsniff.show.words import escape, several

OPEN_FILES: Final = 128  # a stream may announce many more blocks than a process may open files
MOST_BUFFERS: Final = 1024  # of one pwritev (IOV_MAX)
MOST_EDITED: Final = 64 << 20  # bytes of pages that wait in memory for their next delta
MOST_PROBLEMS: Final = 10  # pages that are told one by one
ZEROES: Final = bytes(1 << 16)
IGNORE_SHARED: Final = "x-ignore-shared"

# ---------------------------------------------------------------- pages


def stretches(event: RamPages) -> Iterator[RamPages]:
    """The records of an event, cut before each whose address is not above the one before it."""
    if len(event.words) == 1:
        yield event
        return
    addresses = event.addresses
    cuts = (np.flatnonzero(addresses[1:] <= addresses[:-1]) + 1).tolist()
    if not cuts:
        yield event
        return
    for start, stop in zip([0, *cuts], [*cuts, len(addresses)], strict=True):
        yield msgspec.structs.replace(
            event,
            words=event.words[start:stop],
            bodies=event.bodies[start:stop],
            lengths=event.lengths[start:stop],
        )


def runs(addresses: Pages, page_size: int) -> tuple[list[int], list[int]]:
    """Where runs of pages that stand side by side start and stop in ascending `addresses`."""
    if len(addresses) == 1:
        return [0], [1]
    cuts = (np.flatnonzero(np.diff(addresses) != page_size) + 1).tolist()
    return [0, *cuts], [*cuts, len(addresses)]


class RamFiles:
    """A show sink that writes each RAM block's pages into a sparse file of the block's length.

    `names` are those of the files, in the order of the stream's blocks, and with the slash that a block's
    name begins with if nothing else had to be changed. `problems` says what is not there, or not right, and
    why. `states` tells what each page is now. `first_seen` is called with the addresses of pages that come
    for the first time, and with none when it begins again (a migration that was tried again).
    """

    def __init__(self, folder: Folder, first_seen: Callable[[str, Pages], None] | None = None) -> None:
        self.names: list[str] = []
        self.states = PageStates()
        self._folder = folder
        self._first_seen = first_seen
        self._lengths: dict[str, int] = {}
        self._paths: dict[str, str] = {}  # of the blocks that are being written
        self._written: dict[str, int] = {}  # behind the last byte ever written
        self._open: dict[str, int] = {}
        self._edited: dict[str, dict[int, bytearray]] = {}  # pages that deltas were applied to, by address
        self._held = 0  # bytes of these
        self._page_size = 0
        self._from: str | None = None  # the main channel of the list of blocks
        self._tries = 0
        self._sent: set[str] = set()  # blocks of which pages came
        self._ignore_shared = False
        self._packets = self._flushes = self._normal = 0
        self._problems: list[str] = []
        self._scattered = False

    # ------------------------------------------------------------ events

    def show(self, migration: str, time: int, event: Event) -> None:
        """Make the files, write pages."""
        if isinstance(event, RamPages):
            if event.block in self._paths and not self._scattered:
                self._sent.add(event.block)
                self._page_size = event.page_size
                for stretch in stretches(event):
                    self._guard(event.block, self._take, stretch)
        elif isinstance(event, RamBlocks):
            self._announced(event)
        elif isinstance(event, CommandSent):
            if event.name == "POSTCOPY_RAM_DISCARD":
                self._discarded(event)
        elif isinstance(event, Configuration):
            self._ignore_shared = IGNORE_SHARED in (event.capabilities or ())
        elif isinstance(event, MultifdPacket):
            self._packets += 1
        elif isinstance(event, RamSection):
            self._flushes += event.multifd_flushes
            self._normal += event.counts.normal

    def read(self, block: str, address: int, size: int) -> bytes | None:
        """Bytes of a block as they were when `flush` was called; None if the file could not be written."""
        return os.pread(self._file(block), size, address) if block in self._paths else None

    def flush(self) -> None:
        """Write what waits in memory."""
        for block, pages in self._edited.items():
            if pages:
                self._guard(block, self._write_back, block, pages)
                pages.clear()
        self._held = 0

    def close(self) -> None:
        """Write what waits, and close the files."""
        self.flush()
        while self._open:
            os.close(self._open.popitem()[1])

    @property
    def problems(self) -> list[str]:
        """What is missing, in sentences; complete behind `flush`."""
        problems = list(self._problems)
        if broken := self.states.count(BROKEN):
            problems.append(f"{several(broken, 'page')} could not be put together from what was sent last")
        if late := self.states.late:
            problems.append(
                f"{several(late, 'page record')} came so late on its channel that an older one may stand"
            )
        if self._tries > 1:
            problems.append(f"{several(self._tries, 'migration')} began: the memory is that of the last one")
        if self._ignore_shared and (shared := [name for name in self._lengths if name not in self._sent]):
            problems.append(f"{IGNORE_SHARED}: no pages were sent of {', '.join(map(escape, shared))}")
        # 8.1 sends flushes without multifd too, but with it no page's contents on the main channel
        if self._flushes and not self._packets and not self._normal:
            problems.append("pages went over multifd channels, which are not in this file")
        return problems

    def _guard(self, block: str, write: Callable[..., None], *arguments: object) -> None:
        """What goes wrong with one file does not keep the others from being written."""
        if block not in self._paths:
            return
        try:
            write(*arguments)
        except StreamProblem as problem:
            self._problems.append(problem.text)
            self._scattered = True
        except (OSError, OverflowError) as error:
            path = self._paths.pop(block)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self._problems.append(f"{escape(path)} is not complete: {reason}")

    # ------------------------------------------------------------ files

    def _announced(self, event: RamBlocks) -> None:
        """A list of blocks, which may come piece by piece, each with what came before."""
        if event.channel != self._from:
            self._from = event.channel
            self._tries += 1
            if self._tries > 1:
                self._begin_again()
        lengths = {block.name: block.length for block in event.blocks}
        for block, path in file_names(lengths).items():
            if block not in self._lengths:
                self._lengths[block] = lengths[block]
                self._paths[block] = path
                self._guard(block, self._create, path, lengths[block])
                if block in self._paths:
                    self.names.append(block if block == f"/{path}" else path)

    def _begin_again(self) -> None:
        self._edited.clear()
        self._held = 0
        self.flush()
        for block, path in self._paths.items():
            self._folder.remove(path)
            if (file := self._open.pop(block, None)) is not None:
                os.close(file)
        self.names.clear()
        self.states = PageStates()
        for kept in (self._lengths, self._paths, self._written):
            kept.clear()
        if self._first_seen is not None:
            self._first_seen("", np.empty(0, np.uint64))

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

    def _take(self, part: RamPages) -> None:
        """Records of distinct pages, whose order does not matter therefore."""
        block, addresses, normal, zero = part.block, part.addresses, part.normal, part.zero
        whole = normal | zero
        marks = np.where(zero, np.uint8(ZERO), np.uint8(0))
        before, newer = self.states.enter(block, addresses // part.page_size, marks, part.round)
        if self._first_seen is not None and len(fresh := addresses[before == UNSENT]):
            self._first_seen(block, fresh)
        if not newer.all():
            normal, zero, whole = normal & newer, zero & newer, whole | ~newer
        if edited := self._edited.get(block):
            for address in addresses[normal | zero].tolist():
                if edited.pop(address, None) is not None:
                    self._held -= part.page_size
        if zero.any():
            self._clear(block, addresses[zero], part.page_size)
        if normal.any():
            pages = [part.data[at : at + part.page_size] for at in part.bodies[normal].tolist()]
            self._write(block, addresses[normal], pages, part.page_size)
        if not whole.all():
            self._decode(part, np.flatnonzero(~whole), before)

    def _decode(self, part: RamPages, which: "NDArray[np.intp]", before: "NDArray[np.uint8]") -> None:
        """Records that are neither a page as it is nor a zero page."""
        block, size, data = part.block, part.page_size, part.data
        records = zip(
            part.addresses[which].tolist(),
            part.bodies[which].tolist(),
            part.lengths[which].tolist(),
            part.xbzrle[which].tolist(),
            before[which].tolist(),
            strict=True,
        )
        edited = self._edited.setdefault(block, {})
        for address, at, length, delta, state in records:
            try:
                if not length and not delta:
                    self.states.mark_broken(block, address // size)
                    continue
                if not delta:
                    page = inflate_page(data[at : at + length], size)
                    self._write(block, np.array([address], np.uint64), [page], size)
                    continue
                if state == UNSENT:
                    raise StreamProblem("xbzrle-unsent")
                if state & BROKEN:
                    self.states.mark_broken(block, address // size)
                    continue
                held = edited.get(address)
                if held is None:
                    held = self._load(block, edited, address, size)
                apply_delta(held, data, at, at + length)
            except StreamProblem as problem:
                self._broken(part, address, at, problem)

    def _broken(self, part: RamPages, address: int, at: int, problem: StreamProblem) -> None:
        self.states.mark_broken(part.block, address // part.page_size)
        if self._edited[part.block].pop(address, None) is not None:
            self._held -= part.page_size
        if len(self._problems) < MOST_PROBLEMS:
            place = (
                f"page {address:#x} of {escape(part.block)}, at offset {part.offset + at} of {part.channel}"
            )
            self._problems.append(f"{place}: {problem.text}")

    def _discarded(self, event: CommandSent) -> None:
        """Pages that the destination drops: they are zero until they come again."""
        block, ranges = event.arguments.get("block"), event.arguments.get("ranges")
        if not isinstance(block, str) or not isinstance(ranges, tuple) or block not in self._paths:
            return
        size, edited = self._page_size, self._edited.get(block, {})
        for start, length in ranges:
            stop = min(start + length, self._lengths[block])
            if size and start < stop:
                self.states.drop(block, start // size, -(-stop // size))
                for address in [address for address in edited if start <= address < stop]:
                    del edited[address]
                    self._held -= size
                self._guard(block, self._clear_range, block, start, min(stop, self._written_to(block)))

    # ------------------------------------------------------------ deltas

    def _load(self, block: str, edited: dict[int, bytearray], address: int, size: int) -> bytearray:
        """A page as it is in its file, to be changed in memory from here on."""
        if self._held + size > MOST_EDITED:
            self.flush()
        page = edited[address] = bytearray(os.pread(self._file(block), size, address))
        self._held += size
        return page

    def _write_back(self, block: str, pages: dict[int, bytearray]) -> None:
        addresses = sorted(pages)
        buffers = [pages[address] for address in addresses]
        self._write(block, np.array(addresses, np.uint64), buffers, self._page_size)

    # ------------------------------------------------------------ writing

    def _write(self, block: str, addresses: Pages, pages: Sequence[Data], size: int) -> None:
        """Write pages at ascending addresses."""
        file = self._file(block)
        for first in range(0, len(pages), MOST_BUFFERS):
            part, buffers = addresses[first : first + MOST_BUFFERS], pages[first : first + MOST_BUFFERS]
            starts, stops = runs(part, size)
            # the usual run is short: what is done for each is what extracting costs
            for start, stop, address in zip(starts, stops, part[starts].tolist(), strict=True):
                written = os.pwritev(file, buffers[start:stop], address)
                if written != (stop - start) * size:
                    _write_all(file, b"".join(buffers[start:stop])[written:], address + written)
        self._written[block] = max(self._written_to(block), int(addresses[-1]) + size)

    def _written_to(self, block: str) -> int:
        return self._written.get(block, 0)

    def _clear(self, block: str, addresses: Pages, size: int) -> None:
        """Make pages at ascending addresses zero."""
        stale = addresses[addresses < self._written_to(block)]
        if len(stale):
            for start, stop in zip(*runs(stale, size), strict=True):
                self._clear_range(block, int(stale[start]), int(stale[stop - 1]) + size)

    def _clear_range(self, block: str, start: int, stop: int) -> None:
        """Write zeroes where there is data between `start` and `stop`; holes stay."""
        file = self._file(block)
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


def _write_all(file: int, data: bytes, address: int) -> None:
    """Write what is left of a short write; raises the OSError that was its reason."""
    while data:
        written = os.pwrite(file, data, address)
        data, address = data[written:], address + written
