"""What is known of a captured migration, of each of its connections, and of what was left out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from migsniff.core.arrivals import Arrival, Direction
from migsniff.feed.captureformat import MAX_CONNECTIONS
from migsniff.feed.reassembly import Piece, Reassembly

MAX_FOLLOWED: Final = 1 << 10  # connections of migrations
MAX_RUNNING: Final = 64  # migrations at a time


@dataclass(slots=True, eq=False)
class Migration:
    """A migration found among the packets. `began`: ns since the epoch, its time 0.

    `resumable`, set by who decodes it: whether it has broken off in postcopy, and may go on.
    """

    name: str
    began: int
    source: str
    destination: str
    connections: int = 0
    open: int = 0
    resumable: Callable[[], bool] = lambda: False

    @property
    def start_time(self) -> datetime:
        """The wall clock at time 0."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.began // 1000)


Found = tuple[Migration, Arrival | None]
"""What arrived for a migration; None: all its connections have ended."""


@dataclass(slots=True, eq=False)
class Flow:
    """A TCP connection. `opener`: key of the direction that sent the SYN, if it was seen."""

    opener: bytes | None = None
    initial: int | None = None  # sequence number of the SYN
    migration: Migration | None = None
    number: int = 0
    last: int = 0  # the time of the arrival before
    halves: "list[Half]" = field(default_factory=list)
    first: int = 0  # when it began: ns since the epoch


@dataclass(slots=True, eq=False)
class Half:
    """One direction of a connection."""

    key: bytes
    flow: Flow
    bytes: Reassembly
    peer: "Half | None" = None
    direction: Direction = "fwd"
    head: "list[Piece]" = field(default_factory=list)  # before it is told what this is
    headed: int = 0
    at: int = 0  # wire offset behind the last arrival
    ended: bool = False


@dataclass(slots=True)
class Counts:
    """What is to be said of a capture beside what its migrations say."""

    others: int = 0
    fragments: int = 0
    malformed: int = 0
    conflicts: int = 0
    refused: int = 0
    missing: int = 0
    holes: int = 0
    places: list[str] = field(default_factory=list)
    cut: int = 0
    cut_bytes: int = 0

    def notes(self) -> Iterator[str]:
        """What is worth a line."""
        if self.others:
            yield _several(self.others, "other connection")
        if self.holes:
            more = f", and {self.holes - len(self.places)} more" if self.holes > len(self.places) else ""
            places = "; ".join(self.places) + more
            missing = f"{_several(self.missing, 'byte')} {_were(self.missing)} not captured"
            yield f"{missing}, in {_several(self.holes, 'hole')}: {places}"
        if self.cut:
            yield (
                f"{_several(self.cut, 'packet')} {_were(self.cut)} cut short when captured, by"
                f" {_several(self.cut_bytes, 'byte')}"
            )
        if self.conflicts:
            yield f"{_several(self.conflicts, 'byte')} came twice and differed: what came first was taken"
        if self.fragments:
            yield f"{_several(self.fragments, 'fragment')} of IP packets {_were(self.fragments)} left out"
        if self.malformed:
            yield f"{_several(self.malformed, 'packet')} of no TCP/IP {_were(self.malformed)} left out"
        if self.refused:
            limit = f"{MAX_FOLLOWED} of {MAX_RUNNING} migrations at a time, {MAX_CONNECTIONS} of each,"
            left = f"{_several(self.refused, 'connection')} {_were(self.refused)} left out"
            yield f"{left}: {limit} are followed at most"


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
