"""Multifd channels: their packets, counted as pages of the migration, and their contents."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migsniff.core import multifdfacts
from migsniff.core.arrivals import Chunk, Direction, Ended
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    ChannelFound,
    DirectionEnded,
    DirtySync,
    EndOfStream,
    Event,
    Finding,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    Opaque,
    RamPages,
    Undecodable,
)
from migsniff.core.multifdmethods import METHODS, Method
from migsniff.core.rounds import MAX_AHEAD
from migsniff.core.session import Session
from migsniff.core.wire import MAX_MULTIFD_WAIT_ALL
from tests.playing import Cut, Stream, arrivals, bytewise, decode, of, pieces_of, play, strip, verdict, whole
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    configuration,
    hello,
    multifd_device_state,
    multifd_packet,
    page_bits,
    ram_end,
    ram_part,
    ram_start,
    uuid,
    zero,
)

Piece = tuple[int, Direction, bytes]
BIG = 65536
BLOCKS = {b"pc.ram": 32 * BIG, b"/rom@etc\x1b": 8 * BIG}
CONFIGURATION = HEADER + configuration(b"virt", page_bits(16))
MAIN = CONFIGURATION + ram_start(BLOCKS)


def channel(*packets: bytes, cut: Cut = whole) -> list[Event]:
    """The events of a multifd channel beside a main channel that has told the page size."""
    stream = Stream(((0, "fwd", MAIN), (1, "fwd", hello(5) + b"".join(packets))))
    return [event for event in play(stream, cut) if event.channel == "multifd-5" and event.direction == "fwd"]


def test_hello() -> None:
    events = channel()
    assert of(events, ChannelFound)[0].role == "multifd"
    (found,) = of(events, MultifdHello)
    assert (found.channel_id, found.uuid, found.size) == (5, "00000000-0000-0000-0000-000000000000", 64)
    uuid = bytes.fromhex("0123456789abcdef0123456789abcdef")
    (other,) = of(play(Stream(((0, "fwd", hello(255, uuid)),))), MultifdHello)
    assert (other.channel, other.channel_id) == ("multifd-255", 255)
    assert other.uuid == "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(100)])
def test_packets(cut: Cut) -> None:
    packets = [
        multifd_packet(1, b"pc.ram", normal=1, data=b"p" * BIG, page_size=BIG),
        multifd_packet(2, b"pc.ram", zero=8, page_size=BIG),
        multifd_packet(3, b"", flags=1, page_size=BIG),
        multifd_packet(4, b"pc.ram", normal=0, size=BIG, flags=1, page_size=BIG),  # 7.2: the size of the last
        multifd_packet(5, b"/rom@etc\x1b", normal=2, zero=6, flags=3, data=b"zlib", page_size=BIG),
    ]
    found = of(channel(*packets, cut=cut), MultifdPacket)
    assert [(p.packet_num, p.method, p.block, p.normal, p.zero, p.flags, p.data_size) for p in found] == [
        (1, "none", "pc.ram", 1, 0, 0, BIG),
        (2, "none", "pc.ram", 0, 8, 0, 0),
        (3, "none", "", 0, 0, 1, 0),
        (4, "none", "pc.ram", 0, 0, 1, 0),
        (5, "zlib", "/rom@etc\\x1b", 2, 6, 3, 4),
    ]
    at = 64
    for event, data in zip(found, packets, strict=True):
        assert (event.offset, event.size) == (at, len(data))
        at += len(data)


@pytest.mark.parametrize("number", METHODS)
def test_methods(number: int) -> None:
    method = METHODS.get(number)
    assert method is not None
    data = b"abc" if number else bytes(BIG)
    (found,) = of(channel(multifd_packet(1, normal=1, flags=number, data=data, page_size=BIG)), MultifdPacket)
    assert (found.method, found.data_size) == (method.name, len(data))


def test_device_state() -> None:
    data = multifd_device_state(b"0000:00:04.0/vfio", 7, b"x" * 1000)
    (found,) = of(channel(data), MultifdPacket)
    assert (found.method, found.block, found.data_size) == ("device-state", "0000:00:04.0/vfio", 1000)
    assert (found.offset, found.size) == (64, 276 + 1000)


@pytest.mark.parametrize("page_size", [1024, 4096, 8192])
def test_the_page_size_tells_how_long_a_header_is(page_size: int) -> None:
    packet = multifd_packet(1, normal=1, data=b"d" * 10, flags=4, page_size=page_size)
    assert len(packet) == 320 + 8 * (524288 // page_size) + 10
    bits = page_size.bit_length() - 1
    main = HEADER + configuration(b"virt", page_bits(bits)) + ram_start({b"pc.ram": 1 << 20})
    events = play(Stream(((0, "fwd", main), (1, "fwd", hello(0) + packet * 3))))
    assert [found.size for found in of(events, MultifdPacket)] == [len(packet)] * 3


@pytest.mark.parametrize("cut", [whole, pieces_of(50)])
def test_packets_before_the_page_size_is_known(cut: Cut) -> None:
    """They wait for the main channel. What they hold may be guest memory, so nothing is kept before."""
    packets = multifd_packet(1, normal=1, data=b"secret" * 10, flags=2, page_size=BIG) * 2
    stream = Stream(((1, "fwd", hello(0) + packets[:450]), (0, "fwd", MAIN), (1, "fwd", packets[450:])))
    events, kept = strip(arrivals(stream, cut))
    assert len(of(events, MultifdPacket)) == 2
    assert not any(b"secret" in getattr(arrival, "data", b"") for arrival in kept)
    assert decode(Session(), kept) == events


UNREADABLE = {
    "there is none": b"",
    "no stream": b"no stream at all" * 40,
    "TLS": bytes.fromhex("1603030040") + bytes(64),
    "a header": HEADER,
    "broken": HEADER + b"\x55" * 40,
    "no RAM blocks": CONFIGURATION + ram_start(BLOCKS)[:20],
}
SECRET = multifd_packet(1, normal=1, data=b"secret" * 10, flags=2, page_size=BIG)
BODIES = {
    "half a head": SECRET[:10],
    "half a packet": SECRET[:450],
    "packets": SECRET * 2 + SECRET[:40],
    "a sync": multifd_packet(1, b"", flags=1, page_size=BIG),
}


@pytest.mark.parametrize("first", [0, 1], ids=["main first", "channel first"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("main", [*UNREADABLE, "whole"])
def test_what_is_kept_of_channels_without_a_main_channel_is_read_as_it_was(
    main: str, body: str, first: int
) -> None:
    """Their packets' heads are kept, and nothing that may be guest memory."""
    pieces: list[Piece] = [(1, "fwd", hello(0) + BODIES[body])]
    if data := UNREADABLE.get(main, MAIN):
        pieces.insert(first, (0, "fwd", data))
    ends = [Ended(5, 1, "fwd", "eof", "source"), Ended(5, 1, "rev", "eof", "destination")]
    for stream in (Stream(tuple(pieces)), Stream(tuple(pieces), tuple(ends))):
        for cut in (whole, bytewise, pieces_of(300)):
            live, kept = strip(arrivals(stream, cut))
            assert not any(b"secret" in getattr(arrival, "data", b"") for arrival in kept)
            assert decode(Session(), kept) == live
            assert "hole" not in [event.code for event in of(live, Undecodable)]


