"""Registers of CPUs of real guests: what migsniff shows is what QEMU's `info registers` says."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from migsniff.core.events import Field
from migsniff.qemu import Qemu
from tests import guests
from tests.valuing import explained_device, guest, monitor, saved

# ---------------------------------------------------------------- what QEMU says


def x86(said: str, cpu: dict[str, Field]) -> int:
    """Compare with what `info registers` says; returns how many registers that were."""
    found = dict(re.findall(r"\b(\w+) *=([0-9a-f]+)\b", said))
    names = {
        "env.eip": "IP",
        **{f"env.cr[{index}]": f"CR{index}" for index in (0, 2, 3, 4)},
        **{f"env.dr.dr{index}": f"DR{index}" for index in (0, 1, 2, 3, 6, 7)},
        "env.efer": "EFER",
        "env.mxcsr": "MXCSR",
        "env.fpuc": "FCW",
    }
    for path in cpu:
        if re.fullmatch(r"env\.regs\.r\w+", path):
            names[path] = path.removeprefix("env.regs.r").upper()
    wide = "RAX" in found
    for path, name in names.items():
        if not path.startswith(("env.regs", "env.eip")):
            text = found[name]
        elif name.isdigit():
            text = found.get(f"R{name}", "")
        else:
            text = found[f"{'R' if wide else 'E'}{name}"]
        if text:
            value = cpu[path].value
            assert isinstance(value, int)
            assert value & (1 << 4 * len(text)) - 1 == int(text, 16), path
    letters = re.search(r"(?:EFL|RFL)=(\w+) \[([^]]+)\]", said)
    assert letters
    assert cpu["env.eflags"].value == int(letters[1], 16)
    flags = {
        name[0]
        for name in cpu["env.eflags"].meaning.split()
        if name in ("CF", "PF", "AF", "ZF", "SF", "DF", "OF")
    }
    assert flags == set(letters[2]) - {"-"}
    for index, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")):
        segment = f"env.segs[{index}]" if index < 6 else f"env.{name.lower()}"
        assert cpu[segment].meaning in (name, "")
        x86_segment(name, said, segment, cpu)
    for index, mantissa, exponent in re.findall(r"FPR(\d)=(\w{16}) (\w{4})", said):
        assert cpu[f"env.fpregs[{index}].tmp.tmp_mant"].value == int(mantissa, 16)
        assert cpu[f"env.fpregs[{index}].tmp.tmp_exp"].value == int(exponent, 16)
    halves = re.findall(r"XMM(\d\d)=(\w{16}) ?(\w{16})", said)
    for index, high, low in halves:
        register = f"env.xmm_regs[0][{int(index)}]"
        assert cpu[register].meaning == f"XMM{int(index)}"
        assert cpu[f"{register}._q_ZMMReg[0]"].value == int(low, 16)
        assert cpu[f"{register}._q_ZMMReg[1]"].value == int(high, 16)
    return len(names) + len(halves)


def x86_segment(name: str, said: str, segment: str, cpu: dict[str, Field]) -> None:
    found = re.search(rf"^{name} *=(\w{{4}}) (\w+) (\w+) (\w+) *(.*)$", said, re.MULTILINE)
    assert found, name
    for part, text in zip(("selector", "base", "limit", "flags"), found.groups(), strict=False):
        value = cpu[f"{segment}.{part}"].value
        assert isinstance(value, int)
        if part == "flags" and int(text, 16) & 0xFF == 0:  # of real mode QEMU shows no part of the address
            value &= 0xFFFFFF00
        assert value & (1 << 4 * len(text)) - 1 == int(text, 16), f"{segment}.{part}"
    words = cpu[f"{segment}.flags"].meaning
    if not found[5]:  # in real mode QEMU says no more
        return
    said_of_it = re.fullmatch(r"DPL=(\d) (CS|DS|LDT|TSS)(16|32|64)?(?:-(\w+))? *(?:\[(.)(.)(.)\])?", found[5])
    assert said_of_it, found[5]
    level, kind, width, state, *letters = said_of_it.groups()
    assert f"DPL {level}" in words
    if kind in ("CS", "DS"):
        assert re.match(f"{width or ''}.*-bit {'code' if kind == 'CS' else 'data'}", words), name
        names = {"C": "conforming", "R": "readable", "E": "expand down", "W": "writable", "A": "accessed"}
        assert {word for word in names.values() if word in words} == {names[x] for x in letters if x != "-"}
    else:
        assert kind in words
        assert ("busy" in words) == (state == "busy")


def aarch64(said: str, cpu: dict[str, Field]) -> int:
    """The same for Arm of 64 bits."""
    found = {int(index): int(value, 16) for index, value in re.findall(r"X(\d\d)=(\w{16})", said)}
    assert sorted(found) == list(range(31))
    for index, value in found.items():
        assert cpu[f"env.xregs.x{index}"].value == value
    for name, path in (("PC", "env.pc"), ("SP", "env.xregs.sp")):
        (text,) = re.findall(rf"\b{name}=(\w{{16}})", said)
        assert cpu[path].value == int(text, 16)
    arm_state(said, "PSTATE", cpu)
    for register, number in guests.SYSTEM_REGISTERS.values():
        assert cpu[f"cpreg_vmstate_values.{register}"].value == found[number]
    hertz = cpu["cpreg_vmstate_values.CNTFRQ_EL0"]
    expiry = cpu.get("gt_timer[GTIMER_VIRT]") or cpu["gt_timer[1]"]
    assert isinstance(hertz.value, int)
    assert hertz.meaning in ("62.5 MHz", "1 GHz")
    assert expiry.value == found[7] * 10**9 // hertz.value  # a timer is in nanoseconds, whatever it counts
    assert expiry.meaning.startswith("the virtual clock + ")
    return len(found)


def aarch32(said: str, cpu: dict[str, Field]) -> int:
    """The same for Arm of 32 bits."""
    found = [int(value, 16) for value in re.findall(r"R\d\d=(\w{8})", said)]
    registers = [field.value for path, field in cpu.items() if path.startswith("env.regs.")]
    assert registers == found
    arm_state(said, "PSR", cpu)
    return len(found)


def arm_state(said: str, name: str, cpu: dict[str, Field]) -> None:
    state = re.search(rf"{name}=(\w+) ([NZCV-]{{4}}) (?:([AT]) )?(?:S |NS )?(\w+)", said)
    assert state
    value, flags, thumb, mode = state.groups()
    assert cpu["cpsr"].value == int(value, 16)
    *words, last = cpu["cpsr"].meaning.split()
    assert last == mode.removesuffix("32")
    assert set("NZCV") & set(words) == set(flags) - {"-"}
    assert ("T" in words) == (thumb == "T")


def riscv(said: str, cpu: dict[str, Field]) -> int:
    """The same for RISC-V: general registers, and control and status registers, which have their names."""
    general = re.findall(r"x(\d+)/(\w+) +(\w{16})", said)
    assert len(general) == 32
    for _, name, value in general:
        assert cpu[f"env.gpr.{name}"].value == int(value, 16), name
    for name, value in re.findall(r"f(\d+)/\w+ +(\w{16})", said):
        assert cpu[f"env.fpr.f{name}"].value == int(value, 16)
    controls = [(name, value) for name, value in re.findall(r"^ (\w+) +(\w{16})$", said, re.MULTILINE)]
    found = [(cpu[f"env.{name}"].value, int(value, 16)) for name, value in controls if f"env.{name}" in cpu]
    for ours, value in found:
        assert isinstance(ours, int)
        assert ours == value & ~(1 << 63) or ours == value  # (mstatus has a bit that is made of others)
    assert cpu["env.misa_mxl"].meaning == "64 bits"
    assert set("IMACFD") < set(cpu["env.misa_ext"].meaning)
    return len(general) + len(found)


def powerpc(said: str, cpu: dict[str, Field]) -> int:
    """The same for PowerPC."""
    rows = re.findall(r"^GPR(\d\d)((?: \w{16}){4})", said, re.MULTILINE)
    general = [int(value, 16) for _, row in rows for value in row.split()]
    assert len(general) == 32
    assert [cpu[f"env.gpr.r{index}"].value for index in range(32)] == general
    names = r"LR|CTR|XER|[HC]?SRR[01]|PVR|VRSAVE|SPRG\d|CFAR|LPCR|DAR|DSISR|MAS\d|DEAR|ESR|MMUCFG|TLB[01]CFG"
    special = re.findall(rf"\b({names}) +(\w{{16}})", said)
    for name, value in special:
        field = cpu.get(f"env.spr.{name}")
        assert (field.value if field else 0) == int(value, 16), name
    for name, path in (("NIP", "env.nip"), ("MSR", "env.msr"), ("FPSCR", "cpu/fpu.env.fpscr")):
        (text,) = re.findall(rf"{name} (\w{{16}})", said)
        assert cpu[path].value == int(text, 16)
    condition = re.search(r"^CR (\w{8})  \[((?: +[LGEO-]+)+) +\]", said, re.MULTILINE)
    assert condition
    for index, (digit, letters) in enumerate(zip(condition[1], condition[2].split(), strict=True)):
        field = cpu[f"env.crf.cr{index}"]
        assert field.value == int(digit, 16)
        assert {word[0] if word != "SO" else "O" for word in field.meaning.split()} == set(letters) - {"-"}
    return len(general) + len([name for name, value in special if int(value, 16)])


def s390x(said: str, cpu: dict[str, Field]) -> int:
    """The same for s390x."""
    count = 0
    for letter, path in (("R", "env.regs.r"), ("C", "env.cregs.c")):
        registers = re.findall(rf"\b{letter}(\d\d)=(\w{{16}})", said)
        assert len(registers) == 16
        for index, value in registers:
            assert cpu[f"{path}{int(index)}"].value == int(value, 16)
            count += 1
    word = re.search(r"PSW=mask (\w{16}) addr (\w{16}) cc (\w\w)", said)
    assert word
    assert cpu["env.psw.addr"].value == int(word[2], 16)
    mask = cpu["env.psw.mask"]
    assert isinstance(mask.value, int)
    assert int(word[3], 16) == 2
    assert mask.value == int(word[1], 16) & ~(3 << 44)  # without KVM the condition code is not sent
    assert mask.meaning == "64-bit"
    for index in (1, 2):
        assert cpu[f"env.aregs.a{index}"].value == cpu[f"env.regs.r{index}"].value
    return count


@dataclass(frozen=True)
class Case:
    """A guest, when it is as it should be, and what is compared how."""

    version: str
    arch: str
    arguments: str
    disk: bytes
    ready: str
    compare: Callable[[str, dict[str, Field]], int]
    least: int


LONG_MODE = "-M {machine} -m 32 -drive file=[folder]/disk,format=raw"
VIRT = "-M virt -m 64 {cpu} -device loader,file=[folder]/disk,addr=0x41000000,cpu-num=0,force-raw=on"
CASES = {
    **{
        f"riscv64 {version}": Case(
            version,
            "riscv64",
            "-M virt -m 64 -bios none -device loader,file=[folder]/disk,addr=0x80000000,force-raw=on",
            guests.riscv64_registers(),
            "x31/t6 +0+11f",
            riscv,
            45,
        )
        for version in ("7.2", "10.0", "11.1")
    },
    **{
        f"ppc64 {version}": Case(
            version,
            "ppc64",
            "-M pseries -m 256 -bios [folder]/disk",
            guests.ppc64_registers(),
            "GPR28.* 0+11f\nCR 4",
            powerpc,
            39,
        )
        for version in ("7.2", "10.0", "11.1")
    },
    "ppc64 7.2 e500mc": Case("7.2", "ppc64", "-M none -cpu e500mc -m 64", b"", "MAS0", powerpc, 34),
    **{
        f"s390x {version}": Case(
            version,
            "s390x",
            "-M s390-ccw-virtio -m 64 -kernel [folder]/disk",
            guests.s390x_registers(),
            "R15=0+10f.*",
            s390x,
            32,
        )
        for version in ("5.2", "7.2", "10.0", "11.1")
    },
    **{
        f"aarch64 {version} {cpu}": Case(
            version,
            "aarch64",
            VIRT.replace("{cpu}", f"-cpu {cpu}"),
            guests.aarch64_registers(),
            "X30=000000000000011e.*-ZC-",
            aarch64,
            31,
        )
        for version, cpu in (("7.2", "cortex-a57"), ("7.2", "max"), ("10.0", "max"), ("11.1", "max"))
    },
    **{
        f"arm {version}": Case(
            version,
            "arm",
            VIRT.replace("{cpu}", ""),
            guests.arm_registers(),
            "R14=0000008e.*-ZC-",
            aarch32,
            16,
        )
        for version in ("7.2", "10.0")
    },
    **{
        f"x86_64 {version} {machine}": Case(
            version,
            "x86_64",
            LONG_MODE.replace("{machine}", machine),
            guests.x86_64_registers(),
            "R15=8877665544332211",
            x86,
            40,
        )
        for version, machine in (
            ("5.2", "pc"),
            ("7.2", "pc"),
            ("10.0", "q35"),
            ("11.1", "pc"),
            ("11.1", "q35"),
        )
    },
    **{
        f"x86_64 {version} firmware": Case(version, "x86_64", "-M pc -m 32", bytes(512), "HLT=1", x86, 32)
        for version in ("7.2", "10.0", "11.1")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_registers_are_what_qemu_shows(name: str, tmp_path: Path) -> None:
    case = CASES[name]

    def ready(qemu: Qemu) -> bool:
        return re.search(case.ready, monitor(qemu, "info registers"), re.DOTALL) is not None

    arguments = case.arguments.replace("[folder]", "{folder}")
    with guest(case.version, arguments, ready, case.arch, case.disk) as qemu:
        assert ready(qemu), monitor(qemu, "info registers")
        said = monitor(qemu, "info registers")
        sections = saved(qemu, case.version, tmp_path / "state")
    assert case.compare(said, explained_device(sections, "cpu")) >= case.least
