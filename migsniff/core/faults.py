"""Page faults in postcopy: what the destination asks for on the return path, and the pages that answer it."""

from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from migsniff.core.arrivals import Direction
from migsniff.core.events import PageFault
from migsniff.core.pages import GuestMemory
from migsniff.core.tallies import GuestBlock
from migsniff.core.wire import MAX_PAGE_REQUESTS


class Request(NamedTuple):
    """`length` bytes from `address` of `block`, asked for at `offset` of a channel's return path."""

    channel: str
    offset: int
    block: GuestBlock
    address: int
    length: int

    def fault(
        self, channel: str, direction: Direction, offset: int, size: int, *, crossed: bool
    ) -> PageFault:
        """The event of its end."""
        return PageFault(
            channel=channel,
            direction=direction,
            offset=offset,
            size=size,
            block=self.block.name,
            address=self.address,
            length=self.length,
            asked_channel=self.channel,
            asked_offset=self.offset,
            crossed=crossed,
        )


class PageRequests:
    """The requests that no page has answered yet, oldest first, at most MAX_PAGE_REQUESTS of them.

    Each waits for its last page: QEMU sends the pages of a huge page in ascending order, and the destination
    can place it when all have come. A request made again (after a recovery) goes on as the first one.
    """

    def __init__(self) -> None:
        self.waiting: dict[tuple[GuestBlock, int], Request] = {}
        self.forgotten = 0

    def ask(self, memory: GuestMemory, request: Request) -> bool:
        """Take a request, whose range has been checked; False if its page has been sent already."""
        last = (request.address + request.length - 1) // memory.page_size
        memory.count_all()
        if memory.sent_in_postcopy(request.block, last):
            return False
        if (request.block, last) in self.waiting:
            return True
        if len(self.waiting) >= MAX_PAGE_REQUESTS:
            del self.waiting[next(iter(self.waiting))]
            self.forgotten += 1
        self.waiting[request.block, last] = request
        return True

    def answered(self, block: GuestBlock, pages: NDArray[np.uint64]) -> list[tuple[int, Request]]:
        """The requests that these pages answer, each with the index of its page; they wait no more."""
        if len(self.waiting) < len(pages):
            wanted = [page for of, page in self.waiting if of is block]
            found = np.flatnonzero(np.isin(pages, np.array(wanted, np.uint64))).tolist() if wanted else []
        else:
            keys = zip(repeat(block), pages.tolist(), strict=False)
            found = [index for index, key in enumerate(keys) if key in self.waiting]
        answers = []
        for index in found:
            if (request := self.waiting.pop((block, int(pages[index])), None)) is not None:
                answers.append((index, request))
        return answers
