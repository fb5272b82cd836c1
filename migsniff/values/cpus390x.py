"""Registers and clocks of s390x: program status word, general and control ones (target/s390x/machine.c)."""

from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.fields import Table, Words, bits, elements, says, told
from migsniff.values.meaning import DEVICES, Place
from migsniff.values.tables import s390x
from migsniff.values.words import bits_text, date, duration, named_bits, shifted_down

TOD_MICROSECOND: Final = (
    4096  # units of its clocks in one: bit 51 counts microseconds (Principles of Operation)
)
TOD_SIZE: Final = 10
STATES: Final = (
    "uninitialized",
    "stopped",
    "check-stop",
    "operating",
    "load",
)  # qapi/machine.json, CpuS390State


def part(name: str, mask: int) -> int:
    """A part of the program status word."""
    return shifted_down(mask, s390x.PSW_MASKS[name])


def status_word(mask: int) -> str:
    """The mask of a program status word: what may interrupt, how it addresses, key, condition code.

    Without KVM, QEMU does not send the condition code: 0 says nothing.
    """
    width = 64 if part("EA", mask) else 31 if part("BA", mask) else 24
    flags = bits_text(mask & ~sum(s390x.PSW_MASKS.values()), s390x.PSW)
    space = f"{s390x.SPACES[mask & s390x.PSW_MASKS['ASC']]} space" if "DAT" in flags.split() else ""
    numbers = (("key", "KEY"), ("CC", "CC"), ("program mask", "PM"))
    parts = [f"{name} {part(key, mask)}" if part(key, mask) else "" for name, key in numbers]
    return ", ".join(filter(None, (flags, f"{width}-bit", space, *parts)))


def tod_date(units: int) -> str:
    """A reading of the time-of-day clock; 0 is none, all ones never come."""
    if units in (0, (1 << 64) - 1):
        return ""
    return date((units - s390x.TOD_UNIX_EPOCH) // (TOD_MICROSECOND * 1_000_000))


def tod_duration(units: int) -> str:
    """A time of the CPU timer, which may be negative: it has run out."""
    if units >> 63:
        units -= 1 << 64
    return duration(units * 1000 // TOD_MICROSECOND) if units else ""


CONTROL: Final[dict[str, Words]] = {
    "c0": bits(s390x.CR0),
    "c2": lambda value: named_bits(value, s390x.CR2),
    "c14": bits(s390x.CR14),
}
REGISTERS: Final[Table] = {
    "env.regs": elements({index: f"r{index}" for index in range(16)}),
    "env.aregs": elements({index: f"a{index}" for index in range(16)}),
    "env.cregs": elements({index: f"c{index}" for index in range(16)}, CONTROL),
    "env.psw.mask": says(status_word),
    "env.ckc": says(tod_date),
    "env.cputm": says(tod_duration),
    "env.cpu_state": says(lambda value: STATES[value] if 0 <= value < len(STATES) else ""),
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU."""
    return told(fields, REGISTERS)


@DEVICES("todclock", source="hw/s390x/tod.c")
def tod_clock(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The time-of-day clock: a flag, the epoch, and 64 bits of it."""
    return told(fields, {"data": tod})


def tod(field: Field) -> Field:
    """A reading of the clock, of the first epoch, which ends in 2042."""
    if len(field.raw) != TOD_SIZE or field.raw[1]:
        return field
    text = tod_date(int.from_bytes(field.raw[2:], "big"))
    return replace(field, meaning=text) if text else field
