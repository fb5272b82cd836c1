"""A relay with a destination behind it, and the peers that the tests of the relay play on both sides.

    async with Rig("tcp4") as rig:
        source, destination = await rig.connect()
        await source.send(b"a")
        assert await destination.receive(1) == b"a"

Peers are plain sockets in the test's own loop, so that every reset, pause and end is made on purpose.
"""

import asyncio
import hashlib
import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from migsniff.core.arrivals import Direction, EndKind, Party
from migsniff.feed.endpoints import Endpoint, SocketAddress, parse_endpoint
from migsniff.feed.relay import LegName, Relay, Tap

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))
"""Whether tests run at the full length that proxies are tested with: minutes, gigabytes."""


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


HAS_IPV6 = _has_ipv6()
TCP = (
    "tcp4",
    pytest.param("tcp6", marks=pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")),
)
TRANSPORTS = (*TCP, "unix")
SECONDS = 20
"""No single step of a test takes longer."""


class Peer:
    """One end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        async with asyncio.timeout(SECONDS):
            await self._loop.sock_sendall(self.sock, data)

    async def fill(self, data: bytes, still: float = 0.15) -> int:
        """Send as much as goes until nothing has gone for a while; returns how much that was."""
        sent, last = 0, time.monotonic()
        while sent < len(data) and time.monotonic() - last < still:
            try:
                sent += self.sock.send(memoryview(data)[sent:])
                last = time.monotonic()
            except BlockingIOError:
                pass
            await asyncio.sleep(0.002)
        return sent

    async def receive(self, size: int) -> bytes:
        """Exactly so many bytes, fewer only at the end of file."""
        received = bytearray()
        async with asyncio.timeout(SECONDS):
            while len(received) < size:
                data = await self._loop.sock_recv(self.sock, min(size - len(received), 1 << 20))
                if not data:
                    break
                received += data
        return bytes(received)

    async def digest(self) -> tuple[int, str]:
        """Length and SHA-256 of everything up to the end of file."""
        size, digest = 0, hashlib.sha256()
        buffer = memoryview(bytearray(1 << 20))
        async with asyncio.timeout(SECONDS * (10 if LONG else 1)):
            while count := await self._loop.sock_recv_into(self.sock, buffer):
                digest.update(buffer[:count])
                size += count
        return size, digest.hexdigest()

    def end(self) -> None:
        """Send no more, but still receive."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close in the orderly way."""
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset; TCP only."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def error(self) -> type[OSError] | None:
        """Read until the connection ends: the error it ended with, None for an end of file."""
        try:
            await self.digest()
        except (ConnectionResetError, BrokenPipeError) as error:
            return type(error)
        return None


class RecordingTap:
    """Keeps what it is told; `raises` names a method that fails."""

    def __init__(self, source: str, destination: str, raises: str = "") -> None:
        self.source = source
        self.destination = destination
        self.calls: list[str] = []
        self.size: dict[Direction, int] = {"fwd": 0, "rev": 0}
        self.largest = 0
        self.pauses: dict[tuple[Direction, bool], int] = {}
        self.infos: list[tuple[LegName, dict[str, object]]] = []
        self.ends: dict[Direction, tuple[EndKind, Party, str | None]] = {}
        self._digests = {"fwd": hashlib.sha256(), "rev": hashlib.sha256()}
        self.raises = raises
        self.drains: bool | None = True
        """The answer to whether to drain; None: it comes later, by `answer`."""
        self.lags = False

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what == self.raises:
            raise RuntimeError(f"on purpose in {what}")

    def opened(self) -> None:
        self._called("opened")

    def data(self, direction: Direction, view: memoryview) -> None:
        self._called("data")
        self.size[direction] += len(view)
        self.largest = max(self.largest, len(view))
        self._digests[direction].update(view)

    def paused(self, direction: Direction, paused: bool) -> None:
        self._called("paused")
        self.pauses[direction, paused] = self.pauses.get((direction, paused), 0) + 1

    def tcp_info(self, leg: LegName, facts: dict[str, object]) -> None:
        self._called("tcp_info")
        self.infos.append((leg, facts))

    def ended(self, direction: Direction, how: EndKind, by: Party, error: str | None) -> None:
        self._called("ended")
        assert direction not in self.ends, "a direction ends once"
        self.ends[direction] = how, by, error

    def may_drain(self, how: EndKind, answer: Callable[[bool], None]) -> None:
        self._called("may_drain")
        self.answer = answer
        if self.drains is not None:
            answer(self.drains)

    def draining(self) -> None:
        self._called("draining")
        self.sent_on = self.size["fwd"]

    def digest(self, direction: Direction) -> tuple[int, str]:
        """Length and SHA-256 of what went in a direction."""
        return self.size[direction], self._digests[direction].hexdigest()


class Rig:
    """A relay and the listening destination behind it, over one transport.

    `taps`, `reports`: what the relay made and said so far. `raises`: the tap's method that fails.
    """

    def __init__(self, transport: str = "tcp4", *, raises: str = "", **settings: Any) -> None:
        self.transport = transport
        self.taps: list[RecordingTap] = []
        self.reports: list[str] = []
        self._raises = raises
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory()
        self._peers: list[Peer] = []
        self.listening: socket.socket | None = None
        self.relay: Relay

    async def __aenter__(self) -> Self:
        self.listening = self._listening_socket()
        self.listening.setblocking(False)
        if "forward" not in self._settings:
            name = self.listening.getsockname()
            self._settings["forward"] = (
                Endpoint(path=name) if isinstance(name, str) else Endpoint(host=name[0], port=name[1])
            )
        self._settings.setdefault("listen", self._listen_endpoint())
        self.relay = Relay(
            self._settings.pop("listen"),
            self._settings.pop("forward"),
            self._settings.pop("make_tap", self.make_tap),
            report=self.reports.append,
            **self._settings,
        )
        await self.relay.start()
        self._port = self.relay.port
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.relay.close()
        for peer in self._peers:
            peer.close()
        if self.listening is not None:
            self.listening.close()
        self._folder.cleanup()

    def _listen_endpoint(self) -> Endpoint:
        where = {"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": f"unix:{self._folder.name}/relay"}
        return parse_endpoint(where[self.transport], listening=True)

    def _listening_socket(self) -> socket.socket:
        if self.transport == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(f"{self._folder.name}/destination")
            sock.listen()
            return sock
        if self.transport == "tcp6":
            return socket.create_server(("::1", 0), family=socket.AF_INET6)
        return socket.create_server(("127.0.0.1", 0))

    def make_tap(self, source: str, destination: str) -> Tap:
        """What the relay makes its taps with."""
        self.taps.append(RecordingTap(source, destination, self._raises))
        return self.taps[-1]

    @property
    def address(self) -> SocketAddress:
        """Where a source connects to."""
        if self.transport == "unix":
            return str(Path(self._folder.name) / "relay")
        return ("::1" if self.transport == "tcp6" else "127.0.0.1", self._port)

    def source(self) -> Peer:
        """Connect to the relay."""
        families = {"tcp4": socket.AF_INET, "tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}
        sock = socket.socket(families[self.transport])
        sock.connect(self.address)  # the kernel does it, before the relay in the same loop gets to it
        self._peers.append(Peer(sock))
        return self._peers[-1]

    async def destination(self) -> Peer:
        """Accept from the relay."""
        assert self.listening is not None
        async with asyncio.timeout(SECONDS):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.listening)
        self._peers.append(Peer(sock))
        return self._peers[-1]

    async def connect(self) -> tuple[Peer, Peer]:
        """A connection through the relay: its source and its destination."""
        source = self.source()
        return source, await self.destination()

    async def closed(self, seconds: float = 2.0) -> None:
        """Wait until the relay has let go of every connection."""
        await until(lambda: self.relay.connections == 0, seconds)

    def forget(self) -> None:
        """Let go of peers that have been closed, and of connections that no peer has accepted."""
        self._peers.clear()
        if self.listening is not None:
            self.listening.close()

    @property
    def tap(self) -> RecordingTap:
        """The only one."""
        (tap,) = self.taps
        return tap


async def until(true: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


async def send_random(peer: Peer, size: int, seed: int) -> tuple[int, str]:
    """Send `size` pseudo-random bytes in pieces of random lengths, end, and return length and SHA-256."""
    dice = random.Random(seed)
    block = memoryview(dice.randbytes(1 << 20))
    digest, left = hashlib.sha256(), size
    while left:
        begin = dice.randrange(len(block))
        most = dice.choice((1, 100, 5_000, 1 << 20))
        piece = block[begin : begin + min(dice.randint(1, most), left)]
        digest.update(piece)
        await peer.send(piece)
        left -= len(piece)
    peer.end()
    return size, digest.hexdigest()
