"""The target's page size before the description tells it: by machine type, else from the first page records.

A RAM record holds address and flags in one word, and the page size is what parts them, so nothing of RAM can
be read without it. Sources: target/*/cpu-param.h, QEMU 5.2 to 11.1.
"""

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.pageencodings import PAGE_ENCODINGS
from migsniff.core.pages import GuestMemory
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
    if context.learned_page_size in PAGE_SIZES:
        context.know_page_size(context.learned_page_size, FIRST_PAGES)
        return
    while True:
        head = queue.peek(PAGE_SIZE_LOOKAHEAD)
        final = queue.closed or len(head) == PAGE_SIZE_LOOKAHEAD
        size = infer_page_size(head, context.memory, contents=queue.kept == "all", final=final)
        if size is not None:
            break
        queue.undecided = queue.at
        yield None
    queue.undecided = None
    if not size:
        raise StreamProblem("page-size", machine=context.machine)
    context.know_page_size(size, FIRST_PAGES)


def infer_page_size(head: bytes, memory: GuestMemory, *, contents: bool, final: bool) -> int | None:
    """The page size under which `head`, the first page records, makes sense.

    None while it cannot be decided, 0 if no size fits. With a wrong size the contents of a page are read as
    records, or address bits as flags, which fails soon. `contents`: they stand in `head`. `final`: no more
    bytes than these will be looked at.
    """
    tried = {size: _try(head, memory, size, size if contents else 0) for size in PAGE_SIZES}
    fitting = [size for size, (fits, _) in tried.items() if fits is not False]
    if not fitting:
        latest = max(at for _, at in tried.values())
        best = [size for size, (_, at) in tried.items() if at == latest]
        return best[0] if len(best) == 1 else 0
    read = [size for size in fitting if tried[size][0]]
    if len(fitting) > 1 and read != fitting and not final:
        return None
    # records without contents fit every size that divides their addresses: the largest is the true one
    return max(read or (fitting if contents else [0]))


def _try(head: bytes, memory: GuestMemory, page_size: int, contents: int) -> tuple[bool | None, int]:
    """Whether the first records make sense with a page size, and how many bytes it takes to tell.

    None if there are too few bytes. `contents`: bytes of a page in `head`.
    """
    pos = 0
    length = 0
    for record in range(PAGE_SIZE_RECORDS):
        if pos + 8 > len(head):
            return None, pos
        (word,) = U64.unpack_from(head, pos)
        if word in (RamFlag.EOS, RamFlag.MULTIFD_FLUSH) and record:
            return True, pos
        flags = word & (page_size - 1)
        encoding = PAGE_ENCODINGS.get(flags & KINDS)
        pos += 8
        if encoding is None or flags & ~KNOWN:
            return False, pos
        if not flags & RamFlag.CONTINUE:
            if pos == len(head) or pos + 1 + head[pos] > len(head):
                return None, pos
            block = memory.blocks.get(head[pos + 1 : pos + 1 + head[pos]])
            pos += 1 + head[pos]
            if block is None:
                return False, pos
            length = block.length
        if word - flags >= length:
            return False, pos
        if encoding.kind not in ("zero", "normal"):
            return True, pos
        if encoding.kind == "normal":
            pos += contents
        elif pos == len(head):
            return None, pos
        elif head[pos]:
            return False, pos + 1
        else:
            pos += 1
    return True, pos
