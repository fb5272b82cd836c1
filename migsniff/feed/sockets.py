"""What the relay asks of the kernel: socket options, resets, pending errors, TCP_INFO. Linux only."""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from migsniff.core.arrivals import EndKind
from migsniff.feed.endpoints import Endpoint, SocketAddress, resolve

# linux/tcp.h, asm-generic/socket.h, linux/socket.h; Python 3.11 does not have them on Linux
TCP_NOTSENT_LOWAT: Final = 25
SO_BUF_LOCK: Final = 72
SOCK_RCVBUF_LOCK: Final = 2

# What may wait unsent in a leg's send buffer, where it would delay what comes behind it (postcopy's pages)
# and let a source without a return path believe that it is done: 1 MB waited there in front of a slow
# receiver with this limit, 4 MB without. What is in flight does not count, so a long line is not slowed down,
# as it would be by a fixed SO_SNDBUF or SO_RCVBUF, which also end the kernel's tuning: at a round trip of
# 10 ms the relay moved as much as no relay at all (260 MB/s); with half this limit sometimes a tenth less.
UNSENT_LIMIT: Final = 512 << 10

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept() and socket() that pass when something else is closed."""
RETRY: Final = 0.1
"""Seconds between two tries of what has no event to wait for."""

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_GAVE_UP: Final = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
_RESETS: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ECONNABORTED})


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When the kernel asks a silent peer whether it is still there, in seconds, and how often in vain.

    A peer whose host has vanished is noticed after idle + interval * count. There is no TCP_USER_TIMEOUT: it
    cuts a live peer that merely does not read.
    """

    idle: int = 60
    interval: int = 15
    count: int = 8


def tune(sock: socket.socket, keepalive: Keepalive) -> None:
    """Make a connected socket non-blocking and set what the relay wants of it."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_LIMIT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)


def hold_receive_buffer(sock: socket.socket, hold: bool) -> None:
    """Whether the kernel has to leave a socket's receive buffer as large as it is; none before Linux 5.15.

    Left alone it takes a slow reader for a long way to the sender, and lets up to net.ipv4.tcp_rmem wait.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, SOCK_RCVBUF_LOCK if hold else 0)


def reset(sock: socket.socket) -> None:
    """Close with a reset. A unix socket has none: its peer gets EPIPE, or ECONNRESET if bytes stay unread."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    sock.close()


def pending_error(sock: socket.socket) -> int:
    """The errno that waits on a socket, or 0. Asking clears it: who asks must act on it."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def has_unread(sock: socket.socket) -> bool:
    """Whether received bytes wait to be read."""
    return _asked(sock, termios.FIONREAD) > 0


def unacknowledged(sock: socket.socket) -> int:
    """Bytes in the send buffer that the peer's kernel has not confirmed; an end of file counts as one."""
    return _asked(sock, termios.TIOCOUTQ)


def _asked(sock: socket.socket, question: int) -> int:
    (answer,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), question, bytes(4)))
    return int(answer)


def discard_unread(sock: socket.socket) -> None:
    """Read and forget what a socket has received so far."""
    scrap = bytearray(64 << 10)
    left = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    while left > 0:
        try:
            size = sock.recv_into(scrap)
        except OSError:
            return
        left = left - size if size else 0


def end_kind(number: int) -> EndKind:
    """How a connection ended, from the errno of a system call on it."""
    if number in _RESETS:
        return "reset"
    return "timeout" if number in _GAVE_UP else "error"


def error_name(error: OSError) -> str:
    """ECONNREFUSED, EAI_NONAME ... of an error."""
    if isinstance(error, socket.gaierror):
        names = {getattr(socket, name): name for name in dir(socket) if name.startswith("EAI_")}
        return names.get(error.errno, "EAI_FAIL")
    number = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
    return errno.errorcode.get(number, type(error).__name__)


# ---------------------------------------------------------------- errors while nobody reads


class ErrorWatch:
    """Tells at once of a socket that has failed, also one from which nothing is being read.

    An event loop sees errors only of sockets that it reads or writes; one whose bytes have to wait is
    neither. epoll reports errors whatever else was asked for, and an epoll can itself be read in any loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Call back when the socket fails or is hung up; it may have no error then."""
        self._callbacks[sock.fileno()] = callback
        self._epoll.register(sock.fileno(), select.EPOLLET)

    def remove(self, sock: socket.socket) -> None:
        """Before the socket is closed."""
        del self._callbacks[sock.fileno()]
        self._epoll.unregister(sock.fileno())

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            # one callback may have closed the socket of the next
            if callback := self._callbacks.get(descriptor):
                callback()


# ---------------------------------------------------------------- dialling


