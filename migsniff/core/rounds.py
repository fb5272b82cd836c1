"""Rounds: what orders the pages of several multifd channels, and what tells one pass from the next there.

QEMU sends a SYNC packet on each channel, and waits for all, before it goes over memory again (migration/ram.c
find_dirty_block, QEMU 5.2 to 11.1): within a round no page comes twice, and how channels overtake each other
tells nothing. A round is complete when all channels are behind it. It begins a pass if it has a page that the
running pass has sent already.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

NEVER: Final = 0
LONG_AGO: Final = 1
COMPLETE: Final = 2
FIRST_ROUND: Final = 3
LAST_ROUND: Final = 254
MAX_AHEAD: Final = 64  # rounds that the fastest channel may be ahead before the slowest is not waited for


class Rounds:
    """What each channel has reached, and what pages are marked with.

    A page sent in a round is marked with FIRST_ROUND or more, with COMPLETE if that was before `base`, which
    only the running pass can be. `first` is the first round that is not complete yet, `reached` how many
    SYNC packets each channel has sent.
    """

    def __init__(self) -> None:
        self.first = self.base = 0
        self.pass_began = -1  # in pages that came before the first round, if there were any
        self.reached: dict[str, int] = {}
        self.lowest: int | None = None  # number of a packet with pages
        self.settled = True  # it was looked what has ended since `lowest` changed
        self._repeated: dict[int, int] = {}  # round -> the newest one before it with one of its pages
        self._moved: dict[int, dict[int, int]] = {}  # round -> block -> what to add to its pages sent again

    def mark_of(self, number: int) -> int:
        """What pages of a round are marked with."""
        return max(COMPLETE, FIRST_ROUND + number - self.base)

    def repeats(self, marks: Iterable[int], number: int) -> None:
        """Pages of a round come that have these marks."""
        for mark in marks:
            other = self.base + mark - FIRST_ROUND
            if mark >= COMPLETE and other != number:
                newer, older = max(other, number), min(other, number)
                if newer >= self.first and older >= self.pass_began:
                    self._repeated[newer] = max(older, self._repeated.get(newer, older))

    def packet(self, number: int) -> None:
        """A packet with pages has this number."""
        if self.lowest is None or number < self.lowest:
            self.lowest = number
            self.settled = False

    @property
    def may_end(self) -> bool:
        """Whether pages that came may have ended something."""
        return not self.settled or self.first in self._repeated

    def overtaken(self, block: int, marks: Iterable[int], number: int) -> None:
        """Pages of a round come behind those of later rounds, whose marks they have.

        It is the later round that has sent them again, whichever came first.
        """
        here = max(number, self.first)
        for mark, count in Counter(marks).items():
            later = max(self.base + mark - FIRST_ROUND, self.first)
            for round_, pages in ((here, -count), (later, count)) if later != here else ():
                moved = self._moved.setdefault(round_, {})
                moved[block] = moved.get(block, 0) + pages

    def moved(self) -> dict[int, int]:
        """By block: what to add to the pages that the first round has sent again. Asked once."""
        return self._moved.pop(self.first, {})

    @property
    def all_known(self) -> bool:
        """Whether all channels have shown themselves: of the numbered packets one SYNC of each is first."""
        return self.lowest is not None and len(self.reached) >= self.lowest

    def behind(self, number: int) -> bool:
        """Whether all channels have ended as many rounds."""
        return self.all_known and min(self.reached.values()) >= number

    def is_complete(self, main: int) -> bool:
        """Whether all channels are behind the first round, and the main one, at `main`."""
        newest = max([main, *self.reached.values()])
        return self.first < newest - MAX_AHEAD or (self.first < main and self.behind(self.first + 1))

    def begins_pass(self) -> bool:
        """Whether the first round, before which all are complete, turns out to begin a pass."""
        self.settled = True
        older = self._repeated.pop(self.first, None)
        begins = older is not None and older >= self.pass_began
        if begins:
            self.pass_began = self.first
        return begins

    def renumber(self) -> list[int] | None:
        """New marks for old ones, by their number, when the marks run out."""
        newest = max(self.reached.values(), default=self.first)
        if self.mark_of(newest + MAX_AHEAD) <= LAST_ROUND:
            return None
        shift = self.first - self.base
        table = list(range(LAST_ROUND + 2))
        for mark in range(COMPLETE, LAST_ROUND + 1):
            number = self.base + mark - FIRST_ROUND
            if number < self.pass_began:
                table[mark] = LONG_AGO
            elif number < self.first:
                table[mark] = COMPLETE
            else:
                table[mark] = mark - shift
        self.base = self.first
        return table
