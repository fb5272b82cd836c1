"""Registers of x86 by name, control registers and model-specific ones by bit (target/i386/machine.c)."""

import math
from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.fields import Table, bits, elements, number, says, titled, told
from migsniff.values.tables import x86
from migsniff.values.words import bit_ranges, bits_text, frequency, named_bits, shifted_down

PAGE: Final = 0xFFF
MACHINE_CHECK_BANKS: Final = 32
ACCESS_TYPES: Final = 8  # of eight ranges in one fixed MTRR, of eight entries in the PAT


def eflags(value: int) -> str:
    """The flags, and the I/O privilege level if it is not 0."""
    level = shifted_down(value, x86.EFLAGS_IOPL)
    text = bits_text(value & ~(x86.EFLAGS_IOPL | x86.EFLAGS_FIXED), x86.EFLAGS)
    return f"{text} IOPL {level}".lstrip() if level else text


def segment_flags(value: int) -> str:
    """The second word of a descriptor, without the address and the limit in it."""
    flags, is_ = value >> 8, x86.DESCRIPTOR
    privilege = flags >> 5 & 3
    if not flags & is_["PRESENT"]:
        return "not present"
    if not flags & is_["S"]:
        kind = flags & 0xF
        busy = kind & 2 and kind & ~2 in x86.SYSTEM_SEGMENTS
        name = x86.SYSTEM_SEGMENTS.get(kind) or (busy and f"busy {x86.SYSTEM_SEGMENTS[kind & ~2]}")
        return f"{name or f'system segment of type {kind}'}, DPL {privilege}"
    long = flags & is_["LONG_CODE"] and flags & is_["CODE_EXECUTABLE"]
    width = 64 if long else 32 if flags & is_["DB"] else 16
    if flags & is_["CODE_EXECUTABLE"]:
        names = {"CODE_READABLE": "readable", "CODE_CONFORMING": "conforming"}
    else:
        names = {"DATA_WRITABLE": "writable", "DATA_EXPAND_DOWN": "expand down"}
    names["ACCESSED"] = "accessed"
    kind_text = "code" if flags & is_["CODE_EXECUTABLE"] else "data"
    more = [text for name, text in names.items() if flags & is_[name]]
    return ", ".join([f"{width}-bit {kind_text}", *more, f"DPL {privilege}"])


def debug_status(value: int) -> str:
    """DR6; its reserved bits are ones, and say nothing."""
    return bits_text(value & ~x86.DR6_RESERVED & 0xFFFF_FFFF, x86.DR6)


def debug_control(value: int) -> str:
    """DR7: which of the four breakpoints are on, what they wait for, over how many bytes."""
    found = []
    for index in range(x86.DR_STATUS - 2):
        if not value >> 2 * index & 3:
            continue
        control = value >> (x86.DR_CONTROL_SHIFT + x86.DR_CONTROL_SIZE * index)
        access = x86.DR_ACCESS.get(control & 3, "I/O")
        found.append(f"breakpoint {index}: {access}, {x86.DR_LENGTH[control & 0xC]} bytes")
    return "; ".join(found)


def memory_types(value: int) -> str:
    """Eight memory types, a byte each; once if they are all the same."""
    names = [memory_type(value >> 8 * index & 0xFF) for index in range(ACCESS_TYPES)]
    return names[0] if len(set(names)) == 1 else " ".join(names)


def memory_type(value: int) -> str:
    """How memory is cached: "WB"."""
    return x86.MEMORY_TYPES.get(value, f"type {value}")


def mtrr_default(value: int) -> str:
    """The register that turns the others on, and says what is in none of them."""
    kind = memory_type(value & x86.MTRR["MTRR_DEF_TYPE_TYPE"])
    if not value & x86.MTRR["MTRR_DEF_TYPE_E"]:
        return "MTRRs disabled"
    return f"{kind}, fixed ranges {'en' if value & x86.MTRR['MTRR_DEF_TYPE_FE'] else 'dis'}abled"


def mtrr_range(field: Field) -> Field:
    """A pair of registers: the range of addresses, and how it is cached."""
    found = {child.name: number(child) for child in field.children}
    base, mask = found.get("base"), found.get("mask")
    if base is None or mask is None:
        return field
    if not mask & x86.MTRR["MTRR_PHYSMASK_V"]:
        return replace(field, meaning="not in use")
    start, size = base & ~PAGE, mask & ~PAGE & -(mask & ~PAGE)
    kind = memory_type(base & x86.MTRR["MTRR_PHYSBASE_TYPE"])
    return replace(field, meaning=f"{kind} from {start:#x} to {start + size - 1:#x}" if size else kind)