def test_packets_whose_page_size_is_never_known() -> None:
    events = play(Stream(((1, "fwd", hello(0) + multifd_packet(1, page_size=BIG)),)))
    assert not of(events, MultifdPacket)
    (end,) = (event for event in of(events, DirectionEnded) if event.direction == "fwd")
    assert end.where == "a packet, 384 bytes into it"


@pytest.mark.parametrize(
    ("length", "where"),
    [
        (70, "the hello"),
        (64, "between packets"),
        (66, "between packets, 2 bytes into it"),
        (100, "a packet, 36 bytes into it"),
    ],
)
def test_where_it_ends(length: int, where: str) -> None:
    data = hello(0) + multifd_packet(1, page_size=BIG)
    if where == "the hello":
        length, where = 30, "the hello, 30 bytes into it"
    events = play(Stream(((0, "fwd", MAIN), (1, "fwd", data[:length]))))
    (end,) = (
        event
        for event in of(events, DirectionEnded)
        if event.channel == "multifd-0" and event.direction == "fwd"
    )
    assert end.where == where


def test_one_channel_in_error_leaves_the_others_alone() -> None:
    good = multifd_packet(1, zero=1, page_size=BIG)
    bad = multifd_packet(2, zero=9, page_size=BIG)
    events = play(
        Stream(
            ((0, "fwd", MAIN), (1, "fwd", hello(0) + good + bad + good), (2, "fwd", hello(1) + good + good))
        )
    )
    assert [(event.channel, event.packet_num) for event in of(events, MultifdPacket)] == [
        ("multifd-0", 1),
        ("multifd-1", 1),
        ("multifd-1", 1),
    ]
    (problem,) = of(events, Undecodable)
    assert (problem.channel, problem.offset, problem.where) == ("multifd-0", 64 + len(good), "packet 2")
    (opaque,) = of(events, Opaque)
    assert opaque.offset + opaque.size == 64 + 3 * len(good)


