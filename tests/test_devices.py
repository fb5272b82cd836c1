"""FULL sections: found by their footers, then exactly by the description."""

import pytest

from migsniff.core.events import DeviceSection, EndOfStream, Event
from tests import streams
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD
from tests.playing import of, play, precopy, verdict
from tests.streams import EOF, Device

HEAD = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS) + streams.ram_end()
NO_FOOTERS = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS, footer=False) + streams.ram_end(footer=False)
OWN_FOOTER = b"\x7e\0\0\0\x28"  # of section 40


def found(events: list[Event], *, provisional: bool) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the devices."""
    return [
        (event.idstr, event.offset, event.size)
        for event in of(events, DeviceSection)
        if event.provisional == provisional
    ]


def laid_out(devices: tuple[Device, ...], start: int, *, footer: bool = True) -> list[tuple[str, int, int]]:
    """Where devices stand that follow each other from `start` on."""
    places = []
    for device in devices:
        size = len(device.item(footer=footer))
        places.append((device.idstr.decode(), start, size))
        start += size
    return places


class TestFound:
    @pytest.mark.parametrize("footer", [True, False])
    def test_provisional_and_exact_agree(self, footer: bool) -> None:
        head = HEAD if footer else NO_FOOTERS
        events = play(precopy(head, streams.states(footer=footer), EOF, streams.described()))
        expected = laid_out(streams.DEVICES, len(head), footer=footer)
        assert found(events, provisional=True) == expected
        assert found(events, provisional=False) == expected
        assert all(event.footer is footer for event in of(events, DeviceSection))
        assert verdict(events).ok

    def test_neither_footers_nor_a_description(self) -> None:
        events = play(precopy(NO_FOOTERS, streams.states(footer=False), EOF))
        assert found(events, provisional=True) == laid_out(streams.DEVICES, len(NO_FOOTERS), footer=False)
        assert len(of(events, EndOfStream)) == 1
        assert verdict(events).ok

    def test_a_stream_that_ends_inside_a_device(self) -> None:
        stream = HEAD + streams.TIMER.item() + streams.CPU.item()
        events = play(precopy(stream[:-6]))
        assert found(events, provisional=True) == [("timer", len(HEAD), len(streams.TIMER.item()))]
        assert verdict(events).outcome == "truncated"
        assert "in section cpu_common instance 1 (FULL)" in verdict(events).message
