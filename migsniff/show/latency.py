"""Page faults in postcopy: how long the destination's guest waits for a page, as far as the wire shows it.

A fault is seen when its request passes and ends when its page does, so that what both need between here and
the destination is not in the time.
"""

from collections import Counter
from math import ceil, log2
from typing import Final

from migsniff.core.events import (
    Event,
    Finding,
    PageFault,
    ReturnPathMessage,
)
from migsniff.show.words import number, seconds, several

REQUESTS: Final = ("REQ_PAGES", "REQ_PAGES_ID")
MAX_WAITING: Final = 1 << 16
EXACT: Final = 4096  # values up to which percentiles are exact
STEPS: Final = 16  # of the histogram that comes then, for each doubling: 2 % off at most


class Latencies:
    """Times in microseconds: their number, largest, and percentiles, in bounded memory."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0
        self._values: list[int] = []
        self._buckets: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Take in one time."""
        self.count += 1
        self.largest = max(self.largest, value)
        if self.count <= EXACT:
            self._values.append(value)
            return
        if self._values:
            self._buckets = Counter(map(_bucket, self._values))
            self._values = []
        self._buckets[_bucket(value)] += 1

    def percentile(self, percent: float) -> int | None:
        """The least time that so many percent do not exceed; None without any."""
        if not self.count:
            return None
        rank = max(1, ceil(self.count * percent / 100))
        if self._values:
            return sorted(self._values)[rank - 1]
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                break
        return min(self.largest, round(2 ** ((bucket + 0.5) / STEPS)) - 1)


def _bucket(value: int) -> int:
    return int(log2(value + 1) * STEPS)


class FaultStats:
    """The requests of a destination: asked, answered, and how long that took.

    `again`: asked a second time, as after a recovery. `crossed`: the page had been sent already. `refused`:
    of no page that there is.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], int] = {}
        self._last: tuple[str, int] | None = None
        self.clear()

    def clear(self) -> None:
        """Count from here on; who waits goes on waiting."""
        self.asked = self.again = self.answered = self.crossed = self.refused = 0
        self.by_channel: Counter[str] = Counter()
        self.latencies = Latencies()

    def update(self, time: int, event: Event) -> int | None:
        """Take an event into account; returns how long the fault that it ends has lasted, if it is one."""
        match event:
            case ReturnPathMessage() if event.name in REQUESTS:
                self._ask(time, str(event.arguments.get("block", "")), event.arguments.get("start"))
            case PageFault():
                return self._end(time, event)
            case Finding() if event.code == "page-request" and self._last is not None:
                self.refused += 1
                self._since.pop(self._last, None)
        return None

    def _ask(self, time: int, block: str, address: object) -> None:
        assert isinstance(address, int)
        self.asked += 1
        key = self._last = block, address
        if key in self._since:
            self.again += 1
            return
        if len(self._since) >= MAX_WAITING:
            del self._since[next(iter(self._since))]
        self._since[key] = time

    def _end(self, time: int, event: PageFault) -> int | None:
        since = self._since.pop((event.block, event.address), None)
        if event.crossed:
            self.crossed += 1
            return None
        self.answered += 1
        if event.channel in self.by_channel or len(self.by_channel) < STEPS:
            self.by_channel[event.channel] += 1
        if since is None or not time:  # a dump has no times: all are 0
            return None
        self.latencies.add(time - since)
        return time - since

    @property
    def waiting(self) -> int:
        """How many have no answer (yet)."""
        return len(self._since)

    @property
    def idle(self) -> bool:
        """Whether nothing happened since it was made or cleared."""
        return not (self.asked or self.answered or self.crossed)

    def text(self) -> str:
        """All of it in one line."""
        parts = [f"{several(self.asked, 'page request')}, {number(self.answered)} answered"]
        if self.latencies.count:
            median, high = self.latencies.percentile(50), self.latencies.percentile(99)
            parts[0] += (
                f" (median {seconds(median)}, p99 {seconds(high)}, longest {seconds(self.latencies.largest)})"
            )
        for count, what in (
            (
                sum(self.by_channel[each] for each in self.by_channel if each.startswith("preempt")),
                "on preempt",
            ),
            (self.crossed, "sent before they were asked for"),
            (self.again, "asked again"),
            (self.refused, "not possible"),
            (self.waiting, "waiting"),
        ):
            if count:
                parts.append(f"{number(count)} {what}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON; times in seconds."""
        latencies = self.latencies
        times: dict[str, float | None] = {
            name: None if value is None else value / 1e6
            for name, value in (
                ("median", latencies.percentile(50)),
                ("p99", latencies.percentile(99)),
                ("max", latencies.largest if latencies.count else None),
            )
        }
        return {
            "asked": self.asked,
            "again": self.again,
            "answered": self.answered,
            "answered_by_channel": dict(self.by_channel),
            "crossed": self.crossed,
            "refused": self.refused,
            "waiting": self.waiting,
            "latency": {"count": latencies.count, **times},
        }
