"""The target's page size before the description tells it: by machine type, else from the first page records.

A RAM record holds address and flags in one word, and the page size is what parts them, so nothing of RAM can
be read without it. Sources: target/*/cpu-param.h, QEMU 5.2 to 11.1.
"""

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.pages import PAGE_ENCODINGS, GuestMemory
from migsniff.core.wire import (
    MACHINE_PAGE_SIZE,
    PAGE_SIZE_LOOKAHEAD,
    PAGE_SIZE_RECORDS,
    PAGE_SIZES,
    U64,
    RamFlag,
)

KINDS = sum(PAGE_ENCODINGS)
KNOWN = KINDS | int(RamFlag.CONTINUE)  # a plain number: ~ of an IntFlag keeps to the bits that have names
FIRST_PAGES = "the first page records"


def page_size_of_machine(machine: str) -> int | None:
    """The page size of a machine type that only targets with this one page size have; None if not known."""
    for prefix, size in MACHINE_PAGE_SIZE.items():
        if machine == prefix or machine.startswith(prefix + "-"):
            return size
    return None


def find_page_size(queue: ByteQueue, context: Context) -> Steps:
    """Look ahead in the first page records, where neither machine nor configuration tells the page size."""
    while True:
        head = queue.peek(PAGE_SIZE_LOOKAHEAD)
        final = queue.closed or len(head) == PAGE_SIZE_LOOKAHEAD
        size = infer_page_size(head, context.memory, final=final)
        if size is not None:
            break
        queue.check_hole()
        queue.undecided = True
        yield None
    queue.undecided = False
    if not size:
        raise StreamProblem("page-size", machine=context.machine)
    context.know_page_size(size, FIRST_PAGES)


def infer_page_size(head: bytes, memory: GuestMemory, *, final: bool) -> int | None:
    """The page size under which `head`, the first page records, makes sense.

    None while it cannot be decided, 0 if no size fits. With a wrong size the contents of a page are read as
    records, or address bits as flags, which fails soon. `final`: no more bytes than these will be looked at.
    """
    fails = {size: _fails_at(head, memory, size) for size in PAGE_SIZES}
    fitting = [size for size, at in fails.items() if at is None]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        latest = max(fails.values(), key=lambda at: at or 0)
        best = [size for size, at in fails.items() if at == latest]
        return best[0] if len(best) == 1 and latest else 0
    # records without contents fit every size that divides their addresses: the largest is the true one
    return max(fitting) if final else None


def _fails_at(head: bytes, memory: GuestMemory, page_size: int) -> int | None:
    """How many bytes it takes to see that the page size is wrong; None if it is not seen."""
    pos = 0
    length = 0
    for record in range(PAGE_SIZE_RECORDS):
        if pos + 8 > len(head):
            return None
        (word,) = U64.unpack_from(head, pos)
        if word in (RamFlag.EOS, RamFlag.MULTIFD_FLUSH) and record:
            return None
        flags = word & (page_size - 1)
        encoding = PAGE_ENCODINGS.get(flags & KINDS)
        if encoding is None or flags & ~KNOWN:
            return pos + 8
        pos += 8
        if not flags & RamFlag.CONTINUE:
            if pos == len(head) or pos + 1 + head[pos] > len(head):
                return None
            block = memory.blocks.get(head[pos + 1 : pos + 1 + head[pos]])
            if block is None:
                return pos + 1 + head[pos]
            pos += 1 + head[pos]
            length = block.length
        if word - flags >= length:
            return pos
        if pos + encoding.header > len(head):
            return None
        if encoding.kind == "zero":
            if head[pos]:
                return pos + 1
            pos += 1
        elif encoding.kind == "normal":
            pos += page_size
        else:
            return None
    return None
