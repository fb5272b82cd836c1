"""Which pages a pass over guest memory has sent again: the largest ranges, found once, when it ends."""

from collections.abc import Mapping
from heapq import nlargest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from migsniff.core.events import HotRange
from migsniff.core.wire import PAGE_STATE_SEGMENT

HOT_RANGES: Final = 4
GAP: Final = 32  # pages that were not sent between two that were, which do not end a range
SCANNED: Final = 16  # segments that are looked into: a million pages, in half a millisecond
Touched = dict[tuple[int, int], int]
"""(index of a block, number of a segment) -> how many pages were sent."""
Segments = Mapping[int, NDArray[np.uint8]]


def hot_ranges(
    touched: Touched, blocks: Mapping[int, tuple[str, Segments]], lowest: int, highest: int, page_size: int
) -> tuple[HotRange, ...]:
    """The ranges with most of the pages that have a mark from `lowest` to `highest`, the largest first.

    `blocks`: name and marks of each block, by its index. Segments of which every page was sent need no look;
    of the others those with most pages get one.
    """
    sizes = {key: len(blocks[key[0]][1][key[1]]) for key in touched}
    partly = [key for key, pages in touched.items() if pages < sizes[key]]
    looked_into = set(nlargest(SCANNED, partly, key=lambda key: touched[key]))
    found: list[tuple[int, int, int, int]] = []  # block, first page, behind the last, pages
    for key in sorted(key for key in touched if key in looked_into or touched[key] >= sizes[key]):
        index, number = key
        base = number * PAGE_STATE_SEGMENT
        if key in looked_into:
            marks = blocks[index][1][number]
            spans = _spans((marks >= lowest) & (marks <= highest))
        else:
            spans = [(0, sizes[key], sizes[key])]
        for first, stop, pages in spans:
            if found and found[-1][0] == index and base + first - found[-1][2] < GAP:
                _, begin, _, before = found[-1]
                found[-1] = index, begin, base + stop, before + pages
            else:
                found.append((index, base + first, base + stop, pages))
    return tuple(
        HotRange(blocks[index][0], first * page_size, (stop - 1) * page_size, pages)
        for index, first, stop, pages in nlargest(HOT_RANGES, found, key=lambda each: each[3])
    )


def _spans(sent: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Runs of pages with gaps of GAP at most: first, behind the last, and how many; the largest ones."""
    pages = np.flatnonzero(sent)
    if not len(pages):
        return []
    cuts = np.flatnonzero(np.diff(pages) > GAP)
    begins = np.concatenate(([0], cuts + 1))
    ends = np.concatenate((cuts, [len(pages) - 1]))
    counts = ends - begins + 1
    # those at the edges may go on in the next segment
    chosen = np.union1d(np.argsort(counts)[-HOT_RANGES:], [0, len(counts) - 1])
    return [(int(pages[begins[i]]), int(pages[ends[i]]) + 1, int(counts[i])) for i in chosen]
