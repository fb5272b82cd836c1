"""The document of QEMU's analyze-migration.py: what becomes of each field, section and description."""

import io
import json
from typing import Any, Literal

import pytest

from migsniff.core.budget import Budget
from migsniff.core.description import Description
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    DescriptionFound,
    DeviceSection,
    Event,
    Field,
    LiveSection,
    PageCounts,
    RamBlock,
    RamBlocks,
    RamSection,
    SectionType,
)
from migsniff.show.script import SLICE, ScriptDocument
from tests.describing import walked


def header(
    offset: int, section_type: SectionType, section_id: int, idstr: str, size: int = 0
) -> dict[str, Any]:
    return {
        "channel": "main",
        "direction": "fwd",
        "offset": offset,
        "size": size,
        "section_type": section_type,
        "section_id": section_id,
        "idstr": idstr,
        "instance_id": 0,
        "version_id": 1,
        "footer": True,
    }


def device(offset: int, section_id: int, idstr: str, *fields: Field, **more: Any) -> DeviceSection:
    head = header(
        offset, "FULL", section_id, idstr, 14 + len(idstr) + sum(field.size for field in fields) + 5
    )
    return DeviceSection(**{**head, "provisional": False, "described": True, "fields": fields, **more})


def ram_blocks(*blocks: tuple[str, int]) -> RamBlocks:
    return RamBlocks(
        channel="main",
        direction="fwd",
        offset=30,
        size=0,
        total=sum(length for _, length in blocks),
        page_size=4096,
        page_size_from="machine",
        blocks=tuple(RamBlock(name, length) for name, length in blocks),
    )


def ram(offset: int, section_type: SectionType) -> RamSection:
    return RamSection(**header(offset, section_type, 2, "ram"), iteration=1, counts=PageCounts())


def live(offset: int, section_type: SectionType, section_id: int, idstr: str) -> LiveSection:
    return LiveSection(**header(offset, section_type, section_id, idstr), provisional=False)


def document(*events: Event, dump: Literal["state", "desc"] = "state") -> str:
    out = io.StringIO()
    sink = ScriptDocument(out, dump)
    for event in events:
        sink.show("m", 0, event)
    sink.close()
    return out.getvalue()


def entry(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size, **more}


def struct(name: str, size: int, *fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return entry(name, "struct", size, struct={"vmsd_name": name, "version": 1, "fields": fields}, **more)


def state(data: str, *fields: dict[str, Any], **more: Any) -> Any:
    """What the document has of a device with these bytes and this description."""
    raw = bytes.fromhex(data)
    text = json.dumps({"devices": [{"name": "d", "instance_id": 0, "version": 1, "fields": fields, **more}]})
    read = walked(Description.parse(text.encode()).devices[0], raw, 0, 0, fields=True, budget=Budget())
    assert (read.problem, read.end) == (None, len(raw))
    written = document(device(0, 7, "d", *read.fields))
    parsed = json.loads(written)
    assert written == json.dumps(parsed, indent=4, separators=(",", ": ")) + "\n"
    return parsed["d (7)"]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("bool", "00", False),
        ("bool", "02", True),
        ("int8", "7f", "0x7f"),
        ("int8", "80", "0x80 (-128)"),
        ("int16", "fffb", "0xfffb (-5)"),
        ("int32", "0000002a", "0x0000002a"),
        ("int32", "ffffffff", "0xffffffff (-1)"),
        ("int32 equal", "80000000", "0x80000000 (-2147483648)"),
        ("int32 le", "fffffffe", "0xfffffffe (-2)"),
        ("int64", "8000000000000000", "0x8000000000000000 (-9223372036854775808)"),
        ("int64 equal", "ffffffffffffffff", "0xffffffffffffffff (-1)"),
        ("uint8 equal", "ff", "0xff (-1)"),  # the script reads it signed
        ("uint16 equal", "8000", "0x8000 (-32768)"),
        ("uint8", "ff", "0xff"),
        ("uint16", "ffff", "0xffff"),
        ("uint32", "80000000", "0x80000000"),
        ("uint32 equal", "80000000", "0x80000000"),
        ("uint64", "ffffffffffffffff", "0xffffffffffffffff"),
        ("nullptr", "30", "nullptr"),
        ("float64", "3ff0000000000000", "3f f0 00 00 00 00 00 00"),
        ("timer", "ffffffffffffffff", "ff ff ff ff ff ff ff ff"),
        ("buffer", "72756e00", "72 75 6e 00"),
        ("buffer", "", ""),
        ("unused_buffer", "0000", "00 00"),
        ("bitmap", "0000000000000001", "00 00 00 00 00 00 00 01"),
        ("pci irq state", "00" * 16, " ".join(["00"] * 16)),
        ("no such type", "0102", "01 02"),
    ],
)
def test_value(kind: str, data: str, expected: object) -> None:
    size = len(data) // 2
    assert state(data, entry("a", kind, size)) == {"a": expected}
    if size:  # several are a list of the same, one alone is none
        assert state(data * 3, entry("a", kind, size, array_len=3)) == {"a": [expected] * 3}
        assert state(data, entry("a", kind, size, array_len=1)) == {"a": expected}


