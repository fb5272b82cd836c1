"""Captured segments become arrivals: connections are followed, and those of migrations told from the others.

No I/O: who has packets, from a file or an interface, hands them in one after the other.
"""

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Final

from migsniff.core.arrivals import (
    Chunk,
    Data,
    Ended,
    EndKind,
    Opened,
    Party,
)
from migsniff.feed import packets
from migsniff.feed.captureformat import MAX_CONNECTIONS
from migsniff.feed.flow import MAX_FOLLOWED, MAX_RUNNING, Counts, Flow, Found, Half, Migration
from migsniff.feed.grouping import ENOUGH, Group, Opening, group_of, opening_of
from migsniff.feed.packets import ACK, FIN, RST, SYN, NotTcp, Segment, port_of, reverse, sender, written
from migsniff.feed.reassembly import OVERHEAD, WRAP, Piece, Reassembly, Room

MAX_OTHERS: Final = 1 << 14  # connections of no migration that are remembered
MAX_HEAD: Final = 1 << 16  # bytes of an answer that came before what it answers
TOGETHER: Final = 1000  # µs within which segments become one chunk
MAX_TOGETHER: Final = 1 << 20
SMALL: Final = 1 << 14  # segments that are copied, lest each of them keeps a large buffer alive
MAX_PLACES: Final = 16  # holes that are told one by one


