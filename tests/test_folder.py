"""Names of RAM blocks as names of files. The folder is tested with what is written: test_extract.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migsniff.show.folder import file_names


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (["pc.ram", "0000:00:02.0/vga.vram"], ["pc.ram", "0000:00:02.0/vga.vram"]),
        (["/rom@etc/acpi/tables", "/rom@etc/table-loader"], ["rom@etc/acpi/tables", "rom@etc/table-loader"]),
        (["mem 0 (node)", "a&b;c"], ["mem 0 (node)", "a&b;c"]),
        ([".."], ["%2E."]),
        (["../../etc/passwd"], ["%2E.%2F..%2Fetc%2Fpasswd"]),
        (["a/../b"], ["%61%2F..%2Fb"]),
        (["a/./b"], ["%61%2F.%2Fb"]),
        (["//etc/passwd"], ["%2F%2Fetc%2Fpasswd"]),
        (["/"], ["%2F"]),
        (["a//b"], ["%61%2F%2Fb"]),
        (["a/"], ["%61%2F"]),
        ([".bashrc"], ["%2Ebashrc"]),
        (["-rf"], ["%2Drf"]),
        (["a/.git/config"], ["%61%2F.git%2Fconfig"]),
        (["desc.json", "state.json"], ["%64esc.json", "%73tate.json"]),
        (["/state.json"], ["%2Fstate.json"]),
        (["desc.json/x"], ["%64esc.json%2Fx"]),
        (["%2E."], ["%252E."]),
        (["..", "%2E."], ["%2E.", "%252E."]),
        (["a\\x1bb"], ["%61%5Cx1bb"]),
        (["a\0b", "a\nb", "a\x1b[0m", "\u00e9"], ["%61%00b", "%61%0Ab", "%61%1B%5B0m", "%C3%A9"]),
        (["a", "/a"], ["a", "%2Fa"]),
        (["a", "a/b"], ["a", "%61%2Fb"]),
        (["a/b", "a"], ["a/b", "%61"]),
        (["a/b/c", "a/b", "a/b/c/d"], ["a/b/c", "%61%2Fb", "%61%2Fb%2Fc%2Fd"]),
        (["x" * 255, "x" * 256], ["x" * 255, "%78" + "x" * 197 + "%~1"]),
        (["/" * 255], ["%2F" * 66 + "%2" + "%~0"]),
        ([""], ["%~0"]),
    ],
)
def test_file_names(blocks: list[str], expected: list[str]) -> None:
    assert list(file_names(blocks).values()) == expected


PARTS = [*"ab./%~-", "desc.json", "state.json", "..", "\0", "\x1b", "\u202e", " ", "x" * 250]
hostile = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(blocks=st.lists(st.one_of(hostile, st.text(max_size=8)), max_size=12, unique=True))
def test_no_name_reaches_out_or_clashes(blocks: list[str]) -> None:
    names = file_names(blocks)
    assert list(names) == blocks
    paths = [path.split("/") for path in names.values()]
    for parts in paths:
        for part in parts:
            assert part
            assert part[0] not in ".-"
            assert part.isascii()
            assert part.isprintable()
            assert len(part) <= 255
    everything = [["desc.json"], ["state.json"], *paths]
    for index, one in enumerate(everything):
        for other in everything[index + 1 :]:
            shorter = min(len(one), len(other))
            assert one[:shorter] != other[:shorter]
