"""One direction of a connection: from one socket to the other. The forward hot loop.

Plain non-blocking sockets and the loop's add_reader and add_writer, which are the same on asyncio and uvloop:
what arrives is sent on at once, out of the buffer it was received into, and only then shown to the tap. Each
error is the errno of a system call, and the relay knows on which of the two sockets.

Measured on loopback: splice() through a pipe, which copies nothing, is no faster than this (most of the time
is the kernel's TCP, not the copy), and slower with the peek that a tap needs; smaller buffers cost more
wakeups than their better use of the cache saves.
"""

import asyncio
import errno
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Literal

from migsniff.core.arrivals import Direction
from migsniff.feed import sockets

if TYPE_CHECKING:
    from migsniff.feed.connection import Connection

LegName = Literal["source", "destination"]

# Reads in a row that went on whole until the receiver no longer counts as slow. While it does, the kernel is
# to take no more ahead of it than it does already: with a destination that took 400 MB/s, 5 to 20 MB waited
# in the receive buffer without this, mostly 2 to 5 MB with it.
HELD_READS: Final = 16
# Less room than this in the buffer is not worth another read; and after a read that brought less there is
# hardly more to come.
ROOM: Final = 64 << 10
# Buffers that are kept for the next direction whose receiver is slow: a new one costs the kernel a page fault
# for every 4 KiB. As many as a migration with 16 multifd channels has use for.
SPARE_BUFFERS: Final = 16
# Seconds that a receiver may take for the rest of a buffer until that counts as a pause.
PATIENCE: Final = 0.01


