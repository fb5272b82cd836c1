"""Makes the tables of CPUs in migsniff/values/tables: names and numbers out of the kernel's source.

    python -m tests.archtables LINUX

LINUX is the folder of the source, Debian's package linux-source-6.12 unpacked, say. Most of these headers are
not among those for user space, which tests/uapi.py reads. Only facts are taken: names and numbers.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.linuxsource import (
    Linux,
    Names,
    bit_fields,
    enumeration,
    last_numbers,
    members,
    number_of,
    numbers,
    single_bits,
    swapped,
)
from tests.uapi import TABLES, formatted

# ---------------------------------------------------------------- tables

X86 = "arch/x86/include/"


def x86(linux: Linux) -> Iterator[tuple[str, object]]:
    """x86: registers, flags, model-specific registers, APICs."""
    general = linux.behind(f"{X86}asm/kvm_vcpu_regs.h", "__VCPU_REGS_")
    yield "GENERAL", {value: name.lower() for name, value in general.items()}
    yield "SEGMENTS", swapped(enumeration(linux.text(f"{X86}asm/kvm_host.h"), "VCPU_SREG_"))
    flags = f"{X86}uapi/asm/processor-flags.h"
    eflags = linux.behind(flags, "X86_EFLAGS_")
    yield "EFLAGS", single_bits({name: eflags[name] for name in eflags if not re.search("_BIT|FIXED", name)})
    yield "EFLAGS_FIXED", eflags["FIXED"]
    yield "EFLAGS_IOPL", eflags["IOPL"]
    for register in ("CR0", "CR3", "CR4"):
        yield register, swapped(linux.behind(flags, f"X86_{register}_", "_BIT"))
    debug = linux.numbers(f"{X86}uapi/asm/debugreg.h")
    yield "DR6", {debug[f"DR_{name}"].bit_length() - 1: name for name in (
        *(f"TRAP{number}" for number in range(4)), "BUS_LOCK", "STEP", "SWITCH")}  # fmt: skip
    for name in ("DR_STATUS", "DR_CONTROL", "DR6_RESERVED", "DR_CONTROL_SHIFT", "DR_CONTROL_SIZE"):
        yield name, debug[name]
    yield "DR_ACCESS", {debug[f"DR_RW_{name.upper()}"]: name for name in ("execute", "write", "read")}
    yield "DR_LENGTH", {debug[f"DR_LEN_{size}"]: size for size in (1, 2, 4, 8)}
    descriptor = linux.behind(f"{X86}asm/desc_defs.h", "_DESC_")
    yield "DESCRIPTOR", {name: value for name, value in descriptor.items() if value.bit_count() == 1}
    systems = re.findall(r"DESC_(TSS|LDT) = (0x\w+)", linux.text(f"{X86}asm/desc_defs.h"))
    yield "SYSTEM_SEGMENTS", {int(value, 0): name for name, value in systems}
    yield "XFEATURES", swapped({
        re.sub("_UNIMPLEMENTED.*|_UNUSED", "", name): value
        for name, value in enumeration(linux.text(f"{X86}asm/fpu/types.h"), "XFEATURE_").items()
        if not re.search("MAX|RSRVD", name)
    })  # fmt: skip
    yield from _model_specific(linux)
    yield from _apic(linux)


def _model_specific(linux: Linux) -> Iterator[tuple[str, object]]:
    index = f"{X86}asm/msr-index.h"
    yield "EFER", swapped(linux.behind(index, "_EFER_"))
    yield "MEMORY_TYPES", swapped(linux.behind(index, "X86_MEMTYPE_"))
    fixed = linux.behind(index, "MSR_MTRRfix")
    yield "MTRR_FIXED", [f"MTRRfix{name}" for name in sorted(fixed, key=fixed.__getitem__)]
    yield "MTRR", {
        name: value
        for name, value in linux.numbers(f"{X86}asm/mtrr.h").items()
        if name in ("MTRR_DEF_TYPE_TYPE", "MTRR_DEF_TYPE_FE", "MTRR_DEF_TYPE_E",
                    "MTRR_PHYSBASE_TYPE", "MTRR_PHYSMASK_V")
    }  # fmt: skip
    banks = linux.behind(index, "MSR_IA32_MC0_")
    yield "MACHINE_CHECK", {banks[name] & 3: name for name in ("CTL", "STATUS", "ADDR", "MISC")}
    errors = linux.behind(f"{X86}asm/mce.h", "MCG_")
    yield "MCG_BANKS", errors["BANKCNT_MASK"]
    yield "MCG_CAP", single_bits({name: errors[name] for name in errors if name.endswith("_P")})
    yield "MCG_STATUS", single_bits(linux.behind(f"{X86}asm/mce.h", "MCG_STATUS_"))
    yield "SPEC_CTRL", single_bits({
        name: value
        for name, value in linux.behind(index, "SPEC_CTRL_").items()
        if not name.endswith(("_SHIFT", "_MASK"))
    })  # fmt: skip
    yield "FEATURE_CONTROL", single_bits(linux.behind(index, "FEAT_CTL_"))
    yield "MISC_ENABLE", swapped(linux.behind(index, "MSR_IA32_MISC_ENABLE_", "_BIT"))
    yield "APIC_BASE", single_bits({
        name: value for name, value in linux.behind(index, "MSR_IA32_APICBASE_").items() if name != "BASE"
    } | {"X2APIC": linux.numbers(f"{X86}asm/apicdef.h")["X2APIC_ENABLE"]})  # fmt: skip
    yield "KVM_MSR_ENABLED", linux.numbers(f"{X86}uapi/asm/kvm_para.h")["KVM_MSR_ENABLED"]
    yield "MP_STATE", swapped(linux.behind("include/uapi/linux/kvm.h", "KVM_MP_STATE_"))


def _apic(linux: Linux) -> Iterator[tuple[str, object]]:
    source = f"{X86}asm/apicdef.h"
    found = linux.numbers(source)
    vectors = ("LVTT", "LVTTHMR", "LVTPC", "LVT0", "LVT1", "LVTERR")
    assert [found[f"APIC_{name}"] for name in vectors] == list(range(0x320, 0x380, 0x10))
    yield "LOCAL_VECTORS", dict(enumerate(vectors))
    yield "DELIVERY", {value >> 8: name for name, value in linux.behind(source, "APIC_DM_").items()
                       if name != "FIXED_MASK"}  # fmt: skip
    yield "APIC_ERRORS", single_bits(linux.behind(source, "APIC_ESR_"))
    yield "TIMER_DIVIDE", {value: int(name) for name, value in linux.behind(source, "APIC_TDR_DIV_").items()
                           if name.isdigit()}  # fmt: skip
    for name in (
        *("APIC_SPIV_APIC_ENABLED", "APIC_SPIV_FOCUS_DISABLED", "APIC_VECTOR_MASK", "APIC_MODE_MASK"),
        *("APIC_LVT_TIMER_PERIODIC", "APIC_LVT_TIMER_TSCDEADLINE", "APIC_LVT_MASKED"),
        *("APIC_LVT_LEVEL_TRIGGER", "APIC_LVT_REMOTE_IRR", "APIC_INPUT_POLARITY", "APIC_SEND_PENDING"),
        *("APIC_ICR_BUSY", "APIC_DEST_LOGICAL", "APIC_DEST_SELF", "APIC_DEST_ALLINC", "APIC_DEST_ALLBUT"),
        *("APIC_INT_ASSERT", "APIC_INT_LEVELTRIG"),
    ):
        yield name, found[name]
    entry = linux.text(f"{X86}asm/io_apic.h").partition("struct IO_APIC_route_entry {")[2]
    yield "REDIRECTION", dict(bit_fields(entry.partition("struct {")[2].partition("}")[0]))
    yield from _timers(linux)


def _timers(linux: Linux) -> Iterator[tuple[str, object]]:
    yield "HPET_CONFIG", single_bits(linux.behind(f"{X86}asm/hpet.h", "HPET_CFG_"))
    timer = linux.behind(f"{X86}asm/hpet.h", "HPET_TN_")
    yield (
        "HPET_TIMER",
        single_bits({name: timer[name] for name in timer if not re.search("_CAP|_SHIFT", name)}),
    )
    yield "HPET_TN_ROUTE", timer["ROUTE"]
    clock = linux.behind("include/linux/mc146818rtc.h", "RTC_")
    yield "RTC", {name: clock[name] for name in (
        *("SECONDS", "MINUTES", "HOURS", "DAY_OF_MONTH", "MONTH", "YEAR"), "CONTROL", "DM_BINARY", "24H",
    )}  # fmt: skip
    yield "RTC_CONTROL", single_bits({name: clock[name] for name in ("SET", "PIE", "AIE", "UIE", "SQWE")})
    yield "PIT_TICK_RATE", linux.numbers("include/linux/timex.h")["PIT_TICK_RATE"]


ARM64 = "arch/arm64/include/"
_INDEXED = {"DBG": 16, "ICC": 4, "PME": 31}  # how many there are of registers with a number in their names


def arm(linux: Linux) -> Iterator[tuple[str, object]]:
    """Arm: system registers by their encoding, fields in them, flags and modes of the processor's state."""
    file = linux.text("arch/arm64/tools/sysreg")
    registers = {_packed(*map(int, parts)): name for name, *parts in re.findall(
        r"^Sysreg\s+(\w+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", file, re.MULTILINE)}  # fmt: skip
    for encoding, name in _registers(linux.text(f"{ARM64}asm/sysreg.h")):
        registers.setdefault(encoding, name)
    yield "REGISTERS", dict(sorted(registers.items()))
    shifts = linux.behind(f"{ARM64}uapi/asm/kvm.h", "KVM_REG_ARM64_SYSREG_", "_SHIFT")
    assert [shifts[name] for name in ("OP0", "OP1", "CRN", "CRM", "OP2")] == [14, 11, 7, 3, 0]
    yield "FIELDS", _register_fields(re.sub(r"(?m)^#.*$", "", file))
    kvm = linux.numbers("include/uapi/linux/kvm.h")
    for name in (
        "KVM_REG_ARM",
        "KVM_REG_ARM64",
        "KVM_REG_ARCH_MASK",
        "KVM_REG_SIZE_MASK",
        "KVM_REG_SIZE_U64",
    ):
        yield name, kvm[name]
    arm = linux.numbers(f"{ARM64}uapi/asm/kvm.h")
    for name in ("COPROC_MASK", "COPROC_SHIFT"):
        yield f"KVM_REG_ARM_{name}", arm[f"KVM_REG_ARM_{name}"]
    yield "KVM_REG_ARM64_SYSREG", arm["KVM_REG_ARM64_SYSREG"]
    state = f"{ARM64}uapi/asm/ptrace.h"
    flags = linux.behind(state, "PSR_", "_BIT")
    yield "PSTATE", single_bits({name: value for name, value in flags.items() if name != "MODE32"})
    modes = linux.behind(state, "PSR_MODE_")
    yield "MODES", swapped({name: value for name, value in modes.items() if name != "MASK"})
    yield "MODE32", linux.numbers(state)["PSR_MODE32_BIT"]
    yield "MODE_MASK", linux.numbers(state)["PSR_MODE_MASK"]
    old = "arch/arm/include/uapi/asm/ptrace.h"
    flags = linux.behind(old, "PSR_", "_BIT") | {"T": linux.numbers(old)["V4_PSR_T_BIT"]}
    yield "CPSR", single_bits({name: value for name, value in flags.items() if name != "J"})
    modes = {name: value for name, value in last_numbers(linux.text(old)).items() if name.endswith("_MODE")}
    yield "MODES32", swapped({name[:-5].lower(): value for name, value in modes.items() if value & 0x10})
    exceptions = linux.behind(f"{ARM64}asm/esr.h", "ESR_ELx_EC_")
    yield "EXCEPTIONS", swapped({name: value for name, value in exceptions.items()
                                 if name not in ("MAX", "SHIFT", "WIDTH", "MASK")})  # fmt: skip
    yield "EXCEPTION_SHIFT", exceptions["SHIFT"]


