"""Registers of CPUs: against QEMU's own `info registers`, and for any fields whatever."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.events import Field
from migsniff.qemu import Qemu
from migsniff.values import cpuarm, cpupowerpc, cpuriscv, cpus390x, cpux86
from migsniff.values.cpu import ARCHITECTURES
from migsniff.values.explain import explain
from tests import guests
from tests.valuing import assert_within, explained_device, guest, monitor, saved, section

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


# ---------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("architecture", "name", "size", "value", "meaning"),
    [
        ("env.eip", "env.eflags", 8, 0x3246, "PF ZF IF IOPL 3"),
        ("env.eip", "env.eflags", 8, 2, ""),
        ("env.eip", "env.cr[0]", 8, 0x80050033, "PE MP ET NE WP AM PG"),
        ("env.eip", "env.cr[0]", 8, 0x111, "PE ET bit 8"),
        ("env.eip", "env.cr[4]", 8, 0x3406F0, "PSE PAE MCE PGE OSFXSR OSXMMEXCPT OSXSAVE SMEP SMAP"),
        ("env.eip", "env.efer", 8, 0xD01, "SCE LME LMA NX"),
        ("env.eip", "env.xcr0", 8, 0xE7, "FP SSE YMM OPMASK ZMM_Hi256 Hi16_ZMM"),
        ("env.eip", "env.pat", 8, 0x0606060606060606, "WB"),
        ("env.eip", "env.pat", 8, 0x0007040600070406, "WB WT UC_MINUS UC WB WT UC_MINUS UC"),
        ("env.eip", "env.mtrr_deftype", 8, 0, "MTRRs disabled"),
        ("env.eip", "env.tsc_khz", 8, 2_500_000, "2.5 GHz"),
        ("env.eip", "env.tsc_khz", 8, -5, ""),
        ("env.eip", "env.system_time_msr", 8, 0x7FFF001, "at 0x7fff000"),
        ("env.xregs", "cpsr", 4, 0x600003C5, "F I A D C Z EL1h"),
        ("env.xregs", "cpsr", 4, 0x400001D3, "F I A Z svc"),
        ("env.xregs", "env.exception.syndrome", 4, 0x96000045, "DABT_CUR"),
        ("env.misa_ext", "env.mstatus", 8, 0xA00006900, "SPP MPP=supervisor FS=dirty"),
        ("env.misa_ext", "env.mcause", 8, 1 << 63 | 7, "interrupt M_TIMER"),
        ("env.misa_ext", "env.mcause", 4, 1 << 31 | 11, "interrupt M_EXT"),
        ("env.misa_ext", "env.mcause", 8, 13, "LOAD_PAGE_FAULT"),
        ("env.misa_ext", "env.mcause", 8, 1 << 63 | 40, "interrupt 40"),
        ("env.misa_ext", "env.satp", 8, 8 << 60 | 0x80200, "Sv39, table at 0x80200000"),
        ("env.nip", "env.msr", 8, 0x8000000000003001, ""),  # of an unknown family
        ("env.psw.mask", "env.psw.mask", 8, 0x0700C00180000000, "EXT IO DAT, 64-bit, home space"),
        ("env.psw.mask", "env.psw.mask", 8, 0x0002000080000000, "WAIT, 31-bit"),
        ("env.psw.mask", "env.ckc", 8, 0xE3A09A06B77FFBA5, "2026-11-23 22:44:54 UTC"),
        ("env.psw.mask", "env.cputm", 8, 4096 * 1500, "1.5 ms"),
        ("env.psw.mask", "env.cputm", 8, (1 << 64) - 4096, "-1 us"),
        ("env.psw.mask", "env.cpu_state", 1, 1, "stopped"),
        ("env.psw.mask", "env.cpu_state", 1, 200, ""),
    ],
)
def test_a_register_in_words(architecture: str, name: str, size: int, value: int, meaning: str) -> None:
    field = Field(name, "uint64", 100, size, value=value)
    fields = explain(section(Field(architecture, "x", 1, 8, value=0), field, idstr="cpu")).fields
    assert fields[1].meaning == meaning


@pytest.mark.parametrize(
    ("version", "names", "state"),
    [
        (0x00801200, {"LR", "PVR", "DSISR", "HID0"}, "LE IR ME FP SF"),  # POWER10
        (0x000C0209, {"LR", "PVR", "DSISR", "HID0"}, "LE IR ME FP SF"),  # 7400
        (0x80230020, {"LR", "PVR", "DEAR"}, "IS ME FP bits 0, 63"),  # e500mc
        (0x50910951, {"LR", "PVR"}, ""),  # 405: none of these families
    ],
)
def test_registers_of_powerpc_by_family(version: int, names: set[str], state: str) -> None:
    """A number that is another register elsewhere has a name only where it is that one."""
    numbers = {8: 1, 18: 2, 61: 3 if version >> 28 == 8 else 0, 1008: 4, 287: version}
    values = tuple(numbers.get(index, 0) for index in range(1024))
    fields = explain(
        section(
            Field("env.nip", "uint64", 1, 8, value=0),
            Field("env.spr", "uint64", 9, 8192, array_len=1024, value=values),
            Field("env.msr", "uint64", 8201, 8, value=0x8000000000003021),
            idstr="cpu",
        )
    ).fields
    assert {child.name for child in fields[1].children} == names
    assert fields[2].meaning == state


def numbers(**values: int) -> tuple[Field, ...]:
    return tuple(Field(name, "uint64", 100, 8, value=value) for name, value in values.items())


@pytest.mark.parametrize(
    ("architecture", "field", "meaning"),
    [
        (
            "env.eip",
            Field(
                "env.mtrr_var", "struct", 1, 16, index=0, children=numbers(base=0xC0000000, mask=0xFFC0000800)
            ),
            "UC from 0xc0000000 to 0xffffffff",
        ),
        (
            "env.eip",
            Field("env.mtrr_var", "struct", 1, 16, index=0, children=numbers(base=6, mask=0)),
            "not in use",
        ),
        (
            "env.eip",
            Field(
                "env.fpregs",
                "struct",
                1,
                10,
                index=6,
                children=(
                    Field("tmp", "tmp", 1, 10, children=numbers(tmp_mant=0xC90FDAA22168C235, tmp_exp=0x4000)),
                ),
            ),
            "FPR6, 3.141592653589793",
        ),
        (
            "env.misa_ext",
            Field("env.pmp_state.pmp", "struct", 1, 9, children=numbers(addr_reg=0x2000FFFF, cfg_reg=0x18)),
            "from 0x80000000 to 0x8007ffff",
        ),
        (
            "env.misa_ext",
            Field("env.pmp_state.pmp", "struct", 1, 9, children=numbers(addr_reg=0x1FF, cfg_reg=0x1F)),
            "from 0x0 to 0xfff",
        ),
        (
            "env.misa_ext",
            Field("env.pmp_state.pmp", "struct", 1, 9, children=numbers(addr_reg=5, cfg_reg=0)),
            "",
        ),
    ],
)
def test_what_several_fields_say_together(architecture: str, field: Field, meaning: str) -> None:
    fields = explain(section(Field(architecture, "x", 1, 8, value=0), field, idstr="cpu")).fields
    assert fields[1].meaning == meaning


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x603000000013C080, "SCTLR_EL1"),
        (0x603000000013DF19, "CNTV_CTL_EL0"),
        (0x603000000013DF42, "PMEVCNTR2_EL0"),
        (0x603000000013DF7F, "PMCCFILTR_EL0"),
        (0x6030000000140000, "0x6030000000140000"),  # firmware's, no system register
        (0x603000000013C787, "S3_0_C15_C0_7"),
        (0x40200000200F0001, "p15_0_c0_c0_1"),
        (0x40200000000F6801, "p15_0_c13_c0_1_secure"),
        (0x40300000200F0388, "p15_1_c7"),
        (0x4030000000140000, "0x4030000000140000"),
        (0, "0x0"),
        ((1 << 64) - 1, "0xffffffffffffffff"),
    ],
)
def test_a_system_register_by_its_number(index: int, name: str) -> None:
    fields = explain(
        section(
            Field("env.xregs", "uint64", 1, 8, value=0),
            Field("cpreg_vmstate_indexes", "uint64", 9, 8, array_len=1, value=(index,)),
            Field("cpreg_vmstate_values", "uint64", 17, 8, array_len=1, value=(5,)),
            idstr="cpu",
        )
    ).fields
    (child,) = fields[2].children
    assert (child.name, child.value, child.offset, child.size) == (name, 5, 17, 8)


def test_system_registers_are_not_more_than_a_machine_can_have() -> None:
    many = tuple(range(100_000))
    fields = explain(
        section(
            Field("env.xregs", "uint64", 1, 8, value=0),
            Field("cpreg_vmstate_indexes", "uint64", 9, 800_000, array_len=100_000, value=many),
            Field("cpreg_vmstate_values", "uint64", 17, 800_000, array_len=100_000, value=many),
            idstr="cpu",
        )
    ).fields
    assert len(fields[2].children) == 4096


# ---------------------------------------------------------------- whatever a stream may hold

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from([0, -1, 1 << 63, (1 << 64) - 1]),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.lists(
        st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.none(), st.text(max_size=1)), max_size=70
    ).map(tuple),
)


@st.composite
def any_field(draw: st.DrawFn, paths: list[str]) -> Field:
    """A field with one of these paths, or one that it is in, that holds anything."""
    path = draw(st.sampled_from(paths))
    above, _, name = path.rpartition(".")
    inside = above and draw(st.booleans())
    return Field(
        above if inside else path,
        draw(st.sampled_from(["uint64", "int32", "struct", "subsection", "timer", "buffer", "tmp"])),
        100,
        draw(st.integers(0, 600)),
        index=draw(st.one_of(st.none(), st.integers(0, 100))),
        value=draw(VALUES),
        children=tuple(draw(st.lists(any_field([name]), max_size=3))) if inside else (),
    )


TABLES = [
    ("env.eip", list(cpux86.REGISTERS)),
    ("env.misa_ext", list(cpuriscv.REGISTERS)),
    ("env.nip", [*cpupowerpc.REGISTERS, "env.spr", "env.msr"]),
    ("env.psw.mask", list(cpus390x.REGISTERS)),
    ("env.xregs", [*cpuarm.REGISTERS, "cpreg_vmstate_indexes", "cpreg_vmstate_values"]),
]


def test_all_architectures_are_among_them() -> None:
    assert {ARCHITECTURES[key] for key, _ in TABLES} == set(ARCHITECTURES.values())


@given(st.data())
def test_any_value_of_any_register(data: st.DataObject) -> None:
    """A meaning or none, never an exception; what is in it stands in it."""
    key, paths = data.draw(st.sampled_from(TABLES))
    fields = data.draw(st.lists(any_field(paths), max_size=4))
    explained = explain(section(Field(key, "uint64", 90, 8, value=0), *fields, idstr="cpu"))
    assert len(explained.fields) == len(fields) + 1
    for before, after in zip(fields, explained.fields[1:], strict=True):
        assert (after.name, after.value, after.offset, after.size) == (
            before.name,
            before.value,
            before.offset,
            before.size,
        )
        if not before.children:
            assert_within(after)