class Buffers:
    """Receive buffers. A direction holds one only while it reads, or while the receiver is slow."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """The one used last, which is warm in the cache, or a new one."""
        return self._free.pop() if self._free else memoryview(bytearray(self._size))

    def give(self, buffer: memoryview) -> None:
        """Back, when nothing refers to its contents any more."""
        if len(self._free) < SPARE_BUFFERS:
            self._free.append(buffer)

    def clear(self) -> None:
        """Free what is not in use."""
        self._free.clear()


class Leg:
    """The socket towards one party."""

    __slots__ = ("descriptor", "party", "sock")

    def __init__(self, party: LegName, sock: socket.socket) -> None:
        self.party = party
        self.sock = sock
        self.descriptor = sock.fileno()


class Flow:
    """One direction: from one leg to the other."""

    def __init__(self, connection: "Connection", direction: Direction, from_: Leg, to: Leg) -> None:
        self.ended = False
        self.complete = False  # up to the end of file, which was passed on
        self.held = False  # it has come to its end of file, which is not passed on yet
        self.direction = direction
        self.from_ = from_
        self.to = to
        self._connection = connection
        self._loop = connection.loop
        self._buffers = connection.buffers
        self._buffer: memoryview | None = None
        # The buffer up to `_received` waits for a slow receiver: up to `_sent` it went on, and up to `_shown`
        # the tap has seen it.
        self._received = self._sent = self._shown = 0
        self._patience: asyncio.TimerHandle | None = None
        self._waiting_since = 0
        self._paused = False
        self.waited = 0
        self._held_reads = 0  # so many more without a pause, and the receive buffer may grow again
        self._loop.add_reader(from_.descriptor, self.read)

    def read(self) -> bool:
        """Move what has arrived, one buffer at most; True if bytes moved and none has to wait.

        A fast sender has sent more by the time that the first bytes have gone on. That goes on as well before
        the tap is shown all of it at once, for each look costs it something.
        """
        buffer = self._buffers.take()
        received = sent = 0
        failure = None
        while True:
            leg = self.from_
            try:
                size = leg.sock.recv_into(buffer[received:])
                if not size:
                    break
                received += size
                leg = self.to
                sent += leg.sock.send(buffer[sent:received])
            except (BlockingIOError, InterruptedError):
                size = ROOM
                break
            except OSError as error:
                failure = leg, error.errno or 0
                break
            if sent < received or size < ROOM or received > len(buffer) - ROOM:
                break
        if failure is None and sent < received:
            self._wait(buffer, sent, received)
            return False
        if sent:
            self._connection.data(self.direction, buffer[:sent])
        if sent < received:  # the receiver has failed: perhaps the tap is to have the rest
            self._buffer, self._received, self._sent, self._shown = buffer, received, sent, sent
        else:
            self._buffers.give(buffer)
        if failure is not None:
            self._connection.fail(*failure)
        elif not size:
            self._end_of_file()
        elif self._held_reads and sent:
            self._held_reads -= 1
            if not self._held_reads:
                sockets.hold_receive_buffer(self.from_.sock, False)
        return sent > 0 and not self.ended

    def _wait(self, buffer: memoryview, sent: int, received: int) -> None:
        """Read no more before the receiver has taken the rest, which mostly is a matter of microseconds."""
        self._buffer, self._received, self._sent, self._shown = buffer, received, sent, 0
        self._waiting_since = monotonic_ns()
        self._loop.remove_reader(self.from_.descriptor)
        self._loop.add_writer(self.to.descriptor, self._write)
        self._patience = self._loop.call_later(PATIENCE, self._pause)
        if not self._held_reads:
            sockets.hold_receive_buffer(self.from_.sock, True)
        self._held_reads = HELD_READS

    def _pause(self) -> None:
        self.show()
        self._paused = True
        self._connection.tell("paused", self.direction, True)

    def _write(self) -> None:
        """The receiver takes bytes again."""
        if not self._send_rest() or self.ended:
            return
        self._loop.remove_writer(self.to.descriptor)
        self._loop.add_reader(self.from_.descriptor, self.read)
        if self._paused:
            self._paused = False
            self._connection.tell("paused", self.direction, False)

    def _send_rest(self) -> bool:
        """Send on what the receiver takes of what waits; True if that was all."""
        assert self._buffer is not None
        try:
            self._sent += self.to.sock.send(self._buffer[self._sent : self._received])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._connection.fail(self.to, error.errno or 0)
            return False
        if self._sent < self._received:
            if self._paused:
                self.show()
            return False
        self.show()
        self._waited()
        if self._buffer is not None:
            self._buffers.give(self._buffer)
            self._buffer = None
        return True

    def _waited(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self.waited += (monotonic_ns() - self._waiting_since) // 1000

    def show(self) -> None:
        """Show to the tap what of a waiting buffer went on since it looked last."""
        if self._buffer is not None and self._sent > self._shown:
            view = self._buffer[self._shown : self._sent]
            self._shown = self._sent
            self._connection.data(self.direction, view)

    def drain(self) -> None:
        """Send on what the kernel still holds from a leg that has failed, as far as the other side takes it.

        That is where a destination's last message stands: the reason why it gave up.
        """
        if self._buffer is not None:
            self._send_rest()
        while not self.ended and self._buffer is None and self.read():
            pass

    def _end_of_file(self) -> None:
        failing = self._connection.failing
        # Behind a reset, an end of file is none: the error was delivered before, to whoever asked first.
        # EPIPE is the exception: the kernel says it of a reset that came after a real end of file.
        error = failing or sockets.pending_error(self.from_.sock)
        if error and error != errno.EPIPE:
            self._connection.fail(self.from_, error)
            return
        self._loop.remove_reader(self.from_.descriptor)
        self.held = True
        self._connection.ended_by_itself(self, error)

    def pass_on_end(self, error: int) -> None:
        """Tell the receiver of the end of file; `error` is what came behind it on the sender's socket."""
        failing = self._connection.failing
        self.held = False
        try:
            self.to.sock.shutdown(socket.SHUT_WR)
        except OSError as gone:
            self._connection.fail(self.to, sockets.pending_error(self.to.sock) or gone.errno or 0)
            return
        self.complete = True
        self._connection.end(self, "eof", self.from_.party, None)
        if error and not failing:
            self._connection.fail(self.from_, error)

    # ------------------------------------------------------------ when the receiver has gone

    def hold(self) -> None:
        """Neither read nor send."""
        self._waited()
        self._loop.remove_reader(self.from_.descriptor)
        self._loop.remove_writer(self.to.descriptor)

    def give_up_sending(self) -> memoryview:
        """Hold, and hand out what the receiver did not take any more."""
        self.hold()
        self.show()
        if self._paused:
            self._paused = False
            self._connection.tell("paused", self.direction, False)
        if self._held_reads:
            self._held_reads = 0
            sockets.hold_receive_buffer(self.from_.sock, False)
        buffer, self._buffer = self._buffer, None
        return memoryview(b"") if buffer is None else buffer[self._sent : self._received]

    def close(self) -> None:
        """Let go of the buffer."""
        self._waited()
        self._buffer = None