async def dial(endpoint: Endpoint, seconds: float) -> socket.socket:
    """A socket connected to the first address of an endpoint that answers; OSError of the last one if none.

    The time is shared between the addresses, so that a silent one does not use up that of the next.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with asyncio.timeout_at(deadline):
        found = await resolve(endpoint)
    failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "no address")
    for position, (family, address) in enumerate(found):
        share = (deadline - loop.time()) / (len(found) - position)
        try:
            async with asyncio.timeout(share):
                return await _connected(family, address)
        except OSError as error:
            failure = error
    raise failure


async def _connected(family: socket.AddressFamily, address: SocketAddress) -> socket.socket:
    sock = await _new_socket(family)
    try:
        sock.setblocking(False)
        while True:
            number = sock.connect_ex(address)
            if number != errno.EAGAIN:
                break
            await asyncio.sleep(RETRY)  # a unix socket whose queue is full: nothing tells when it is not
        if number in (errno.EINPROGRESS, errno.EINTR):
            await writable(sock)
            number = pending_error(sock)
        if not number and family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
            number = errno.ECONNREFUSED  # nobody listens, and the kernel picked the very port we dial
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        reset(sock)  # it may have been accepted just now, by the time that the source had gone with a reset
        raise
    return sock


async def _new_socket(family: socket.AddressFamily) -> socket.socket:
    while True:
        try:
            return socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
        await asyncio.sleep(RETRY)


async def writable(sock: socket.socket) -> None:
    """Return when a socket that nothing else waits for can be written, or has failed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock.fileno())


async def readable(sock: socket.socket) -> None:
    """Return when a socket that nothing else waits for can be read, or has failed."""
    loop = asyncio.get_running_loop()
    descriptor, ready = sock.fileno(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        if sock.fileno() == descriptor:  # not closed meanwhile, and the number given to another
            loop.remove_reader(descriptor)


# ---------------------------------------------------------------- TCP_INFO

TCP_STATES: Final = (
    "UNKNOWN",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)

# struct tcp_info (linux/tcp.h): name without tcpi_, offset, format. Times are microseconds but for the last_
# ones and rto's kin as noted there; an older kernel's struct is shorter, and ends before some of these.
_TCP_INFO: Final = (
    ("ca_state", 1, "B"),
    ("probes", 3, "B"),
    ("backoff", 4, "B"),
    ("rto", 8, "I"),
    ("snd_mss", 16, "I"),
    ("rcv_mss", 20, "I"),
    ("unacked", 24, "I"),
    ("lost", 32, "I"),
    ("retrans", 36, "I"),
    ("last_data_sent", 44, "I"),
    ("last_data_recv", 52, "I"),
    ("last_ack_recv", 56, "I"),
    ("pmtu", 60, "I"),
    ("rtt", 68, "I"),
    ("rttvar", 72, "I"),
    ("snd_ssthresh", 76, "I"),
    ("snd_cwnd", 80, "I"),
    ("reordering", 88, "I"),
    ("rcv_rtt", 92, "I"),
    ("rcv_space", 96, "I"),
    ("total_retrans", 100, "I"),
    ("pacing_rate", 104, "Q"),
    ("bytes_acked", 120, "Q"),
    ("bytes_received", 128, "Q"),
    ("segs_out", 136, "I"),
    ("segs_in", 140, "I"),
    ("notsent_bytes", 144, "I"),
    ("min_rtt", 148, "I"),
    ("delivery_rate", 160, "Q"),
    ("busy_time", 168, "Q"),
    ("rwnd_limited", 176, "Q"),
    ("sndbuf_limited", 184, "Q"),
    ("bytes_sent", 200, "Q"),
    ("bytes_retrans", 208, "Q"),
    ("snd_wnd", 228, "I"),
)
_TCP_INFO_FIELDS: Final = tuple((name, struct.Struct(f"={kind}"), at) for name, at, kind in _TCP_INFO)


def tcp_info(sock: socket.socket) -> dict[str, object]:
    """What the kernel says of a TCP connection; nothing for a unix socket.

    rtt, rttvar, min_rtt, rcv_rtt, rto, busy_time, rwnd_limited and sndbuf_limited in microseconds, the last_
    ones in milliseconds, rates in bytes a second; snd_cwnd, unacked, lost and the retrans in segments.
    """
    if sock.family == socket.AF_UNIX:
        return {}
    return decode_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))


def decode_tcp_info(raw: bytes) -> dict[str, object]:
    """The fields of a struct tcp_info, as many as it holds."""
    state = raw[0] if raw else 0
    facts: dict[str, object] = {"state": TCP_STATES[state] if state < len(TCP_STATES) else str(state)}
    for name, field, at in _TCP_INFO_FIELDS:
        if at + field.size > len(raw):
            break
        (facts[name],) = field.unpack_from(raw, at)
    return facts
