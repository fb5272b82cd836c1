"""What the model of a migration is made of: RAM blocks, passes, devices, messages, throughput."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from migsniff.core.events import PageCounts

SAMPLE_EVERY: Final = 50_000
WINDOW: Final = 1_000_000


@dataclass(slots=True)
class BlockStats:
    """Pages of one RAM block: `pages` sent in all, `distinct` of them for the first time."""

    name: str
    length: int
    pages: int = 0
    distinct: int = 0
    bytes: int = 0


@dataclass(slots=True)
class PassStats:
    """One pass over guest memory; `ended` is None for one that runs or was cut off.

    `dirty_rate`: pages a second that the guest dirtied, which is what this pass had to send for the time
    that the pass before it took, or for which the guest ran before a checkpoint of COLO. `remaining`: pages
    not sent yet, known in the first pass only.
    """

    iteration: int
    began: int | None
    ended: int | None
    counts: PageCounts
    dirty_rate: float | None = None
    remaining: int | None = None
    final: bool = False
    running: bool = False

    @property
    def duration(self) -> int | None:
        """Microseconds; None when it is not known."""
        return None if self.began is None or self.ended is None else self.ended - self.began


@dataclass(slots=True, order=True)
class DeviceStats:
    """The state of one device; `since`: microseconds after the device before it."""

    size: int
    name: str
    time: int
    since: int | None


@dataclass(slots=True)
class MessageStats:
    """A message of the return path with its first argument."""

    time: int
    name: str
    value: object


class Throughput:
    """Bytes a second, over the last second or so, from samples that are SAMPLE_EVERY apart."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque([(0, 0)])
        self._total = 0
        self._last = 0

    def add(self, time: int, total: int) -> None:
        """`total` bytes had passed by `time`."""
        samples = self._samples
        self._total = total
        self._last = time
        if time - samples[-1][0] < SAMPLE_EVERY:
            return
        samples.append((time, total))
        while samples[1][0] <= time - WINDOW:
            samples.popleft()

    def now(self, time: int) -> float | None:
        """The rate in the second before `time`; None before any time has passed."""
        if time - self._last >= WINDOW:
            return 0.0
        samples = list(self._samples)
        began, before = next((s for s in reversed(samples) if s[0] <= time - WINDOW), samples[0])
        return (self._total - before) * 1e6 / (time - began) if time > began else None


def add(one: PageCounts, other: PageCounts) -> PageCounts:
    """Both together."""
    return PageCounts(
        one.normal + other.normal,
        one.zero + other.zero,
        one.xbzrle + other.xbzrle,
        one.compressed + other.compressed,
        one.bytes + other.bytes,
        one.resent + other.resent,
    )


def subtract(one: PageCounts, other: PageCounts) -> PageCounts:
    """What `one` has more than `other`, nothing below zero."""
    return PageCounts(
        max(0, one.normal - other.normal),
        max(0, one.zero - other.zero),
        max(0, one.xbzrle - other.xbzrle),
        max(0, one.compressed - other.compressed),
        max(0, one.bytes - other.bytes),
        max(0, one.resent - other.resent),
    )
