"""What is shown of encrypted channels: their messages in the clear, their records, and how they ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from migsniff.core.arrivals import Direction, TlsFacts
from migsniff.core.events import TlsEnded, TlsMessage, TlsRecords
from migsniff.show.words import escape, name, number, several

SHOWN: Final = 8
MAX_DIRECTIONS: Final = 512
TORN: Final = ", torn: it ended inside a record"


@dataclass(slots=True)
class TlsStats:
    """One direction of a channel: hellos by name, records so far; at its end, how it was closed."""

    said: dict[str, TlsFacts] = field(default_factory=dict)
    records: int = 0
    closed: str = ""
    torn: bool = False


TlsDirections = dict[tuple[str, Direction], TlsStats]


def count(directions: TlsDirections, event: TlsMessage | TlsRecords | TlsEnded) -> None:
    """Take one event into account."""
    key = event.channel, event.direction
    if key not in directions and len(directions) >= MAX_DIRECTIONS:
        return
    stats = directions.setdefault(key, TlsStats())
    match event:
        case TlsMessage():
            stats.said[event.facts.message] = event.facts
        case TlsRecords():
            stats.records = event.total
        case TlsEnded():
            stats.records, stats.closed, stats.torn = event.records, event.closed, event.torn


def rows(directions: Mapping[tuple[str, Direction], TlsStats]) -> list[tuple[str, str]]:
    """Label and text of each direction: what was said in the clear, the records, the end."""
    found = []
    for (channel, direction), stats in list(directions.items())[:SHOWN]:
        parts = [facts_text(facts) for facts in list(stats.said.values())]
        parts.append(f"{number(stats.records)} records{', ' + escape(stats.closed) if stats.closed else ''}")
        found.append((f"{name(channel)} {direction}", "; ".join(parts) + TORN * stats.torn))
    if len(directions) > SHOWN:
        found.append(("", f"and {len(directions) - SHOWN} more encrypted directions"))
    return found


def facts_text(facts: TlsFacts) -> str:
    """A message in the clear."""
    info = name(facts.message)
    if facts.problem:
        return f"{info}: {escape(facts.problem)}"
    if facts.alert:
        return f"{info} {escape(facts.alert)}"
    info += f" TLS {escape(facts.version)}"
    if facts.versions:
        info += f", offers {', '.join(map(escape, facts.versions))} and {several(facts.ciphers, 'cipher')}"
    if facts.cipher:
        info += f" {name(facts.cipher)}"
    if facts.psk:
        info += ", pre-shared key"
    if facts.name:
        info += f", server name {name(facts.name)}"
    if facts.protocols:
        info += f", protocols {', '.join(map(name, facts.protocols))}"
    return info


def end_text(event: TlsEnded) -> str:
    """The records of a direction, and its end."""
    kinds = f"handshake={event.handshake} alert={event.alerts} application={event.application}"
    records = several(event.records, "record")
    return f"{records}: {kinds}, {event.payload} bytes inside; {escape(event.closed)}{TORN * event.torn}"
