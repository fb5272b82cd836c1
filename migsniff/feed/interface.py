"""Packets from a network interface, as they pass: a packet socket of Linux, which sends nothing."""

import ctypes
import errno
import socket
import time
from collections.abc import Iterator
from struct import Struct
from typing import Final

from migsniff.core.errors import UsageError
from migsniff.feed.packets import RAW_LINKS
from migsniff.feed.pcapfile import Packet

ALL: Final = 0x0003  # ETH_P_ALL
OUTGOING: Final = 4  # PACKET_OUTGOING
SOL_PACKET, STATISTICS = 263, 6
TIMESTAMPS, RECEIVE_BUFFER_FORCE, ATTACH_FILTER = (
    35,
    33,
    26,
)  # SO_TIMESTAMPNS, SO_RCVBUFFORCE, SO_ATTACH_FILTER
BUFFER: Final = 64 << 20  # what the kernel holds while we are busy
LARGEST: Final = 1 << 20
_TIME = Struct("qq")
# In the kernel: IPv4 with TCP, IPv6 with anything but UDP and ICMP; (code, jump if so, jump if not, value).
FILTER: Final = (
    (0x30, 0, 0, 0),  # the first byte: the version
    (0x54, 0, 0, 0xF0),
    (0x15, 0, 2, 0x40),
    (0x30, 0, 0, 9),  # IPv4's protocol
    (0x15, 4, 5, 6),
    (0x15, 0, 4, 0x60),
    (0x30, 0, 0, 6),  # IPv6's next header
    (0x15, 2, 0, 17),
    (0x15, 1, 0, 58),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)


class Interface:
    """The TCP packets of an interface, or of all with the name "any". Raises UsageError."""

    def __init__(self, name: str) -> None:
        self.dropped = 0
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except PermissionError:
            raise UsageError(
                "sniffing needs the capability CAP_NET_RAW: run it as root, or give it to Python with setcap"
            ) from None
        try:
            self._prepare(name)
        except OSError as error:
            self._socket.close()
            reason = "no such interface" if error.errno == errno.ENODEV else error.strerror or str(error)
            raise UsageError(f"{name}: {reason}") from None
        self._loops = name in ("lo", "any")
        self._buffer = bytearray(LARGEST)

    def _prepare(self, name: str) -> None:
        found = self._socket
        program = b"".join(Struct("HBBI").pack(*step) for step in FILTER)
        kept = ctypes.create_string_buffer(program)
        found.setsockopt(
            socket.SOL_SOCKET, ATTACH_FILTER, Struct("HP").pack(len(FILTER), ctypes.addressof(kept))
        )
        try:
            found.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, BUFFER)
        except PermissionError:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        found.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
        found.bind(("" if name == "any" else name, ALL))
        found.setblocking(False)

    def fileno(self) -> int:
        """To wait for packets."""
        return self._socket.fileno()

    def packets(self, most: int) -> Iterator[Packet]:
        """Up to `most` packets that have come, without waiting."""
        for _ in range(most):
            try:
                size, extra, _, address = self._socket.recvmsg_into([self._buffer], 64)
            except BlockingIOError:
                return
            except OSError as error:  # the interface went down: it may come back
                if error.errno != errno.ENETDOWN:
                    raise
                return
            if self._loops and address[2] == OUTGOING and address[0] == "lo":
                continue  # what leaves there comes in again
            taken = time.time_ns()
            for level, kind, value in extra:
                if level == socket.SOL_SOCKET and kind == TIMESTAMPS and len(value) == _TIME.size:
                    seconds, part = _TIME.unpack(value)
                    taken = seconds * 1_000_000_000 + part
            yield taken, bytes(memoryview(self._buffer)[:size]), 0, size, size, RAW_LINKS[0]

    def drops(self) -> int:
        """Packets that the kernel had no room for, since the last call."""
        _, dropped = Struct("II").unpack(self._socket.getsockopt(SOL_PACKET, STATISTICS, 8))
        self.dropped += dropped
        return int(dropped)

    def close(self) -> None:
        """Give the interface back."""
        self._socket.close()
