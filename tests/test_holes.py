"""Bytes that passed and are not in the capture: where decoding goes on behind them, and where it must not."""

import pytest

from migsniff.core.arrivals import Chunk, Ended, Opened
from migsniff.core.events import (
    CommandSent,
    DeviceSection,
    EndOfStream,
    Event,
    RamSection,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.core.wire import Command
from tests.catalogue import POSTCOPY_HEAD, SMALL, SMALL_BLOCKS, SMALL_HEAD, STREAMS, page, passes
from tests.playing import Cut, bytewise, decode, of, pieces_of, verdict, whole
from tests.streams import EOF, command, described, full, normal, ram_end, ram_part, ram_start, states

CUTS = pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(7)])
RAM = SMALL_HEAD + passes()
NAMES = (b"one", b"two", b"three", b"four")
DEVICES = [full(40 + number, name, b"state of " + name * 9) for number, name in enumerate(NAMES)]


def with_holes(data: bytes, holes: list[tuple[int, int]], cut: Cut = whole) -> list[Event]:
    """The events of a stream of which these spans (start, stop) are missing."""
    arrivals: list[Opened | Chunk | Ended] = [Opened(0, 0, "", "")]
    at = 0
    for start, stop in [*holes, (len(data), len(data))]:
        for piece in cut(data[at:start]):
            at += len(piece)
            arrivals.append(Chunk(0, 0, "fwd", piece, at))
        if stop > start:
            arrivals.append(Chunk(0, 0, "fwd", b"", stop, "none"))
        at = stop
    arrivals.append(Ended(0, 0, "fwd", "eof", "source"))
    return decode(Session(), arrivals)


def exact(events: list[Event]) -> list[str]:
    """The devices whose state could be read."""
    return [event.idstr for event in of(events, DeviceSection) if event.provisional]


@CUTS
@pytest.mark.parametrize(("start", "stop"), [(8, 8 + SMALL), (9, 20), (100, 8 + SMALL)])
def test_inside_a_page(start: int, stop: int, cut: Cut) -> None:
    head = SMALL_HEAD + ram_start(SMALL_BLOCKS) + b"\2\0\0\0\2"
    rest = ram_part(page(0, b"ram"), page(SMALL), page(2 * SMALL))[5:] + ram_end() + EOF
    place = len(head) + len(page(0, b"ram"))
    events = with_holes(head + rest, [(place + start, place + stop)], cut)
    assert events == with_holes(head + rest, [], cut)
    assert verdict(events).ok


@CUTS
@pytest.mark.parametrize(
    ("start", "stop", "left"),
    [
        (-20, -10, ["one", "three", "four"]),  # inside a device's state
        (-4, 4, ["one", "four"]),  # its footer, and the header of the next
        (2, 30, ["one", "four"]),  # in a header, which was to prove the end of the device before
        (0, 1, ["one", "four"]),  # the first byte behind a device
        (0, len(DEVICES[2]), ["one"]),  # a whole device: what stands behind the hole may be any part of one
    ],
)
def test_among_devices(start: int, stop: int, left: list[str], cut: Cut) -> None:
    data = RAM + b"".join(DEVICES) + EOF + described((), page_size=SMALL)
    place = len(RAM) + len(DEVICES[0]) + len(DEVICES[1])
    events = with_holes(data, [(place + start, place + stop)], cut)
    assert exact(events) == left
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.offset + problem.size) == ("hole", place + stop)
    assert f"{stop - start} bytes at {place + start:#x}" in problem.message
    assert of(events, EndOfStream)
    assert verdict(events).ok
    assert "(this capture has 1 hole among the devices)" in verdict(events).message


def test_one_hole_after_the_other() -> None:
    data = RAM + b"".join(DEVICES) + EOF + described((), page_size=SMALL)
    place = len(RAM) + len(DEVICES[0])
    events = with_holes(data, [(place + 20, place + 22), (place + 25, place + 30), (place + 31, place + 32)])
    assert exact(events) == ["one", "three", "four"]
    assert len(of(events, Undecodable)) == 3


@CUTS
def test_in_a_package(cut: Cut) -> None:
    """A hole in it ends with it at the latest: its length is known."""
    place = POSTCOPY_HEAD.index(b"timer") + 8
    rest = ram_end() + EOF
    events = with_holes(POSTCOPY_HEAD + rest, [(place, place + 3)], cut)
    assert [event.name for event in of(events, CommandSent)][-1] == Command.PING.name
    assert [event.code for event in of(events, Undecodable)] == ["hole"]
    assert of(events, EndOfStream)


def planted() -> bytes:
    """What a guest writes into its memory to be taken for state."""
    fake = b"\x7e\0\0\0\2" + full(77, b"planted", b"by the guest") + EOF
    return normal(SMALL, None, fake + bytes(SMALL - len(fake)))


@CUTS
@pytest.mark.parametrize("kind", ["a word", "a page and the next word", "the header of the section"])
def test_never_in_ram(kind: str, cut: Cut) -> None:
    """Whatever the guest has in its memory: behind a hole that hides a record's word, nothing is believed."""
    head = SMALL_HEAD + ram_start(SMALL_BLOCKS)
    part = ram_part(page(0, b"ram"), page(2 * SMALL), planted(), planted(), page(3 * SMALL))
    place = len(head) + (0 if kind.endswith("section") else 5 + len(page(0, b"ram")))
    size = SMALL + 12 if kind.startswith("a page") else 3
    data = head + part + ram_end() + states() + EOF + described(page_size=SMALL)
    events = with_holes(data, [(place, place + size)], cut)
    assert not of(events, DeviceSection)
    assert not of(events, EndOfStream)
    assert len(of(events, RamSection)) == 1  # the START
    (problem,) = of(events, Undecodable)
    assert problem.code == "hole"
    assert verdict(events).outcome == "undecodable"


def test_early_devices_are_not_behind_ram() -> None:
    """RAM follows them: what a hole in one hides may be its beginning."""
    head = SMALL_HEAD + full(30, b"0000:00:05.0/virtio-mem-device-early", b"plugged")
    data = head + ram_start(SMALL_BLOCKS) + ram_part(page(0, b"ram"), planted()) + ram_end() + EOF
    events = with_holes(data, [(len(head) - 8, len(head) + 50)])
    assert not of(events, DeviceSection)
    assert verdict(events).outcome == "undecodable"


def test_while_a_channel_waits() -> None:
    """A multifd channel that waits for the page size does not overlook what is missing."""
    session = Session()
    hello = STREAMS["multifd"].pieces[0][2]
    packet = STREAMS["multifd"].pieces[3][2]
    arrivals = [
        Chunk(0, 0, "fwd", hello, len(hello)),
        Chunk(0, 0, "fwd", packet[:40], len(hello) + 40),
        Chunk(0, 0, "fwd", b"", len(hello) + 50, "none"),
        Chunk(0, 0, "fwd", packet[50:], len(hello) + len(packet)),
    ]
    (problem,) = of([event for each in arrivals for event in session.feed(each)], Undecodable)
    assert f"10 bytes at {len(hello) + 40:#x}" in problem.message


def test_a_command_is_no_device() -> None:
    data = RAM + command(Command.PING, b"\0\0\0\1") + EOF
    assert verdict(with_holes(data, [(len(RAM), len(RAM) + 2)])).outcome == "undecodable"
