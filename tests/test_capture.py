"""Saving: what comes back of what arrived, and what happens when the queue is full or nonsense arrives."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Direction,
    Ended,
    Learned,
)
from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.feed.captureread import open_capture
from tests.saving import (
    ENDS,
    FWD_END,
    OPENED,
    OPENED_1,
    Live,
    Step,
    chunk,
    numbered,
    numbered_back,
    put,
    replayed,
    save,
    writer,
)

# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("ram", "steps", "expected"),
    [
        pytest.param(
            "keep",
            [chunk(5, b"abc", 3, has_events=True), chunk(7, b"de", 5, has_events=True)],
            [Chunk(5, 0, "fwd", b"abc", 3), Chunk(7, 0, "fwd", b"de", 5)],
            id="chunks with events keep their own time",
        ),
        pytest.param(
            "keep",
            [chunk(0, b"a", 1), chunk(999, b"b", 2), chunk(1000, b"c", 3), chunk(1999, b"d", 4)],
            [Chunk(999, 0, "fwd", b"ab", 2), Chunk(1999, 0, "fwd", b"cd", 4)],
            id="chunks without share a millisecond",
        ),
        pytest.param(
            "keep",
            [chunk(0, b"a", 1), chunk(2, b"b", 2, has_events=True), chunk(3, b"c", 3)],
            [Chunk(2, 0, "fwd", b"ab", 2), Chunk(3, 0, "fwd", b"c", 3)],
            id="and go into the next one with events",
        ),
        pytest.param(
            "keep",
            [chunk(0, b"a", 1), chunk(1, b"x", 1, direction="rev"), chunk(2, b"b", 2)],
            [Chunk(0, 0, "fwd", b"a", 1), Chunk(1, 0, "rev", b"x", 1), Chunk(2, 0, "fwd", b"b", 2)],
            id="the order over directions stays",
        ),
        pytest.param(
            "keep",
            [chunk(50, b"a", 1, has_events=True), chunk(40, b"b", 2, has_events=True)],
            [Chunk(50, 0, "fwd", b"a", 1), Chunk(50, 0, "fwd", b"b", 2)],
            id="time does not go back",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"headPAGEhead", 12, omitted=[(4, 8)]), chunk(2000, b"PAGE", 16, omitted=[(12, 16)])],
            [Chunk(0, 0, "fwd", b"headhead", 12, "framed"), Chunk(2000, 0, "fwd", b"", 16, "none")],
            id="page contents are left out",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"hPAGE", 5, omitted=[(1, 5)]), chunk(1, b"PAGEh", 10, omitted=[(5, 9)])],
            [Chunk(1, 0, "fwd", b"hh", 10, "framed")],
            id="stripped chunks share a block",
        ),
        pytest.param(
            "strip",
            [Learned(3, 0, 4096), chunk(3, b"a", 1)],
            [Learned(3, 0, 4096), Chunk(3, 0, "fwd", b"a", 1, "framed")],
            id="what page contents told",
        ),
        pytest.param(
            "keep",
            [Learned(3, 0, 4096), chunk(3, b"a", 1)],
            [Chunk(3, 0, "fwd", b"a", 1)],
            id="which they tell again if they are kept",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"\x11\x22", 2, name=None), chunk(70, b"\x33\x44", 4, name="multifd-3")],
            [Chunk(70, 0, "fwd", b"\x11\x22\x33\x44", 4, "framed")],
            id="first bytes wait until it is known whose they are",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"odd", 3, name=None), chunk(9, b"PAGE", 7, name="unknown-0", omitted=[(0, 7)])],
            [Chunk(9, 0, "fwd", b"", 7, "none")],
            id="and whether they may be kept",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"headPAGE", 8, settled=4), chunk(5, b"PAGEhead", 16, omitted=[(4, 12)])],
            [Chunk(5, 0, "fwd", b"headhead", 16, "framed")],
            id="what may be guest memory waits",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"headPAGE", 8, settled=4)],
            [Chunk(0, 0, "fwd", b"head", 4, "framed"), Chunk(9000, 0, "fwd", b"", 8, "none")],
            id="and is left out if nothing decides it",
        ),
        pytest.param(
            "strip",
            [chunk(0, b"odd", 3, name=None)],
            [Chunk(9000, 0, "fwd", b"odd", 3, "framed")],
            id="a connection that never said what it is",
        ),
    ],
)
def test_round_trip(tmp_path: Path, ram: str, steps: list[Live], expected: list[Arrival]) -> None:
    path = save(tmp_path, [OPENED, *steps, *ENDS], "keep" if ram == "keep" else "strip")
    assert replayed(path) == [OPENED, *expected, *ENDS]


@pytest.mark.parametrize(
    ("omitted", "decided", "kept", "data"),
    [
        ([(8, 12)], True, "framed", b"head"),  # the end has decided it
        ([], False, "none", b""),
        ([], True, "framed", b"headPAGE"),
        (None, True, "none", b""),
        ([(0, 3)], True, "none", b""),  # these are other bytes
        ([(900, 999)], True, "none", b""),
    ],
)
def test_the_end_decides_what_was_held_back(
    tmp_path: Path, omitted: list[tuple[int, int]] | None, decided: bool, kept: str, data: bytes
) -> None:
    capture = writer(tmp_path)
    put(capture, [OPENED, chunk(0, b"headheadPAGE", 12, settled=4, has_events=True)])
    capture.ended(FWD_END, omitted, decided=decided)
    capture.close({})
    assert capture.join(30)
    assert capture.path is not None
    last = replayed(capture.path)[-2]
    assert isinstance(last, Chunk)
    assert (last.time, last.kept, last.data, last.end) == (9000, kept, data, 12)


@st.composite
def migrations(draw: st.DrawFn) -> list[Step]:
    """Chunks of two connections and both directions in any order, cut and omitted anywhere."""
    ends: dict[tuple[int, Direction], int] = {}
    steps = []
    now = 0
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from((0, 1, 400, 1000, 7000)))
        keys: list[tuple[int, Direction]] = [(0, "fwd"), (0, "fwd"), (0, "rev"), (1, "fwd")]
        key = draw(st.sampled_from(keys))
        data = draw(st.binary(min_size=1, max_size=60))
        base = ends.get(key, 0)
        ends[key] = base + len(data)
        cuts = sorted(draw(st.lists(st.integers(base, ends[key]), max_size=6)))
        omitted = list(zip(cuts[::2], cuts[1::2], strict=False))
        steps.append(
            chunk(now, data, ends[key], key[0], key[1], omitted=omitted, has_events=draw(st.booleans()))
        )
    return steps


def joined(arrivals: Sequence[Arrival]) -> dict[tuple[int, Direction], bytes]:
    """All bytes of each direction."""
    found: dict[tuple[int, Direction], bytes] = {}
    for arrival in arrivals:
        if isinstance(arrival, Chunk):
            key = arrival.connection, arrival.direction
            found[key] = found.get(key, b"") + bytes(arrival.data)
    return found


@pytest.mark.parametrize("ram", ["strip", "keep"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(steps=migrations())
def test_whatever_the_cuts(tmp_path: Path, ram: str, steps: list[Step]) -> None:
    path = save(tmp_path, [OPENED, OPENED_1, *steps], "keep" if ram == "keep" else "strip")
    back = [arrival for arrival in replayed(path) if isinstance(arrival, Chunk)]

    kept: dict[tuple[int, Direction], bytes] = {}
    for step in steps:
        key, base = (step.chunk.connection, step.chunk.direction), step.chunk.end - len(step.chunk.data)
        left_out = {at for start, stop in step.omitted for at in range(start, stop) if ram == "strip"}
        bytes_left = bytes(byte for at, byte in enumerate(step.chunk.data, base) if at not in left_out)
        kept[key] = kept.get(key, b"") + bytes_left
    assert joined(back) == kept

    # each live chunk is inside one of the same direction that came at most a millisecond later
    places = [(c.connection, c.direction, c.end) for c in back]
    position = 0
    for step in steps:
        live = step.chunk
        while places[position][:2] != (live.connection, live.direction) or places[position][2] < live.end:
            position += 1
        found = back[position]
        assert live.time <= found.time < live.time + 1000
        if step.has_events:
            assert (found.time, found.end) == (live.time, live.end)


def stream() -> bytes:
    """A small migration: one block of 1 MiB, three passes, one device."""

    def text8(text: str) -> bytes:
        return bytes([len(text)]) + text.encode()

    def word(value: int) -> bytes:
        return value.to_bytes(8, "big")

    machine = b"pc-i440fx-7.2"
    data = b"QEVM\0\0\0\3\7" + len(machine).to_bytes(4, "big") + machine
    start = (2).to_bytes(4, "big")
    data += b"\1" + start + text8("ram") + bytes(4) + (4).to_bytes(4, "big")
    data += word(1 << 20 | 4) + text8("pc.ram") + word(1 << 20) + word(0x10) + b"\x7e" + start
    for kind in (2, 2, 3):
        data += bytes([kind]) + start
        for page in range(kind * 10, kind * 10 + 10):
            first = page == kind * 10
            flags, name = (8, text8("pc.ram")) if first else (8 | 0x20, b"")
            data += word(page << 12 | flags) + name + bytes([page]) * 4096
            data += word(page + 100 << 12 | 2 | 0x20) + b"\0"
        data += word(0x10) + b"\x7e" + start
    data += b"\4" + (3).to_bytes(4, "big") + text8("timer") + bytes(4) + (2).to_bytes(4, "big")
    data += bytes(range(24)) + b"\x7e" + (3).to_bytes(4, "big")
    return data + b"\0"


@pytest.mark.parametrize("ram", ["strip", "keep"])
@pytest.mark.parametrize("size", [1, 7, 1000, 4104, 50_000, 1 << 20])
def test_a_capture_decodes_to_what_was_seen_live(tmp_path: Path, ram: str, size: int) -> None:
    data = stream()
    capture = writer(tmp_path, "keep" if ram == "keep" else "strip")
    session = Session(note_omitted=True)
    live: list[tuple[int, Event]] = []
    arrivals: list[Arrival] = [OPENED]
    for number, base in enumerate(range(0, len(data), size)):
        piece = data[base : base + size]
        arrivals.append(Chunk(number * 137, 0, "fwd", piece, base + len(piece)))
    arrivals += [Ended(number * 137 + 5, 0, "fwd", "eof", "source")]
    for arrival in arrivals:
        events = [(arrival.time, event) for event in session.feed(arrival)]
        live += events
        if isinstance(arrival, Chunk):
            capture.chunk(arrival, session.channel(0), session.omitted, bool(events), session.settled)
        elif isinstance(arrival, Ended):
            capture.ended(arrival)
        else:
            capture.opened(OPENED)
    capture.close({})
    assert capture.join(30)
    assert capture.path is not None

    again = Session()
    events = [(a.time, event) for a in open_capture(capture.path).arrivals() for event in again.feed(a)]
    assert events == live
    assert len(live) > 5
    assert list(again.finish()) == list(session.finish())
    if ram == "strip":
        stored = joined(replayed(capture.path))[0, "fwd"]
        assert bytes(range(24)) in stored  # the device's state
        assert not any(bytes([page]) * 20 in stored for page in range(1, 64))  # but no page
    else:
        assert (capture.path / "main.fwd").read_bytes() == data


def test_large_chunks_are_cut_into_blocks(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    omitted = [(1_000_000, 1_100_000)]
    path = save(tmp_path, [OPENED, chunk(1, data, len(data), omitted=omitted, has_events=True), *ENDS])
    chunks = [arrival for arrival in replayed(path) if isinstance(arrival, Chunk)]
    assert b"".join(bytes(c.data) for c in chunks) == data[:1_000_000] + data[1_100_000:]
    assert max(len(c.data) for c in chunks) <= 1 << 20
    assert {c.time for c in chunks} == {1}
    assert chunks[-1].end == len(data)


# ---------------------------------------------------------------- what cannot be saved


def test_a_disk_that_falls_behind(tmp_path: Path) -> None:
    """A write that blocks: saving stops at the limit; what was accepted is written when it goes on."""
    blocked, go_on = threading.Event(), threading.Event()
    problems: list[str] = []

    def write(fd: int, parts: Sequence[bytes]) -> int:
        if sum(map(len, parts)) > 10_000:
            blocked.set()
            assert go_on.wait(30)
        return os.writev(fd, parts)

    capture = writer(tmp_path, "keep", max_pending=1_000_000, write=write, on_problem=problems.append)
    steps = numbered(100, 20_000)
    put(capture, [OPENED, next(steps)])
    capture.flush()
    assert blocked.wait(30)
    put(capture, steps)
    assert capture.problem is not None
    assert "fell more than 1000000 bytes behind" in capture.problem
    assert problems == [capture.problem]
    put(capture, ENDS)
    capture.close({"outcome": "completed"})
    assert not capture.join(0.01)
    go_on.set()
    assert capture.join(30)
    assert capture.path is not None
    assert 40 <= numbered_back(capture.path, 20_000) < 50
    manifest = open_capture(capture.path).manifest
    assert not manifest.complete
    assert manifest.result == {"outcome": "completed"}
    assert manifest.stopped is not None
    assert manifest.stopped.reason == capture.problem
    assert manifest.connections[0].fwd.length == 2_000_000
    assert manifest.connections[0].fwd.saved < 1_000_000
    assert manifest.connections[0].fwd.how == "reset"


@pytest.mark.parametrize(
    ("steps", "detail"),
    [
        ([chunk(0, b"a", 1)], "KeyError"),
        ([OPENED, chunk(0, b"a", 2), chunk(0, b"b", 2)], "ValueError"),
        ([OPENED, chunk(0, b"a", 1), FWD_END, chunk(0, b"b", 2)], "ValueError"),
        ([OPENED, chunk(0, b"abc", 3, omitted=["?"])], "TypeError"),
    ],
    ids=["not opened", "twice", "after the end", "spans that are none"],
)
def test_nonsense_stops_only_the_saving(tmp_path: Path, steps: list[Live], detail: str) -> None:
    def complain(problem: str) -> None:
        raise RuntimeError("the loop is closed")

    capture = writer(tmp_path, on_problem=complain)
    put(capture, steps)
    capture.close({})
    assert capture.join(30)
    assert capture.problem is not None
    assert capture.problem.startswith(f"saving stopped: {detail}(")


def test_facts_that_are_no_json(tmp_path: Path) -> None:
    capture = writer(tmp_path)
    put(capture, [OPENED, chunk(0, b"a", 1)])
    capture.note(0, "tcp_info", 0, odd=object())
    capture.close({})
    assert capture.join(30)
    assert capture.problem is not None
    assert "TypeError" in capture.problem
    assert capture.path is not None
    assert not open_capture(capture.path).manifest.complete


def test_a_capture_that_waits_for_its_first_bytes_is_still_to_be_waited_for(tmp_path: Path) -> None:
    """Its chunk may be being decoded, and come when another migration has begun."""
    capture = writer(tmp_path, "keep")
    assert not capture.join(0)
    capture.close({})
    assert capture.join(10)


def test_after_close_nothing_is_taken(tmp_path: Path) -> None:
    capture = writer(tmp_path)
    put(capture, [OPENED, chunk(0, b"a", 1)])
    capture.close({"first": True})
    put(capture, [chunk(1, b"b", 2), *ENDS])
    capture.close({"first": False})
    assert capture.join(30)
    assert capture.problem is None
    assert capture.path is not None
    assert open_capture(capture.path).manifest.result == {"first": True}
    assert replayed(capture.path) == [OPENED, Chunk(0, 0, "fwd", b"a", 1, "framed")]
