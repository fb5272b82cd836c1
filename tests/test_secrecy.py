"""A stripped capture never holds page contents: whatever the streams, their cuts, their order, their ends.

What a decoder that has seen all of a stream calls guest memory is filled with a marker. Then the stream
passes through live saving, and the marker must stand in none of the capture's files.
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from migsniff.cli import main
from migsniff.core.arrivals import Chunk, Direction, Ended
from migsniff.core.events import (
    CommandSent,
    DeviceSection,
    DirectionEnded,
    Event,
    LiveSection,
    Undecodable,
    Verdict,
    record,
)
from migsniff.core.session import Session
from migsniff.core.text import readable
from migsniff.core.wire import FOOTER, ItemType
from migsniff.taps import MigrationTap
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD, STREAMS
from tests.mutating import broken
from tests.playing import Cut, Stream, arrivals, decode, pieces_of, precopy, strip, whole
from tests.rawsamples import NAMES, raw
from tests.streams import (
    EOF,
    HEADER,
    capabilities,
    configuration,
    hello,
    multifd_packet,
    normal,
    page_bits,
    ram_end,
    ram_part,
    ram_start,
    section,
    u64,
)
from tests.test_live import Bench

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))
MARK = b"\xc5\xecre\xd4\xa7\xed\xb9"  # no length, flag or magic
START = ItemType.SECTION_START
Pieces = list[tuple[int, Direction, bytes]]
MAIN = HEADER + configuration(b"virt", page_bits(16)) + ram_start({b"ram": 1 << 20})
SECRET = MARK * 8192  # a page of 64 KiB
DISK = MARK * (1 << 17)  # what a chunk has of a disk
CHANNEL = hello(0) + multifd_packet(1, b"ram", normal=1, data=SECRET, page_size=65536)


@cache
def marked(name: str) -> Stream:
    """A stream of the catalogue, or a sample, with the marker in place of page contents."""
    stream = STREAMS[name] if name in STREAMS else raw(name)
    session = Session(note_omitted=True)
    wire: dict[tuple[int, Direction], bytearray] = {}
    for arrival in arrivals(stream):
        if isinstance(arrival, Chunk):
            wire.setdefault((arrival.connection, arrival.direction), bytearray()).extend(arrival.data)
        for _ in session.feed(arrival):
            pass
        if not isinstance(arrival, Chunk | Ended):
            continue
        sent = wire.get((arrival.connection, arrival.direction), bytearray())
        for start, stop in session.omitted:
            size = int(stop) - int(start)
            sent[int(start) : int(stop)] = (MARK * (size // len(MARK) + 1))[:size]
    pieces: Pieces = []
    for number, direction, data in stream.pieces:
        whole = wire.get((number, direction), bytearray())
        pieces.append((number, direction, bytes(whole[: len(data)])))
        del whole[: len(data)]
    return Stream(tuple(pieces), stream.ends, stream.outcome)


def shuffled(pieces: Pieces, chance: random.Random) -> Iterator[tuple[int, Direction, bytes]]:
    """The pieces cut anywhere, those of different connections in any order."""
    queues: dict[int, Pieces] = {}
    for piece in pieces:
        queues.setdefault(piece[0], []).append(piece)
    while queues:
        number = chance.choice(list(queues))
        _, direction, data = queues[number].pop(0)
        size = chance.choice([1, 7, 64, 1000, 5000, 1 << 20])
        yield number, direction, data[:size]
        if data[size:]:
            queues[number].insert(0, (number, direction, data[size:]))
        if not queues[number]:
            del queues[number]


class Player:
    """Plays pieces through live saving, and looks into the capture."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.bench = Bench(folder, **options)
        self.taps: dict[int, MigrationTap] = {}

    def sends(self, number: int, data: bytes, direction: Direction = "fwd") -> None:
        if number not in self.taps:
            self.taps[number] = self.bench.migrations.tap("h:1", "d:1", 0)
            self.taps[number].opened()
        buffer = bytearray(data)
        self.taps[number].data(direction, memoryview(buffer))
        buffer[:] = bytes(len(buffer))

    def ends(self, *numbers: int) -> None:
        for number in numbers:
            tap = self.taps.pop(number)
            tap.ended("fwd", "eof", "source", None)
            tap.ended("rev", "eof", "destination", None)

    async def saved(self) -> bytes:
        """All files of all captures, once everything has ended."""
        self.ends(*self.taps)
        while len(self.bench.done) < len(self.bench.begun):
            await asyncio.sleep(0)
            for live in self.bench.begun:
                if live.paused:
                    live.close()
        for live in self.bench.done:
            assert live.capture is not None
            assert await asyncio.to_thread(live.capture.join, 20)
            assert live.capture.problem is None
        return b"".join(path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file())