class Flows:
    """Follows connections. With `port`, those to this port are a migration's; else their first bytes tell."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port
        self.counts = Counts()
        self._room = Room()
        self._followed: dict[bytes, Half] = {}
        self._others: OrderedDict[bytes, Half | None] = (
            OrderedDict()
        )  # not told yet, or None: of no migration
        self._groups: list[Group[Migration]] = []
        self._breaks = False  # there are migrations without an open connection
        self._found = 0
        self._ready: list[Found] = []
        self._pending: dict[Half, list[Data]] = {}
        self._pending_bytes = 0
        self._pending_since = 0
        self._pending_until = 0
        self._now = 0  # ns since the epoch

    # ------------------------------------------------------------ packets in, arrivals out

    def packet(self, time: int, found: packets.Found | NotTcp, data: Data) -> list[Found]:
        """Take a packet of time `time`, ns; the segment's payload stands in `data`, which must not change."""
        if isinstance(found, str):
            self.counts.fragments += found == "fragment"
            self.counts.malformed += found == "malformed"
            return []
        self._now = time
        if self._breaks:
            self._end_migrations()
        key, sequence, acknowledged, flags, start, end, length = found
        half = self._followed.get(key)
        if half is None or (flags & SYN and self._is_new(half, Segment(*found))):
            half = self._other(Segment(*found))
            if half is None:
                return self._take_ready()
        if self._pending and time - self._pending_since > TOGETHER * 1000:
            self._flush()
        if flags & (SYN | FIN | RST):
            self._control(half, Segment(*found), data)
        elif length:
            self._payload(half, sequence, data, start, end, length)
        peer = half.peer
        if flags & ACK and peer is not None and (peer.bytes.starts or not peer.bytes.begun):
            peer.bytes.begin(acknowledged)
            peer.bytes.acknowledged(acknowledged)
        return self._take_ready()

    def finish(self) -> list[Found]:
        """No more packets: what waits, and the end of all that runs."""
        for half in list(self._others.values()):
            if half is not None and half.headed:
                self.counts.others += 1
                self._forget(half)
        for half in list(self._followed.values()):
            if not half.ended:
                self._arrived(half, half.bytes.flush())
        self._flush()
        self._ready += [(group.migration, None) for group in self._groups]
        self._groups.clear()
        return self._take_ready()

    def idle(self) -> list[Found]:
        """No packet has come for a while: what has come in order need not wait for one."""
        self._flush()
        if self._breaks:
            self._end_migrations()
        return self._take_ready()

    def _take_ready(self) -> list[Found]:
        if not self._ready:
            return []
        ready, self._ready = self._ready, []
        return ready

    # ------------------------------------------------------------ connections

    def _is_new(self, half: Half, segment: Segment) -> bool:
        """Whether a SYN begins another connection with the addresses and ports of an old one."""
        flow = half.flow
        if segment.flags & ACK or not all(each.ended for each in flow.halves):
            return False
        return flow.initial != segment.sequence

    def _other(self, segment: Segment) -> Half | None:
        """The direction of a connection that is not known as a migration's; None if nobody needs it."""
        key, flags = segment.key, segment.flags
        if key in self._others and not (flags & SYN and not flags & ACK):
            return self._others[key]
        if not flags & SYN and not segment.length:
            return None
        known = self._others.get(key)
        if known is not None:
            if known.flow.initial in (None, segment.sequence):
                return known
            self._forget(known)
        flow = Flow(first=self._now)
        half = Half(key, flow, Reassembly(self._room))
        half.peer = Half(reverse(key), flow, Reassembly(self._room), half)
        flow.halves = [half, half.peer]
        if flags & SYN:
            flow.opener = key if not flags & ACK else half.peer.key
            flow.initial = segment.sequence if not flags & ACK else None
        for each in flow.halves:
            self._followed.pop(each.key, None)
            self._others[each.key] = each
        while len(self._others) > 2 * MAX_OTHERS:
            _, old = self._others.popitem(last=False)
            if old is not None:
                self.counts.others += 1
                self._forget(old)
        return half

    def _forget(self, half: Half) -> None:
        """Do not look at this connection any more."""
        for each in half.flow.halves:
            each.bytes.flush()
            each.head = []
            self._others.pop(each.key, None)

    def _ignore(self, half: Half) -> None:
        """It is of no migration."""
        self._forget(half)
        self.counts.others += 1
        for each in half.flow.halves:
            self._others[each.key] = None

    def _is_wanted_by_port(self, flow: Flow) -> bool:
        """Whether the connection goes to the port that was asked for; tells its direction if so."""
        if flow.opener is not None:
            return port_of(sender(reverse(flow.opener))) == self.port
        for half in flow.halves:  # the SYN was not captured
            if port_of(sender(reverse(half.key))) == self.port:
                flow.opener = half.key
                return True
        return False

    def _look(self, half: Half) -> None:
        """The first bytes of a connection: is it a migration's?"""
        flow = half.flow
        if self.port is not None:
            if self._is_wanted_by_port(flow):
                self._follow(flow)
            else:
                self._ignore(half)
            return
        if flow.opener not in (None, half.key):  # an answer, captured before what it answers
            if half.headed > MAX_HEAD:
                self._ignore(half)
            return
        final = half.headed >= ENOUGH or any(isinstance(piece, int) for piece in half.head)
        opening = self._opening(half.key, final=final)
        if opening is None:
            return
        if opening.kind in ("main", "multifd"):
            flow.opener = half.key
        elif flow.opener is None or group_of(opening, self._groups) is None:
            self._ignore(half)
            return
        self._follow(flow)

    def _opening(self, key: bytes, *, final: bool) -> Opening | None:
        """What the direction with this key begins with; None if it takes more bytes."""
        half = self._others[key]
        assert half is not None
        head = b"".join(bytes(piece[:ENOUGH]) for piece in half.head if not isinstance(piece, int))
        return opening_of(head[:ENOUGH], sender(reverse(key)), written(sender(key)), final=final)

    def _follow(self, flow: Flow) -> None:
        """This connection is a migration's: of one that is known, or of a new one."""
        assert flow.opener is not None
        if len(self._followed) >= 2 * MAX_FOLLOWED:
            for key in [key for key, half in self._followed.items() if half.ended]:
                del self._followed[key]
        opening = self._opening(flow.opener, final=True)
        assert opening is not None
        group = group_of(opening, self._groups)
        many = len(self._groups) >= MAX_RUNNING
        if group is not None:
            many = group.migration.connections >= MAX_CONNECTIONS
        if many or len(self._followed) >= 2 * MAX_FOLLOWED:
            self.counts.refused += 1
            self._ignore(flow.halves[0])
            return
        source, destination = sender(flow.opener), sender(reverse(flow.opener))
        if group is None:
            self._found += 1
            began = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=flow.first // 1_000_000_000)
            name = f"{began:%Y%m%dT%H%M%SZ}-{self._found}"
            group = Group(Migration(name, flow.first, written(source), written(destination)))
            self._groups.append(group)
        group.enter(opening)
        migration = group.migration
        flow.migration, flow.number = migration, migration.connections
        migration.connections += 1
        migration.open += 2
        for half in flow.halves:
            half.direction = "fwd" if half.key == flow.opener else "rev"
            self._others.pop(half.key, None)
            self._followed[half.key] = half
        self._flush()
        self._ready.append(
            (migration, Opened(self._time(flow), flow.number, written(source), written(destination)))
        )
        for half in flow.halves:
            head_pieces, half.head = half.head, []
            self._arrived(half, head_pieces)

    # ------------------------------------------------------------ what a segment brings

    def _control(self, half: Half, segment: Segment, data: Data) -> None:
        flags, sequence = segment.flags, segment.sequence
        if flags & SYN:
            half.bytes.begin(sequence + 1)
            if not flags & ACK and half.flow.initial is None:
                half.flow.initial, half.flow.opener = sequence, half.flow.opener or half.key
            sequence = (sequence + 1) % WRAP
        if segment.length:
            self._payload(half, sequence, data, segment.start, segment.end, segment.length)
        if flags & FIN:
            half.bytes.finish(sequence + segment.length)
            self._check_end(half)
        if flags & RST and half.flow.migration is not None:
            for each in (half, half.peer):
                assert each is not None
                if not each.ended:
                    self._arrived(each, each.bytes.flush())
            for each in (half, half.peer):
                assert each is not None
                self._end(each, "reset", half)
        elif flags & RST and half.headed:
            self._ignore(half)

    def _payload(self, half: Half, sequence: int, data: Data, start: int, end: int, length: int) -> None:
        if half.ended:
            return
        found = half.bytes
        before = found.conflicts
        payload = data[start:end] if end - start < SMALL else memoryview(data)[start:end]
        pieces = found.segment(sequence, payload, length, self._now // 1000)
        if cut := length - (end - start):
            self.counts.cut += 1
            self.counts.cut_bytes += cut
        self.counts.conflicts += found.conflicts - before
        if half.flow.migration is not None:
            self._arrived(half, pieces, cut=bool(cut))
            if found.stop is not None:
                self._check_end(half)
            return
        for piece in pieces:
            half.headed += piece if isinstance(piece, int) else len(piece)
            half.head.append(piece if isinstance(piece, int) else bytes(piece))
        if half.headed:
            self._look(half)

    def _arrived(self, half: Half, pieces: list[Piece], *, cut: bool = False) -> None:
        for piece in pieces:
            if not isinstance(piece, int):
                self._bytes(half, piece)
            elif piece:
                self._hole(half, piece, cut=cut)

    def _bytes(self, half: Half, piece: Data) -> None:
        if not len(piece):
            return
        if half.direction == "rev":  # answers stand where they were given
            self._flush()
        pending = self._pending.get(half)
        if pending is None:
            if not self._pending:
                self._pending_since = self._now
            pending = self._pending[half] = []
        self._pending_until = self._now
        pending.append(piece)
        self._pending_bytes += len(piece) + OVERHEAD
        if half.direction == "rev" or self._pending_bytes > MAX_TOGETHER:
            self._flush()

    def _hole(self, half: Half, length: int, *, cut: bool) -> None:
        self._flush()
        migration = half.flow.migration
        assert migration is not None
        if not cut:
            self.counts.holes += 1
            self.counts.missing += length
            if len(self.counts.places) < MAX_PLACES:
                way = f"from {written(sender(half.key))} to {written(sender(reverse(half.key)))}"
                self.counts.places.append(f"{length} at {half.at:#x} {way}")
        half.at += length
        flow = half.flow
        self._ready.append(
            (migration, Chunk(self._time(flow), flow.number, half.direction, b"", half.at, "none"))
        )

    def _flush(self) -> None:
        """Hand out what has come in order, a chunk for each direction."""
        if not self._pending:
            return
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        for half, pieces in pending.items():
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            half.at += len(data)
            flow = half.flow
            assert flow.migration is not None
            time = self._time(flow, self._pending_until)
            self._ready.append((flow.migration, Chunk(time, flow.number, half.direction, data, half.at)))

    def _check_end(self, half: Half) -> None:
        if half.flow.migration is None or half.bytes.stop is None or half.bytes.at < half.bytes.stop:
            return
        self._end(half, "eof", half)

    def _end(self, half: Half, how: EndKind, by: Half) -> None:
        migration = half.flow.migration
        if half.ended or migration is None:
            return
        self._flush()
        half.ended = True
        party: Party = "source" if by.direction == "fwd" else "destination"
        self._ready.append(
            (migration, Ended(self._time(half.flow), half.flow.number, half.direction, how, party))
        )
        migration.open -= 1
        self._breaks = self._breaks or not migration.open

    def _end_migrations(self) -> None:
        """Those without an open connection have ended, but for what may be resumed."""
        self._breaks = False
        for group in self._groups:
            group.open = group.migration.open > 0
            group.postcopy = group.migration.resumable()
        ended = [group for group in self._groups if not group.open and not group.postcopy]
        self._ready += [(group.migration, None) for group in ended]
        self._groups = [group for group in self._groups if group not in ended]

    def _time(self, flow: Flow, now: int | None = None) -> int:
        """µs since the migration began; clocks that go back stand still here."""
        assert flow.migration is not None
        flow.last = max(flow.last, ((self._now if now is None else now) - flow.migration.began) // 1000, 0)
        return flow.last
