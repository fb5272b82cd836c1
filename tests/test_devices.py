"""FULL sections: found by their footers, then exactly by the description."""

import json

import pytest

from migsniff.core.devices import DeviceStateBudget
from migsniff.core.events import (
    CommandSent,
    DeviceSection,
    EndOfStream,
    Event,
    Finding,
    LiveSection,
    Package,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.core.wire import Command, ItemType
from tests import streams
from tests.catalogue import SMALL, SMALL_BLOCKS, SMALL_HEAD
from tests.playing import arrivals, decode, of, play, precopy, verdict
from tests.streams import EOF, Device, command, full, package, section

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
        assert [finding.code for finding in of(events, Finding)] == ["end-guessed"]
        assert verdict(events).ok

    def test_a_stream_that_ends_inside_a_device(self) -> None:
        stream = HEAD + streams.TIMER.item() + streams.CPU.item()
        events = play(precopy(stream[:-6]))
        sizes = len(streams.TIMER.item()), len(streams.CPU.item()) - 6
        came = [("timer", len(HEAD), sizes[0]), ("cpu_common", len(HEAD) + sizes[0], sizes[1])]
        assert found(events, provisional=True) == came
        assert [event.cut for event in of(events, DeviceSection)] == [False, True]
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


class TestLookAlikes:
    """Bytes in a payload that look like its end: the description puts it right."""

    def events(self, payload: bytes, *, footer: bool = True) -> list[Event]:
        devices = (streams.TIMER, Device(40, b"big", payload), streams.CPU)
        head = HEAD if footer else NO_FOOTERS
        return play(
            precopy(head, streams.states(devices, footer=footer), EOF, streams.described(devices, SMALL))
        )

    @pytest.mark.parametrize(
        "behind",
        [
            b"",
            b"\x04",
            b"\x04\0\0\0\x05\0",
            b"\x04\0\0\0\x05\x03a\0b" + bytes(8),
            b"\x04\0\0\0\x05\x01a\0\0\0\0\0\1\0\0",  # a version that no device has
            b"\x04\0\0\0\x28\x01a" + bytes(8),  # an id that was there already
            b"\x02\0\0\0\x63",
            b"\x08\0\x02\0\x05",
            b"\x08\0\x63\0\x04",
            b"\0\x06\0\0\0\x02[]",
            b"\0\0",
            b"\x7e",
        ],
    )
    def test_nothing_that_can_follow_a_section(self, behind: bytes) -> None:
        events = self.events(b"in front" + OWN_FOOTER + behind + b"behind it, and on")
        assert not of(events, Finding)
        assert found(events, provisional=True) == found(events, provisional=False)
        assert [event.corrects for event in of(events, DeviceSection)] == [None] * 6

    def test_a_command_that_can_follow_a_section(self) -> None:
        """It is believed. From there on nothing fits, and it says so."""
        events = self.events(b"in front" + OWN_FOOTER + streams.ping(7) + b"behind")
        assert [name for name, _, _ in found(events, provisional=True)] == ["timer", "big"]
        assert [event.arguments for event in of(events, CommandSent)] == [{"value": 7}]
        assert [event.code for event in of(events, Undecodable)] == ["item-type"]

    def test_a_section_that_can_follow_a_section(self) -> None:
        """It is believed, and its end never comes."""
        events = self.events(b"in front" + OWN_FOOTER + full(99, b"fake", b"", footer=False) + b"behind")
        assert [name for name, _, _ in found(events, provisional=True)] == ["timer", "big", "fake"]
        assert [event.cut for event in of(events, DeviceSection)] == [False, False, True]
        assert "in section fake instance 0 (FULL)" in verdict(events).message

    def test_corrected_by_the_description(self) -> None:
        """Without footers the stream goes on behind such a section, and the description knows better."""
        inside = full(99, b"fake", b"", footer=False)
        events = self.events(b"in front" + inside + b"behind", footer=False)
        assert [name for name, _, _ in found(events, provisional=True)] == [
            "timer",
            "big",
            "fake",
            "cpu_common",
        ]
        devices = (streams.TIMER, Device(40, b"big", b"in front" + inside + b"behind"), streams.CPU)
        assert found(events, provisional=False) == laid_out(devices, len(NO_FOOTERS), footer=False)
        exact = [event for event in of(events, DeviceSection) if not event.provisional]
        assert [event.corrects for event in exact] == [None, 17 + len(b"in front"), None]
        assert verdict(events).ok

    def test_a_version_that_is_a_date(self) -> None:
        """An EEPROM's, in front of network cards of Intel and the DC390 (hw/nvram/eeprom93xx.c)."""
        eeprom = Device(39, b"0000:00:05.0/eeprom", b"\0" * 40, version=20061113)
        devices = (streams.TIMER, eeprom, streams.CPU)
        events = play(precopy(HEAD, streams.states(devices), EOF))
        assert found(events, provisional=True) == laid_out(devices, len(HEAD), footer=True)


class TestDescribed:
    """The description against the stream."""

    def events(self, *sizes: int | None, footer: bool = True) -> list[Event]:
        devices = (streams.TIMER, streams.CPU, streams.SERIAL)
        told = [device.describe(size) for device, size in zip(devices, sizes, strict=True) if size != -1]
        text = streams.description(json.dumps({"devices": told}).encode())
        head = HEAD if footer else NO_FOOTERS
        return play(precopy(head, streams.states(devices, footer=footer), EOF, text), fields=True)

    @pytest.mark.parametrize("footer", [True, False])
    @pytest.mark.parametrize(
        ("size", "code"),
        [(None, None), (3, "walk-end"), (24 + 2, "walk-end"), (5000, "field-short"), (-1, None)],
    )
    def test_sizes(self, size: int | None, code: str | None, footer: bool) -> None:
        events = self.events(size, None, None, footer=footer)
        exact = [event for event in of(events, DeviceSection) if not event.provisional]
        assert found(events, provisional=True) == found(events, provisional=False)
        assert [finding.code for finding in of(events, Finding)] == ([code] if code else [])
        assert [event.described for event in exact] == [size != -1, True, True]
        assert sum(field.size for field in exact[1].fields) == len(streams.CPU.payload)
        assert exact[0].undescribed == {None: 0, 3: 21, -1: 24, 5000: 24}.get(size, 0)


class TestPackages:
    def test_the_last_device_ends_with_the_package(self) -> None:
        """Nothing plausible stands behind it: the package's length tells."""
        head = HEAD + command(Command.POSTCOPY_LISTEN)
        events = play(
            precopy(head, package(streams.TIMER.item(), streams.CPU.item()), streams.ram_end(), EOF)
        )
        assert [name for name, _, _ in found(events, provisional=True)] == ["timer", "cpu_common"]
        assert len(of(events, Package)) == 1
        assert verdict(events).ok

    def test_without_footers(self) -> None:
        head = NO_FOOTERS + command(Command.POSTCOPY_LISTEN)
        items = package(streams.states(footer=False), streams.ping(3), command(Command.POSTCOPY_RUN))
        events = play(precopy(head, items, EOF))
        assert [name for name, _, _ in found(events, provisional=True)] == [
            device.idstr.decode() for device in streams.DEVICES
        ]
        assert verdict(events).ok


@pytest.mark.parametrize("kind", [ItemType.SECTION_START, ItemType.SECTION_PART, ItemType.SECTION_END])
def test_an_unknown_live_section_ends_at_its_footer(kind: ItemType) -> None:
    begin = section(ItemType.SECTION_START, 50, b"", b"acme/live")
    payload = b"7e \x7e\0\0\0\x32 and \x7e\0\0\0\x33 behind"
    item = section(kind, 51 if kind == ItemType.SECTION_START else 50, payload, b"acme/other")
    payload_at = len(HEAD + begin)
    events = play(precopy(HEAD, begin, item, streams.ping(1), EOF))
    last = of(events, LiveSection)[-1]
    assert (last.offset, last.size, last.provisional, last.footer) == (payload_at, len(item), True, True)


def test_a_package_has_no_end_of_stream_inside() -> None:
    """A timer's value looked like the section's footer and an EOF: 0x7e, and more zeroes than an id has."""
    timer = full(0, b"timer", b"\0\0\0\x7e\0\0\0\0\0\0\0\x2a" * 2)
    inside = command(Command.POSTCOPY_LISTEN), timer, full(5, b"cpu", b"abc"), command(Command.POSTCOPY_RUN)
    events = play(precopy(HEAD, package(*inside), EOF))
    assert of(events, Undecodable) == []
    assert [(event.idstr, event.size) for event in of(events, DeviceSection)] == [
        ("timer", len(timer)),
        ("cpu", len(inside[2])),
    ]