def _packed(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """An encoding in one number, as KVM has it."""
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def _registers(text: str) -> Iterator[tuple[int, str]]:
    """Registers of a header, not instructions (op0 is 2 or 3)."""
    inner = dict(re.findall(r"#define[ \t]+(__\w+)\(n\)[ \t]+(.*)", text))
    pattern = r"#define[ \t]+SYS_(\w+?)(?:n_(EL\d)\(n\))?[ \t]+sys_reg\(([23],.*)\)"
    for name, level, arguments in re.findall(pattern, text):
        for macro, body in inner.items():
            arguments = arguments.replace(f"{macro}(n)", body)
        for index in range(_INDEXED[name[:3]]) if level else (None,):
            parts = (
                arguments.split(",") if index is None else re.sub(r"\bn\b", str(index), arguments).split(",")
            )
            yield (
                _packed(*(number_of(part, {}, 0) for part in parts)),
                name if index is None else f"{name}{index}_{level}",
            )


def _register_fields(file: str) -> dict[str, str]:
    """Fields by register, the lowest last: "TCF:40+2 M:0" for a field of two bits and one of one."""
    found: dict[str, str] = {}
    shared: dict[str, str] = {}
    borrowed: dict[str, str] = {}
    for kind, name, body in re.findall(
        r"^(Sysreg(?:Fields)?)[ \t]+(\w+)(.*?)^EndSysreg", file, re.DOTALL | re.MULTILINE
    ):
        words = []
        for high, low, field in re.findall(
            r"^(?:Field|(?:Signed|Unsigned)?Enum)[ \t]+(\d+)(?::(\d+))?[ \t]+(\w+)", body, re.MULTILINE
        ):
            width = int(high) - int(low or high) + 1
            if width < 32:
                words.append(f"{field}:{low or high}" + (f"+{width}" if width > 1 else ""))
        (found if kind == "Sysreg" else shared)[name] = " ".join(words)
        if same := re.search(r"^Fields[ \t]+(\w+)", body, re.MULTILINE):
            borrowed[name] = same[1]
    for name, owner in borrowed.items():
        found[name] = shared.get(owner, "")
    return {name: text for name, text in sorted(found.items()) if text}


def riscv(linux: Linux) -> Iterator[tuple[str, object]]:
    """RISC-V: registers by the names of the ABI, bits of control registers, causes."""
    pc, *general = members(linux.text("arch/riscv/include/uapi/asm/ptrace.h"), "user_regs_struct")
    assert pc == "pc"
    yield "GENERAL", dict(enumerate(["zero", *general]))
    found = last_numbers(linux.text("arch/riscv/include/asm/csr.h"))

    def behind(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    status = behind("SR_")
    aliases = ("IE", "PIE", "PP", "SD")  # of the mode that Linux runs in; a summary that QEMU does not keep
    yield (
        "STATUS",
        single_bits({n: value for n, value in status.items() if "_" not in n and n not in aliases}),
    )
    yield "STATES", {part: status[part] for part in ("FS", "VS", "XS")}
    order = sorted(("OFF", "INITIAL", "CLEAN", "DIRTY"), key=lambda name: status[f"FS_{name}"])
    yield "STATE_NAMES", [name.lower() for name in order]
    yield "MPP", status["MPP"]
    causes = behind("IRQ_")
    yield "INTERRUPTS", swapped({name: causes[name] for name in causes if not name.startswith("LOCAL")})
    yield "EXCEPTIONS", swapped(behind("EXC_"))
    yield (
        "PAGING",
        {
            value >> 60: f"Sv{name}"
            for name, value in behind("SATP_MODE_").items()
            if name in ("39", "48", "57")
        },
    )
    protection = behind("PMP_")
    yield "PROTECTION", single_bits({name: protection[name] for name in "RWX"})
    yield "PROTECTION_ADDRESS", protection["A"]
    yield (
        "PROTECTION_MODES",
        swapped({name[2:]: protection[name] for name in protection if name.startswith("A_")}),
    )
    yield "PROTECTION_LOCKED", protection["L"]
    yield "HSTATUS", single_bits(behind("HSTATUS_"))
    yield "ENVCFG", single_bits({name: value for name, value in behind("ENVCFG_").items() if "_" not in name})


_OTHER_FAMILIES = re.compile(
    r"e300|83xx|BOOKE|7450|750FX|750fx|Cell|PA6T|Gekko|G2_LE|970|BE HID|others|1011|98[0-9] "
)


def powerpc(linux: Linux) -> Iterator[tuple[str, object]]:
    """PowerPC: special purpose registers and bits of the machine state of two families; who is in which."""
    file = "arch/powerpc/include/asm/reg.h"
    lines = (linux.folder / file).read_text().split("\n")
    found = numbers("\n".join(line for line in lines if not _OTHER_FAMILIES.search(line)))
    servers = _special(found)
    yield "SERVER_SPRS", servers
    common = ("XER", "LR", "CTR", "DEC", "SRR0", "SRR1", "PVR", *(f"SPRG{index}" for index in range(8)))
    yield "COMMON_SPRS", {number: name for number, name in servers.items() if name in common}
    embedded = "arch/powerpc/include/asm/reg_booke.h"
    yield "EMBEDDED_SPRS", _special(linux.numbers(embedded))
    state = {name: value for name, value in linux.behind(file, "MSR_", "_LG").items() if name != "TS"}
    yield "SERVER_MSR", swapped(state)
    own_names = re.findall(r"#define MSR_(\w+)_LG", linux.text(embedded))
    both = numbers(linux.text(file) + linux.text(embedded))
    own = {name: both[f"MSR_{name}_LG"] for name in own_names}
    yield "EMBEDDED_MSR", swapped({name: state[name] for name in ("EE", "PR", "FP", "ME", "DE", "CE")} | own)
    yield "FPSCR", single_bits(linux.behind(file, "FPSCR_"))
    yield "SERVERS", _versions(linux, "book3s_32", "book3s_64")
    yield "EMBEDDED", _versions(linux, "44x", "85xx", "e500mc")


def _special(found: dict[str, int]) -> Names:
    names = {name.removeprefix("SPRN_"): value for name, value in found.items() if name.startswith("SPRN_")}
    return swapped({name: value for name, value in names.items() if "_" not in name})


def _versions(linux: Linux, *families: str) -> list[tuple[int, int]]:
    """(mask, value) of the processor version registers of CPUs, but for those that stand for any."""
    found = []
    for family in families:
        text = linux.text(f"arch/powerpc/kernel/cpu_specs_{family}.h")
        for mask, value in re.findall(r"\.pvr_mask\s*=\s*(0x\w+),\s*\.pvr_value\s*=\s*(0x\w+)", text):
            if int(mask, 16):
                found.append((int(mask, 16), int(value, 16)))
    return sorted(set(found))


def s390x(linux: Linux) -> Iterator[tuple[str, object]]:
    """s390x: the program status word, bits of control registers, the time-of-day clock."""
    found = last_numbers(linux.text("arch/s390/include/uapi/asm/ptrace.h"))
    masks = {
        name.removeprefix("PSW_MASK_"): value for name, value in found.items() if name.startswith("PSW_MASK_")
    }
    yield "PSW", single_bits({name: value for name, value in masks.items() if name not in ("EA", "BA")})
    yield "PSW_MASKS", {name: masks[name] for name in ("KEY", "ASC", "CC", "PM", "EA", "BA")}
    spaces = {
        name.removeprefix("PSW_ASC_"): value for name, value in found.items() if name.startswith("PSW_ASC_")
    }
    yield "SPACES", {spaces[name]: name.lower() for name in spaces}
    for register in (0, 2, 14):
        names = linux.behind("arch/s390/include/asm/ctlreg.h", f"CR{register}_", "_BIT")
        yield f"CR{register}", swapped({name: names[name] for name in names if "UNUSED" not in name})
    yield "TOD_UNIX_EPOCH", linux.numbers("arch/s390/include/asm/timex.h")["TOD_UNIX_EPOCH"]


# ---------------------------------------------------------------- files

MAKERS: dict[str, tuple[str, Callable[[Linux], Iterator[tuple[str, object]]]]] = {
    "x86": ("x86: arch/x86/include, linux/{kvm,mc146818rtc,timex}.h", x86),
    "arm": ("Arm: arch/arm64/tools/sysreg, arch/arm64/include, arch/arm/include and linux/kvm.h", arm),
    "riscv": ("RISC-V: uapi/asm/ptrace.h and asm/csr.h of arch/riscv/include", riscv),
    "powerpc": ("PowerPC: asm/reg.h, asm/reg_booke.h and kernel/cpu_specs_*.h of arch/powerpc", powerpc),
    "s390x": ("s390x: uapi/asm/ptrace.h, asm/ctlreg.h and asm/timex.h of arch/s390/include", s390x),
}
"""By the name of the table: what it holds and from which headers, and what makes it."""


def table(name: str, linux: Linux) -> str:
    """The text of a table."""
    source, make = MAKERS[name]
    lines = [f'"""{source} of Linux {linux.version}; made by tests/archtables.py."""', ""]
    for key, value in make(linux):
        annotation = f": {_annotation(value)}" if isinstance(value, dict | list) else ""
        lines.append(f"{key}{annotation} = {value!r}")
    return "\n".join(lines) + "\n"


def _annotation(value: object) -> str:
    if isinstance(value, dict):
        key, element = next(iter(value.items()))
        return f"dict[{type(key).__name__}, {_annotation(element)}]"
    if isinstance(value, tuple):
        return f"tuple[{', '.join(map(_annotation, value))}]"
    return f"list[{_annotation(value[0])}]" if isinstance(value, list) else type(value).__name__


def main() -> None:
    linux = Linux(Path(sys.argv[1]))
    for name in MAKERS:
        (TABLES / f"{name}.py").write_text(formatted(table(name, linux)))


if __name__ == "__main__":
    main()
