"""The configuration section: what both sides must agree on before anything else.

Its subsections are read by their names, for until QEMU 8.1 the description says nothing of them. Format:
migration/savevm.c vmstate_configuration, QEMU 5.2 to 11.1.
"""

from collections.abc import Generator
from uuid import UUID

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Configuration, Event
from migsniff.core.names import take_name
from migsniff.core.pagesize import page_size_of_machine
from migsniff.core.text import printable, printable_length
from migsniff.core.wire import (
    MAX_CAPABILITIES,
    MAX_MACHINE_NAME,
    SUBSECTION_PREFIX_CONFIGURATION,
    ItemType,
)


def read_configuration(channel: str, queue: ByteQueue, context: Context) -> Steps:
    """Read the section if it is there: machine types up to 2.3 send none."""
    yield from queue.wait(1)
    if queue.data[queue.pos] != ItemType.CONFIGURATION:
        return
    start = queue.mark = queue.at
    yield from queue.u8()
    length = yield from queue.u32()
    if length > MAX_MACHINE_NAME:
        raise StreamProblem("length", what="a machine type", length=length, limit=MAX_MACHINE_NAME)
    context.machine = yield from take_name(queue, length, "the machine type")
    page_bits: int | None = None
    capabilities: tuple[str, ...] | None = None
    uuid: str | None = None
    seen: set[bytes] = set()
    while name := (yield from _subsection(queue)):
        if name in seen:
            raise StreamProblem("subsection-again", name=name.decode("ascii"))
        seen.add(name)
        if name == b"configuration/target-page-bits":
            page_bits = yield from queue.u32()
            if not 8 <= page_bits <= 16:
                raise StreamProblem("page-bits", found=page_bits)
            context.know_page_size(1 << page_bits, "configuration")
        elif name == b"configuration/capabilities":
            capabilities = context.capabilities = yield from _capabilities(queue)
        elif name == b"configuration/uuid":
            uuid = context.uuid = str(UUID(bytes=(yield from queue.take(16))))
        else:
            raise StreamProblem("subsection", name=name.decode("ascii"), version=1)
    if known := page_size_of_machine(context.machine):
        context.know_page_size(known, "machine type")
    yield Configuration(
        channel=channel,
        direction="fwd",
        offset=start,
        size=queue.at - start,
        machine=context.machine,
        page_bits=page_bits,
        capabilities=capabilities,
        uuid=uuid,
    )


def _subsection(queue: ByteQueue) -> Generator[Event | None, None, bytes | None]:
    """The name of the subsection that begins here, or None.

    SUBSECTION is never a top-level item, so the byte alone decides. A stream may also end here.
    """
    while not queue.ensure(1):
        if queue.closed:
            return None
        yield None
    if queue.data[queue.pos] != ItemType.SUBSECTION:
        return None
    queue.mark = queue.at
    yield from queue.u8()
    length = yield from queue.u8()
    name = yield from queue.fitting(0, length, printable_length)
    if not name.startswith(SUBSECTION_PREFIX_CONFIGURATION) or not printable(name):
        raise StreamProblem("string-text", what="a subsection of the configuration", found=name.hex(" "))
    queue.advance(length)
    yield from queue.u32()
    return name


def _capabilities(queue: ByteQueue) -> Generator[Event | None, None, tuple[str, ...]]:
    count = yield from queue.u32()
    if count > MAX_CAPABILITIES:
        raise StreamProblem("count", what="capabilities", count=count, limit=MAX_CAPABILITIES)
    names: list[str] = []
    for _ in range(count):
        length = yield from queue.u8()
        names.append((yield from take_name(queue, length, "a capability")))
    return tuple(names)
