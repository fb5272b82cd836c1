"""Findings of streams that really pass: through the proxy, over a link that is slow, to who does not read."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.wire import ItemType
from migsniff.qemu import QmpError
from tests.qemu import Migration, poll, require
from tests.relays import Proxy
from tests.streams import HEADER, PAGE_SIZE, block_list, configuration, normal, ram

BLOCKS = {b"pc.ram": 64 << 20}
OPENING = HEADER + configuration() + ram(ItemType.SECTION_START, block_list(BLOCKS))
PART = ram(
    ItemType.SECTION_PART,
    normal(0, b"pc.ram"),
    *(normal(page * PAGE_SIZE) for page in range(1, 64)),
)


def codes(proxy: Proxy) -> list[str]:
    return [event["code"] for event in proxy.events if event["type"] == "finding"]


def found(proxy: Proxy, code: str) -> dict[str, Any]:
    (one,) = [e for e in proxy.events if e["type"] == "finding" and e["code"] == code]
    return one


def send(where: str, seconds: float, rate: float | None = None) -> socket.socket:
    """A source of one stream that sends as fast as it can, or `rate` bytes a second."""
    host, _, port = where.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    began, sent = time.monotonic(), 0
    sock.sendall(OPENING)
    sock.settimeout(seconds + 5)
    while (now := time.monotonic() - began) < seconds:
        if rate is None or sent < rate * now:
            sock.sendall(PART)
            sent += len(PART)
        else:
            time.sleep(0.01)
    return sock


class Reader:
    """A destination that reads `rate` bytes a second, all that comes if that is None."""

    def __init__(self, rate: float | None = None, host: str = "127.0.0.1") -> None:
        self.listener = socket.create_server((host, 0))
        self.listener.settimeout(10)
        self.where = f"{host}:{self.listener.getsockname()[1]}"
        self.rate = rate
        self.reading = True
        self.stopped = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self.sock, _ = self.listener.accept()
            began, read = time.monotonic(), 0
            while not self.stopped:
                if self.reading and (self.rate is None or read < self.rate * (time.monotonic() - began)):
                    data = self.sock.recv(1 << 16)
                    if not data:
                        break
                    read += len(data)
                else:
                    time.sleep(0.01)
            self.sock.close()

    def close(self) -> None:
        self.stopped = True
        self.listener.close()
        self.thread.join(5)


@contextlib.contextmanager
def reader(rate: float | None = None, host: str = "127.0.0.1") -> Iterator[Reader]:
    one = Reader(rate, host)
    try:
        yield one
    finally:
        one.close()


def test_a_source_that_is_slow(tmp_path: Path) -> None:
    with reader() as destination, Proxy(tmp_path, destination.where) as proxy:
        send(proxy.where, 6.5, 20e6).close()
        assert proxy.verdicts()
        assert [code for code in codes(proxy) if code.startswith("limited")] == ["limited-by-source"]
        text = found(proxy, "limited-by-source")["message"]
        assert re.search(r": (19\.[5-9]|20\.[0-5]) MB/s; in 3\.\d s bytes waited ", text)
        assert "constant, as with max-bandwidth" in text


def test_a_destination_that_reads_slowly(tmp_path: Path) -> None:
    with reader(10e6) as destination, Proxy(tmp_path, destination.where) as proxy:
        send(proxy.where, 6.5).close()
        assert proxy.verdicts()
        assert [code for code in codes(proxy) if code.startswith("limited")] == ["limited-by-destination"]
        assert "a window of" in found(proxy, "limited-by-destination")["message"]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no slow link can be made: {done.stderr.strip()}")


def test_a_link_that_is_slow(tmp_path: Path) -> None:
    """A destination in another network namespace, behind tc tbf."""
    if os.geteuid() or not shutil.which("tc"):
        pytest.skip("network namespaces and tc need root and iproute2")
    space, near, far = (f"mx{os.getpid()}{each}" for each in ("", "n", "f"))
    child = None
    try:
        run("ip", "netns", "add", space)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        run("ip", "addr", "add", "198.18.78.1/30", "dev", near)
        run("ip", "link", "set", near, "up")
        run("ip", "-n", space, "addr", "add", "198.18.78.2/30", "dev", far)
        run("ip", "-n", space, "link", "set", far, "up")
        run(
            "tc",
            "qdisc",
            "add",
            "dev",
            near,
            "root",
            "tbf",
            "rate",
            "80mbit",
            "burst",
            "64kb",
            "latency",
            "50ms",
        )
        child = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, "-c", DRAIN], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        port = child.stdout.readline().strip()
        with Proxy(tmp_path, f"198.18.78.2:{port}") as proxy:
            send(proxy.where, 6.5).close()
            assert proxy.verdicts()
            assert [code for code in codes(proxy) if code.startswith("limited")] == ["limited-by-link"]
            assert "while the destination had room" in found(proxy, "limited-by-link")["message"]
    finally:
        if child is not None:
            child.kill()
            child.wait()
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


DRAIN = """
import socket
listener = socket.create_server(("198.18.78.2", 0))
print(listener.getsockname()[1], flush=True)
sock = listener.accept()[0]
while sock.recv(1 << 20):
    pass
