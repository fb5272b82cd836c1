"""The two ends of a benchmarked connection, each a process of its own: `python -m benchmarks.ends WHAT ...`.

Tight enough to move more than any relay does: megabyte buffers, no allocation on the way. Times are of the
machine's monotonic clock, so those of two processes can be subtracted. Each prints one line of JSON.
"""

import argparse
import contextlib
import json
import mmap
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.synthetic import long_stream

BUFFER = 1 << 20


def receive(connections: int = 1) -> None:
    """Take everything that comes on so many connections, and say when the last one ended."""
    listener = _listen()
    received = []

    def take(connection: socket.socket) -> None:
        buffer = bytearray(BUFFER)
        size = 0
        while count := connection.recv_into(buffer):
            size += count
        received.append(size)
        connection.close()

    threads = []
    for _ in range(connections):
        threads.append(threading.Thread(target=take, args=(listener.accept()[0],)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    print(json.dumps({"bytes": sum(received), "ended": time.monotonic()}))


def echo() -> None:
    """Send back what comes on any connection, until killed; of a migration stream swallow everything."""

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(BUFFER)
        swallow: bool | None = None
        with contextlib.suppress(ConnectionError), connection:
            while count := connection.recv_into(buffer):
                if swallow is None:
                    swallow = buffer.startswith(b"QEVM")
                if not swallow:
                    connection.sendall(memoryview(buffer)[:count])

    listener = _listen()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def send(port: int, path: Path, *others: Path) -> None:
    """Send files, each on a connection of its own, all at once."""
    threads = [threading.Thread(target=_send, args=(port, _pieces(each))) for each in (path, *others)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"began": began}))


def send_forever(port: int, path: Path, *, pause: float) -> None:
    """Send a file again and again, each time on a connection of its own, until killed."""
    pieces = _pieces(path)
    while True:
        _send(port, pieces)
        time.sleep(pause)


def send_long(port: int, size: int) -> None:
    """Send a stream of about `size` bytes that nobody could keep: every page of it is new."""
    began = time.monotonic()
    _send(port, long_stream(size))
    print(json.dumps({"began": began}))


def ping(port: int, count: int, interval: float) -> None:
    """Measure `count` round trips of a small message, in seconds."""
    message = b"a small message, of the size of a page request".ljust(64, b".")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(count):
            time.sleep(interval)
            began = time.perf_counter()
            connection.sendall(message)
            left = len(message)
            while left:
                left -= len(connection.recv(left))
            times.append(time.perf_counter() - began)
    print(json.dumps({"times": times}))


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    return listener


def _pieces(path: Path) -> list[memoryview]:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ))
    return [data[at : at + BUFFER] for at in range(0, len(data), BUFFER)]


def _send(port: int, pieces: Iterable[memoryview]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the other side has everything, and closes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("receive")
    one.add_argument("connections", type=int, nargs="?", default=1)
    commands.add_parser("echo")
    for name, files in (("send", "+"), ("send-forever", 1)):
        one = commands.add_parser(name)
        one.add_argument("port", type=int)
        one.add_argument("paths", type=Path, nargs=files)
    one.add_argument("--pause", type=float, default=0.0)
    one = commands.add_parser("send-long")
    one.add_argument("port", type=int)
    one.add_argument("size", type=int)
    one = commands.add_parser("ping")
    one.add_argument("port", type=int)
    one.add_argument("count", type=int)
    one.add_argument("interval", type=float)
    given = vars(parser.parse_args())
    functions: dict[str, Callable[..., None]] = {
        "receive": receive,
        "echo": echo,
        "send": send,
        "send-forever": send_forever,
        "send-long": send_long,
        "ping": ping,
    }
    paths = given.pop("paths", [])
    pause = {"pause": given.pop("pause")} if "pause" in given else {}
    functions[given.pop("command")](*given.values(), *paths, **pause)


if __name__ == "__main__":
    main()
