"""Pages of a mapped-ram file: behind each RAM block's entry in the list, at fixed places.

Only files are so (`migrate file:`, capability mapped-ram, QEMU 9.0 and later). They are read from front to
back like any stream: bitmap, hole and pages of a block stand between its entry and the next one.

Format: migration/ram.c mapped_ram_setup_ramblock, QEMU 10.0 and 11.1.
"""

from collections.abc import Generator

import numpy as np

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event, RamBlock, RamPages
from migsniff.core.tallies import Tally
from migsniff.core.wire import (
    MAPPED_RAM_HEADER,
    MAPPED_RAM_VERSION,
    MAX_MAPPED_RAM_BITMAP,
    MAX_MAPPED_RAM_HOLE,
    PAGE_SIZES,
    RamFlag,
)


def bitmap_size(pages: int) -> int:
    """Bytes of a block's bitmap: whole words of 64 bits."""
    return -(-pages // 64) * 8


def read_mapped_pages(
    channel: str, queue: ByteQueue, context: Context, block: RamBlock
) -> Generator[Event | None, None, Tally]:
    """Read what stands behind the entry of `block`; returns its pages by kind, those not stored as zero."""
    tally = Tally()
    header = yield from queue.take(MAPPED_RAM_HEADER.size)
    version, page_size, bitmap_at, pages_at = MAPPED_RAM_HEADER.unpack(header)
    if version != MAPPED_RAM_VERSION:
        raise StreamProblem("mapped-ram-version", found=version)
    if page_size not in (PAGE_SIZES if context.page_size is None else (context.page_size,)):
        raise StreamProblem("mapped-ram-page-size", found=page_size, expected=context.page_size or PAGE_SIZES)
    context.know_page_size(page_size, "mapped-ram")
    if not bitmap_at and not pages_at:
        return tally  # shared memory, which x-ignore-shared leaves where it is
    count, rest = divmod(block.length, page_size)
    if rest:
        raise StreamProblem("ram-block-length", name=block.name, length=block.length, page_size=page_size)
    size = bitmap_size(count)
    if size > MAX_MAPPED_RAM_BITMAP:
        raise StreamProblem("length", what="a page bitmap", length=size, limit=MAX_MAPPED_RAM_BITMAP)
    _check_place(queue, context, block.name, bitmap_at)
    if pages_at < bitmap_at + size:
        raise StreamProblem("mapped-ram-offset", name=block.name, bitmap=bitmap_at, pages=pages_at)
    if (hole := pages_at - bitmap_at - size) > MAX_MAPPED_RAM_HOLE:
        raise StreamProblem(
            "mapped-ram-hole", name=block.name, pages=pages_at, hole=hole, limit=MAX_MAPPED_RAM_HOLE
        )
    bitmap = bytearray()
    while len(bitmap) < size:
        if not (some := queue.take_some(size - len(bitmap))):
            queue.check_hole()
            yield None
        bitmap += some
    yield from queue.contents(hole)
    start = queue.at
    if context.want_contents and queue.kept == "all":
        yield from _lend_pages(channel, queue, context, block, bitmap, page_size)
    yield from queue.contents(start + block.length - queue.at)
    tally.normal = (int.from_bytes(bitmap, "little") & ((1 << count) - 1)).bit_count()
    tally.zero = count - tally.normal
    tally.bytes = tally.normal * page_size
    if count:
        tally.span(0, block.length - page_size)
    return tally


def _check_place(queue: ByteQueue, context: Context, name: str, bitmap_at: int) -> None:
    """The bitmap must stand here. Offsets count from the file's beginning, which may be before the stream."""
    if context.file_offset is None:
        context.file_offset = max(0, bitmap_at - queue.at)
    if (here := context.file_offset + queue.at) != bitmap_at:
        raise StreamProblem("mapped-ram-place", name=name, bitmap=bitmap_at, expected=here)


def _lend_pages(
    channel: str, queue: ByteQueue, context: Context, block: RamBlock, bitmap: bytearray, page_size: int
) -> Steps:
    """Hand out the pages of a block; what the file holds in place of zero pages is not looked at."""
    page, count = 0, block.length // page_size
    while page < count:
        yield from queue.wait(page_size)
        taken = min((queue.end - queue.pos) // page_size, count - page)
        bits = np.unpackbits(
            np.frombuffer(bitmap, np.uint8)[page // 8 : (page + taken + 7) // 8], bitorder="little"
        )
        stored = bits[page % 8 : page % 8 + taken].astype(bool)
        places = np.arange(taken, dtype=np.uint64) * np.uint64(page_size)
        kinds = np.where(stored, np.uint64(RamFlag.PAGE), np.uint64(RamFlag.ZERO))
        size = taken * page_size
        yield RamPages(
            channel=channel,
            direction="fwd",
            offset=queue.at,
            size=size,
            block=block.name,
            page_size=page_size,
            iteration=context.memory.iteration,
            words=(places + np.uint64(page * page_size)) | kinds,
            bodies=places,
            lengths=stored * np.uint64(page_size),
            data=memoryview(queue.data)[queue.pos : queue.pos + size],
        )
        queue.advance(size)
        page += taken
