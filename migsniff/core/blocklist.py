"""The list of RAM blocks in the START of section ram (MEM_SIZE).

Format: migration/ram.c ram_save_setup, QEMU 5.2 to 11.1.
"""

from collections.abc import Generator

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event, RamBlock, RamBlocks
from migsniff.core.text import readable
from migsniff.core.wire import MAX_RAM_BLOCKS, OPTIONAL_NUMBER_MASK, PAGE_SIZES, U64, RamFlag


def read_block_list(channel: str, queue: ByteQueue, context: Context) -> Steps:
    """Names and lengths of all blocks, and in some modes page sizes and addresses.

    The optional numbers are not announced. A block name is never empty, so a 0 where a name's length
    should stand begins one; behind the last block it is told from a RAM record by having no flags.
    """
    start = queue.at
    word = yield from queue.u64()
    smallest = context.page_size or PAGE_SIZES[0]
    if word & (smallest - 1) != RamFlag.MEM_SIZE:
        raise StreamProblem("ram-flags", flags=word & (smallest - 1))
    total = left = word - RamFlag.MEM_SIZE
    blocks: list[tuple[bytes, RamBlock]] = []
    while left:
        if len(blocks) == MAX_RAM_BLOCKS:
            raise StreamProblem("count", what="RAM blocks", count="more", limit=MAX_RAM_BLOCKS)
        queue.mark = queue.at
        name_length = yield from queue.u8()
        if not name_length:
            raise StreamProblem("string-empty", what="the name of a RAM block")
        name = yield from queue.take(name_length)
        length = yield from queue.u64()
        if length > left:
            raise StreamProblem("ram-blocks-total", total=total)
        left -= length
        numbers: list[int] = []
        while (number := (yield from _optional_number(queue, last=not left))) is not None:
            if len(numbers) == 2:
                raise StreamProblem("ram-block-numbers", name=readable(name))
            numbers.append(number)
        blocks.append((name, _block(context, name, length, numbers)))
    context.memory.announce(blocks)
    if context.page_size is not None:
        context.memory.set_page_size(context.page_size)
    yield RamBlocks(
        channel=channel,
        direction="fwd",
        offset=start,
        size=queue.at - start,
        total=total,
        page_size=context.page_size,
        page_size_from=context.page_size_from,
        blocks=tuple(block for _, block in blocks),
    )


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
    shared = "x-ignore-shared" in context.capabilities
    if context.page_size and length % context.page_size:
        raise StreamProblem(
            "ram-block-length", name=readable(name), length=length, page_size=context.page_size
        )
    page_size = numbers[0] if numbers and (len(numbers) == 2 or not shared) else None
    return RamBlock(readable(name), length, page_size, numbers[-1] if numbers and shared else None)
