"""What stands behind an option, read from its text: for argparse, which shows what is raised."""

import argparse
from typing import Final

MAX_DRAIN: Final = 3600  # seconds
SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= MAX_DRAIN:  # nan is not, either
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0 and up to {MAX_DRAIN}")
    return seconds


def port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port number")
    return int(text)


def offset(text: str) -> int:
    """Bytes, decimal with a suffix or hexadecimal."""
    try:
        unit = text[-1:].lower() if text[-1:].lower() in SIZES and not text.startswith("0x") else ""
        offset = int(text[: len(text) - len(unit)], 0) * SIZES[unit]
        if 0 <= offset < 1 << 63:
            return offset
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no offset in bytes")


def autostop(text: str) -> tuple[str, int]:
    """duration:S in µs, or size:N in bytes."""
    kind, _, value = text.partition(":")
    try:
        if kind == "duration" and float(value) > 0:
            return kind, int(float(value) * 1e6)
        if kind == "size":
            unit = value[-1:].lower() if not value[-1:].isdecimal() else ""
            size = int(value[: len(value) - len(unit)]) * SIZES[unit]
            if size > 0:
                return kind, size
    except (ValueError, KeyError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is neither duration:SECONDS nor size:BYTES")
