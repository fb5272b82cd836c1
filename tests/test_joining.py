"""Connections that pass become migrations: live, saved, and read again."""

import asyncio
from collections.abc import Hashable, Iterable
from pathlib import Path

import pytest

from migsniff.core.arrivals import Direction
from migsniff.core.events import ChannelFound, Event, MultifdPacket, Verdict
from migsniff.live import LiveMigration
from migsniff.taps import MAX_PAUSED, MigrationTap
from tests.catalogue import POSTCOPY, STREAMS
from tests.playing import Stream, of
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    configuration,
    hello,
    multifd_packet,
    page_bits,
    ram_end,
    ram_start,
)
from tests.test_live import Bench, read_as_live

BIG = 65536
A, B = bytes(range(16)), bytes(range(1, 17))
MAIN = HEADER + configuration(b"virt", page_bits(16)) + ram_start({b"ram": 1 << 20}, FLUSH)
END = ram_end(FLUSH) + EOF
PAGES = multifd_packet(1, b"ram", zero=3, page_size=BIG)
SYNC = multifd_packet(0, flags=1, page_size=BIG)


class Wire:
    """Connections through pairs of endpoints, and what the bench makes of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.taps: dict[int, MigrationTap] = {}

    def sends(
        self, number: int, data: bytes, peer: str = "h:1", *, pair: Hashable = 0, way: Direction = "fwd"
    ) -> None:
        tap = self.taps.get(number)
        if tap is None:
            tap = self.taps[number] = self.bench.migrations.tap(peer, "d:1", pair)
            tap.opened()
        tap.data(way, memoryview(data))

    def ends(self, *numbers: int) -> None:
        for number in numbers:
            tap = self.taps.pop(number)
            tap.ended("fwd", "reset", "source", "ECONNRESET")
            tap.ended("rev", "reset", "proxy", None)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def verdicts(bench: Bench) -> list[str]:
    return [live.pipeline.verdict.outcome for live in bench.done if live.pipeline.verdict is not None]


def plays(
    wire: Wire, stream: Stream, first: int = 0, *, pair: Hashable = 0, which: Iterable[int] = (0, 1)
) -> None:
    """Play the connections `which` of a stream."""
    for number, direction, data in stream.pieces:
        if number in which:
            wire.sends(first + number, data, pair=pair, way=direction)


RESUMED = STREAMS["resumed"]


async def test_a_paused_postcopy_is_resumed_through_another_pair(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    wire = Wire(bench)
    plays(wire, RESUMED, which=[0])
    wire.ends(0)
    await settled()
    (live,) = bench.begun
    assert not bench.done
    assert live.paused
    assert bench.said == [
        f"{live.migration}: postcopy is paused at {live.pipeline.session.where()}; it waits to be resumed"
    ]
    plays(wire, RESUMED, pair=1, which=[1])
    assert not live.paused
    wire.ends(1)
    await settled()
    assert verdicts(bench) == ["completed"]
    assert bench.begun == [live]
    assert live.exit_code == 0
    assert {event.channel for _, event in bench.sink.records} == {"main", "resumed-1"}
    await read_as_live(bench, capfd)


async def test_a_paused_postcopy_that_is_never_resumed() -> None:
    bench = Bench()
    wire = Wire(bench)
    for number in range(MAX_PAUSED + 3):
        plays(wire, Stream(POSTCOPY), number, pair=number, which=[0])
        wire.ends(number)
        await settled()
    assert len(bench.done) == 2
    assert {live.exit_code for live in bench.done} == {1}
    # a new migration on its pair: it will not be resumed
    wire.sends(100, MAIN, pair=2)
    assert bench.done[-1] is bench.begun[2]
    # the end of the proxy
    for live in bench.begun[3:]:
        live.close()
    assert len(bench.done) == len(bench.begun)


async def test_a_failed_migration_is_not_paused() -> None:
    """The destination has said that it is over, or the source that all is sent."""
    for name in ("postcopy", "preempt"):
        bench = Bench()
        wire = Wire(bench)
        plays(wire, STREAMS[name])
        wire.ends(*wire.taps)
        await settled()
        assert verdicts(bench) == ["completed"]


async def test_two_at_once_through_one_pair(tmp_path: Path) -> None:
    """By uuid, whatever the order, and their captures are two."""
    bench = Bench(tmp_path)
    wire = Wire(bench)
    wire.sends(0, hello(1, A))
    wire.sends(1, hello(1, B)[:30], "h:2")
    wire.sends(2, hello(0, B), "h:3")
    wire.sends(3, MAIN, "h:4")
    wire.sends(4, hello(0, A)[:3], "h:5")
    wire.sends(1, hello(1, B)[30:] + SYNC + PAGES)
    wire.sends(5, MAIN, "h:6")
    for number in (0, 2, 4):
        wire.sends(number, (hello(0, A)[3:] if number == 4 else b"") + SYNC + SYNC)
    wire.sends(1, SYNC)
    for number in (3, 5):
        wire.sends(number, END)
    wire.ends(*list(wire.taps))
    await settled()
    assert sorted(verdicts(bench)) == ["completed", "completed"]
    channels = [{event.channel for event in events(bench, live)} for live in bench.begun]
    assert channels == [{"main", "multifd-0", "multifd-1"}] * 2
    assert [sum(p.zero for p in of(events(bench, live), MultifdPacket)) for live in bench.begun] == [0, 3]


def events(bench: Bench, live: LiveMigration) -> list[Event]:
    found: list[Event] = bench.sink.by_migration[live.migration]
    return found


async def test_one_after_the_other() -> None:
    bench = Bench()
    for _ in range(3):
        wire = Wire(bench)
        wire.sends(0, hello(0))
        wire.sends(1, MAIN)
        wire.sends(0, SYNC + PAGES + SYNC)
        wire.sends(1, END)
        wire.ends(0, 1)
        await settled()
    assert verdicts(bench) == ["completed"] * 3


@pytest.mark.parametrize(("sent", "outcome"), [(b"QA", "not-a-stream"), (b"QE", "reset")])
async def test_a_connection_that_ends_before_it_told_what_it_is(sent: bytes, outcome: str) -> None:
    bench = Bench()
    wire = Wire(bench)
    wire.sends(0, sent)
    assert not bench.begun
    wire.ends(0)
    await settled()
    assert verdicts(bench) == [outcome]


@pytest.mark.parametrize("when", range(5))
async def test_a_stray_part_of_the_magic(
    when: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it comes beside, it takes nothing from the migration, and no name either."""
    bench = Bench(tmp_path)
    wire = Wire(bench)
    steps = [(0, hello(0)), (1, MAIN), (0, SYNC + PAGES + SYNC), (1, END)]
    for at in range(len(steps) + 1):
        if at == when:
            wire.sends(9, b"QE")
            stray = wire.taps.pop(9)
            stray.ended("fwd", "eof", "source", None)
        if at < len(steps):
            wire.sends(*steps[at])
    wire.ends(1, 0)
    stray.ended("rev", "eof", "destination", None)
    await settled()
    assert verdicts(bench) == ["completed"]
    told = events(bench, bench.begun[0])
    assert sum(packet.zero for packet in of(told, MultifdPacket)) == 3
    found = {event.channel: event.role for event in of(told, ChannelFound)}
    name = f"main-{when}" if when < 2 else "unknown-2"  # beside a main channel it is none
    assert found == {"main": "main", "multifd-0": "multifd", name: name.split("-")[0]}
    await read_as_live(bench, capfd)
    assert (tmp_path / bench.begun[0].migration / "main.strip").exists()


async def test_the_destination_speaks_first() -> None:
    bench = Bench()
    wire = Wire(bench)
    wire.sends(0, b"hello", way="rev")
    wire.sends(0, MAIN + END)
    wire.ends(0)
    await settled()
    assert verdicts(bench) == ["completed"]
    assert isinstance(bench.sink.records[-1][1], Verdict)
