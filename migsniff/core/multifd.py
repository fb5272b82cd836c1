"""A multifd channel: the hello, then packets with pages. Here packets are framed and counted.

Format: migration/multifd.c, QEMU 5.2 to 11.1.
"""

from typing import Final
from uuid import UUID

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import MultifdHello, MultifdPacket
from migsniff.core.registry import Registry
from migsniff.core.text import readable
from migsniff.core.wire import (
    MAX_MULTIFD_WAIT,
    MULTIFD_DEVICE_STATE,
    MULTIFD_HELLO,
    MULTIFD_MAGIC,
    MULTIFD_PACKET,
    MULTIFD_PACKET_BYTES,
    MULTIFD_VERSION,
    U32,
    MultifdFlag,
)

METHODS: Final[Registry[int, str]] = Registry("multifd method")
for _number, _name, _source in (
    (0x00, "none", "migration/multifd-nocomp.c"),
    (0x02, "zlib", "migration/multifd-zlib.c"),
    (0x04, "zstd", "migration/multifd-zstd.c"),
    (0x08, "qpl", "migration/multifd-qpl.c"),
    (0x10, "uadk", "migration/multifd-uadk.c"),
    (0x20, "qatzip", "migration/multifd-qatzip.c"),
):
    METHODS(_number, source=_source)(_name)


class MultifdReader:
    """Parses one multifd channel."""

    def __init__(self, channel: str, queue: ByteQueue, context: Context) -> None:
        self.channel = channel
        self.queue = queue
        self.context = context
        self.where = "the hello"

    def run(self) -> Steps:
        """Hello and packets."""
        queue = self.queue
        hello = yield from queue.take(MULTIFD_HELLO.size)
        magic, version, uuid, channel_id = MULTIFD_HELLO.unpack(hello)
        self._check(magic, version)
        yield MultifdHello(
            channel=self.channel,
            direction="fwd",
            offset=0,
            size=len(hello),
            uuid=str(UUID(bytes=uuid)),
            channel_id=channel_id,
        )
        while True:
            self.where = "between packets"
            queue.mark = queue.at
            yield from queue.wait(12)
            self.where = "a packet"
            magic, version, flags = (U32.unpack_from(queue.data, queue.pos + at)[0] for at in (0, 4, 8))
            self._check(magic, version)
            if flags & MultifdFlag.DEVICE_STATE:
                yield from self._device_state(flags)
            else:
                yield from self._pages()

    def _check(self, magic: int, version: int) -> None:
        if magic != MULTIFD_MAGIC:
            raise StreamProblem("multifd-magic", found=magic)
        if version != MULTIFD_VERSION:
            raise StreamProblem("multifd-version", found=version)

    def _pages(self) -> Steps:
        queue = self.queue
        start = queue.at
        while not self.context.page_size:  # the main channel will tell it
            if queue.size > MAX_MULTIFD_WAIT:
                raise StreamProblem("page-size", machine=self.context.machine)
            queue.undecided = True
            yield None
        queue.undecided = False
        most = MULTIFD_PACKET_BYTES // self.context.page_size
        packet = yield from queue.take(MULTIFD_PACKET.size + 8 * most)
        _, _, flags, _, normal, size, packet_num, zero, block = MULTIFD_PACKET.unpack_from(packet)
        method = METHODS.get(flags & MultifdFlag.METHOD_MASK)
        if method is None:
            raise StreamProblem("multifd-method", found=flags & MultifdFlag.METHOD_MASK)
        if normal + zero > most:
            raise StreamProblem("multifd-pages", pages=normal + zero, limit=most)
        data_size = size if normal else 0  # without normal pages 7.2 sends the size of the packet before
        # a compressed page can be larger than the page, but never by much
        if data_size > 2 * normal * self.context.page_size:
            raise StreamProblem("multifd-size", size=data_size, pages=normal)
        yield from queue.contents(data_size)
        yield MultifdPacket(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            packet_num=packet_num,
            flags=flags,
            method=method,
            block=readable(block.split(b"\0", 1)[0]),
            normal=normal,
            zero=zero,
            data_size=data_size,
        )

    def _device_state(self, flags: int) -> Steps:
        """A packet with a part of one device's state."""
        queue = self.queue
        start = queue.at
        packet = yield from queue.take(MULTIFD_DEVICE_STATE.size)
        _, _, _, idstr, instance_id, size = MULTIFD_DEVICE_STATE.unpack(packet)
        yield from queue.contents(size)
        yield MultifdPacket(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            packet_num=instance_id,
            flags=flags,
            method="device-state",
            block=readable(idstr.split(b"\0", 1)[0]),
            normal=0,
            zero=0,
            data_size=size,
        )
