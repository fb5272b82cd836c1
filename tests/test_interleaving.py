"""Several connections at once: neither the cuts nor the order in which they come change what is found."""

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.arrivals import Direction, Ended
from migsniff.core.errors import PROBLEMS
from migsniff.core.events import (
    DirectionEnded,
    DirtySync,
    Event,
    Finding,
    LoosePages,
    MultifdPacket,
    RamSection,
    Section,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from migsniff.taps import MigrationTap
from tests.catalogue import STREAMS
from tests.interleaving import Order, arrivals, plan, shuffled
from tests.mutating import broken
from tests.playing import Stream, by_direction, decode, of, pieces_of, play, strip, verdict
from tests.rawsamples import NAMES, raw
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    configuration,
    hello,
    multifd_packet,
    page_bits,
    ram_end,
    ram_part,
    ram_start,
)
from tests.test_live import Bench

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))
MULTIFD = sorted(name for name in NAMES if "-multifd" in name)
ENDINGS = ("-preempt", "-postcopy", "-recovered", "-colo", "72-return-path")
OTHERS = [name for name in NAMES if name.endswith(ENDINGS)]
SMALL = ["multifd", "preempt", "postcopy", "resumed", "colo", "return path", "wrong return path", "tls"]


def stream_of(name: str) -> Stream:
    return STREAMS[name] if name in STREAMS else raw(name)


def pages_by_block(events: list[Event]) -> Counter[tuple[str, str]]:
    """Pages by block and kind, whatever told of them."""
    pages: Counter[tuple[str, str]] = Counter()
    for event in events:
        for part in event.blocks if isinstance(event, RamSection | LoosePages) else ():
            for kind in ("normal", "zero", "xbzrle", "compressed", "bytes", "resent"):
                pages[part.block, kind] += getattr(part.counts, kind)
        if isinstance(event, MultifdPacket):
            for kind in ("normal", "zero", "resent"):
                pages[event.block, kind] += getattr(event, kind)
    return +pages


def totals(events: list[Event]) -> dict[str, Any]:
    """What the protocol lets depend on no order: a page is of the round in which it was sent."""
    packets, passes = of(events, MultifdPacket), of(events, DirtySync)
    found = [event for event in events if isinstance(event, Finding | Undecodable)]
    return {
        "pages": pages_by_block(events),
        "sections": [(e.offset, e.size, e.section_type, e.idstr, e.instance_id) for e in of(events, Section)],
        "packets": sorted((e.channel, e.offset, e.size, e.packet_num, e.round) for e in packets),
        "passes": [(e.iteration, e.counts, e.final, e.hot) for e in passes],
        "found": sorted((e.code, e.channel, e.offset, e.message) for e in found),
        "verdict": (verdict(events).ok, verdict(events).outcome, verdict(events).message),
    }


def order_of(name: str, chance: random.Random, stream: Stream, *, ends_last: bool = False) -> Order:
    """One order in which the stream may come, in pieces of one size."""
    size = chance.choice((30, 300, 5000) if name in STREAMS else (5_000, 1 << 16, 1 << 18))
    return shuffled(plan(stream, pieces_of(size), ends_last=ends_last), chance)


@pytest.mark.parametrize("name", [*MULTIFD, *OTHERS, *(name for name in SMALL if name != "multifd")])
def test_any_order(name: str) -> None:
    """Which connection is faster changes nothing that is told of the whole."""
    expected = totals(play(stream_of(name)))
    for seed in range(100 if LONG else 4):
        chance = random.Random(f"{name} {seed}")
        found = decode(Session(), arrivals(order_of(name, chance, stream_of(name))))
        assert totals(found) == expected, seed


@pytest.mark.parametrize("name", [*MULTIFD, *OTHERS, *SMALL])
def test_errors_in_any_order(name: str) -> None:
    """Broken streams in any order: documented problems, with their places, the same however they are cut."""
    for seed in range(100 if LONG else 3 if name in NAMES else 20):
        chance = random.Random(f"{name} {seed}")
        order = order_of(name, chance, broken(stream_of(name), chance), ends_last=bool(seed % 2))
        events = decode(Session(), arrivals(order))
        small = chance.choice((1, 2, 5, 30, 200) if name in STREAMS else (777, 5001, 20_000))
        assert decode(Session(), arrivals(order, pieces_of(small))) == events, seed
        ends = {key: max(e.offset + e.size for e in some) for key, some in by_direction(events).items()}
        for event in events:
            if isinstance(event, Finding | Undecodable):
                assert event.code in set(PROBLEMS) - {"decoder-bug", "hole"}, seed
                assert 0 <= event.offset <= ends[event.channel, event.direction], seed
            if isinstance(event, Undecodable):
                assert event.where, (seed, event)
        assert verdict(events).message


@pytest.mark.parametrize("name", [*MULTIFD, *OTHERS, *SMALL])
def test_stripped_in_any_order(name: str) -> None:
    """What a stripped capture keeps of it is decoded alike; of small streams also if they are broken."""
    for seed in range(60 if LONG else 2 if name in NAMES else 10):
        chance = random.Random(f"{name} {seed} stripped")
        stream = broken(STREAMS[name], chance) if name in STREAMS else raw(name)
        order = order_of(name, chance, stream, ends_last=True)
        expected = decode(Session(), arrivals(order))
        live, kept = strip(
            arrivals(order, pieces_of(chance.choice((30, 200) if name in STREAMS else (7_000,))))
        )
        assert live == expected, seed
        assert decode(Session(), kept) == expected, seed


