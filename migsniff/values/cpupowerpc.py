"""Registers of PowerPC: general ones, special purpose registers by number (target/ppc/machine.c)."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.fields import FieldMeaning, Table, bits, elements, says, told
from migsniff.values.tables import powerpc
from migsniff.values.words import bits_text, named_bits

# of the four bits of a condition register field; the Power ISA, book I
CONDITIONS: Final[Mapping[int, str]] = {3: "LT", 2: "GT", 1: "EQ", 0: "SO"}
VERSION: Final = next(number for number, name in powerpc.COMMON_SPRS.items() if name == "PVR")
VECTORS: Final[Mapping[str, str]] = {"fpr": "f", "vsr": "vs"}
"""By the type of the field: the upper and the lower halves of the first 32 vector-scalar registers."""


class Family(NamedTuple):
    """What differs between PowerPCs: names of special purpose registers, bits of the machine state."""

    special: Mapping[int, str]
    state: Mapping[int, str]


SERVER: Final = Family(powerpc.SERVER_SPRS, powerpc.SERVER_MSR)
EMBEDDED: Final = Family(powerpc.COMMON_SPRS | powerpc.EMBEDDED_SPRS, powerpc.EMBEDDED_MSR)
UNKNOWN: Final = Family(powerpc.COMMON_SPRS, {})


def family_of(version: int) -> Family:
    """The family by the processor version register: the same numbers mean other registers in another."""
    for family, versions in ((SERVER, powerpc.SERVERS), (EMBEDDED, powerpc.EMBEDDED)):
        if any(version & mask == value for mask, value in versions):
            return family
    return UNKNOWN


def special(names: Mapping[int, str]) -> FieldMeaning:
    """Special purpose registers: those that are not 0 and have a name. Most of the 1024 do not exist."""

    def meaning(field: Field) -> Field:
        values = field.value if isinstance(field.value, tuple) else ()
        used = {
            index: name
            for index, name in names.items()
            if index < len(values) and values[index] not in (0, None)
        }
        return elements(used)(field)

    return meaning


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
    "env.fpscr": says(lambda value: named_bits(value, powerpc.FPSCR)),
    "env.vsr": vector,
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU."""
    spr = next((field.value for field in fields if field.name == "env.spr"), None)
    version = spr[VERSION] if isinstance(spr, tuple) and len(spr) > VERSION else None
    family = family_of(version) if type(version) is int else UNKNOWN
    table = dict(REGISTERS)
    table["env.spr"] = special(family.special)
    if family.state:
        table["env.msr"] = says(bits(family.state))
    return told(fields, table)
