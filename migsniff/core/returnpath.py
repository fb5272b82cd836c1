"""The return path: what the destination says on the reverse direction of a main channel.

Format: migration/migration.c, QEMU 5.2 to 11.1.
"""

from collections.abc import Generator, Iterator

import numpy as np

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    ColoMessage,
    Event,
    Finding,
    ReturnPathMessage,
    problem_finding,
)
from migsniff.core.faults import Request
from migsniff.core.messages import RETURN_PATH, Arguments
from migsniff.core.tallies import GuestBlock
from migsniff.core.wire import (
    MAX_RECV_BITMAP,
    MAX_RETURN_PATH_MESSAGE,
    RECV_BITMAP_END,
    ColoMessageType,
    ReturnPathType,
)

REQUESTS = (ReturnPathType.REQ_PAGES, ReturnPathType.REQ_PAGES_ID)
COLO_REPLIES = (
    ColoMessageType.CHECKPOINT_READY,
    ColoMessageType.CHECKPOINT_REPLY,
    ColoMessageType.VMSTATE_RECEIVED,
    ColoMessageType.VMSTATE_LOADED,
)
PIECE = 1 << 16  # bytes of a received bitmap that are looked at together


class ReturnPathReader:
    """Parses the messages; `shut` is the value of the last one, None before it came."""

    head = b""

    def __init__(self, channel: str, queue: ByteQueue, context: Context) -> None:
        self.channel = channel
        self.queue = queue
        self.context = context
        self.where = "between messages"
        self.shut: int | None = None
        self.loaded = 0  # checkpoints of COLO
        self._block: str | None = None  # that a REQ_PAGES goes on in

    def run(self) -> Steps:
        """Messages without end."""
        queue = self.queue
        while True:
            self.where = "between messages"
            start = queue.mark = queue.at
            yield from queue.wait(4)
            number = yield from queue.u16()
            length = yield from queue.u16()
            if number == 0 and self.context.colo:
                yield self._colo(start, length)
                continue
            entry = RETURN_PATH.get(number)
            if entry is None:
                raise StreamProblem("return-path-type", found=number)
            self.where = f"message {entry.name}"
            if not entry.least <= length <= min(entry.most, MAX_RETURN_PATH_MESSAGE):
                raise StreamProblem(
                    "return-path-length", name=entry.name, length=length, expected=entry.least
                )
            arguments = entry.arguments((yield from queue.take(length)))
            finding = None
            if number == ReturnPathType.RECV_BITMAP:
                finding = yield from self._bitmap(start, arguments)
            elif number == ReturnPathType.REQ_PAGES and self._block is not None:
                arguments = {"block": self._block, **arguments}
            self._note(number, arguments)
            yield ReturnPathMessage(
                channel=self.channel,
                direction="rev",
                offset=start,
                size=queue.at - start,
                message=number,
                name=entry.name,
                arguments=arguments,
            )
            if finding is not None:
                yield finding
            if number in REQUESTS:
                yield from self._request(start, arguments)

    def _colo(self, start: int, number: int) -> ColoMessage:
        """COLO's messages have no length, and are numbers of 32 bits: no message of the return path is 0."""
        if number not in COLO_REPLIES:
            raise StreamProblem("colo-message", found=number)
        if number == ColoMessageType.VMSTATE_LOADED:
            self.loaded += 1
        return ColoMessage(
            channel=self.channel,
            direction="rev",
            offset=start,
            size=4,
            message=number,
            name=ColoMessageType(number).name,
            checkpoint=self.context.checkpoint,
        )

    def _note(self, number: int, arguments: Arguments) -> None:
        """Keep what is asked for later."""
        value, block = arguments.get("value"), arguments.get("block")
        if number == ReturnPathType.SHUT and isinstance(value, int):
            self.shut = value
        elif number == ReturnPathType.PONG and isinstance(value, int) and value in self.context.package_pings:
            self.context.package_pings.remove(value)
        elif number == ReturnPathType.REQ_PAGES_ID and isinstance(block, str):
            self._block = block

    # ------------------------------------------------------------ page requests

    def _request(self, start: int, arguments: Arguments) -> Iterator[Event]:
        """A page fault of the destination's guest: its pages are waited for, if they can come."""
        context = self.context
        if not context.memory.blocks:
            return  # they were told before what was seen
        name, address, length = (arguments.get(key) for key in ("block", "start", "length"))
        assert isinstance(address, int)
        assert isinstance(length, int)
        if why := context.memory.misfit(name, address, length):
            yield self._finding("page-request", start, length=length, start=address, name=name or "", why=why)
            return
        block = context.memory.by_name[str(name)]
        request = Request(self.channel, start, block, address, length)
        if not context.requests.ask(context.memory, request):
            yield request.fault(self.channel, "rev", start, self.queue.at - start, crossed=True)

    def _known(self, name: object) -> GuestBlock | None:
        """The RAM block of that name, as it was made readable."""
        return self.context.memory.by_name.get(name) if isinstance(name, str) else None

    # ------------------------------------------------------------ received bitmaps

    def _bitmap(self, start: int, arguments: Arguments) -> Generator[Event | None, None, Finding | None]:
        """The received bitmap, which stands outside the message's length; a finding if it has a wrong one."""
        queue, memory = self.queue, self.context.memory
        arguments["bitmap"] = length = yield from queue.u64()
        if length > MAX_RECV_BITMAP:
            raise StreamProblem("length", what="a received bitmap", length=length, limit=MAX_RECV_BITMAP)
        block = self._known(arguments["block"])
        expected = None if block is None else (block.page_count + 63) // 64 * 8
        finding = None
        if block is not None and length == expected:
            memory.count_all()
            received = page = 0
            while page < length * 8:
                if not (some := queue.take_some(min(PIECE, length - page // 8))):
                    queue.check_hole()
                    yield None
                bits = np.unpackbits(np.frombuffer(some, np.uint8), bitorder="little")
                received += memory.received(block, page, bits)
                page += len(bits)
            arguments["received"], arguments["pages"] = received, block.page_count
        else:
            yield from queue.contents(length)
            if expected is not None:
                finding = self._finding(
                    "recv-bitmap-size", start, name=arguments["block"], length=length, expected=expected
                )
        end = yield from queue.u64()
        if end != RECV_BITMAP_END:
            raise StreamProblem("recv-bitmap-end", found=end)
        return finding

    def _finding(self, code: str, at: int, **details: object) -> Finding:
        return problem_finding(
            StreamProblem(code, **details),
            channel=self.channel,
            direction="rev",
            offset=at,
            size=self.queue.at - at,
        )
