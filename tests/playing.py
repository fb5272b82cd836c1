"""Decoding streams in tests: a Stream is what passes on a migration's connections, cut as the test likes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Data,
    Direction,
    Ended,
    Learned,
    LearnedTls,
    Noted,
    Opened,
)
from migsniff.core.events import Event, RamPages, Verdict
from migsniff.core.session import Session


@dataclass(frozen=True)
class Stream:
    """What passes on the connections of a migration: (connection, direction, bytes), in order.

    `ends`: how directions ended; those that are not told of end by themselves.
    """

    pieces: tuple[tuple[int, Direction, bytes], ...]
    ends: tuple[Ended, ...] = ()
    outcome: str = "completed"

    @property
    def main(self) -> bytes:
        """All that the first connection sends forward."""
        return b"".join(data for number, direction, data in self.pieces if (number, direction) == (0, "fwd"))


def precopy(*items: bytes, outcome: str = "completed") -> Stream:
    return Stream(((0, "fwd", b"".join(items)),), outcome=outcome)


Cut = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def pieces_of(size: int) -> Cut:
    return lambda data: [data[at : at + size] for at in range(0, len(data), size)]


def arrivals(stream: Stream, cut: Cut = whole) -> Iterator[Arrival]:
    """The stream as it arrives, its pieces cut. A chunk's data is wiped behind it, as a relay's buffer is."""
    ends: dict[tuple[int, Direction], int] = {}
    for number, direction, data in stream.pieces:
        if (number, "fwd") not in ends:
            ends[number, "fwd"] = ends[number, "rev"] = 0
            yield Opened(0, number, "source", "destination")
        for piece in cut(data):
            lent = bytearray(piece)
            ends[number, direction] += len(piece)
            yield Chunk(0, number, direction, memoryview(lent), ends[number, direction])
            lent[:] = b"\xee" * len(lent)
    yield from stream.ends
    told = {(end.connection, end.direction) for end in stream.ends}
    for number, direction in ends:
        if (number, direction) not in told:
            yield Ended(0, number, direction, "eof", "source" if direction == "fwd" else "destination")


def decode(session: Session, source: Iterable[Arrival]) -> list[Event]:
    """All events but RamPages, whose grouping depends on the cuts."""
    events = [event for arrival in source for event in session.feed(arrival)]
    events += session.finish()
    return [event for event in events if not isinstance(event, RamPages)]


def play(stream: Stream, cut: Cut = whole, *, fields: bool = False) -> list[Event]:
    return decode(Session(fields=fields), arrivals(stream, cut))


def play_bytes(data: Data, *, fields: bool = False) -> list[Event]:
    """The events of one connection whose source sends `data` and closes."""
    return decode(
        Session(fields=fields),
        [
            Opened(0, 0, "", ""),
            Chunk(0, 0, "fwd", data, len(data)),
            Ended(0, 0, "fwd", "eof", "source"),
            Ended(0, 0, "rev", "eof", "destination"),
        ],
    )


def verdict(events: list[Event]) -> Verdict:
    assert isinstance(events[-1], Verdict)
    return events[-1]


E = TypeVar("E", bound=Event)


def of(events: Iterable[Event], kind: type[E]) -> list[E]:
    """The events of one type."""
    return [event for event in events if isinstance(event, kind)]


def by_direction(events: list[Event]) -> dict[tuple[str, Direction], list[Event]]:
    found: dict[tuple[str, Direction], list[Event]] = {}
    for event in events:
        found.setdefault((event.channel, event.direction), []).append(event)
    return found


def strip(source: Iterable[Arrival]) -> tuple[list[Event], list[Arrival]]:
    """The events of a live decoding, and what a stripped capture holds: as live.py and its writer do it.

    Bytes are held back as long as it is not decided what they are, or which channel they belong to.
    """
    session = Session(note_omitted=True)
    events: list[Event] = []
    kept: list[Arrival] = []
    held: dict[tuple[int, Direction], tuple[int, bytes]] = {}  # wire offset, bytes
    for arrival in source:
        events += session.feed(arrival)
        if (page_size := session.learned_page_size()) is not None:
            kept.append(Learned(0, 0, page_size))
        for offset, facts in session.learned_tls():
            assert isinstance(arrival, Chunk)
            kept.append(LearnedTls(0, arrival.connection, arrival.direction, offset, facts))
        if isinstance(arrival, Opened | Learned | LearnedTls | Noted):
            kept.append(arrival)
            continue
        number, direction = key = arrival.connection, arrival.direction
        base, data = held.pop(key, (0, b""))
        omitted = [(int(start), int(stop)) for start, stop in session.omitted]
        if isinstance(arrival, Chunk):
            base = arrival.end - len(arrival.data) - len(data)
            data += bytes(arrival.data)
            decided = len(data) if session.settled is None else max(0, session.settled - base)
            if session.channel(number) is None and direction == "fwd":
                decided = 0
            held[key] = base + decided, data[decided:]
            data = data[:decided]
        elif not data or session.channel(number) is None:
            omitted = []
        elif not (omitted or session.settled is None) or (
            omitted and (omitted[0][0] < base or omitted[-1][1] > base + len(data))
        ):
            omitted = [(base, base + len(data))]  # what nothing has decided may be guest memory
        stored = left(data, base, omitted)
        if data:
            what: Literal["framed", "none"] = "framed" if stored else "none"
            kept.append(Chunk(0, number, direction, stored, base + len(data), what))
        if isinstance(arrival, Ended):
            kept.append(arrival)
    events += session.finish()
    return events, kept


def left(data: bytes, base: int, omitted: Sequence[tuple[int, int]]) -> bytes:
    """What is left of bytes at wire offset `base` without some spans: ascending, apart, inside of them."""
    pieces = []
    at = base
    for start, stop in omitted:
        assert at <= start < stop <= base + len(data), (at, start, stop, base, len(data))
        pieces.append(data[at - base : start - base])
        at = stop
    return b"".join([*pieces, data[at - base :]])