def late(*after: tuple[int, Direction, bytes] | Ended) -> list[Event]:
    """A multifd channel that is over before the main channel comes, and `after` behind it."""
    packets = multifd_packet(0, flags=1, page_size=65536) + multifd_packet(
        1, b"ram", normal=1, zero=2, flags=0, data=bytes(65536), page_size=65536
    )
    over: Order = [
        (1, "fwd", hello(0) + packets),
        Ended(1, 1, "fwd", "eof", "source"),
        Ended(1, 1, "rev", "eof", "destination"),
    ]
    return decode(Session(), arrivals([*over, *after]))


def test_a_channel_that_is_over_before_the_main_channel_comes() -> None:
    """Its pages count all the same; its end stands behind them, and still is the first one."""
    head = HEADER + configuration(b"virt", page_bits(16))
    ram = ram_start({b"ram": 1 << 20}, FLUSH) + ram_end()
    events = late((0, "fwd", head), (0, "fwd", ram + EOF), Ended(9, 0, "fwd", "eof", "source"))
    assert [(e.normal, e.zero) for e in of(events, MultifdPacket)] == [(0, 0), (1, 2)]
    assert pages_by_block(events)["ram", "normal"] == 1
    (end,) = [e for e in of(events, DirectionEnded) if (e.channel, e.direction) == ("multifd-0", "fwd")]
    assert (end.inside, end.where) == (0, "between packets")
    assert not of(events, Finding)
    assert verdict(events).ok


def test_a_channel_that_is_over_and_no_main_channel_comes() -> None:
    """What it was waiting for is said where it ended, within the packet."""
    events = late()
    (end,) = [e for e in of(events, DirectionEnded) if e.direction == "fwd"]
    assert end.where.startswith("a packet")
    assert not of(events, MultifdPacket)
    assert verdict(events).message == "a main channel never came, only multifd-0"


def test_the_first_pass_sends_nothing_again() -> None:
    """A page of the second pass may come before the same page of the first: it is the later round's."""
    sync = multifd_packet(0, flags=1, page_size=65536)
    page = multifd_packet(1, b"ram", normal=1, data=bytes(65536), page_size=65536, addresses=[65536])
    again = multifd_packet(2, b"ram", normal=1, data=bytes(65536), page_size=65536, addresses=[65536])
    main = HEADER + configuration(b"virt", page_bits(16)) + ram_start({b"ram": 1 << 20})
    begun: Order = [(0, "fwd", main), (1, "fwd", hello(0)), (2, "fwd", hello(1))]
    first: Order = [(1, "fwd", page + sync), (2, "fwd", sync)]
    second: Order = [(2, "fwd", again + sync), (1, "fwd", sync)]
    ends: Order = [(0, "fwd", ram_part(FLUSH) + ram_end(FLUSH) + EOF), Ended(9, 0, "fwd", "eof", "source")]
    overtaken: Order = [(2, "fwd", sync + again), (1, "fwd", page + sync), (2, "fwd", sync), (1, "fwd", sync)]
    for order in (first + second, overtaken):
        events = decode(Session(), arrivals([*begun, *order, *ends]))
        assert [(e.counts.normal, e.counts.resent) for e in of(events, DirtySync)] == [(1, 0), (1, 1)]


# ---------------------------------------------------------------- through the taps of the proxy


async def passed(order: Order, folder: Path) -> tuple[list[Event], list[Event]]:
    """What was shown while a migration passed, and what reading its capture shows."""
    bench = Bench(folder)
    taps: dict[int, MigrationTap] = {}
    for each in order:
        if isinstance(each, Ended):
            if each.connection in taps:
                taps[each.connection].ended(each.direction, each.how, each.by, each.error)
            continue
        number, direction, data = each
        if number not in taps:
            taps[number] = bench.migrations.tap("h:1", "d:1", 0)
            taps[number].opened()
        lent = bytearray(data)
        taps[number].data(direction, memoryview(lent))
        lent[:] = b"\xee" * len(lent)
        await asyncio.sleep(0)
    if bench.begun[0].paused:
        bench.begun[0].close()
    await bench.finished()
    (live,) = bench.done
    assert not bench.said
    assert live.capture is not None
    assert await asyncio.to_thread(live.capture.join, 20)
    shown = [event for _, event in bench.sink.records]
    return shown, decode(Session(), open_source(str(live.capture.path)).arrivals())


@pytest.mark.parametrize("name", [*MULTIFD, "x86-100-preempt", "x86-72-recovered", "preempt", "resumed"])
async def test_any_order_through_the_proxy(name: str, tmp_path: Path) -> None:
    """Also where channels are held back until the main channel has come; the capture tells the same."""
    expected = totals(play(stream_of(name)))
    for seed in range(20 if LONG else 2):
        chance = random.Random(f"{name} {seed} live")
        shown, read = await passed(order_of(name, chance, stream_of(name)), tmp_path / str(seed))
        assert totals(read) == expected, seed
        own = {(event.code, event.offset) for event in of(read, Finding)}
        told = [e for e in shown if not isinstance(e, Finding) or (e.code, e.offset) in own]
        assert told == read, seed
