"""Records made aside: whatever takes long there holds up no caller, and what cannot wait is told."""

import json
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from migsniff.core.events import (
    BlockPages,
    CommandSent,
    DescriptionFound,
    DeviceSection,
    DirtySync,
    Event,
    Field,
    PageCounts,
    RamBlock,
    RamBlocks,
    RamSection,
    Verdict,
)
from migsniff.core.messages import COMMANDS
from migsniff.core.wire import Command
from migsniff.filter.compile import Column
from migsniff.show import aside
from migsniff.show.aside import ENTRY_COST, ITEM_COST, LIMIT, Aside, unmade_text
from migsniff.show.log import UNWRITTEN, Log, LogOptions
from migsniff.values import explain as explaining
from migsniff.values.explain import Explainer
from migsniff.values.large import LEFT_OUT, cost
from tests.synthetic import PRECOPY, device

WAIT = 20

VERDICT = next(event for _, event in PRECOPY if isinstance(event, Verdict))


def section(fields: int) -> DeviceSection:
    return device(0, 4 * fields, "cpu", fields=tuple(Field("f", "uint32", 0, 4) for _ in range(fields)))


class Shown:
    """What an Aside shows, once it is `released`."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.found: list[object] = []
        self.threads: set[int] = set()
        self.reports: list[str] = []
        self.released = threading.Event()
        self.aside = Aside("test", self.show, lost=self.found.append, report=self.reports.append, limit=limit)

    def show(self, migration: str, time: int, event: Event) -> None:
        assert self.released.wait(WAIT)
        self.threads.add(threading.get_ident())
        self.found.append(event)

    def all(self) -> list[object]:
        self.released.set()
        assert self.aside.close(WAIT) == 0
        return self.found


def test_all_is_done_in_order_in_another_thread() -> None:
    shown = Shown()
    events = [event for _, event in PRECOPY] * 100
    for number, event in enumerate(events):
        if number == 50:
            shown.aside.do(shown.found.append, "here")
        shown.aside.show("m", 0, event)
    assert shown.found == []
    assert shown.all() == [*events[:50], "here", *events[50:]]
    assert threading.get_ident() not in shown.threads


def test_what_cannot_wait_is_counted_where_it_is_missing() -> None:
    shown = Shown(limit=10 * ENTRY_COST)
    for _ in range(100):
        shown.aside.show("m", 0, section(0))
    shown.aside.show("m", 0, VERDICT)
    shown.aside.do(shown.found.append, "end")
    *kept, missing, verdict, end = shown.all()
    assert isinstance(missing, int)
    assert len(kept) + missing == 100
    assert 20 <= len(kept) <= 22
    assert (verdict, end) == (VERDICT, "end")


PLACE: Any = {"channel": "main", "direction": "fwd", "offset": 0, "size": 65535}
SECTION: Any = {
    "section_type": "PART",
    "section_id": 2,
    "idstr": "ram",
    "instance_id": 0,
    "version_id": 4,
    "footer": True,
}


BLOCKS = 1 << 12


def discards() -> CommandSent:
    """As many ranges as one command may have."""
    ranges = b"".join(struct.pack(">QQ", (1 << 33) + (i << 12), 8192) for i in range(4090))
    message = COMMANDS.get(int(Command.POSTCOPY_RAM_DISCARD))
    assert message is not None
    arguments = message.arguments(b"\0\6pc.ram\0" + ranges)
    return CommandSent(**PLACE, command=1, name="POSTCOPY_RAM_DISCARD", arguments=arguments)


def pages() -> tuple[BlockPages, ...]:
    return tuple(
        BlockPages(f"block {number}", number << 30, (number << 30) + 4096, PageCounts(number + 1000))
        for number in range(BLOCKS)
    )


def blocks() -> RamBlocks:
    names = [f"block {number}" for number in range(BLOCKS)]
    listed = tuple(RamBlock(name, (1 << 30) + number) for number, name in enumerate(names))
    return RamBlocks(**PLACE, total=1 << 46, page_size=4096, page_size_from="", blocks=listed)


def description() -> DescriptionFound:
    return DescriptionFound(**PLACE, page_size=4096, devices=1, text=b"{" + bytes(1 << 20))


HOLDING: dict[str, Callable[[], Event]] = {
    "ranges": discards,
    "blocks": blocks,
    "pages": lambda: RamSection(**PLACE, **SECTION, iteration=1, counts=PageCounts(), blocks=pages()),
    "passes": lambda: DirtySync(**PLACE, iteration=1, counts=PageCounts(), blocks=pages()),
    "descriptions": description,
    "images": lambda: replace(
        section(0), image=Field("virtio", "virtio", 0, 1 << 20, raw=b"v" + bytes(1 << 20))
    ),
}


@pytest.mark.parametrize("kind", HOLDING)
def test_what_waits_is_bounded_whatever_events_hold(kind: str) -> None:
    limit = 1 << 22
    shown = Shown(limit=limit)
    tracemalloc.start()
    try:
        for _ in range(40):
            shown.aside.show("m", 0, HOLDING[kind]())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = BLOCKS * ITEM_COST  # the one that goes beyond, or is being shown
    assert held < 2 * limit + largest
    shown.aside.show("m", 0, VERDICT)
    *kept, verdict = shown.all()
    assert verdict == VERDICT
    missing = sum(number for number in kept if isinstance(number, int))
    assert sum(isinstance(event, Event) for event in kept) + missing == 40
    assert (missing == 0) == (kind == "images")
    assert all(event.image is UNSET for event in kept if isinstance(event, DeviceSection))


def test_fields_that_cannot_wait_are_left_out() -> None:
    one = section(1000)
    shown = Shown(limit=3 * cost(one) + 20 * ENTRY_COST)
    for _ in range(10):
        shown.aside.show("m", 0, one)
    found = shown.all()
    assert found[:3] == [one] * 3
    assert len(found) == 10
    for bare in found[3:]:
        assert isinstance(bare, DeviceSection)
        assert [field.type for field in bare.fields] == [LEFT_OUT]
        assert (bare.idstr, bare.size) == (one.idstr, one.size)


def test_a_bug_is_told_once_and_the_rest_is_shown() -> None:
    shown = Shown()
    for _ in range(2):
        shown.aside.do(lambda: [][1])
    shown.aside.show("m", 0, VERDICT)
    assert shown.all() == [VERDICT]
    (told,) = shown.reports
    assert "IndexError" in told
    assert "bug" in told
    assert shown.aside.failed is not None


def test_for_what_there_is_no_time_is_counted_and_verdicts_are_shown() -> None:
    """The first record takes long; when that is made the others are too late."""
    shown = Shown()
    for _ in range(10):
        shown.aside.show("m", 0, section(0))
    shown.aside.show("m", 0, VERDICT)
    shown.aside.show("n", 0, section(0))
    shown.aside.do(shown.found.append, "end")
    threading.Timer(0.2, shown.released.set).start()
    assert shown.aside.close(0.05) == 10
    assert shown.found == [section(0), 9, VERDICT, 1, "end"]


def test_a_record_that_takes_for_ever_keeps_no_verdict_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "LAST", 0.05)
    released = threading.Event()
    found: list[object] = []

    def show(migration: str, time: int, event: Event) -> None:
        if not isinstance(event, Verdict):
            released.wait(WAIT)
        found.append(event)

    slow = Aside("test", show, lost=found.append)
    for event in (section(0), section(0), VERDICT):
        slow.show("m", 0, event)
    slow.do(found.append, "end")
    assert slow.close(0.05) == 2
    released.set()
    assert found[:3] == [2, VERDICT, "end"]


def test_what_is_missing_last_is_told() -> None:
    shown = Shown(limit=ENTRY_COST)
    for _ in range(10):
        shown.aside.show("m", 0, section(0))
    *kept, missing = shown.all()
    assert isinstance(missing, int)
    assert len(kept) + missing == 10


@pytest.mark.parametrize("format", ["text", "json", "ndjson", "fields"])
def test_a_log_that_has_no_time_says_what_is_missing(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    explained = Explainer.learn

    def slow(self: Explainer, *args: Any) -> None:
        assert released.wait(WAIT)
        explained(self, *args)

    monkeypatch.setattr(Explainer, "learn", slow)
    path = tmp_path / "log"
    with path.open("wb") as file:
        columns = (Column("type"), Column("verdict.outcome"))
        log = Log(LogOptions(format=format, columns=columns), file.fileno(), blocking=False)  # type: ignore[arg-type]
        for time, event in PRECOPY:
            log.show("m", time, event)
        threading.Timer(0.2, released.set).start()
        log.close(0.05)
    count = len(PRECOPY) - 2
    assert log.missing == unmade_text(count)
    text = path.read_text()
    assert str(count) in text
    assert VERDICT.outcome in text.lower().splitlines()[-2 if format == "json" else -1]
    if format == "json":
        assert [record["type"] for record in json.loads(text)] == ["channel", "dropped", "verdict"]


def test_a_log_that_nobody_reads_says_so() -> None:
    reader, writer = os.pipe()
    log = Log(LogOptions(), writer, blocking=False)
    for _ in range(100):
        for time, event in PRECOPY:
            log.show("m", time, event)
    log.close(0.3)
    assert log.missing == UNWRITTEN
    os.close(reader)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_section_that_takes_long_holds_up_no_caller(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    explain = explaining.explain

    def slow(event: DeviceSection, *args: object) -> DeviceSection:
        assert released.wait(WAIT)
        return explain(event, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(explaining, "explain", slow)
    path = tmp_path / "log"
    options = LogOptions(format=format, verbose=True)  # type: ignore[arg-type]
    with path.open("wb") as file:
        live = Log(options, file.fileno(), blocking=False)
        for time, event in [(0, section(3)), *PRECOPY]:
            live.show("m", time, event)  # in this thread it would never return
        released.set()
        live.close()
    text = path.read_text()
    with path.open("wb") as file:
        log = Log(options, file.fileno(), blocking=True)
        for time, event in [(0, section(3)), *PRECOPY]:
            log.show("m", time, event)
        log.close()
    assert text == path.read_text()
    assert format == "text" or len(json.loads(text)) > len(PRECOPY) // 2
