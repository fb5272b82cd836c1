"""One migration: its connections, what each of them is, and the verdict at the end."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from migsniff.core.arrivals import (
    Arrival,
    Assumed,
    Chunk,
    Direction,
    Ended,
    Learned,
    LearnedTls,
    Noted,
    Opened,
    TlsFacts,
)
from migsniff.core.channel import CLASSIFY, DirectionDecoder, classify
from migsniff.core.connection import Connection
from migsniff.core.context import Context
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    BREATH,
    Blocked,
    ChannelFound,
    DirectionEnded,
    Draining,
    Event,
    RamPages,
    TcpInfo,
    Verdict,
    problem_finding,
)
from migsniff.core.pagesize import FIRST_PAGES
from migsniff.core.reached import may_drain, reached, settled
from migsniff.core.tls import TlsReader
from migsniff.core.verdict import BESIDE, ConnectionEnd, judge, located
from migsniff.core.wire import MULTIFD_HELLO, U32

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Session:
    """Decodes one migration: arrivals in, events out.

    `fields`: device state is decoded to fields. `contents`: page contents are handed out (RamPages); the
    arrivals must hold them. `omitted`: after each chunk the property of that name tells what a stripped
    capture must leave out. `looks_like` names what the first bytes of a file are that is no stream. With
    `breathe` BREATH comes between events about once a millisecond, for callers with other things to do.
    `assumed`: descriptions from elsewhere, for device state whose own has not come.
    """

    def __init__(
        self,
        *,
        fields: bool = False,
        contents: bool = False,
        note_omitted: bool = False,
        breathe: bool = False,
        budget: DeviceStateBudget | None = None,
        assumed: Assumed | None = None,
        looks_like: Callable[[bytes], str | None] = lambda head: None,
    ) -> None:
        self.context = Context(want_contents=contents, want_fields=fields, breathe=breathe, assumed=assumed)
        self.budget = budget or DeviceStateBudget()
        self.looks_like = looks_like
        self.note_omitted = note_omitted
        self.connections: dict[int, Connection] = {}
        self._last: DirectionDecoder | None = None
        self._told_page_size: int | None = None
        self._stopped: tuple[str, dict[str, object]] | None = None
        self._order = itertools.count()
        self._late: list[tuple[Ended, int]] = []  # of multifd channels that still wait for the main channel

    # ------------------------------------------------------------ arrivals

    def feed(self, arrival: Arrival) -> Iterator[Event]:
        """Decode one arrival. Exhaust the iterator before the next call, and before its data changes."""
        if isinstance(arrival, Chunk):
            yield from self._chunk(arrival)
        elif isinstance(arrival, Ended):
            yield from self._ended(arrival)
        elif isinstance(arrival, Learned):
            self.context.learned_page_size = self._told_page_size = arrival.page_size
        elif isinstance(arrival, LearnedTls):
            told = self._connection(arrival.connection).tls.told[arrival.direction]
            told.append((arrival.offset, arrival.facts))
        elif isinstance(arrival, Noted):
            yield from self._noted(arrival)
        elif isinstance(arrival, Opened):
            self._connection(arrival.connection)

    def finish(self) -> Iterator[Event]:
        """The end of the migration: the verdict, after whatever was still to be said."""
        yield from self._ended_late()
        for connection in self.connections.values():
            for direction, decoder in connection.decoders.items():
                if not connection.ended(direction):
                    yield from self._close(connection, decoder)
            if connection.main is not None:
                connection.main.devices.release()
        yield from self._unanswered()
        yield from self._multifd_ended()
        ok, outcome, message, offset = judge(list(self.connections.values()), self.looks_like)
        mains = [each.name for each in self.connections.values() if each.main is not None]
        yield Verdict(
            channel=(mains[-1] if mains else None) or "main",
            direction="fwd",
            offset=offset,
            size=0,
            ok=ok,
            outcome=outcome,
            message=message,
        )

    def _unanswered(self) -> Iterator[Event]:
        """Page requests that no page has answered."""
        requests = self.context.requests
        if requests.waiting:
            oldest = next(iter(requests.waiting.values()))
            problem = StreamProblem(
                "requests-unanswered",
                count=len(requests.waiting) + requests.forgotten,
                start=oldest.address,
                name=oldest.block.name,
            )
            yield problem_finding(problem, channel=oldest.channel, direction="rev", offset=oldest.offset)

    def detach(self) -> None:
        """Within an iteration of `feed`: the chunk's data is wanted back, what is still needed is copied."""
        if self._last is not None:
            self._last.queue.detach()

    # ------------------------------------------------------------ what the feed asks

    def channel(self, connection: int) -> str | None:
        """The name of a connection's channel, None until its first bytes have told what it is."""
        found = self.connections.get(connection)
        return found.name if found else None

    @property
    def omitted(self) -> "list[tuple[int, int]] | NDArray[np.uint64]":
        """Wire spans (start, stop) of the last chunk that a stripped capture must not keep; asked once."""
        return self._last.take_omitted() if self._last else []

    @property
    def settled(self) -> int | None:
        """Up to which wire offset the last chunk's bytes are told apart; None if it is its end."""
        if self._last is None or (settled := self._last.settled()) == self._last.queue.wire_end:
            return None
        return settled

    @property
    def unread(self) -> int:
        """Bytes that the last chunk's direction has not read yet."""
        return self._last.queue.size if self._last else 0

    def learned_page_size(self) -> int | None:
        """The page size, once, if it had to be found in page contents (a stripped capture has none)."""
        context = self.context
        if context.page_size_from != FIRST_PAGES or self._told_page_size == context.page_size:
            return None
        self._told_page_size = context.page_size
        return context.page_size

    @property
    def knows_memory(self) -> bool:
        """Whether the main channel has told what multifd packets need: the page size and the RAM blocks."""
        return bool(self.context.page_size and self.context.memory.blocks)

    @property
    def resumable(self) -> bool:
        """Whether it is in postcopy, so that it goes on over new connections if these should break off."""
        mains = [connection for connection in self.connections.values() if connection.main is not None]
        if not mains or not self.context.postcopy or mains[-1].main is None:
            return False
        shut = mains[-1].return_path is not None and mains[-1].return_path.shut is not None
        return not mains[-1].main.finished and mains[-1].decoders["fwd"].problem is None and not shut

    def may_drain(self, connection: int) -> tuple[bool, str]:
        """Whether its source may be read on when its destination has gone, or else why that is refused."""
        return may_drain(list(self.connections.values()), self._connection(connection))

    def learned_tls(self) -> list[tuple[int, TlsFacts]]:
        """What the last chunk's TLS records said in the clear, each with its wire offset; asked once."""
        reader = self._last.reader if self._last else None
        if not isinstance(reader, TlsReader) or not reader.learned:
            return []
        learned, reader.learned = reader.learned, []
        return learned

    def where(self) -> str:
        """Where decoding stands, in words: offset, channel, section and record."""
        for connection in self.connections.values():
            if connection.main is not None:
                decoder = connection.decoders["fwd"]
                return f"offset {decoder.queue.wire_end} of {connection.name}, {located(decoder.where)}"
        return "before the first byte of a main channel"

    def stop_decoding(self, code: str, **details: object) -> Iterator[Event]:
        """Give up decoding on all channels; bytes are only counted from here on."""
        self._stopped = code, details
        for connection in self.connections.values():
            for decoder in connection.decoders.values():
                if decoder.steps is not None:
                    yield from decoder.stop(code, **details)

    # ------------------------------------------------------------ connections

    def _connection(self, number: int) -> Connection:
        connection = self.connections.get(number)
        if connection is None:
            connection = self.connections[number] = Connection(
                number, note_omitted=self.note_omitted, breathe=self.context.breathe
            )
        return connection

    def _chunk(self, chunk: Chunk) -> Iterator[Event]:
        connection = self._connection(chunk.connection)
        if connection.began is None:
            connection.began = chunk.time
        decoder = connection.decoders.get(chunk.direction)
        if decoder is None and chunk.direction == "rev":
            # the destination speaks before the source has said what this is: no channel of QEMU does
            decoder = connection.decode("rev")
        self._last = decoder
        if decoder is None:
            yield from self._first_bytes(connection, chunk)
        elif connection.drained is None:
            events = decoder.feed(chunk)
            yield from self._before_late_ends(events) if self._late else events
        else:
            for event in self._before_late_ends(decoder.feed(chunk)):
                connection.drained = settled(connection.drained, event)
                yield event

    def _noted(self, noted: Noted) -> Iterator[Event]:
        """What explains the arrivals, from the relay or from a capture, which is not to be believed."""
        connection = self._connection(noted.connection)
        channel = connection.label
        if noted.what in ("paused", "resumed"):
            direction: Direction = "rev" if noted.facts.get("direction") == "rev" else "fwd"
            offset = connection.queues[direction].wire_end
            blocked = noted.what == "paused"
            yield Blocked(channel=channel, direction=direction, offset=offset, size=0, blocked=blocked)
        elif noted.what == "draining" and connection.drained is None and not connection.ended("fwd"):
            connection.drained = drained = reached(connection, noted.facts.get("offset"))
            where = drained.where
            yield Draining(channel=channel, direction="fwd", offset=drained.offset, size=0, where=where)
        elif noted.what == "tcp_info" and (leg := noted.facts.get("leg")) in ("source", "destination"):
            direction = "fwd" if leg == "destination" else "rev"
            offset = connection.queues[direction].wire_end
            facts = {
                key: value
                for key, value in noted.facts.items()
                if isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 64)
            }
            yield TcpInfo(channel=channel, direction=direction, offset=offset, size=0, leg=leg, facts=facts)

    def _first_bytes(self, connection: Connection, chunk: Chunk) -> Iterator[Event]:
        """Bytes of a connection whose role is not known yet: at most as many as a multifd hello has."""
        queue = connection.queues["fwd"]
        queue.push(chunk)
        connection.head = queue.peek(MULTIFD_HELLO.size)
        found = self._classified(connection.head, ended=chunk.kept == "none")
        if found is None:
            queue.detach()
            return
        yield from self._identify(connection, *found)
        yield from self._before_late_ends(connection.decoders["fwd"].resume())

    def _before_late_ends(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events; behind the one that tells what multifd channels wait for come those that have ended."""
        for event in events:
            yield event
            # RamPages and BREATH are no records: where they stand depends on the cuts
            if self._late and self.knows_memory and not isinstance(event, RamPages) and event is not BREATH:
                yield from self._ended_late()

    def _identify(self, connection: Connection, role: str, detail: str) -> Iterator[Event]:
        connection.role = role
        connection.name = name = self._name(connection, role)
        # what is said of it must not depend on how much more has come
        connection.head = connection.head[:CLASSIFY]
        if role == "unknown" and (looks := self.looks_like(connection.head)):
            detail = f"{detail}: {looks}"
        decoder = self._last = connection.decode("fwd")
        yield ChannelFound(
            channel=name,
            direction="fwd",
            offset=0,
            size=0,
            connection=connection.number,
            role=role,
            detail=detail,
        )
        if role in ("main", "resumed"):
            self._forget_strays()
        if role == "main" and self._has_main:
            old = self.context  # another try: what the first one told of itself does not hold for it
            self.context = Context(
                want_contents=old.want_contents,
                want_fields=old.want_fields,
                breathe=old.breathe,
                assumed=old.assumed,
            )
        connection.parse(self.context, self.budget)
        if self._stopped is not None and decoder.steps is not None:
            yield from decoder.stop(self._stopped[0], **self._stopped[1])

    @property
    def _has_main(self) -> bool:
        return any(connection.main is not None for connection in self.connections.values())

    def _classified(self, head: bytes, *, ended: bool) -> tuple[str, str] | None:
        return classify(head, self.context, ended=ended, beside_main=ended and self._has_main)

    def _forget_strays(self) -> None:
        """A main channel is here: what ended within the magic before it was no try of this migration's."""
        for other in self.connections.values():
            if len(other.head) < U32.size:
                other.main = None

    def _name(self, connection: Connection, role: str) -> str:
        taken = {other.name for other in self.connections.values()}
        if role == "multifd" and len(connection.head) > 24:
            name = f"multifd-{connection.head[24]}"
        else:
            # one that ended within the magic leaves the name to the main channel that may be to come
            whole = role in ("main", "preempt") and len(connection.head) >= U32.size
            name = role if whole else f"{role}-{connection.number}"
        return name if name not in taken else f"{name}.{connection.number}"

    def _ended(self, ended: Ended) -> Iterator[Event]:
        connection = self._connection(ended.connection)
        if connection.ended(ended.direction):
            return
        if ended.direction == "fwd" and connection.role is None and (head := connection.head):
            yield from self._identify(connection, *(self._classified(head, ended=True) or ("unknown", "")))
        decoder = self._last = connection.decoders.get(ended.direction)
        order = next(self._order)
        if decoder is not None and connection.multifd is not None and not self.knows_memory:
            yield from decoder.resume()
            if decoder.steps is not None and decoder.queue.undecided is not None:
                self._late.append((ended, order))
                return
        yield from self._ended_at(connection, ended, order)

    def _ended_late(self) -> Iterator[Event]:
        """The ends of multifd channels that have waited."""
        late, self._late = self._late, []
        for ended, order in late:
            yield from self._ended_at(self.connections[ended.connection], ended, order)

    def _ended_at(self, connection: Connection, ended: Ended, order: int) -> Iterator[Event]:
        decoder = connection.decoders.get(ended.direction)
        where, inside, evidence = "", 0, ""
        if decoder is not None:
            yield from self._close(connection, decoder)
            where = decoder.where
            inside, evidence = decoder.inside
        if ended.direction == "fwd" and (back := connection.return_path) is not None:
            # a destination answers SHUT 1 to a source that cancels
            connection.shut_behind_end = ended.by == "source" and back.shut is None
        offset = connection.queues[ended.direction].wire_end
        connection.ends.append(
            ConnectionEnd(
                order,
                ended.direction,
                ended.how,
                ended.by,
                ended.error,
                offset,
                where,
                str(connection.name) if connection.role in BESIDE else "",
                ended.time,
            )
        )
        yield DirectionEnded(
            channel=connection.label,
            direction=ended.direction,
            offset=offset,
            size=0,
            how=ended.how,
            by=ended.by,
            error=ended.error,
            where=where,
            inside=inside,
            evidence=evidence,
        )

    def _close(self, connection: Connection, decoder: DirectionDecoder) -> Iterator[Event]:
        yield from decoder.close()
        if isinstance(decoder.reader, TlsReader) and decoder.queue.wire_end:
            yield decoder.reader.ended(sound=decoder.problem is None)
        if connection.multifd is not None and decoder.direction == "fwd":
            rest = connection.multifd.rest()
            if rest is not None:
                yield rest

    def _multifd_ended(self) -> Iterator[Event]:
        """What the multifd channels have not brought that the main channel has told of."""
        facts, memory = self.context.multifd, self.context.memory
        finished = any(c.main is not None and c.main.finished for c in self.connections.values())
        expected = memory.round - (1 if self.context.postcopy else 0)
        for channel, syncs in facts.syncs.items() if finished else ():
            if syncs != expected:
                problem = StreamProblem("multifd-syncs", found=syncs, expected=expected)
                yield problem_finding(problem, channel=channel, direction="fwd", offset=0)
        if facts.end is not None:
            yield from memory.last_pass(*facts.end)
