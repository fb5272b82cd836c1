"""Captures made for tests: steps of a migration go into a CaptureWriter, arrivals come back."""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Direction,
    Ended,
    Learned,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.feed.capture import CaptureWriter
from migsniff.feed.captureformat import RamMode
from migsniff.feed.captureread import open_capture

START = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)


class Step(NamedTuple):
    """A chunk as it is handed to the writer."""

    chunk: Chunk
    name: str | None = "main"
    omitted: Sequence[tuple[int, int]] = ()
    has_events: bool = False
    settled: int | None = None


Live = Step | Opened | Ended | Learned
OPENED = Opened(0, 0, "10.0.0.1:40000", "10.0.0.2:4444")
OPENED_1 = Opened(0, 1, "10.0.0.1:40001", "10.0.0.2:4444")
FWD_END = Ended(9000, 0, "fwd", "reset", "destination", "ECONNRESET")
REV_END = Ended(9001, 0, "rev", "eof", "destination")
ENDS = [FWD_END, REV_END]


def chunk(
    time: int, data: bytes, end: int, connection: int = 0, direction: Direction = "fwd", **more: Any
) -> Step:
    """A step whose chunk has `data` up to wire offset `end`."""
    return Step(Chunk(time, connection, direction, data, end), **more)


def writer(parent: Path, ram: RamMode = "strip", **options: Any) -> CaptureWriter:
    """A writer for migration "m-1" that began at START."""
    options = {"facts": {"listen": "[::]:4444"}, "start": START, **options}
    return CaptureWriter(parent, ram=ram, migration="m-1", **options)


def put(capture: CaptureWriter, steps: Iterable[Live]) -> None:
    """Hand the steps to the writer; each chunk's buffer is overwritten as soon as the call is over."""
    for step in steps:
        if isinstance(step, Opened):
            capture.opened(step)
        elif isinstance(step, Ended):
            capture.ended(step)
        elif isinstance(step, Learned):
            capture.learned(step)
        else:
            buffer = bytearray(step.chunk.data)
            capture.chunk(replace(step.chunk, data=memoryview(buffer)), *step[1:])
            buffer[:] = b"\xee" * len(buffer)


def save(parent: Path, steps: Iterable[Live], ram: RamMode = "strip") -> Path:
    """A finished capture of the steps."""
    capture = writer(parent, ram)
    put(capture, steps)
    capture.close({"outcome": "completed"})
    assert capture.join(30)
    assert capture.problem is None
    assert capture.path is not None
    return capture.path


def owned(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """The arrivals, with bytes of their own."""
    return [replace(a, data=bytes(a.data)) if isinstance(a, Chunk) else a for a in arrivals]


def replayed(path: Path) -> list[Arrival]:
    """What a capture gives back."""
    return owned(open_capture(path).arrivals())


def until_error(arrivals: Iterator[Arrival]) -> tuple[list[Arrival], str]:
    """The arrivals, and what the CaptureError behind them says."""
    got = []
    try:
        for arrival in arrivals:
            got += owned([arrival])
    except CaptureError as error:
        return got, str(error)
    return got, ""


def numbered(count: int, size: int) -> Iterator[Step]:
    """Chunks of `size` bytes, each with an event, 2 ms apart."""
    for number in range(count):
        yield chunk(number * 2000, bytes([number % 251]) * size, (number + 1) * size, has_events=True)


def numbered_back(path: Path, size: int) -> int:
    """How many of the numbered chunks came back; what came back is right, and ends as cut short."""
    arrivals = replayed(path)
    chunks = [arrival for arrival in arrivals if isinstance(arrival, Chunk)]
    for number, found in enumerate(chunks):
        assert found.data == bytes([number % 251]) * size
        assert (found.end, found.time) == ((number + 1) * size, number * 2000)
    assert [a for a in arrivals if isinstance(a, Ended)] == [
        Ended(arrivals[-1].time, 0, "fwd", "closed", "proxy"),
        Ended(arrivals[-1].time, 0, "rev", "closed", "proxy"),
    ]
    return len(chunks)


def put_one_by_one(capture: CaptureWriter, steps: Iterable[Step]) -> None:
    """Hand the steps to the writer, each when the one before has reached the disk or the saving stopped."""
    for number, step in enumerate(steps, 1):
        put(capture, [step])
        capture.flush()
        deadline = time.monotonic() + 30
        while capture.problem is None and lines(capture).count(b'"kind":"chunk"') < number:
            assert time.monotonic() < deadline
            time.sleep(0.0005)


def lines(capture: CaptureWriter) -> bytes:
    """The timeline as it is on the disk."""
    path = capture.path and capture.path / "timeline.ndjson"
    return path.read_bytes() if path and path.exists() else b""