# ---------------------------------------------------------------- pages


def at(*numbers: int, packet: int = 0, block: bytes = b"pc.ram", zero: int = 0, flags: int = 0) -> bytes:
    """A packet with these pages, the last `zero` of them empty."""
    normal = len(numbers) - zero
    return multifd_packet(
        packet,
        block,
        normal=normal,
        zero=zero,
        flags=flags,
        data=b"".join(bytes([1 + number % 255]) * BIG for number in numbers[:normal]),
        addresses=[number * BIG for number in numbers],
        page_size=BIG,
    )


def sized(**what: Any) -> bytes:
    """A packet as told."""
    return multifd_packet(0, page_size=BIG, **what)


SYNC = sized(flags=1)


def two(*pieces: tuple[int, bytes], start: bytes = CONFIGURATION) -> Stream:
    """A main channel and two others, whose pieces come in this order."""
    opened: list[Piece] = [(0, "fwd", start), (1, "fwd", hello(0)), (2, "fwd", hello(1))]
    return Stream((*opened, *((number, "fwd", data) for number, data in pieces)))


def passes(events: list[Event]) -> list[tuple[str, int, int, bool]]:
    return [(e.channel, e.counts.pages, e.counts.resent, e.final) for e in of(events, DirtySync)]


END = ram_end(FLUSH) + EOF
START = ram_start(BLOCKS, FLUSH)
OPENED = ((0, START), (1, SYNC), (2, SYNC))


@pytest.mark.parametrize("cut", [whole, pieces_of(997), pieces_of(70_000)])
def test_pages_are_counted_with_those_of_all_channels(cut: Cut) -> None:
    events = play(
        two(
            *OPENED,
            (1, at(0, 1, 5, zero=1)),
            (2, at(2, 3) + at(0, 1, block=b"/rom@etc\x1b")),
            (0, ram_part(zero(4 * BIG, b"pc.ram"), zero(6 * BIG), FLUSH)),
            (1, SYNC),
            (2, SYNC),
            (2, at(1)),
            (1, at(3, 0)),
            (1, SYNC),
            (2, SYNC),
            (0, END),
            start=CONFIGURATION,
        ),
        cut,
    )
    assert verdict(events).ok
    assert passes(events) == [("multifd-1", 9, 0, False), ("main", 3, 3, True)]
    first, last = of(events, DirtySync)
    assert [(part.block, part.first, part.last) for part in first.blocks] == [
        ("pc.ram", 0, 6 * BIG),
        ("/rom@etc\\x1b", 0, BIG),
    ]
    assert (first.counts.normal, first.counts.zero, last.counts.normal) == (6, 3, 3)
    assert [(p.resent, p.round) for p in of(events, MultifdPacket) if p.normal] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (1, 2),
        (2, 2),
    ]
    syncs = [
        (e.channel, e.packets, e.counts.pages, e.counts.resent, e.syncs) for e in of(events, MultifdSync)
    ]
    assert syncs == [
        ("multifd-0", 1, 0, 0, 1),
        ("multifd-1", 1, 0, 0, 1),
        ("multifd-0", 2, 3, 0, 2),
        ("multifd-1", 3, 4, 0, 2),
        ("multifd-0", 2, 2, 2, 3),
        ("multifd-1", 2, 1, 1, 3),
    ]
    assert not of(events, Finding)


