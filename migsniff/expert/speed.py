"""Who limits the speed: the source, the link to the destination, or the destination.

Once a second the kernel tells what it did on both legs. What matters of the leg towards the destination:
`waited`, how long bytes stood before it and could not go on; `rwnd_limited`, how long the destination had no
room for them (linux/tcp.h), because it does not read. If bytes hardly wait, they do not come faster.
"""

from collections.abc import Iterator
from typing import ClassVar, Final, NamedTuple

from migsniff.core.events import Event, Finding, TcpInfo
from migsniff.expert.codes import finding
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import rate, several, wire

SECOND: Final = 500_000  # µs: samples that are nearer to each other are of one second
SURE: Final = 3  # seconds that must agree
WAITS, HARDLY = 0.6, 0.5  # of the time: bytes wait for whoever receives them; they do not
FULL: Final = 0.5  # of the time in which bytes were on their way the destination had no room
SLOWEST: Final = 1000  # bytes a second: less is silence
STEADY: Final = (
    0.02  # how much the rate of a second differs at most from the mean, if something holds it there
)
STEADY_SECONDS: Final = 5
CHANNELS: Final = 256
TELLINGS: Final = 16


class Second(NamedTuple):
    """What one second brought on all legs towards the destination. Times are µs, `took` of the second."""

    took: int
    bytes: int
    waited: int
    busy: int
    full: int
    retransmitted: int
    told: bool  # there is more than `waited`: it is TCP


@rule("limited-by-source", "limited-by-link", "limited-by-destination")
class Speed(Rule):
    """Says who limits the speed when it is clear, and again when it changes."""

    watches: ClassVar = (TcpInfo,)

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, dict[str, int]]] = {}  # channel -> time and counters
        self._now: list[Second] = []
        self._since = 0
        self._agree: list[Second] = []
        self._who = self._told = ""
        self._tellings = 0

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one sample into account."""
        assert isinstance(event, TcpInfo)
        if event.leg != "destination":
            return
        if self._now and time - self._since > SECOND:
            yield from self._decide(event)
            self._now = []
        if not self._now:
            self._since = time
        counters = {key: value for key, value in event.facts.items() if isinstance(value, int)}
        counters["offset"] = event.offset
        before = self._last.get(event.channel)
        if before is None and len(self._last) >= CHANNELS:
            return
        self._last[event.channel] = time, counters
        if before is not None and time > before[0]:
            self._now.append(_second(time - before[0], before[1], counters))

    def _decide(self, event: TcpInfo) -> Iterator[Finding]:
        """All samples of a second have come."""
        seconds = self._now
        total = sum(each.bytes for each in seconds)
        # a channel that waits says nothing if the bytes go over another
        loaded = [each for each in seconds if each.bytes * len(seconds) >= total]
        second = Second(
            max(each.took for each in seconds),
            total,
            sum(each.waited for each in loaded) // len(loaded),
            sum(each.busy for each in loaded),
            sum(each.full for each in loaded),
            sum(each.retransmitted for each in seconds),
            all(each.told for each in seconds),
        )
        who = _limiter(second)
        if who != self._who:
            self._who, self._agree = who, []
        if not who:
            return
        self._agree.append(second)
        del self._agree[:-STEADY_SECONDS]
        enough = len(self._agree) >= (SURE if not self._told else STEADY_SECONDS)
        if who == self._told or not enough or self._tellings >= TELLINGS:
            return
        self._told = who
        self._tellings += 1
        yield self._tell(who, event)

    def _tell(self, who: str, event: TcpInfo) -> Finding:
        took = sum(each.took for each in self._agree)
        total = sum(each.bytes for each in self._agree)
        speed, time = rate(total * 1e6 / took), f"{took / 1e6:.1f} s"
        waited = f"{sum(each.waited for each in self._agree) / 1e6:.1f} s"
        window = event.facts.get("snd_wnd")
        room = f"a window of {wire(window)}" if isinstance(window, int) else "no TCP window is known"
        lost = sum(each.retransmitted for each in self._agree)
        again = f", {several(lost, 'segment')} had to be sent again" if lost else ""
        if who == "source":
            return finding(
                "limited-by-source",
                event,
                size=0,
                constant=self._constant(),
                rate=speed,
                waited=waited,
                time=time,
            )
        if who == "link":
            return finding(
                "limited-by-link",
                event,
                size=0,
                window=room,
                lost=again,
                rate=speed,
                waited=waited,
                time=time,
            )
        known = self._agree[-1].told
        ready = f", {room}" if known else " (or the way to it: on a unix socket nothing tells them apart)"
        return finding(
            "limited-by-destination", event, size=0, window=ready, rate=speed, waited=waited, time=time
        )

    def _constant(self) -> str:
        """Whether the rate stays where it is as if something held it there."""
        rates = [each.bytes / each.took for each in self._agree]
        mean = sum(rates) / len(rates)
        if all(abs(each - mean) <= STEADY * mean for each in rates):
            return ", and the rate is constant, as with max-bandwidth"
        return ": max-bandwidth, its processor, its memory, or the way from it"


def _second(took: int, before: dict[str, int], now: dict[str, int]) -> Second:
    def passed(key: str) -> int:
        return max(0, now.get(key, 0) - before.get(key, 0))

    return Second(
        took,
        passed("offset"),
        min(took, passed("waited")),
        passed("busy_time"),
        passed("rwnd_limited"),
        passed("total_retrans"),
        "busy_time" in now and "rwnd_limited" in now,
    )


def _limiter(second: Second) -> str:
    """source, link or destination; "" if it is not clear, or nothing moves."""
    if second.bytes * 1e6 < SLOWEST * second.took:
        return ""
    waited = second.waited / second.took
    if waited < HARDLY:
        return "source"
    if waited < WAITS:
        return ""
    if not second.told or (second.busy and second.full >= FULL * second.busy):
        return "destination"
    return "link" if second.full < FULL / 2 * second.busy else ""
