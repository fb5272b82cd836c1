"""Reading compressed files as they come: gzip, zstd, xz and bzip2, told by their first bytes.

Memory is bounded whatever the file says: windows are capped, and output comes in pieces.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from io import RawIOBase
from typing import TYPE_CHECKING, Final, Protocol

import zstandard

from migsniff.core.errors import CaptureError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

INPUT_SIZE: Final = 128 << 10
PEEK_SIZE: Final = 4096
OUTPUT_SIZE: Final = 256 << 10  # what a decompressor may give at once
WINDOW_MAX: Final = 128 << 20  # zstd's own limit without --long=28 or more; xz -9 needs half of it

ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"  # behind a byte 0x50 to 0x5f


class Decompressor(Protocol):
    """One compressed member, as the decompressors of bz2 and lzma have it."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take `data`, give what can be had, at most about `max_length` bytes."""

    @property
    def eof(self) -> bool:
        """The member has ended."""

    @property
    def needs_input(self) -> bool:
        """More is to be had only for more input."""

    @property
    def unused_data(self) -> bytes:
        """What followed the end of the member."""


class _Gzip:
    def __init__(self, window: int) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self._full = False

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(output) == max_length
        return output

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        # a full piece may have more behind it without any input
        return not (self._full or self._zlib.unconsumed_tail or self._zlib.eof)

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


class _Zstd:
    """One zstd frame. It is fed block by block: one block gives at most 128 KiB, more are not bounded."""

    def __init__(self, window: int) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
        self._held = bytearray()
        self._next = self._header
        self._checksum = False
        self._skip = 0
        self.eof = False
        self.needs_input = True

    @property
    def unused_data(self) -> bytes:
        return bytes(self._held)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._held += data
        while not self.eof:
            size = self._next()
            if size is None:
                break
            piece = bytes(self._held[:size])
            del self._held[:size]
            if piece and (output := self._frame.decompress(piece)):
                self.needs_input = False
                return output
        self.needs_input = not self.eof
        return b""

    # Each step returns how many held bytes to decompress next, or None if more input is needed.

    def _header(self) -> int | None:
        held = self._held
        if len(held) < 8:
            return None
        if held[1:4] == ZSTD_SKIPPABLE and held[0] & 0xF0 == 0x50:
            self._skip = 8 + int.from_bytes(held[4:8], "little")
            self._next = self._skipped
            return 0
        size = zstandard.frame_header_size(bytes(held[:18]))
        if len(held) < size:
            return None
        self._checksum = zstandard.get_frame_parameters(bytes(held[:size])).has_checksum
        self._next = self._block
        return size

    def _skipped(self) -> int | None:
        taken = min(self._skip, len(self._held))
        del self._held[:taken]
        self._skip -= taken
        self.eof = not self._skip
        return 0 if self.eof else None

    def _block(self) -> int | None:
        if len(self._held) < 3:
            return None
        header = int.from_bytes(self._held[:3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        total = 3 + (1 if kind == 1 else size) + (4 if last and self._checksum else 0)  # 1: a repeated byte
        if len(self._held) < total:
            return None
        if last:
            self._next = self._end
        return total

    def _end(self) -> int | None:
        self.eof = True
        return 0


# name -> how the file begins, what reads one member, bytes that may stand between members
FORMATS: Final[dict[str, tuple[bytes, Callable[[int], Decompressor], bytes]]] = {
    "gzip": (b"\x1f\x8b\x08", _Gzip, b"\0"),
    "zstd": (b"\x28\xb5\x2f\xfd", _Zstd, b""),
    "xz": (b"\xfd7zXZ\0", lambda window: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=window), b"\0"),
    "bzip2": (b"BZh", lambda _: bz2.BZ2Decompressor(), b""),
}
SUFFIXES: Final = {".zst": "zstd", ".gz": "gzip", ".xz": "xz"}


class Peeked(io.RawIOBase):
    """`source`, whose first bytes may be looked at before they are read."""

    def __init__(self, source: RawIOBase) -> None:
        super().__init__()
        self._source = source
        self._head = b""

    def peek(self, *signs: bytes) -> bytes:
        """The first bytes, as many as it takes to tell whether they begin with one of `signs`."""
        while any(sign.startswith(self._head) and sign != self._head for sign in signs):
            more = self._source.read(PEEK_SIZE)
            if not more:
                break
            self._head += more
        return self._head

    def first(self, size: int) -> bytes:
        """The first bytes, `size` of them if there are so many."""
        while len(self._head) < size and (more := self._source.read(PEEK_SIZE)):
            self._head += more
        return self._head[:size]

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        if not self._head:
            return self._source.readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._head))
        view[:size] = self._head[:size]
        self._head = self._head[size:]
        return size


def compression(head: bytes) -> str | None:
    """The name of the format that begins so, None if it is none of these."""
    if head[1:4] == ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50:
        return "zstd"
    return next((name for name, (magic, _, _) in FORMATS.items() if head.startswith(magic)), None)


class Unpacked(io.RawIOBase):
    """The decompressed bytes of `source`; `form` is a name in FORMATS.

    readinto() returns as soon as there is something. Raises CaptureError for data that is broken or cut.
    """

    def __init__(self, source: RawIOBase, name: str, form: str, window: int = WINDOW_MAX) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._form = form
        _, self._new, self._padding = FORMATS[form]
        self._window = window
        self._member: Decompressor | None = self._new(window)
        self._input = b""
        self._read = 0
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self._output:
            if not self._advance():
                return 0
        size = min(len(view), len(self._output))
        view[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _advance(self) -> bool:
        """One step: decompress, or read on, or go to the next member. False at the end."""
        if self._member is None:
            if self._padding:
                self._input = self._input.lstrip(self._padding)
            if not self._input:
                return self._fill()
            self._member = self._new(self._window)
        if self._member.needs_input and not self._input and not self._fill():
            raise CaptureError(f"{self._name}: the {self._form} data ends too early (at {self._read})")
        data, self._input = self._input, b""
        try:
            self._output = memoryview(self._member.decompress(data, OUTPUT_SIZE))
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError) as error:
            raise CaptureError(
                f"{self._name}: broken {self._form} data before {self._read}: {error}"
            ) from None
        if self._member.eof:
            self._input = self._member.unused_data
            self._member = None
        return True

    def _fill(self) -> bool:
        self._input = self._source.read(INPUT_SIZE) or b""
        self._read += len(self._input)
        return bool(self._input)