def test_signs_within_an_array() -> None:
    assert state("0001 ffff 7fff", entry("a", "int16", 2, array_len=3)) == {
        "a": ["0x0001", "0xffff (-1)", "0x7fff"]
    }


def test_long_arrays_are_written_in_slices() -> None:
    count = 2 * SLICE + 1
    raw = b"".join(number.to_bytes(4, "big") for number in range(count))
    field = Field(name="a", type="uint32", offset=0, size=len(raw), array_len=count, raw=raw)
    expected = {"d (1)": {"a": [f"0x{number:08x}" for number in range(count)]}}
    assert document(device(0, 1, "d", field)) == json.dumps(expected, indent=4, separators=(",", ": ")) + "\n"


def test_an_array_of_nothing() -> None:
    for size, count in ((0, 1 << 31), (4, 0)):
        assert state("", entry("a", "uint8", size, array_len=count), entry("b", "buffer", 0)) == {
            "a": [],
            "b": "",
        }


# ---------------------------------------------------------------- structure

U8 = entry("a", "uint8", 1)
PAIR = struct("p", 2, entry("x", "uint8", 1), entry("y", "uint8", 1))
SUB = {"vmsd_name": "d/s", "version": 2, "fields": [U8]}


@pytest.mark.parametrize(
    ("data", "fields", "expected"),
    [
        ("", [], {}),
        ("", [struct("e", 0)], {"e": {}}),
        ("0102", [PAIR], {"p": {"x": "0x01", "y": "0x02"}}),
        (
            "01020304",
            [{**PAIR, "array_len": 2}],
            {"p": [{"x": "0x01", "y": "0x02"}, {"x": "0x03", "y": "0x04"}]},
        ),
        ("0102", [{**PAIR, "array_len": 1}], {"p": {"x": "0x01", "y": "0x02"}}),
        ("0102", [{**PAIR, "index": 0}], {"p": {"x": "0x01", "y": "0x02"}}),
        # fields of one name become one list, where the first of them stands
        ("010203", [U8, entry("b", "uint8", 1), U8], {"a": ["0x01", "0x03"], "b": "0x02"}),
        (
            "3030 0102 30",
            [entry("p", "nullptr", 1, array_len=2), PAIR, entry("p", "nullptr", 1)],
            {"p": ["nullptr", "nullptr", {"x": "0x01", "y": "0x02"}, "nullptr"]},
        ),
        ("01 020304", [U8, entry("a", "uint8", 1, array_len=3)], {"a": ["0x01", "0x02", "0x03", "0x04"]}),
        # inline groups and lists are bytes
        ("01", [entry("t", "tmp", 1, vmsd_name="t", version=1, fields=[U8])], {"t": "01"}),
        ("0105 00", [entry("q", "qtailq", 3, vmsd_name="q", version=1, fields=[U8])], {"q": "01 05 00"}),
        (
            "0102",
            [entry("v", "vstruct", 1, vmsd_name="v", version=1, fields=[U8], array_len=2)],
            {"v": ["01", "02"]},
        ),
    ],
)
def test_structure(data: str, fields: list[dict[str, Any]], expected: object) -> None:
    assert state(data, *fields) == expected


def test_subsections_stand_beside_the_fields() -> None:
    bytes_ = "05 03 642f73 00000002"
    assert state(f"01 {bytes_} 02", U8, subsections=[SUB]) == {"a": "0x01", "d/s": {"a": "0x02"}}
    # of one name, the last wins, where the first stood
    other = {"vmsd_name": "z", "version": 1, "fields": []}
    data = f"01 {bytes_} 02 05 01 7a 00000001 {bytes_} 03"
    assert list(state(data, U8, subsections=[SUB, other, SUB]).items()) == [
        ("a", "0x01"),
        ("d/s", {"a": "0x03"}),
        ("z", {}),
    ]


def test_what_no_description_explains_has_the_name_of_its_field() -> None:
    assert state("01 aabb", struct("p", 3, U8)) == {"p": {"a": "0x01", "undescribed": "aa bb"}}


def test_names_are_escaped() -> None:
    text = document(device(0, 1, 'x"\x1b\n', Field(name="é\x00\\", type="bool", offset=0, size=1, raw=b"\1")))
    assert text == '{\n    "x\\"\\u001b\\n (1)": {\n        "\\u00e9\\u0000\\\\": true\n    }\n}\n'


