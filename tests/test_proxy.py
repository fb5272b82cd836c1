"""The proxy as its users run it: a process, its messages, its signals, its exit code."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.feed.captureplace import why_not_saved
from tests import streams
from tests.qemu import poll
from tests.relays import Proxy

GOOD = b"".join(
    [
        streams.HEADER,
        streams.configuration(),
        streams.ram_start(),
        streams.ram_part(streams.normal(0, b"pc.ram", b"secret__" * 512), streams.normal(0x2000)),
        streams.ram_end(streams.zero(0x3000)),
        streams.states(),
        b"\0",
        streams.described(),
    ]
)
CUT = GOOD[:3000]


class Destination:
    """Accepts connections and keeps what each of them brings."""

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        self.accepted: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted.append(connection)
                self.received.append(bytearray())
                threading.Thread(target=self._read, args=(connection, self.received[-1]), daemon=True).start()

    def _read(self, connection: socket.socket, into: bytearray) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(1 << 16):
                into += data

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def destination() -> Iterator[Destination]:
    target = Destination()
    yield target
    target.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> list[str]:
    return ["--loop", request.param]


def start(*arguments: str, **streams_of: Any) -> "subprocess.Popen[bytes]":
    """The proxy as a process whose output the test holds itself."""
    return subprocess.Popen([sys.executable, "-m", "migsniff", *arguments], **streams_of)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """However the test goes, the process is gone behind it."""
    with process:
        try:
            yield
        finally:
            process.kill()


def idle(process: "subprocess.Popen[bytes]", seconds: float = 0.3) -> bool:
    """Whether the process uses no time at all for a moment."""
    stat = Path(f"/proc/{process.pid}/stat")
    before = stat.read_text().split()[13:15]
    time.sleep(seconds)
    return stat.read_text().split()[13:15] == before


def connect(where: str) -> socket.socket:
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def send(where: str, data: bytes) -> None:
    """One whole migration, as a source would make it."""
    with connect(where) as source:
        source.sendall(data)
        source.shutdown(socket.SHUT_WR)
        while source.recv(4096):
            pass


def test_each_migration_has_a_verdict_and_a_capture_and_the_worst_decides(
    tmp_path: Path, destination: Destination, loop: list[str]
) -> None:
    with Proxy(tmp_path, destination.where, *loop) as proxy:
        for number, data in enumerate((GOOD, CUT, GOOD), 1):
            send(proxy.where, data)
            proxy.verdicts(number)
        assert proxy.stop() == 1
        outcomes = [verdict["outcome"] for verdict in proxy.verdicts(3)]
    assert outcomes == ["completed", "truncated", "completed"]
    assert [bytes(data) for data in destination.received] == [GOOD, CUT, GOOD]
    captures = sorted((tmp_path / "captures").iterdir())
    assert len(captures) == 3
    assert {json.loads((capture / "manifest.json").read_text())["complete"] for capture in captures} == {True}
    assert len({event["migration"] for event in proxy.events}) == 3


def test_captures_keep_no_guest_memory_and_nobody_else_may_read_them(
    tmp_path: Path, destination: Destination
) -> None:
    with Proxy(tmp_path, destination.where) as proxy:
        send(proxy.where, GOOD)
        proxy.verdicts()
        assert proxy.stop() == 0
    files = [path for path in (tmp_path / "captures").rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"secret__" not in path.read_bytes()
    for folder in ((tmp_path / "captures"), *(path for path in files[0].parents if path.name)):
        if tmp_path in folder.parents:
            assert folder.stat().st_mode & 0o777 == 0o700
    assert proxy.messages.count("without guest memory") == 1


def test_nothing_is_saved_with_no_save(tmp_path: Path, destination: Destination) -> None:
    with Proxy(tmp_path, destination.where, "--no-save") as proxy:
        send(proxy.where, GOOD)
        proxy.verdicts()
        assert proxy.stop() == 0
    assert not (tmp_path / "captures").exists()


def test_without_decoding_bytes_pass_and_nothing_is_told(tmp_path: Path, destination: Destination) -> None:
    with Proxy(tmp_path, destination.where, "--no-decode") as proxy:
        send(proxy.where, GOOD)
        assert poll(lambda: [bytes(data) for data in destination.received] == [GOOD])
        assert proxy.stop() == 0
    assert proxy.events == []
    assert not (tmp_path / "captures").exists()


def test_a_port_scan_leaves_no_trace(tmp_path: Path, destination: Destination) -> None:
    with Proxy(tmp_path, destination.where) as proxy:
        for _ in range(3):
            connect(proxy.where).close()
        send(proxy.where, GOOD)
        proxy.verdicts()
        assert proxy.stop() == 0
    assert len({event["migration"] for event in proxy.events}) == 1
    assert len(list((tmp_path / "captures").iterdir())) == 1


def test_pairs_carry_migrations_at_the_same_time(tmp_path: Path) -> None:
    targets = [Destination(), Destination()]
    more = ["--listen", f"unix:{tmp_path}/second", "--forward", targets[1].where]
    with Proxy(tmp_path, targets[0].where, *more) as proxy:
        second = socket.socket(socket.AF_UNIX)
        second.connect(f"{tmp_path}/second")
        with connect(proxy.where) as first, second:
            for at in range(0, len(GOOD), 1000):
                first.sendall(GOOD[at : at + 1000])
                second.sendall(GOOD[at : at + 1000])
        proxy.verdicts(2)
        assert proxy.stop() == 0
    assert [bytes(target.received[0]) for target in targets] == [GOOD, GOOD]
    assert len({event["migration"] for event in proxy.events}) == 2


def connected(path: Path) -> socket.socket:
    """Connect to a unix socket that is about to be listened on: it stands there a moment before that."""
    source = socket.socket(socket.AF_UNIX)
    assert poll(lambda: source.connect_ex(str(path)) == 0)
    return source


# ---------------------------------------------------------------- where it listens, and for whom


def test_a_bare_port_listens_on_all_addresses(tmp_path: Path, destination: Destination) -> None:
    options = ["--listen", "0", "--forward", destination.where, "--no-save", "--log"]
    process = start(*options, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with ended(process):
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        found = re.fullmatch(r"migsniff: listening on \*:(\d+), forwarding to 127\.0\.0\.1:\d+\n", first)
        assert found, first
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, int(found[1])), timeout=10) as source:
                source.sendall(GOOD)
                source.shutdown(socket.SHUT_WR)
                assert source.recv(1) == b""
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("allowed", "admitted"), [(["10.0.0.0/8"], False), (["10.0.0.0/8", "127.0.0.0/8"], True)]
)
def test_only_allowed_networks_are_admitted(
    tmp_path: Path, destination: Destination, allowed: list[str], admitted: bool
) -> None:
    options = [option for network in allowed for option in ("--allow", network)]
    with Proxy(tmp_path, destination.where, *options) as proxy:
        with contextlib.suppress(OSError):
            send(proxy.where, GOOD)
        assert poll(lambda: bool(destination.received) == admitted, 5)
        if admitted:
            proxy.verdicts()
        assert proxy.stop() == 0
    assert ("not in an allowed network" in proxy.messages) != admitted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "4444"], "--forward"),
        (["--listen", "1", "--listen", "2", "--forward", "3"], "each --listen needs a --forward"),
        (["--listen", "nowhere", "--forward", "4444"], "nowhere"),
        (["--listen", "[::1:4444", "--forward", "4444"], "IPv6"),
        (["--listen", "70000", "--forward", "4444"], "70000"),
        (["--listen", "unix:/" + "x" * 120, "--forward", "4444"], "107"),
        (["--listen", "0", "--forward", "4444", "--allow", "300.0.0.0/8"], "300.0.0.0/8"),
        (["--listen", "0", "--forward", "4444", "-c", "0"], "'0'"),
        (["--listen", "0", "--forward", "4444", "-a", "duration:x"], "duration:x"),
        (["--listen", "192.0.2.1:4444", "--forward", "4444"], "cannot listen"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


# ---------------------------------------------------------------- signals


def test_a_signal_lets_the_migration_finish(
    tmp_path: Path, destination: Destination, loop: list[str]
) -> None:
    with Proxy(tmp_path, destination.where, *loop) as proxy, connect(proxy.where) as source:
        source.sendall(GOOD[:2000])
        assert poll(lambda: any(event["type"] == "ram-blocks" for event in proxy.events))
        for _ in range(2):  # two within a second count as one
            proxy.process.send_signal(signal.SIGTERM)
        assert poll(lambda: "waiting for the running migration" in proxy.messages)
        with connect(proxy.where) as preempt:  # what belongs to the migration is still admitted
            preempt.sendall(struct.pack(">Q", 8) + b"\x06pc.ram")
            assert poll(lambda: len(destination.accepted) == 2)
        source.sendall(GOOD[2000:])
        source.shutdown(socket.SHUT_WR)
        assert proxy.process.wait(20) == 0
    assert bytes(destination.received[0]) == GOOD
    assert proxy.verdicts()[0]["outcome"] == "completed"


def test_a_second_signal_ends_it(tmp_path: Path, destination: Destination) -> None:
    with Proxy(tmp_path, destination.where) as proxy, connect(proxy.where) as source:
        source.sendall(GOOD[:2000])
        assert poll(lambda: any(event["type"] == "ram-blocks" for event in proxy.events))
        proxy.process.send_signal(signal.SIGINT)
        time.sleep(1.1)
        proxy.process.send_signal(signal.SIGINT)
        assert proxy.process.wait(20) == 1
        with pytest.raises(ConnectionResetError):
            source.recv(1)
    capture = proxy.capture()
    assert json.loads((capture / "manifest.json").read_text())["complete"]
    assert main(["read", str(capture), "-T", "ndjson"]) == 1


def test_an_idle_proxy_ends_at_once(tmp_path: Path, destination: Destination, loop: list[str]) -> None:
    with Proxy(tmp_path, destination.where, *loop) as proxy:
        assert proxy.stop() == 0


def test_sigusr1_prints_a_status_line(tmp_path: Path, destination: Destination) -> None:
    with Proxy(tmp_path, destination.where) as proxy, connect(proxy.where) as source:
        proxy.process.send_signal(signal.SIGUSR1)
        assert poll(lambda: "no migration is running" in proxy.messages)
        source.sendall(GOOD[:2000])
        assert poll(lambda: any(event["type"] == "ram-blocks" for event in proxy.events))
        proxy.process.send_signal(signal.SIGUSR1)
        assert poll(lambda: "offset 2000 of main" in proxy.messages), proxy.messages


def test_after_sigkill_the_capture_can_be_read(
    tmp_path: Path, destination: Destination, capfd: pytest.CaptureFixture[str]
) -> None:
    with Proxy(tmp_path, destination.where) as proxy, connect(proxy.where) as source:
        source.sendall(GOOD[:2000])
        assert poll(lambda: bool(proxy.events))
        stripped = "main.strip"
        assert poll(
            lambda: (proxy.capture() / stripped).exists() and os.stat(proxy.capture() / stripped).st_size > 90
        )
        time.sleep(0.6)
        proxy.process.kill()
        proxy.process.wait()
    assert main(["read", str(proxy.capture()), "-T", "ndjson"]) == 1
    read = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert "ram-blocks" in [event["type"] for event in read]
    assert read[-1]["type"] == "verdict"


# ---------------------------------------------------------------- what is in the way


def test_a_closed_pipe_ends_the_log_and_not_the_relay(tmp_path: Path, destination: Destination) -> None:
    pair = ["--listen", f"unix:{tmp_path}/in", "--forward", destination.where]
    process = start(*pair, "--no-save", "-l", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with ended(process):
        with connected(tmp_path / "in") as source:
            source.sendall(GOOD[:1000])
            assert process.stdout is not None
            assert b"channel" in process.stdout.readline()
            process.stdout.close()
            for at in range(1000, len(GOOD), 500):
                source.sendall(GOOD[at : at + 500])
                time.sleep(0.01)
        assert poll(lambda: [bytes(data) for data in destination.received] == [GOOD])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_reader_that_does_not_read_stops_nothing(tmp_path: Path, destination: Destination) -> None:
    pair = ["--listen", f"unix:{tmp_path}/in", "--forward", destination.where]
    process = start(*pair, "--no-save", "-T", "ndjson", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    part = streams.ram_part(streams.zero(0x3000, b"pc.ram"))
    data = GOOD[: GOOD.index(part[:5], 60)] + part * 100_000  # more log than pipe and queue take
    with ended(process):
        with connected(tmp_path / "in") as source:
            source.sendall(data)
        assert poll(lambda: bool(destination.received) and len(destination.received[0]) == len(data), 30)
        assert poll(lambda: idle(process), 60)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        log = process.stdout.read().decode()
        assert process.wait(30) == 1
    records = [json.loads(line) for line in log.splitlines()]
    assert sum(record["count"] for record in records if record["type"] == "dropped") > 1000
    assert records[-1]["type"] == "verdict"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_only_the_saving(tmp_path: Path, destination: Destination) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with Proxy(tmp_path, destination.where, "-w", str(disk / "captures"), "--ram", "keep") as proxy:
            part = streams.ram_part(streams.normal(0, b"pc.ram"))
            data = GOOD[: GOOD.index(part[:5], 60)] + part * 200
            send(proxy.where, data)
            proxy.verdicts()
            assert proxy.stop() == 1  # the stream was cut
            assert bytes(destination.received[0]) == data
        assert re.search(r"saving stopped: .*No space left", proxy.messages), proxy.messages
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A disk of four blocks."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=16k", *options]), "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def warned(folder: Path, place: Path, destination: Destination) -> str:
    """What is said of the place at the start; what comes is forwarded nevertheless."""
    with Proxy(folder, destination.where, "-w", str(place)) as proxy:
        assert poll(lambda: "cannot be saved" in proxy.messages)
        said = [line for line in proxy.messages.splitlines() if "cannot be saved" in line]
        send(proxy.where, GOOD)
        assert len(proxy.verdicts()) == 1
        assert proxy.stop() == 0
        assert bytes(destination.received[-1]) == GOOD
    assert len(said) == 1
    return said[0].removeprefix("migsniff: ")


def test_a_place_for_captures_that_is_none(tmp_path: Path, destination: Destination) -> None:
    """A file stands where the folder must go: that is said before anything comes."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "captures"
    assert warned(tmp_path / "proxy", place, destination) == (
        f"captures cannot be saved in {place}: Not a directory; the forwarding is not touched"
    )


