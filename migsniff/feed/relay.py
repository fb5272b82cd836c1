"""The relay: accepts connections, dials the destination for each, and passes on every byte and every end.

What a connection does is in `connection`. The relay prints nothing: what people should know it hands to
`report`, a sentence at a time.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from typing import Final

from migsniff.core.arrivals import Party
from migsniff.core.errors import UsageError
from migsniff.feed import sockets
from migsniff.feed.connection import Connection, Tap
from migsniff.feed.endpoints import (
    Endpoint,
    Listener,
    Network,
    SocketAddress,
    admitted,
    listen,
    same_path,
    shown,
)
from migsniff.feed.forwarding import Buffers, LegName
from migsniff.feed.sockets import Keepalive

__all__ = ["Keepalive", "LegName", "Relay", "Tap"]

# What a core's second-level cache holds beside what else is done: with 8 multifd channels a buffer of 1 MiB
# took a quarter more CPU time for a byte; smaller ones cost more calls than they save.
BUFFER_SIZE: Final = 3 << 18
DIAL_TIMEOUT: Final = 10.0  # seconds
SAMPLE_INTERVAL: Final = 1.0  # seconds between two TCP_INFO
ACCEPTS: Final = 64  # connections accepted in one turn of the loop
ACCEPT_RETRY: Final = 0.25  # seconds without accepting when descriptors or memory have run out
FIRST_BYTE: Final = 0.1  # seconds a source without a destination has to show that it is one, with a byte
REFUSALS_KEPT: Final = 1000

MakeTap = Callable[[str, str], Tap | None]
"""Called at accept, in accept order, with the source's and the destination's address; None: no tap."""


class Relay:
    """Forwards each connection to `listen` to `forward`, in an event loop's thread.

    `allow`: networks from which connections are admitted, all if there are none; unix sockets are not asked.
    `buffer_size`: the most that is read at once, in bytes, and the memory that a direction whose receiver is
    slow holds. `dial_timeout`: seconds for a destination to answer; connections accepted meanwhile wait, so
    that the destination sees them in the order in which the source made them. `drain`: seconds for which a
    source is read on when its destination has gone, if the tap has a use for it.
    """

    def __init__(
        self,
        listen: Endpoint,
        forward: Endpoint,
        make_tap: MakeTap,
        *,
        allow: Iterable[Network] = (),
        report: Callable[[str], None] = lambda message: None,
        buffer_size: int = BUFFER_SIZE,
        dial_timeout: float = DIAL_TIMEOUT,
        keepalive: Keepalive | None = None,
        sample_interval: float = SAMPLE_INTERVAL,
        drain: float = 0,
    ) -> None:
        self._listen = listen
        self._forward = forward
        self._make_tap = make_tap
        self._allow = tuple(allow)
        self._report = report
        self._dial_timeout = dial_timeout
        self._keepalive = keepalive or Keepalive()
        self._sample_interval = sample_interval
        self._drain = drain
        self._buffers = Buffers(buffer_size)
        self._listeners: list[Listener] = []
        self._accepting = False
        self._exhausted = False
        self._accept_retry: asyncio.TimerHandle | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._expected: Callable[[], bool] | None = None
        # in accept order; each with the local address from which its destination was dialled
        # with the two addresses of the connection to the destination, once there is one
        self._connections: dict[Connection, tuple[str, str] | None] = {}
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._dialling = asyncio.Lock()
        self._refused: set[str] = set()
        self._last_failure = ""

    # ------------------------------------------------------------ from outside

    async def start(self) -> None:
        """Begin to listen; UsageError if that is not possible."""
        self._loop = asyncio.get_running_loop()
        if same_path(self._listen, self._forward):
            raise UsageError(f"{self._listen} would be forwarded to itself")
        self._listeners = await listen(self._listen)
        self._watch = sockets.ErrorWatch(self._loop)
        self._set_accepting(True)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, for people; `*` stands for all addresses, IPv4 and IPv6."""
        return tuple(str(listener.endpoint) for listener in self._listeners)

    @property
    def port(self) -> int:
        """The TCP port on which it listens; 0 for a unix socket."""
        return self._listeners[0].endpoint.port

    @property
    def active(self) -> int:
        """Connections that have carried a byte and have not ended."""
        return sum(connection.opened for connection in self._connections)

    @property
    def connections(self) -> int:
        """All connections, also those that are silent so far or still being dialled."""
        return len(self._connections)

    def stop_accepting(self, expected: Callable[[], bool] | None = None) -> None:
        """Admit only connections that a running migration may still need, and none when nothing is active.

        `expected` says whether it may; without it, every connection is admitted while another one is active
        (a preempt channel). One that knows of a paused postcopy migration says so also while none is.
        """
        self._expected = expected or (lambda: self.active > 0)
        self._stop_listening_when_done()

    def abort(self) -> None:
        """Reset all connections now. Those that come later are still served."""
        for connection in list(self._connections):
            connection.finish("closed", "proxy", None)

    async def close(self) -> None:
        """Stop listening, reset what is still connected, and let go of everything."""
        self._stop_listening()
        tasks = list(self._tasks.values())
        self.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch.close()

    # ------------------------------------------------------------ accepting

    def _set_accepting(self, accepting: bool) -> None:
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for listener in self._listeners:
            if accepting:
                self._loop.add_reader(listener.sock.fileno(), self._accept, listener)
            else:
                self._loop.remove_reader(listener.sock.fileno())

    def _stop_listening(self) -> None:
        self._set_accepting(False)
        if self._accept_retry is not None:
            self._accept_retry.cancel()
            self._accept_retry = None
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _stop_listening_when_done(self) -> None:
        if self._expected is not None and not self.active and not self._expected():
            self._stop_listening()

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS):
            if not self._accepting:
                return
            try:
                sock, address = listener.sock.accept()
            except (BlockingIOError, InterruptedError):
                self._exhausted = False
                return
            except OSError as error:
                if error.errno in sockets.EXHAUSTED:
                    self._accept_later(error)
                    return
                continue  # an error of the connection that was to be accepted (accept(2)): it is gone
            self._accepted(sock, address or str(listener.endpoint.path))

    def _accept_later(self, error: OSError) -> None:
        """Descriptors or memory have run out; the backlog stays readable, and the loop would spin."""
        if not self._exhausted:
            self._report(f"cannot accept connections for now: {error.strerror}")
        self._exhausted = True
        self._set_accepting(False)
        self._accept_retry = self._loop.call_later(ACCEPT_RETRY, self._accept_again)

    def _accept_again(self) -> None:
        if self._accept_retry is not None:
            self._accept_retry.cancel()
            self._accept_retry = None
            self._set_accepting(True)

    def _accepted(self, sock: socket.socket, address: SocketAddress) -> None:
        source = shown(address)
        if not admitted(address, self._allow):
            self._refuse(sock, source.rpartition(":")[0], "is not in an allowed network")
            return
        if self._expected is not None and not self._expected():
            self._refuse(sock, source, "comes while migsniff is ending, and belongs to no migration")
            return
        try:
            sockets.tune(sock, self._keepalive)
            ends = source, shown(sock.getsockname())
            tap = self._new_tap(source)
        except OSError:  # it is gone already
            sock.close()
            return
        connection = Connection(
            self._loop,
            self._buffers,
            self._watch,
            sock,
            tap,
            drain=self._drain,
            on_opened=self._opened,
            on_closed=self._closed,
            on_tap_failed=self._tap_failed,
        )
        self._connections[connection] = None
        self._tasks[connection] = task = self._loop.create_task(self._serve(connection, ends))
        task.add_done_callback(lambda _: self._tasks.pop(connection))

    def _refuse(self, sock: socket.socket, who: str, why: str) -> None:
        sockets.reset(sock)
        if who not in self._refused and len(self._refused) < REFUSALS_KEPT:
            self._refused.add(who)
            self._report(f"connection refused: {who} {why}")

    # ------------------------------------------------------------ dialling

    async def _serve(self, connection: Connection, ends: tuple[str, str]) -> None:
        try:
            async with self._dialling:
                if ends in self._connections.values():  # one of ours, seen from the other side
                    raise OSError(errno.ELOOP, "that is migsniff itself")
                destination = await sockets.dial(self._forward, self._dial_timeout)
        except OSError as error:
            await self._no_destination(connection, error)
            return
        self._last_failure = ""
        try:
            sockets.tune(destination, self._keepalive)
            self._connections[connection] = (
                shown(destination.getsockname()),
                shown(destination.getpeername()),
            )
        except OSError as error:  # reset as soon as it was made
            destination.close()
            await self._no_destination(connection, error)
            return
        connection.join(destination)

    async def _no_destination(self, connection: Connection, error: OSError) -> None:
        has_sent = await connection.first_byte(FIRST_BYTE)
        name = sockets.error_name(error)
        by: Party = "destination" if name in ("ECONNREFUSED", "ECONNRESET") else "proxy"
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        reason = f"cannot connect to {self._forward}: {why}"
        # a health check that finds no destination every two seconds is worth one line
        if has_sent or reason != self._last_failure:
            self._report(f"{reason}; the source's connection is closed")
            self._last_failure = reason
        connection.refuse(by, name)

    # ------------------------------------------------------------ taps and their connections

    def _new_tap(self, source: str) -> Tap | None:
        try:
            return self._make_tap(source, str(self._forward))
        except Exception as error:  # the forwarding goes on without
            self._tap_failed(error)
            return None

    def _tap_failed(self, error: Exception) -> None:
        self._report(
            f"migsniff's own reader of a connection failed ({type(error).__name__}: {error}): a bug, please "
            "report it; the forwarding is not touched"
        )

    def _opened(self) -> None:
        if self._sampling is None:
            self._sampling = self._loop.call_later(self._sample_interval, self._sample)

    def _sample(self) -> None:
        self._sampling = self._loop.call_later(self._sample_interval, self._sample)
        for connection in list(self._connections):
            connection.sample()

    def _closed(self, connection: Connection) -> None:
        del self._connections[connection]
        task = self._tasks.get(connection)
        if task is not None and task is not asyncio.current_task():
            task.cancel()  # nobody is left to dial for
        self._accept_again()
        if not self.active:
            if self._sampling is not None:
                self._sampling.cancel()
                self._sampling = None
            self._stop_listening_when_done()
        if not self._connections:
            self._buffers.clear()
