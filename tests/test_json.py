"""-T json and -T ndjson: records equal to core.events.record, valid and harmless whatever a stream holds."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from migsniff.core import events
from migsniff.core.events import (
    UNLISTED,
    Event,
    Field,
    Finding,
    PageCounts,
    RamBlock,
    RamPages,
    Value,
    record,
)
from migsniff.show.json import JsonLog
from tests.synthetic import PRECOPY, device

DOCUMENT = Path(__file__).parent.parent / "docs" / "json.md"
AT = {"channel": "main", "direction": "fwd", "offset": 1234, "size": 56}
FIELDS = (
    Field("a", "uint32", 8, 4, raw=b"\0\0\1\0", value=256),
    Field("b", "struct", 12, 8, version=1, children=(Field("c", "virtio", 12, 8, raw=b"\xff" * 8),)),
)


def text_of(timed: tuple[tuple[int, Event], ...], array: bool, **options: set[str]) -> str:
    written: list[str] = []
    log = JsonLog(written.append, array, sections=options.get("sections"))
    for time, event in timed:
        log.show("m1", time, event)
    log.close()
    return "".join(written)


def expected(timed: tuple[tuple[int, Event], ...]) -> list[object]:
    hexadecimal = json.dumps([record("m1", time, event) for time, event in timed], default=bytes.hex)
    records: list[object] = json.loads(hexadecimal)
    return records


WITH_FIELDS = (*PRECOPY, (7, device(5, 16, "cpu", provisional=False, fields=FIELDS)))


def test_ndjson_is_one_record_a_line() -> None:
    lines = text_of(WITH_FIELDS, array=False).splitlines()
    assert [json.loads(line) for line in lines] == expected(WITH_FIELDS)


@pytest.mark.parametrize("count", [0, 1, len(WITH_FIELDS)])
def test_json_is_one_array_however_early_it_ends(count: int) -> None:
    assert json.loads(text_of(WITH_FIELDS[:count], array=True)) == expected(WITH_FIELDS[:count])


def test_raw_bytes_are_hexadecimal() -> None:
    (line,) = text_of(WITH_FIELDS[-1:], array=False).splitlines()
    shown = json.loads(line)["fields"]
    assert shown[0] == {
        "name": "a",
        "type": "uint32",
        "offset": 8,
        "size": 4,
        "raw": "00000100",
        "value": 256,
    }
    assert shown[1]["children"][0]["raw"] == "ff" * 8


def test_the_description_itself_is_not_repeated() -> None:
    (shown,) = [json.loads(line) for line in text_of(PRECOPY, False).splitlines() if '"description"' in line]
    assert shown["devices"] == 3
    assert "text" not in shown


def test_runs_of_pages_have_no_record() -> None:
    one = np.array([8], dtype=np.uint64)
    pages = RamPages(
        channel="main",
        direction="fwd",
        offset=0,
        size=0,
        block="b",
        page_size=4096,
        iteration=1,
        words=one,
        bodies=one,
        lengths=one,
        data=memoryview(b""),
    )
    assert text_of(((0, pages),), array=False) == ""


def test_only_some_sections() -> None:
    records = [json.loads(line) for line in text_of(PRECOPY, False, sections={"timer"}).splitlines()]
    assert [(each["type"], each.get("idstr")) for each in records] == [
        ("device", "timer"),
        ("device", "timer"),
        ("verdict", None),
    ]


@pytest.mark.parametrize(
    "text", ["\x1b[31m\r\n\0", "\x7f\x9b", "\u202e\u2066", "\ud800", "\U0001f600é", '"\\']
)
def test_text_is_escaped_and_comes_back(text: str) -> None:
    finding = Finding(
        channel=text, direction="fwd", offset=0, size=0, severity="note", code="x", message=text
    )
    written: list[str] = []
    log = JsonLog(written.append, array=False)
    log.show(text if text != "\ud800" else "m", 0, finding)
    log.show("m", 0, device(5, 16, text, fields=(Field(text, text, 0, 1, raw=b"\1", value=text),)))
    for line in written:
        assert all(" " <= character <= "~" for character in line.removesuffix("\n"))
    assert json.loads(written[0])["message"] == text
    assert json.loads(written[1])["fields"][0]["value"] == text


def test_numbers_that_json_has_not_are_null() -> None:
    field = Field("f", "float64", 0, 8, raw=bytes(8), value=float("nan"))
    (line,) = text_of(((0, device(5, 16, "cpu", fields=(field,))),), array=False).splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["fields"][0]["value"] is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        1 << 70,
        1.5,
        "\x7f\ud800é",
        (True, None, "a", 0.5),
        (float("inf"), 1),
        tuple(range(10_000)),
    ],
    ids=lambda value: str(value)[:12],
)
def test_fields_are_what_their_names_say(value: Value) -> None:
    """Each attribute that is set, in its order, and none else."""
    leaf = Field("leaf", "uint32", 5, 4, index=3, raw=b"\1\xff", value=value)
    every = Field("f\x7f", '"s', 1, 2, 3, 4, 5, b"6", value, (leaf, leaf), "means")
    (line,) = text_of(((0, device(5, 16, '"fields":[]', fields=(leaf, every))),), array=False).splitlines()
    assert line.isascii()
    fields = json.loads(line)["fields"]

    def expected(field: Field) -> dict[str, object]:
        facts = {name: getattr(field, name) for name in field.__struct_fields__}
        facts |= {"raw": field.raw.hex(), "children": list(map(expected, field.children))}
        if isinstance(value, tuple):
            facts["value"] = [None if each == float("inf") else each for each in value]
        return {name: fact for name, fact in facts.items() if fact not in (None, "", [])}

    assert [list(each.items()) for each in fields] == [list(expected(each).items()) for each in (leaf, every)]


def test_dropped_records_keep_the_array_valid() -> None:
    written: list[str] = []
    log = JsonLog(written.append, array=True)
    log.show("m1", *PRECOPY[0])
    written.append(log.dropped(5))
    log.show("m1", *PRECOPY[1])
    log.close()
    assert [each["type"] for each in json.loads("".join(written))] == ["channel", "dropped", "header"]
    assert json.loads(written[1].lstrip(",[\n")) == {"migration": "m1", "type": "dropped", "count": 5}


# ---------------------------------------------------------------- the documentation


def documented() -> dict[str, str]:
    """Heading -> text of docs/json.md."""
    parts = re.split(r"^##+ (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _leaves(cls: type[Event]) -> set[type[Event]]:
    below = cls.__subclasses__()
    return {cls} if not below else {leaf for each in below for leaf in _leaves(each)}


TYPES = sorted(
    (cls for cls in _leaves(Event) if cls.__module__ == events.__name__ and cls not in UNLISTED),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", TYPES)
def test_every_record_and_field_is_documented(cls: type[Event]) -> None:
    tag = cls.__struct_config__.tag
    assert isinstance(tag, str)
    common = {field.name for field in msgspec.structs.fields(Event)}
    section = {field.name for field in msgspec.structs.fields(events.Section)} - common
    own = {field.name for field in msgspec.structs.fields(cls)} - common - {"text", "image"}
    text = documented()[tag]
    if issubclass(cls, events.Section):
        assert all(f"`{name}`" in documented()["Sections"] for name in section)
        own -= section
    assert {name for name in own if f"| `{name}` |" not in text} == set()
    listed = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    nested = {field.name for field in msgspec.structs.fields(Field)} if tag == "device" else set()
    assert listed <= own | nested, "documented, but not there"


@pytest.mark.parametrize(
    ("struct", "heading"),
    [
        (Field, "device"),
        (PageCounts, "ram-section"),
        (events.BlockPages, "ram-section"),
        (RamBlock, "ram-blocks"),
    ],
)
def test_parts_of_records_are_documented(struct: type[msgspec.Struct], heading: str) -> None:
    text = documented()[heading]
    assert {field.name for field in msgspec.structs.fields(struct) if f"`{field.name}`" not in text} == set()


def test_nothing_else_is_documented() -> None:
    tags = {cls.__struct_config__.tag for cls in TYPES}
    assert set(documented()) == {*tags, "dropped", "statistics", "Sections"}
