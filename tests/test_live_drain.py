"""Draining from the sockets to the capture: what is read on, when that ends, and when it is refused."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from migsniff.core.arrivals import Arrival, Chunk
from migsniff.core.events import (
    DescriptionFound,
    DeviceSection,
    Draining,
    Event,
    Undecodable,
    Verdict,
    record,
)
from migsniff.core.reached import ALONE, POSTCOPY
from migsniff.core.session import Session
from migsniff.core.wire import Command
from migsniff.offline import read
from migsniff.show.log import LogOptions
from tests import streams
from tests.playing import of
from tests.relaying import Peer, Rig, until
from tests.streams import command, hello, ping, pong
from tests.test_live import Bench

HEAD = streams.HEADER + streams.configuration()
OPEN = HEAD + command(Command.OPEN_RETURN_PATH) + ping(1)
RAM = b"".join(
    [
        streams.ram_start({b"pc.ram": 8 << 20}),
        streams.ram_part(
            streams.normal(0, b"pc.ram"), *(streams.normal(page << 12) for page in range(1, 1000, 2))
        ),
        streams.ram_end(streams.zero(0x3000, b"pc.ram")),
    ]
)
REST = streams.states() + b"\0" + streams.described()


def rig(bench: Bench) -> Rig:
    """A relay whose taps decode and save, and that drains for longer than any test lasts."""
    return Rig("tcp4", make_tap=bench.migrations.tap, drain=60)


async def failed(rig: Rig, data: bytes, back: bytes = pong(1)) -> Peer:
    """A source that has sent `data` to a destination that answered `back`, and then went with a reset."""
    source, destination = await rig.connect()
    await source.send(data)
    assert await destination.receive(len(data)) == data
    await destination.send(back)
    assert await source.receive(len(back)) == back
    destination.reset()
    return source


def events(bench: Bench) -> list[Event]:
    return [event for _, event in bench.sink.records]


def judged(bench: Bench) -> Verdict:
    (found,) = of(events(bench), Verdict)
    return found


async def reads_as_live(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """The capture, read later, has the very records of the live log."""
    (live,) = bench.done
    assert live.capture is not None
    assert live.capture.join(10)
    assert live.capture.path is not None
    assert await asyncio.to_thread(read, str(live.capture.path), LogOptions(format="ndjson")) == 1
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for line in told:
        line.pop("fields", None)
    made = [record(live.migration, time, event) for time, event in bench.sink.records]
    expected = json.loads(json.dumps(made, default=bytes.hex))
    for line in expected:
        line.pop("fields", None)
    assert told == expected


@pytest.mark.parametrize("ram", ["strip", "keep"])
async def test_what_the_source_still_has_is_decoded_and_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ram: str
) -> None:
    bench = Bench(tmp_path, ram=ram)
    half = len(RAM) // 2
    async with rig(bench) as relay:
        source = await failed(relay, OPEN + RAM[:half])
        await source.send(RAM[half:] + REST)
        assert await source.error() is ConnectionResetError, "the stream is complete"
        await bench.finished()
    at = len(OPEN) + half
    assert [each.offset for each in of(events(bench), Draining)] == [at]
    assert of(events(bench), DescriptionFound)
    assert [each.idstr for each in of(events(bench), DeviceSection) if each.described] == [
        device.idstr.decode() for device in streams.DEVICES
    ]
    assert (judged(bench).outcome, judged(bench).offset) == ("refused", at)
    assert judged(bench).message.endswith(
        f"{len(RAM[half:] + REST)} bytes more were read from the source alone"
    )
    assert bench.done[0].exit_code == 1
    assert not bench.said
    await reads_as_live(bench, capfd)


async def test_without_a_return_path_it_is_refused_and_told_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with rig(bench) as relay:
        source = await failed(relay, HEAD + RAM, back=b"")
        assert await source.error() is ConnectionResetError
        await bench.finished()
    assert bench.said == [f"{bench.done[0].migration}: --drain-after-failure is refused: {ALONE}"]
    assert not of(events(bench), Draining)


async def test_a_source_that_may_go_into_postcopy_is_let_go_as_soon_as_it_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with rig(bench) as relay:
        source = await failed(relay, OPEN)
        await until(lambda: bool(of(events(bench), Draining)))
        await source.send(streams.advise(4096))
        assert await source.error() is ConnectionResetError
        await bench.finished()
    assert bench.said == [f"{bench.done[0].migration}: --drain-after-failure is refused: {POSTCOPY}"]
    assert not judged(bench).ok


async def test_all_channels_end_with_the_main_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path)
    async with rig(bench) as relay:
        source, destination = await relay.connect()
        await source.send(OPEN + RAM)
        await destination.receive(len(OPEN + RAM))
        other, its_end = await relay.connect()
        await other.send(hello(0))
        await its_end.receive(len(hello(0)))
        its_end.close()
        await until(lambda: len(of(events(bench), Draining)) == 1)
        destination.reset()
        await until(lambda: len(of(events(bench), Draining)) == 2)
        await other.send(streams.multifd_packet(0, flags=1))
        await source.send(REST)
        assert await source.error() is ConnectionResetError
        assert await other.error() is ConnectionResetError
        await bench.finished()
    assert [each.channel for each in of(events(bench), Draining)] == ["multifd-0", "main"]
    assert judged(bench).outcome in ("failed", "reset")
    await reads_as_live(bench, capfd)


async def test_a_destination_whose_guest_runs_just_closes(tmp_path: Path) -> None:
    """Its channels first, then SHUT 0 and the main one: each end is passed on."""
    bench = Bench(tmp_path)
    async with rig(bench) as relay:
        source, destination = await relay.connect()
        other, its_end = await relay.connect()
        await source.send(OPEN + RAM)
        await until(lambda: bool(bench.begun) and bench.begun[0].pipeline.session.knows_memory)
        await other.send(hello(0))
        await its_end.receive(len(hello(0)))
        await source.send(REST)
        await destination.receive(len(OPEN + RAM + REST))
        its_end.close()
        assert await other.receive(1) == b""
        await destination.send(pong(1) + streams.shut(0))
        destination.close()
        assert await source.receive(100) == pong(1) + streams.shut(0)
        other.close()
        source.close()
        await bench.finished()
    assert judged(bench).ok
    assert not of(events(bench), Draining)
    assert not bench.said


async def test_a_decoder_that_fails_meanwhile_ends_it(tmp_path: Path) -> None:
    class Failing(Session):
        def feed(self, arrival: Arrival) -> Iterator[Event]:
            if isinstance(arrival, Chunk) and bytes(arrival.data) == b"fail":
                raise RuntimeError("on purpose")
            yield from super().feed(arrival)

    bench = Bench(tmp_path, session=Failing)
    async with rig(bench) as relay:
        source = await failed(relay, OPEN + RAM)
        await until(lambda: bool(of(events(bench), Draining)))
        await source.send(b"fail")
        assert await source.error() is ConnectionResetError
        await bench.finished()
    assert bench.done[0].failed is not None


async def test_bytes_that_cannot_be_decoded_end_it_and_are_not_the_verdict(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with rig(bench) as relay:
        source = await failed(relay, OPEN + RAM)
        await until(lambda: bool(of(events(bench), Draining)))
        await source.send(b"\xff" * 100)
        assert await source.error() is ConnectionResetError
        await bench.finished()
    assert of(events(bench), Undecodable)
    assert judged(bench).outcome == "reset"


async def test_it_waits_for_a_slow_decoder_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Session):
        def feed(self, arrival: Arrival) -> Iterator[Event]:
            for event in super().feed(arrival):
                deadline = asyncio.get_running_loop().time() + 0.002
                while asyncio.get_running_loop().time() < deadline:
                    pass
                yield event

    monkeypatch.setattr("migsniff.live.MAX_LAG", 100_000)
    parts = b"".join(streams.ram_part(streams.normal(page << 12, b"pc.ram")) for page in range(1000))
    # what waits is MAX_LAG and a buffer at most, of 64 KiB here, and the decoder would stop soon behind it
    bench = Bench(tmp_path, session=Slow, max_behind=300_000)
    async with Rig("tcp4", make_tap=bench.migrations.tap, drain=60, buffer_size=1 << 16) as relay:
        source = await failed(relay, OPEN + streams.ram_start({b"pc.ram": 8 << 20}))
        await until(lambda: bool(of(events(bench), Draining)))
        await source.send(parts + streams.ram_end() + REST)
        assert await source.error() is ConnectionResetError
        await bench.finished()
    assert bench.done[0].failed is None
    assert of(events(bench), DescriptionFound)
