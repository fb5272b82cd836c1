"""Clocks and timers: the guest's virtual clock, times of day, what is armed for when."""

from typing import Final

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.values.fields import Words, number, says, told
from migsniff.values.meaning import DEVICES, TYPES, Place
from migsniff.values.words import NANOSECONDS, date, duration, frequency

TIME_OF_DAY: Final = 946_684_800 * NANOSECONDS
"""What is more than this (the year 2000) is no virtual clock: no guest runs for thirty years."""
TIMEBASE: Final = 512_000_000  # ticks a second of PowerPC's time base since POWER8; QEMU has no other


def virtual_clock(section: DeviceSection) -> int | None:
    """The guest's virtual clock when it was stopped, in nanoseconds, if this section has it."""
    if section.idstr != "timer":
        return None
    return next((number(field) for field in section.fields if field.name == "cpu_clock_offset"), None)


def moment(clock: int | None) -> Words:
    """A time on the virtual clock, and how far off that is; -1 is none, 0 was never set."""

    def words(value: int) -> str:
        if value == -1:
            return "not armed"
        if not value:
            return ""
        at = f"at {duration(value)}"
        if clock is None:
            return at
        return (
            f"{at}, in {duration(value - clock)}"
            if value >= clock
            else f"{at}, {duration(clock - value)} ago"
        )

    return words


def time_of_day(nanoseconds: int) -> str:
    """Nanoseconds since 1970."""
    return date(nanoseconds // NANOSECONDS)


@TYPES("timer", source="migration/vmstate-types.c")
def timer(field: Field, place: Place) -> Field:
    """When it expires: by the virtual clock, or a time of day if it can be no other; nothing tells which."""
    value = number(field)
    if value is None or field.meaning:
        return field
    if value >= TIME_OF_DAY:
        return replace(field, meaning=time_of_day(value))
    if place.clock is None:
        return field
    left = value - place.clock
    return replace(field, meaning=f"the virtual clock {'+' if left >= 0 else '-'} {duration(abs(left))}")


@DEVICES("timer", source="system/cpu-timers.c")
def clocks(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The virtual clock; CPU ticks have no unit of their own."""
    return told(fields, {"cpu_clock_offset": says(duration)})


@DEVICES("pl031", source="hw/rtc/pl031.c")
def pl031(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time of day of Arm boards, at the start of the virtual clock."""
    return told(fields, {"tick_offset_vmstate": says(date)})


@DEVICES("goldfish_rtc", source="hw/rtc/goldfish_rtc.c")
def goldfish(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time of day of RISC-V boards."""
    return told(fields, {"tick_offset": says(_signed_duration), "alarm_next": says(time_of_day_if_set)})


def _signed_duration(value: int) -> str:
    return duration(value - (1 << 64) if value >> 63 else value)


def time_of_day_if_set(value: int) -> str:
    """Nanoseconds since 1970; 0 is none."""
    return time_of_day(value) if value else ""


@DEVICES("rtc", source="hw/ppc/spapr_rtc.c")
def spapr_rtc(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time of day of a pseries: how far it is from the host's."""
    return told(fields, {"ns_offset": says(duration)})


@DEVICES("spapr", source="hw/ppc/ppc.c")
def spapr(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time base of PowerPC, and the host's time that belongs to it."""
    return told(
        fields,
        {
            "tb.guest_timebase": says(
                lambda value: f"{duration(value * NANOSECONDS // TIMEBASE)} at {frequency(TIMEBASE)}"
            ),
            "tb.time_of_the_day_ns": says(time_of_day),
        },
    )
