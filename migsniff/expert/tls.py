"""TLS from outside: who ended a session in order, and who comes near to a change of keys."""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Final

from migsniff.core.arrivals import BROKEN
from migsniff.core.events import (
    NOT_CLOSED,
    DirectionEnded,
    Event,
    Finding,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.endings import how_it_ended
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name

DIRECTIONS: Final = 512
CHANNELS: Final = 256
REKEY: Final = 1 << 24  # records behind which GnuTLS changes keys (lib/record.c, TLS 1.3)
NEAR: Final = REKEY - (1 << 20)  # 16 GiB before it at most
OWN: Final = (("source", "fwd"), ("destination", "rev"))  # who ends which direction
NAMED: Final = 4


@rule("tls-rekey")
class Rekey(Rule):
    """A TLS 1.3 session that comes near the number of records behind which GnuTLS changes keys by itself.

    Until it was made safe (GnuTLS issue 1717, QEMU issue 1937) that crashed whoever read and wrote in two
    threads. CHACHA20 is never rekeyed, TLS 1.2 neither.
    """

    watches: ClassVar = (TlsMessage, TlsRecords)

    def __init__(self) -> None:
        self._safe: dict[str, bool] = {}
        self._told: set[tuple[str, str]] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        if isinstance(event, TlsMessage):
            facts = event.facts
            if facts.message == "ServerHello" and len(self._safe) < CHANNELS:
                self._safe[event.channel] = facts.version != "1.3" or "CHACHA20" in facts.cipher
            return
        assert isinstance(event, TlsRecords)
        key = event.channel, event.direction
        if event.total < NEAR or key in self._told or self._safe.get(event.channel, False):
            return
        if len(self._told) < CHANNELS:
            self._told.add(key)
            yield finding("tls-rekey", event, records=event.total, channel=name(event.channel))


@rule("tls-no-close-notify", "tls-cut", "tls-reset", "tls-alert")
class Closing(Rule):
    """Channels that ended without saying so, by themselves or beside others that did; and alerts."""

    watches: ClassVar = (TlsEnded, DirectionEnded, Verdict)

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], TlsEnded] = {}
        self._broken: list[DirectionEnded] = []
        self._cut: list[DirectionEnded] = []

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        if isinstance(event, TlsEnded):
            if len(self._ends) < DIRECTIONS:
                self._ends[event.channel, event.direction] = event
        elif isinstance(event, DirectionEnded) and (event.channel, event.direction) in self._ends:
            if event.direction == "fwd" and event.inside:
                self._cut.append(event)
            elif event.how in BROKEN and (event.by, event.direction) in OWN:
                self._broken.append(event)
        elif isinstance(event, Verdict):
            yield from islice(self._alerts(), NAMED)
            yield from self._cuts()
            yield from islice(self._resets(), NAMED)
            yield from self._silent()

    def _alerts(self) -> Iterator[Finding]:
        for end in self._ends.values():
            if "fatal" in end.closed:
                who = "source" if end.direction == "fwd" else "destination"
                yield finding("tls-alert", end, who=who, alert=end.closed, channel=name(end.channel))

    def _cuts(self) -> Iterator[Finding]:
        for cut in self._cut:
            yield finding(
                "tls-cut",
                cut,
                offset=cut.offset - cut.inside,
                size=cut.inside,
                evidence=bytes.fromhex(cut.evidence),
                channel=name(cut.channel),
                inside=cut.inside,
            )

    def _resets(self) -> Iterator[Finding]:
        for broken in self._broken:
            forward = self._ends.get((broken.channel, "fwd"))
            if forward is not None and forward.closed == NOT_CLOSED and not forward.torn:
                how = how_it_ended(broken)
                yield finding("tls-reset", broken, who=broken.by, how=how, channel=name(broken.channel))

    def _silent(self) -> Iterator[Finding]:
        forward = [end for end in self._ends.values() if end.direction == "fwd"]
        silent = [end for end in forward if end.closed == NOT_CLOSED and not end.torn]
        if silent:
            others = len(forward) - len(silent)
            shown = ", ".join(name(end.channel) for end in silent[:NAMED])
            more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
            yield finding(
                "tls-no-close-notify",
                silent[0],
                offset=silent[0].size,
                channels=shown + more,
                others=f", {others} with it" if others else "",
            )
