"""A multifd channel: the hello, then packets with pages.

Format: migration/multifd.c, QEMU 5.2 to 11.1.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    Event,
    Finding,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    RamPages,
    Undecodable,
    problem_finding,
)
from migsniff.core.multifdmethods import METHODS, NONE, Inflater, Method
from migsniff.core.tallies import GuestBlock, Tallies, summary, tally_of
from migsniff.core.text import readable
from migsniff.core.wire import (
    MAX_MULTIFD_CHANNELS,
    MAX_MULTIFD_DEVICE_STATE,
    MULTIFD_DEVICE_STATE,
    MULTIFD_HEAD,
    MULTIFD_HELLO,
    MULTIFD_MAGIC,
    MULTIFD_PACKET,
    MULTIFD_PACKET_BYTES,
    MULTIFD_VERSION,
    MultifdFlag,
    RamFlag,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Plain numbers: an operation on an enumeration's members costs as much as reading a packet's header.
SYNC, DEVICE_STATE = int(MultifdFlag.SYNC), int(MultifdFlag.DEVICE_STATE)
METHOD_MASK = int(MultifdFlag.METHOD_MASK)


class MultifdReader:
    """Parses one multifd channel; its pages are counted in the migration's GuestMemory."""

    def __init__(self, channel: str, queue: ByteQueue, context: Context) -> None:
        self.channel = channel
        self.queue = queue
        self.context = context
        self.where = "the hello"
        self.head = b""  # of the packet that is being read, without its addresses
        self._inflaters: dict[int, Inflater | None] = {}
        self._since = 0  # where the packets since the last SYNC begin
        self._packets = 0
        self._tallies: Tallies = {}
        self._device_state = 0

    def run(self) -> Steps:
        """Hello and packets."""
        queue = self.queue
        yield from self._hello()
        while True:
            self.where = "between packets"
            queue.mark = queue.at
            if not queue.ensure(MULTIFD_HEAD.size):
                yield from queue.wait(MULTIFD_HEAD.size)
            self.where = "a packet"
            self.head = bytes(queue.data[queue.pos : queue.pos + MULTIFD_HEAD.size])
            magic, version, flags = MULTIFD_HEAD.unpack(self.head)
            if magic != MULTIFD_MAGIC or version != MULTIFD_VERSION:
                self._check(magic, version)
            if flags & DEVICE_STATE:
                yield from self._device_state_packet(flags)
            else:
                yield from self._packet()
            if flags & SYNC:
                yield from self._sync()

    def rest(self) -> MultifdSync | None:
        """Behind the end of the channel: what it has carried since its last SYNC."""
        return self._stretch(last=True) if self._packets else None

    def _check(self, magic: int, version: int) -> None:
        if magic != MULTIFD_MAGIC:
            raise StreamProblem("multifd-magic", found=magic)
        if version != MULTIFD_VERSION:
            raise StreamProblem("multifd-version", found=version)

    # ------------------------------------------------------------ hello

    def _hello(self) -> Steps:
        hello = yield from self.queue.take(MULTIFD_HELLO.size)
        magic, version, uuid_bytes, number = MULTIFD_HELLO.unpack(hello)
        self._check(magic, version)
        facts = self.context.multifd
        uuid, known = str(UUID(bytes=uuid_bytes)), self.context.uuid or facts.uuid
        yield MultifdHello(
            channel=self.channel, direction="fwd", offset=0, size=len(hello), uuid=uuid, channel_id=number
        )
        if known is not None and uuid != known:
            yield self._finding("multifd-uuid", found=uuid, uuid=known)
        if number in facts.ids:
            yield self._finding("multifd-channel", number=number, earlier=facts.ids[number])
        if len(facts.syncs) == MAX_MULTIFD_CHANNELS:
            raise StreamProblem(
                "count", what="multifd channels", count=MAX_MULTIFD_CHANNELS + 1, limit=MAX_MULTIFD_CHANNELS
            )
        facts.uuid = known or uuid
        facts.ids.setdefault(number, self.channel)
        facts.syncs[self.channel] = 0
        self.context.memory.use_rounds(self.channel)
        self._since = self.queue.at

    def _finding(self, code: str, **details: object) -> Finding:
        return problem_finding(
            StreamProblem(code, **details),
            channel=self.channel,
            direction="fwd",
            offset=self.queue.mark,
            size=self.queue.at - self.queue.mark,
        )

    # ------------------------------------------------------------ a packet with pages

    def _packet(self) -> Steps:
        queue, context = self.queue, self.context
        start = queue.at
        while not context.page_size:
            yield from self._main_channel("the page size")
        while not context.memory.blocks:  # also of a packet without pages: what is read is what is kept
            yield from self._main_channel("the list of RAM blocks")
        most = MULTIFD_PACKET_BYTES // context.page_size
        header = MULTIFD_PACKET.size + 8 * most
        if not queue.ensure(header):
            yield from queue.wait(header)
        _, _, flags, _, normal, size, packet_num, zero, name = MULTIFD_PACKET.unpack_from(
            queue.data, queue.pos
        )
        self.where = f"packet {packet_num}"
        number = flags & METHOD_MASK
        method = METHODS.get(number)
        if method is None:
            raise StreamProblem("multifd-method", found=number)
        if normal + zero > most:
            raise StreamProblem("multifd-pages", pages=normal + zero, limit=most)
        data_size = size if normal else 0  # without normal pages 7.2 sends the size of the packet before
        whole = normal * context.page_size
        # a compressed page can be larger than the page, but never by much
        if data_size > 2 * whole or (number == NONE and data_size != whole):
            raise StreamProblem("multifd-size", size=data_size, pages=normal)
        queue.undecided = None
        context.multifd.go_on(self.channel)
        name = name.split(b"\0", 1)[0]
        addresses = self._addresses(name, normal + zero)
        queue.advance(header)
        lends = normal + zero and context.want_contents and queue.kept == "all"
        if lends:
            yield from queue.wait(data_size)
        elif left := queue.skip_contents(data_size):
            yield from queue.contents(left)
        # a packet counts when it is complete: what comes before that is in no order with other channels
        resent, block = 0, None
        if normal + zero:
            block = context.memory.blocks[name]
            rounds = context.memory.rounds
            if rounds is not None:
                rounds.packet(packet_num)
            resent = self._count(block, addresses, normal, zero, header + data_size)
            if resent and rounds is not None and rounds.may_end:
                yield from context.memory.completed(self.channel, start)
        if lends and block is not None:
            yield from self._lend(block, addresses, normal, data_size, number, method)
        self._packets += 1
        yield MultifdPacket(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            packet_num=packet_num,
            flags=flags,
            method=method.name,
            block=readable(name) if block is None else block.name,
            normal=normal,
            zero=zero,
            data_size=data_size,
            resent=resent,
            round=context.multifd.syncs[self.channel],
        )

    def _main_channel(self, what: str) -> Steps:
        """Wait for what the main channel will tell; but for the beginning of a packet, here may be memory."""
        queue = self.queue
        self.context.multifd.wait(self.channel, queue.wire_end - queue.at, what)
        queue.undecided = max(queue.at, min(queue.looked, queue.at + queue.size))
        yield None

    def _addresses(self, name: bytes, count: int) -> "NDArray[np.uint64]":
        """The addresses of a packet's pages, all of which are in the block of this name."""
        queue, memory = self.queue, self.context.memory
        addresses = np.frombuffer(queue.data, ">u8", count, queue.pos + MULTIFD_PACKET.size).astype(np.uint64)
        if not count:
            return addresses
        block = memory.blocks.get(name)
        if block is None:
            raise StreamProblem("multifd-block", name=readable(name))
        inside = np.uint64(memory.page_size - 1)
        limit = block.page_count * memory.page_size
        # all at once first, which is cheaper than to look for the one that is wrong
        if np.count_nonzero(addresses & inside) or int(addresses.max(0)) >= limit:
            wrong = ((addresses & inside) != 0) | (addresses >= limit)
            raise StreamProblem(
                "multifd-offset",
                address=int(addresses[np.argmax(wrong)]),
                name=block.name,
                length=block.length,
                page_size=memory.page_size,
            )
        return addresses

    # ------------------------------------------------------------ counting

    def _count(
        self, block: GuestBlock, addresses: "NDArray[np.uint64]", normal: int, zero: int, size: int
    ) -> int:
        """Count the pages of a packet of `size` bytes; returns how many of them had been sent before."""
        memory = self.context.memory
        page_size, number = memory.page_size, self.context.multifd.syncs[self.channel]
        pages = addresses >> np.uint64(page_size.bit_length() - 1)
        if not _ascending(pages):  # zero pages stand behind the normal ones
            pages = np.sort(pages)
            if not _ascending(pages):
                pages = np.unique(pages)
        first, last = int(pages[0]), int(pages[-1])
        resent = memory.mark(block, pages, first, last, number) + len(addresses) - len(pages)
        for tallies in (self._tallies, memory.tallies(number)):
            tally = tally_of(tallies, block)
            tally.normal += normal
            tally.zero += zero
            tally.bytes += size
            tally.resent += resent
            tally.span(first * page_size, last * page_size)
        return resent

    def _sync(self) -> Steps:
        """All that came before belongs to a round that ends here."""
        facts, memory = self.context.multifd, self.context.memory
        facts.syncs[self.channel] += 1
        yield self._stretch(last=False)
        if memory.rounds is not None:
            memory.rounds.reached[self.channel] = facts.syncs[self.channel]
        yield from memory.completed(self.channel, self.queue.at)
        if facts.end is not None and memory.caught_up:
            yield from memory.last_pass(*facts.end)
            facts.end = None

    def _stretch(self, *, last: bool) -> MultifdSync:
        """What was carried since the last SYNC."""
        counts, blocks = summary(self._tallies)
        end = self.queue.mark if last else self.queue.at
        event = MultifdSync(
            channel=self.channel,
            direction="fwd",
            offset=self._since,
            size=end - self._since,
            packets=self._packets,
            counts=counts,
            blocks=blocks,
            device_state=self._device_state,
            syncs=self.context.multifd.syncs[self.channel],
            last=last,
        )
        self._since, self._packets, self._tallies, self._device_state = end, 0, {}, 0
        return event

    # ------------------------------------------------------------ contents

    def _lend(
        self,
        block: GuestBlock,
        addresses: "NDArray[np.uint64]",
        normal: int,
        size: int,
        number: int,
        method: Method,
    ) -> Steps:
        """Hand out the pages of a packet with their contents, and step over its data."""
        queue, context = self.queue, self.context
        page_size = context.memory.page_size
        yield from queue.wait(size)
        contents: memoryview | None = None
        if normal:
            data = memoryview(queue.data)[queue.pos : queue.pos + size]
            contents = yield from self._inflated(data, normal, number, method)
        count = len(addresses)
        if count:
            first = np.arange(count) < normal
            there = first & (contents is not None)
            bodies = np.minimum(np.arange(count), normal) * page_size
            yield RamPages(
                channel=self.channel,
                direction="fwd",
                offset=queue.at,
                size=size,
                block=block.name,
                page_size=page_size,
                iteration=context.memory.iteration,
                round=context.multifd.syncs[self.channel],
                words=addresses | there * np.uint64(RamFlag.PAGE) | ~first * np.uint64(RamFlag.ZERO),
                bodies=bodies.astype(np.uint64),
                lengths=there * np.uint64(page_size),
                data=memoryview(b"") if contents is None else contents,
            )
        queue.advance(size)

    def _inflated(
        self, data: memoryview, count: int, number: int, method: Method
    ) -> Generator[Event | None, None, memoryview | None]:
        """The normal pages of a packet; None if they cannot be had, which the first time is told."""
        if number not in self._inflaters:
            self._inflaters[number] = method.open()
        inflater = self._inflaters[number]
        if inflater is None:
            return None
        try:
            pages = inflater.pages(data, count, self.context.memory.page_size)
            self.context.multifd.keep_history(self.channel, inflater.history)
            return memoryview(pages)
        except StreamProblem as problem:
            self._inflaters[number] = None  # framing goes on: a packet tells its size by itself
            yield Undecodable(
                channel=self.channel,
                direction="fwd",
                offset=self.queue.at,
                size=len(data),
                code=problem.code,
                message=problem.text,
                where=self.where,
            )
            return None

    # ------------------------------------------------------------ a packet with device state

    def _device_state_packet(self, flags: int) -> Steps:
        """A packet with a part of one device's state."""
        queue = self.queue
        start = queue.at
        packet = yield from queue.take(MULTIFD_DEVICE_STATE.size)
        _, _, _, idstr, instance_id, size = MULTIFD_DEVICE_STATE.unpack(packet)
        device = readable(idstr.split(b"\0", 1)[0])
        self.where = f"a packet with state of {device}/{instance_id}"
        if not 0 < size <= MAX_MULTIFD_DEVICE_STATE:
            raise StreamProblem(
                "multifd-device-state", size=size, name=device, limit=MAX_MULTIFD_DEVICE_STATE
            )
        yield from queue.contents(size)
        self._packets += 1
        self._device_state += size
        yield MultifdPacket(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            packet_num=instance_id,
            flags=flags,
            method="device-state",
            block=device,
            normal=0,
            zero=0,
            data_size=size,
        )


def _ascending(pages: "NDArray[np.uint64]") -> bool:
    """Whether each page stands behind the one before it."""
    return int(np.count_nonzero(pages[1:] > pages[:-1])) == len(pages) - 1
