"""Long runs of page records: what the loops take at once is what records taken one by one say."""

import pytest

from migsniff.core.events import RamSection, Undecodable
from tests import streams
from tests.playing import Stream, arrivals, of, pieces_of, play, precopy, strip, verdict

PAGES = 40_000
BLOCKS = {b"pc.ram": PAGES * streams.PAGE_SIZE}
HEAD = streams.HEADER + streams.configuration() + streams.ram_start(BLOCKS)


def run(first: int, last: int) -> list[bytes]:
    return [streams.zero(page * streams.PAGE_SIZE) for page in range(first, last)]


def zeros(*others: tuple[int, bytes], rest: bytes = b"") -> Stream:
    """Zero pages over the whole block, with other records in the place of some."""
    records = [streams.zero(0, b"pc.ram"), *run(1, PAGES)]
    for at, record in others:
        records[at] = record
    return precopy(HEAD, streams.ram_part(*records), rest or streams.ram_end(), streams.states(), b"\0")


RUNS = {
    "a whole block": zeros(),
    "one page inside": zeros((25_000, streams.normal(25_000 << 12))),
    "a page at the end of a turn": zeros((4096, streams.normal(4096 << 12))),
    "wrong fill": zeros((30_000, streams.zero(30_000 << 12, fill=1))),
    "behind the block": zeros((30_000, streams.zero(PAGES << 12))),
    "another block": zeros((30_000, streams.zero(0, b"vga.vram"))),
    "back to the start": zeros(rest=streams.ram_part(*run(0, 20_000)) + streams.ram_end()),
    "back inside": zeros((20_000, streams.zero(5 << 12))),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("size", [9, 4096, 50_000])
def test_runs_of_zero_pages(name: str, size: int) -> None:
    stream = RUNS[name]
    expected = play(stream)
    assert play(stream, pieces_of(size)) == expected
    live, kept = strip(arrivals(stream, pieces_of(size)))
    assert live == expected
    assert kept


@pytest.mark.parametrize(
    ("name", "zero", "normal", "resent"),
    [
        ("a whole block", PAGES, 0, 0),
        ("one page inside", PAGES - 1, 1, 0),
        ("a page at the end of a turn", PAGES - 1, 1, 0),
        ("back to the start", PAGES + 20_000, 0, 20_000),
        ("back inside", PAGES, 0, 1),
    ],
)
def test_counts(name: str, zero: int, normal: int, resent: int) -> None:
    counts = [section.counts for section in of(play(RUNS[name]), RamSection)]
    assert sum(each.zero for each in counts) == zero
    assert sum(each.normal for each in counts) == normal
    assert sum(each.resent for each in counts) == resent


@pytest.mark.parametrize(
    ("name", "code"),
    [("wrong fill", "zero-fill"), ("behind the block", "ram-offset"), ("another block", "ram-block")],
)
def test_what_does_not_fit_is_told_with_its_place(name: str, code: str) -> None:
    events = play(RUNS[name])
    (told,) = of(events, Undecodable)
    assert told.code == code
    first = len(HEAD) + 5 + len(streams.zero(0, b"pc.ram"))
    assert told.offset == first + 29_999 * 9
    assert verdict(events).outcome == "undecodable"
