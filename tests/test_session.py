"""One migration: its connections and their names, what its feed asks, and faults of the decoder itself."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import pytest

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Opened,
)
from migsniff.core.events import (
    BREATH,
    ChannelFound,
    DirectionEnded,
    Event,
    MultifdPacket,
    Opaque,
    RamPages,
    RamSection,
    ReturnPathMessage,
    Undecodable,
    Verdict,
)
from migsniff.core.session import Session
from migsniff.core.stream import MainReader
from migsniff.core.wire import Command
from tests import streams
from tests.catalogue import POSTCOPY_HEAD, SMALL, SMALL_BLOCKS, SMALL_HEAD, STREAMS, page, passes
from tests.playing import Stream, arrivals, decode, of, pieces_of, play, verdict
from tests.rawsamples import raw
from tests.streams import EOF, command, hello, pong, ram_part, ram_start, shut

HEAD = SMALL_HEAD + ram_start(SMALL_BLOCKS)


def feed(session: Session, *pieces: tuple[int, str, bytes]) -> list[Event]:
    """Feed whole pieces; where they stand is told by what came before."""
    events: list[Event] = []
    for number, direction, data in pieces:
        key: Any = direction
        known = session.connections.get(number)
        end = (known.queues[key].wire_end if known else 0) + len(data)
        events += session.feed(Chunk(0, number, key, data, end))
    return events


class TestNames:
    def test_by_what_a_connection_is(self) -> None:
        session = Session()
        feed(
            session,
            (0, "fwd", POSTCOPY_HEAD),
            (1, "fwd", page(0, b"ram")),
            (2, "fwd", command(Command.RECV_BITMAP, b"\3ram")),
            (3, "fwd", b"\x16\3\1\0\5hello"),
            (4, "fwd", b"something else"),
            (5, "fwd", hello(7)),
        )
        assert [session.channel(number) for number in range(7)] == [
            "main",
            "preempt",
            "resumed-2",
            "tls-3",
            "unknown-4",
            "multifd-7",
            None,
        ]

    def test_twice_the_same(self) -> None:
        session = Session()
        feed(
            session,
            *((number, "fwd", data) for number in range(3) for data in (SMALL_HEAD,)),
            (3, "fwd", hello(7)),
            (4, "fwd", hello(7)),
        )
        assert [session.channel(number) for number in range(5)] == [
            "main",
            "main.1",
            "main.2",
            "multifd-7",
            "multifd-7.4",
        ]

    def test_known_as_soon_as_it_can_be(self) -> None:
        session = Session()
        known = [
            session.channel(0) for byte in b"QEVM\0" if not feed(session, (0, "fwd", bytes([byte]))) or True
        ]
        assert known == [None, None, None, "main", "main"]

    def test_a_connection_that_says_nothing(self) -> None:
        session = Session()
        events = [
            *session.feed(Opened(0, 0, "a", "b")),
            *session.feed(Ended(0, 0, "fwd", "eof", "source")),
            *session.feed(Ended(0, 0, "rev", "eof", "destination")),
            *session.finish(),
        ]
        assert not of(events, ChannelFound)
        assert {end.channel for end in of(events, DirectionEnded)} == {"unknown-0"}
        assert verdict(events).outcome == "empty"

    def test_the_destination_speaks_first(self) -> None:
        """No QEMU does. It is counted, and what the source says is decoded."""
        stream = Stream(((0, "rev", b"hello?"), (0, "fwd", SMALL_HEAD + passes() + EOF), (0, "rev", pong(1))))
        events = play(stream)
        assert of(events, ChannelFound)[0].role == "main"
        assert not of(events, ReturnPathMessage)
        assert [(event.direction, event.size) for event in of(events, Opaque)] == [("rev", 14)]
        assert verdict(events).outcome == "completed"


class TestTriedAgain:
    """A migration that failed or was cancelled, and a new one before its connections are all gone."""

    def test_nothing_of_the_first_holds_for_the_second(self) -> None:
        session = Session()
        events = feed(session, (0, "fwd", HEAD + ram_part(page(0, b"ram"))[:50]))
        second = streams.HEADER + streams.configuration(b"virt", streams.page_bits(10))
        second += ram_start({b"other": 4096}) + ram_part(streams.zero(1024, b"other")) + EOF
        events += feed(session, (1, "fwd", second))
        for number in (0, 1):
            events += session.feed(Ended(0, number, "fwd", "eof", "source"))
        events += session.finish()
        assert not of(events, Undecodable)
        assert [(event.channel, event.iteration) for event in of(events, RamSection)] == [
            ("main", 1),
            ("main.1", 1),
            ("main.1", 1),
        ]
        assert (verdict(events).outcome, verdict(events).offset) == ("completed", len(second))

    def test_who_ended_the_first_says_nothing_of_the_second(self) -> None:
        session = Session()
        feed(session, (0, "fwd", HEAD))
        list(session.feed(Ended(0, 0, "rev", "reset", "destination", "ECONNRESET")))
        feed(session, (1, "fwd", HEAD + ram_part(page(0, b"ram"))[:50]))
        list(session.feed(Ended(0, 1, "fwd", "eof", "source")))
        told = verdict(list(session.finish()))
        assert told.message.startswith("the source closed the connection at offset")


class TestStrays:
    """A connection that sends a part of the magic and closes is no main channel where there is one."""

    def stray(self, data: bytes, number: int) -> Iterator[Arrival]:
        yield Chunk(0, number, "fwd", data, len(data))
        yield Ended(0, number, "fwd", "eof", "source")
        yield Ended(0, number, "rev", "eof", "destination")

    def played(self, name: str, stray: bytes = b"", at: float = 0) -> list[Event]:
        """A sample with a stray connection in it, behind that part of what comes."""
        cut = pieces_of(1 << 16)
        count = int(at * sum(1 for _ in arrivals(raw(name), cut)))
        came = arrivals(raw(name), cut)
        between = self.stray(stray, 99) if stray else ()
        return decode(Session(), chain(islice(came, count), between, came))

    @pytest.mark.parametrize("name", ["aarch64-72-virt", "x86-100-multifd"])
    @pytest.mark.parametrize("at", [0, 0.2, 0.5, 1])
    def test_beside_a_main_channel(self, name: str, at: float) -> None:
        expected = self.played(name)
        for stray in (b"Q", b"QE", b"QEV"):
            events = self.played(name, stray, at)
            assert verdict(events).outcome == verdict(expected).outcome == "completed"
            for kind in (RamSection, MultifdPacket):
                assert len(of(events, kind)) == len(of(expected, kind))
            found = {found.connection: (found.role, found.channel) for found in of(events, ChannelFound)}
            assert found.pop(99) == (("unknown", "unknown-99") if at else ("main", "main-99"))
            assert found == {
                found.connection: (found.role, found.channel) for found in of(expected, ChannelFound)
            }
            assert verdict(events).channel == "main"

    @pytest.mark.parametrize("number", [-1, 99])
    def test_opened_beside_a_main_channel_that_has_not_spoken(self, number: int) -> None:
        stream = STREAMS["multifd"]
        opened = [Opened(0, each, "a", "b") for each in sorted((0, number))]
        events = decode(Session(), chain(opened, self.stray(b"Q", number), arrivals(stream)))
        assert verdict(events).outcome == stream.outcome
        assert len(of(events, MultifdPacket)) == len(of(play(stream), MultifdPacket)) > 0

    def test_and_alone_it_is_one_that_was_cut_off(self) -> None:
        assert verdict(play(Stream(((0, "fwd", b"QEV"),)))).outcome == "truncated"


class TestEnds:
    def test_told_once(self) -> None:
        session = Session()
        feed(session, (0, "fwd", HEAD))
        end = Ended(0, 0, "fwd", "reset", "source", "ECONNRESET")
        assert len(list(session.feed(end))) == 1
        assert not list(session.feed(end))
        (event,) = of(list(session.finish()), Verdict)
        assert event.outcome == "reset"

    def test_what_is_told_of_it(self) -> None:
        session = Session()
        feed(session, (0, "fwd", HEAD + b"\x02\0"))
        (end,) = session.feed(Ended(0, 0, "fwd", "error", "proxy", "EIO"))
        assert end == DirectionEnded(
            channel="main",
            direction="fwd",
            offset=len(HEAD) + 2,
            size=0,
            how="error",
            by="proxy",
            error="EIO",
            where="the header of a PART section, 2 bytes into it",
            inside=2,
            evidence="0200",
        )

    def test_a_migration_that_is_not_told_to_have_ended(self) -> None:
        """Reading was stopped, or the writer of a capture was killed."""
        session = Session()
        events = feed(session, (0, "fwd", HEAD + ram_part(page(0, b"ram"))[:50]), (0, "rev", pong(1)[:3]))
        events += session.finish()
        assert verdict(events).message == (
            f"the stream ends at offset {len(HEAD) + 50} of main, in section ram instance 0 (PART), "
            "page 0x0 of ram, 45 bytes into it"
        )

    def test_nothing_at_all(self) -> None:
        assert verdict(list(Session().finish())).outcome == "empty"


class TestWhatTheFeedAsks:
    def test_where(self) -> None:
        session = Session()
        assert session.where() == "before the first byte of a main channel"
        feed(session, (0, "fwd", HEAD + ram_part(page(0, b"ram"))[:50]))
        page_of_ram = "in section ram instance 0 (PART), page 0x0 of ram, 45 bytes into it"
        assert session.where() == f"offset {len(HEAD) + 50} of main, {page_of_ram}"

    def test_omitted_is_asked_once(self) -> None:
        session = Session(note_omitted=True)
        feed(session, (0, "fwd", HEAD + ram_part(page(0, b"ram"))))
        start = len(HEAD) + 5 + 12
        assert [tuple(map(int, span)) for span in session.omitted] == [(start, start + SMALL)]
        assert not len(session.omitted)

    def test_omitted_is_that_of_the_last_arrival(self) -> None:
        session = Session(note_omitted=True)
        feed(session, (0, "fwd", HEAD), (0, "rev", b"not a return path"))
        assert [tuple(span) for span in session.omitted] == [(4, 17)]
        feed(session, (0, "fwd", b"\x55 and on"))
        assert [tuple(span) for span in session.omitted] == [(len(HEAD) + 1, len(HEAD) + 8)]
        list(session.feed(Ended(0, 0, "rev", "eof", "destination")))
        assert not len(session.omitted)

    def test_nothing_is_noted_for_whom_it_does_not_interest(self) -> None:
        session = Session()
        feed(session, (0, "fwd", HEAD + ram_part(page(0, b"ram"))))
        assert not len(session.omitted)

    def test_settled(self) -> None:
        """Page contents are not known as such before the page size is."""
        session = Session(note_omitted=True)
        head = streams.HEADER + streams.configuration(b"virt") + ram_start({b"ram": 1 << 20})
        part = ram_part(*(streams.normal(i * 4096, None if i else b"ram") for i in range(40)))
        feed(session, (0, "fwd", head))
        assert session.settled is None
        feed(session, (0, "fwd", part[:3000]))
        assert session.settled == len(head) + 5
        feed(session, (0, "fwd", part[3000:]))
        assert session.settled is None
        assert session.learned_page_size() == 4096

    def test_lent_data_is_given_back_in_the_middle(self) -> None:
        """Whoever takes turns may want the buffer back between two events."""
        data = STREAMS["precopy"].main
        expected = play(STREAMS["precopy"])
        for stop in range(1, len(expected) - 3):
            session = Session()
            lent = bytearray(data)
            events: list[Event] = []
            for event in session.feed(Chunk(0, 0, "fwd", memoryview(lent), len(data))):
                events.append(event)
                if len(events) == stop:
                    session.detach()
                    lent[:] = bytes(len(lent))
            for direction, by in (("fwd", "source"), ("rev", "destination")):
                ended: Any = Ended(0, 0, direction, "eof", by)  # type: ignore[arg-type]
                events += session.feed(ended)
            assert [*events, *session.finish()] == expected

    def test_breath(self) -> None:
        """Between events, and no event itself."""
        part = ram_part(*(streams.xbzrle(i % 16 * SMALL, None if i else b"ram") for i in range(20_000)))
        quiet, breathing = Session(), Session(breathe=True)
        expected = feed(quiet, (0, "fwd", HEAD + part))
        events = feed(breathing, (0, "fwd", HEAD + part))
        assert [event for event in events if event is not BREATH] == expected
        assert events.count(BREATH) >= 4


class TestOurOwnFaults:
    """Whatever goes wrong in the decoder becomes an event, and bytes are counted from there on."""

    def test_in_the_parser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("x")

        monkeypatch.setattr(MainReader, "_continued", broken)
        events = play(STREAMS["return path"])
        (problem,) = of(events, Undecodable)
        assert problem.code == "decoder-bug"
        assert "ZeroDivisionError: x" in problem.message
        assert "a bug, please report it; the forwarding is not touched" in problem.message
        assert [event.name for event in of(events, ReturnPathMessage)] == ["PONG", "SWITCHOVER_ACK", "SHUT"]
        assert verdict(events).outcome == "undecodable"

    @pytest.mark.parametrize("code", ["decoder-behind", "decoder-bug"])
    def test_stopped(self, code: str) -> None:
        session = Session()
        events = feed(session, (0, "fwd", HEAD), (1, "fwd", hello(0)))
        events += session.stop_decoding(code, limit=1, detail="x")
        assert {(event.channel, event.direction) for event in of(events, Undecodable)} == {
            ("main", "fwd"),
            ("main", "rev"),
            ("multifd-0", "fwd"),
        }
        late = feed(
            session, (0, "fwd", passes()), (2, "fwd", hello(1)), (1, "fwd", bytes(100)), (0, "rev", shut(0))
        )
        assert [type(event) for event in late] == [ChannelFound, Undecodable]
        events = list(session.finish())
        assert sorted(
            (event.channel, event.size) for event in of(events, Opaque) if event.direction == "fwd"
        ) == [
            ("main", len(passes())),
            ("multifd-0", 100),
            ("multifd-1", 64),
        ]


def test_several_migrations_do_not_share_anything() -> None:
    sessions = [Session() for _ in range(3)]
    sources = [
        arrivals(STREAMS[name], lambda data: [data[:700], data[700:]])
        for name in ("precopy", "xbzrle", "no footers")
    ]
    events: list[list[Event]] = [[], [], []]
    for step in zip(*(list(owned(source)) for source in sources), strict=True):
        for number, arrival in enumerate(step):
            events[number] += sessions[number].feed(arrival)
    for number, name in enumerate(("precopy", "xbzrle", "no footers")):
        assert [*events[number], *sessions[number].finish()] == play(STREAMS[name])


def owned(source: Iterable[Arrival]) -> Iterable[Arrival]:
    for arrival in source:
        if isinstance(arrival, Chunk):
            yield Chunk(0, arrival.connection, arrival.direction, bytes(arrival.data), arrival.end)
        else:
            yield arrival


@pytest.mark.parametrize("code", ["all", "framed", "none"])
def test_bytes_that_were_not_saved(code: Any) -> None:
    """Behind a place where saving stopped there are only lengths."""
    session = Session()
    events = feed(session, (0, "fwd", HEAD))
    events += session.feed(Chunk(0, 0, "fwd", b"", len(HEAD) + 500, "none"))
    events += session.feed(Chunk(0, 0, "fwd", b"" if code == "none" else bytes(10), len(HEAD) + 510, code))
    events += session.finish()
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.offset) == ("hole", len(HEAD))
    assert problem.message == f"500 bytes at {len(HEAD):#x}, which are needed here, are not in this capture"
    assert not [event for event in events if isinstance(event, RamPages)]
    assert re.match("500 bytes at 0x77, which are needed here", verdict(events).message)
