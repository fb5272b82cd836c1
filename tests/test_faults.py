"""Page requests of a postcopy destination, and the pages that answer them."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migsniff.core.arrivals import Chunk, Direction, Opened
from migsniff.core.events import (
    Event,
    Finding,
    LoosePages,
    PageFault,
    RamSection,
    ReturnPathMessage,
)
from migsniff.core.session import Session
from migsniff.core.wire import MAX_PAGE_REQUESTS, Command, ReturnPathType
from tests.catalogue import BACK, MAIN, POSTCOPY_HEAD, SMALL, SMALL_BLOCKS, SMALL_HEAD, STREAMS, page
from tests.playing import Cut, Stream, arrivals, bytewise, decode, of, pieces_of, play, strip, whole
from tests.streams import (
    EOF,
    EOS,
    advise,
    block_list,
    command,
    message,
    package,
    ram_end,
    ram_part,
    ram_start,
    received_bitmap,
    request,
    shut,
    str8,
    zero,
)

Piece = tuple[int, Direction, bytes]
PREEMPT: tuple[int, Direction] = (1, "fwd")


def faults(*pieces: Piece, cut: Cut = whole) -> list[PageFault]:
    return of(play(Stream(((*MAIN, POSTCOPY_HEAD), *pieces)), cut), PageFault)


def told(found: list[PageFault]) -> list[tuple[str, int, str, int, bool]]:
    return [(each.block, each.address, each.channel, each.offset, each.crossed) for each in found]


PART = len(ram_part()) - len(EOS) - 5  # what stands before the first record
AT = len(POSTCOPY_HEAD) + PART


@pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(100)])
class TestAnswers:
    def test_on_the_main_channel(self, cut: Cut) -> None:
        """A record that names its block, and those that go on in it; of each the place and the size."""
        asked = request(3 * SMALL, SMALL, b"ram") + request(0, SMALL) + request(5 * SMALL, SMALL)
        found = faults(
            (*BACK, asked),
            (*MAIN, ram_part(page(3 * SMALL, b"ram"), zero(SMALL), page(0), zero(5 * SMALL))),
            cut=cut,
        )
        first, single, fill = len(page(0, b"ram")), len(page(0)), len(zero(0))
        assert told(found) == [
            ("ram", 3 * SMALL, "main", AT, False),
            ("ram", 0, "main", AT + first + fill, False),
            ("ram", 5 * SMALL, "main", AT + first + fill + single, False),
        ]
        assert [each.size for each in found] == [first, single, fill]
        assert [(each.asked_channel, each.asked_offset) for each in found] == [
            ("main", 0),
            ("main", len(request(0, 0, b"ram"))),
            ("main", len(request(0, 0, b"ram") + request(0, 0))),
        ]

    def test_on_the_preempt_channel(self, cut: Cut) -> None:
        found = faults(
            (*BACK, request(0, SMALL, b"rom") + request(6 * SMALL, SMALL, b"ram")),
            (*PREEMPT, page(6 * SMALL, b"ram") + page(0, b"rom")),
            cut=cut,
        )
        assert told(found) == [
            ("ram", 6 * SMALL, "preempt", 0, False),
            ("rom", 0, "preempt", len(page(0, b"ram")), False),
        ]

    def test_of_several_pages_the_last_one_answers(self, cut: Cut) -> None:
        sent = [page(4 * SMALL, b"ram"), *(page(number * SMALL) for number in (5, 6, 7, 8))]
        found = faults((*BACK, request(4 * SMALL, 4 * SMALL, b"ram")), (*MAIN, ram_part(*sent)), cut=cut)
        assert told(found) == [("ram", 4 * SMALL, "main", AT + sum(map(len, sent[:3])), False)]
        assert [each.length for each in found] == [4 * SMALL]

    def test_a_page_that_was_sent_before_it_was_asked_for(self, cut: Cut) -> None:
        """It crosses the request. In precopy does not count: it was discarded, or it is not asked for."""
        found = faults(
            (*MAIN, ram_part(page(0, b"ram"), zero(SMALL))[:-5]),
            (*BACK, request(0, SMALL, b"ram") + request(2 * SMALL, SMALL)),
            (*MAIN, ram_part()[-5:] + ram_part(zero(2 * SMALL))),
            cut=cut,
        )
        assert [(each.address, each.direction, each.offset, each.crossed) for each in found] == [
            (0, "rev", 0, True),
            (2 * SMALL, "fwd", AT + len(page(0, b"ram") + zero(0) + EOS) + 5 + 5, False),
        ]
        assert found[0].size == len(request(0, 0, b"ram"))

    def test_the_same_request_twice(self, cut: Cut) -> None:
        found = faults(
            (*BACK, request(0, SMALL, b"ram") * 2), (*MAIN, ram_part(page(0, b"ram"), page(0))), cut=cut
        )
        assert told(found) == [("ram", 0, "main", AT, False)]


def test_the_answer_comes_with_the_chunk_that_completes_the_page() -> None:
    session = Session()
    list(session.feed(Opened(0, 0, "", "")))
    list(session.feed(Chunk(0, 0, "fwd", POSTCOPY_HEAD, len(POSTCOPY_HEAD))))
    asked = request(SMALL, SMALL, b"ram")
    list(session.feed(Chunk(0, 0, "rev", asked, len(asked))))
    sent = ram_part(zero(0, b"ram"), page(SMALL), zero(2 * SMALL))
    end = PART + len(zero(0, b"ram") + page(0))
    at = len(POSTCOPY_HEAD)
    assert not of(list(session.feed(Chunk(0, 0, "fwd", sent[: end - 1], at + end - 1))), PageFault)
    assert of(list(session.feed(Chunk(0, 0, "fwd", sent[end - 1 : end], at + end))), PageFault)


# ---------------------------------------------------------------- recovery


def recovery(received: bytes, *, asked: bytes, sent: bytes) -> list[Event]:
    """Postcopy that lost its connection when it had sent pages 0 to 4 of ram, and goes on."""
    return play(
        Stream(
            (
                (*MAIN, POSTCOPY_HEAD),
                (*BACK, request(3 * SMALL, SMALL, b"ram") + request(9 * SMALL, SMALL)),
                (*MAIN, ram_part(*(page(i * SMALL, None if i else b"ram") for i in range(5)))[:-13]),
                (1, "fwd", command(Command.RECV_BITMAP, str8(b"ram"))),
                (1, "rev", received_bitmap(b"ram", received)),
                (1, "fwd", command(Command.POSTCOPY_RESUME)),
                (1, "rev", message(ReturnPathType.RESUME_ACK, struct.pack(">I", 1)) + asked),
                (1, "fwd", ram_part(sent) + ram_end() + EOF),
                (1, "rev", shut(0)),
            )
        )
    )


def test_pages_that_were_lost_are_asked_for_and_sent_again() -> None:
    events = recovery(
        b"\x07" + bytes(7),
        asked=request(4 * SMALL, SMALL, b"ram") + request(9 * SMALL, SMALL) + request(0, SMALL),
        sent=page(4 * SMALL, b"ram") + page(9 * SMALL),
    )
    bitmap = next(event for event in of(events, ReturnPathMessage) if event.name == "RECV_BITMAP")
    assert bitmap.arguments == {"block": "ram", "bitmap": 8, "received": 3, "pages": 16}
    found = of(events, PageFault)
    assert [(each.address // SMALL, each.channel, each.asked_channel, each.crossed) for each in found] == [
        (3, "main", "main", False),
        (0, "resumed-1", "resumed-1", True),
        (4, "resumed-1", "resumed-1", False),
        (9, "resumed-1", "main", False),  # it has waited since it was asked for first
    ]
    assert not of(events, Finding)


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_received_bitmaps(cut: Cut) -> None:
    """Bits behind the block's end do not count, and what is none of a block's bitmap is only stepped over."""
    sent = received_bitmap(b"ram", b"\xff" * 8), received_bitmap(b"rom", b"\x05" + bytes(7))
    wrong = received_bitmap(b"ram", b"\xff" * 16), received_bitmap(b"acme", b"\xff" * 16)
    events = play(Stream(((*MAIN, POSTCOPY_HEAD), (*BACK, b"".join((*sent, *wrong)) + shut(0)))), cut)
    found = [event.arguments for event in of(events, ReturnPathMessage)]
    assert found == [
        {"block": "ram", "bitmap": 8, "received": 16, "pages": 16},
        {"block": "rom", "bitmap": 8, "received": 2, "pages": 4},
        {"block": "ram", "bitmap": 16},
        {"block": "acme", "bitmap": 16},
        {"value": 0},
    ]
    assert [(each.code, each.message) for each in of(events, Finding)] == [
        ("recv-bitmap-size", "the received bitmap of block 'ram' has 16 bytes, not 8")
    ]


def test_a_received_bitmap_is_kept_in_a_stripped_capture_a_lie_is_not() -> None:
    pieces = (*MAIN, POSTCOPY_HEAD), (*BACK, received_bitmap(b"ram", b"\xff" * 8))
    for lie in (b"", received_bitmap(b"ram", bytes(1 << 20))):
        events, kept = strip(arrivals(Stream((*pieces, (*BACK, lie)) if lie else pieces), pieces_of(999)))
        stored = sum(
            len(chunk.data) for chunk in kept if isinstance(chunk, Chunk) and chunk.direction == "rev"
        )
        assert stored == len(pieces[1][2]) + (len(lie) - (1 << 20) if lie else 0)
        assert decode(Session(), kept) == events


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (request(0, SMALL), "no block was named yet"),
        (request(0, SMALL, b"acme"), "there is no such block"),
        (request(0, 0, b"ram"), "not whole pages of 256 bytes"),
        (request(1, SMALL, b"ram"), "not whole pages of 256 bytes"),
        (request(0, SMALL + 1, b"ram"), "not whole pages of 256 bytes"),
        (request(0, 0xFFFFFF00, b"ram"), "the block is 0x1000 bytes long"),
        (request(16 * SMALL, SMALL, b"ram"), "the block is 0x1000 bytes long"),
        (request(-(1 << 63) % (1 << 64), SMALL, b"ram"), "the block is 0x1000 bytes long"),
    ],
)
def test_requests_that_no_page_can_answer(asked: bytes, why: str) -> None:
    events = play(Stream(((*MAIN, POSTCOPY_HEAD), (*BACK, asked), (*MAIN, ram_part(page(0, b"ram")) + EOF))))
    (finding,) = of(events, Finding)
    assert (finding.code, finding.direction, finding.offset, finding.size) == (
        "page-request",
        "rev",
        0,
        len(asked),
    )
    assert finding.message.endswith(why)
    assert not of(events, PageFault)


def test_a_destination_that_asks_without_end() -> None:
    """The oldest requests are given up, and counted."""
    most = MAX_PAGE_REQUESTS + 1000
    head = SMALL_HEAD + advise(SMALL) + ram_start({b"ram": (most + 1) * SMALL})
    listen = package(command(Command.POSTCOPY_LISTEN), command(Command.POSTCOPY_RUN))
    asked = b"".join(request(number * SMALL, SMALL, b"ram" if not number else None) for number in range(most))
    session = Session()
    events = decode(
        session,
        arrivals(
            Stream(
                (
                    (*MAIN, head + listen),
                    (*BACK, asked),
                    (*MAIN, ram_part(page(0, b"ram"), page((most - 1) * SMALL)) + EOF),
                )
            )
        ),
    )
    assert [each.address // SMALL for each in of(events, PageFault)] == [most - 1]
    assert len(session.context.requests.waiting) == MAX_PAGE_REQUESTS - 1
    (finding,) = of(events, Finding)
    assert finding.message == (
        f"page requests that no page answered: {most - 1}, the first of them for {1000 * SMALL:#x} of ram"
    )


# ---------------------------------------------------------------- any order


@settings(max_examples=25, deadline=None)
@given(
    wanted=st.lists(st.integers(0, 20_000), max_size=60, unique=True),
    many=st.booleans(),
    zeros=st.booleans(),
    size=st.integers(50, 5_000),
)
def test_against_a_plain_count(wanted: list[int], many: bool, zeros: bool, size: int) -> None:
    """Each page comes once: it answers what was asked for before, in order, and crosses what was not."""
    pages = 12_000
    more = list(range(0, 10_000, 2)) if many else []
    asked = list(dict.fromkeys([*wanted, *more]))
    block = {b"ram": 20_001 * SMALL}
    head = SMALL_HEAD + advise(SMALL) + ram_start(block)
    listen = package(command(Command.POSTCOPY_LISTEN), command(Command.POSTCOPY_RUN))
    record = zero if zeros else page
    sent = [record(number * SMALL, None if number else b"ram") for number in range(pages)]
    half = pages // 2
    early, late = b"".join(sent[:half]), b"".join(sent[half:])
    frame = ram_part()
    requests = b"".join(request(number * SMALL, SMALL, b"ram") for number in asked)
    events = play(
        Stream(
            (
                (*MAIN, head + listen + frame[:5] + early),
                (*BACK, requests),
                (*MAIN, late + frame[5:] + EOF),
            )
        ),
        pieces_of(size * 20),
    )
    found = of(events, PageFault)
    assert [each.address // SMALL for each in found if each.crossed] == [n for n in asked if n < half]
    answered = [each for each in found if not each.crossed]
    assert [each.address // SMALL for each in answered] == sorted(n for n in asked if half <= n < pages)
    first = len(head + listen) + 5 + len(sent[0]) - len(sent[1])
    assert [each.offset for each in answered] == [
        first + each.address // SMALL * len(sent[1]) for each in answered
    ]


# ---------------------------------------------------------------- sections that are cut off


def test_all_whole_records_are_counted_wherever_the_stream_ends() -> None:
    records = [
        page(0, b"ram"),
        zero(SMALL),
        page(2 * SMALL),
        zero(0, b"rom"),
        zero(0, b"ram"),
        page(3 * SMALL),
    ]
    data = SMALL_HEAD + ram_start(SMALL_BLOCKS) + ram_part(*records) + ram_end(zero(SMALL, b"rom"))
    begin = data.index(records[0])
    ends = [begin + sum(map(len, records[: number + 1])) for number in range(len(records))]
    ends.append(len(data) - len(EOS) - 5)
    for length in range(begin - 20, len(data), 3):
        for cut in (whole, pieces_of(50)):
            events = play(Stream(((*MAIN, data[:length]),)), cut)
            counted = sum(each.counts.pages for each in of(events, RamSection) + of(events, LoosePages))
            assert counted == sum(end <= length for end in ends), length
            for loose in of(events, LoosePages):
                assert loose.offset + loose.size <= length


def test_pages_before_an_error_are_counted() -> None:
    data = (
        SMALL_HEAD
        + ram_start(SMALL_BLOCKS)
        + ram_part(page(0, b"ram"), zero(SMALL), zero(2 * SMALL, None, 7))
    )
    (loose,) = of(play(Stream(((*MAIN, data),))), LoosePages)
    assert (loose.counts.normal, loose.counts.zero) == (1, 1)


def test_a_preempt_channel_tells_its_pages() -> None:
    """At its EOS, and at its end what came behind it."""
    events = play(STREAMS["preempt"])
    assert [(each.channel, each.counts.pages, each.offset) for each in of(events, LoosePages)] == [
        ("preempt", 3, 0)
    ]


def test_block_lists_are_no_pages() -> None:
    data = SMALL_HEAD + b"\1" + struct.pack(">I", 2) + str8(b"ram") + struct.pack(">II", 0, 4)
    events = play(Stream(((*MAIN, data + block_list(SMALL_BLOCKS)),)))
    assert not of(events, LoosePages)
