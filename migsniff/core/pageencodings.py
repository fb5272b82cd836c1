"""How each kind of page record is framed: one registered function each.

Format: migration/ram.c, QEMU 5.2 to 11.1.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from migsniff.core.arrivals import Data
from migsniff.core.errors import StreamProblem
from migsniff.core.registry import Registry
from migsniff.core.wire import U32, XBZRLE_HEADER, XBZRLE_MARKER, RamFlag


class PageEncoding(msgspec.Struct, frozen=True):
    """How one kind of page record is framed.

    `kind` is the name of its count in PageCounts. Behind the record's word (and block name) stand `header`
    bytes, from which `body` tells the length of the contents: (data, index of header, page size) -> bytes.
    """

    kind: str
    header: int
    body: Callable[[Data, int, int], int]


PAGE_ENCODINGS: Final = Registry[int, PageEncoding]("page encoding")


def page_encoding(
    flag: RamFlag, kind: str, *, header: int, source: str
) -> Callable[[Callable[[Data, int, int], int]], Callable[[Data, int, int], int]]:
    """Register the framing of the page records that carry `flag`."""

    def register(body: Callable[[Data, int, int], int]) -> Callable[[Data, int, int], int]:
        PAGE_ENCODINGS(int(flag), source=source)(PageEncoding(kind, header, body))
        return body

    return register


@page_encoding(RamFlag.PAGE, "normal", header=0, source="migration/ram.c save_normal_page")
def normal_body(data: Data, at: int, page_size: int) -> int:
    """A page as it is."""
    return page_size


@page_encoding(RamFlag.ZERO, "zero", header=1, source="migration/ram.c save_zero_page")
def zero_body(data: Data, at: int, page_size: int) -> int:
    """A page filled with one byte, which has been 0 in every QEMU since 1.6."""
    if data[at]:
        raise StreamProblem("zero-fill", found=data[at])
    return 0


@page_encoding(RamFlag.XBZRLE, "xbzrle", header=3, source="migration/ram.c save_xbzrle_page")
def xbzrle_body(data: Data, at: int, page_size: int) -> int:
    """A delta against the page's last contents: a marker byte, its length, the delta."""
    marker, length = XBZRLE_HEADER.unpack_from(data, at)
    if marker != XBZRLE_MARKER:
        raise StreamProblem("xbzrle-header", found=marker)
    if length > page_size:
        raise StreamProblem("xbzrle-length", length=length, page_size=page_size)
    return int(length)


@page_encoding(RamFlag.COMPRESS_PAGE, "compressed", header=4, source="migration/ram.c do_compress_ram_page")
def compressed_body(data: Data, at: int, page_size: int) -> int:
    """A page deflated by itself: the length, then one whole zlib stream."""
    length = int(U32.unpack_from(data, at)[0])
    # zlib's compressBound, which is how much QEMU makes room for
    if not 0 < length <= page_size + (page_size >> 12) + (page_size >> 14) + (page_size >> 25) + 13:
        raise StreamProblem("compress-length", length=length, page_size=page_size)
    return length
