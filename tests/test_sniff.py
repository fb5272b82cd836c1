"""Packets of a real migration, taken by tcpdump and by migsniff itself as they pass on the loopback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from tests.loading import stream as own_stream
from tests.network import own_network
from tests.qemu import SYSTEM, Migration, poll, require
from tests.relays import Recorder
from tests.tools import require_tool, tshark

SPACE = "--descriptions", "none"


def may_sniff() -> bool:
    import socket

    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    except OSError:
        return False
    return True


sniffing = pytest.mark.skipif(not may_sniff(), reason="packet sockets need CAP_NET_RAW")


@pytest.fixture
def network() -> Iterator[None]:
    with own_network():
        yield


@contextlib.contextmanager
def running(command: list[str], ready: str, folder: Path) -> Iterator[Path]:
    """A program that watches, ended by SIGINT; `folder`/messages is what it says."""
    with (folder / "messages").open("wb") as messages, (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=messages)
    try:
        assert poll(lambda: ready in (folder / "messages").read_text() or process.poll() is not None, 20)
        assert process.poll() is None, (folder / "messages").read_text()
        yield folder
        process.send_signal(signal.SIGINT)
        process.wait(30)
        (folder / "code").write_text(str(process.returncode))
    finally:
        process.kill()
        process.wait()


def migrate(folder: Path, **options: Any) -> tuple[int, dict[str, bytes]]:
    """A real migration through a recorder, both of its halves on the loopback interface: port, bytes."""
    with Migration(SYSTEM, workload=8, mem=32, **options) as migration:
        where = migration.listen()
        with Recorder(folder / "recorded", where) as recorder:
            assert migration.run(f"tcp:{recorder.where}").status == "completed"
            return int(where.rpartition(":")[2]), recorder.recorded()


def decoded(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capfd.readouterr()
    assert main(["read", *SPACE, "-T", "ndjson", *arguments]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return [lasting(record) for record in records]


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("migration", "time")}


def main_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the source's main channel said; how its end came about is another matter."""
    found = [r for r in records if r.get("channel") == "main" and r["direction"] == "fwd"]
    return [r for r in found if r["type"] not in ("channel", "end", "verdict")]


@sniffing
@pytest.mark.parametrize("options", [{}, {"caps": ["multifd"]}], ids=["plain", "multifd"])
def test_tcpdump_of_a_real_migration(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], network: None
) -> None:
    """The same decode as of the bytes themselves; and tshark counts the same."""
    require(SYSTEM)
    require_tool("tcpdump")
    pcap = tmp_path / "a.pcap"
    command = [
        "tcpdump",
        "-i",
        "lo",
        "-B",
        "65536",
        "-s",
        "0",
        "-U",
        "--immediate-mode",
        "-w",
        str(pcap),
        "tcp",
    ]
    with running(command, "listening on", tmp_path):
        port, recorded = migrate(tmp_path, **options)
        passed = 2 * sum(map(len, recorded.values()))  # to the recorder, and from it
        assert poll(lambda: pcap.stat().st_size > passed, 20)
        poll(lambda: False, 0.5)  # for what closes the connections
    channels = {name: data for name, data in recorded.items() if data}
    told = next(name for name, data in channels.items() if data.startswith(b"QEVM"))
    found = decoded(capfd, "--port", str(port), str(pcap))
    if not options:
        expected = decoded(capfd, str(tmp_path / "recorded" / told))
        assert main_records(found) == main_records(expected)
    verdicts = [r for r in found if r["type"] == "verdict"]
    assert [v["outcome"] for v in verdicts] == ["completed"]
    lengths = tshark(pcap, "-Y", f"tcp.dstport == {port} && tcp.len > 0 && !tcp.analysis.retransmission",
                     "-T", "fields", "-e", "tcp.len")  # fmt: skip
    ours = {r["channel"]: r["offset"] for r in found if r["type"] == "end" and r["direction"] == "fwd"}
    sent = sum(len(data) for name, data in channels.items() if name.endswith(".fwd"))
    assert sum(ours.values()) == sum(map(int, lengths)) == sent


@sniffing
def test_a_migration_is_sniffed_as_it_passes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], network: None
) -> None:
    """Live, on an interface where each packet passes twice; the capture is as the log was."""
    require(SYSTEM)
    command = [sys.executable, "-m", "migsniff", "sniff", "-i", "lo", "--log", "-T", "ndjson", *SPACE]
    captures = tmp_path / "captures"
    with running([*command, "-w", str(captures)], "sniffing on lo", tmp_path):
        _, recorded = migrate(tmp_path, caps=["return-path"])
        assert poll(lambda: (tmp_path / "log").read_text().count('"verdict"') == 2, 20)
    assert (tmp_path / "code").read_text() == "0"
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    names = {record["migration"] for record in records}
    assert len(names) == 2  # to the recorder, and from it
    told = next(name for name, data in recorded.items() if data.startswith(b"QEVM"))
    expected = main_records(decoded(capfd, str(tmp_path / "recorded" / told)))
    for name in names:
        mine = [lasting(record) for record in records if record["migration"] == name]
        assert main_records(mine) == expected
        assert mine[-1]["outcome"] == "completed"
    for capture in captures.iterdir():
        assert main_records(decoded(capfd, str(capture))) == expected
    assert len(list(captures.iterdir())) == 2


@sniffing
def test_what_stands_against_a_destination_is_told_as_it_passes(tmp_path: Path, network: None) -> None:
    require(SYSTEM)
    there = tmp_path / "there"
    there.write_bytes(own_stream(SYSTEM, ""))  # with more memory than the guest that passes
    command = [sys.executable, "-m", "migsniff", "sniff", "-i", "lo", "--log", "-T", "ndjson", *SPACE]
    with running([*command, "--check-against", str(there)], "sniffing on lo", tmp_path):
        migrate(tmp_path)
        assert poll(lambda: (tmp_path / "log").read_text().count('"verdict"') == 2, 20)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    found = [one for one in records if one.get("code") == "check-block-size"]
    assert [(one["severity"], one["field"]) for one in found] == [("error", "pc.ram")] * 2
    assert all("Size mismatch: pc.ram: 0x2000000 != 0x4000000" in one["message"] for one in found)


@sniffing
def test_what_cannot_be_sniffed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sniff", "-i", "nothing0"]) == 2
    assert capfd.readouterr().err == "migsniff: nothing0: no such interface\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has it, to lose it")
def test_without_the_right_to(tmp_path: Path) -> None:
    """A clear sentence, and no traceback."""
    without = ["setpriv", "--inh-caps", "-net_raw", "--bounding-set", "-net_raw"]
    command = [*without, sys.executable, "-m", "migsniff", "sniff", "-i", "lo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the capability CAP_NET_RAW" in done.stderr
    assert len(done.stderr.splitlines()) == 1
