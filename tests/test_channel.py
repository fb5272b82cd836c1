"""What a connection is, told by its first bytes; and a direction whose parser fails."""

import struct
from collections.abc import Iterator

import pytest

from migsniff.core.arrivals import Chunk
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.channel import DirectionDecoder, classify
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    Event,
    Header,
    Opaque,
    RamBlock,
    Undecodable,
)
from tests.streams import HEADER, command, hello, normal, zero


def context(*, postcopy: bool = False, page_size: int | None = None) -> Context:
    made = Context(postcopy=postcopy)
    if page_size:
        made.memory.announce([(b"ram", RamBlock("ram", 1 << 20))])
        made.know_page_size(page_size, "a test")
    return made


@pytest.mark.parametrize(
    ("head", "situation", "expected"),
    [
        (HEADER, context(), "main"),
        (HEADER[:4], context(), "main"),
        (HEADER[:3], context(), None),
        (hello(0), context(), "multifd"),
        (hello(0)[:63], context(), None),
        (b"\x16\3\1\0", context(), "tls"),
        (b"\x16\3\3\1\2", context(), "tls"),
        (b"\x16\2\3\1\2\3\4\5", context(), "unknown"),
        (command(10, b"\3ram"), context(postcopy=True), "resumed"),
        (command(9), context(postcopy=True), "resumed"),
        (command(10, b"\3ram"), context(), "resumed"),
        (command(9, b"\3ram"), context(), "resumed"),  # as it was before 3.1
        (command(10, b"\3ram")[:5], context(), None),
        (command(10, b"\3ramm"), context(), "unknown"),
        (command(10, b"\0") + b"more", context(), "unknown"),
        (command(1) + command(1), context(postcopy=True), "unknown"),
        (normal(4096, b"ram"), context(page_size=4096), "preempt"),
        (zero(0, b"ram"), context(page_size=4096), "preempt"),
        (normal(4096, b"ram")[:7], context(page_size=4096), None),
        (normal(4096, None), context(page_size=4096), "unknown"),
        (normal(4096, b"ram"), context(), "unknown"),
        (struct.pack(">Q", 4096 | 0x40), context(page_size=4096), "unknown"),
        (struct.pack(">Q", 0x10), context(page_size=4096), "preempt"),
        (b"", context(), None),
        (b"\0" * 8, context(), "unknown"),
    ],
)
def test_classify(head: bytes, situation: Context, expected: str | None) -> None:
    found = classify(head, situation, ended=False)
    assert (found[0] if found else None) == expected
    more = classify(head + b"and more of it", situation, ended=False)
    assert expected is None or (more and more[0] == expected)  # it does not change its mind


@pytest.mark.parametrize(
    ("head", "role", "detail"),
    [
        (b"", "unknown", "ended after "),
        (b"\1\2\3", "unknown", "ended after 01 02 03"),
        (hello(0)[:30], "multifd", ""),
    ],
)
def test_classify_what_has_ended(head: bytes, role: str, detail: str) -> None:
    assert classify(head, context(), ended=True) == (role, detail)


@pytest.mark.parametrize("head", [b"Q", b"QE", b"QEV"])
def test_classify_a_part_of_the_magic(head: bytes) -> None:
    """The main channel, cut off in its header, if there is no other."""
    assert classify(head, context(), ended=True) == ("main", "")
    beside = ("unknown", f"ended after {head.hex(' ')}")
    assert classify(head, context(), ended=True, beside_main=True) == beside
    assert classify(HEADER, context(), ended=True, beside_main=True) == ("main", "")


class Parser:
    """Yields an event for each byte, and ends at a 0, or raises what a capital letter stands for."""

    where = "a test"
    head = b""

    def __init__(self, queue: ByteQueue) -> None:
        self.queue = queue

    def run(self) -> Steps:
        while byte := (yield from self.queue.u8()):
            self.queue.mark = self.queue.at
            if byte == ord("P"):
                raise StreamProblem("item-type", found=byte)
            if byte == ord("B"):
                raise KeyError("a bug")
            yield Header(channel="x", direction="fwd", offset=self.queue.at - 1, size=1, version=byte)


def decoder() -> DirectionDecoder:
    queue = ByteQueue()
    made = DirectionDecoder("x", "fwd", queue)
    parser = Parser(queue)
    made.parse(parser, parser.run())
    return made


def fed(made: DirectionDecoder, *pieces: bytes) -> Iterator[Event]:
    end = made.queue.wire_end
    for piece in pieces:
        end += len(piece)
        yield from made.feed(Chunk(0, 0, "fwd", piece, end))
    yield from made.close()


def test_a_parser_that_ends() -> None:
    made = decoder()
    events = list(fed(made, b"ab", b"c\0de", b"f"))
    assert [type(event) for event in events] == [Header, Header, Header, Opaque]
    assert isinstance(events[-1], Opaque)
    assert (events[-1].offset, events[-1].size) == (4, 3)
    assert events[-1].what == "bytes behind the end of the stream"
    assert made.problem is None


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"abPcd", "item-type", "unknown section type 0x50"),
        (b"abBcd", "decoder-bug", "KeyError: 'a bug'"),
    ],
)
def test_a_parser_that_fails(data: bytes, code: str, message: str) -> None:
    made = decoder()
    events = list(fed(made, data, b"more", b"and more"))
    problem, opaque = events[-2:]
    assert isinstance(problem, Undecodable)
    assert isinstance(opaque, Opaque)
    assert (problem.code, problem.offset, problem.where) == (code, 3, "a test")
    assert message in problem.message
    assert (opaque.offset, opaque.offset + opaque.size) == (3, len(data) + 12)
    assert made.problem is not None
    assert made.queue.size == 0


def test_stopped_from_outside() -> None:
    made = decoder()
    assert len(list(made.feed(Chunk(0, 0, "fwd", b"ab", 2)))) == 2
    (problem,) = made.stop("decoder-behind", limit=7)
    assert isinstance(problem, Undecodable)
    assert problem.message.startswith("decoding fell more than 7 bytes behind")
    (opaque,) = fed(made, b"cd")
    assert (opaque.offset, opaque.size) == (2, 2)
