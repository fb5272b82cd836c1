"""Guest memory as the stream tells it: which pages were sent, when, and how many of each kind."""

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.events import DirtySync, HotRange, RamBlock
from migsniff.core.hotranges import Touched, hot_ranges
from migsniff.core.names import KnownNames
from migsniff.core.rounds import COMPLETE, LONG_AGO, NEVER, Rounds
from migsniff.core.tallies import GuestBlock, Tallies, fold, summary
from migsniff.core.wire import (
    MAX_PAGE_STATE_SLACK,
    PAGE_STATE_SEGMENT,
)

FIRST_PASS: Final = 2
LAST_PASS: Final = 254
IN_POSTCOPY: Final = 255


class GuestMemory:
    """All RAM blocks of one migration, and the passes over them as far as the wire shows them.

    `round` counts where the destination waits for all multifd channels: a channel does so at each packet with
    SYNC, the main channel at each MULTIFD_FLUSH, or at the end of each section if there are none (machine
    types up to 8.0). Postcopy, whose pages come on two channels and are the last, is a round of its own.
    """

    def __init__(self) -> None:
        self.page_size = 0
        self.blocks: dict[bytes, GuestBlock] = {}
        self.by_name: dict[str, GuestBlock] = {}  # the same by the names that events carry
        self._names: KnownNames | None = None
        self.iteration = 1
        self.round = 0
        self.flushes = False  # the main channel has MULTIFD_FLUSH records
        self._pass = FIRST_PASS  # what the pages of this pass are marked with
        self.rounds: Rounds | None = None  # there are multifd channels, whose rounds tell the passes
        self.round_tallies: dict[int, Tallies] = {}
        self.stretches: list[Callable[[], None]] = []  # what adds up to this pass, to be called at its end
        self.count_passes = True  # until postcopy, where pages come as they are asked for
        # False once compressed or multifd pages came, whose threads finish out of order, and in END
        self.ordered = True
        # QEMU looks for dirty pages between sections, and its scan goes around once in one at most
        self.may_end = True  # a pass, in this section of ram
        self.position = (-1, -1)  # block index and page of the last page record
        self.pass_tallies: Tallies = {}
        self.records = 0
        self.state_bytes = 0
        self.uncounted: list[Callable[[], None]] = []  # have each channel's last records counted
        self._touched: Touched = {}  # pages marked in this pass, by block and segment
        self._round_touched: dict[int, Touched] = {}
        self._pass_began = -1  # with rounds: the first one of the pass that is running
        self.scattered = False  # pages stand too far apart: there is no state for new segments any more

    def announce(self, blocks: list[tuple[bytes, RamBlock]]) -> None:
        """Take the list of blocks from the START of section ram."""
        self.blocks = {name: GuestBlock(i, block) for i, (name, block) in enumerate(blocks)}
        self.by_name = {block.name: block for block in self.blocks.values()}
        self._names = None
        self._touched, self._round_touched = {}, {}

    @property
    def names(self) -> KnownNames:
        """The names of the blocks."""
        if self._names is None:
            self._names = KnownNames(self.blocks)
        return self._names

    def set_page_size(self, page_size: int) -> None:
        """Give the target's page size, in bytes, before the first page is counted."""
        self.page_size = page_size
        for block in self.blocks.values():
            block.page_count = block.length // page_size

    def use_rounds(self, channel: str) -> Rounds:
        """There is a multifd channel: rounds tell the passes from here on."""
        rounds = self.rounds or self.begin_rounds()
        rounds.reached[channel] = 0
        return rounds

    def begin_rounds(self) -> Rounds:
        """Multifd channels are there, or will be seen: what the main channel had was their first pass."""
        self.rounds = Rounds()
        table = [NEVER, *[LONG_AGO] * 255]
        table[self._pass] = COMPLETE
        self._renumber(table)
        return self.rounds

    @property
    def lacks_channels(self) -> bool:
        """Whether the main channel's first pass had zero pages only, and not all: as with multifd up to 8.2.

        It can have been seen as a whole before the first byte of any other channel.
        """
        if self.rounds is not None or self.iteration > 1:
            return False
        sent, _ = summary(self.pass_tallies)
        most = sum(block.page_count for block in self.blocks.values())
        return not (sent.normal or sent.xbzrle or sent.compressed) and sent.zero < most

    def tallies(self, number: int) -> Tallies:
        """Where pages of a round are counted."""
        if self.rounds is None or not self.count_passes:
            return self.pass_tallies
        return self.round_tallies.setdefault(max(number, self.rounds.first), {})

    def next_round(self, channel: str, at: int, *, flush: bool = False) -> list[DirtySync]:
        """The main channel is at a MULTIFD_FLUSH, or the end of a section of ram: the passes that ended."""
        self.flushes |= flush
        if not flush and self.flushes:
            return []
        if self.rounds is not None and self.count_passes:
            for count in (*self.uncounted, *self.stretches):
                count()
        self.round += 1
        return self.completed(channel, at)

    def completed(self, channel: str, at: int, *, everything: bool = False) -> list[DirtySync]:
        """The passes that ended with the rounds that are complete now, or with all of them."""
        rounds = self.rounds
        if rounds is None or not self.count_passes:
            return []
        if everything:
            for end_stretch in self.stretches:
                end_stretch()
        ended = []
        while True:
            if rounds.begins_pass() and self.pass_tallies:
                ended.append(self.end_pass(channel, at, final=False))
            if not rounds.is_complete(self.round) and not (everything and self.round_tallies):
                break
            fold(self.round_tallies.pop(rounds.first, {}), self.pass_tallies)
            for key, pages in self._round_touched.pop(rounds.first, {}).items():
                self._touched[key] = self._touched.get(key, 0) + pages
            moved = rounds.moved()
            for block, tally in self.pass_tallies.items() if moved else ():
                tally.resent = max(0, min(tally.resent + moved.get(block.index, 0), tally.pages))
            rounds.first += 1
        table = rounds.renumber()
        if table is not None:
            self._renumber(table)
        return ended

    @property
    def caught_up(self) -> bool:
        """Whether all multifd channels, if there are any, have come as far as the main channel."""
        return not self.flushes if self.rounds is None else self.rounds.behind(self.round)

    def last_pass(self, channel: str, at: int) -> list[DirtySync]:
        """The last section of ram has ended, and all channels have come as far, or never will."""
        ended = self.completed(channel, at, everything=True)
        return [*ended, self.end_pass(channel, at, final=True)]

    def _renumber(self, table: list[int]) -> None:
        marks = np.array(table, np.uint8)
        for block in self.blocks.values():
            for number, segment in block.segments.items():
                block.segments[number] = marks[segment]

    def pass_ends_before(self, block: GuestBlock, page: int) -> bool:
        """Whether a page record belongs to the next pass: it goes back, or was sent in this one.

        A section ends one pass at most: what comes again behind that counts as sent again, no more.
        """
        if not self.may_end or not self.count_passes or self.rounds is not None:
            return False
        if self.ordered:
            return (block.index, page) <= self.position
        return self._last_sent(block, page) == self._pass

    def misfit(self, name: object, start: int, length: int) -> str | None:
        """Why these are no whole pages of the block with this readable name; None if they are."""
        block = self.by_name.get(name) if isinstance(name, str) else None
        if block is None:
            return "no block was named yet" if name is None else "there is no such block"
        if start + length > block.length:
            return f"the block is {block.length:#x} bytes long"
        if not self.page_size or not length or start % self.page_size or length % self.page_size:
            return f"not whole pages of {self.page_size} bytes"
        return None

    def count_all(self) -> None:
        """Count all records that came: only in postcopy, where no pass can end by it."""
        for count in () if self.count_passes else self.uncounted:
            count()

    def begin_postcopy(self) -> None:
        """No pass ends any more: pages come as they are asked for."""
        self.count_passes = False
        self._pass = IN_POSTCOPY

    def received(self, block: GuestBlock, first: int, bits: NDArray[np.uint8]) -> int:
        """Take in which of the pages from `first` on the destination has; returns how many.

        One that was sent and is missing was lost with the connection: it will be sent again.
        """
        bits = bits[: max(0, block.page_count - first)]
        at = 0
        while at < len(bits):
            number, start = divmod(first + at, PAGE_STATE_SEGMENT)
            some = bits[at : at + PAGE_STATE_SEGMENT - start]
            at += len(some)
            if (segment := block.segments.get(number)) is not None:
                states = segment[start : start + len(some)]
                states[(some == 0) & (states == IN_POSTCOPY)] = LONG_AGO
        return int(np.count_nonzero(bits))

    def end_pass(self, channel: str, at: int, *, final: bool) -> DirtySync:
        """The pass that is running ends at wire offset `at` of `channel`: its event, and the next begins."""
        if self.rounds is None:
            for end_stretch in self.stretches:
                end_stretch()
        counts, blocks = summary(self.pass_tallies)
        event = DirtySync(
            channel=channel,
            direction="fwd",
            offset=at,
            size=0,
            iteration=self.iteration,
            counts=counts,
            blocks=blocks,
            final=final,
            hot=self._hot() if self.iteration > 1 else (),
        )
        self.may_end = False
        self.pass_tallies = {}
        self._touched = {}
        self.iteration += 1
        self.position = (-1, -1)
        self._pass += 1
        if self._pass > LAST_PASS:
            self._pass = FIRST_PASS
            if self.rounds is None:
                self._renumber([NEVER, *[LONG_AGO] * 255])
        return event

    def _hot(self) -> tuple[HotRange, ...]:
        """Where the pass that is running sent most of its pages."""
        lowest, highest = self._pass, self._pass
        if self.rounds is not None:
            lowest, highest = self.rounds.mark_of(self._pass_began), LAST_PASS
            self._pass_began = self.rounds.pass_began
        return hot_ranges(
            self._touched,
            {block.index: (block.name, block.segments) for block in self.blocks.values()},
            lowest,
            highest,
            self.page_size,
        )

    def sent_in_postcopy(self, block: GuestBlock, page: int) -> bool:
        """Whether a page has been sent since postcopy began."""
        return self._last_sent(block, page) == IN_POSTCOPY

    def _last_sent(self, block: GuestBlock, page: int) -> int:
        segment = block.segments.get(page // PAGE_STATE_SEGMENT)
        return NEVER if segment is None else int(segment[page % PAGE_STATE_SEGMENT])

    def repeats_at(self, block: GuestBlock, pages: NDArray[np.uint64]) -> int:
        """How many of these ascending pages come before the first that this pass has sent already."""
        if self.rounds is not None or not self.may_end:
            return len(pages)
        for number, low, high in _by_segment(pages, int(pages[0]), int(pages[-1])):
            segment = block.segments.get(number)
            if segment is None:
                continue
            where = (pages[low:high] - np.uint64(number * PAGE_STATE_SEGMENT)).astype(np.intp)
            repeated = np.flatnonzero(segment[where] == self._pass)
            if len(repeated):
                return low + int(repeated[0])
        return len(pages)

    def mark(
        self,
        block: GuestBlock,
        pages: NDArray[np.uint64],
        first: int,
        last: int,
        number: int | None = None,
    ) -> int:
        """Count one more sending of distinct ascending `pages`; returns how many had been sent before.

        `number` is the round, if it is not the main channel's.
        """
        if number is None:
            number = self.round
        elif not self.count_passes:
            number = -1  # what is late was sent before postcopy
        segment = first // PAGE_STATE_SEGMENT
        if segment == last // PAGE_STATE_SEGMENT:
            return self._mark_in(block, segment, pages, first, last, number)
        return sum(
            self._mark_in(block, segment, pages[low:high], int(pages[low]), int(pages[high - 1]), number)
            for segment, low, high in _by_segment(pages, first, last)
        )

    def _mark_in(
        self, block: GuestBlock, number: int, pages: NDArray[np.uint64], first: int, last: int, round_: int
    ) -> int:
        """What `mark` does, for pages of one segment."""
        segment, rounds = self._segment(block, number), self.rounds
        count = len(pages)
        self.records += count
        if segment is None:
            return 0
        touched = self._touched
        if rounds is not None and self.count_passes:
            touched = self._round_touched.setdefault(max(round_, rounds.first), {})
        key = block.index, number
        touched[key] = touched.get(key, 0) + count
        base = number * PAGE_STATE_SEGMENT
        where: slice | NDArray[np.int64] = slice(first - base, last - base + 1)
        if last - first + 1 != count:
            where = (pages - np.uint64(base)).view(np.int64)
        seen = segment[where]
        resent = int(np.count_nonzero(seen))
        if rounds is None or (round_ >= 0 and not self.count_passes):
            segment[where] = self._pass
            return resent
        mark = self._mark_of(round_)
        if resent:
            marks = set(seen.tobytes())
            if self.count_passes:
                rounds.repeats(marks, round_)
            if max(marks) > mark:  # of later rounds, which other channels have come to
                if self.count_passes:
                    rounds.overtaken(block.index, seen[seen > np.uint8(mark)].tobytes(), round_)
                segment[where] = np.maximum(seen, np.uint8(mark))
                return resent
        segment[where] = mark
        return resent

    def _mark_of(self, number: int) -> int:
        return LONG_AGO if self.rounds is None or number < 0 else self.rounds.mark_of(number)

    def mark_one(self, block: GuestBlock, page: int) -> int:
        """Count one more sending of one page; returns 1 if it had been sent before, else 0."""
        if self.rounds is not None:
            return self.mark(block, np.array([page], np.uint64), page, page)
        number, at = divmod(page, PAGE_STATE_SEGMENT)
        segment = self._segment(block, number)
        self.records += 1
        if segment is None:
            return 0
        self._touched[block.index, number] = self._touched.get((block.index, number), 0) + 1
        sent_before = segment[at] != NEVER
        segment[at] = self._pass
        return 1 if sent_before else 0

    def _segment(self, block: GuestBlock, number: int) -> "NDArray[np.uint8] | None":
        segment = block.segments.get(number)
        if segment is not None:
            return segment
        size = min(PAGE_STATE_SEGMENT, block.page_count - number * PAGE_STATE_SEGMENT)
        # A stream that touches a page here and a page there could buy much memory with few bytes; a real one
        # fills its segments, so that it never comes near one byte a record. Once too much is always too much:
        # a later page must not be counted or not as its neighbours came in one batch with it or in the next.
        if self.scattered or self.state_bytes + size > MAX_PAGE_STATE_SLACK + self.records:
            self.scattered = True
            return None
        segment = block.segments[number] = np.zeros(size, np.uint8)
        self.state_bytes += size
        return segment


def _by_segment(pages: NDArray[np.uint64], first: int, last: int) -> list[tuple[int, int, int]]:
    """Ascending `pages` as (number of a segment, range of indices)."""
    number = first // PAGE_STATE_SEGMENT
    if number == last // PAGE_STATE_SEGMENT:
        return [(number, 0, len(pages))]
    numbers = pages // np.uint64(PAGE_STATE_SEGMENT)
    cuts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(pages)]
    return [(int(numbers[low]), low, high) for low, high in pairwise(cuts)]
