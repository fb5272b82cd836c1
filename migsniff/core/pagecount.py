"""Counting page records: by block, kind, section and pass, a thousand at a time.

The reader of a channel collects the records' words here; they are counted when there are enough of them, or
when something ends. The number is fixed, so that what is told, and when, does not depend on the cuts.
"""

from array import array
from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.events import BlockPages, DirtySync, PageCounts
from migsniff.core.pages import GuestMemory
from migsniff.core.tallies import GuestBlock, Tallies, Tally, fold, summary
from migsniff.core.wire import RamFlag

ZERO, PAGE, XBZRLE = int(RamFlag.ZERO), int(RamFlag.PAGE), int(RamFlag.XBZRLE)
WORD: Final = 8
BATCH: Final = 1024  # words that are counted together
FEW: Final = 8  # words up to which counting them one by one is faster


class PageCounter:
    """The records of one channel that are still to be counted, and the counts of its section.

    `words` (address and flags) and `lengths` (of the XBZRLE records among them) are of records of `block`
    that begin at wire offset `start`; `name_size` is what the first of them takes for the block's name.
    `passed` are the passes that ended and were not told yet.
    """

    def __init__(self, channel: str, memory: GuestMemory) -> None:
        self.memory = memory
        self.block: GuestBlock | None = None
        self.words = array("Q")
        self.lengths = array("Q")
        self.start = 0
        self.name_size = 0
        self.passed: list[DirtySync] = []
        self._channel = channel
        memory.uncounted.append(self.flush)
        self._tallies: Tallies = {}  # of this section, since the last pass began
        self._section: Tallies = {}
        memory.stretches.append(self._end_stretch)

    # ------------------------------------------------------------ what ends

    def begin_section(self) -> None:
        """A section begins."""
        self._section = {}

    def end_section(self) -> tuple[PageCounts, tuple[BlockPages, ...]]:
        """The section ends: what it carried, in all and by block."""
        self.flush()
        self._end_stretch()
        return summary(self._section)

    def add(self, tallies: Tallies) -> None:
        """Count pages that came without records, each once."""
        fold(tallies, self._tallies)
        self.memory.records += sum(tally.normal for tally in tallies.values())

    def end_pass(self, at: int, *, final: bool) -> DirtySync:
        """The pass that is running ends at wire offset `at`: its event, and the next one begins."""
        return self.memory.end_pass(self._channel, at, final=final)

    def _end_stretch(self) -> None:
        if self._tallies:
            fold(self._tallies, self._section)
            fold(self._tallies, self.memory.tallies(self.memory.round))
            self._tallies = {}

    # ------------------------------------------------------------ counting

    def collect(self, block: GuestBlock, word: int, length: int | None, name_size: int, start: int) -> None:
        """Collect one record that begins at wire offset `start`. `length`: of its delta, if it is XBZRLE."""
        if not self.words:
            self.block, self.start, self.name_size = block, start, name_size
        self.words.append(word)
        if length is not None:
            self.lengths.append(length)
        self.count_batch()

    def one(self, block: GuestBlock, page: int, kind: str, size: int, at: int) -> None:
        """Count one record of `size` bytes at wire offset `at`, behind those collected."""
        memory = self.memory
        if memory.pass_ends_before(block, page):
            self.passed.append(self.end_pass(at, final=False))
        tally = self._tally(block)
        setattr(tally, kind, getattr(tally, kind) + 1)
        tally.bytes += size
        tally.resent += memory.mark_one(block, page)
        tally.span(page * memory.page_size, page * memory.page_size)
        memory.position = (block.index, page)

    def count_batch(self) -> bool:
        """Count a batch of what was collected; False if there is no whole one."""
        size = self._batch()
        if not size:
            return False
        words, lengths = self.words[size:], self.lengths
        self.words = self.words[:size]
        variable = int(np.count_nonzero(np.frombuffer(self.words, np.uint64) & np.uint64(XBZRLE)))
        self.lengths = lengths[:variable]
        end = self._count_collected()
        self.words, self.lengths, self.start, self.name_size = words, lengths[variable:], end, 0
        return True

    def _batch(self) -> int:
        """How many words make the next batch: all whole ones, if counted at once they give the same."""
        whole = len(self.words) // BATCH * BATCH
        if whole <= BATCH:
            return whole
        pages = np.frombuffer(self.words, np.uint64)[:whole] >> self._shift
        return whole if self.memory.ordered and (pages[1:] > pages[:-1]).all() else BATCH

    @property
    def _shift(self) -> np.uint64:
        """Bits by which a word is its page's number."""
        return np.uint64(self.memory.page_size.bit_length() - 1)

    def flush(self) -> None:
        """Count all that was collected."""
        if self.words:
            self._count_collected()
            self.words, self.lengths, self.name_size = array("Q"), array("Q"), 0

    def _count_collected(self) -> int:
        """Count what was collected; returns the wire offset behind it."""
        if len(self.words) <= FEW:
            return self._count_each()
        block, memory = self.block, self.memory
        assert block is not None
        batch = np.frombuffer(self.words, np.uint64)
        pages = batch >> self._shift
        back = np.flatnonzero(pages[1:] <= pages[:-1]) + 1
        if memory.ordered and not len(back):
            if memory.pass_ends_before(block, int(pages[0])):
                self.passed.append(self.end_pass(self.start, final=False))
            return self.start + self._count(block, batch, pages, self.lengths, self.name_size)
        if len(back) * FEW > len(pages):
            return self._count_each()
        return self._count_runs(block, batch, pages, [*back.tolist(), len(pages)])

    def _count_each(self) -> int:
        block, page_size, at = self.block, self.memory.page_size, self.start
        assert block is not None
        deltas = iter(self.lengths)
        name_size = self.name_size
        for word in self.words:
            if word & PAGE:
                kind, size = "normal", WORD + page_size
            elif word & XBZRLE:
                kind, size = "xbzrle", WORD + 3 + next(deltas)
            else:
                kind, size = "zero", WORD + 1
            self.one(block, word // page_size, kind, size + name_size, at)
            at += size + name_size
            name_size = 0
        return at

    def _count_runs(
        self, block: GuestBlock, batch: NDArray[np.uint64], pages: NDArray[np.uint64], cuts: list[int]
    ) -> int:
        """Count a batch in which addresses go back: run by run, ending a pass where one ends."""
        memory = self.memory
        headers, bodies = layout(batch, self.lengths, memory.page_size)
        ends = np.cumsum(headers + bodies) + np.uint64(self.start + self.name_size)
        deltas = np.cumsum((batch & np.uint64(XBZRLE)) != 0)
        low, at = 0, self.start
        for cut in cuts:
            while low < cut:
                high = cut
                if memory.pass_ends_before(block, int(pages[low])):
                    self.passed.append(self.end_pass(at, final=False))
                if not memory.ordered:  # one page of the run may be the first that comes again
                    high = low + max(1, memory.repeats_at(block, pages[low:cut]))
                lengths = self.lengths[int(deltas[low - 1]) if low else 0 : int(deltas[high - 1])]
                name_size = 0 if low else self.name_size
                self._count(block, batch[low:high], pages[low:high], lengths, name_size)
                low, at = high, int(ends[high - 1])
        return at

    def _count(
        self,
        block: GuestBlock,
        batch: NDArray[np.uint64],
        pages: NDArray[np.uint64],
        lengths: "array[int]",
        name_size: int,
    ) -> int:
        """Count ascending pages of one pass; returns the bytes that their records take."""
        memory = self.memory
        normal = int(np.count_nonzero(batch & np.uint64(PAGE)))
        zero = len(batch) - normal - len(lengths)
        size = (WORD + memory.page_size) * normal + (WORD + 1) * zero + name_size
        if lengths:
            size += (WORD + 3) * len(lengths) + int(np.frombuffer(lengths, np.uint64).sum())
        first, last = int(pages[0]), int(pages[-1])
        tally = self._tally(block)
        tally.normal += normal
        tally.xbzrle += len(lengths)
        tally.zero += zero
        tally.bytes += size
        tally.resent += memory.mark(block, pages, first, last)
        tally.span(first * memory.page_size, last * memory.page_size)
        memory.position = (block.index, last)
        return size

    def _tally(self, block: GuestBlock) -> Tally:
        tally = self._tallies.get(block)
        if tally is None:
            tally = self._tallies[block] = Tally()
        return tally


def layout(
    batch: NDArray[np.uint64], lengths: "array[int]", page_size: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Bytes of header and of contents of each record of a batch (without a block's name)."""
    headers = np.full(len(batch), WORD, np.uint64)
    headers[(batch & np.uint64(ZERO)) != 0] = WORD + 1
    bodies = ((batch & np.uint64(PAGE)) != 0) * np.uint64(page_size)
    if lengths:
        delta = (batch & np.uint64(XBZRLE)) != 0
        headers[delta] = WORD + 3
        bodies[delta] = np.frombuffer(lengths, np.uint64)
    return headers, bodies
