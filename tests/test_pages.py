"""Which pages were sent already, and what tells that a pass over guest memory ended."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core import pages
from migsniff.core.events import RamBlock
from migsniff.core.pages import GuestMemory
from migsniff.core.tallies import GuestBlock
from migsniff.core.wire import MAX_PAGE_STATE_SLACK, PAGE_STATE_SEGMENT

PAGE = 4096


def memory_of(*lengths: int) -> tuple[GuestMemory, list[GuestBlock]]:
    memory = GuestMemory()
    memory.announce([(b"%d" % i, RamBlock(str(i), length * PAGE)) for i, length in enumerate(lengths)])
    memory.set_page_size(PAGE)
    return memory, list(memory.blocks.values())


def mark(memory: GuestMemory, block: GuestBlock, *numbers: int) -> int:
    return memory.mark(block, np.array(numbers, np.uint64), numbers[0], numbers[-1])


class TestMarks:
    def test_runs_and_single_pages(self) -> None:
        memory, (block,) = memory_of(1000)
        assert mark(memory, block, *range(10, 20)) == 0
        assert mark(memory, block, 5, 15, 900) == 1
        assert mark(memory, block, *range(16)) == 7
        assert memory.mark_one(block, 15) == 1
        assert memory.mark_one(block, 999) == 0
        assert memory.records == 31
        sent = [page for page in (4, 5, 16, 19, 20, 899, 900, 901, 999) if memory.mark_one(block, page)]
        assert sent == [4, 5, 16, 19, 900, 999]

    def test_on_a_machine_of_32_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(np, "intp", np.int32)
        memory, (block,) = memory_of(1000)
        assert mark(memory, block, 5, 15, 900) == 0
        assert [page for page in range(1000) if memory.mark_one(block, page)] == [5, 15, 900]

    def test_after_hundreds_of_passes(self) -> None:
        """A page that was sent hundreds of passes ago was sent, but not in this pass."""
        memory, (block,) = memory_of(1000)
        memory.ordered = False
        mark(memory, block, *range(100, 700))
        memory.mark_one(block, 50)
        for iteration in range(1, 600):
            assert memory.mark_one(block, 100 + iteration), "it was sent in the first pass"
            assert memory.pass_ends_before(block, 50) == (iteration == 1)
            assert memory.pass_ends_before(block, 7) == (iteration > 1)
            memory.end_pass("main", 0, final=False)
            memory.may_end = True
            mark(memory, block, 7, 9)
        assert memory.iteration == 600
        assert [page for page in range(100) if memory.mark_one(block, page)] == [7, 9, 50]

    @given(st.lists(st.integers(0, 6 * PAGE_STATE_SEGMENT - 1), min_size=1, max_size=40, unique=True))
    def test_over_many_segments(self, numbers: list[int]) -> None:
        memory, (block,) = memory_of(6 * PAGE_STATE_SEGMENT)
        numbers.sort()
        pages = np.array(numbers, np.uint64)
        assert memory.repeats_at(block, pages) == len(numbers)
        assert mark(memory, block, *numbers) == 0
        assert memory.repeats_at(block, pages) == 0
        assert mark(memory, block, *numbers) == len(numbers)
        memory.end_pass("main", 0, final=False)
        memory.may_end = True
        memory.mark_one(block, numbers[len(numbers) // 2])
        assert memory.repeats_at(block, pages) == len(numbers) // 2
        assert {page for page in range(0, 6 * PAGE_STATE_SEGMENT, 997) if memory.mark_one(block, page)} == {
            page for page in numbers if page % 997 == 0
        }

    def test_each_page_in_a_segment_of_its_own(self) -> None:
        """A thousand records that are far apart, beyond where a float tells one page from the next."""
        first = (1 << 54) // PAGE_STATE_SEGMENT
        memory, (block,) = memory_of(1 << 56)
        numbers = [(first + i) * PAGE_STATE_SEGMENT + 1 for i in range(1000)]
        assert mark(memory, block, *numbers) == 0
        assert mark(memory, block, *numbers) == 1000
        assert [memory.mark_one(block, numbers[500] + i) for i in (-1, 0, 1)] == [0, 1, 0]


class TestMemory:
    def test_scattered_pages_buy_little(self) -> None:
        memory, (block,) = memory_of(1 << 40)
        tracemalloc.start()
        for number in range(0, 20_000_000_000, 10 * PAGE_STATE_SEGMENT):
            memory.mark_one(block, number)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert memory.state_bytes <= MAX_PAGE_STATE_SLACK + memory.records
        assert peak < 2 * MAX_PAGE_STATE_SLACK

    def test_an_announced_length_costs_nothing(self) -> None:
        tracemalloc.start()
        memory, _ = memory_of(*[1 << 50] * 1000)
        memory.mark_one(next(iter(memory.blocks.values())), 0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20

    def test_what_is_counted_does_not_depend_on_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the limit is reached in the middle of a batch."""
        monkeypatch.setattr(pages, "MAX_PAGE_STATE_SLACK", 10 * PAGE_STATE_SEGMENT)
        numbers = [segment * PAGE_STATE_SEGMENT + i for segment in range(12) for i in range(3)]
        counts = []
        for batch in (1, 2, 5, 36):
            memory, (block,) = memory_of(20 * PAGE_STATE_SEGMENT)
            resent = 0
            for _ in range(2):
                for at in range(0, 36, batch):
                    part = numbers[at : at + batch]
                    resent += mark(memory, block, *part) if batch > 1 else memory.mark_one(block, part[0])
            counts.append(resent)
        assert counts == [30] * 4


