"""Bombs over many connections, through the proxy itself: every byte arrives, and memory stays bounded."""

import contextlib
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
import zstandard

from migsniff.core.arrivals import Chunk, Opened
from migsniff.core.events import Event, Undecodable
from migsniff.core.session import Session
from migsniff.live import MAX_BEHIND
from tests.qemu import poll
from tests.relays import Proxy
from tests.streams import HEADER, configuration, hello, multifd_packet, page_bits, ram_start
from tests.test_bombs import ENDLESS, MIB, REFUSED, Peak
from tests.test_live import Bench
from tests.test_proxy import GOOD

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))
MAIN = HEADER + configuration(b"virt", page_bits(16)) + ram_start({b"ram": 1 << 30})
PAGES = multifd_packet(1, b"ram", normal=8, data=bytes(8 << 16), page_size=65536)
PAGE = multifd_packet(1, b"ram", normal=1, data=bytes(1 << 16), page_size=65536)
OF_ANOTHER = bytes(range(16))


class Sink:
    """A destination that keeps length and checksum of what each connection brings; it says nothing."""

    def __init__(self) -> None:
        self.found: list[list[int]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.found.append([0, 0])
            threading.Thread(target=self._read, args=(connection, self.found[-1]), daemon=True).start()

    def _read(self, connection: socket.socket, found: list[int]) -> None:
        with connection, contextlib.suppress(ConnectionResetError):
            while data := connection.recv(1 << 20):
                found[:] = found[0] + len(data), crc32(data, found[1])

    def has(self, streams: list[bytes]) -> bool:
        """Whether these have come, each over a connection of its own, and nothing else; waited for."""
        wanted = sorted([len(data), crc32(data)] for data in streams)
        return poll(lambda: sorted(map(list, self.found)) == wanted, 30)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def destination() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


@pytest.fixture(scope="module")
def proxy(destination: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One for all of them, as an attacker would have it; a migration has passed, so that all is loaded."""
    with Proxy(tmp_path_factory.mktemp("proxy"), destination.where) as proxy:
        sent(proxy, [GOOD])
        proxy.verdicts()
        yield proxy


def memory(proxy: Proxy, name: str) -> int:
    """What the kernel says of the proxy's memory, in bytes."""
    lines = Path(f"/proc/{proxy.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def completed(proxy: Proxy) -> int:
    """How many migrations were fine."""
    return sum(event["type"] == "verdict" and event["ok"] for event in proxy.events)


def sent(proxy: Proxy, streams: list[bytes]) -> None:
    """Each stream over a connection of its own, all of them open until the last has been sent."""
    host, port = proxy.where.rsplit(":", 1)
    connections = [socket.create_connection((host, int(port)), 20) for _ in streams]
    for connection, data in zip(connections, streams, strict=True):
        connection.sendall(data)
    for connection in connections:
        connection.close()


BOMBS: dict[str, tuple[list[bytes], int]] = {
    "300 channels": ([MAIN, *(hello(n % 256, OF_ANOTHER) + PAGE for n in range(300))], 160 * MIB),
    "300 channels without a uuid": ([hello(n % 256) + PAGES[:5000] for n in range(300)], 120 * MIB),
    "pages before the main channel speaks": (
        [*(hello(n, OF_ANOTHER) + PAGES * (128 if LONG else 24) for n in range(16)), MAIN],
        2 * MAX_BEHIND + 100 * MIB,
    ),
    "channels with one number": ([MAIN, hello(3) + PAGES, hello(3) + PAGES, hello(255) + PAGES], 40 * MIB),
    "a hello of another VM": (
        [MAIN, hello(0, OF_ANOTHER) + PAGES, hello(1, OF_ANOTHER[::-1]) + PAGES],
        40 * MIB,
    ),
    "lengths that lie": ([data for data, _ in (*REFUSED.values(), *ENDLESS.values())], 120 * MIB),
    "connections without a byte": ([*([b""] * 1000), MAIN], 40 * MIB),
    "junk": ([MAIN, *(b"GET / HTTP/1.1\r\n\r\n" for _ in range(600))], 60 * MIB),
}
"""What comes over connections that are open together, and how much memory it may take."""


@pytest.mark.parametrize("name", BOMBS)
def test_bytes_pass_and_memory_stays(name: str, proxy: Proxy, destination: Sink) -> None:
    """And a migration behind it is read as if nothing had been."""
    streams, most = BOMBS[name]
    destination.found.clear()
    fine = completed(proxy)
    before = memory(proxy, "VmRSS")
    with contextlib.suppress(OSError):
        Path(f"/proc/{proxy.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    sent(proxy, streams)
    assert destination.has(streams)
    assert memory(proxy, "VmHWM") - before < most
    sent(proxy, [GOOD])
    assert destination.has([*streams, GOOD])
    assert poll(lambda: completed(proxy) == fine + 1, 30)
    assert "decoder-bug" not in {event.get("code") for event in proxy.events}
    assert "Traceback" not in proxy.messages


async def test_a_migration_of_more_connections_than_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are too many are only forwarded: that is said once, and nothing is kept of them."""
    monkeypatch.setattr("migsniff.live.MAX_CONNECTIONS", 20)
    bench = Bench(tmp_path)
    main = bench.migrations.tap("h:1", "d:1", 0)
    main.opened()
    main.data("fwd", memoryview(MAIN))
    for number in range(100):
        tap = bench.migrations.tap(f"h:{number}", "d:1", 0)
        tap.opened()
        for piece in (b"GET ", b"/ HTTP/1.1\r\n", b"\r\n"):
            tap.data("fwd", memoryview(piece))
        tap.ended("fwd", "eof", "source", None)
        tap.ended("rev", "eof", "destination", None)
    (live,) = bench.begun
    main.data("fwd", memoryview(b"\x08\0\1\0\0"))
    main.ended("fwd", "eof", "source", None)
    main.ended("rev", "eof", "destination", None)
    await bench.finished()
    assert len(live.pipeline.session.connections) == 20
    told = "21 connections of one migration: more than the 20 that migsniff reads"
    assert bench.said == [f"{live.migration}: {told}; all others are only forwarded"]
    kinds = [event.__struct_config__.tag for _, event in bench.sink.records]
    assert "command" in kinds
    assert kinds.count("channel") == 20


@pytest.mark.parametrize(("flag", "pack"), [(2, zlib.compress), (4, zstandard.ZstdCompressor().compress)])
def test_data_that_inflates_without_end_on_each_channel(flag: int, pack: Callable[[bytes], bytes]) -> None:
    """A packet says how many pages it has: no channel makes more of it, nor keeps what it made."""
    bomb = multifd_packet(1, b"ram", normal=8, flags=flag, data=pack(bytes(64 * MIB)), page_size=65536)
    session = Session(contents=True)
    found: list[Event] = []
    with Peak() as taken:
        for number, data in enumerate([MAIN, *(hello(n, OF_ANOTHER) + bomb for n in range(48))]):
            found += session.feed(Opened(0, number, "", ""))
            found += session.feed(Chunk(0, number, "fwd", data, len(data)))
    problems = [event for event in found if isinstance(event, Undecodable)]
    assert [event.channel for event in problems] == [f"multifd-{n}" for n in range(48)]
    assert {event.code for event in problems} == {"inflate-more"}
    assert taken.bytes < 100 * MIB
