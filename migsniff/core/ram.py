"""The payload of section ram, and of the preempt channel: page records. The decode hot loop.

`RamReader._scan` is one flat loop over the records' words, because nearly every byte of a migration passes
here: it keeps to what must be done for each record, and leaves counting to PageCounter, which takes a
thousand words at once. Whatever is not one of the three common records, or not complete, is left to the
generator `_record`, which reads like the format's description.

Format: migration/ram.c, QEMU 5.2 to 11.1.
"""

from array import array
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from migsniff.core.blocklist import read_block_list
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    BREATH,
    BlockPages,
    Event,
    LoosePages,
    PageCounts,
    PageFault,
    RamPages,
)
from migsniff.core.pagecount import PageCounter, layout
from migsniff.core.pageencodings import PAGE_ENCODINGS
from migsniff.core.pagesize import find_page_size
from migsniff.core.tallies import GuestBlock
from migsniff.core.text import readable
from migsniff.core.wire import U64, XBZRLE_MARKER, RamFlag

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Plain numbers: an operation on an enumeration's members costs as much as decoding a record.
ZERO, PAGE, XBZRLE = int(RamFlag.ZERO), int(RamFlag.PAGE), int(RamFlag.XBZRLE)
EOS, MULTIFD_FLUSH = int(RamFlag.EOS), int(RamFlag.MULTIFD_FLUSH)
CONTINUE, HOOK = int(RamFlag.CONTINUE), int(RamFlag.HOOK)
KINDS = ZERO | PAGE | XBZRLE | int(RamFlag.COMPRESS_PAGE)
WORD = 8
Summary = tuple[PageCounts, tuple[BlockPages, ...]]
ENOUGH = 4096  # records after which others may have their turn: about a millisecond
ENOUGH_ZEROS = 4 * ENOUGH  # of zero pages in a run, which take less time
MANY = 64  # records from which arrays are worth their overhead


