"""The list of RAM blocks in the START of section ram (MEM_SIZE).

Format: migration/ram.c ram_save_setup, QEMU 5.2 to 11.1.
"""

from collections.abc import Callable, Generator

from migsniff.core.bytequeue import ByteQueue
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event, RamBlock, RamBlocks
from migsniff.core.mappedram import read_mapped_pages
from migsniff.core.tallies import Tallies, Tally
from migsniff.core.text import readable
from migsniff.core.wire import (
    CAPABILITY_IGNORE_SHARED,
    CAPABILITY_MAPPED_RAM,
    MAX_RAM_BLOCKS,
    OPTIONAL_NUMBER_MASK,
    PAGE_SIZES,
    U64,
    RamFlag,
)


def read_block_list(
    channel: str, queue: ByteQueue, context: Context, at: Callable[[str], None]
) -> Generator[Event | None, None, Tallies]:
    """Names and lengths of all blocks, and in some modes page sizes, addresses, or even the pages.

    The optional numbers are not announced. A block name is never empty, so a 0 where a name's length
    should stand begins one; behind the last block it is told from a RAM record by having no flags.
    `at` is told whose pages are read. Returns the pages that stood in the list. Who wants contents is told
    the blocks so far before their pages.
    """
    start = queue.at
    word = yield from queue.u64()
    smallest = context.page_size or PAGE_SIZES[0]
    if word & (smallest - 1) != RamFlag.MEM_SIZE:
        raise StreamProblem("ram-flags", flags=word & (smallest - 1))
    total = left = word - RamFlag.MEM_SIZE
    blocks: list[tuple[bytes, RamBlock]] = []
    mapped: dict[bytes, Tally] = {}
    while left:
        if len(blocks) == MAX_RAM_BLOCKS:
            raise StreamProblem("count", what="RAM blocks", count="more", limit=MAX_RAM_BLOCKS)
        queue.mark = queue.at
        name_length = yield from queue.u8()
        if not name_length:
            raise StreamProblem("string-empty", what="the name of a RAM block")
        name = yield from queue.fitting(0, name_length, _without_zero)
        if 0 in name:  # it is the block's length that stands there already
            raise StreamProblem("string-text", what="the name of a RAM block", found=readable(name))
        queue.advance(name_length)
        length = yield from queue.u64()
        if length > left:
            raise StreamProblem("ram-blocks-total", total=total)
        left -= length
        if CAPABILITY_MAPPED_RAM not in context.capabilities:
            numbers = yield from _optional_numbers(queue, name, last=not left)
            blocks.append((name, _block(context, name, length, numbers)))
            continue
        numbers = [(yield from queue.u64())] if CAPABILITY_IGNORE_SHARED in context.capabilities else []
        blocks.append((name, _block(context, name, length, numbers)))
        if context.want_contents:
            yield _announcement(channel, context, blocks, start, queue.at, total)
        at(f"the mapped RAM of block {readable(name)}")
        mapped[name] = yield from read_mapped_pages(channel, queue, context, blocks[-1][1])
        at("the RAM block list")
    memory = context.memory
    memory.announce(blocks)
    if context.page_size is not None:
        memory.set_page_size(context.page_size)
    yield _announcement(channel, context, blocks, start, queue.at, total)
    return {memory.blocks[name]: tally for name, tally in mapped.items()}


def _announcement(
    channel: str, context: Context, blocks: list[tuple[bytes, RamBlock]], start: int, end: int, total: int
) -> RamBlocks:
    return RamBlocks(
        channel=channel,
        direction="fwd",
        offset=start,
        size=end - start,
        total=total,
        page_size=context.page_size,
        page_size_from=context.page_size_from,
        blocks=tuple(block for _, block in blocks),
    )


def _optional_numbers(
    queue: ByteQueue, name: bytes, *, last: bool
) -> Generator[Event | None, None, list[int]]:
    numbers: list[int] = []
    while (number := (yield from _optional_number(queue, last=last))) is not None:
        if len(numbers) == 2:
            raise StreamProblem("ram-block-numbers", name=readable(name))
        numbers.append(number)
    return numbers


def _optional_number(queue: ByteQueue, *, last: bool) -> Generator[Event | None, None, int | None]:
    yield from queue.wait(8 if last else 1)
    if last:
        (number,) = U64.unpack_from(queue.data, queue.pos)
        if number & OPTIONAL_NUMBER_MASK:
            return None
    elif queue.data[queue.pos]:
        return None
    return (yield from queue.u64())


def _block(context: Context, name: bytes, length: int, numbers: list[int]) -> RamBlock:
    """A block with its optional numbers told apart: the page size stands before the address."""
    shared = CAPABILITY_IGNORE_SHARED in context.capabilities
    if context.page_size and length % context.page_size:
        raise StreamProblem(
            "ram-block-length", name=readable(name), length=length, page_size=context.page_size
        )
    page_size = numbers[0] if numbers and (len(numbers) == 2 or not shared) else None
    return RamBlock(readable(name), length, page_size, numbers[-1] if numbers and shared else None)


def _without_zero(name: bytes) -> int:
    """How many of the first bytes are none of 0."""
    return len(name.partition(b"\0")[0])
