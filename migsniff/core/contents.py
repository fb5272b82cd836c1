"""What page records that do not hold a page as it is stand for: deltas against it, and deflated pages.

Only for whoever wants page contents; the decoder itself frames and counts these records without a look at
what is in them. Sources: migration/xbzrle.c and migration/ram.c, QEMU 5.2 to 11.1.
"""

import zlib

from migsniff.core.arrivals import Data
from migsniff.core.errors import StreamProblem


def apply_delta(page: bytearray, data: Data, at: int, end: int) -> None:
    """Apply the XBZRLE delta data[at:end] to the page that it was made against.

    It is a list of runs: how many bytes stay, how many are new (both ULEB128 of at most two bytes), the new
    ones. What stands behind the last run stays. A page that StreamProblem was raised for is of no use.
    """
    place, size = 0, len(page)
    while at < end:
        skip = data[at]
        at += 1
        if skip > 0x7F:
            skip, at = _second_byte(skip, data, at, end)
        if at == end:
            raise StreamProblem("xbzrle-delta", what="ends inside a run")
        count = data[at]
        at += 1
        if count > 0x7F:
            count, at = _second_byte(count, data, at, end)
        if not count or (place and not skip):
            raise StreamProblem("xbzrle-delta", what="has a run of no bytes")
        place += skip
        if at + count > end:
            raise StreamProblem("xbzrle-delta", what="ends inside a run")
        if place + count > size:
            raise StreamProblem("xbzrle-delta", what=f"runs over the page's {size} bytes")
        if count == 1:
            page[place] = data[at]
        else:
            page[place : place + count] = data[at : at + count]
        place += count
        at += count


def _second_byte(first: int, data: Data, at: int, end: int) -> tuple[int, int]:
    """A number whose first byte says that a second follows, and the index behind it."""
    if at == end:
        raise StreamProblem("xbzrle-delta", what="ends inside a run")
    if data[at] > 0x7F:
        raise StreamProblem("xbzrle-delta", what="has a number of more than two bytes")
    return first & 0x7F | data[at] << 7, at + 1


def inflate_page(data: Data, page_size: int) -> bytes:
    """The page that one whole zlib stream holds."""
    return inflate(data, page_size, "the page")


def inflate(data: Data, size: int, what: str, form: int = zlib.MAX_WBITS) -> bytes:
    """The `size` bytes that one whole stream holds; `form` is zlib's number for its kind, `what` it is."""
    unpacker = zlib.decompressobj(form)
    try:
        page = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise StreamProblem("inflate", what=what, detail=error) from None
    if len(page) > size:
        raise StreamProblem("inflate-more", what=what, expected=size)
    if not unpacker.eof:
        raise StreamProblem("inflate-short", what=what, found=len(page), expected=size)
    if len(page) < size:
        raise StreamProblem("inflate-less", what=what, found=len(page), expected=size)
    if unpacker.unused_data:
        raise StreamProblem("inflate-rest", what=what, left=len(unpacker.unused_data))
    return page