async def played(folder: Path, pieces: Iterator[tuple[int, Direction, bytes]], **options: Any) -> bytes:
    player = Player(folder, **options)
    for number, direction, data in pieces:
        player.sends(number, data, direction)
    return await player.saved()


CASES = [name for name in STREAMS if name != "a connection that says nothing"]


@pytest.mark.parametrize("name", [*CASES, *NAMES])
async def test_no_stream_leaves_contents(name: str, tmp_path: Path) -> None:
    """As it came, its connections in any order, cut off anywhere, decoded too late."""
    pieces = list(marked(name).pieces)
    large = sum(len(data) for *_, data in pieces) > 1 << 20
    chance = random.Random(name)
    for turn in range(2 if large else 5):
        upto = chance.randrange(len(pieces)) if turn % 2 else len(pieces) - 1
        number, direction, last = pieces[upto]
        cut = [
            *pieces[:upto],
            (number, direction, last[: chance.randrange(len(last) + 1)] if turn % 2 else last),
        ]
        order = shuffled(cut, chance) if turn else iter(cut)
        with mock.patch("migsniff.live.TURN", -1.0 if turn > 3 else 0.001):
            saved = await played(tmp_path / str(turn), order, max_behind=3000 if turn > 3 else 64 << 20)
        assert MARK not in saved, turn


@pytest.mark.parametrize(
    "name", [name for name in CASES if MARK in b"".join(p[2] for p in marked(name).pieces)]
)
async def test_a_decoder_that_fails(name: str, tmp_path: Path) -> None:
    """Anywhere, and then again: nothing tells what the bytes are any more."""
    chance = random.Random(name)
    for turn in range(6):

        class Failing(Session):
            left = chance.randrange(1, 60)
            times = 1 + turn % 2

            def feed(self, arrival: Any) -> Iterator[Event]:
                self.left -= 1
                for event in super().feed(arrival):
                    if self.left <= 0 and self.times:
                        self.times -= 1
                        raise ArithmeticError
                    yield event
                if self.left <= 0 and self.times:
                    self.times -= 1
                    raise ArithmeticError

        pieces = list(marked(name).pieces)
        saved = await played(tmp_path / str(turn), shuffled(pieces, chance), session=Failing)
        assert MARK not in saved, turn


# ---------------------------------------------------------------- streams with errors

TWICE = [(MARK * 3)[at : at + 16] for at in range(8)]
"""More of a page than the header of a record has, which is shown where one was looked for and is none."""
FORMS: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    lambda data: data.hex().encode(),
    lambda data: data.hex(" ").encode(),
    lambda data: readable(data).encode(),
    lambda data: readable(data).replace("\\", "\\\\").encode(),
)
ALL_FORMS = [form(some) for some in TWICE for form in FORMS]


def leaks(data: bytes) -> bool:
    return any(some in data for some in ALL_FORMS)


def claimed(events: Iterable[Event], wire: Iterable[bytes]) -> bool:
    """Whether page contents came to stand where the stream says that a device's state is, or a command.

    An error in a length or a footer can do that, and nothing tells.
    """
    sent = list(wire)
    for event in events:
        span = slice(event.offset, event.offset + event.size)
        if isinstance(event, DeviceSection | LiveSection | CommandSent):
            if any(leaks(data[span]) for data in sent):
                return True
        elif isinstance(event, DirectionEnded) and event.inside and event.where.startswith("section "):
            inside = any(leaks(data[-event.inside :]) for data in sent)
            if inside and " ram instance " not in event.where:
                return True
    return False


