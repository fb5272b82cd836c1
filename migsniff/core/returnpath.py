"""The return path: what the destination says on the reverse direction of a main channel.

Format: migration/migration.c, QEMU 5.2 to 11.1.
"""

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.errors import StreamProblem
from migsniff.core.events import ReturnPathMessage
from migsniff.core.messages import RETURN_PATH
from migsniff.core.wire import MAX_RECV_BITMAP, MAX_RETURN_PATH_MESSAGE, RECV_BITMAP_END, ReturnPathType


class ReturnPathReader:
    """Parses the messages; `shut` is the value of the last one, None before it came."""

    def __init__(self, channel: str, queue: ByteQueue) -> None:
        self.channel = channel
        self.queue = queue
        self.where = "between messages"
        self.shut: int | None = None

    def run(self) -> Steps:
        """Messages without end."""
        queue = self.queue
        while True:
            self.where = "between messages"
            start = queue.mark = queue.at
            yield from queue.wait(4)
            number = yield from queue.u16()
            length = yield from queue.u16()
            entry = RETURN_PATH.get(number)
            if entry is None:
                raise StreamProblem("return-path-type", found=number)
            self.where = f"message {entry.name}"
            if not entry.least <= length <= min(entry.most, MAX_RETURN_PATH_MESSAGE):
                raise StreamProblem(
                    "return-path-length", name=entry.name, length=length, expected=entry.least
                )
            arguments = entry.arguments((yield from queue.take(length)))
            if number == ReturnPathType.RECV_BITMAP:
                arguments["bitmap"] = bitmap = yield from queue.u64()
                yield from self._bitmap(bitmap)
            if number == ReturnPathType.SHUT and isinstance(arguments["value"], int):
                self.shut = arguments["value"]
            yield ReturnPathMessage(
                channel=self.channel,
                direction="rev",
                offset=start,
                size=queue.at - start,
                message=number,
                name=entry.name,
                arguments=arguments,
            )

    def _bitmap(self, length: int) -> Steps:
        """The received bitmap, which stands outside the message's length."""
        if length > MAX_RECV_BITMAP:
            raise StreamProblem("length", what="a received bitmap", length=length, limit=MAX_RECV_BITMAP)
        yield from self.queue.contents(length)
        end = yield from self.queue.u64()
        if end != RECV_BITMAP_END:
            raise StreamProblem("recv-bitmap-end", found=end)
