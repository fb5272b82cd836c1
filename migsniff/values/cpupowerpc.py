"""Registers of PowerPC: general ones, special purpose registers by number (target/ppc/machine.c)."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.fields import Table, elements, says, told
from migsniff.values.tables import powerpc
from migsniff.values.words import bits_text

CONDITIONS: Final[Mapping[int, str]] = {
    3: "LT",
    2: "GT",
    1: "EQ",
    0: "SO",
}  # of four bits; the Power ISA, book I
VECTORS: Final[Mapping[str, str]] = {"fpr": "f", "vsr": "vs"}
"""By the type of the field: the upper and the lower halves of the first 32 vector-scalar registers."""


def special(field: Field) -> Field:
    """Special purpose registers: those that are not 0 and have a name. Most of the 1024 do not exist."""
    values = field.value if isinstance(field.value, tuple) else ()
    names = {
        index: name
        for index, name in powerpc.SPRS.items()
        if index < len(values) and values[index] not in (0, None)
    }
    return elements(names)(field)


def vector(field: Field) -> Field:
    """Registers of the three units by the one name that QEMU has for them."""
    letter = VECTORS.get(field.type)
    if letter is None:
        return field
    named = elements({index: f"{letter}{index}" for index in range(32)})(field)
    return replace(named, meaning="lower halves") if letter == "vs" else named


REGISTERS: Final[Table] = {
    "env.gpr": elements({index: f"r{index}" for index in range(32)}),
    "env.crf": elements(
        {index: f"cr{index}" for index in range(8)}, lambda value: bits_text(value & 0xF, CONDITIONS)
    ),
    "env.spr": special,
    "env.msr": says(lambda value: bits_text(value, powerpc.MSR)),
    "env.fpscr": says(lambda value: bits_text(value & sum(1 << bit for bit in powerpc.FPSCR), powerpc.FPSCR)),
    "env.vsr": vector,
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU."""
    return told(fields, REGISTERS)
