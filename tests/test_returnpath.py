"""What the destination says on the reverse direction of a main channel."""

import struct

import pytest

from migsniff.core.events import (
    DirectionEnded,
    Event,
    Opaque,
    ReturnPathMessage,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.core.wire import MAX_RECV_BITMAP, ReturnPathType
from tests.catalogue import SMALL_HEAD
from tests.playing import Cut, Stream, arrivals, bytewise, decode, of, strip, whole
from tests.streams import EOF, message, pong, received_bitmap, request, shut


def said(*messages: bytes, cut: Cut = whole) -> list[Event]:
    """The events of the reverse direction."""
    stream = Stream(((0, "fwd", SMALL_HEAD), (0, "rev", b"".join(messages)), (0, "fwd", EOF)))
    return [event for event in decode(Session(), arrivals(stream, cut)) if event.direction == "rev"]


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_messages(cut: Cut) -> None:
    sent = [
        message(ReturnPathType.SWITCHOVER_ACK),
        pong(1),
        request(4096, 8192, b"ram"),
        request(0, 4096),
        received_bitmap(b"ram", b"\xff" * 24),
        message(ReturnPathType.RESUME_ACK, b"\0\0\0\1"),
        shut(0),
    ]
    found = of(said(*sent, cut=cut), ReturnPathMessage)
    assert [(event.name, event.arguments) for event in found] == [
        ("SWITCHOVER_ACK", {}),
        ("PONG", {"value": 1}),
        ("REQ_PAGES_ID", {"block": "ram", "start": 4096, "length": 8192}),
        ("REQ_PAGES", {"block": "ram", "start": 0, "length": 4096}),
        ("RECV_BITMAP", {"block": "ram", "bitmap": 24}),
        ("RESUME_ACK", {"value": 1}),
        ("SHUT", {"value": 0}),
    ]
    at = 0
    for event, data in zip(found, sent, strict=True):
        assert (event.offset, event.size) == (at, len(data))
        at += len(data)


@pytest.mark.parametrize(
    ("wrong", "code", "size"),
    [
        (message(0), "return-path-type", 4),
        (message(8, b"abc"), "return-path-type", 4),
        (message(0xFFFF), "return-path-type", 4),
        (message(ReturnPathType.SHUT, b"\0\0\1"), "return-path-length", 4),
        (message(ReturnPathType.PONG, bytes(5)), "return-path-length", 4),
        (message(ReturnPathType.SWITCHOVER_ACK, b"1"), "return-path-length", 4),
        (message(ReturnPathType.REQ_PAGES_ID, bytes(600)), "return-path-length", 4),
        (message(ReturnPathType.REQ_PAGES_ID, bytes(12) + b"\x05ram"), "payload-short", 4 + 16),
        (received_bitmap(b"ram", bytes(8), end=7), "recv-bitmap-end", 4 + 4 + 8 + 8 + 8),
        (
            message(ReturnPathType.RECV_BITMAP, b"\3ram") + struct.pack(">Q", MAX_RECV_BITMAP + 1),
            "length",
            4 + 4 + 8,
        ),
    ],
)
def test_wrong(wrong: bytes, code: str, size: int) -> None:
    """Behind it the direction is only counted; the other one is not touched."""
    events = said(pong(1), wrong, b"and so on")
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.offset, problem.size) == (code, len(pong(1)), size)
    assert [(event.offset, event.offset + event.size) for event in of(events, Opaque)] == [
        (len(pong(1)) + size, len(pong(1) + wrong) + 9)
    ]


@pytest.mark.parametrize(
    ("end", "where"),
    [
        (0, "between messages"),
        (3, "between messages, 3 bytes into it"),
        (5, "message REQ_PAGES_ID, 5 bytes into it"),
    ],
)
def test_where_it_ends(end: int, where: str) -> None:
    (told,) = of(said(pong(1), request(0, 1, b"ram")[:end]), DirectionEnded)
    assert told.where == where


def test_a_received_bitmap_is_no_secret_but_long() -> None:
    """It is counted, and left out of a stripped capture."""
    bitmap = received_bitmap(b"ram", bytes(1 << 20))
    stream = Stream(((0, "fwd", SMALL_HEAD), (0, "rev", bitmap + shut(0)), (0, "fwd", EOF)))
    events, kept = strip(arrivals(stream, lambda data: [data[:999], data[999:]]))
    stored = sum(len(getattr(arrival, "data", b"")) for arrival in kept)
    assert stored == len(SMALL_HEAD + bitmap + shut(0) + EOF) - (1 << 20)
    assert decode(Session(), kept) == events
