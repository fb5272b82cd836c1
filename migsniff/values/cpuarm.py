"""Registers of Arm, 64 and 32 bits, by name; system registers by their encoding (target/arm/machine.c)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from migsniff.core.events import Field
from migsniff.values.fields import Table, Words, elements, says, told
from migsniff.values.tables import arm
from migsniff.values.words import bits_text, frequency, named_bits

# How registers of coprocessors are numbered: arch/arm/include/uapi/asm/kvm.h of Linux 5.6, the last with it;
# what tells banked ones apart is QEMU's (target/arm/cpregs.h).
COPROCESSOR_CRN: Final = 11
COPROCESSOR_CRM: Final = 7
COPROCESSOR_OPC1: Final = 3
COPROCESSOR_BITS: Final = 0xF
NOT_SECURE: Final = 1 << 29
MAX_SYSTEM_REGISTERS: Final = 4096  # some 300 is usual
BANKS: Final = (
    "usr",
    "svc",
    "abt",
    "und",
    "irq",
    "fiq",
    "hyp",
    "mon",
)  # QEMU's order (target/arm/internals.h)


class Part(NamedTuple):
    """A field of a system register: `mask` is that of its value."""

    name: str
    shift: int
    mask: int


@lru_cache(maxsize=512)
def parts_of(register: str) -> tuple[Part, ...]:
    """The fields of a system register, the lowest first."""
    found = []
    for text in reversed(arm.FIELDS.get(register, "").split()):
        name, _, place = text.partition(":")
        shift, _, width = place.partition("+")
        found.append(Part(name, int(shift), (1 << int(width or 1)) - 1))
    return tuple(found)


def contents(register: str) -> Words:
    """The fields of a system register that are not 0: "M C TCF=2"."""

    def words(value: int) -> str:
        shown = []
        for part in parts_of(register):
            if bits := value >> part.shift & part.mask:
                shown.append(part.name if part.mask == 1 else f"{part.name}={bits:#x}")
        return " ".join(shown)

    return words


def exception(value: int) -> str:
    """The exception class of a syndrome."""
    return arm.EXCEPTIONS.get(value >> arm.EXCEPTION_SHIFT & 0x3F, "") if value else ""


SPECIAL: Final[dict[str, Words]] = {
    "CNTFRQ_EL0": frequency,
    **{f"ESR_EL{level}": exception for level in (1, 2, 3)},
}


def register_name(index: int) -> str:
    """The name of a system register by KVM's number for it, or its encoding where it has none."""
    group = index & arm.KVM_REG_ARM_COPROC_MASK
    low = index & 0xFFFF
    if index & arm.KVM_REG_ARCH_MASK == arm.KVM_REG_ARM64:
        if group != arm.KVM_REG_ARM64_SYSREG:
            return f"{index:#x}"
        op0, op1, crn, crm, op2 = low >> 14, low >> 11 & 7, low >> 7 & 15, low >> 3 & 15, low & 7
        return arm.REGISTERS.get(low) or f"S{op0}_{op1}_C{crn}_C{crm}_{op2}"
    coprocessor = group >> arm.KVM_REG_ARM_COPROC_SHIFT & 0xFFF
    if index & arm.KVM_REG_ARCH_MASK != arm.KVM_REG_ARM or coprocessor > COPROCESSOR_BITS:
        return f"{index:#x}"
    opc1, crm = low >> COPROCESSOR_OPC1 & COPROCESSOR_BITS, low >> COPROCESSOR_CRM & COPROCESSOR_BITS
    secure = "" if index & NOT_SECURE else "_secure"
    if index & arm.KVM_REG_SIZE_MASK == arm.KVM_REG_SIZE_U64:
        return f"p{coprocessor}_{opc1}_c{crm}{secure}"
    return f"p{coprocessor}_{opc1}_c{low >> COPROCESSOR_CRN & COPROCESSOR_BITS}_c{crm}_{low & 7}{secure}"


def state(value: int) -> str:
    """The processor's state, of 64 or of 32 bits: flags, and the mode."""
    if value & arm.MODE32:
        mode = arm.MODES32.get(value & 0x1F, f"mode {value & 0x1F:#x}")
        return f"{named_bits(value, arm.CPSR)} {mode}".lstrip()
    mode = arm.MODES.get(value & arm.MODE_MASK, f"mode {value & arm.MODE_MASK}")
    return f"{bits_text(value & ~arm.MODE_MASK, arm.PSTATE)} {mode}".lstrip()


def saved_state(value: int) -> str:
    """A state that was saved; 0 as a rule is none."""
    return state(value) if value else ""


GENERAL: Final = {**{index: f"x{index}" for index in range(31)}, 31: "sp"}
GENERAL32: Final = {**{index: f"r{index}" for index in range(13)}, 13: "sp", 14: "lr", 15: "pc"}
REGISTERS: Final[Table] = {
    "env.xregs": elements(GENERAL),
    "env.regs": elements(GENERAL32),
    "cpsr": says(state),
    "env.spsr": says(saved_state),
    "env.banked_spsr": elements({index: f"spsr_{bank}" for index, bank in enumerate(BANKS)}, saved_state),
    "env.banked_r13": elements({index: f"sp_{bank}" for index, bank in enumerate(BANKS)}),
    "env.banked_r14": elements({index: f"lr_{bank}" for index, bank in enumerate(BANKS)}),
    "env.usr_regs": elements({index: f"r{8 + index}_usr" for index in range(5)}),
    "env.fiq_regs": elements({index: f"r{8 + index}_fiq" for index in range(5)}),
    "env.elr_el": elements({level: f"elr_el{level}" for level in (1, 2, 3)}),
    "env.sp_el": elements({level: f"sp_el{level}" for level in range(4)}),
    "env.exception.syndrome": says(exception),
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU; two arrays of equal length have the system registers: numbers, and values."""
    indices = next((field.value for field in fields if field.name == "cpreg_vmstate_indexes"), None)
    table = dict(REGISTERS)
    if isinstance(indices, tuple):
        names = {
            at: register_name(index)
            for at, index in enumerate(indices[:MAX_SYSTEM_REGISTERS])
            if type(index) is int and index >= 0
        }
        words: dict[str, Callable[[int], str]] = {
            name: SPECIAL.get(name) or contents(name) for name in names.values()
        }
        table["cpreg_vmstate_values"] = elements(names, words)
    return told(fields, table)
