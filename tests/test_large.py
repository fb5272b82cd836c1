"""Device state that is too much to be shown while others wait: what is explained and shown, how."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.events import DeviceSection, Field
from migsniff.core.session import Session
from migsniff.filter.compile import Column, Filter
from migsniff.live import LiveMigration
from migsniff.pipeline import Pipeline
from migsniff.show.log import Log, LogOptions
from migsniff.show.matching import Matching
from migsniff.taps import Migrations
from migsniff.values import explain as explaining
from migsniff.values.large import LEFT_OUT, MAX_BYTES, MAX_FIELDS, limited, many
from tests import streams
from tests.describing import entry, struct
from tests.valuing import sample, section, walk

SEGMENT = (entry("selector", "uint32", 4), entry("base", "uint64", 8), entry("flags", "uint32", 4))


def registers(count: int) -> DeviceSection:
    """A section `cpu` with as many segment registers."""
    inside = [Field(part["name"], part["type"], 0, part["size"], value=255) for part in SEGMENT]
    segments = [Field("env.segs", "struct", 0, 16, index=i, children=tuple(inside)) for i in range(count)]
    return section(Field("env.eip", "uint64", 0, 8, value=1), *segments, idstr="cpu")


def count_of(fields: tuple[Field, ...]) -> int:
    return sum(1 for _ in walk(fields))


# ---------------------------------------------------------------- what is shown of it


def test_what_is_small_stays_as_it_is() -> None:
    small = registers(MAX_FIELDS // 4 - 1)
    assert limited(small) is small
    assert not many(small.fields)


@pytest.mark.parametrize("segments", [MAX_FIELDS // 4, MAX_FIELDS // 4 + 1, 50_000])
def test_so_many_fields_are_shown(segments: int) -> None:
    large = registers(segments)
    *shown, note = limited(large).fields
    assert note.type == LEFT_OUT
    assert str(MAX_FIELDS) in note.meaning
    assert count_of(tuple(shown)) == MAX_FIELDS
    paths = [(path, field.index, field.value) for path, field in walk(shown)]
    assert paths == [(path, field.index, field.value) for path, field in walk(large.fields)][:MAX_FIELDS]
    assert many(large.fields)


def test_what_is_nested_is_counted() -> None:
    leaf = Field("a", "uint32", 0, 4, value=1)
    middle = Field("m", "struct", 0, 4000, children=(leaf,) * 1000)
    *shown, note = limited(section(*[middle] * 50)).fields
    assert note.type == LEFT_OUT
    assert count_of(tuple(shown)) <= MAX_FIELDS
    assert shown[0] is middle


def test_so_many_bytes_are_shown() -> None:
    array = Field(
        "array", "uint8", 0, MAX_BYTES, array_len=MAX_BYTES, raw=bytes(MAX_BYTES), value=(0,) * MAX_BYTES
    )
    last = Field("last", "uint32", MAX_BYTES, 4, raw=bytes(4), value=0)
    first, second, note = limited(section(array, last)).fields
    assert first is array
    assert (second.name, second.size, second.raw, second.value) == ("last", 4, b"", None)
    assert note.type == LEFT_OUT
    huge = Field("array", "buffer", 0, MAX_BYTES + 1, raw=bytes(MAX_BYTES + 1))
    first, second, note = limited(section(huge, last)).fields
    assert (first.size, first.raw) == (MAX_BYTES + 1, b"")
    assert second is last


@pytest.mark.parametrize(
    "name", ["x86-111-q35", "x86-72-ipmi", "aarch64-72-virt", "ppc64-72-pseries", "ppc64-100-pseries"]
)
def test_real_devices_are_shown_whole(name: str) -> None:
    sections = sample(name).found
    assert len(sections) > 10
    assert all(limited(one) is one for one in sections)


# ---------------------------------------------------------------- what the log makes of it


class Counted:
    """How many fields were explained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fields: list[int] = []
        explain = explaining.explain

        def counting(section: DeviceSection, *args: Any) -> DeviceSection:
            self.fields.append(count_of(section.fields))
            return explain(section, *args)

        monkeypatch.setattr(explaining, "explain", counting)


SHOWN: dict[str, tuple[LogOptions, bool]] = {
    "lines": (LogOptions(), False),
    "lines that a filter picks": (LogOptions(wanted=Filter('section.name == "cpu"')), False),
    "columns": (LogOptions(format="fields", columns=(Column("section.name"),)), False),
    "another section": (LogOptions(verbose=True, sections={"timer"}), False),
    "nothing": (LogOptions(format="ndjson", quiet=True), False),
    "trees": (LogOptions(verbose=True), True),
    "JSON": (LogOptions(format="ndjson"), True),
    "a filter that looks inside": (LogOptions(wanted=Filter("device.cpu.env.eip == 1")), True),
    "a column from inside": (LogOptions(format="fields", columns=(Column("device.cpu.env.eip"),)), True),
}


