"""What is known of each guest page while memory is put together: one byte a page."""

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.errors import StreamProblem

SEGMENT: Final = 4096  # pages whose state is made together
MAX_STATE_SLACK: Final = 16 << 20  # bytes of page state beside one for each page record

UNSENT: Final = 0
ROUND: Final = 0x3F  # these bits of a state: the round that the page came in, in its short form; 0: none yet
ZERO: Final = 0x40  # it came last as a zero page
BROKEN: Final = 0x80  # what came last could not be read

Pages = NDArray[np.uint64]
States = NDArray[np.uint8]


class PageStates:
    """The state of each page, in segments that are made when the first of their pages comes.

    Rounds are told apart as far as channels can be behind each other: the latest 31 to 62, and all before.
    `late` counts pages that came in one of those before, for which it is not known whether they are newer.
    """

    def __init__(self) -> None:
        self.late = 0
        self._segments: dict[tuple[str, int], States] = {}
        self._records = 0
        self._first = 0  # the round whose short form is 1
        self._newest = 0

    def enter(
        self, block: str, pages: Pages, marks: States, round_: int
    ) -> tuple[States, "NDArray[np.bool_]"]:
        """Ascending distinct page numbers come in a round, with these marks (0, ZERO or BROKEN).

        Returns their states before, and which of them are not older than what was there: only those change.
        Raises StreamProblem (pages-scattered) before few records could buy much memory; no guest is so.
        """
        self._newest = max(self._newest, round_)
        short = self._short(round_)
        self._records += len(pages)
        first, last = int(pages[0]) // SEGMENT, int(pages[-1]) // SEGMENT
        if first == last:
            before, newer = self._enter_in(block, first, pages, marks, short)
        else:
            numbers = pages // SEGMENT
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(pages)]
            found = [
                self._enter_in(block, int(numbers[start]), pages[start:stop], marks[start:stop], short)
                for start, stop in pairwise(cuts)
            ]
            before, newer = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if short < 1:
            self.late += int(np.count_nonzero(~newer))
        return before, newer

    def _enter_in(
        self, block: str, number: int, pages: Pages, marks: States, short: int
    ) -> tuple[States, "NDArray[np.bool_]"]:
        """What `enter` does, for pages of one segment."""
        segment = self._segment(block, number)
        where = (pages - np.uint64(number * SEGMENT)).astype(np.intp)
        before = segment[where]
        newer = (before & ROUND) <= max(short, 0)
        states = marks | np.uint8(max(short, 1))
        segment[where] = states if newer.all() else np.where(newer, states, before)
        return before, newer

    def drop(self, block: str, start: int, stop: int) -> None:
        """Pages from `start` up to `stop` are discarded: until they come again they are zero."""
        state = np.uint8(self._short(self._newest + 1) | ZERO)
        for (name, number), segment in self._segments.items():
            first = number * SEGMENT
            if name == block and start < first + SEGMENT and first < stop:
                part = segment[max(0, start - first) : stop - first]
                part[part != UNSENT] = state

    def mark_broken(self, block: str, page: int) -> None:
        """What came of a page that has a state cannot be read."""
        self._segments[block, page // SEGMENT][page % SEGMENT] |= BROKEN

    def get(self, block: str, page: int) -> int:
        """The state of one page."""
        segment = self._segments.get((block, page // SEGMENT))
        return UNSENT if segment is None else int(segment[page % SEGMENT])

    def numbers(self, block: str) -> list[int]:
        """The segments of a block in which pages have come, ascending."""
        return sorted(number for name, number in self._segments if name == block)

    def segment(self, block: str, number: int) -> "States | None":
        """The states of the pages of one segment; None if none of them has come."""
        return self._segments.get((block, number))

    def count(self, mark: int) -> int:
        """How many pages have a mark."""
        return sum(int(np.count_nonzero(segment & mark)) for segment in self._segments.values())

    def _short(self, round_: int) -> int:
        """The short form of a round; less than 1 if it is not told apart any more."""
        gone = round_ - self._first + 1 - ROUND
        if gone > 0:
            gone += ROUND // 2
            self._first += gone
            gone = min(gone, ROUND)
            for segment in self._segments.values():
                rounds = segment & ROUND
                moved = np.where(rounds > gone, rounds - np.uint8(gone), np.minimum(rounds, 1))
                segment[:] = segment & (ZERO | BROKEN) | moved
        return round_ - self._first + 1

    def _segment(self, block: str, number: int) -> States:
        segment = self._segments.get((block, number))
        if segment is None:
            if len(self._segments) * SEGMENT > MAX_STATE_SLACK + self._records:
                raise StreamProblem("pages-scattered", limit=MAX_STATE_SLACK)
            segment = self._segments[block, number] = np.zeros(SEGMENT, np.uint8)
        return segment
