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
from migsniff.values import cpuarm, cpux86
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
