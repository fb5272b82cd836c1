"""Faults behind the forwarding: of whatever decoder, sink or disk do, the relay hears nothing."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migsniff.core.arrivals import Arrival, Ended
from migsniff.core.events import UNLISTED, Event, Undecodable
from migsniff.core.session import Session
from migsniff.feed.capture import CaptureWriter
from migsniff.live import LiveMigration, close_all
from migsniff.offline import read
from migsniff.pipeline import Pipeline
from migsniff.show.log import LogOptions
from migsniff.show.stats import Stats
from migsniff.taps import Migrations
from tests import streams
from tests.relaying import Rig


class Broken(Exception):
    """What is injected."""


class Collected:
    """A sink that keeps what it is shown, or fails at the n-th record."""

    def __init__(self, fails_at: int = -1) -> None:
        self.records: list[tuple[int, Event]] = []
        self.by_migration: dict[str, list[Event]] = {}
        self._fails_at = fails_at

    def show(self, migration: str, time: int, event: Event) -> None:
        if isinstance(event, UNLISTED):
            return
        if len(self.records) == self._fails_at:
            raise Broken(event)
        self.records.append((time, event))
        self.by_migration.setdefault(migration, []).append(event)

    def close(self) -> None:
        """Nothing is pending."""


class Bench:
    """Migrations as the proxy makes them, with what was said and what became of each."""

    def __init__(self, folder: Path | None = None, **options: Any) -> None:
        self.said: list[str] = []
        self.begun: list[LiveMigration] = []
        self.done: list[LiveMigration] = []
        self._ended = asyncio.Event()
        self.sink = options.pop("sink", Collected())
        self.session: Callable[..., Session] = options.pop("session", Session)
        self.ram = options.pop("ram", "strip")
        self.write = options.pop("write", None)
        self.options = options
        self.folder = folder
        self.migrations = Migrations(self._begin)

    def _begin(self, migration: str, started: datetime, source: str, destination: str) -> LiveMigration:
        capture = None
        if self.folder is not None:
            writing = {} if self.write is None else {"write": self.write}
            capture = CaptureWriter(
                self.folder, ram=self.ram, migration=migration, facts={}, start=started,
                on_problem=self.said.append, **writing,
            )  # fmt: skip
        live = LiveMigration(
            Pipeline(migration, self.session(note_omitted=True, breathe=True), [self.sink], Stats()),
            capture,
            say=self.said.append,
            done=self._done,
            **self.options,
        )
        self.begun.append(live)
        return live

    def _done(self, live: LiveMigration) -> None:
        self.done.append(live)
        self._ended.set()

    async def finished(self) -> None:
        """Wait for the next verdict."""
        async with asyncio.timeout(20):
            await self._ended.wait()
        self._ended.clear()


STREAM = b"".join(
    [
        streams.HEADER,
        streams.configuration(),
        streams.ram_start({b"pc.ram": 8 << 20}),
        streams.ram_part(
            streams.normal(0, b"pc.ram"), *(streams.normal(page << 12) for page in range(1, 1000, 2))
        ),
        streams.ram_end(streams.zero(0x3000, b"pc.ram")),
        streams.states(),
        b"\0",
        streams.described(),
    ]
)


async def forwarded(bench: Bench, data: bytes = STREAM) -> bytes:
    """What arrives at the destination when `data` is sent through a relay with the bench's taps."""
    async with Rig("tcp4", make_tap=bench.migrations.tap) as rig:
        source, destination = await rig.connect()
        received = asyncio.ensure_future(destination.digest())
        for start in range(0, len(data), 50_000):
            await source.send(data[start : start + 50_000])
        source.end()
        size, digest = await received
        assert size == len(data)
        assert digest == hashlib.sha256(data).hexdigest()
        destination.close()
        await bench.finished()
    return data


