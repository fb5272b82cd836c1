"""The payload of section ram, and of the preempt channel: page records. The decode hot loop.

`RamReader._scan` is one flat loop over the records' words, because nearly every byte of a migration passes
here: it keeps to what must be done for each record, and leaves counting to `_commit`, which works on
hundreds of words at once. Whatever is not one of the three common records, or not complete, is left to the
generator `_record`, which reads like the format's description.

Format: migration/ram.c, QEMU 5.2 to 11.1.
"""

from array import array
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from migsniff.core.blocklist import read_block_list
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import DirtySync, Event, RamPages
from migsniff.core.pages import PAGE_ENCODINGS, GuestBlock, PageEncoding, Tallies, Tally, fold, summary
from migsniff.core.pagesize import find_page_size
from migsniff.core.text import readable
from migsniff.core.wire import U64, XBZRLE_HEADER, XBZRLE_MARKER, RamFlag

# Plain numbers: an operation on an enumeration's members costs as much as decoding a record.
ZERO, PAGE, XBZRLE = int(RamFlag.ZERO), int(RamFlag.PAGE), int(RamFlag.XBZRLE)
EOS, MULTIFD_FLUSH = int(RamFlag.EOS), int(RamFlag.MULTIFD_FLUSH)
CONTINUE, HOOK = int(RamFlag.CONTINUE), int(RamFlag.HOOK)
KINDS = ZERO | PAGE | XBZRLE | int(RamFlag.COMPRESS_PAGE)
WORD = 8
FEW = 8  # records up to which counting them one by one is faster


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
        self.block: GuestBlock | None = None
        self.tallies: Tallies = {}  # of this section since the last pass began
        self.section_tallies: Tallies = {}
        self.flushes = 0
        self.where = ""
        self._events: list[Event] = []

    # ------------------------------------------------------------ a section

    def payload(self, *, start: bool) -> Steps:
        """Read records up to the EOS that ends a section. `start`: the block list may come."""
        self.flushes = 0
        self.section_tallies = {}
        while True:
            if self.block is not None:
                self._scan()
                if self._events:
                    yield from self._flush_events()
            if not (yield from self._record(start=start)):
                break
        self._end_stretch()

    def end_pass(self, at: int, *, final: bool) -> DirtySync:
        """The pass that is running ends at wire offset `at`: its event, and the next one begins."""
        self._end_stretch()
        memory = self.memory
        counts, blocks = summary(memory.pass_tallies)
        event = DirtySync(
            channel=self.channel,
            direction="fwd",
            offset=at,
            size=0,
            iteration=memory.iteration,
            counts=counts,
            blocks=blocks,
            final=final,
        )
        memory.pass_tallies = {}
        memory.iteration += 1
        memory.position = (-1, -1)
        return event

    def forget_block(self) -> None:
        """The sender names the block again: postcopy begins or was resumed."""
        self.block = None

    def _end_stretch(self) -> None:
        if self.tallies:
            fold(self.tallies, self.section_tallies)
            fold(self.tallies, self.memory.pass_tallies)
            self.tallies = {}

    def _flush_events(self) -> Steps:
        events, self._events = self._events, []
        yield from events

    # ------------------------------------------------------------ the hot loop

    def _scan(self) -> None:
        """Walk the common records that stand complete in the current piece of bytes."""
        queue = self.queue
        page_size = self.memory.page_size
        data, begin, end = queue.data, queue.pos, queue.end
        whole = queue.kept == "all"
        page_step = WORD + page_size if whole else WORD
        mask = page_size - 1
        page, zero, xbzrle = PAGE | CONTINUE, ZERO | CONTINUE, XBZRLE | CONTINUE
        unpack, unpack_xbzrle = U64.unpack_from, XBZRLE_HEADER.unpack_from
        words = array("Q")
        lengths = array("Q")
        append = words.append
        pos, last = begin, end - WORD
        before = begin  # where the last record of the loop begins
        while pos <= last:
            (word,) = unpack(data, pos)
            flags = word & mask
            if flags == page:
                append(word)
                before = pos
                pos += page_step
            elif flags == zero:
                if pos == last or data[pos + 8]:
                    break
                append(word)
                pos += 9
            elif flags == xbzrle:
                if pos + 11 > end:
                    break
                marker, length = unpack_xbzrle(data, pos + 8)
                if marker != XBZRLE_MARKER or length > page_size:
                    break
                append(word)
                lengths.append(length)
                before = pos
                pos += 11 + length if whole else 11
            else:
                break
        if not words:
            return
        if whole:
            if pos > end:  # the contents of the last record have not all come
                if words.pop() & XBZRLE:
                    lengths.pop()
                pos = before
        elif not self._contents_complete(words, lengths):
            if words.pop() & XBZRLE:
                lengths.pop()
            pos = before
        if len(words) > FEW or (self.context.want_contents and words):
            self._commit(words, lengths, pos)
        elif words:
            self._commit_few(words, lengths)

    def _contents_complete(self, words: "array[int]", lengths: "array[int]") -> bool:
        """In a stripped capture: whether all contents of these records had come when they were saved."""
        queue = self.queue
        normal = int(np.count_nonzero(np.frombuffer(words, np.uint64) & np.uint64(PAGE)))
        contents = normal * self.memory.page_size + sum(lengths)
        left_out = queue.wire_end - queue.at - queue.size
        if contents > left_out and not words[-1] & (PAGE | XBZRLE):
            raise StreamProblem(
                "hole", length=contents - left_out
            )  # only contents at the very end can be missing
        return contents <= left_out

    # ------------------------------------------------------------ counting a batch

    def _commit(self, words: "array[int]", lengths: "array[int]", pos: int) -> None:
        """Count a batch of complete records of the current block; they end at `pos` in the current piece."""
        block, memory, queue = self.block, self.memory, self.queue
        assert block is not None
        batch = np.frombuffer(words, np.uint64)
        pages = batch >> np.uint64(memory.page_size.bit_length() - 1)
        if int(pages.max()) >= block.page_count:
            keep = int(np.argmax(pages >= np.uint64(block.page_count)))
            headers, bodies = self._layout(batch[:keep], lengths)
            pos = queue.pos + int(headers.sum()) + (int(bodies.sum()) if queue.kept == "all" else 0)
            batch, pages = batch[:keep], pages[:keep]
            lengths = lengths[: int(np.count_nonzero(batch & np.uint64(XBZRLE)))]
            if not keep:
                return  # `_record` finds it first in line, and refuses it with its place
        normal = int(np.count_nonzero(batch & np.uint64(PAGE)))
        start = queue.at
        if queue.kept == "all":
            size = pos - queue.pos
        else:
            variable = len(lengths)
            zero = len(batch) - normal - variable
            size = (WORD + memory.page_size) * normal + 9 * zero + 11 * variable + sum(lengths)
        one_pass = memory.ordered and (len(pages) == 1 or bool((pages[1:] > pages[:-1]).all()))
        if one_pass and not memory.pass_ends_before(block, int(pages[0])):
            self._count(block, pages, normal, len(lengths), size)
        else:
            self._count_passes(block, batch, pages, lengths, start)
        if queue.omitted is not None and queue.kept == "all":
            self._omit(batch, lengths, start)
        if self.context.want_contents:
            self._events.append(self._pages_event(block, batch, lengths, start, pos))
        queue.advance(pos - queue.pos)
        queue.at = start + size

    def _commit_few(self, words: "array[int]", lengths: "array[int]") -> None:
        """What `_commit` does, for so few records that arrays would cost more than they save."""
        block, queue, page_size = self.block, self.queue, self.memory.page_size
        assert block is not None
        whole = queue.kept == "all"
        deltas = iter(lengths)
        at, stepped = queue.at, 0
        for word in words:
            if word // page_size >= block.page_count:
                break  # `_record` finds it first in line, and refuses it with its place
            kind, header, body = "zero", WORD + 1, 0
            if word & PAGE:
                kind, header, body = "normal", WORD, page_size
            elif word & XBZRLE:
                kind, header, body = "xbzrle", WORD + 3, next(deltas)
            if ended := self._count_one(block, word // page_size, kind, header + body, at):
                self._events.append(ended)
            if body and whole and queue.omitted is not None:
                queue.omitted.append((at + header, at + header + body))
            at += header + body
            stepped += header + body if whole else header
        queue.advance(stepped)
        queue.at = at

    def _count_one(self, block: GuestBlock, page: int, kind: str, size: int, at: int) -> DirtySync | None:
        """Count one record of `size` bytes at wire offset `at`; returns the pass that ended before it."""
        memory = self.memory
        ended = self.end_pass(at, final=False) if memory.pass_ends_before(block, page) else None
        tally = self.tallies.get(block)
        if tally is None:
            tally = self.tallies[block] = Tally()
        setattr(tally, kind, getattr(tally, kind) + 1)
        tally.bytes += size
        tally.resent += memory.mark_one(block, page)
        tally.span(page * memory.page_size, page * memory.page_size)
        memory.position = (block.index, page)
        return ended

    def _count(
        self, block: GuestBlock, pages: NDArray[np.uint64], normal: int, xbzrle: int, size: int
    ) -> None:
        """Count ascending pages of one pass."""
        memory = self.memory
        first, last = int(pages[0]), int(pages[-1])
        tally = self.tallies.get(block)
        if tally is None:
            tally = self.tallies[block] = Tally()
        tally.normal += normal
        tally.xbzrle += xbzrle
        tally.zero += len(pages) - normal - xbzrle
        tally.bytes += size
        tally.resent += memory.mark(block, pages, first, last)
        tally.span(first * memory.page_size, last * memory.page_size)
        memory.position = (block.index, last)

    def _count_passes(
        self,
        block: GuestBlock,
        batch: NDArray[np.uint64],
        pages: NDArray[np.uint64],
        lengths: "array[int]",
        start: int,
    ) -> None:
        """Count a batch in which addresses go back: run by run, ending a pass where one ends."""
        memory = self.memory
        headers, bodies = self._layout(batch, lengths)
        ends = np.cumsum(headers + bodies)
        cuts = [0, *(np.flatnonzero(pages[1:] <= pages[:-1]) + 1).tolist(), len(pages)]
        while len(cuts) > 1:
            low, high = cuts[0], cuts[1]
            at = int(ends[low - 1]) if low else 0
            if memory.pass_ends_before(block, int(pages[low])):
                self._events.append(self.end_pass(start + at, final=False))
            elif not memory.ordered:  # one page of the run may be the first that comes again
                high = low + memory.repeats_at(block, pages[low:high])
            run = batch[low:high]
            normal = int(np.count_nonzero(run & np.uint64(PAGE)))
            xbzrle = int(np.count_nonzero(run & np.uint64(XBZRLE)))
            self._count(block, pages[low:high], normal, xbzrle, int(ends[high - 1]) - at)
            cuts = cuts[1:] if high == cuts[1] else [high, *cuts[1:]]

    def _layout(
        self, batch: NDArray[np.uint64], lengths: "array[int]"
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Bytes of header and of contents of each record of a batch."""
        normal = (batch & np.uint64(PAGE)) != 0
        headers = np.full(len(batch), WORD, np.uint64)
        headers[(batch & np.uint64(ZERO)) != 0] = WORD + 1
        bodies = normal * np.uint64(self.memory.page_size)
        if lengths:
            delta = (batch & np.uint64(XBZRLE)) != 0
            headers[delta] = WORD + 3
            bodies[delta] = np.frombuffer(lengths, np.uint64)[: int(np.count_nonzero(delta))]
        return headers, bodies

    def _omit(self, batch: NDArray[np.uint64], lengths: "array[int]", start: int) -> None:
        """Note where the contents of a batch stand on the wire."""
        assert self.queue.omitted is not None
        if lengths:
            headers, bodies = self._layout(batch, lengths)
            stops = np.cumsum(headers + bodies) + np.uint64(start)
            spans = np.stack((stops - bodies, stops), axis=1)[bodies != 0]
        else:
            # behind record i, the k-th page, stand i + 1 words, k + 1 pages and i - k fill bytes of zero pages
            page_size = self.memory.page_size
            which = np.flatnonzero(batch & np.uint64(PAGE))
            spans = np.empty((len(which), 2), np.uint64)
            ends = spans[:, 1]
            ends[:] = which * (WORD + 1) + np.arange(len(which)) * (page_size - 1)
            ends += np.uint64(start + WORD + page_size)
            spans[:, 0] = ends - np.uint64(page_size)
        self.queue.omitted.append(spans)

    def _pages_event(
        self, block: GuestBlock, batch: NDArray[np.uint64], lengths: "array[int]", start: int, pos: int
    ) -> RamPages:
        """The batch as an event that lends the records' bytes."""
        queue = self.queue
        headers, bodies = self._layout(batch, lengths)
        ends = np.cumsum(headers + bodies)
        return RamPages(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=pos - queue.pos,
            block=block.name,
            page_size=self.memory.page_size,
            iteration=self.memory.iteration,
            words=batch,
            bodies=ends - bodies,
            lengths=bodies,
            data=memoryview(queue.data)[queue.pos : pos],
        )

    # ------------------------------------------------------------ one record, as the format has it

    def _record(self, *, start: bool) -> Generator[Event | None, None, bool]:
        """Read one record of any kind; False if it was the EOS."""
        queue = self.queue
        queue.mark = queue.at
        if not queue.ensure(WORD):
            yield from queue.wait(WORD)
        (word,) = U64.unpack_from(queue.data, queue.pos)
        if word == EOS:
            queue.advance(WORD)
            return False
        if word == MULTIFD_FLUSH:
            queue.advance(WORD)
            self.flushes += 1
            return True
        if start and not self.memory.blocks:
            self.where = "the RAM block list"
            yield from read_block_list(self.channel, queue, self.context)
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
            yield from queue.wait(WORD + 1)
            header += 1 + queue.data[queue.pos + WORD]
            yield from queue.wait(header)
            self.block = self._block_named(bytes(queue.data[queue.pos + WORD + 1 : queue.pos + header]))
        block = self.block
        if block is None:
            raise StreamProblem("ram-no-block")
        address = word - flags
        if address >= block.page_count * memory.page_size:
            raise StreamProblem("ram-offset", address=address, name=block.name, length=block.length)
        yield from queue.wait(header + encoding.header)
        length = encoding.body(queue.data, queue.pos + header, memory.page_size)
        header += encoding.header
        if self.context.want_contents and queue.kept == "all":
            yield from queue.wait(header + length)
        yield from self._count_record(block, word, encoding, header, length, start)

    def _count_record(
        self, block: GuestBlock, word: int, encoding: PageEncoding, header: int, length: int, start: int
    ) -> Steps:
        """Step over a record whose header is complete, and count it once its contents have come."""
        queue, memory = self.queue, self.memory
        page = word // memory.page_size
        self.where = f"page {page * memory.page_size:#x} of {block.name}"
        if self.context.want_contents and queue.kept == "all":
            yield RamPages(
                channel=self.channel,
                direction="fwd",
                offset=start,
                size=header + length,
                block=block.name,
                page_size=memory.page_size,
                iteration=memory.iteration,
                words=np.array([word], np.uint64),
                bodies=np.array([header], np.uint64),
                lengths=np.array([length], np.uint64),
                data=memoryview(queue.data)[queue.pos : queue.pos + header + length],
            )
            queue.advance(header + length)
        else:
            queue.advance(header)
            yield from queue.contents(length)
        if encoding.kind == "compressed":
            memory.ordered = False
        if ended := self._count_one(block, page, encoding.kind, header + length, start):
            yield ended
        self.where = ""

    def _block_named(self, name: bytes) -> GuestBlock:
        block = self.memory.blocks.get(name)
        if block is None:
            raise StreamProblem("ram-block", name=readable(name))
        return block
