"""The byte queue: whatever is asked of it does not see how the bytes were cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.arrivals import Chunk
from migsniff.core.bytequeue import ByteQueue
from migsniff.core.errors import StreamProblem

DATA = bytes(range(100))


def queue_of(*pieces: bytes, note_omitted: bool = False) -> ByteQueue:
    queue = ByteQueue(note_omitted=note_omitted)
    fill(queue, *pieces)
    return queue


def fill(queue: ByteQueue, *pieces: bytes) -> None:
    for piece in pieces:
        queue.push(Chunk(0, 0, "fwd", piece, queue.wire_end + len(piece)))


@pytest.mark.parametrize(
    "pieces", [(DATA,), (DATA[:1], DATA[1:3], DATA[3:]), (b"", DATA[:50], b"", DATA[50:])]
)
def test_numbers(pieces: tuple[bytes, ...]) -> None:
    def read() -> list[int]:
        queue = queue_of(*pieces)
        values = []
        for number in (queue.u8, queue.u16, queue.u32, queue.u64):
            steps = number()
            with pytest.raises(StopIteration) as done:
                next(steps)
            values.append(done.value.value)
        assert (queue.at, queue.size) == (15, 85)
        return values

    assert read() == [0, 0x0102, 0x03040506, 0x0708090A0B0C0D0E]


def test_a_reader_waits_for_its_bytes() -> None:
    queue = queue_of(b"\1")
    steps = queue.u32()
    assert next(steps) is None
    fill(queue, b"\2\3")
    assert next(steps) is None
    queue.detach()
    fill(queue, b"\4\5")
    with pytest.raises(StopIteration) as done:
        next(steps)
    assert done.value.value == 0x01020304
    assert (queue.at, queue.size, queue.peek(9)) == (4, 1, b"\5")


def test_what_is_lent_is_copied_before_it_is_wanted_back() -> None:
    lent = bytearray(b"abcdef")
    queue = ByteQueue()
    queue.push(Chunk(0, 0, "fwd", memoryview(lent), 6))
    queue.ensure(2)
    queue.advance(2)
    queue.detach()
    lent[:] = b"??????"
    lent.clear()  # nothing holds on to the buffer
    assert queue.peek(10) == b"cdef"


@given(
    data=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "unread", "peek", "skip", "detach"]), st.integers(0, 20))
    ),
)
def test_as_one_buffer(data: bytes, cuts: list[int], steps: list[tuple[str, int]]) -> None:
    """Any sequence of operations, against the same on bytes that stand in one piece."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    queue = queue_of(*(data[low:high] for low, high in pairwise(edges)))
    at = last = 0  # `last`: where what was taken last began
    for step, count in steps:
        if step == "take":
            some = queue.take_some(count)
            assert some == data[at : at + len(some)]
            assert some or not count or at == len(data)
            last, at = at, at + len(some)
        elif step == "unread":
            back = data[max(last, at - count) : at]
            queue.unread(back, 3)
            at -= len(back)
        elif step == "peek":
            assert queue.peek(count) == data[at : at + count]
        elif step == "skip":
            left = queue.skip_contents(count)
            assert left == max(0, count - (len(data) - at))
            last = at = at + count - left
        else:
            queue.detach()
        assert (queue.at, queue.size) == (at, len(data) - at)


def test_omitted_spans() -> None:
    queue = queue_of(DATA[:10], DATA[10:20], note_omitted=True)
    queue.ensure(3)
    queue.advance(3)
    assert queue.skip_contents(12) == 0
    assert queue.skip_contents(0) == 0
    assert queue.skip_contents(9) == 4
    assert queue.omitted == [(3, 15), (15, 20)]


def test_what_was_looked_at_is_kept() -> None:
    queue = queue_of(DATA, note_omitted=True)
    queue.advance(10)
    assert queue.ensure(7)
    queue.peek(50)  # only a look ahead
    queue.discard()
    fill(queue, DATA)
    queue.discard()
    assert queue.omitted == [(17, 100), (100, 200)]
    assert (queue.at, queue.size) == (200, 0)


class TestStripped:
    """A capture without guest memory: 4 bytes, 96 left out, 3 bytes."""

    def queue(self) -> ByteQueue:
        queue = ByteQueue()
        queue.push(Chunk(0, 0, "fwd", b"headend", 103, "framed"))
        return queue

    def test_contents_are_stepped_over_without_reading(self) -> None:
        queue = self.queue()
        queue.advance(4)
        assert queue.skip_contents(96) == 0
        assert (queue.at, queue.size, queue.peek(9)) == (100, 3, b"end")

    def test_contents_that_came_in_part(self) -> None:
        queue = self.queue()
        queue.advance(4)
        assert queue.skip_contents(100) == 4
        queue.push(Chunk(0, 0, "fwd", b"!", 108, "framed"))
        assert queue.skip_contents(4) == 0
        assert (queue.at, queue.size) == (104, 4)

    def test_a_hole(self) -> None:
        queue = self.queue()
        queue.advance(7)
        with pytest.raises(StreamProblem, match="96 bytes at 0x7, which are needed here"):
            next(queue.u8())

    def test_more_stored_than_passed(self) -> None:
        """A capture that lies moves the reader nowhere back."""
        queue = ByteQueue()
        queue.push(Chunk(0, 0, "fwd", DATA, 50, "framed"))
        assert queue.skip_contents(10) == 10
        assert queue.at == 0
