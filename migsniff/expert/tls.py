"""TLS from outside: who ended a session in order, and who comes near to a change of keys."""

from collections.abc import Iterator
from typing import ClassVar, Final

from migsniff.core.events import (
    DirectionEnded,
    Event,
    Finding,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name

CHANNELS: Final = 256
REKEY: Final = 1 << 24  # records behind which GnuTLS changes keys (lib/record.c, TLS 1.3)
NEAR: Final = REKEY - (1 << 20)  # 16 GiB before it at most
NOT_CLOSED: Final = "no close_notify"
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


@rule("tls-no-close-notify", "tls-cut")
class Closing(Rule):
    """Channels that ended without saying so, by themselves or beside others that did."""

    watches: ClassVar = (TlsEnded, DirectionEnded, Verdict)

    def __init__(self) -> None:
        self._ends: list[TlsEnded] = []
        self._cut: list[DirectionEnded] = []

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        if event.direction == "fwd" and len(self._ends) < CHANNELS:
            if isinstance(event, TlsEnded):
                self._ends.append(event)
            elif isinstance(event, DirectionEnded) and event.inside and "TLS record" in event.where:
                self._cut.append(event)
        if not isinstance(event, Verdict):
            return
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
        silent = [end for end in self._ends if end.closed == NOT_CLOSED and not end.torn]
        if silent:
            others = len(self._ends) - len(silent)
            shown = ", ".join(name(end.channel) for end in silent[:NAMED])
            more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
            yield finding(
                "tls-no-close-notify",
                silent[0],
                offset=silent[0].size,
                channels=shown + more,
                others=f", {others} with it" if others else "",
            )
