"""How names, sizes and times are written: the one place where text from a stream is made safe to show."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

NAME_LIMIT: Final = 255
TEXT_LIMIT: Final = 2000

_UNSAFE: Final = re.compile(r"[^\x20-\x7e]")
_UNSAFE_IN_NAME: Final = re.compile(r"[^\x21-\x7e]")


def escape(text: str) -> str:
    r"""Text with everything but printable ASCII as \xNN, \uNNNN or \UNNNNNNNN, and no longer than TEXT_LIMIT.

    Control and escape characters, line ends and characters that change the direction of writing never reach
    a terminal, whatever a stream calls its sections.
    """
    if len(text) > TEXT_LIMIT:
        text = text[: TEXT_LIMIT - 3] + "..."
    return _UNSAFE.sub(_escaped, text)


def name(text: str) -> str:
    """A name as one word: like `escape`, spaces are escaped too, and no name at all is ''."""
    return _short_name(text if len(text) <= NAME_LIMIT else text[: NAME_LIMIT - 3] + "...")


@lru_cache(maxsize=4096)  # the same few names, a hundred thousand times a second
def _short_name(text: str) -> str:
    return _UNSAFE_IN_NAME.sub(_escaped, text) or "''"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def several(count: int, what: str) -> str:
    """A number of things: 1 block, 2 blocks."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def memory(length: int) -> str:
    """A length of guest memory in binary units: 64 MiB, 64.6 MiB, 260 KiB."""
    value, unit = _scaled(length, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    return f"{value:.0f} {unit}" if value == int(value) else f"{_three_digits(value)} {unit}"


def wire(size: float) -> str:
    """A number of bytes on the wire in decimal units: 31.1 MB."""
    value, unit = _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"


def wires(sizes: Sequence[int]) -> str:
    """Some numbers of bytes, in the unit of the largest: 4.30 12.5 MB."""
    largest = max(sizes)
    value, unit = _scaled(largest, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    if unit == "B":
        return " ".join(map(str, sizes)) + " B"
    return " ".join(_three_digits(size * value / largest) for size in sizes) + f" {unit}"


def rate(per_second: float | None) -> str:
    """Bytes a second: 1.20 GB/s; "-" when not known."""
    return "-" if per_second is None else wire(per_second) + "/s"


def number(value: float | None) -> str:
    """A count that stays within 7 characters: 65535, 245.3k, 1.2M; "-" when not known."""
    if value is None:
        return "-"
    if value < 99_999.5:
        return f"{value:.0f}"
    value, unit = _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))
    return _three_digits(value) + unit


def seconds(microseconds: int | None) -> str:
    """A duration: 123 us, 68.2 ms, 12.34 s, 2:03:04; "-" when not known."""
    if microseconds is None:
        return "-"
    if microseconds < 1_000:
        return f"{microseconds} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1e3:.1f} ms"
    if microseconds < 100_000_000:
        return f"{microseconds / 1e6:.2f} s"
    whole = microseconds // 1_000_000
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> tuple[float, str]:
    for unit in units:
        if value < step or unit == units[-1]:
            break
        value /= step
    return value, unit


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 999.95 else f"{value:.0f}"


def from_whom(by: str) -> str:
    """Who ended a connection, behind how it ended; nothing for a file that ends."""
    return "" if by == "file" else f" from {by}"


def place(where: str) -> str:
    """Where something happened, as the end of a sentence; nothing for nowhere."""
    if not where:
        return ""
    return f", {'' if where.startswith(('between', 'behind', 'before')) else 'in '}{escape(where)}"
