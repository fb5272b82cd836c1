"""What a connection does if wanted when its destination has gone: the source is read on, for the tap alone.

This is the one exception to closing at once. A destination that fails to load a device has gone long before
its source has sent that device whole, and the description that tells what is in it.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from migsniff.core.arrivals import EndKind, Party
from migsniff.feed import sockets

if TYPE_CHECKING:
    from migsniff.feed.connection import Connection

End = tuple[EndKind, Party, str | None]
"""How a direction ended, who ended it, the name of the errno."""

ANSWER: Final = 1.0  # seconds for the tap to say whether it is to be: until then nobody is told of the end
LAG: Final = 0.01  # seconds for a tap that has enough to do


class Drain:
    """Reads a source on for `seconds`, 0 for not at all, if the tap says that this is of use."""

    def __init__(self, connection: "Connection", seconds: float) -> None:
        self.began = False
        self._connection = connection
        self._seconds = seconds
        self._gone: End = ("closed", "proxy", None)  # what the destination did
        self._otherwise: list[Callable[[], None]] = []  # what there is to do if it is not to be
        self._timer: asyncio.TimerHandle | None = None
        self._lagging: asyncio.TimerHandle | None = None
        self._failure = 0  # what became of the source

    def ask(self, end: End, otherwise: Callable[[], None]) -> bool:
        """The destination has gone. False: go on as ever; True: `otherwise` will do so if need be."""
        if self._otherwise:
            self._otherwise.append(otherwise)
            return True
        if not self._seconds or self.began:
            return False
        self._connection.show()  # the tap answers by what went on, also in the last hundredth of a second
        if self._connection.forward is None:
            return False
        self._gone = end
        self._otherwise.append(otherwise)
        self._timer = self._connection.loop.call_later(ANSWER, self._answered, False)
        self._connection.tell("may_drain", end[0], self.answer)
        return True

    def answer(self, may: bool) -> None:
        """What the tap says; it may be in the middle of something, and so may the connection."""
        if self._otherwise or self.began:
            self._connection.loop.call_soon(self._answered, may)

    def _answered(self, may: bool) -> None:
        if self._connection.closed:
            return
        if self._otherwise:
            otherwise, self._otherwise = self._otherwise, []
            self._cancel()
            if may and self._connection.forward is not None:
                self._begin()
            else:
                for close in otherwise:
                    close()
        elif self.began and not may:
            self._end()

    # ------------------------------------------------------------ it is to be

    def _begin(self) -> None:
        connection, flow = self._connection, self._connection.forward
        assert flow is not None
        self.began = True
        connection.end_backward(self._gone)
        rest = flow.give_up_sending()
        connection.tell("draining")
        if rest:
            connection.data("fwd", rest)
        self._timer = connection.loop.call_later(self._seconds, self._end)
        self._source = flow.from_
        self._listen()

    def _end(self) -> None:
        self._connection.finish("closed", "proxy", None)

    def _listen(self) -> None:
        self._connection.loop.add_reader(self._source.descriptor, self._ready)

    def _ready(self) -> None:
        if not self._connection.tap_lags:
            self._read()
            return
        # nobody but the tap holds the source back any more
        self._connection.loop.remove_reader(self._source.descriptor)
        self._lagging = self._connection.loop.call_later(LAG, self._listen)

    def _read(self) -> bool:
        """Show one buffer at most to the tap; whether there was something."""
        connection = self._connection
        buffer = connection.buffers.take()
        failure = None
        try:
            size = self._source.sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            size = -1
        except OSError as error:
            size, failure = 0, error.errno
        if size > 0:
            connection.data("fwd", buffer[:size])
        connection.buffers.give(buffer)
        if not size:
            self._source_ended(failure or self._failure or sockets.pending_error(self._source.sock))
        return size > 0

    def _source_ended(self, number: int) -> None:
        if number and number != errno.EPIPE:  # which came behind an end of file
            self._connection.finish(
                sockets.end_kind(number), "source", errno.errorcode.get(number, str(number))
            )
        else:
            self._connection.finish("eof", "source", None)

    def source_failed(self, number: int) -> None:
        """The source has gone as well: what the kernel still holds of it is all that there is to be had."""
        if self._connection.closed:
            return
        if not self.began:
            self._answered(False)
            return
        self._failure = number
        while not self._connection.closed and self._read():
            pass
        if not self._connection.closed:
            self._source_ended(number)

    # ------------------------------------------------------------ it is over

    def _cancel(self) -> None:
        for timer in (self._timer, self._lagging):
            if timer is not None:
                timer.cancel()
        self._timer = self._lagging = None

    def close(self) -> None:
        """The connection is closed."""
        self._cancel()
        self._otherwise = []