class TestPasses:
    @pytest.mark.parametrize(
        ("sent", "ends"),
        [
            ([(0, 0), (0, 1), (0, 7), (1, 0)], []),
            ([(0, 5), (0, 5)], [1]),
            ([(0, 5), (0, 4)], [1]),
            ([(1, 0), (0, 9)], [1]),
            ([(0, 0), (1, 3), (0, 1), (1, 0), (1, 0)], [2, 4]),
        ],
    )
    def test_in_order(self, sent: list[tuple[int, int]], ends: list[int]) -> None:
        memory, blocks = memory_of(10, 10)
        assert self.ends(memory, blocks, sent) == ends

    @pytest.mark.parametrize(
        ("sent", "ends"),
        [
            ([(0, 3), (0, 1), (0, 2), (1, 4), (0, 0)], []),
            ([(0, 3), (0, 1), (0, 3), (0, 1), (0, 2), (0, 1)], [2, 5]),
        ],
    )
    def test_by_repetition(self, sent: list[tuple[int, int]], ends: list[int]) -> None:
        memory, blocks = memory_of(10, 10)
        memory.ordered = False
        assert self.ends(memory, blocks, sent) == ends

    def test_one_in_a_section(self) -> None:
        memory, blocks = memory_of(10)
        sent = [(0, 5), (0, 5), (0, 5), (0, 2)]
        assert self.ends(memory, blocks, sent, a_section_each=False) == [1]
        memory.may_end = True
        assert self.ends(memory, blocks, sent, a_section_each=False) == [1]

    def ends(
        self,
        memory: GuestMemory,
        blocks: list[GuestBlock],
        sent: list[tuple[int, int]],
        *,
        a_section_each: bool = True,
    ) -> list[int]:
        found = []
        for number, (index, page) in enumerate(sent):
            if memory.pass_ends_before(blocks[index], page):
                memory.end_pass("main", 0, final=False)
                memory.may_end = a_section_each
                found.append(number)
            memory.mark_one(blocks[index], page)
            memory.position = (index, page)
        return found

    def test_none_in_postcopy(self) -> None:
        memory, (block,) = memory_of(10)
        memory.begin_postcopy()
        memory.mark_one(block, 3)
        memory.position = (0, 3)
        assert not memory.pass_ends_before(block, 0)
