"""COLO: messages either way behind the first migration, and what a checkpoint brings."""

import pytest

from migsniff.core.events import (
    ColoMessage,
    DeviceSection,
    EndOfStream,
    RamSection,
    Undecodable,
)
from tests.catalogue import STREAMS
from tests.playing import Cut, Stream, bytewise, of, pieces_of, play, verdict, whole
from tests.streams import EOF, colo

COLO = STREAMS["colo"]


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
