"""FULL sections: found by their footers, then exactly by the description."""

import pytest

from migsniff.core.devices import DeviceStateBudget
from migsniff.core.events import DeviceSection, EndOfStream, Event, Finding
from migsniff.core.session import Session
from tests import streams
from tests.catalogue import SMALL, SMALL_BLOCKS, SMALL_HEAD
from tests.playing import arrivals, decode, of, play, precopy, verdict
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
        events = play(precopy(head, streams.states(footer=footer), EOF, streams.described(page_size=SMALL)))
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


class TestBudget:
    """What one process keeps of device state, over all its migrations."""

    @pytest.mark.parametrize("end", [b"", EOF, EOF + streams.described(page_size=SMALL)])
    def test_given_back_however_a_migration_ends(self, end: bytes) -> None:
        budget = DeviceStateBudget(1000)
        for _ in range(5):
            session = Session(budget=budget)
            events = decode(session, arrivals(precopy(HEAD, streams.states(), end)))
            assert not of(events, Finding)
            assert budget.left == 1000

    def test_what_is_over_it_is_not_described(self) -> None:
        budget = DeviceStateBudget(len(streams.TIMER.item()) + len(streams.CPU.item()))
        events = decode(
            Session(budget=budget),
            arrivals(precopy(HEAD, streams.states(), EOF, streams.described(page_size=SMALL))),
        )
        assert [name for name, _, _ in found(events, provisional=True)] == [
            device.idstr.decode() for device in streams.DEVICES
        ]
        assert [name for name, _, _ in found(events, provisional=False)] == ["timer", "cpu_common"]
        assert [finding.code for finding in of(events, Finding)] == ["device-too-big"]
        assert verdict(events).ok
