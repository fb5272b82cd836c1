"""What the bytes of a field mean, by the type name in the description: one registered function a meaning.

A value is something JSON can hold: numbers of at most 64 bits, no NaN. None: the raw bytes say it best.
"""

import math
from collections.abc import Callable
from re import compile as regex
from struct import unpack
from typing import Final

from migsniff.core.events import Value
from migsniff.core.registry import field_type

MAX_BITMAP: Final = 8192  # bytes of a bitmap that is told in ranges
TIMER_IDLE: Final = b"\xff" * 8

_SET_BITS: Final = regex("1+")
_VMSTATE_TYPES: Final = "migration/vmstate-types.c"


@field_type("int8", "int16", "int32", "int32 equal", "int32 le", "int64", source=_VMSTATE_TYPES)
@field_type("fd", source=_VMSTATE_TYPES)
def signed(raw: bytes) -> Value:
    """A signed integer. "int32 le" too is big-endian: the destination's value must be less or equal."""
    return int.from_bytes(raw, "big", signed=True) if 0 < len(raw) <= 8 else None


@field_type("uint8", "uint16", "uint32", "uint64", source=_VMSTATE_TYPES)
@field_type("uint8 equal", "uint16 equal", "uint32 equal", "int64 equal", source=_VMSTATE_TYPES)
@field_type("cpsr", "fpcr", "fpscr", "fpsr", source="target/arm/machine.c")
@field_type("fpr", "vsr", "cpu/altivec/vscr", source="target/ppc/machine.c")
@field_type("sreg", "rampD", "rampX", "rampY", "rampZ", "eind", source="target/avr/machine.c")
@field_type("fsr", "psr", "xcc", source="target/sparc/machine.c")
@field_type("psw", source="target/hppa/machine.c")
@field_type("sr", source="target/openrisc/machine.c")
@field_type("msr", source="target/microblaze/machine.c")
@field_type("int32_as_uint16", source="hw/rtc/twl92230.c")
def unsigned(raw: bytes) -> Value:
    """An unsigned integer ("int64 equal" is one) or a register."""
    return int.from_bytes(raw, "big") if 0 < len(raw) <= 8 else None


def integers(decode: Callable[[bytes], Value], size: int) -> str | None:
    """The letter by which struct unpacks an array of what `decode` reads, `size` bytes each, if it can."""
    if decode is signed:
        return {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
    if decode is unsigned:
        return {1: "B", 2: "H", 4: "I", 8: "Q"}.get(size)
    return None


@field_type("bool", source=_VMSTATE_TYPES)
@field_type("powered_off", source="target/arm/machine.c")
def boolean(raw: bytes) -> Value:
    """A byte, 0 or 1."""
    return raw != b"\0" if len(raw) == 1 else None


@field_type("avr", "slbe", source="target/ppc/machine.c")
def wide_register(raw: bytes) -> Value:
    """A register too wide for a number in JSON: text in hexadecimal (slbe: ESID, then VSID)."""
    return f"0x{raw.hex()}" if len(raw) == 16 else None


@field_type("float64", "CPU_Double_U", source=_VMSTATE_TYPES)
def double(raw: bytes) -> Value:
    """An IEEE 754 double; no value for NaN and the infinities, which JSON has not."""
    if len(raw) != 8:
        return None
    (value,) = unpack(">d", raw)
    return float(value) if math.isfinite(value) else None


@field_type("timer", source=_VMSTATE_TYPES)
def timer(raw: bytes) -> Value:
    """When it expires, in nanoseconds of its clock; None if it is not armed."""
    return int.from_bytes(raw, "big", signed=True) if len(raw) == 8 and raw != TIMER_IDLE else None


@field_type("buffer", source=_VMSTATE_TYPES)
def buffer(raw: bytes) -> Value:
    """Text, if it is printable ASCII padded with NUL; else None."""
    text = raw.rstrip(b"\0")
    return text.decode() if text and text.isascii() and text.decode().isprintable() else None


@field_type("unused_buffer", "nullptr", "unknown", source=_VMSTATE_TYPES)
@field_type("pci config", source="hw/pci/pci.c")
@field_type("msix state", source="hw/pci/msix.c")
@field_type("virtio", source="hw/virtio/virtio.c")
def raw_only(raw: bytes) -> Value:
    """Nothing to say in one value: a place not used, a NULL pointer, an image with a layout of its own."""
    return None


@field_type("bitmap", source=_VMSTATE_TYPES)
def bitmap(raw: bytes) -> Value:
    """The bits that are set, as Linux lists CPUs ("0-3,7"); words of 64 bits, bit 0 of each the lowest."""
    if len(raw) % 8 or len(raw) > MAX_BITMAP:
        return None
    words = unpack(f">{len(raw) // 8}Q", raw)
    bits = "".join(f"{word:064b}"[::-1] for word in words)
    spans = ((run.start(), run.end() - 1) for run in _SET_BITS.finditer(bits))
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


@field_type("pci irq state", source="hw/pci/pci.c")
def irq_lines(raw: bytes) -> Value:
    """The levels of INTA to INTD."""
    return unpack(">4I", raw) if len(raw) == 16 else None


@field_type("capability", source="migration/savevm.c")
def capability(raw: bytes) -> Value:
    """A name behind its length."""
    name = raw[1:]
    return (
        name.decode()
        if raw and raw[0] == len(name) and name.isascii() and name.decode().isprintable()
        else None
    )
