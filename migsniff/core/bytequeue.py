"""The bytes of one direction that have arrived and are not yet read, and the wire offset they stand at.

A reader asks for a few bytes at a time and never sees how they were cut. The bytes themselves are borrowed
from whoever feeds them: they stay where they are until the feed ends, and only the unread rest is copied.
"""

from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

import numpy as np

from migsniff.core.arrivals import Chunk, Data
from migsniff.core.errors import StreamProblem
from migsniff.core.events import BREATH, Event
from migsniff.core.wire import U8, U16, U32, U64

if TYPE_CHECKING:
    from numpy.typing import NDArray

Steps = Generator[Event | None, None, None]
"""A parser: yields events, and None when it needs more bytes."""
BREATHS: Final = 256  # records of which nothing is told, about a millisecond, between one BREATH and the next


class ByteQueue:
    """Unread bytes. `at` is the wire offset of the next one, `wire_end` that behind the last known one.

    In a stripped capture guest memory is missing: `skip_contents` then moves `at` without reading. `closed`
    says that no more will come, `mark` is where the record being read begins, `looked` how far the reader has
    looked ahead, `undecided` the offset from which on the bytes may turn out to be guest memory. If `omitted`
    is a list, the spans of guest memory are noted in it. `breathe`: whether `record` yields BREATH.
    """

    __slots__ = (
        "at",
        "breathe",
        "closed",
        "data",
        "end",
        "kept",
        "looked",
        "mark",
        "omitted",
        "pos",
        "records",
        "rest",
        "size",
        "undecided",
        "wire_end",
    )

    def __init__(self, *, note_omitted: bool = False, breathe: bool = False) -> None:
        self.breathe = breathe
        self.records = 0
        self.data: Data = b""  # the contiguous piece that is read from: data[pos:end] is unread
        self.pos = 0
        self.end = 0
        self.rest: deque[Data] = deque()  # pieces behind it
        self.size = 0  # unread bytes in all pieces
        self.at = 0
        self.wire_end = 0
        self.kept = "all"
        self.closed = False
        self.mark = 0
        self.looked = 0
        self.undecided: int | None = None
        self.omitted: list[NDArray[np.uint64] | tuple[int, int]] | None = [] if note_omitted else None

    # ------------------------------------------------------------ filling

    def push(self, chunk: Chunk) -> None:
        """Take a chunk's bytes; they are borrowed until `detach`."""
        self.kept = chunk.kept
        self.wire_end = chunk.end
        if chunk.data:
            self.rest.append(chunk.data)
            self.size += len(chunk.data)
            if self.pos == self.end:
                self._next_piece()

    def detach(self) -> None:
        """Copy what is unread: the lender wants its buffers back."""
        if self.size:
            pieces = [memoryview(self.data)[self.pos : self.end], *self.rest]
            self.data = b"".join(pieces)
        else:
            self.data = b""
        self.pos, self.end = 0, self.size
        self.rest.clear()

    def _next_piece(self) -> bool:
        if not self.rest:
            return False
        self.data = self.rest.popleft()
        self.pos, self.end = 0, len(self.data)
        return True

    # ------------------------------------------------------------ reading

    def ensure(self, count: int) -> bool:
        """Make the next `count` bytes stand contiguously at data[pos]; False if they have not all arrived."""
        looked = self.at + count
        if looked > self.looked:
            self.looked = looked
        if self.end - self.pos >= count:
            return True
        if self.size < count:
            return False
        if self.pos == self.end:
            self._next_piece()
            return self.ensure(count)
        head = bytearray(memoryview(self.data)[self.pos : self.end])
        while len(head) < count:
            piece = memoryview(self.rest.popleft())
            missing = count - len(head)
            head += piece[:missing]
            if len(piece) > missing:
                self.rest.appendleft(piece[missing:])
        self.data, self.pos, self.end = bytes(head), 0, len(head)
        return True

    def advance(self, count: int) -> None:
        """Step over `count` bytes that `ensure` has made contiguous."""
        self.pos += count
        self.at += count
        self.size -= count
        if self.pos == self.end:
            self._next_piece()

    def wait(self, count: int) -> Steps:
        """Yield until `count` bytes stand contiguously."""
        while not self.ensure(count):
            self.check_hole()
            yield None

    def record(self) -> Steps:
        """A record begins here: it is marked, and now and then others may have their turn."""
        self.mark = self.at
        self.records += 1
        if self.breathe and self.records % BREATHS == 0:
            yield BREATH

    def check_hole(self) -> None:
        """Raise StreamProblem if bytes that are needed were left out of the capture."""
        if self.kept != "all" and self.at + self.size < self.wire_end:
            raise self.hole()

    def hole(self) -> StreamProblem:
        """The problem that bytes are missing behind those that have not been read."""
        start = self.at + self.size
        return StreamProblem("hole", length=self.wire_end - start, at=start)

    def u8(self) -> Generator[Event | None, None, int]:
        """One byte."""
        if self.end == self.pos:
            yield from self.wait(1)
        value: int = U8.unpack_from(self.data, self.pos)[0]
        self.advance(1)
        return value

    def u16(self) -> Generator[Event | None, None, int]:
        """A 16-bit number."""
        yield from self.wait(2)
        value: int = U16.unpack_from(self.data, self.pos)[0]
        self.advance(2)
        return value

    def u32(self) -> Generator[Event | None, None, int]:
        """A 32-bit number."""
        yield from self.wait(4)
        value: int = U32.unpack_from(self.data, self.pos)[0]
        self.advance(4)
        return value

    def u64(self) -> Generator[Event | None, None, int]:
        """A 64-bit number."""
        yield from self.wait(8)
        value: int = U64.unpack_from(self.data, self.pos)[0]
        self.advance(8)
        return value

    def take(self, count: int) -> Generator[Event | None, None, bytes]:
        """The next `count` bytes, a small number that the caller has checked."""
        yield from self.wait(count)
        value = bytes(memoryview(self.data)[self.pos : self.pos + count])
        self.advance(count)
        return value

    def fitting(
        self, ahead: int, count: int, fits: Callable[[bytes], int]
    ) -> Generator[Event | None, None, bytes]:
        """The `count` bytes behind the next `ahead`, or those up to one that does not fit; none is read.

        `fits` tells how many of the first ones fit. What stands behind them may be guest memory, where it is
        their length that is wrong: it is neither waited for nor looked at.
        """
        while True:
            found = self.peek(ahead + count)[ahead:]
            good = fits(found)
            found = found[: good + 1]
            self.looked = max(self.looked, self.at + min(ahead, self.size) + len(found))
            if good < len(found) or len(found) == count:
                return found
            self.check_hole()
            yield None

    def take_some(self, most: int) -> bytes:
        """What has arrived of the next `most` bytes, as far as it stands contiguously; maybe nothing."""
        count = min(most, self.end - self.pos)
        value = bytes(memoryview(self.data)[self.pos : self.pos + count])
        self.advance(count)
        return value

    def take_contents(self, most: int) -> bytes:
        """As take_some, of bytes that a stripped capture must not keep."""
        start = self.at
        value = self.take_some(most)
        if self.omitted is not None and value:
            self.omitted.append((start, self.at))
        return value

    def unread(self, tail: bytes, looked: int) -> None:
        """Put back the bytes that were read last, of which `looked` bytes told something."""
        if len(tail) <= self.pos:
            self.pos -= len(tail)
        else:
            if self.pos < self.end:
                self.rest.appendleft(memoryview(self.data)[self.pos : self.end])
            self.data, self.pos, self.end = tail, 0, len(tail)
        self.size += len(tail)
        self.at -= len(tail)
        self.looked = max(self.looked, self.at + min(looked, len(tail)))

    def peek(self, count: int) -> bytes:
        """Up to `count` of the next bytes, as many as have arrived, without reading them."""
        count = min(count, self.size)
        looked = self.looked
        self.ensure(count)
        self.looked = looked
        return bytes(memoryview(self.data)[self.pos : self.pos + count])

    # ------------------------------------------------------------ stepping over what is not looked at

    def skip_contents(self, count: int) -> int:
        """Step over up to `count` bytes of guest memory; returns how many are still to come."""
        start = self.at
        if self.kept != "all":
            step = max(0, min(count, self.wire_end - self.size - self.at))
            self.at += step
            count -= step
        else:
            while count and self.size:
                step = min(count, self.end - self.pos)
                self.advance(step)
                count -= step
        if self.omitted is not None and self.at > start:
            self.omitted.append((start, self.at))
        return count

    def contents(self, count: int) -> Steps:
        """Yield until `count` bytes of guest memory have passed."""
        while count := self.skip_contents(count):
            yield None

    def discard(self) -> None:
        """Step over everything, for what is only counted; what was looked at is not noted as omitted."""
        start = max(self.at, min(self.looked, self.at + self.size))
        if self.omitted is not None and self.wire_end > start:
            self.omitted.append((start, self.wire_end))
        self.looked = 0
        self.data, self.pos, self.end, self.size = b"", 0, 0, 0
        self.rest.clear()
        self.at = self.wire_end
