"""What the relay tells of connections becomes arrivals of the migrations that they belong to."""

from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from secrets import token_hex
from typing import Final

from migsniff.core.arrivals import (
    Chunk,
    Direction,
    Ended,
    EndKind,
    Noted,
    Opened,
    Party,
)
from migsniff.feed.forwarding import LegName
from migsniff.feed.grouping import ENOUGH, MULTIFD, Group, Opening, group_of, opening_of
from migsniff.live import LiveMigration, Question

MAX_PAUSED: Final = 8  # migrations whose verdict waits for their postcopy to be resumed


class MigrationTap:
    """What the relay tells of one connection becomes arrivals of the migration that it belongs to.

    That is found from its first bytes, ENOUGH of them at most, which wait here.
    """

    def __init__(
        self,
        join: Callable[[str, bytes, bool], LiveMigration | None],
        source: str,
        destination: str,
    ) -> None:
        self._join = join
        self._source = source
        self._destination = destination
        self._live: LiveMigration | None = None
        self._left_out = False
        self._head = b""
        self._multifd = False
        self._connection = 0
        self._at: dict[Direction, int] = {"fwd": 0, "rev": 0}

    def opened(self) -> None:
        """The first byte has come."""

    def data(self, direction: Direction, view: memoryview) -> None:
        """Bytes that have been forwarded."""
        if self._left_out:
            return
        if (live := self._live) is None:
            if direction == "fwd":
                self._decide(self._head + view[:ENOUGH], final=False)
            else:
                self._decide(self._head, final=True)
            if (live := self._live) is None:
                self._head += b"" if self._left_out else view
                return
            if self._head:
                self._arrived(live, "fwd", memoryview(self._head))
        self._arrived(live, direction, view)

    def _arrived(self, live: LiveMigration, direction: Direction, view: memoryview) -> None:
        self._at[direction] += len(view)
        chunk = Chunk(live.now(), self._connection, direction, view, self._at[direction])
        live.arrive(chunk, multifd=self._multifd)

    def _decide(self, head: bytes, *, final: bool) -> None:
        """Become part of a migration, if it takes no more bytes to know of which."""
        live = self._join(self._source, head, final)
        number = None if live is None else live.admit()
        self._left_out = live is not None and number is None
        if live is not None and number is not None:
            self._live = live
            live.open += 2
            live.paused = False
            self._connection = number
            self._multifd = head.startswith(MULTIFD)
            opened = Opened(live.now(), self._connection, self._source, self._destination)
            live.arrive(opened, multifd=self._multifd)

    def paused(self, direction: Direction, paused: bool) -> None:
        """One side does not take the bytes as fast as the other sends them, or does again."""
        self._note("paused" if paused else "resumed", direction=direction, offset=self._at[direction])

    def tcp_info(self, leg: LegName, facts: dict[str, object]) -> None:
        """What the kernel says of one leg."""
        self._note("tcp_info", leg=leg, **facts)

    def ended(self, direction: Direction, how: EndKind, by: Party, error: str | None) -> None:
        """One direction has ended."""
        if self._live is None and not self._left_out:
            self._decide(self._head, final=True)
            if self._live is not None and self._head:
                self._arrived(self._live, "fwd", memoryview(self._head))
        if (live := self._live) is not None:
            live.open -= 1
            ended = Ended(live.now(), self._connection, direction, how, by, error)
            live.arrive(ended, multifd=self._multifd)

    def may_drain(self, how: EndKind, answer: Callable[[bool], None]) -> None:
        """The destination has gone: whether the source may be read on."""
        if (live := self._live) is None:
            answer(False)
        else:
            live.arrive(Question(self._connection, how, answer))

    def draining(self) -> None:
        """What comes from the source from here on was not sent on."""
        self._note("draining", direction="fwd", offset=self._at["fwd"])

    @property
    def lags(self) -> bool:
        """Whether decoding or saving is too far behind for more to come without need."""
        return self._live is not None and self._live.lags

    def _note(self, kind: str, **facts: object) -> None:
        if (live := self._live) is not None:
            live.arrive(Noted(live.now(), self._connection, kind, facts), multifd=self._multifd)


class Migrations:
    """The migrations that pass, through all pairs of endpoints; feed.grouping tells connections apart."""

    def __init__(self, start: Callable[[str, datetime, str, str], LiveMigration]) -> None:
        self._start = start
        self._groups: list[Group[LiveMigration]] = []

    def tap(self, source: str, destination: str, pair: Hashable = None) -> MigrationTap:
        """A tap for a new connection through `pair`."""

        def join(source: str, head: bytes, final: bool) -> LiveMigration | None:
            opening = opening_of(head, pair, source, final=final)
            return None if opening is None else self._join(opening, source, destination)

        return MigrationTap(join, source, destination)

    def _join(self, opening: Opening, source: str, destination: str) -> LiveMigration:
        for group in self._groups:
            live = group.migration
            group.open = live.open > 0
            group.postcopy = not live.finished and live.pipeline.session.resumable
        self._groups = [group for group in self._groups if group.open or group.postcopy]
        group = group_of(opening, self._groups) or self._begin(opening, source, destination)
        group.enter(opening)
        return group.migration

    def _begin(self, opening: Opening, source: str, destination: str) -> Group[LiveMigration]:
        """A new migration. One that is paused on this pair will not be resumed, and few others are kept."""
        paused = [group.migration for group in self._groups if group.migration.paused]
        here = [g.migration for g in self._groups if opening.pair in g.pairs and opening.kind == "main"]
        for live in (*paused[:-MAX_PAUSED], *(live for live in here if live.paused)):
            live.close()
        now = datetime.now(UTC)
        live = self._start(f"{now:%Y%m%dT%H%M%SZ}-{token_hex(2)}", now, source, destination)
        group = Group(live)
        self._groups.append(group)
        return group
