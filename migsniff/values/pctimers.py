"""Timers of PCs: the interval timer (8254), the real-time clock, the high precision event timer."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.clocks import moment, time_of_day, time_of_day_if_set
from migsniff.values.fields import bits, number, says, told
from migsniff.values.meaning import DEVICES, Place
from migsniff.values.tables import x86
from migsniff.values.words import NANOSECONDS, date, duration, named_bits, shifted_down

HPET_TICK: Final = 10  # nanoseconds: the period that QEMU's tells the guest
RTC_TICKS: Final = 32_768  # a second
CMOS_CENTURY: Final = 0x32  # where the firmware of PCs has it


@DEVICES("i8254", source="hw/timer/i8254_common.c")
def i8254(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """Three counters, which count 1193182 times a second."""
    when = says(moment(place.clock))
    return told(
        fields,
        {
            "channels": pit_channel,
            "channels.count": says(pit_time),
            "channels.count_load_time": when,
            "channels.next_transition_time": when,
            "channels[0].next_transition_time": when,
        },
    )


def pit_time(counts: int) -> str:
    """How long it takes to count this many."""
    return duration(counts * NANOSECONDS // x86.PIT_TICK_RATE) if counts > 0 else ""


def pit_channel(field: Field) -> Field:
    """A counter: its mode, and how often it starts again."""
    found = {child.name: number(child) for child in field.children}
    mode, count = found.get("mode"), found.get("count")
    if mode is None or count is None:
        return field
    words = f"mode {mode}, {pit_time(count)}".removesuffix(", ")
    return replace(field, meaning=f"{words}, gate closed" if found.get("gate") == 0 else words)


@DEVICES("hpet", source="hw/timer/hpet.c")
def hpet(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """A counter, and timers that compare with it."""
    return told(
        fields,
        {
            "config": says(bits(x86.HPET_CONFIG)),
            "hpet_counter": says(hpet_time),
            "timer.config": says(hpet_timer),
            "timer.cmp": says(lambda value: "" if value + 1 in (1 << 32, 1 << 64) else hpet_time(value)),
            "timer.period": says(lambda value: hpet_time(value) if value else ""),
        },
    )


def hpet_time(ticks: int) -> str:
    """Ticks of its counter."""
    return duration(ticks * HPET_TICK)


def hpet_timer(value: int) -> str:
    """What a timer is set to; the upper half says which interrupts it could raise."""
    route = shifted_down(value, x86.HPET_TN_ROUTE)
    words = named_bits(value, x86.HPET_TIMER)
    return f"{words}, interrupt {route}" if route else words


@DEVICES("mc146818rtc", source="hw/rtc/mc146818rtc.c")
def mc146818rtc(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The real-time clock of PCs; its times are those of the host, unless -rtc clock= says otherwise."""
    return told(
        fields,
        {
            "cmos_data": cmos,
            "base_rtc": says(date),
            "last_update": says(time_of_day),
            "next_alarm_time": says(time_of_day_if_set),
            "next_periodic_time": says(time_of_day_if_set),
            "offset": says(lambda value: duration(value) if value else ""),
            "period": says(lambda value: duration(value * NANOSECONDS // RTC_TICKS) if value else ""),
        },
    )


def cmos(field: Field) -> Field:
    """Date and time, and what is switched on in register B."""
    raw = field.raw
    if len(raw) <= CMOS_CENTURY:
        return field
    registers: Mapping[str, int] = x86.RTC
    control = raw[registers["CONTROL"]]
    binary = control & registers["DM_BINARY"]
    names = ("YEAR", "MONTH", "DAY_OF_MONTH", "HOURS", "MINUTES", "SECONDS")
    places = (CMOS_CENTURY, *(registers[name] for name in names))
    numbers = [raw[at] if binary else 10 * (raw[at] >> 4) + (raw[at] & 15) for at in places]
    words = "{:02}{:02}-{:02}-{:02} {:02}:{:02}:{:02}".format(*numbers)
    if not control & registers["24H"]:
        words += ", hours 1 to 12"
    enabled = named_bits(control, x86.RTC_CONTROL)
    return replace(field, meaning=", ".join(filter(None, (words, enabled))))
