"""What a capture is on the disk, whatever ends its writing."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from migsniff.core.arrivals import Chunk, Ended, Opened
from migsniff.feed.captureformat import NoteLine
from migsniff.feed.captureread import open_capture
from tests.saving import (
    ENDS,
    OPENED,
    OPENED_1,
    START,
    Live,
    chunk,
    numbered,
    numbered_back,
    put,
    put_one_by_one,
    replayed,
    save,
    writer,
)


def test_manifest(tmp_path: Path) -> None:
    steps: list[Live] = [
        OPENED,
        OPENED_1,
        chunk(0, b"QEVM", 4),
        chunk(1, b"pong", 4, direction="rev"),
        chunk(2, b"odd thing", 9, 1, name="../../etc/passwd"),
        *ENDS,
    ]
    path = save(tmp_path, steps, "keep")
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert manifest["format"] == "migsniff-capture"
    assert manifest["migration"] == "m-1"
    assert manifest["start"] == "2026-03-04T05:06:07.000089Z"
    assert manifest["complete"] is True
    assert manifest["facts"] == {"listen": "[::]:4444"}
    assert manifest["result"] == {"outcome": "completed"}
    assert manifest["connections"][0] == {
        "connection": 0,
        "channel": "main",
        "source": "10.0.0.1:40000",
        "destination": "10.0.0.2:4444",
        "time": 0,
        "fwd": {
            "length": 4,
            "saved": 4,
            "file": "main.fwd",
            "time": 9000,
            "how": "reset",
            "by": "destination",
            "error": "ECONNRESET",
        },
        "rev": {
            "length": 4,
            "saved": 4,
            "file": "main.rev",
            "time": 9001,
            "how": "eof",
            "by": "destination",
        },
    }
    assert manifest["connections"][1]["fwd"] == {"length": 9, "saved": 9, "file": "connection-1.fwd"}
    assert sorted(os.listdir(path)) == [
        "connection-1.fwd",
        "main.fwd",
        "main.rev",
        "manifest.json",
        "timeline.ndjson",
    ]
    assert path.parent == tmp_path
    assert path.name == "m-1"
    assert open_capture(path).start == START


def test_two_channels_of_one_name(tmp_path: Path) -> None:
    path = save(tmp_path, [OPENED, OPENED_1, chunk(0, b"a", 1), chunk(1, b"b", 1, 1)], "keep")
    assert (path / "main.fwd").read_bytes() == b"a"
    assert (path / "main-1.fwd").read_bytes() == b"b"


def test_nobody_else_may_look(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = save(tmp_path / "captures", [OPENED, chunk(0, b"a", 1), *ENDS])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "captures").stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_connection_without_a_byte_leaves_nothing(tmp_path: Path) -> None:
    capture = writer(tmp_path / "captures")
    put(capture, [OPENED, *ENDS])
    capture.close({})
    assert capture.join(5)
    assert not (tmp_path / "captures").exists()


def test_never_an_existing_folder(tmp_path: Path) -> None:
    planted = tmp_path / "m-1"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    planted.symlink_to(elsewhere)
    first = save(tmp_path, [OPENED, chunk(0, b"a", 1)])
    second = save(tmp_path, [OPENED, chunk(0, b"b", 1)])
    assert [first.name, second.name] == ["m-1-2", "m-1-3"]
    assert not list(elsewhere.iterdir())


def test_notes_stand_between_the_arrivals(tmp_path: Path) -> None:
    capture = writer(tmp_path)
    put(capture, [OPENED, chunk(1, b"a", 1)])
    capture.note(2, "pause", 0, direction="fwd", offset=1)
    put(capture, [chunk(3, b"b", 2)])
    capture.note(4, "tcp_info", 0, leg="source", rtt=120)
    capture.close({})
    assert capture.join(5)
    assert capture.path is not None
    lines = [line for _, line in open_capture(capture.path).lines()]
    kinds = [type(line).__name__.removesuffix("Line").lower() for line in lines]
    assert kinds == ["opened", "file", "chunk", "note", "chunk", "note"]
    assert lines[-1] == NoteLine(4, 0, "tcp_info", {"leg": "source", "rtt": 120})


KILLED = """
import sys, time
from pathlib import Path
from tests.saving import *
capture = writer(Path(sys.argv[1]), sys.argv[2])
put(capture, [Opened(0, 0, "a", "b"), chunk(5, b"QEVM", 4, has_events=True), chunk(9, b"more", 8)])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("ram", ["strip", "keep"])
def test_killed(tmp_path: Path, ram: str) -> None:
    """Nobody calls flush() or close(): what has arrived gets to the kernel by itself."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), ram]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 30
        while not any(b'"end":8' in f.read_bytes() for f in tmp_path.glob("*/timeline.ndjson")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    (path,) = tmp_path.iterdir()
    assert open_capture(path).manifest.complete is False
    assert replayed(path) == [
        Opened(0, 0, "a", "b"),
        Chunk(5, 0, "fwd", b"QEVM", 4, "framed" if ram == "strip" else "all"),
        Chunk(9, 0, "fwd", b"more", 8, "framed" if ram == "strip" else "all"),
        Ended(9, 0, "fwd", "closed", "proxy"),
        Ended(9, 0, "rev", "closed", "proxy"),
    ]


def test_flush(tmp_path: Path) -> None:
    capture = writer(tmp_path, flush_interval=1000)
    put(capture, [OPENED, chunk(0, b"a", 1)])
    capture.flush()
    deadline = time.monotonic() + 30
    while not any(b'"end":1' in f.read_bytes() for f in tmp_path.glob("*/timeline.ndjson")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    capture.close({})
    assert capture.join(30)


@pytest.mark.parametrize("ram", ["strip", "keep"])
@pytest.mark.parametrize(("room", "whole"), [(0, 0), (100, 0), (300_000, 14), (301_000, 14), (310_000, 15)])
def test_a_disk_that_fails(tmp_path: Path, ram: str, room: int, whole: int) -> None:
    """Only `room` bytes can be written: what was whole before stays, what was half written goes."""
    left = room

    def write(fd: int, parts: Sequence[bytes]) -> int:
        nonlocal left
        data = b"".join(parts)[:left]
        if not data:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left -= len(data)
        return os.write(fd, data)

    problems: list[str] = []
    capture = writer(tmp_path, "keep" if ram == "keep" else "strip", write=write, on_problem=problems.append)
    put(capture, [OPENED])
    put_one_by_one(capture, numbered(50, 20_000))
    put(capture, ENDS)
    capture.close({})
    assert capture.join(30)
    assert capture.problem == "saving stopped: Input/output error; the forwarding is not touched"
    assert problems == [capture.problem]
    assert capture.path is not None
    manifest = open_capture(capture.path).manifest
    assert not manifest.complete
    assert manifest.stopped is not None
    assert manifest.connections[0].fwd.length == 1_000_000
    assert manifest.connections[0].fwd.saved == whole * 20_000
    if whole:
        assert numbered_back(capture.path, 20_000) == whole
        assert manifest.stopped.time == whole * 2000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
def test_a_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        capture = writer(tmp_path)
        put(capture, [OPENED])
        put_one_by_one(capture, numbered(60, 8000))
        capture.close({"outcome": "completed"})
        assert capture.join(30)
        assert capture.problem == "saving stopped: No space left on device; the forwarding is not touched"
        assert capture.path is not None
        assert 20 < numbered_back(capture.path, 8000) < 33
        manifest = open_capture(capture.path).manifest
        assert manifest.stopped is not None
        assert "No space left" in manifest.stopped.reason
        assert manifest.connections[0].fwd.length == 480_000
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    capture = writer(tmp_path / "file" / "captures")
    put(capture, [OPENED, chunk(0, b"a", 1), *ENDS])
    capture.close({})
    assert capture.join(30)
    assert capture.problem == "saving stopped: Not a directory; the forwarding is not touched"
    assert capture.path is None