@pytest.mark.parametrize(
    ("options", "filled", "why"),
    [((), 16384, "No space left on device"), (("ro",), 0, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_capture(
    options: tuple[str, ...], filled: int, why: str, tmp_path: Path, destination: Destination
) -> None:
    with small_disk(tmp_path, *options) as disk:
        if filled:
            (disk / "something").write_bytes(bytes(filled))
        place = disk / "captures"
        said = warned(tmp_path / "proxy", place, destination)
    assert said == f"captures cannot be saved in {place}: {why}; the forwarding is not touched"


def test_a_place_for_captures_that_is_fine_is_left_alone(tmp_path: Path, destination: Destination) -> None:
    place = tmp_path / "one" / "two"
    with Proxy(tmp_path / "proxy", destination.where, "-w", str(place)) as proxy:
        time.sleep(0.3)
        assert "cannot" not in proxy.messages
        assert proxy.stop() == 0
    assert not (tmp_path / "one").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="to become somebody else needs root")
def test_a_folder_of_somebody_elses(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        why = why_not_saved(tmp_path / "captures")
    finally:
        os.seteuid(0)
    assert why is not None
    assert why.startswith(f"captures cannot be saved in {tmp_path / 'captures'}: Permission denied;")


def test_a_destination_that_is_not_there(tmp_path: Path) -> None:
    with Proxy(tmp_path, "127.0.0.1:1") as proxy:
        with contextlib.suppress(ConnectionError), connect(proxy.where) as source:
            source.sendall(GOOD)
            assert source.recv(1) == b""
        assert poll(lambda: "cannot connect to 127.0.0.1:1: Connection refused" in proxy.messages)
        assert proxy.stop() in (0, 1)


# ---------------------------------------------------------------- on a terminal


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_on_a_terminal_the_view_leaves_its_summary(
    tmp_path: Path, destination: Destination, term: str, live: bool
) -> None:
    master, terminal = pty.openpty()
    pair = ["--listen", f"unix:{tmp_path}/in", "--forward", destination.where]
    environment = {**os.environ, "TERM": term, "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    folder = str(tmp_path / "captures")
    process = start(*pair, "-w", folder, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = bytearray()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(master, 4096):
                shown.extend(data)

    threading.Thread(target=drain, daemon=True).start()
    with ended(process):
        with connected(tmp_path / "in") as source:
            source.sendall(GOOD)
        assert poll(lambda: [bytes(data) for data in destination.received] == [GOOD])
        time.sleep(0.6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert poll(lambda: b"COMPLETED" in shown)
    text = shown.decode(errors="replace")
    assert ("\x1b[" in text) == live
    assert ("main> START" in text) != live
    assert "saving captures" in text
