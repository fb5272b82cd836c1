"""Postcopy between real QEMUs: page faults and their answers, the preempt channel, recovery.

How many faults there are depends on what the guest does where it comes to; that there are any is sure: it
touches all of its memory all the time, and its pages come slowly.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.arrivals import Direction
from migsniff.core.events import (
    ChannelFound,
    DirectionEnded,
    EndOfStream,
    Finding,
    LoosePages,
    Opaque,
    RamSection,
    ReturnPathMessage,
    Undecodable,
)
from tests.matrix import reaches, to_postcopy
from tests.playing import Stream, of, play, verdict
from tests.qemu import Migration, poll, require
from tests.relays import Proxy, Recorder

GUEST: dict[str, Any] = {"mem": 32, "workload": 16}
SLOW = 10_000_000
VERY_SLOW = 200_000


def postcopy(version: str, *caps: str, bandwidth: int = 4_000_000) -> Migration:
    return Migration(
        version,
        **GUEST,
        caps=["postcopy-ram", "return-path", *caps],
        params={"max-bandwidth": SLOW, "max-postcopy-bandwidth": bandwidth},
    )


@pytest.mark.parametrize(("version", "caps"), [("7.2", []), ("11.1", []), ("10.0", ["postcopy-preempt"])])
def test_each_page_fault_has_its_answer(version: str, caps: list[str], tmp_path: Path) -> None:
    require(version)
    with postcopy(version, *caps) as migration, Proxy(tmp_path, migration.listen()) as proxy:
        migration.start(f"tcp:{proxy.where}")
        to_postcopy(migration, proxy.where)
        result = migration.wait()
        assert (result.status, result.destination_runs) == ("completed", True)
        proxy.verdicts()
        assert proxy.stop() == 0
        events = proxy.events
    asked = {
        event["offset"]: event
        for event in events
        if event["type"] == "return-path" and event["name"].startswith("REQ_PAGES")
    }
    assert len(asked) == result.ram["postcopy-requests"] > 0
    answers = [event for event in events if event["type"] == "page-fault"]
    assert sorted(answer["asked_offset"] for answer in answers) == sorted(asked)
    for answer in answers:
        request = asked[answer["asked_offset"]]
        assert answer["asked_channel"] == request["channel"] == "main"
        assert answer["block"] == request["arguments"]["block"]
        assert answer["address"] == request["arguments"]["start"]
        assert answer["crossed"] == (answer["direction"] == "rev")
        assert answer["time"] >= request["time"]
    channels = Counter(answer["channel"] for answer in answers if not answer["crossed"])
    assert set(channels) <= {"main", "preempt"}
    assert bool(channels["preempt"]) == bool(caps)
    assert not [event for event in events if event["type"] in ("undecodable", "finding")]
    command = [sys.executable, "-m", "migsniff", "read", "-T", "ndjson", str(proxy.capture())]
    read = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in read] == events


def pause(migration: Migration, where: str) -> None:
    """Interrupt postcopy, and let it go on over a new connection, as slowly."""
    reaches(migration.source, "postcopy-active")
    # 7.2 gives up if it is interrupted before the guest runs
    assert poll(lambda: bool(migration.destination.execute("query-status")["running"]))
    migration.source.execute("migrate-pause")
    for side in (migration.source, migration.destination):
        reaches(side, "postcopy-paused")
    migration.destination.execute("migrate-recover", uri=f"tcp:{migration.where}")
    migration.source.execute("migrate", uri=f"tcp:{where}", resume=True)
    reaches(migration.source, "postcopy-active")


@pytest.mark.parametrize(
    ("version", "caps", "pauses"), [("7.2", [], 1), ("11.1", [], 1), ("10.0", ["postcopy-preempt"], 2)]
)
def test_recovery_is_decoded_to_the_last_byte(
    version: str, caps: list[str], pauses: int, tmp_path: Path
) -> None:
    require(version)
    with (
        postcopy(version, *caps, bandwidth=VERY_SLOW) as migration,
        Recorder(tmp_path, migration.listen()) as recorder,
    ):
        migration.start(f"tcp:{recorder.where}")
        to_postcopy(migration, recorder.where)
        for _ in range(pauses):
            pause(migration, recorder.where)
        migration.source.execute("migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
        result = migration.wait()
        assert (result.status, result.destination_runs) == ("completed", True)
        recorded = recorder.recorded()
    numbers = sorted({int(name.split("-")[1].split(".")[0]) for name in recorded})
    directions: tuple[Direction, Direction] = "fwd", "rev"
    pieces = [
        (number, direction, recorded[f"connection-{number}.{direction}"])
        for number in numbers
        for direction in directions
    ]
    events = play(Stream(tuple(piece for piece in pieces if piece[2])))
    assert not of(events, Undecodable)
    assert not of(events, Opaque)
    assert verdict(events).outcome == "completed"
    roles = Counter(found.role for found in of(events, ChannelFound))
    assert (roles["main"], roles["resumed"], roles["unknown"]) == (1, pauses, 0)
    ends = {(end.channel, end.direction): end.offset for end in of(events, DirectionEnded)}
    assert sorted(ends.values()) == sorted(
        len(data) for number, _, data in pieces if recorded[f"connection-{number}.fwd"]
    )
    counts = [event.counts for event in of(events, RamSection) + of(events, LoosePages)]
    assert sum(count.normal for count in counts) == result.ram["normal"]
    assert sum(count.zero for count in counts) == result.ram["duplicate"]
    said = of(events, ReturnPathMessage)
    bitmaps = [message.arguments for message in said if message.name == "RECV_BITMAP"]
    blocks = {bitmap["block"] for bitmap in bitmaps}
    assert len(bitmaps) == pauses * len(blocks)
    memory = [bitmap for bitmap in bitmaps if bitmap["block"] == "pc.ram"]
    assert all(bitmap["pages"] == (GUEST["mem"] << 20) // 4096 for bitmap in memory)
    received = [int(bitmap["received"]) for bitmap in memory if isinstance(bitmap["received"], int)]
    assert len(received) == pauses
    assert received == sorted(received)  # what has come stays
    assert [message.name for message in said].count("RESUME_ACK") == pauses
    assert len(of(events, EndOfStream)) == 1
    assert {finding.code for finding in of(events, Finding)} <= {
        "requests-unanswered"
    }  # no order is recorded