async def passes_by(pieces: Pieces, chance: random.Random, folder: Path) -> tuple[Player, bytes]:
    """The pieces in some order: who has shown them, and all that was saved."""
    player = Player(folder)
    for number, direction, data in shuffled(pieces, chance):
        player.sends(number, data, direction)
    return player, await player.saved()


WITH_CONTENTS = [name for name in CASES if MARK in b"".join(piece[2] for piece in marked(name).pieces)]
LARGE = [name for name in ("x86-72-xbzrle", "x86-100-multifd", "x86-100-preempt") if name in NAMES]


@pytest.mark.parametrize("name", [*WITH_CONTENTS, *LARGE])
def test_streams_with_errors(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No file, line, record, finding or message about a broken stream has contents of pages."""
    for seed in range(100 if LONG else 3 if name in WITH_CONTENTS else 1):
        chance = random.Random(f"{name} {seed} errors")
        stream = broken(marked(name), chance)
        player, saved = asyncio.run(passes_by(list(stream.pieces), chance, tmp_path / str(seed)))
        events = [event for _, event in player.bench.sink.records]
        wire: dict[tuple[int, Direction], bytes] = {}
        for number, direction, data in stream.pieces:
            wire[number, direction] = wire.get((number, direction), b"") + data
        records = b"\n".join(json.dumps(record("m", 0, event)).encode() for event in events)
        assert not leaks(records), seed
        assert not leaks("\n".join(player.bench.said).encode()), seed
        if claimed(events, wire.values()):
            continue
        assert not leaks(saved), seed
        capfd.readouterr()
        for capture in sorted((tmp_path / str(seed)).iterdir()):
            packets = tmp_path / "packets"
            for command in (["read", "-V"], ["expert"], ["info"], ["export", "--pcapng", str(packets)]):
                main([*command, str(capture)])
            assert not leaks(packets.read_bytes()), seed
        said = capfd.readouterr()
        assert said.out
        assert not leaks((said.out + said.err).encode()), seed


def test_errors_that_only_their_names_give_away() -> None:
    """A name's length that is wrong: what is told of it, and kept, ends where it is none any more."""
    contents = MARK * 32
    part = ram_part(normal(0, b"ram", contents))
    long = part.replace(b"\x03ram", b"\xffram")
    for data, code in (
        (SMALL_HEAD + ram_start(SMALL_BLOCKS) + long, "ram-block"),
        (
            SMALL_HEAD + ram_start(SMALL_BLOCKS)[:5] + b"\xff" + ram_start(SMALL_BLOCKS)[6:] + part,
            "string-text",
        ),
        (HEADER + configuration(b"v", capabilities(b"x"))[:-2] + b"\xffx" + part + part, "string-text"),
        *(
            (SMALL_HEAD + ram_start(SMALL_BLOCKS) + section(START, 50, payload, idstr), "string-text")
            for idstr, payload in (
                (b"block", b"\0\0\0\0\0\0\0\1\xffvirtio00" + contents * 4096 + bytes(7) + b"\2"),
                (b"dirty-bitmap", b"\x18\xffnode" + contents + b"\1"),
                (b"dirty-bitmap", b"\x1c\4node\xffmap \xc3\xa4" + contents + b"\1"),
            )
        ),
    ):
        live, kept = strip(arrivals(precopy(data)))
        assert [event.code for event in live if isinstance(event, Undecodable)] == [code]
        assert not leaks(b"".join(bytes(chunk.data) for chunk in kept if isinstance(chunk, Chunk)))
        assert not any(leaks(json.dumps(record("m", 0, event)).encode()) for event in live)
        assert decode(Session(), kept) == live


BLOCK_ERRORS: dict[str, tuple[bytes, str]] = {
    "unknown flags": (u64(0x10), "live-flags"),
    "unknown flags of a chunk": (u64(0x11) + b"\7virtio0", "live-flags"),
    "flags of no record": (u64(0), "live-flags"),
    "progress and a chunk": (u64(5), "live-flags"),
    "zeroes of no disk": (u64(8), "live-flags"),
    "a name that is too short": (u64(1) + b"\4virtio0" + DISK, "live-flags"),
    "a name that is too long": (u64(1) + b"\xffvirtio0", "string-text"),
    "less than a chunk": (u64(1) + b"\7virtio0" + DISK[: 1 << 19] + u64(2), "live-flags"),
    "more than a chunk": (u64(9) + b"\7virtio0", "live-flags"),
    "an end that is none": (u64(100 << 9 | 4, 2), "footer"),
    "the end of another section": (u64(2) + b"\x7e\0\0\0\x63", "footer"),
}
"""Payloads of block migration, and the error of each when contents of a disk follow."""


@pytest.mark.parametrize("cut", [whole, pieces_of(997)])
@pytest.mark.parametrize("name", BLOCK_ERRORS)
def test_an_error_among_the_contents_of_a_disk(name: str, cut: Cut) -> None:
    """It ends decoding. What seems to be the section's end may be a guest's: nothing up to there is kept."""
    payload, code = BLOCK_ERRORS[name]
    head = SMALL_HEAD + ram_start(SMALL_BLOCKS)
    disk = section(START, 50, payload + DISK, b"block")
    live, kept = strip(arrivals(precopy(head, disk, DISK, ram_part(), EOF), cut))
    (error,) = (event for event in live if isinstance(event, Undecodable))
    assert (error.code, error.where) == (code, "section block instance 0 (START)")
    assert isinstance(live[-1], Verdict)
    assert live[-1].outcome == "undecodable"
    stored = b"".join(bytes(chunk.data) for chunk in kept if isinstance(chunk, Chunk))
    assert stored.startswith(head + disk[: -len(payload + DISK) - FOOTER.least])
    assert len(stored) < len(head) + 70
    assert not leaks(stored)
    assert not any(leaks(json.dumps(record("m", 0, event)).encode()) for event in live)
    assert decode(Session(), kept) == live


class TestBeforeTheMainChannelSpeaks:
    """A multifd channel with page contents, of which nothing has told the page size yet."""

    @pytest.mark.parametrize("step", [1000, 70_000])
    async def test_and_it_ends(self, tmp_path: Path, step: int) -> None:
        player = Player(tmp_path)
        for at in range(0, len(CHANNEL), step):
            player.sends(0, CHANNEL[at : at + step])
        player.ends(0)
        assert MARK not in await player.saved()

    @pytest.mark.parametrize("held", [0, 500, 1 << 20])
    @pytest.mark.parametrize("main", [b"", HEADER, MAIN, MAIN + ram_end(), b"something else"])
    async def test_and_it_comes_late(self, tmp_path: Path, main: bytes, held: int) -> None:
        """More comes than is held, so the decoder waits for itself."""
        with mock.patch("migsniff.live.MAX_HELD", held):
            player = Player(tmp_path)
            for at in range(0, len(CHANNEL) - 30_000, 1000):
                player.sends(0, CHANNEL[at : at + 1000])
                await asyncio.sleep(0)
            if main:
                player.sends(1, main)
            assert MARK not in await player.saved()

    async def test_and_more_waits_than_may(self, tmp_path: Path) -> None:
        with (
            mock.patch("migsniff.live.MAX_HELD", 0),
            mock.patch("migsniff.core.multifdfacts.MAX_MULTIFD_WAIT", 20_000),
        ):
            player = Player(tmp_path)
            for at in range(0, len(CHANNEL), 900):
                player.sends(0, CHANNEL[at : at + 900])
            player.sends(1, MAIN)
            assert MARK not in await player.saved()

    @pytest.mark.parametrize("held", [0, 3000, 1 << 20])
    async def test_and_the_decoder_is_behind(self, tmp_path: Path, held: int) -> None:
        """Some of it was decoded before, as far as that goes; what waits here counts, too."""
        player = Player(tmp_path, max_behind=5000)
        for at in range(0, len(CHANNEL), 900):
            with mock.patch("migsniff.live.MAX_HELD", held if at < 9000 else 1 << 20):
                player.sends(0, CHANNEL[at : at + 900])
        player.sends(1, MAIN)
        saved = await player.saved()
        assert any("behind" in said for said in player.bench.said)
        assert MARK not in saved