class RamReader:
    """Reads page records of one channel; `where` tells what it is at.

    The block that CONTINUE refers to is the channel's own and outlives sections; all counts go into the
    migration's GuestMemory.
    """

    def __init__(self, channel: str, queue: ByteQueue, context: Context) -> None:
        self.channel = channel
        self.queue = queue
        self.context = context
        self.memory = context.memory
        self.counter = PageCounter(channel, context.memory)
        self.block: GuestBlock | None = None
        self.flushes = 0
        self.where = ""
        self.head = b""  # the header of the record whose contents are being stepped over
        self._lent: list[RamPages | PageFault] = []
        self._began: int | None = None  # where the records of the section that is being read begin
        self._ended = 0  # where the last whole record of it ends
        self._no_run_before = 0  # what looked like a long run of zero pages there was none

    # ------------------------------------------------------------ a section

    def payload(
        self, *, start: bool, framed: bool = True
    ) -> Generator[Event | None, None, tuple[PageCounts, tuple[BlockPages, ...]]]:
        """Read records up to the EOS that ends a section; returns what it carried, in all and by block.

        `start`: the block list may come. `framed`: a RamSection will tell what is returned.
        """
        self.flushes = 0
        self._began = self._ended = self.queue.at
        self.counter.begin_section()
        while True:
            more = False
            if self.block is not None:
                more = (self._zeros_follow() and self._scan_zeros(self.block)) or self._scan()
                if self._lent:
                    yield from self._lent
                    self._lent.clear()
                while self.counter.count_batch():
                    if self.counter.passed:
                        yield from self._passed()
                    if self.context.breathe:
                        yield BREATH
            if more:
                if self.context.breathe:
                    yield BREATH
            elif not (yield from self._record(start=start)):
                break
        self._ended = self.queue.at
        counts = self.counter.end_section()
        yield from self._passed()
        if not framed:
            yield from self.leftover()
        return counts

    def told(self) -> None:
        """The RamSection was made of what `payload` returned."""
        self._began = None

    def leftover(self) -> Iterator[Event]:
        """Nothing more will be read: what was counted of a section that was not told."""
        if self._began is None:
            return
        start, self._began = self._began, None
        counts, blocks = self.counter.end_section()
        passed, self.counter.passed = self.counter.passed, []
        yield from passed
        if counts.pages:
            yield LoosePages(
                channel=self.channel,
                direction="fwd",
                offset=start,
                size=self._ended - start,
                iteration=self.memory.iteration,
                counts=counts,
                blocks=blocks,
            )

    def at(self, where: str) -> None:
        """This is what is read now."""
        self.where = where

    def forget_block(self) -> None:
        """The sender names the block again: postcopy begins or was resumed."""
        self.block = None

    def _passed(self) -> Steps:
        """Tell the passes that have ended."""
        passed, self.counter.passed = self.counter.passed, []
        yield from passed

    # ------------------------------------------------------------ the hot loop

    def _scan(self) -> bool:
        """Walk the common records that stand complete in the current piece, and collect their words.

        To step over a record takes no more than the last byte of its word, which holds the flags, and the
        length of an XBZRLE record; the words are read and checked behind the walk, all at once.
        True if it stopped because that is enough for now.
        """
        queue, counter, block = self.queue, self.counter, self.block
        assert block is not None
        data, begin, end = queue.data, queue.pos, queue.end
        whole = queue.kept == "all"
        page_step = WORD + self.memory.page_size if whole else WORD
        page, zero, xbzrle = PAGE | CONTINUE, ZERO | CONTINUE, XBZRLE | CONTINUE
        flags_at, lengths = array("Q"), array("Q")
        found = flags_at.append
        pos, last = begin + WORD - 1, end - 1
        enough = False
        for _ in range(ENOUGH):
            if pos > last:
                break
            flags = data[pos]
            if flags == page:
                found(pos)
                pos += page_step
            elif flags == zero:
                if pos == last or data[pos + 1]:
                    break
                found(pos)
                pos += WORD + 1
            elif flags == xbzrle:
                if pos + 3 > last:
                    break
                length = data[pos + 2] << 8 | data[pos + 3]
                found(pos)
                lengths.append(length)
                pos += WORD + 3 + length if whole else WORD + 3
            else:
                break
        else:
            enough = True
        if not flags_at:
            return False
        words = self._words(block, flags_at, lengths)
        if len(words) < len(flags_at):
            pos, enough = flags_at[len(words)], False
        stop = pos - (WORD - 1)
        size = stop - begin if whole else self._wire_size(words, lengths)
        if words and (stop > end or (not whole and not self._contents_came(size, words[-1]))):
            # the contents of the last record have not all come: `_record` waits for them
            size -= WORD + (3 + lengths.pop() if words[-1] & XBZRLE else self.memory.page_size)
            words.pop()
            stop = flags_at[len(words)] - (WORD - 1)
        if not words:
            return False
        if not counter.words:
            counter.block, counter.start = block, queue.at
        counter.words += words
        counter.lengths += lengths
        if queue.omitted is not None:
            self._omit(words, lengths, flags_at)
        if self.context.want_contents:
            self._lend(block, words, lengths, size)
        if self.context.requests.waiting:
            self._answer(block, np.frombuffer(words, np.uint64), lengths)
        if self.context.want_contents:
            counter.flush()
        at = queue.at + size
        queue.advance(stop - begin)
        queue.at = self._ended = at
        return enough

    def _words(self, block: GuestBlock, flags_at: "array[int]", lengths: "array[int]") -> "array[int]":
        """The words whose last bytes stand at `flags_at`, up to the first record that is not as it must be.

        `lengths` is cut to those of the XBZRLE records among them.
        """
        data, page_size = self.queue.data, self.memory.page_size
        limit = block.page_count * page_size
        starts = np.frombuffer(flags_at, np.uint64) - np.uint64(WORD - 1)
        # every position as a word: one indexed copy reads them all
        anywhere = np.ndarray((self.queue.end - WORD + 1,), ">u8", data, strides=(1,))
        found = anywhere[starts].astype(np.uint64)
        fits = (found < np.uint64(limit)) & (found & np.uint64((page_size - 1) & ~0xFF) == 0)
        if lengths:
            delta = (found & np.uint64(XBZRLE)) != 0
            markers = np.frombuffer(data, np.uint8)[starts[delta] + np.uint64(WORD)]
            sizes = np.array(lengths)
            fits[delta] &= (markers == XBZRLE_MARKER) & (sizes <= page_size)
        if not fits.all():
            found = found[: int(np.argmin(fits))]
            del lengths[int(np.count_nonzero(found & np.uint64(XBZRLE))) :]
        return array("Q", found.tobytes())

    def _zeros_follow(self) -> bool:
        """Whether it looks like ENOUGH zero pages in a row, by a few of them."""
        queue, flags = self.queue, ZERO | CONTINUE
        data, begin = queue.data, queue.pos + WORD - 1
        if queue.end - queue.pos < ENOUGH * (WORD + 1) or self.context.want_contents:
            return False
        return queue.at >= self._no_run_before and all(
            data[begin + ahead * (WORD + 1)] == flags for ahead in (0, 1, ENOUGH // 2, ENOUGH - 1)
        )

    def _scan_zeros(self, block: GuestBlock) -> bool:
        """Collect a long run of zero pages, which stand at a fixed stride, at once; False if there is none.

        A guest that is mostly empty sends them by the million, in a few bytes each.
        """
        queue, counter, page_size = self.queue, self.counter, self.memory.page_size
        stride = WORD + 1
        count = min((queue.end - queue.pos) // stride, ENOUGH_ZEROS)
        found = np.ndarray((count,), ">u8", queue.data, queue.pos, (stride,)).astype(np.uint64)
        fills = np.ndarray((count,), np.uint8, queue.data, queue.pos + WORD, (stride,))
        fits = (found & np.uint64(page_size - 1)) == np.uint64(ZERO | CONTINUE)
        fits &= (fills == 0) & (found < np.uint64(block.page_count * page_size))
        length = count if fits.all() else int(np.argmin(fits))
        if length < ENOUGH // 4:  # a guest that makes its pages look like this is not to make it slow
            self._no_run_before = queue.at + count * stride
        if not length:
            return False
        if not counter.words:
            counter.block, counter.start = block, queue.at
        counter.words.frombytes(found[:length].tobytes())
        if self.context.requests.waiting:
            self._answer(block, found[:length], array("Q"))
        queue.advance(length * stride)
        self._ended = queue.at
        return True

    def _wire_size(self, words: "array[int]", lengths: "array[int]") -> int:
        """Bytes that records took on the wire, contents included."""
        normal = int(np.count_nonzero(np.frombuffer(words, np.uint64) & np.uint64(PAGE)))
        contents = self.memory.page_size * normal + sum(lengths)
        # behind each word stands a fill byte, or nothing, or the three bytes that announce a delta
        return contents + WORD * len(words) + (len(words) - normal - len(lengths)) + 3 * len(lengths)

    def _contents_came(self, size: int, last: int) -> bool:
        """In a stripped capture: whether records of so many bytes had come whole when they were saved."""
        missing = self.queue.at + size - self.queue.wire_end
        if missing > 0 and not last & (PAGE | XBZRLE):
            # only contents at the very end can be missing
            raise StreamProblem("hole", length=missing, at=self.queue.wire_end)
        return missing <= 0

    def _omit(self, words: "array[int]", lengths: "array[int]", flags_at: "array[int]") -> None:
        """Note where on the wire the contents of these records stand."""
        queue, page_size = self.queue, self.memory.page_size
        assert queue.omitted is not None
        if len(words) < MANY and not lengths and queue.kept == "all":
            behind = queue.at - queue.pos + 1
            for word, at in zip(words, flags_at, strict=False):
                if word & PAGE:
                    queue.omitted.append((behind + at, behind + at + page_size))
            return
        batch = np.frombuffer(words, np.uint64)
        if not lengths and queue.kept == "all":
            flags = np.frombuffer(flags_at, np.uint64)[: len(words)][(batch & np.uint64(PAGE)) != 0]
            spans = np.empty((len(flags), 2), np.uint64)
            spans[:, 0] = flags + np.uint64(queue.at - queue.pos + 1)
            spans[:, 1] = spans[:, 0] + np.uint64(page_size)
            queue.omitted.append(spans)
            return
        headers, bodies = layout(batch, lengths, page_size)
        stops = np.cumsum(headers + bodies) + np.uint64(queue.at)
        queue.omitted.append(np.stack((stops - bodies, stops), axis=1)[bodies != 0])

    def _answer(self, block: GuestBlock, batch: "NDArray[np.uint64]", lengths: "array[int]") -> None:
        """Tell which of the records that begin here answer a request."""
        page_size = self.memory.page_size
        answered = self.context.requests.answered(block, batch // np.uint64(page_size))
        if not answered:
            return
        headers, bodies = layout(batch, lengths, page_size)
        sizes = headers + bodies
        ends = np.cumsum(sizes) + np.uint64(self.queue.at)
        for index, request in answered:
            size = int(sizes[index])
            offset = int(ends[index]) - size
            self._lent.append(request.fault(self.channel, "fwd", offset, size, crossed=False))

    def _lend(self, block: GuestBlock, words: "array[int]", lengths: "array[int]", size: int) -> None:
        """Hand out the records collected last with their bytes."""
        batch = np.array(words, np.uint64)
        headers, bodies = layout(batch, lengths, self.memory.page_size)
        self._lent.append(self._pages(block, batch, np.cumsum(headers + bodies) - bodies, bodies, size))

    def _pages(
        self,
        block: GuestBlock,
        words: "NDArray[np.uint64]",
        bodies: "NDArray[np.uint64]",
        lengths: "NDArray[np.uint64]",
        size: int,
    ) -> RamPages:
        """The event that hands out the records in the next `size` bytes."""
        queue = self.queue
        return RamPages(
            channel=self.channel,
            direction="fwd",
            offset=queue.at,
            size=size,
            block=block.name,
            page_size=self.memory.page_size,
            iteration=self.memory.iteration,
            words=words,
            bodies=bodies,
            lengths=lengths,
            data=memoryview(queue.data)[queue.pos : queue.pos + size],
            round=self.memory.round,
        )

    # ------------------------------------------------------------ one record, as the format has it

    def _record(self, *, start: bool) -> Generator[Event | None, None, bool]:
        """Read one record of any kind; False if it was the EOS."""
        queue = self.queue
        yield from queue.record()
        if not queue.ensure(WORD):
            yield from queue.wait(WORD)
        (word,) = U64.unpack_from(queue.data, queue.pos)
        if word == EOS:
            queue.advance(WORD)
            return False
        if word == MULTIFD_FLUSH:
            queue.advance(WORD)
            self.flushes += 1
            yield from self.memory.next_round(self.channel, queue.at, flush=True)
            return True
        if start and not self.memory.blocks:
            self.at("the RAM block list")
            self.counter.add((yield from read_block_list(self.channel, queue, self.context, self.at)))
            self.where = ""
            return True
        if not self.memory.blocks:
            raise StreamProblem("ram-no-list")
        if self.context.page_size is None:
            yield from find_page_size(queue, self.context)
        yield from self._page_record(word)
        return True

    def _page_record(self, word: int) -> Steps:
        queue, memory = self.queue, self.memory
        start = queue.at
        flags = word & (memory.page_size - 1)
        kind = flags & KINDS
        encoding = PAGE_ENCODINGS.get(kind)
        if flags & HOOK:
            raise StreamProblem("ram-hook")
        if encoding is None or flags & ~(KINDS | CONTINUE):
            raise StreamProblem("ram-flags", flags=flags)
        header = WORD
        if not flags & CONTINUE:
            header += yield from self._block_name()
        block = self.block
        if block is None:
            raise StreamProblem("ram-no-block")
        address = word - flags
        if address >= block.page_count * memory.page_size:
            raise StreamProblem("ram-offset", address=address, name=block.name, length=block.length)
        yield from queue.wait(header + encoding.header)
        length = encoding.body(queue.data, queue.pos + header, memory.page_size)
        name_size = header - WORD
        header += encoding.header
        if self.context.want_contents and queue.kept == "all":
            yield from queue.wait(header + length)
        self.where = f"page {address:#x} of {block.name}"
        self.head = bytes(queue.data[queue.pos : queue.pos + header])
        if self.context.want_contents and queue.kept == "all":
            one = np.array([[word], [header], [length]], np.uint64)
            yield self._pages(block, one[0], one[1], one[2], header + length)
            queue.advance(header + length)
        else:
            queue.advance(header)
            yield from queue.contents(length)
        if encoding.kind == "compressed":
            self.counter.flush()
            memory.ordered = False
            self.counter.one(block, address // memory.page_size, encoding.kind, header + length, start)
        else:
            self.counter.collect(block, word, length if encoding.kind == "xbzrle" else None, name_size, start)
        self._ended = queue.at
        yield from self._passed()
        self.where = ""
        if self.context.requests.waiting:
            page = np.array([address // memory.page_size], np.uint64)
            for _, request in self.context.requests.answered(block, page):
                yield request.fault(self.channel, "fwd", start, queue.at - start, crossed=False)

    def _block_name(self) -> Generator[Event | None, None, int]:
        """The name behind the word of a record: whose block comes next; how many bytes it takes."""
        queue = self.queue
        yield from queue.wait(WORD + 1)
        count = queue.data[queue.pos + WORD]
        name = yield from queue.fitting(WORD + 1, count, self._fits(count))
        self.counter.flush()
        yield from self._passed()
        block = self.memory.blocks.get(name)
        if block is None or len(name) != count:
            raise StreamProblem("ram-block", name=readable(name), count=count)
        self.block = block
        return 1 + count

    def _fits(self, count: int) -> Callable[[bytes], int]:
        """Of the first bytes of a name of `count`, how many are those of a block's name."""
        memory = self.memory
        return lambda begun: len(begun) if begun in memory.blocks else memory.names.fitting(begun, count)
