"""Registers of RISC-V by the ABI's names, control and status registers by bit (target/riscv/machine.c)."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.fields import FieldMeaning, Table, bits, elements, number, says, told
from migsniff.values.tables import riscv
from migsniff.values.words import bits_text, named_bits, shifted_down

# RISC-V's privileged specification: the encodings of modes, and of the width of registers
MODES: Final[Mapping[int, str]] = {0: "user", 1: "supervisor", 3: "machine"}
WIDTHS: Final[Mapping[int, int]] = {1: 32, 2: 64, 3: 128}
PAGE_SHIFT: Final = 12


def status(value: int) -> str:
    """mstatus: flags, the mode that a trap came from, and which extensions hold something to be saved."""
    states = {name: shifted_down(value, mask) for name, mask in riscv.STATES.items()}
    masks = riscv.MPP | sum(riscv.STATES.values()) | 0xF << 32  # and the widths of other modes
    words = [bits_text(value & ~masks & (1 << 63) - 1, riscv.STATUS)]
    words.append(f"MPP={MODES.get(shifted_down(value, riscv.MPP), 'reserved')}")
    words += [f"{name}={riscv.STATE_NAMES[state]}" for name, state in states.items() if state]
    return " ".join(filter(None, words))


def extensions(value: int) -> str:
    """The letters of misa."""
    return "".join(chr(ord("A") + bit) for bit in range(26) if value >> bit & 1)


def cause(field: Field) -> Field:
    """Why a trap was taken; the highest bit tells an interrupt from an exception."""
    value, top = number(field), 8 * field.size - 1
    if not value or value < 0 or field.size not in (4, 8):
        return field
    if value >> top:
        name = riscv.INTERRUPTS.get(value & (1 << top) - 1)
        return replace(field, meaning=f"interrupt {name or value & (1 << top) - 1}")
    return replace(field, meaning=riscv.EXCEPTIONS.get(value, f"exception {value}"))


def paging(field: Field) -> Field:
    """satp and its like of 64 bits: how addresses are translated, and where the first table is."""
    value = number(field)
    if value is None or value < 0 or field.size != 8:
        return field
    mode = value >> 60
    if not mode:
        return replace(field, meaning="bare")
    name, table = riscv.PAGING.get(mode, f"mode {mode}"), (value & (1 << 44) - 1) << PAGE_SHIFT
    return replace(field, meaning=f"{name}, table at {table:#x}")


def protection(value: int) -> str:
    """How a range of physical memory may be used."""
    mode = riscv.PROTECTION_MODES.get(value & riscv.PROTECTION_ADDRESS)
    if mode is None:
        return "off"
    allowed = bits_text(value & 7, riscv.PROTECTION) or "no access"
    return ", ".join(filter(None, (allowed, mode, "locked" if value & riscv.PROTECTION_LOCKED else "")))


def protected_range(field: Field) -> Field:
    """A pair of registers: the range of physical memory, where they tell it alone."""
    found = {child.name: number(child) for child in field.children}
    address, control = found.get("addr_reg"), found.get("cfg_reg")
    if address is None or control is None or address < 0:
        return field
    mode = riscv.PROTECTION_MODES.get(control & riscv.PROTECTION_ADDRESS)
    if mode != "NAPOT":
        return field
    size = (~address & address + 1) << 3  # ones at the end: how far the range goes
    start = (address & ~(size >> 3) & ~((size >> 3) - 1)) << 2
    return replace(field, meaning=f"from {start:#x} to {start + size - 1:#x}")


def every(meaning: FieldMeaning, *names: str) -> dict[str, FieldMeaning]:
    """The same meaning for some registers."""
    return {f"env.{name}": meaning for name in names}


INTERRUPTS: Final = says(bits(riscv.INTERRUPTS))
EXCEPTIONS: Final = says(bits(riscv.EXCEPTIONS))
REGISTERS: Final[Table] = {
    "env.gpr": elements(riscv.GENERAL),
    "env.fpr": elements({index: f"f{index}" for index in range(32)}),
    "env.misa_mxl": says(lambda value: f"{WIDTHS[value]} bits" if value in WIDTHS else ""),
    "env.misa_ext": says(extensions),
    "env.misa_ext_mask": says(extensions),
    "env.priv": says(lambda value: MODES.get(value, "")),
    **every(says(status), "mstatus", "mstatus_hs", "vsstatus"),
    **every(
        INTERRUPTS, "mip", "mie", "sie", "vsie", "mideleg", "hideleg", "miclaim", "mvien", "mvip", "hvip"
    ),
    **every(EXCEPTIONS, "medeleg", "hedeleg"),
    **every(cause, "mcause", "scause", "vscause", "scause_hs"),
    **every(paging, "satp", "vsatp", "satp_hs", "hgatp"),
    "env.hstatus": says(lambda value: named_bits(value, riscv.HSTATUS)),
    **every(says(bits(riscv.ENVCFG)), "menvcfg", "senvcfg", "henvcfg"),
    "env.pmp_state.pmp": protected_range,
    "env.pmp_state.pmp.cfg_reg": says(protection),
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU."""
    return told(fields, REGISTERS)
