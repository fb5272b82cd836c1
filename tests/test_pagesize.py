"""The target's page size: by machine type, by what the stream says, else from the first page records."""

import pytest

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Learned,
    Opened,
)
from migsniff.core.events import Undecodable
from migsniff.core.pagesize import page_size_of_machine
from migsniff.core.session import Session
from migsniff.core.wire import PAGE_SIZES
from tests import streams
from tests.catalogue import STREAMS
from tests.playing import (
    Cut,
    arrivals,
    decode,
    of,
    pieces_of,
    play,
    precopy,
    strip,
    verdict,
    whole,
)
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    advise,
    configuration,
    filled,
    normal,
    page_bits,
    ram_end,
    ram_part,
    ram_start,
    zero,
)

VIRT = HEADER + configuration(b"virt")
LENGTH = 64 * 65536


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("pc-i440fx-7.2", 4096),
        ("pc-q35-11.1", 4096),
        ("pc", 4096),
        ("pseries-6.2", 4096),
        ("s390-ccw-virtio-10.0", 4096),
        ("microvm", 4096),
        ("isapc", 4096),
        ("sun4u", 8192),
        ("virt", None),
        ("virt-7.2", None),
        ("pcx", None),
        ("none", None),
        ("", None),
    ],
)
def test_machines(machine: str, expected: int | None) -> None:
    assert page_size_of_machine(machine) == expected


class TestTold:
    """By the stream, before the first page: the first to tell is believed."""

    @pytest.mark.parametrize(
        ("head", "page_size", "source"),
        [
            (HEADER + configuration(b"virt", page_bits(16)), 65536, "configuration"),
            (HEADER + configuration(b"pc", page_bits(13)), 8192, "configuration"),
            (HEADER + configuration(b"pc-q35-7.2") + advise(8192), 4096, "machine type"),
            (VIRT + advise(16384), 16384, "POSTCOPY_ADVISE"),
        ],
    )
    def test_by_whom(self, head: bytes, page_size: int, source: str) -> None:
        session = Session()
        decode(session, arrivals(precopy(head, ram_start({b"ram": LENGTH}), ram_end(), EOF)))
        assert (session.context.page_size, session.context.page_size_from) == (page_size, source)
        assert session.learned_page_size() is None

    @pytest.mark.parametrize("bits", [0, 7, 17, 0xFFFFFFFF])
    def test_bits_that_no_target_has(self, bits: int) -> None:
        events = play(precopy(HEADER, configuration(b"virt", page_bits(bits)), EOF))
        assert [event.code for event in of(events, Undecodable)] == ["page-bits"]

    @pytest.mark.parametrize("size", [0, 1000, 512, 1 << 40])
    def test_advice_that_no_target_has(self, size: int) -> None:
        events = play(precopy(VIRT, advise(size), EOF))
        assert [event.code for event in of(events, Undecodable)] == ["page-size-advised"]


def first_pages(size: int) -> dict[str, list[bytes]]:
    """Ways in which a stream of pages of `size` bytes may begin."""
    page = filled(size, 0xC3)
    return {
        "pages": [normal(i * size, None if i else b"ram", page) for i in range(9)],
        "zero pages": [zero(i * size, None if i else b"ram") for i in range(20)],
        "mixed": [
            zero(0, b"ram"),
            normal(size, None, page),
            zero(2 * size),
            zero(3 * size),
            normal(4 * size, None, page),
        ],
        "zero pages and far addresses": [zero(0, b"ram"), zero(37 * size), zero(38 * size)],
        "one page": [normal(size, b"ram", page)],
        "a page full of zeros": [normal(0, b"ram", bytes(size)), normal(size, None, bytes(size))],
        "another block": [zero(size, b"ram"), zero(0, b"rom"), normal(size, None, page)],
        "a flush between": [normal(0, b"ram", page), FLUSH, zero(3 * size)],
    }


@pytest.mark.parametrize("cut", [whole, pieces_of(1000)])
@pytest.mark.parametrize("name", first_pages(4096))
@pytest.mark.parametrize("size", PAGE_SIZES)
def test_inferred(size: int, name: str, cut: Cut) -> None:
    records = first_pages(size)[name]
    head = VIRT + ram_start({b"ram": 64 * size, b"rom": 8 * size})
    stream = precopy(head, ram_part(*records), ram_end(), streams.TIMER.item(), EOF)
    session = Session()
    events = decode(session, arrivals(stream, cut))
    assert verdict(events).outcome == "completed", verdict(events).message
    assert session.context.page_size == size
    assert session.learned_page_size() == size
    assert session.learned_page_size() is None  # told once
    live, kept = strip(arrivals(stream, cut))
    assert live == events
    assert decode(Session(), kept) == events


@pytest.mark.parametrize("size", [1024, 4096, 8192, 16384])
def test_one_channel_alone(size: int) -> None:
    """A channel of a stripped capture without its timeline: nobody has learned the page size there."""
    stream = precopy(
        VIRT, ram_start({b"ram": 64 * size}), ram_part(*first_pages(size)["mixed"]), ram_end(), EOF
    )
    events, kept = strip(arrivals(stream, pieces_of(5000)))
    assert any(isinstance(arrival, Learned) for arrival in kept)
    alone = [arrival for arrival in kept if not isinstance(arrival, Learned)]
    assert decode(Session(), alone) == events


def test_decided_as_soon_as_it_can_be() -> None:
    """Not only when all is there that will be looked at."""
    head = VIRT + ram_start({b"ram": LENGTH})
    data = head + ram_part(*first_pages(4096)["zero pages"])
    session = Session()
    for end in range(1, len(data)):
        list(session.feed(Chunk(0, 0, "fwd", data[end - 1 : end], end)))
        if session.context.page_size:
            break
    assert end == len(head) + 5 + 13 + 7 * 9  # eight records, the first with its block's name


@pytest.mark.parametrize(
    ("records", "length"),
    [
        ([normal(0, b"ram", b"\x01" * 77)], 1 << 20),
        ([b"\xff" * 200], 1 << 20),
        ([normal(0, b"ram", filled(4096)), b"\xee" * 140_000], 1 << 20),
    ],
)
def test_no_size_fits(records: list[bytes], length: int) -> None:
    events = play(precopy(VIRT, ram_start({b"ram": length}), ram_part(*records), bytes(140_000)))
    (problem,) = of(events, Undecodable)
    assert problem.code in ("page-size", "ram-flags", "ram-hook", "ram-block")


@pytest.mark.parametrize("told", [0, 3, 4097, 1 << 29])
def test_a_capture_that_lies_about_it(told: int) -> None:
    """What no target has is not believed."""
    data = STREAMS["pages of 4096 bytes"].main
    source: list[Arrival] = [
        Opened(0, 0, "", ""),
        Learned(0, 0, told),
        Chunk(0, 0, "fwd", data, len(data)),
        Ended(0, 0, "fwd", "eof", "source"),
    ]
    assert verdict(decode(Session(), source)).ok
