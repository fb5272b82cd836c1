"""What the tests put between two QEMUs: migsniff itself, and a recorder that tells what it was given."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.qemu import poll


class Recorder:
    """A relay of the tests' own that keeps, for each connection, the bytes of both directions and their end.

    `folder`/connection-N.fwd and .rev. It stands in front of migsniff or behind it, to tell what migsniff was
    given from what it passed on.
    """

    def __init__(self, folder: Path, forward: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._target = forward
        self._connections = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def recorded(self) -> dict[str, bytes]:
        """What each connection carried, by name, once all of them have ended."""
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a connection through the recorder has not ended"
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def _accept(self) -> None:
        host, port = self._target.rsplit(":", 1)
        while True:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            destination = socket.create_connection((host, int(port)))
            number, self._connections = self._connections, self._connections + 1
            for pair, direction in (((source, destination), "fwd"), ((destination, source), "rev")):
                path = self.folder / f"connection-{number}.{direction}"
                thread = threading.Thread(target=self._pump, args=(*pair, path), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _pump(reader: socket.socket, writer: socket.socket, path: Path) -> None:
        with path.open("wb") as kept:
            try:
                while data := reader.recv(1 << 20):
                    kept.write(data)
                    writer.sendall(data)
                writer.shutdown(socket.SHUT_WR)
            except OSError:  # a reset, or nobody left to send to: both sides learn of it
                for side in (reader, writer):
                    with contextlib.suppress(OSError):
                        side.shutdown(socket.SHUT_RDWR)


class Changer:
    """A relay for a source without a return path: what it sent goes on when it has ended, changed."""

    def __init__(self, forward: str, change: Callable[[bytes], bytes]) -> None:
        self._target = forward
        self._change = change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._relay, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _relay(self) -> None:
        source, _ = self._listener.accept()
        with source, source.makefile("rb") as sent:
            data = self._change(sent.read())
        host, port = self._target.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as destination, contextlib.suppress(OSError):
            destination.sendall(data)
            destination.shutdown(socket.SHUT_WR)
            destination.recv(1)


class Proxy:
    """The command under test, in a process of its own, between `where` and `forward`.

    Its log goes to `folder`/log as ndjson, its messages to `folder`/messages, captures to `folder`/captures.
    """

    def __init__(self, folder: Path, forward: str, *options: str, listen: str = "127.0.0.1:0") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        command = [sys.executable, "-m", "migsniff", "--listen", listen, "--forward", forward]
        command += ["-w", str(folder / "captures"), "--log", "-T", "ndjson", *options]
        with (folder / "log").open("wb") as log, (folder / "messages").open("wb") as messages:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=messages)
        self.where = listen.removeprefix("unix:")
        listens = Path(self.where).is_socket if listen.startswith("unix:") else self._told_port
        if not poll(lambda: listens() or self.process.poll() is not None, 20) or self.process.poll():
            self.process.kill()
            raise RuntimeError(f"migsniff did not start: {self.messages}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _told_port(self) -> bool:
        """Whether the first message has told the port that was picked; `where` is set if so."""
        line, complete, _ = self.messages.partition("\n")
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if complete and found:
            self.where = found[0]
        return bool(complete and found)

    @property
    def messages(self) -> str:
        return (self.folder / "messages").read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log's records so far."""
        whole, _, _ = (self.folder / "log").read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def verdicts(self, count: int = 1) -> list[dict[str, Any]]:
        """The last records of the first `count` migrations, waited for."""
        log = self.folder / "log"
        if not poll(lambda: log.read_bytes().rpartition(b"\n")[0].count(b'"type":"verdict"') >= count, 30):
            raise TimeoutError(f"no verdict: {self.messages} {self.events[-3:]}")
        return [event for event in self.events if event["type"] == "verdict"]

    def stop(self) -> int:
        """End it as an operator does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def capture(self) -> Path:
        """The folder of the one capture that was made."""
        (folder,) = (self.folder / "captures").iterdir()
        return folder
