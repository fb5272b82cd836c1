"""The one line at the end: what was sent, who closed and how, what the return path said."""

import re
from dataclasses import dataclass

import pytest

from migsniff.core.arrivals import (
    Chunk,
    Direction,
    Ended,
    EndKind,
    Opened,
    Party,
)
from migsniff.core.events import Undecodable, Verdict
from migsniff.core.session import Session
from migsniff.core.wire import Command
from tests import catalogue, streams, tlsstreams
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD, STREAMS, page
from tests.playing import Stream, arrivals, decode, of, play, verdict
from tests.streams import EOF, command, ping, pong, shut

HEAD = len(SMALL_HEAD)
WITH_RETURN_PATH = command(Command.OPEN_RETURN_PATH) + ping(1)
START = streams.ram_start(SMALL_BLOCKS)
PART = streams.ram_part(page(0, b"ram"), page(256), page(512))
FIRST_PASSES = START + PART + streams.ram_part(page(0))
COMPLETE = catalogue.passes() + streams.states() + EOF + streams.described(page_size=256)
BIG = streams.ram_start({b"ram": 1 << 30}) + streams.ram_part(
    page(0, b"ram"), *(page(256 * i) for i in range(1, 20_000))
)


def ended(
    direction: Direction, how: EndKind, by: Party, error: str | None = None, connection: int = 0
) -> Ended:
    return Ended(0, connection, direction, how, by, error)


SOURCE_EOF = (ended("fwd", "eof", "source"), ended("rev", "eof", "destination"))
FILE_END = (ended("fwd", "eof", "file"),)
SOURCE_RESET = (ended("fwd", "reset", "source", "ECONNRESET"), ended("rev", "closed", "proxy"))
DESTINATION_RESET = (ended("rev", "reset", "destination", "ECONNRESET"), ended("fwd", "closed", "proxy"))
DESTINATION_EOF = (ended("rev", "eof", "destination"), ended("fwd", "eof", "source"))
REFUSED = (ended("rev", "refused", "destination", "ECONNREFUSED"), ended("fwd", "closed", "proxy"))


@dataclass
class Case:
    forward: bytes
    back: bytes
    ends: tuple[Ended, ...]
    ok: bool
    outcome: str
    message: str