async def test_a_migration_is_decoded_and_saved_behind_the_forwarding(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await forwarded(bench)
    live = bench.done[0]
    assert live.capture is not None
    assert live.capture.join(10)
    assert live.exit_code == 0
    assert not bench.said
    kinds = [event.__struct_config__.tag for _, event in bench.sink.records]
    assert kinds[:3] == ["channel", "header", "configuration"]
    assert kinds[-1] == "verdict"
    assert live.capture.path is not None
    assert b"\xaa" * 64 not in (live.capture.path / "main.strip").read_bytes()


class _Raising(Session):
    """A session that fails at one of the things that are asked of it."""

    hook = "feed"
    after = 0
    raised = False

    def _fail(self, hook: str) -> None:
        if hook == type(self).hook:
            if type(self).after <= 0:
                type(self).raised = True
                raise Broken(hook)
            type(self).after -= 1

    def feed(self, arrival: Arrival) -> Iterator[Event]:
        self._fail("feed")
        yield from super().feed(arrival)

    def finish(self) -> Iterator[Event]:
        self._fail("finish")
        yield from super().finish()

    def channel(self, connection: int) -> str | None:
        self._fail("channel")
        return super().channel(connection)

    @property
    def omitted(self) -> Any:
        self._fail("omitted")
        return super().omitted

    @property
    def settled(self) -> int | None:
        self._fail("settled")
        return super().settled

    def learned_page_size(self) -> int | None:
        self._fail("learned_page_size")
        return super().learned_page_size()

    def where(self) -> str:
        self._fail("where")
        return super().where()

    def stop_decoding(self, code: str, **details: object) -> Iterator[Event]:
        self._fail("stop_decoding")
        yield from super().stop_decoding(code, **details)


@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("hook", ["feed", "finish", "channel", "omitted", "settled", "learned_page_size"])
async def test_a_decoder_that_raises_changes_no_byte(tmp_path: Path, hook: str, after: int) -> None:
    kind: Any = type("Raising", (_Raising,), {"hook": hook, "after": after})
    bench = Bench(tmp_path, session=kind)
    await forwarded(bench)
    failed = bench.done[0].failed
    if not kind.raised:  # it was never asked so often
        assert after
        assert failed is None
        return
    assert failed is not None
    assert "Broken" in failed
    assert "decoded up to" in failed
    assert len(bench.said) == 1


@pytest.mark.parametrize("hook", ["where", "stop_decoding"])
async def test_not_even_giving_up_may_fail(hook: str) -> None:
    kind: Any = type("Raising", (_Raising,), {"hook": hook, "after": 0})
    bench = Bench(session=kind, sink=Collected(fails_at=3))
    await forwarded(bench)
    assert bench.done[0].failed is not None


@pytest.mark.parametrize("record", [0, 1, 4, 9])
async def test_a_sink_that_raises_changes_no_byte(record: int) -> None:
    bench = Bench(sink=Collected(fails_at=record))
    await forwarded(bench)
    assert "Broken" in (bench.done[0].failed or "")


async def test_a_disk_that_fails_stops_only_the_saving(tmp_path: Path) -> None:
    def write(descriptor: int, parts: Any) -> int:
        raise OSError(28, "No space left on device")

    bench = Bench(tmp_path, write=write)
    await forwarded(bench)
    live = bench.done[0]
    assert live.failed is None
    assert live.capture is not None
    assert live.capture.join(10)
    assert live.capture.problem is not None
    assert "No space left" in live.capture.problem


async def test_a_decoder_that_cannot_keep_up_is_stopped_and_the_bytes_go_on(tmp_path: Path) -> None:
    """More behind than is allowed: here 100 kB, and one look at the clock takes the whole turn."""
    bench = Bench(tmp_path, max_behind=100_000)

    class Slow(Session):
        def feed(self, arrival: Arrival) -> Iterator[Event]:
            for event in super().feed(arrival):
                deadline = asyncio.get_running_loop().time() + 0.02
                while asyncio.get_running_loop().time() < deadline:
                    pass
                yield event

    bench.session = Slow
    await forwarded(bench)
    live = bench.done[0]
    assert live.failed is not None
    assert "100000 bytes behind" in live.failed
    stopped = [event for _, event in bench.sink.records if isinstance(event, Undecodable)]
    assert {event.code for event in stopped} == {"decoder-behind"}
    assert live.capture is not None
    assert live.capture.join(10)
    assert live.capture.problem is None


def begun(bench: Bench, data: bytes) -> LiveMigration:
    """A migration whose source has just sent `data`."""
    tap = bench.migrations.tap("source", f"destination {len(bench.begun)}", len(bench.begun))
    tap.opened()
    tap.data("fwd", memoryview(data))
    return bench.begun[-1]


async def turned(true: Callable[[], bool]) -> None:
    """Let the decoder have turns until something is true."""
    for _ in range(10_000):
        if true():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not come about")


def end(live: LiveMigration) -> None:
    """Both ends have closed it in order."""
    for direction, by in (("fwd", "source"), ("rev", "destination")):
        live.arrive(Ended(live.now(), 0, direction, "eof", by))  # type: ignore[arg-type]


async def test_ends_are_told_also_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migsniff.live.TURN", -1)  # an event a turn
    bench = Bench(tmp_path)
    live = begun(bench, STREAM)
    await turned(lambda: not live.waiting)
    end(live)
    assert not live.finished
    live.close(0)
    assert live.failed is None
    assert not bench.said
    assert live.pipeline.verdict is not None
    assert live.pipeline.verdict.outcome == "completed"
    assert live.capture is not None
    assert live.capture.join(10)
    assert live.capture.path is not None
    assert "decoding" not in json.loads((live.capture.path / "manifest.json").read_text())["result"]


async def test_what_was_not_decoded_is_less_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migsniff.live.TURN", -1)
    monkeypatch.setattr("migsniff.live.CLOSING_TURN", -1)
    bench = Bench()
    live = begun(bench, STREAM)
    assert live.waiting > len(STREAM) // 2
    await turned(lambda: bench.sink.records[-1][1].size > len(STREAM) // 2)  # most of it is one section
    assert 0 < live.waiting < len(STREAM) // 2
    left = live.waiting
    live.close(0)
    (said,) = bench.said
    assert int(re.search(r"up to (\d+) bytes", said)[1]) <= left  # type: ignore[index]


async def test_one_that_is_long_takes_no_time_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migsniff.live.TURN", -1)
    monkeypatch.setattr("migsniff.live.CLOSING_TURN", -1)
    looks = count()  # a look at the clock takes a tenth of a millisecond, whatever else the machine does
    clock = SimpleNamespace(
        monotonic=lambda: next(looks) / 1e4,
        thread_time=lambda: next(looks) / 1e4,
        monotonic_ns=lambda: next(looks) * 100_000,
    )
    monkeypatch.setattr("migsniff.live.time", clock)
    head = streams.HEADER + streams.configuration() + streams.ram_start({b"pc.ram": 8 << 20})
    bench = Bench()
    long = begun(bench, head + streams.ram_part(streams.zero(0x3000, b"pc.ram")) * 30_000)
    short = begun(bench, STREAM)
    end(short)
    close_all([long, short], 0.3)
    assert "were not decoded" in (long.failed or "")
    assert short.failed is None
    assert short.exit_code == 0


async def test_reading_later_prints_what_was_seen_live(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    await forwarded(bench)
    await read_as_live(bench, capfd)


async def read_as_live(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """Assert that the bench's one capture reads as its migration was seen live."""
    capture = bench.done[0].capture
    assert capture is not None
    assert capture.join(10)
    assert await asyncio.to_thread(read, str(capture.path), LogOptions(format="ndjson")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(bench.sink.records)
    for line, (time, event) in zip(lines, bench.sink.records, strict=True):
        told = json.loads(line)
        assert (told["time"], told["offset"], told["size"]) == (time / 1e6, event.offset, event.size)
        assert told["type"] == event.__struct_config__.tag


async def test_one_migration_after_the_other() -> None:
    bench = Bench()
    await forwarded(bench)
    await forwarded(bench)
    assert len(bench.done) == 2
    assert bench.done[0].migration != bench.done[1].migration
    assert all(live.exit_code == 0 for live in bench.done)


def test_ids_sort_by_time() -> None:
    bench = Bench()
    tap = bench.migrations.tap("a", "b")

    async def begin() -> str:
        tap.opened()
        tap.data("fwd", memoryview(STREAM[:8]))
        return bench.begun[0].migration

    begun = asyncio.run(begin())
    assert begun.startswith(f"{datetime.now(UTC):%Y%m%dT}")
