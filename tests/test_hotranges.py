"""The ranges of pages that a pass sent again: against a plain loop, and through real passes."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from migsniff.core.events import DirtySync
from migsniff.core.hotranges import GAP, HOT_RANGES, SCANNED, hot_ranges
from migsniff.core.wire import PAGE_STATE_SEGMENT, ItemType
from tests.catalogue import STREAMS
from tests.playing import bytewise, of, play, precopy
from tests.streams import EOF, HEADER, block_list, configuration, ram, zero

MARK = 5
PAGE = 4096


def found(pages: set[int], length: int) -> list[tuple[int, int, int]]:
    """(first, last, pages) of what is found of these pages of one block."""
    segments: dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
    touched: dict[tuple[int, int], int] = {}
    for page in pages:
        number, at = divmod(page, PAGE_STATE_SEGMENT)
        if number not in segments:
            size = min(PAGE_STATE_SEGMENT, length - number * PAGE_STATE_SEGMENT)
            segments[number] = np.full(size, MARK - 1, np.uint8)
        segments[number][at] = MARK
        touched[0, number] = touched.get((0, number), 0) + 1
    ranges = hot_ranges(touched, {0: ("ram", segments)}, MARK, MARK, PAGE)
    assert {each.block for each in ranges} <= {"ram"}
    return [(each.first // PAGE, each.last // PAGE, each.pages) for each in ranges]


def plain(pages: set[int]) -> list[tuple[int, int, int]]:
    """The same, page by page, all of them."""
    ranges: list[list[int]] = []
    for page in sorted(pages):
        if ranges and page - ranges[-1][1] <= GAP:
            ranges[-1][1:] = [page, ranges[-1][2] + 1]
        else:
            ranges.append([page, page, 1])
    return sorted([(first, last, count) for first, last, count in ranges], key=lambda each: -each[2])


@given(
    st.lists(st.tuples(st.integers(0, 3 * PAGE_STATE_SEGMENT - 200), st.integers(1, 150), st.integers(1, 3))),
)
@example([(0, 1, 1), (GAP + 1, 1, 1)])
def test_ranges_are_those_of_a_plain_loop(spans: list[tuple[int, int, int]]) -> None:
    pages = {page for first, count, step in spans for page in range(first, first + count, step)}
    expected = plain(pages)
    ranges = found(pages, 3 * PAGE_STATE_SEGMENT)
    assert [count for _, _, count in ranges] == [count for _, _, count in expected[:HOT_RANGES]]
    assert set(ranges) <= set(expected)


def test_whole_segments_are_one_range() -> None:
    size = 20 * PAGE_STATE_SEGMENT + 7
    assert found(set(range(size)), size) == [(0, size - 1, size)]


def test_of_many_scattered_segments_the_fullest_are_looked_into() -> None:
    """However large the guest is, no more than SCANNED segments are read."""
    pages = {number * PAGE_STATE_SEGMENT + at for number in range(3 * SCANNED) for at in range(number + 1)}
    ranges = found(pages, 3 * SCANNED * PAGE_STATE_SEGMENT)
    assert [count for _, _, count in ranges] == [3 * SCANNED - each for each in range(HOT_RANGES)]


def test_nothing_was_sent() -> None:
    assert found(set(), 100) == []


def test_passes_tell_them() -> None:
    blocks = {b"pc.ram": 256 * PAGE}
    first = [zero(0, b"pc.ram"), *(zero(page * PAGE) for page in range(1, 256))]
    again = [zero(page * PAGE) for page in (*range(10, 30), *range(100, 120, 2), 250)]
    stream = precopy(
        HEADER,
        configuration(),
        ram(ItemType.SECTION_START, block_list(blocks)),
        ram(ItemType.SECTION_PART, *first, *again),
        ram(ItemType.SECTION_END, zero(0)),
        EOF,
    )
    syncs = of(play(stream), DirtySync)
    assert syncs == of(play(stream, bytewise), DirtySync)
    assert syncs[0].hot == ()
    assert [(each.first // PAGE, each.last // PAGE, each.pages) for each in syncs[1].hot] == [
        (10, 29, 20),
        (100, 118, 10),
        (250, 250, 1),
    ]


def test_rounds_of_multifd_tell_them() -> None:
    syncs = of(play(STREAMS["multifd"]), DirtySync)
    assert syncs[0].hot == ()
    for sync in syncs[1:]:
        assert sum(each.pages for each in sync.hot) >= min(1, sync.counts.pages)