class TestPasses:
    def test_a_channel_that_is_late_begins_none(self) -> None:
        """The other is in the next pass already: what comes here twice came from the pass before."""
        late = (2, at(1, 2) + SYNC + at(3, 0)), (1, at(0, 3) + at(1)), (1, SYNC + at(2))
        events = play(two(*OPENED, *late, (0, ram_part(FLUSH)), (1, at(4))))
        assert passes(events) == [("main", 5, 1, False)]

    def test_as_soon_as_a_page_comes_again(self) -> None:
        events = play(two(*OPENED, (1, at(1) + SYNC), (2, SYNC), (0, ram_part(FLUSH)), (2, at(2) + at(1))))
        assert passes(events) == [("multifd-1", 1, 0, False)]
        assert of(events, DirtySync)[0].offset == 64 + 2 * len(SYNC) + len(at(2))

    def test_channels_that_have_not_shown_themselves_are_waited_for(self) -> None:
        """The first packet with pages is the third of all: each of two channels has sent a SYNC before."""
        final = at(1, packet=2) + SYNC
        pieces: list[Piece] = [(0, "fwd", CONFIGURATION + START), (1, "fwd", hello(0) + SYNC)]
        pieces += [(1, "fwd", final), (0, "fwd", END), (2, "fwd", hello(1) + SYNC + at(2, packet=3) + SYNC)]
        assert passes(play(Stream(tuple(pieces)))) == [("main", 2, 0, True)]

    def test_a_channel_that_stays_behind_is_not_waited_for_for_ever(self) -> None:
        more = (at(1) + SYNC) * 400
        events = play(two(*OPENED, (1, more)))
        assert [one.counts.pages for one in of(events, DirtySync)] == [1] * (400 - MAX_AHEAD)

    def test_hundreds_of_rounds(self) -> None:
        """A page may come again in any of them, or after all."""
        rounds = [at(0, 1)] + [at(2 + number % 2) for number in range(900)] + [at(0)]
        pieces = [
            (n, data) for data in rounds for n, data in ((1, data + SYNC), (2, SYNC), (0, ram_part(FLUSH)))
        ]
        found = of(play(two(*OPENED, *pieces)), DirtySync)
        assert [one.counts.pages for one in found] == [4] + [2] * 448

    def test_the_last_page_of_a_full_packet_again(self) -> None:
        """QEMU 7.2 sends it again with the next packet, at times."""
        full = at(*range(8), packet=1)
        events = play(two(*OPENED, (1, full), (1, SYNC), (2, SYNC), (2, at(7, 8, 9)), (1, at(10))))
        assert not passes(events)
        assert sum(packet.resent for packet in of(events, MultifdPacket)) == 1

    def test_the_same_page_twice_in_a_packet(self) -> None:
        (packet,) = of(play(two(*OPENED, (1, at(4, 3, 4, 4)))), MultifdPacket)[2:]
        assert packet.resent == 2

    def test_the_last_pass_ends_when_all_channels_have_come(self) -> None:
        final = at(1) + SYNC
        events = play(two(*OPENED, (0, END), (1, final), (2, final)))
        assert passes(events) == [("main", 2, 1, True)]
        assert of(events, DirtySync)[0].offset == len(CONFIGURATION + START + END) - len(EOF) - 5
        assert [type(event) for event in events if isinstance(event, (DirtySync, EndOfStream))] == [
            EndOfStream,
            DirtySync,
        ]

    def test_a_channel_that_misses_its_last_syncs(self) -> None:
        events = play(two(*OPENED, (0, END), (1, at(1) + SYNC), (2, at(2))))
        assert passes(events) == [("main", 2, 0, True)]
        (finding,) = of(events, Finding)
        assert (finding.channel, finding.code) == ("multifd-1", "multifd-syncs")
        assert finding.message == "1 SYNC packets came, where the main channel tells of 2"


