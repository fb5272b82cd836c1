"""Registers of CPUs in words, and for any fields whatever; test_values_cpu_qemu.py has the real ones."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.events import Field
from migsniff.values import cpuarm, cpupowerpc, cpuriscv, cpus390x, cpux86
from migsniff.values.cpu import ARCHITECTURES
from migsniff.values.explain import explain
from tests.valuing import assert_within, section

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


@settings(suppress_health_check=[HealthCheck.too_slow])
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
