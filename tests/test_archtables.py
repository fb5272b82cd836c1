"""The tables of CPUs are what the kernel's source says; its headers for user space have a part of it."""

import os
from pathlib import Path

import pytest

from migsniff.values.tables import x86
from tests import archtables, linuxsource
from tests.test_uapi import INCLUDE, assert_agrees, constants, table

LINUX = os.environ.get("LINUX_SOURCE", "")
"""A folder with the kernel's source, of any version not much older."""


@pytest.mark.parametrize("name", archtables.MAKERS)
def test_a_table_says_where_it_is_from(name: str) -> None:
    source, _ = archtables.MAKERS[name]
    assert table(name).startswith(f'"""{source} of Linux 6.12.117; made by tests/archtables.py."""\n')


@pytest.mark.parametrize("name", archtables.MAKERS)
@pytest.mark.skipif(not LINUX, reason="LINUX_SOURCE does not name the kernel's source")
def test_the_source_says_the_same(name: str) -> None:
    linux = linuxsource.Linux(Path(LINUX))
    here, kept = constants(archtables.table(name, linux)), constants(table(name))
    if linux.version == "6.12.117":
        assert here == kept
    for key, value in here.items():
        assert_agrees(value, kept[key], key)


FLAGS = next(INCLUDE.glob("x86_64*/asm/processor-flags.h"), None)


@pytest.mark.skipif(FLAGS is None, reason="the kernel's headers (linux-libc-dev) for x86 are not installed")
def test_the_headers_for_user_space_say_the_same() -> None:
    assert FLAGS is not None
    found = linuxsource.numbers(FLAGS.read_text())
    for register, names in (("EFLAGS", x86.EFLAGS), ("CR0", x86.CR0), ("CR3", x86.CR3), ("CR4", x86.CR4)):
        known = {bit: name for bit, name in names.items() if f"X86_{register}_{name}_BIT" in found}
        assert len(known) >= len(names) - 3
        for bit, name in known.items():
            assert found[f"X86_{register}_{name}_BIT"] == bit


def test_numbers_of_a_header() -> None:
    """Expressions as headers have them; what is no number is left out."""
    text = """
        #define A 0x10UL
        #define B\t(A | BIT(1))
        #define C _AC(3,UL)
        #  define D (1ULL << A)
        #define E GENMASK(7, 4)
        #define F(x) (x)
        #define G "text"
        #define H unknown
        #define I 017
        #define J J
    """
    assert linuxsource.numbers(text) == {"A": 16, "B": 18, "C": 3, "D": 65536, "E": 0xF0, "I": 15}
