"""The description behind the EOF, and the device state that it explains.

Format: migration/savevm.c, QEMU 5.2 to 11.1. How its text is read is told in core.description.
"""

from typing import TYPE_CHECKING

from migsniff.core.bytequeue import Steps
from migsniff.core.description import Description
from migsniff.core.errors import StreamProblem
from migsniff.core.events import DescriptionFound
from migsniff.core.wire import MAX_DESCRIPTION, U32, VMDESCRIPTION, ItemType

if TYPE_CHECKING:
    from migsniff.core.stream import MainReader


def read_description(main: "MainReader") -> Steps:
    """The JSON behind the EOF, if it comes, and the device state that it explains."""
    queue = main.queue
    while not queue.ensure(1):
        if queue.closed:
            if main.devices.seen and main.context.footers is False:
                yield main.finding(queue.at, "end-guessed")
            return
        yield None
    if queue.data[queue.pos] != ItemType.VMDESCRIPTION:
        return
    start = queue.mark = queue.at
    main.item = "the description"
    yield from queue.wait(VMDESCRIPTION.least)
    (length,) = U32.unpack_from(queue.data, queue.pos + VMDESCRIPTION.struct.size)
    if length > MAX_DESCRIPTION:
        raise StreamProblem("length", what="a description", length=length, limit=MAX_DESCRIPTION)
    queue.advance(VMDESCRIPTION.least)
    text = bytearray()
    while len(text) < length:
        if not (some := queue.take_some(length - len(text))):
            queue.check_hole()
            yield None
        text += some
    description = yield from Description.read(bytes(text), breathe=main.context.breathe)
    main.item, main.described = "behind the description", True
    yield DescriptionFound(
        channel=main.channel,
        direction="fwd",
        offset=start,
        size=queue.at - start,
        page_size=description.page_size,
        devices=len(description.devices),
        text=bytes(text),
    )
    if description.page_size and main.context.page_size not in (None, description.page_size):
        used = main.context.page_size
        yield main.finding(start, "page-size-described", found=description.page_size, used=used)
    yield from main.devices.describe(description)
    main.devices.release()
    main.description = description if main.context.colo else None