def test_a_main_channel_that_is_seen_as_a_whole_first() -> None:
    """Up to machine type 8.0 nothing in it tells of other channels, but the pages that it lacks."""
    zeros = [zero(page * BIG, b"ram" if not page else None) for page in range(10)]
    main = CONFIGURATION + ram_start({b"ram": 16 * BIG}) + ram_part(*zeros) + ram_end() + EOF
    sync = multifd_packet(0, flags=1, page_size=BIG)
    first = multifd_packet(1, b"ram", zero=6, addresses=[page * BIG for page in range(10, 16)], page_size=BIG)
    again = multifd_packet(2, b"ram", zero=2, addresses=[10 * BIG, 11 * BIG], page_size=BIG)
    other = hello(5) + sync + first + sync + again + sync
    events = play(Stream(((0, "fwd", main), (1, "fwd", other))))
    passes = [(e.counts.normal, e.counts.zero, e.counts.resent, e.final) for e in of(events, DirtySync)]
    assert passes == [(0, 16, 0, False), (0, 2, 2, True)]
    assert verdict(events).ok


class TestContradictions:
    """Packets that the RAM table, or they themselves, contradict."""

    @pytest.mark.parametrize(
        ("packet", "code", "message"),
        [
            (at(0, block=b"vga.vram"), "multifd-block", "names block 'vga.vram', which is not in"),
            (at(0, block=b""), "multifd-block", "names block ''"),
            (
                at(1, 31, 32, 33),
                "multifd-offset",
                "page at 0x200000 in block 'pc.ram', which",
            ),
            (at(1, 1 << 47), "multifd-offset", "page at 0x8000000000000000 in block 'pc.ram'"),
            (sized(zero=2, addresses=[0, 0x10100]), "multifd-offset", "page at 0x10100 in block 'pc.ram'"),
            (
                sized(normal=8, zero=1, data=bytes(8 * BIG)),
                "multifd-pages",
                "9 pages; a packet",
            ),
            (sized(normal=2, data=bytes(BIG)), "multifd-size", "65536 bytes of data for 2 pages"),
            (sized(normal=1, data=bytes(BIG + 1)), "multifd-size", "65537 bytes of data for 1 pages"),
            (sized(normal=1, flags=4, size=2 * BIG + 1), "multifd-size", "131073 bytes of data for 1 pages"),
            (
                multifd_device_state(b"vfio", 0, b""),
                "multifd-device-state",
                "0 bytes of state of device 'vfio'",
            ),
        ],
    )
    @pytest.mark.parametrize("cut", [whole, pieces_of(300)])
    def test_error(self, cut: Cut, packet: bytes, code: str, message: str) -> None:
        good = at(2, 3)
        events = play(two(*OPENED, (1, good), (1, packet), (1, good), (2, good)), cut)
        (problem,) = of(events, Undecodable)
        assert (problem.channel, problem.code) == ("multifd-0", code)
        assert message in problem.message
        assert problem.offset == 64 + len(SYNC) + len(good)
        assert [p.channel for p in of(events, MultifdPacket) if p.normal] == ["multifd-0", "multifd-1"]
        rest = [e for e in of(events, MultifdSync) if e.last and e.channel == "multifd-0"]
        assert [(e.packets, e.offset, e.size) for e in rest] == [(1, 64 + len(SYNC), len(good))]

    @pytest.mark.parametrize(
        ("end", "rest"),
        [
            (END, "the whole stream was sent; without a return path nothing tells whether it was loaded"),
            (b"", "the source ended the migration between two sections, at offset"),
            (END[:-10], "the source closed the connection at offset"),
        ],
    )
    def test_is_what_the_verdict_tells_first(self, end: bytes, rest: str) -> None:
        """However the main channel ended, not all that was sent could be read."""
        found = verdict(play(two(*OPENED, (1, at(0, block=b"no such")), (0, end))))
        assert (found.ok, found.outcome, found.channel) == (False, "undecodable", "main")
        place = f"at offset {64 + len(SYNC)} of multifd-0, in packet 0; "
        what = "multifd packet names block 'no such', which is not in the block list"
        assert found.message.startswith(f"{what}, {place}{rest}")

    def test_the_same_number_twice(self) -> None:
        events = play(Stream(((0, "fwd", MAIN), (1, "fwd", hello(3)), (2, "fwd", hello(3) + at(1)))))
        (finding,) = of(events, Finding)
        assert (finding.channel, finding.code) == ("multifd-3.2", "multifd-channel")
        assert finding.message == "multifd channel 3 is there already, as multifd-3"
        assert len(of(events, MultifdPacket)) == 1

    @pytest.mark.parametrize("configured", [True, False])
    def test_another_vm(self, *, configured: bool) -> None:
        mine, other = bytes(range(16)), bytes(range(1, 17))
        known = HEADER + configuration(b"virt", page_bits(16), *([uuid(mine)] if configured else []))
        events = play(Stream(((0, "fwd", known), (1, "fwd", hello(0, mine)), (2, "fwd", hello(1, other)))))
        (finding,) = of(events, Finding)
        assert (finding.channel, finding.code, finding.offset) == ("multifd-1", "multifd-uuid", 0)
        assert "01020304-0506-0708-090a-0b0c0d0e0f10, in the migration of 00010203-" in finding.message

    def test_more_channels_than_there_are_numbers(self) -> None:
        channels: list[Piece] = [(number, "fwd", hello(number % 256)) for number in range(1, 260)]
        events = play(Stream(((0, "fwd", MAIN), *channels)))
        assert [(e.channel, e.code) for e in of(events, Undecodable)] == [
            ("multifd-1.257", "count"),
            ("multifd-2.258", "count"),
            ("multifd-3.259", "count"),
        ]