def logged(path: Path, options: LogOptions, event: DeviceSection, *, blocking: bool) -> str:
    with path.open("wb") as file:
        log = Log(options, file.fileno(), blocking=blocking)
        log.show("m", 0, event)
        log.close()
    return path.read_text()


@pytest.mark.parametrize("case", SHOWN)
def test_only_what_is_looked_at_is_explained(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, looked_at = SHOWN[case]
    explained = Counted(monkeypatch)
    large = registers(20_000)
    logged(tmp_path / "live", options, large, blocking=False)
    assert explained.fields == ([MAX_FIELDS + 1] if looked_at else [])
    explained.fields.clear()
    logged(tmp_path / "read", options, large, blocking=True)
    assert explained.fields == ([count_of(large.fields)] if looked_at else [])


def test_live_records_are_limited_and_read_ones_are_not(tmp_path: Path) -> None:
    large = registers(20_000)
    options = LogOptions(format="ndjson")
    live = json.loads(logged(tmp_path / "live", options, large, blocking=False))["fields"]
    read = json.loads(logged(tmp_path / "read", options, large, blocking=True))["fields"]
    assert len(read) == len(large.fields)
    assert live[-1]["type"] == LEFT_OUT
    assert live[:-2] == read[: len(live) - 2]
    tree = logged(tmp_path / "tree", LogOptions(verbose=True), large, blocking=False)
    assert MAX_FIELDS < tree.count("\n") < MAX_FIELDS + 50
    assert f"beyond {MAX_FIELDS} fields" in tree


def test_the_view_looks_at_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    explained = Counted(monkeypatch)
    for expression, fields in (("device.cpu.env.eip == 1", [MAX_FIELDS + 1]), ('section.name == "cpu"', [])):
        explained.fields.clear()
        matching = Matching(Filter(expression))
        matching.show("m", 0, registers(20_000))
        matching.close()
        assert matching.count == 1
        assert explained.fields == fields


# ---------------------------------------------------------------- turns of the loop


@pytest.mark.parametrize(
    "options",
    [LogOptions(), LogOptions(verbose=True), LogOptions(format="ndjson")],
    ids=["text", "V", "ndjson"],
)
def test_a_large_section_is_worked_on_in_turns(options: LogOptions) -> None:
    count = 120_000
    device = {
        "name": "cpu",
        "instance_id": 0,
        "vmsd_name": "cpu",
        "version": 1,
        "fields": [entry("env.eip", "uint64", 8), struct("env.segs", 16, *SEGMENT, array_len=count)],
    }
    stream = b"".join(
        [
            streams.HEADER,
            streams.configuration(),
            streams.ram_start(),
            streams.ram_end(),
            streams.full(5, b"cpu", bytes(8) + b"\xff" * (16 * count)),
            streams.EOF,
            streams.description(json.dumps({"page_size": 4096, "devices": [device]}).encode()),
        ]
    )
    turns = asyncio.run(turns_of(stream, options))
    assert len(turns) > 100
    assert max(turns) < sum(turns) / 2


async def turns_of(stream: bytes, options: LogOptions) -> list[float]:
    """Seconds of this thread that each turn takes until the verdict."""
    null = os.open(os.devnull, os.O_WRONLY)
    log = Log(options, null, blocking=False)
    done: list[LiveMigration] = []
    sections = Sections()

    def begin(migration: str, started: datetime, source: str, destination: str) -> LiveMigration:
        session = Session(breathe=True, fields=True)
        return LiveMigration(Pipeline(migration, session, [log, sections]), None, say=print, done=done.append)

    turns: list[float] = []

    def timed(work: Callable[[], object]) -> None:
        begins = time.thread_time()
        work()
        turns.append(time.thread_time() - begins)

    tap = Migrations(begin).tap("a:1", "b:1")
    tap.opened()
    data = memoryview(stream)
    for at in range(0, len(stream), 1 << 18):
        timed(lambda at=at: tap.data("fwd", data[at : at + (1 << 18)]))  # type: ignore[misc]
    tap.ended("fwd", "eof", "source", None)
    tap.ended("rev", "eof", "destination", None)
    while not done:
        begins = time.thread_time()
        await asyncio.sleep(0)
        turns.append(time.thread_time() - begins)
    log.close()
    os.close(null)
    verdict = done[0].pipeline.verdict
    assert verdict is not None
    assert verdict.ok
    assert [count_of(one.fields) for one in sections.found] == [480_001]
    return turns


class Sections:
    """A sink that keeps described sections."""

    def __init__(self) -> None:
        self.found: list[DeviceSection] = []

    def show(self, migration: str, time: int, event: object) -> None:
        if isinstance(event, DeviceSection) and event.described:
            self.found.append(event)

    def close(self) -> None:
        """Nothing is pending."""
