"""Numbers in words: bits by name, bits as ranges, times in units."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

BITS_NAMED: Final = 64
NANOSECONDS: Final = 1_000_000_000
_UNITS: Final = ((1, "ns", 1_000), (1_000, "us", 1_000_000), (1_000_000, "ms", NANOSECONDS))


def bits_text(value: int, names: Mapping[int, str]) -> str:
    """The bits that are set, by name, those without one by number: "PE ET bit 9"."""
    known = [name for bit, name in names.items() if value >> bit & 1]
    rest = value & ~sum(1 << bit for bit in names)
    return " ".join([*known, *([bit_ranges(rest)] if rest > 0 else [])])


def ranges(value: int) -> str:
    """The numbers of the bits that are set: "0-3, 7"; empty for none."""
    found = []
    at = 0
    while value >> at > 0:
        at += (value >> at & -(value >> at)).bit_length() - 1
        end = at + (~(value >> at) & (value >> at) + 1).bit_length() - 1
        found.append(str(at) if end == at + 1 else f"{at}-{end - 1}")
        at = end
    return ", ".join(found)


def bit_ranges(value: int) -> str:
    """The same with what they are: "bits 0-3, 7", "bit 7"; empty for none."""
    text = ranges(value)
    return text and f"bit {text}" if value & (value - 1) == 0 else f"bits {text}"


def duration(nanoseconds: int) -> str:
    """A length of time, to the microsecond from a second on: "640 ns", "1.5 ms", "12.345678 s", "-2 s"."""
    size = abs(nanoseconds)
    sign = "-" if nanoseconds < 0 else ""
    for scale, unit, limit in _UNITS:
        if size < limit:
            return f"{sign}{_decimal(size, scale)} {unit}"
    return f"{sign}{_decimal(size // 1_000, 1_000_000)} s"


def date(seconds: int) -> str:
    """A time of day in UTC; empty for what no calendar has."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return ""


def frequency(hertz: int) -> str:
    """A rate: "62.5 MHz"."""
    for scale, unit in ((NANOSECONDS, "GHz"), (1_000_000, "MHz"), (1_000, "kHz")):
        if hertz >= scale:
            return f"{_decimal(hertz, scale)} {unit}"
    return f"{hertz} Hz"


def _decimal(value: int, scale: int) -> str:
    """value / scale, exactly: an integer has more digits than a float."""
    whole, rest = divmod(value, scale)
    digits = f"{rest:0{len(str(scale)) - 1}}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