def test_packets_wait_for_the_list_of_ram_blocks() -> None:
    early = SYNC + at(0, 1, zero=1)
    stream = Stream(
        ((0, "fwd", CONFIGURATION), (1, "fwd", hello(0) + early), (0, "fwd", START), (1, "fwd", at(2)))
    )
    events, kept = strip(arrivals(stream, pieces_of(1000)))
    assert [(e.normal, e.zero) for e in of(events, MultifdPacket)] == [(0, 0), (1, 1), (1, 0)]
    assert decode(Session(), kept) == events


def test_what_waits_is_bounded_over_all_channels() -> None:
    session = Session()
    events: list[Event] = []
    waiting = hello(0) + bytes.fromhex("11223344 00000001") + bytes(3 << 20)
    for number in range(30):
        events += session.feed(Chunk(0, number, "fwd", waiting, len(waiting)))
    held = sum(one.queues["fwd"].size for one in session.connections.values())
    assert held <= MAX_MULTIFD_WAIT_ALL
    assert {e.code for e in of(events, Undecodable)} == {"multifd-wait"}
    assert len(of(events, Undecodable)) == 30 - MAX_MULTIFD_WAIT_ALL // (len(waiting) - 64)


@given(st.lists(st.integers(1, 4), max_size=60), st.integers(10_000, 400_000))
@settings(deadline=None, max_examples=20)
def test_totals_do_not_depend_on_the_order_of_channels(order: list[int], size: int) -> None:
    """Whatever the interleaving: the same pages of each block, as many sent again, the same passes."""
    channels = {
        number: [
            data[i : i + size]
            for data in (
                hello(number)
                + SYNC
                + at(*range(number, 28, 4))
                + SYNC
                + at(*range(5 * number % 7, 20, 3), zero=1)
                + at(0, 2, block=b"/rom@etc\x1b")
                + SYNC,
            )
            for i in range(0, len(data), size)
        ]
        for number in range(1, 5)
    }
    pieces = [(number, channels[number].pop(0)) for number in order if channels[number]]
    pieces += [(number, data) for number, left in channels.items() for data in left]
    pieces += [(0, ram_part(FLUSH) + END)]
    events = play(Stream(((0, "fwd", CONFIGURATION + START), *((n, "fwd", data) for n, data in pieces))))
    packets = of(events, MultifdPacket)
    totals = {
        name: [sum(getattr(p, what) for p in packets if p.block.startswith(name)) for what in WHAT]
        for name in ("pc.ram", "/rom")
    }
    assert totals == {"pc.ram": [46, 4, 23], "/rom": [8, 0, 6]}
    assert [(one.counts.pages, one.final) for one in of(events, DirtySync)] == [(27, False), (31, True)]