CASES: dict[str, Case] = {
    "without return path": Case(
        SMALL_HEAD + COMPLETE, b"", SOURCE_EOF, True, "completed",
        "the whole stream was sent; without a return path nothing tells whether it was loaded",
    ),
    "SHUT 0": Case(
        SMALL_HEAD + WITH_RETURN_PATH + COMPLETE, pong(1) + shut(0), SOURCE_EOF, True, "completed",
        r"the whole stream was sent, and the destination confirmed that it runs \(SHUT 0\)",
    ),
    "SHUT 1 behind the whole stream": Case(
        SMALL_HEAD + WITH_RETURN_PATH + COMPLETE, pong(1) + shut(1), DESTINATION_EOF, False, "failed",
        "the whole stream was sent, then the destination reported an error; "
        "the destination closed the connection; the return path said SHUT 1",
    ),
    "SHUT 1 in a device": Case(
        SMALL_HEAD + WITH_RETURN_PATH + catalogue.passes() + streams.TIMER.item()[:30],
        pong(1) + shut(1), DESTINATION_RESET, False, "failed",
        r"the destination reported an error \(SHUT 1\); the destination reset the connection \(ECONNRESET\), "
        r"at offset \d+ of main, in section timer instance 0 \(FULL\), 30 bytes into it",
    ),
    "no SHUT behind the whole stream": Case(
        SMALL_HEAD + WITH_RETURN_PATH + COMPLETE, pong(1), SOURCE_EOF, False, "failed",
        "the whole stream was sent, but the destination never confirmed it; "
        "the source closed the connection; the return path said no SHUT",
    ),
    "a return path that was not recorded": Case(
        SMALL_HEAD + WITH_RETURN_PATH + COMPLETE, b"", SOURCE_EOF, True, "completed",
        "the whole stream was sent; what the destination said on the return path was not seen",
    ),
    "the destination dies while it loads": Case(
        SMALL_HEAD + COMPLETE, b"", DESTINATION_RESET, False, "failed",
        r"the whole stream was sent, then the destination reset the connection \(ECONNRESET\); "
        "there is no return path",
    ),
    "the destination closes when it has all": Case(
        SMALL_HEAD + COMPLETE, b"", DESTINATION_EOF, True, "completed", "the whole stream was sent"
    ),
    "reset by the destination in a page": Case(
        SMALL_HEAD + FIRST_PASSES + PART[:100], b"", DESTINATION_RESET, False, "reset",
        r"the destination reset the connection \(ECONNRESET\), at offset \d+ of main, "
        r"in section ram instance 0 \(PART\), page 0x0 of ram, 95 bytes into it; there is no return path",
    ),
    "reset by the destination in a large first pass": Case(
        SMALL_HEAD + BIG, b"", DESTINATION_RESET, False, "reset", "the destination reset the connection"
    ),
    "closed by the destination in the second pass": Case(
        SMALL_HEAD + WITH_RETURN_PATH + FIRST_PASSES + PART[:100], pong(1), DESTINATION_EOF, False, "failed",
        "the destination closed the connection, at offset .*; the return path said no SHUT",
    ),
    "reset by the source": Case(
        SMALL_HEAD + FIRST_PASSES + PART[:100], b"", SOURCE_RESET, False, "reset",
        r"the source reset the connection \(ECONNRESET\) at offset",
    ),
    "the source is gone in a page": Case(
        SMALL_HEAD + FIRST_PASSES + PART[:100], b"", SOURCE_EOF, False, "truncated",
        rf"the source closed the connection at offset {HEAD + len(FIRST_PASSES) + 100} of main, "
        r"in section ram instance 0 \(PART\), page 0x0 of ram, 95 bytes into it; there is no return path",
    ),
    "the file ends in a page": Case(
        SMALL_HEAD + FIRST_PASSES + PART[:100], b"", FILE_END, False, "truncated",
        rf"the file ends at offset {HEAD + len(FIRST_PASSES) + 100} of main, "
        r"in section ram instance 0 \(PART\), page 0x0 of ram, 95 bytes into it; there is no return path",
    ),
    "the file ends between two passes": Case(
        SMALL_HEAD + FIRST_PASSES, b"", FILE_END, False, "cancelled",
        rf"the file ends at offset {HEAD + len(FIRST_PASSES)} of main, between sections, as a source that "
        "cancels leaves it; there is no return path",
    ),
    "the file ends in the description": Case(
        SMALL_HEAD + COMPLETE[:-5], b"", FILE_END, False, "truncated",
        r"the stream ends at offset \d+ of main, in the description, \d+ bytes into it; the file ends; there",
    ),
    "the source is gone in a device": Case(
        SMALL_HEAD + catalogue.passes() + streams.TIMER.item() + streams.CPU.item()[:-6], b"", SOURCE_EOF,
        False, "truncated",
        r"the source closed the connection at offset \d+ of main, "
        r"in section cpu_common instance 1 \(FULL\), \d+ bytes into it",
    ),
    "the source is gone between two devices": Case(
        SMALL_HEAD + catalogue.passes() + streams.TIMER.item(), b"", SOURCE_EOF, False, "truncated",
        r"the source closed the connection at offset \d+ of main, between sections; there is no return path",
    ),
    "the source is gone in the description": Case(
        SMALL_HEAD + COMPLETE[:-5], b"", SOURCE_EOF, False, "truncated",
        r"the stream ends at offset \d+ of main, in the description, \d+ bytes into it",
    ),
    "cancelled between two sections": Case(
        SMALL_HEAD + FIRST_PASSES, b"", SOURCE_EOF, False, "cancelled",
        r"the source ended the migration between two sections, at offset \d+ of main, between sections",
    ),
    "cancelled before a footer": Case(
        SMALL_HEAD + FIRST_PASSES[:-5], b"", SOURCE_EOF, False, "cancelled",
        r"the source ended the migration before a section's footer, at offset \d+ of main, "
        r"in section ram instance 0 \(PART\)",
    ),
    "postcopy broke off": Case(
        catalogue.POSTCOPY_HEAD + PART[:99], pong(1) + pong(2) + pong(4) + pong(3), SOURCE_RESET,
        False, "paused",
        "postcopy was broken off, and can go on over a new connection if both QEMUs live: the source reset "
        r"the connection \(ECONNRESET\), at offset \d+ of main, in section ram instance 0 \(PART\), page 0x0",
    ),
    "postcopy broke off by the destination, whose guest ran": Case(
        catalogue.POSTCOPY_HEAD, pong(1) + pong(2) + pong(4) + pong(3), DESTINATION_RESET, False, "paused",
        "postcopy was broken off, .*: the destination reset the connection",
    ),
    "the package was not loaded": Case(
        catalogue.POSTCOPY_HEAD + PART, pong(1) + pong(2) + pong(4), DESTINATION_EOF, False, "failed",
        "the destination failed while loading the package, whose PING 3 it did not answer: the destination "
        r"closed the connection, at offset \d+ of main, between sections; the return path said no SHUT",
    ),
    "the package was not loaded, which SHUT 1 tells": Case(
        catalogue.POSTCOPY_HEAD, pong(1) + pong(2) + pong(4) + shut(1), DESTINATION_EOF, False, "failed",
        r"the destination reported an error \(SHUT 1\) while loading the package, whose PING 3 it did not "
        "answer; the destination closed the connection, at offset",
    ),
    "the package did not come whole": Case(
        catalogue.POSTCOPY_HEAD[:-70], pong(1) + pong(2), SOURCE_EOF, False, "truncated",
        r"the source closed the connection at offset \d+ of main, in the package, section \S+ instance 7 ",
    ),
    "an error in the package": Case(
        catalogue.POSTCOPY_HEAD[:-14] + b"\x33" * 20, b"", SOURCE_EOF, False, "undecodable",
        r"unknown section type 0x33, at offset \d+ of main, in the package, between sections",
    ),
    "a recovery whose beginning was not seen": Case(
        command(Command.RECV_BITMAP, b"\3ram") + command(Command.POSTCOPY_RESUME) + PART,
        streams.received_bitmap(b"ram", bytes(8)) + shut(0), SOURCE_EOF, False, "undecodable",
        "PART of section 2: its START was on the connection that this one goes on, which was not seen, at "
        "offset 14 of resumed-0, between sections; the source closed the connection; "
        "the return path said SHUT 0",
    ),
    "refused after the configuration": Case(
        SMALL_HEAD, b"", DESTINATION_EOF, False, "refused",
        f"the destination closed the connection, at offset {HEAD} of main, between sections: it refused or "
        "died at the start; there is no return path",
    ),
    "refused in the first pass": Case(
        SMALL_HEAD + START + PART[:50], b"", DESTINATION_RESET, False, "refused",
        r"the destination reset the connection \(ECONNRESET\), at .*: it refused or died at the start; there",
    ),
    "nobody there": Case(
        SMALL_HEAD, b"", REFUSED, False, "refused",
        rf"the destination could not be reached \(ECONNREFUSED\), at offset {HEAD} of main, between sections",
    ),
    "a host that vanished": Case(
        SMALL_HEAD + FIRST_PASSES + PART[:9], b"",
        (ended("fwd", "timeout", "source", "ETIMEDOUT"), ended("rev", "closed", "proxy")), False, "truncated",
        r"the source vanished: the kernel gave up on the connection \(ETIMEDOUT\) at offset",
    ),
    "an error in the stream": Case(
        SMALL_HEAD + START + PART[:13] + b"\xff" * 300, b"", SOURCE_EOF, False, "undecodable",
        r"RAM record names a block of 255 characters that begins with '.*', which is not in the block list, "
        rf"at offset {HEAD + len(START) + 5} "
        r"of main, in section ram instance 0 \(PART\); the source closed the connection; "
        "there is no return path",
    ),
    "TLS": Case(
        tlsstreams.FORWARD, tlsstreams.BACK, SOURCE_EOF, True, "opaque",
        f"TLS 1.3: {len(tlsstreams.FORWARD)} bytes in 6 records were forwarded and cannot be decoded; the "
        "channel ended with probably close_notify",
    ),
    "TLS that breaks off": Case(
        tlsstreams.FORWARD[:-1], tlsstreams.BACK, SOURCE_EOF, False, "truncated",
        "TLS 1.3: .* cannot be decoded; the stream ends at offset .* of tls-0, inside a record; the source",
    ),
    "TLS without an answer": Case(
        tlsstreams.FORWARD, b"", SOURCE_EOF, True, "opaque",
        r"TLS \(no answer of the destination was seen\): .*; the channel ended with no close_notify$",
    ),
    "TLS that is refused": Case(
        tlsstreams.client(0x0304), tlsstreams.record(21, b"\2\x30"), SOURCE_EOF, False, "failed",
        r"TLS \(the destination said no hello\): .*; the destination gave up with the alert fatal "
        "unknown_ca on tls-0",
    ),
    "TLS that the destination resets": Case(
        tlsstreams.FORWARD[:-24], tlsstreams.BACK,
        (ended("fwd", "eof", "source"), ended("rev", "reset", "destination", "ECONNRESET")), False, "reset",
        r"TLS 1.3: .*; the destination reset the connection \(ECONNRESET\), and the channel ended with no "
        "close_notify",
    ),
    "TLS that ends with close_notify unread": Case(
        tlsstreams.FORWARD, tlsstreams.BACK,
        (ended("fwd", "eof", "source"), ended("rev", "reset", "destination", "ECONNRESET")), True, "opaque",
        "TLS 1.3: .*; the channel ended with probably close_notify",
    ),
    "TLS that ends when the destination has closed": Case(
        tlsstreams.FORWARD[:-24], tlsstreams.BACK,
        (ended("rev", "eof", "destination"), ended("fwd", "reset", "destination", "EPIPE")), True, "opaque",
        "TLS 1.3: .*; the channel ended with no close_notify",
    ),
    "TLS that is none": Case(
        tlsstreams.client(0x0304) + b"other", b"", SOURCE_EOF, False, "undecodable",
        "no TLS record begins with 6f 74 68 65 72, at offset .* of tls-0",
    ),
    "no stream": Case(
        b"SSH-2.0-OpenSSH_9.2\r\n", b"", SOURCE_EOF, False, "not-a-stream",
        "no QEMU migration stream: it begins with 53 53 48 2d 32 2e 30 2d",
    ),
    "a few bytes": Case(
        b"QEX", b"", SOURCE_EOF, False, "not-a-stream", "no QEMU migration stream: it begins with 51 45 58$"
    ),
    **{
        f"the file ends behind {count} bytes of the magic": Case(
            b"QEVM"[:count], b"", FILE_END, False, "truncated",
            f"the file ends at offset {count} of {name}, in the header, {count} bytes into it; there",
        )
        for count, name in ((1, "main-0"), (2, "main-0"), (3, "main-0"), (4, "main"))
    },
    "an old version": Case(
        b"QEVM\0\0\0\2" + bytes(100), b"", SOURCE_EOF, False, "undecodable",
        "migration stream version 2: only version 3 is known, at offset 0 of main, in the header",
    ),
    "empty": Case(b"", b"", SOURCE_EOF, False, "empty", "nothing was sent"),
    "multifd alone": Case(
        streams.hello(3), b"", SOURCE_EOF, False, "truncated",
        "a main channel never came, only multifd-3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    case = CASES[name]
    pieces = [(0, "fwd", case.forward), *([(0, "rev", case.back)] if case.back else [])]
    found = verdict(play(Stream(tuple(pieces), case.ends)))  # type: ignore[arg-type]
    assert (found.ok, found.outcome) == (case.ok, case.outcome), found.message
    assert re.match(case.message, found.message), found.message


@pytest.mark.parametrize(("time", "outcome"), [(2_900_000, "refused"), (6_000_000, "reset")])
def test_who_runs_for_long_has_not_refused(time: int, outcome: str) -> None:
    """However little a throttled source has sent by then: the destination was killed, say."""
    data = SMALL_HEAD + START + PART[:50]
    session = Session()
    events = [
        event
        for arrival in (
            Opened(0, 0, "", ""),
            Chunk(1000, 0, "fwd", data, len(data)),
            Ended(time, 0, "rev", "reset", "destination", "ECONNRESET"),
            Ended(time, 0, "fwd", "reset", "destination", "ECONNRESET"),
        )
        for event in session.feed(arrival)
    ]
    assert verdict([*events, *session.finish()]).outcome == outcome


@pytest.mark.parametrize(
    ("how", "error", "outcome", "said"),
    [
        ("reset", "ECONNRESET", "reset", "reset multifd-3"),
        ("error", "EHOSTUNREACH", "failed", "failed on multifd-3"),
        ("timeout", "ETIMEDOUT", "failed", "vanished: the kernel gave up on multifd-3"),
    ],
)
def test_a_channel_beside_the_main_one_is_named(how: EndKind, error: str, outcome: str, said: str) -> None:
    """Case 17: it was not the main channel that the destination reset."""
    stream = Stream(
        ((0, "fwd", SMALL_HEAD + FIRST_PASSES), (1, "fwd", streams.hello(3))),
        (
            ended("fwd", how, "destination", error, connection=1),
            ended("fwd", "eof", "source"),
        ),
    )
    found = verdict(play(stream))
    assert found.outcome == outcome
    where = f"at offset {len(SMALL_HEAD + FIRST_PASSES)} of main, "
    assert found.message.startswith(f"the destination {said} ({error}), {where}")


@pytest.mark.parametrize("name", STREAMS)
def test_catalogue(name: str) -> None:
    stream = STREAMS[name]
    found = verdict(play(stream))
    assert found.outcome == stream.outcome, found.message
    assert found.ok == (stream.outcome in ("completed", "opaque"))


def test_what_a_file_looks_like_instead() -> None:
    session = Session(looks_like=lambda head: "an SSH greeting" if head.startswith(b"SSH-") else None)
    found = verdict(decode(session, arrivals(streams_of(b"SSH-2.0-OpenSSH_9.2\r\n"))))
    assert found.message == "no QEMU migration stream: this looks like an SSH greeting"


def streams_of(data: bytes) -> Stream:
    return Stream(((0, "fwd", data),))


@pytest.mark.parametrize("code", ["decoder-behind", "decoder-bug"])
def test_decoding_that_was_stopped(code: str) -> None:
    session = Session()
    details: dict[str, object] = {"limit": 64 << 20, "detail": "KeyError: 1"}
    source = arrivals(streams_of(SMALL_HEAD + COMPLETE), lambda data: [data[:400], data[400:]])
    for number, arrival in enumerate(source):
        list(session.feed(arrival))
        if number == 1:
            stopped = of(list(session.stop_decoding(code, **details)), Undecodable)
            assert [event.direction for event in stopped] == ["fwd", "rev"]
    found = verdict(list(session.finish()))
    assert found.outcome == "undecodable"
    place = r"the forwarding is not touched, at offset \d+ of main, in section ram instance 0 \(PART\)"
    assert re.search(place, found.message)


def test_the_first_to_end_is_told_not_what_the_proxy_passed_on() -> None:
    ends = (
        ended("fwd", "closed", "proxy"),
        ended("rev", "reset", "destination", "ECONNRESET"),
    )
    found = verdict(play(Stream(((0, "fwd", SMALL_HEAD + FIRST_PASSES + PART[:100]),), ends)))
    assert found.message.startswith("the destination reset the connection (ECONNRESET), at offset")


def test_the_resumed_channel_is_judged() -> None:
    """Postcopy that was paused: the first main channel broke off, and that is no end."""
    assert verdict(play(STREAMS["resumed"])).outcome == "completed"
    # as it really happened: the source cuts the first connection, and the second one is closed in order
    cut = (*SOURCE_RESET, ended("fwd", "eof", "source", None, 1), ended("rev", "eof", "destination", None, 1))
    assert verdict(play(Stream(STREAMS["resumed"].pieces, cut))).outcome == "completed"
    pieces = STREAMS["resumed"].pieces[:-2]
    found = verdict(play(Stream(pieces)))
    assert found.outcome != "completed"
    assert " of resumed-1, " in found.message


def test_a_destination_that_says_shut_1_when_the_source_has_cancelled() -> None:
    """As QEMU 10.0 does: that the source ended came first, and is the cause."""
    forward, first, last = SMALL_HEAD + WITH_RETURN_PATH + FIRST_PASSES, pong(1), shut(1)
    session = Session()
    told = [
        event
        for arrival in (
            Opened(0, 0, "source", "destination"),
            Chunk(1, 0, "fwd", forward, len(forward)),
            Chunk(2, 0, "rev", first, len(first)),
            ended("fwd", "eof", "source"),
            Chunk(4, 0, "rev", last, len(first + last)),
            ended("rev", "eof", "destination"),
        )
        for event in session.feed(arrival)
    ]
    *_, judged = [*told, *session.finish()]
    assert isinstance(judged, Verdict)
    assert judged.outcome == "cancelled"
    assert judged.message.endswith("the return path said SHUT 1")


def test_a_destination_that_could_not_be_reached() -> None:
    session = Session()
    for arrival in (Opened(0, 0, "source", "destination"), *REFUSED):
        assert list(session.feed(arrival))[1:] == []
    (judged,) = session.finish()
    assert isinstance(judged, Verdict)
    assert (judged.ok, judged.outcome) == (False, "refused")
    assert judged.message == "the destination could not be reached (ECONNREFUSED): nothing was passed on"
