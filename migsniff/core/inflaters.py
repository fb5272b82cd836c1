"""How compressed pages come out of the packets of a multifd channel, method by method.

An inflater belongs to one channel and is given its packets in their order: zlib and zstd go on from packet
to packet with one stream. It makes the pages that a packet says it has and not a byte more, whatever the
data would make. Sources: migration/multifd-zlib.c, -zstd.c, -qpl.c, -uadk.c, -qatzip.c, QEMU 5.2 to 11.1.
"""

import zlib
from typing import IO, Final, cast

from migsniff.core.arrivals import Data
from migsniff.core.contents import inflate
from migsniff.core.errors import StreamProblem
from migsniff.core.wire import U32

WHAT: Final = "the packet"
RAW_DEFLATE: Final = -zlib.MAX_WBITS
GZIP: Final = zlib.MAX_WBITS + 16
MAX_WINDOW: Final = 1 << 25  # bytes of history that a zstd stream may need: QEMU's highest level, 20


def exactly(pages: bytes, size: int) -> bytes:
    """The pages of a packet, if they have the size that it says; they may be a byte longer, to be told."""
    if len(pages) > size:
        raise StreamProblem("inflate-more", what=WHAT, expected=size)
    if len(pages) < size:
        raise StreamProblem("inflate-less", what=WHAT, found=len(pages), expected=size)
    return pages


class Zlib:
    """One zlib stream over all packets; each ends with a sync flush."""

    history = 1 << zlib.MAX_WBITS

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """The pages of a packet."""
        size, stream = count * page_size, self._stream
        try:
            pages = stream.decompress(data, size)
            if len(pages) == size:  # what is left is the flush, and makes nothing
                pages += stream.decompress(stream.unconsumed_tail, 1)
        except zlib.error as error:
            raise StreamProblem("inflate", what=WHAT, detail=error) from None
        if stream.unused_data:
            raise StreamProblem("inflate-rest", what=WHAT, left=len(stream.unused_data))
        return exactly(pages, size)


class Zstd:
    """One zstd frame over all packets; each ends with a flush."""

    def __init__(self) -> None:
        import zstandard  # which takes as long to load as the rest of the decoder

        self.history = 0
        self._error = zstandard.ZstdError
        self._parameters = zstandard.get_frame_parameters
        self._packet = _Packet()
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._stream = unpacker.stream_reader(cast("IO[bytes]", self._packet))

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """The pages of a packet."""
        size = count * page_size
        self._packet.data = data
        room = size + 1  # with room left nothing that the data make stays inside the stream
        parts = []
        try:
            if not self.history:
                self.history = max(1, self._parameters(data).window_size)
            while room and (part := self._stream.read1(room)):
                parts.append(part)
                room -= len(part)
        except _NoMoreData:
            pass
        except self._error as error:
            raise StreamProblem("inflate", what=WHAT, detail=error) from None
        finally:
            left, self._packet.data = len(self._packet.data), memoryview(b"")
        pages = exactly(b"".join(parts), size)
        if left:  # the frame has ended, which QEMU's never does
            raise StreamProblem("inflate-rest", what=WHAT, left=left)
        return pages


class _NoMoreData(Exception):
    """A packet has been read to its end. An end of file would end the stream for good."""


class _Packet:
    """What a zstd stream reads from: the packet's data, `data` still unread."""

    def __init__(self) -> None:
        self.data = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self.data:
            raise _NoMoreData
        piece, self.data = bytes(self.data[:size]), self.data[size:]
        return piece


class _PageByPage:
    """A table of lengths, then the pages, each deflated by itself, or as it is if that is no shorter."""

    history = 0
    form = zlib.MAX_WBITS

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """The pages of a packet."""
        at = U32.size * count
        if len(data) < at:
            raise StreamProblem("inflate-short", what=WHAT, found=0, expected=count * page_size)
        pages: list[Data] = []
        for (length,) in U32.iter_unpack(data[:at]):
            page = data[at : at + length]
            if len(page) < length:
                raise StreamProblem(
                    "inflate-short", what=WHAT, found=len(pages) * page_size, expected=count * page_size
                )
            pages.append(page if length == page_size else inflate(page, page_size, WHAT, self.form))
            at += length
        if at < len(data):
            raise StreamProblem("inflate-rest", what=WHAT, left=len(data) - at)
        return b"".join(pages)


class Qpl(_PageByPage):
    """Intel's accelerator: deflate without a header."""

    form = RAW_DEFLATE


class Uadk(_PageByPage):
    """Huawei's accelerator: zlib."""


class Qatzip:
    """Intel's QuickAssist: gzip members, whose extra fields say nothing that is needed, all in a packet."""

    history = 0

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """The pages of a packet."""
        size, left, parts = count * page_size, bytes(data), b""
        while left and len(parts) <= size:
            member = zlib.decompressobj(GZIP)
            try:
                parts += member.decompress(left, size - len(parts) + 1)
            except zlib.error as error:
                raise StreamProblem("inflate", what=WHAT, detail=error) from None
            if not member.eof and len(parts) <= size:
                raise StreamProblem("inflate-short", what=WHAT, found=len(parts), expected=size)
            left = member.unused_data
        return exactly(parts, size)