"""


# ---------------------------------------------------------------- silence


def test_a_source_that_falls_silent(tmp_path: Path) -> None:
    with reader() as destination, Proxy(tmp_path, destination.where) as proxy:
        sock = send(proxy.where, 0.5, 10e6)
        assert poll(lambda: "silence" in codes(proxy), 14)
        sock.sendall(PART)
        sock.close()
        assert proxy.verdicts()
        silence = found(proxy, "silence")
        assert silence["message"].startswith(
            ("idle for 10 s; last: section ram, part ", "idle for 11 s; last: ")
        )
        assert silence["message"].endswith(
            "; the source is silent, nothing waits for the destination; there is no return path"
        )
        assert (silence["section"], silence["evidence"]) == ("ram/0", "7e00000002")
        over = found(proxy, "silence-over")
        assert "of silence: the source went on at offset" in over["message"]


def test_a_destination_that_stops_reading(tmp_path: Path) -> None:
    with reader() as destination, Proxy(tmp_path, destination.where) as proxy:
        source = threading.Thread(target=lambda: send_and_wait(proxy.where), daemon=True)
        source.start()
        time.sleep(0.5)
        destination.reading = False
        assert poll(lambda: "silence" in codes(proxy), 15)
        assert "the destination does not read: " in found(proxy, "silence")["message"]


def send_and_wait(where: str) -> None:
    with contextlib.suppress(OSError):
        send(where, 20).close()


# ---------------------------------------------------------------- QEMU


def test_a_migration_that_never_converges_and_one_that_does(tmp_path: Path) -> None:
    """A guest that dirties 24 MiB over and over, at 20 MB/s; then with all the bandwidth that there is."""
    require("7.2")
    with (
        Migration("7.2", workload=48, params={"max-bandwidth": 20_000_000}) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        assert poll(lambda: "not-converging" in codes(proxy), 20)
        finding = next(e for e in proxy.events if e.get("code") == "not-converging")
        assert finding["severity"] == "warn"
        assert (finding["section"], finding["field"]) == ("ram/0", "pc.ram")
        assert "the migration does not converge: " in finding["message"]
        assert "block pc.ram is hot: pc.ram[0x" in finding["message"]
        assert "postcopy-ram would end it" in finding["message"]
        migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        assert migration.wait().status == "completed"
        (verdict,) = proxy.verdicts()
        assert verdict["ok"]
        assert "did-not-converge" not in codes(proxy)


@pytest.mark.parametrize("caps", [[], ["multifd"]])
def test_a_migration_that_completes_soon_gets_no_finding(tmp_path: Path, caps: list[str]) -> None:
    require("7.2")
    with (
        Migration("7.2", workload=48, caps=["return-path", *caps]) as migration,
        Proxy(tmp_path, migration.listen(), "--descriptions", "none") as proxy,
    ):
        assert migration.run(f"tcp:{proxy.where}").status == "completed"
        assert proxy.verdicts()[0]["ok"]
        assert codes(proxy) == []


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_qemu_that_hangs(side: str, tmp_path: Path) -> None:
    """Case 22, with a QEMU that is stopped: who is silent, and what came last."""
    require("7.2")
    limits = {"max-bandwidth": 20_000_000}
    with (
        Migration("7.2", workload=48, caps=["return-path"], params=limits) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        time.sleep(0.5)
        process = getattr(migration, side).process
        process.send_signal(signal.SIGSTOP)
        try:
            assert poll(lambda: "silence" in codes(proxy), 20)
        finally:
            process.send_signal(signal.SIGCONT)
        message = found(proxy, "silence")["message"]
        assert re.match(r"idle for 1\d s; last: section ram, part \d+; ", message)
        who = "the source is silent" if side == "source" else "the destination does not read"
        assert who in message
        assert message.endswith("; the return path is open")
        assert poll(lambda: "silence-over" in codes(proxy), 5)


def test_multifd_that_does_not_converge_tells_its_hot_pages(tmp_path: Path) -> None:
    require("10.0")
    with (
        Migration("10.0", workload=48, caps=["multifd"], params={"max-bandwidth": 20_000_000}) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        assert poll(lambda: "not-converging" in codes(proxy), 25)
        finding = next(e for e in proxy.events if e.get("code") == "not-converging")
        assert "block pc.ram is hot: pc.ram[0x" in finding["message"]


FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "another device": (
        {"source_args": "-device virtio-rng-pci"},
        "load-failed",
        "0000:00:02.0/virtio-rng/0",
    ),
    "other vectors": (
        {
            "caps": ["return-path"],
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,vectors=8",
        },
        "load-failed",
        "0000:00:05.0/virtio-net/0",
    ),
    "a ROM that is not there, with a return path": (
        {
            "version": "11.1",
            "caps": ["return-path"],
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,romfile=",
        },
        "refused-early",
        "0000:00:05.0/virtio-net-pci.rom 256 KiB",
    ),
    "a ROM that is not there": (
        {
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,romfile=",
        },
        "refused-early",
        "0000:00:05.0/virtio-net-pci.rom 256 KiB",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_destination_that_gives_up(name: str, tmp_path: Path) -> None:
    settings, code, mentioned = FAILURES[name]
    settings = {"version": "7.2", **settings}
    require(settings["version"])
    with Migration(**settings) as migration, Proxy(tmp_path, migration.listen()) as proxy:
        with contextlib.suppress(QmpError):
            migration.run(f"tcp:{proxy.where}")
        (verdict,) = proxy.verdicts()
        assert not verdict["ok"]
        finding = found(proxy, code)
        assert finding["severity"] == "error"
        assert mentioned in finding["message"]
        assert finding["evidence"]
        if code == "refused-early":
            assert finding["field"] == "0000:00:05.0/virtio-net-pci.rom"
        # a source without a return path may have been done before
        first = found(proxy, "source-done" if "source-done" in codes(proxy) else "ended-first")
        # FIN if it had happened to read all that had come
        assert re.search(
            r"the destination (reset its connection \(RST, ECONNRESET\)|closed its connection \(FIN\))",
            first["message"],
        )
        assert "attempt-cost" in codes(proxy)


def test_a_destination_that_is_killed(tmp_path: Path) -> None:
    """Case 18: who ended first, how, and where."""
    require("7.2")
    with (
        Migration("7.2", workload=48, params={"max-bandwidth": 20_000_000}) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        time.sleep(0.4)
        migration.destination.kill()
        proxy.verdicts()
        first = found(proxy, "ended-first")
        assert "the destination " in first["message"]
        assert re.search(r"at offset \d+ of main, (in|between) section", first["message"])
        assert "there is no return path" in first["message"]


def test_a_migration_that_is_cancelled_has_cost_something_and_no_error(tmp_path: Path) -> None:
    require("7.2")
    with (
        Migration("7.2", workload=48, params={"max-bandwidth": 20_000_000}) as migration,
        Proxy(tmp_path, migration.listen(), "--descriptions", "none") as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        time.sleep(0.4)
        migration.source.execute("migrate_cancel")
        (verdict,) = proxy.verdicts()
        assert verdict["outcome"] == "cancelled"
        assert codes(proxy) == ["attempt-cost"]