# ---------------------------------------------------------------- sections


def test_the_layout() -> None:
    field = Field(name="halted", type="int32", offset=0, size=8, array_len=2, raw=b"\0\0\0\1\xff\xff\xff\xff")
    assert document(
        ram_blocks(("pc.ram", 1 << 26), ("vga", 4096)),
        ram(8, "START"),
        live(60, "START", 9, "spapr/htab"),
        ram(100, "END"),
        live(150, "END", 9, "spapr/htab"),
        device(200, 3, "cpu", field),
        device(300, 4, "empty"),
    ) == (
        "{\n"
        '    "ram (2)": {\n'
        '        "section sizes": {\n'
        '            "pc.ram": "0x0000000004000000",\n'
        '            "vga": "0x0000000000001000"\n'
        "        }\n"
        "    },\n"
        '    "spapr/htab (9)": "",\n'
        '    "cpu (3)": {\n'
        '        "halted": [\n'
        '            "0x00000001",\n'
        '            "0xffffffff (-1)"\n'
        "        ]\n"
        "    },\n"
        '    "empty (4)": {}\n'
        "}\n"
    )


def test_no_sections() -> None:
    assert document() == "{}\n"


def test_sections_stand_in_the_order_of_the_stream() -> None:
    # a FULL before START ram is known exactly only at the end of the stream
    events = [ram_blocks(), ram(50, "START"), device(90, 4, "late"), device(8, 5, "early")]
    assert list(json.loads(document(*events))) == ["early (5)", "ram (2)", "late (4)"]


def test_a_section_with_live_and_device_state_stays_in_its_place() -> None:
    state = device(90, 7, "vfio", Field(name="data", type="buffer", offset=0, size=1, raw=b"\1"))
    events = [live(10, "START", 7, "vfio"), device(50, 8, "x"), live(60, "END", 7, "vfio"), state]
    assert json.loads(document(*events)) == {"vfio (7)": {"data": "01"}, "x (8)": {}}


def opaque(raw: bytes) -> Field:
    return Field(name="undescribed", type="opaque", offset=0, size=len(raw), raw=raw)


def test_the_exact_device_replaces_the_provisional_one() -> None:
    guess = device(10, 7, "d", opaque(b"\1\2"), provisional=True, described=False)
    exact = device(10, 7, "d", Field(name="a", type="uint8", offset=0, size=1, raw=b"\1"))
    for events in ([guess, exact], [exact, guess]):
        assert json.loads(document(*events)) == {"d (7)": {"a": "0x01"}}


@pytest.mark.parametrize("provisional", [True, False])
def test_a_device_without_description(provisional: bool) -> None:
    section = device(10, 7, "dev", opaque(b"\1\2\xff"), provisional=provisional, described=False)
    assert document(section) == (
        '{\n    "dev (7)": {\n        "size": 3,\n        "data": "01 02 ff"\n    }\n}\n'
    )


@pytest.mark.parametrize(("footer", "size"), [(True, 17), (False, 22)])
def test_a_device_whose_bytes_were_not_kept(footer: bool, size: int) -> None:
    section = device(10, 7, "dev", provisional=True, described=False, footer=footer, size=14 + 3 + 22)
    assert json.loads(document(section)) == {"dev (7)": {"size": size}}


# ---------------------------------------------------------------- the description


def description(text: bytes) -> DescriptionFound:
    return DescriptionFound(
        channel="main", direction="fwd", offset=0, size=len(text), page_size=4096, devices=1, text=text
    )


def test_description() -> None:
    members = b'"name": "\xc3\xa9", "fields": [], "x": {}, "y": 1.5, "x": null'
    text = b'{ "page_size" : 4096, "devices": [{' + members + b"}]}"
    assert document(description(text), dump="desc") == (
        "{\n"
        '    "page_size": 4096,\n'
        '    "devices": [\n'
        "        {\n"
        '            "name": "\\u00e9",\n'
        '            "fields": [],\n'
        '            "x": null,\n'  # of repeated keys the last wins, where the first stood
        '            "y": 1.5\n'
        "        }\n"
        "    ]\n"
        "}\n"
    )


def test_no_description() -> None:
    sink = ScriptDocument(io.StringIO(), "desc")
    assert not sink.described
    sink.show("m", 0, description(b"{}"))
    assert sink.described
    assert document(ram(8, "START"), dump="desc") == ""


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_description_that_is_no_json(text: bytes) -> None:
    with pytest.raises(StreamProblem) as caught:
        document(description(text), dump="desc")
    assert caught.value.code == "description-json"