WHAT = ("normal", "zero", "resent")


# ---------------------------------------------------------------- contents


def contents(stream: Stream, cut: Cut = whole) -> list[tuple[str, str, int, bytes]]:
    """(channel, block, word, contents) of the pages that are handed out."""
    session = Session(contents=True)
    found = []
    for arrival in arrivals(stream, cut):
        for event in session.feed(arrival):
            if isinstance(event, RamPages):
                for word, body, length in zip(event.words, event.bodies, event.lengths, strict=True):
                    page = bytes(event.data[int(body) : int(body + length)])
                    found.append((event.channel, event.block, int(word), page))
    return found


@pytest.mark.parametrize("cut", [whole, pieces_of(1000)])
def test_contents(cut: Cut) -> None:
    stream = two(*OPENED, (1, at(2, 0, 3, zero=1)), (2, at(5, zero=1) + at(1, 1, block=b"/rom@etc\x1b")))
    assert contents(stream, cut) == [
        ("multifd-0", "pc.ram", 2 * BIG | 8, b"\3" * BIG),
        ("multifd-0", "pc.ram", 8, b"\1" * BIG),
        ("multifd-0", "pc.ram", 3 * BIG | 2, b""),
        ("multifd-1", "pc.ram", 5 * BIG | 2, b""),
        ("multifd-1", "/rom@etc\\x1b", BIG | 8, b"\2" * BIG),
        ("multifd-1", "/rom@etc\\x1b", BIG | 8, b"\2" * BIG),
    ]


def test_contents_that_cannot_be_had() -> None:
    """Zero pages need none; the others are told of without a kind."""
    packet = multifd_packet(0, normal=2, zero=1, flags=0x20, data=b"qatzip", page_size=BIG)
    assert contents(two(*OPENED, (1, packet))) == [
        ("multifd-0", "pc.ram", 0, b""),
        ("multifd-0", "pc.ram", BIG, b""),
        ("multifd-0", "pc.ram", 2 * BIG | 2, b""),
    ]


def test_contents_that_cannot_be_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once a channel; packets are counted as before, and the pages of others handed out."""

    class Broken:
        history = 0

        def __init__(self) -> None:
            self.packets = 0

        def pages(self, data: memoryview, count: int, page_size: int) -> bytes:
            self.packets += 1
            if self.packets == 2:
                raise StreamProblem("multifd-method", found=2)
            return bytes(data[:1]) * count * page_size

    monkeypatch.setitem(METHODS._functions, 2, Method("zlib", Broken))
    packet = multifd_packet(0, normal=1, flags=2, data=b"zlib", page_size=BIG)
    stream = two(*OPENED, (1, packet * 3), (2, packet))
    assert [(channel, page) for channel, _, _, page in contents(stream)] == [
        ("multifd-0", b"z" * BIG),
        ("multifd-0", b""),
        ("multifd-0", b""),
        ("multifd-1", b"z" * BIG),
    ]
    events = decode(Session(contents=True), arrivals(stream))
    (problem,) = of(events, Undecodable)
    assert (problem.channel, problem.where) == ("multifd-0", "packet 0")
    assert [event for event in events if event is not problem] == play(stream)


def test_channels_whose_streams_need_much_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the inflaters of all channels keep has a limit; who goes beyond it is left out, and told."""

    class Keeping:
        history = 100

        def pages(self, data: memoryview, count: int, page_size: int) -> bytes:
            return bytes(count * page_size)

    monkeypatch.setattr(multifdfacts, "MAX_MULTIFD_HISTORY", 150)
    monkeypatch.setitem(METHODS._functions, 4, Method("zstd", Keeping))
    packet = multifd_packet(0, normal=1, flags=4, data=b"zstd", page_size=BIG)
    stream = two(*OPENED, (1, packet), (2, packet), (1, packet))
    assert [(channel, len(page)) for channel, _, _, page in contents(stream)] == [
        ("multifd-0", BIG),
        ("multifd-1", 0),
        ("multifd-0", BIG),
    ]
    (problem,) = of(decode(Session(contents=True), arrivals(stream)), Undecodable)
    assert (problem.channel, problem.code) == ("multifd-1", "multifd-history")