def float_register(field: Field) -> Field:
    """A register of the x87: sign and exponent, and a mantissa of 64 bits."""
    found = {child.name: number(child) for part in field.children for child in part.children}
    mantissa, exponent = found.get("tmp_mant"), found.get("tmp_exp")
    if mantissa is None or exponent is None or field.index is None:
        return field
    return replace(field, meaning=f"FPR{field.index}, {extended(mantissa, exponent)}")


def extended(mantissa: int, exponent: int) -> str:
    """A number with an exponent of 15 bits, as a double has it, if that can."""
    sign = "-" if exponent & 0x8000 else ""
    exponent &= 0x7FFF
    if exponent == 0x7FFF:
        return f"{sign}{'NaN' if mantissa & (1 << 63) - 1 else 'infinity'}"
    try:
        return f"{sign}{math.ldexp(mantissa, exponent - 0x3FFF - 63)!r}"
    except OverflowError:
        return f"{sign}{mantissa} * 2**{exponent - 0x3FFF - 63}"


def guest_address(value: int) -> str:
    """An address that the guest gave to KVM, and whether it is in use."""
    return f"at {value & ~1:#x}" if value & x86.KVM_MSR_ENABLED else "off"


def machine_check(value: int) -> str:
    """What the machine check architecture can do, how many banks it has."""
    capable = named_bits(value, x86.MCG_CAP)
    return ", ".join(filter(None, (f"{value & x86.MCG_BANKS} banks", capable)))


SEGMENT: Final = says(segment_flags)
BANKS: Final = {
    4 * bank + index: f"MC{bank}_{name}"
    for bank in range(MACHINE_CHECK_BANKS)
    for index, name in x86.MACHINE_CHECK.items()
}
DEBUG: Final = {index: f"dr{index}" for index in (0, 1, 2, 3, x86.DR_STATUS, x86.DR_CONTROL)}
REGISTERS: Final[Table] = {
    "env.regs": elements(x86.GENERAL),
    "env.eflags": says(eflags),
    "env.fpregs": float_register,
    "env.segs": titled([name for index, name in sorted(x86.SEGMENTS.items())][:6]),
    **{f"env.{name}.flags": SEGMENT for name in ("segs", "ldt", "tr")},
    "env.cr[0]": says(bits(x86.CR0)),
    "env.cr[3]": says(lambda value: bits_text(value & 0x18, x86.CR3)),
    "env.cr[4]": says(bits(x86.CR4)),
    "env.dr": elements(DEBUG, {DEBUG[x86.DR_STATUS]: debug_status, DEBUG[x86.DR_CONTROL]: debug_control}),
    "env.a20_mask": says(lambda value: "A20 line on" if value >> 20 & 1 else "A20 line off"),
    "env.xmm_regs[0]": titled([f"XMM{index}" for index in range(32)]),
    "env.xmm_regs[1]": titled([f"YMM{index}, upper half" for index in range(32)]),
    "env.efer": says(bits(x86.EFER)),
    "env.pat": says(memory_types),
    "env.mtrr_fixed": elements(dict(enumerate(x86.MTRR_FIXED)), memory_types),
    "env.mtrr_deftype": says(mtrr_default),
    "env.mtrr_var": mtrr_range,
    "env.mp_state": says(lambda value: x86.MP_STATE.get(value, "")),
    "env.interrupt_injected": says(lambda value: "none" if value < 0 else f"vector {value}"),
    "env.exception_nr": says(lambda value: "none" if value < 0 else ""),
    "env.mcg_cap": says(machine_check),
    "env.mcg_status": says(bits(x86.MCG_STATUS)),
    "env.mce_banks": elements(BANKS),
    "env.system_time_msr": says(guest_address),
    "env.wall_clock_msr": says(lambda value: f"at {value:#x}" if value else ""),
    "env.async_pf_en_msr": says(lambda value: f"at {value & ~0x3F:#x}" if value & 1 else "off"),
    "env.pv_eoi_en_msr": says(guest_address),
    "env.steal_time_msr": says(guest_address),
    "env.xcr0": says(bits(x86.XFEATURES)),
    "env.xstate_bv": says(bits(x86.XFEATURES)),
    "env.xss": says(bits(x86.XFEATURES)),
    "env.msr_ia32_misc_enable": says(bits(x86.MISC_ENABLE)),
    "env.msr_ia32_feature_control": says(bits(x86.FEATURE_CONTROL)),
    "env.spec_ctrl": says(bits(x86.SPEC_CTRL)),
    "env.virt_ssbd": says(bits(x86.SPEC_CTRL)),
    "env.tsc_khz": says(lambda value: frequency(1000 * value) if value > 0 else ""),
    "env.intercept_exceptions": says(bit_ranges),
}


def registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The registers of one CPU."""
    return told(fields, REGISTERS)
