"""Whether a migration will ever end: what each pass over guest memory had to send, against the bandwidth.

QEMU ends precopy when what remains can be sent within downtime-limit (migration/migration.c, 300 ms unless
set). What a pass sends is what the guest dirtied while the pass before it was sent: if that does not become
less, it is the floor below which nothing will ever get, and only time passes.
"""

from collections import deque
from collections.abc import Iterator
from math import ceil, log
from typing import ClassVar, Final, NamedTuple

from migsniff.core.events import (
    DirtySync,
    Event,
    Finding,
    Header,
    HotRange,
    Package,
    RamBlocks,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name, rate, seconds, several, wire

DOWNTIME_LIMIT: Final = 300_000  # µs: QEMU's default
PASSES: Final = 3  # complete ones behind the first that are looked at together
FALLS: Final = 0.8  # of the floor: with less than that to send it is getting nearer to its end
LEAST: Final = 1_000_000  # µs that those passes must have taken
LEVEL: Final = 0.97  # from here on a pass is as large as the one before it
MAX_PASSES: Final = 256
TELLINGS: Final = 24


class Pass(NamedTuple):
    """A complete pass: bytes and pages sent, and in how many µs."""

    number: int
    bytes: int
    pages: int
    duration: int
    hot: tuple[HotRange, ...]


@rule("not-converging", "converging", "did-not-converge")
class Convergence(Rule):
    """Tells of a migration whose passes do not become smaller, again after twice the time, or of a change."""

    watches: ClassVar = (Header, RamBlocks, DirtySync, Package, Verdict)

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """A migration begins, which may not be the first try."""
        self._began: int | None = None
        self._last: deque[Pass] = deque(maxlen=PASSES)
        self._floor: Pass | None = None  # of the passes before those
        self._passes = self._bytes = self._memory = 0
        self._precopy_over = False
        self._told: Pass | None = None  # the floor that was told, while it does not converge
        self._fell: Finding | None = (
            None  # to be told if the pass was whole: the END of ram may have cut it short
        )
        self._next = 0  # time at which to tell again
        self._tellings = 0

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        match event:
            case Header():
                self._begin()
            case RamBlocks():
                self._began, self._memory = time, event.total
            case Package():
                self._precopy_over = True
            case DirtySync() if self._began is not None and not self.past.lost(event):
                self._passes += 1
                self._bytes += event.counts.bytes
                self._precopy_over |= event.final
                if self._fell is not None and not self._precopy_over:
                    yield self._fell
                self._fell = None
                if self._passes > 1 and time > self._began and not self._precopy_over:
                    duration = time - self._began
                    yield from self._ended(
                        time,
                        event,
                        Pass(event.iteration, event.counts.bytes, event.counts.pages, duration, event.hot),
                    )
                self._began = time
            case Verdict() if self._told is not None and not (event.ok or self._precopy_over):
                yield finding(
                    "did-not-converge",
                    event,
                    passes=self._passes,
                    sent=wire(self._bytes),
                    times=f"{self._bytes / self._memory:.1f}" if self._memory else "many",
                    floor=self._floor_text(self._told),
                )

    def _ended(self, time: int, event: DirtySync, ended: Pass) -> Iterator[Finding]:
        if len(self._last) == PASSES:
            oldest = self._last[0]
            if self._floor is None or oldest.bytes < self._floor.bytes:
                self._floor = oldest
        self._last.append(ended)
        if len(self._last) < PASSES or self._floor is None or self._tellings >= TELLINGS:
            return
        lowest = min(self._last, key=lambda each: each.bytes)
        floor = min(self._floor, lowest, key=lambda each: each.bytes)
        falls = lowest.bytes < FALLS * self._floor.bytes
        long = sum(each.duration for each in self._last) >= LEAST
        if not falls and long and _time_of(floor, self._last) > DOWNTIME_LIMIT:
            if self._told is None or time >= self._next:
                self._next = 2 * time
                self._told = floor
                self._tellings += 1
                yield self._not_converging(event, floor)
        elif self._told is not None and lowest.bytes < FALLS * self._told.bytes:
            self._told = None
            self._tellings += 1
            self._fell = self._converging(event, ended)

    def _not_converging(self, event: DirtySync, floor: Pass) -> Finding:
        last = self._last
        took = sum(each.duration for each in last)
        sent = sum(each.bytes for each in last)
        dirtied = sum(each.bytes for each in list(last)[1:]) / sum(each.duration for each in list(last)[:-1])
        hot = last[-1].hot
        return finding(
            "not-converging",
            event,
            section="ram/0",
            field=hot[0].block if hot else "",
            size=0,
            number=last[-1].number,
            dirty=rate(dirtied * 1e6),
            bandwidth=rate(sent * 1e6 / took),
            estimate=_to_go(floor, _trend(last)) or "at this rate it never ends",
            floor=self._floor_text(floor),
            downtime=seconds(_time_of(floor, last)),
            limit=seconds(DOWNTIME_LIMIT),
            hot=_hot_text(hot),
            ways=(
                "postcopy is possible: migrate-start-postcopy ends it"
                if "POSTCOPY_ADVISE" in self.past.commands
                else "a higher max-bandwidth, a downtime-limit above that, auto-converge or postcopy-ram "
                "would end it"
            ),
        )

    def _converging(self, event: DirtySync, ended: Pass) -> Finding:
        before = self._last[-2]
        ratio = ended.bytes / before.bytes if before.bytes else 0.0
        return finding(
            "converging",
            event,
            section="ram/0",
            number=ended.number,
            sent=wire(ended.bytes),
            togo=_to_go(ended, ratio) or "it may end with the next pass",
        )

    def _floor_text(self, floor: Pass) -> str:
        return f"{wire(floor.bytes)} (pass {floor.number}, {several(floor.pages, 'page')})"


def _time_of(floor: Pass, last: deque[Pass]) -> int:
    """µs that sending as much would take at the bandwidth of the last passes."""
    sent = sum(each.bytes for each in last)
    return int(floor.bytes * sum(each.duration for each in last) / sent) if sent else 0


def _trend(last: deque[Pass]) -> float:
    """By what factor a pass was smaller than the one before it."""
    first, newest = last[0].bytes, last[-1].bytes
    return (newest / first) ** (1 / (len(last) - 1)) if first else 0.0


def _to_go(ended: Pass, ratio: float) -> str:
    """How many passes it takes until what remains can be sent at once; "" if one will do, or none ever."""
    enough = DOWNTIME_LIMIT * ended.bytes / ended.duration
    left = ended.bytes * ratio
    if not 0 < ratio < LEVEL or left <= enough:
        return ""
    more = ceil(log(enough / left) / log(ratio))
    time = sum(ended.duration * ratio ** (number + 1) for number in range(min(more, MAX_PASSES)))
    passes = "1 more pass" if more == 1 else f"{more} more passes"
    return f"at this rate {passes}, about {seconds(int(time))}, to go"


def _hot_text(hot: tuple[HotRange, ...]) -> str:
    if not hot:
        return "the pages are scattered"
    texts = [
        f"{name(each.block)}[{each.first:#x}..{each.last:#x}] ({several(each.pages, 'page')})"
        for each in hot[:3]
    ]
    blocks = {each.block for each in hot}
    what = f"block {name(hot[0].block)} is hot: " if len(blocks) == 1 else "hot: "
    return what + ", ".join(texts)
