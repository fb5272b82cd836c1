"""Multifd channels: framed and counted."""

import pytest

from migsniff.core.events import (
    ChannelFound,
    DirectionEnded,
    Event,
    MultifdHello,
    MultifdPacket,
    Opaque,
    Undecodable,
)
from migsniff.core.multifd import METHODS
from migsniff.core.session import Session
from tests.playing import Cut, Stream, arrivals, bytewise, decode, of, pieces_of, play, strip, whole
from tests.streams import HEADER, configuration, hello, multifd_device_state, multifd_packet, page_bits

BIG = 65536
MAIN = HEADER + configuration(b"virt", page_bits(16))


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
    (found,) = of(
        channel(multifd_packet(1, normal=1, flags=number, data=b"abc", page_size=BIG)), MultifdPacket
    )
    assert (found.method, found.data_size) == (METHODS.get(number), 3)


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
    main = HEADER + configuration(b"virt", page_bits(bits))
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
    assert (problem.channel, problem.offset, problem.where) == ("multifd-0", 64 + len(good), "a packet")
    (opaque,) = of(events, Opaque)
    assert opaque.offset + opaque.size == 64 + 3 * len(good)
