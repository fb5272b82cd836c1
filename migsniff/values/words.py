"""Numbers in words: bits by name, bits as ranges, times in units."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

NANOSECONDS: Final = 1_000_000_000
_ONES: Final = re.compile("1+")
_UNITS: Final = ((1, "ns", 1_000), (1_000, "us", 1_000_000), (1_000_000, "ms", NANOSECONDS))


def bits_text(value: int, names: Mapping[int, str]) -> str:
    """The bits that are set, by name, those without one by number: "PE ET bit 9"."""
    rest = value & ~sum(1 << bit for bit in names)
    return " ".join(filter(None, (named_bits(value, names), bit_ranges(rest))))


def named_bits(value: int, names: Mapping[int, str]) -> str:
    """The same without those that have no name."""
    return " ".join([name for bit, name in names.items() if value >> bit & 1])


def shifted_down(value: int, mask: int) -> int:
    """The part of a number that the mask has, as a number of its own."""
    return (value & mask) // (mask & -mask)


def ranges(value: int) -> str:
    """The numbers of the bits that are set: "0-3, 7"; empty for none, and for a negative number."""
    runs = _ONES.finditer(f"{max(0, value):b}"[::-1])
    spans = [(run.start(), run.end() - 1) for run in runs]
    return ", ".join([str(first) if first == last else f"{first}-{last}" for first, last in spans])


def bit_ranges(value: int) -> str:
    """The same with what they are: "bits 0-3, 7", "bit 7"; empty for none."""
    if not (text := ranges(value)):
        return ""
    return f"bit {text}" if value & (value - 1) == 0 else f"bits {text}"


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
