"""COLO: messages either way behind the first migration, and what a checkpoint brings."""

import json
from pathlib import Path

import pytest

from migsniff.cli import main
from migsniff.core.arrivals import Direction
from migsniff.core.events import (
    ColoMessage,
    DeviceSection,
    DirtySync,
    EndOfStream,
    Event,
    PageCounts,
    RamBlocks,
    RamSection,
    Undecodable,
)
from migsniff.core.wire import ColoMessageType
from migsniff.show.migration import MigrationStats
from tests.catalogue import STREAMS
from tests.playing import Cut, Stream, bytewise, of, pieces_of, play, verdict, whole
from tests.streams import EOF, colo

COLO = STREAMS["colo"]
SAMPLE = str(Path(__file__).parent.parent / "captures/samples/x86-72-colo")


@pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(30)])
def test_a_checkpoint(cut: Cut) -> None:
    events = play(COLO, cut)
    said = [(event.direction, event.name, event.checkpoint) for event in of(events, ColoMessage)]
    assert sorted(said) == sorted(
        [
            ("rev", "CHECKPOINT_READY", 0),
            ("fwd", "CHECKPOINT_REQUEST", 1),
            ("rev", "CHECKPOINT_REPLY", 1),
            ("fwd", "VMSTATE_SEND", 1),
            ("fwd", "VMSTATE_SIZE", 1),
            ("rev", "VMSTATE_RECEIVED", 1),
            ("rev", "VMSTATE_LOADED", 1),
            ("fwd", "CHECKPOINT_REQUEST", 2),
        ]
    )
    assert len(of(events, EndOfStream)) == 3
    assert [section.section_type for section in of(events, RamSection)][-2:] == ["END", "END"]
    exact = [event for event in of(events, DeviceSection) if not event.provisional]
    half = len(exact) // 2
    assert [device.idstr for device in exact[:half]] == [device.idstr for device in exact[half:]]
    assert all(device.described for device in exact)
    assert verdict(events).ok
    assert "1 sent, 1 loaded" in verdict(events).message
    assert "in checkpoint 2" in verdict(events).message


@pytest.mark.parametrize("number", [0, 2, 7])
def test_a_message_that_the_source_never_sends(number: int) -> None:
    events = play(Stream((*COLO.pieces[:2], (0, "fwd", colo(number)))))
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.direction) == ("colo-message", "fwd")
    assert verdict(events).outcome == "undecodable"


@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_message_that_the_destination_never_sends(number: int) -> None:
    events = play(Stream((*COLO.pieces[:2], (0, "rev", colo(number)))))
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.direction) == ("colo-message", "rev")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (colo(4, 0), "length"),
        (colo(4, 1 << 40), "length"),
        (colo(4, 1) + b"\1", "item-type"),
        (colo(4, 4) + EOF * 4, "package-eof"),
    ],
)
def test_state_of_a_wrong_size(more: bytes, code: str) -> None:
    events = play(Stream((*COLO.pieces[:2], (0, "fwd", colo(1) + more))))
    (problem,) = of(events, Undecodable)
    assert problem.code == code


def test_without_a_checkpoint() -> None:
    events = play(Stream(COLO.pieces[:2]))
    assert verdict(events).ok
    assert "0 sent, 0 loaded" in verdict(events).message


def test_the_pass_of_a_checkpoint_takes_what_sending_it_takes(capfd: pytest.CaptureFixture[str]) -> None:
    """What it sends the guest dirtied in the seconds since it ran on, as READY and VMSTATE_SEND tell."""
    assert main(["info", "-T", "json", "--descriptions", "none", SAMPLE]) == 0
    shown = json.loads(capfd.readouterr().out)
    checkpoint = shown["iterations"][2]
    assert (checkpoint["began"], checkpoint["duration"], checkpoint["pages"]) == (3.056887, 0.006562, 385)
    assert checkpoint["dirty_rate"] == pytest.approx(385 / (3.056887 - 0.044918))
    assert main(["read", "--descriptions", "none", SAMPLE]) == 0
    assert "pass 3 done: 385 pages, normal=385 resent=385 in 0.006562 s" in capfd.readouterr().out


def test_how_fast_a_guest_dirtied_pages_is_known_without_the_return_path() -> None:
    """It ran on at the earliest when the checkpoint before had been sent."""

    def synced(iteration: int) -> DirtySync:
        return DirtySync(
            channel="main",
            direction="fwd",
            offset=0,
            size=0,
            iteration=iteration,
            final=iteration > 1,
            counts=PageCounts(normal=100),
        )

    def said(direction: Direction, kind: ColoMessageType) -> ColoMessage:
        return ColoMessage(
            channel="main", direction=direction, offset=0, size=4, message=kind, name=kind.name, checkpoint=1
        )

    stats = MigrationStats("m")
    blocks = RamBlocks(
        channel="main",
        direction="fwd",
        offset=0,
        size=0,
        total=0,
        page_size=4096,
        page_size_from="",
        blocks=(),
    )
    events: list[tuple[int, Event]] = [
        (1_000_000, blocks),
        (2_000_000, synced(1)),
        (2_100_000, synced(2)),
        (4_100_000, said("fwd", ColoMessageType.VMSTATE_SEND)),
        (4_200_000, synced(3)),
        (4_500_000, said("rev", ColoMessageType.VMSTATE_LOADED)),
        (5_500_000, said("fwd", ColoMessageType.VMSTATE_SEND)),
        (5_600_000, synced(4)),
        (9_600_000, said("fwd", ColoMessageType.VMSTATE_SEND)),
        (9_700_000, synced(5)),
    ]
    for time, event in events:
        stats.update(time, event)
    assert [each.duration for each in stats.all_passes()] == [1_000_000, *[100_000] * 4]
    assert [each.dirty_rate for each in stats.all_passes()] == [None, 100, 50, 100, 25]
