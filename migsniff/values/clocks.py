"""Clocks and timers: the guest's virtual clock, times of day, what is armed for when."""

from typing import Final

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.values.fields import Words, number, says, told
from migsniff.values.meaning import DEVICES, TYPES, Place
from migsniff.values.words import NANOSECONDS, date, duration

TIME_OF_DAY: Final = 946_684_800 * NANOSECONDS
"""What is more than this (the year 2000) is no virtual clock: no guest runs for thirty years."""


def virtual_clock(section: DeviceSection) -> int | None:
    """The guest's virtual clock when it was stopped, in nanoseconds, if this section has it."""
    if section.idstr != "timer":
        return None
    return next((number(field) for field in section.fields if field.name == "cpu_clock_offset"), None)


def moment(clock: int | None) -> Words:
    """A time on the virtual clock, and how far off that is; -1 is none, 0 was never set."""

    def said(value: int) -> str:
        if value == -1:
            return "not armed"
        if not value:
            return ""
        words = f"at {duration(value)}"
        if clock is None:
            return words
        left = duration(abs(value - clock))
        return f"{words}, in {left}" if value >= clock else f"{words}, {left} ago"

    return said


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
    """The time of day of Arm boards when the virtual clock was 0."""
    return told(fields, {"tick_offset_vmstate": says(date)})


@DEVICES("goldfish_rtc", source="hw/rtc/goldfish_rtc.c")
def goldfish(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time of day of RISC-V boards: how far it is from the host's, and the next alarm."""
    return told(fields, {"tick_offset": says(clock_offset), "alarm_next": says(time_of_day_if_set)})


def clock_offset(value: int) -> str:
    """How far a clock is from the host's (64 bits, signed), or from the virtual one, which begins at 0."""
    if value >> 63 == 1:
        value -= 1 << 64
    return time_of_day(value) if value >= TIME_OF_DAY else duration(value)


def time_of_day_if_set(value: int) -> str:
    """Nanoseconds since 1970; 0 is none."""
    return time_of_day(value) if value else ""


@DEVICES("rtc", source="hw/ppc/spapr_rtc.c")
def spapr_rtc(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time of day of a pseries: how far it is from the host's."""
    return told(fields, {"ns_offset": says(clock_offset)})


@DEVICES("spapr", source="hw/ppc/ppc.c")
def spapr(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The host's time when the guest was stopped. The time base itself is in ticks of the host's counter."""
    return told(fields, {"tb.time_of_the_day_ns": says(time_of_day)})
