"""Filters over records: what matches, on made and on real ones, and that nothing ever raises."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.events import UNLISTED, DeviceSection, Event, Field, Finding, MultifdPacket, Value
from migsniff.filter.compile import MAX_SEARCHED, Column, Filter
from migsniff.filter.errors import FilterError
from migsniff.filter.names import PREFIXES
from migsniff.filter.operands import text_of
from migsniff.show.json import object_text
from tests.filtering import sample
from tests.synthetic import PRECOPY, device, ram
from tests.test_filter_names import EVENTS

Record = dict[str, Any]
SAMPLES = ["x86-72-return-path", "x86-100-multifd", "x86-72-refused", "x86-100-postcopy", "aarch64-72-virt"]


def sections(record: Record) -> set[str]:
    idstr = record.get("idstr")
    return set() if idstr is None else {idstr, idstr.rpartition("/")[2]}


def blocks(record: Record) -> set[str]:
    named = {one.get("block", one.get("name")) for one in record.get("blocks", ())}
    if record["type"] in ("multifd-packet", "page-fault") and record["block"]:
        named.add(record["block"])
    return named | ({record["arguments"]["block"]} if "block" in record.get("arguments", ()) else set())


def pages(record: Record) -> int:
    return sum(record["counts"][kind] for kind in ("normal", "zero", "xbzrle", "compressed"))


def leaf(record: Record, *names: str) -> list[Any]:
    found = record.get("fields", ())
    for name in names[:-1]:
        found = [child for one in found if one["name"] == name for child in one.get("children", ())]
    return [one.get("value") for one in found if one["name"] == names[-1]]


COMPREHENSIONS: list[tuple[str, Callable[[Record], bool]]] = [
    ("type == device", lambda r: r["type"] == "device"),
    ("!device", lambda r: r["type"] != "device"),
    ("offset < 5000 || size > 0x1000", lambda r: r["offset"] < 5000 or r["size"] > 0x1000),
    ("time >= 2ms and time < 0.01", lambda r: 0.002 <= r["time"] < 0.01),
    ("direction == rev", lambda r: r["direction"] == "rev"),
    ('channel matches "^multifd-[13]$"', lambda r: r["channel"] in ("multifd-1", "multifd-3")),
    ('section.name == "timer"', lambda r: "timer" in sections(r)),
    ('section.name != "timer"', lambda r: bool(sections(r)) and "timer" not in sections(r)),
    ('!(section.name == "timer")', lambda r: "timer" not in sections(r)),
    ('section.name contains "ide"', lambda r: any("ide" in one for one in sections(r))),
    ("section.size & 7 == 0", lambda r: "idstr" in r and r["size"] & 7 == 0),
    ("section.instance in {1..3, 7}", lambda r: r.get("instance_id") in (1, 2, 3, 7)),
    ("section.provisional == false", lambda r: r.get("provisional") is False),
    ("section.type in {START, END}", lambda r: r.get("section_type") in ("START", "END")),
    ('ram.block == "pc.ram"', lambda r: "pc.ram" in blocks(r)),
    ('any ram.block != "pc.ram"', lambda r: bool(blocks(r) - {"pc.ram"})),
    ('all ram.block == "pc.ram"', lambda r: blocks(r) == {"pc.ram"}),
    ("ram.pages > 100", lambda r: r["type"] in ("ram-section", "loose-pages") and pages(r) > 100),
    (
        "sync.zero > sync.normal",
        lambda r: r["type"] == "dirty-sync" and r["counts"]["zero"] > r["counts"]["normal"],
    ),
    (
        "any ram.block.pages == ram.block.zero",
        lambda r: (
            r["type"] in ("ram-section", "loose-pages")
            and bool(r["blocks"])
            and any(pages(one) == other["counts"]["zero"] for one in r["blocks"] for other in r["blocks"])
        ),
    ),
    (
        "multifd.flags & 1 or multifd.normal > 10",
        lambda r: (
            r.get("flags", 0) & 1 != 0
            or (r["type"] == "multifd-packet" and r["normal"] > 10)
            or (r["type"] == "multifd-sync" and r["counts"]["normal"] > 10)
        ),
    ),
    (
        'command.name == "PING" and command.value == 1',
        lambda r: r.get("arguments") == {"value": 1} and r["name"] == "PING",
    ),
    (
        "reply.length >= 4096",
        lambda r: r["type"] == "return-path" and r["arguments"].get("length", 0) >= 4096,
    ),
    ("fault.crossed == false", lambda r: r.get("crossed") is False),
    ("verdict.ok == false", lambda r: r.get("ok") is False),
    ("end.how == eof && end.by == source", lambda r: (r.get("how"), r.get("by")) == ("eof", "source")),
    ("config.page_bits == 12", lambda r: r.get("page_bits") == 12),
    ("device.timer", lambda r: r["type"] == "device" and "timer" in sections(r)),
    (
        "device.timer.cpu_clock_offset > 0",
        lambda r: "timer" in sections(r) and any(v > 0 for v in leaf(r, "cpu_clock_offset")),
    ),
    ("device.pckbd.kbd.status == 28", lambda r: "pckbd" in sections(r) and 28 in leaf(r, "kbd", "status")),
    (
        "device.cpu.env.regs > 1000",
        lambda r: "cpu" in sections(r) and any(n > 1000 for v in leaf(r, "env.regs") for n in v),
    ),
    (
        "all device.cpu.env.regs != 5",
        lambda r: (
            "cpu" in sections(r)
            and bool(leaf(r, "env.regs"))
            and all(n != 5 for v in leaf(r, "env.regs") for n in v)
        ),
    ),
    (
        "device.cpu.env.segs.limit == 0xffff",
        lambda r: "cpu" in sections(r) and 0xFFFF in leaf(r, "env.segs", "limit"),
    ),
    (
        "not device.cpu.env.regs[0] == 17",
        lambda r: not ("cpu" in sections(r) and any(v[0] == 17 for v in leaf(r, "env.regs"))),
    ),
]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("expression", "wanted"), COMPREHENSIONS, ids=[text for text, _ in COMPREHENSIONS])
def test_a_filter_is_a_comprehension_over_the_json(
    name: str, expression: str, wanted: Callable[[Record], bool]
) -> None:
    made = Filter(expression)
    for moment, event in sample(name):
        if not isinstance(event, UNLISTED):
            record = json.loads(object_text("m", moment, event))
            assert made("m", moment, event) == wanted(record), record
    assert made.failed is None


def test_each_of_these_tells_some_records_from_others() -> None:
    """Or the test above would show nothing."""
    for expression, _ in COMPREHENSIONS:
        made = Filter(expression)
        answers = {
            made("m", moment, event)
            for name in SAMPLES
            for moment, event in sample(name)
            if not isinstance(event, UNLISTED)
        }
        assert answers == {True, False}, expression


# ---------------------------------------------------------------- device state

STATE = device(
    1000,
    64,
    "0000:00:01.0/odd dev",
    3,
    provisional=False,
    fields=(
        Field("n", "uint32", 1000, 4, raw=b"\0\0\0\x0c", value=12, meaning="ON | READY"),
        Field("neg", "int32", 1004, 4, raw=b"\xff\xff\xff\xff", value=-1),
        Field("flag", "bool", 1008, 1, raw=b"\1", value=True),
        Field("x", "float64", 1008, 8, raw=bytes(8), value=float("nan")),
        Field("name", "buffer", 1009, 8, raw=b"text\0\0\0\0", value="text"),
        Field("image", "pci config", 1017, 4, raw=b"\x86\x80\x13\x71"),
        Field("words", "uint16", 1021, 6, array_len=3, raw=b"\0\1\0\2\0\3", value=(1, 2, 3)),
        Field("lines", "pci irq state", 1021, 8, raw=b"\0\0\0\1\0\0\0\2", value=(1, 2)),
        Field("timers", "timer", 1021, 16, array_len=2, raw=bytes(16), value=(None, 5)),
        Field("a.b[1].c", "uint8", 1030, 1, raw=b"\7", value=7),
        Field("odd name", "uint8", 1031, 1, raw=b"\x08", value=8),
        *(
            Field(
                "q",
                "struct",
                1032,
                4,
                index=i,
                children=(Field("len", "uint8", 1032, 1, raw=b"\0", value=i),),
            )
            for i in range(3)
        ),
        Field("s", "struct", 1040, 4, children=(Field("n", "uint8", 1040, 1, raw=b"\1", value=1),)),
        Field("s/sub", "subsection", 1040, 4, children=(Field("deep", "uint8", 1, 1, raw=b"\2", value=2),)),
        Field("big", "uint64", 1050, 8, raw=b"\xff" * 8, value=(1 << 64) - 1),
        Field("", "uint8", 1060, 1, raw=b"\0", value=0),
        Field("lone\ud800", "buffer", 1060, 1, raw=b"\0", value="\ud800"),
    ),
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("@.n == 12", True),
        ("@.n == 1", False),
        ("@.n == 12.0", True),
        ("@.s.n == 1", True),
        ("@.n in {1..11, 13}", False),
        ("@.n & 4", True),
        ("@.n & 3", False),
        ("(@.n & 0xc) == 8", False),
        ("@.n & @.s.n == 0", True),
        ('@.n == "ON | READY"', True),
        ('@.n contains "READY"', True),
        ('@.n matches "^on"', True),
        ('@.n matches "(?-i)^on"', False),
        ('@.n == "12"', False),
        ('string(@.n) == "12"', True),
        ('meaning(@.n) == "ON | READY"', True),
        ("@.n == 00:00:00:0c", True),
        ("@.n[3] == 0c:", True),
        ("@.n[2:2] == 00:0c", True),
        ("@.n[-1] == 0x0c", True),
        ("@.n[-1:1] == 0c:", True),
        ("@.neg < 0", True),
        ("@.neg & 0x80", True),
        ("@.flag == true", True),
        ("@.flag == 1", True),
        ("@.flag != false", True),
        ("@.n == true", False),
        ("@.x == 0", False),
        ("@.x != 0", True),
        ('@.name == "text"', True),
        ('@.name contains "ex"', True),
        ('@.name[0:2] == "te"', True),
        ('@.name > "tex"', True),
        ("@.name == 5", False),
        ("len(@.name) == 8", True),
        ('upper(@.name) == "TEXT"', True),
        ("@.image == 86:80:13:71", True),
        ("@.image[0:2] == 86:80", True),
        ("@.image[1,3] == 80:71", True),
        ("@.image[1] == 0x80", True),
        ("@.image[9] == 0x80", False),
        ("@.image[9:] == 80:", False),
        ("@.image contains 80:13", True),
        (r'@.image contains "\x13q"', True),
        (r'@.image matches "\x13Q$"', True),
        ("@.image == 5", False),
        ("@.words == 2", True),
        ("all @.words > 1", False),
        ("all @.words > 0", True),
        ("@.words === 1", False),
        ("@.words !== 1", True),
        ("@.words[2] == 3", True),
        ("@.words[2] == 00:03", True),
        ("@.words[3] == 3", False),
        ("@.words[3]", False),
        ("@.words[0:2] == 00:01", True),
        ("max(@.words) == 3", True),
        ("min(@.words, @.n) == 1", True),
        ("count(@.words) == 1", True),
        ("count(@.nothing) == 0", True),
        ("abs(@.neg) == 1", True),
        ("@.lines[1] == 2", True),
        ("@.timers == 5", True),
        ("@.timers[0]", True),
        ("@.timers[0] >= 0", False),
        ("@.a.b[1].c == 7", True),
        ("@.a.b.c == 7", True),
        ("@.a.b[2].c == 7", False),
        ("@.c == 7", True),
        ('@["a.b[1].c"] == 7', True),
        ('@["odd name"] == 8', True),
        ("@.q.len == 2", True),
        ("@.q[2].len == 2", True),
        ("@.q[1].len == 2", False),
        ("@.q[1]", True),
        ("@.q", True),
        ("@.q[3]", False),
        ("@.q == 1", False),
        ("@.len == 0", True),
        ("@.s/sub.deep == 2", True),
        ("@.deep == 2", True),
        ("@.big == 0xffffffffffffffff", True),
        ("@.big > 1.5", True),
        ('@[""] == 0', True),
        ("@.nothing", False),
        ("@.nothing != 1", False),
    ],
)
@pytest.mark.parametrize(
    "name",
    ['device["odd dev"]', 'device["0000:00:01.0/odd dev"]', 'device["odd dev/3"]'],
    ids=["last", "all", "3"],
)
def test_fields_of_devices(template: str, expected: bool, name: str) -> None:
    """@ stands for the device."""
    made = Filter(template.replace("@", name))
    assert made("m", 0, STATE) == expected
    assert made.failed is None


def test_another_device_has_none_of_it() -> None:
    other = device(0, 64, "odd", 0, fields=STATE.fields)
    for text in ('device["odd dev"].n', 'device["odd dev"]', 'device["odd/1"].n', 'device["/odd"].n'):
        assert not Filter(text)("m", 0, other)
    assert Filter('device["odd/0"].n == 12')("m", 0, other)


def test_without_fields_there_is_only_the_device() -> None:
    bare = device(0, 64, "timer")
    assert Filter("device.timer")("m", 0, bare)
    assert not Filter("device.timer.x")("m", 0, bare)
    assert not Filter("device.timer").fields
    assert Filter("size > 5 or !(device.timer.x == 1)").fields
    assert Column("device.timer.x").fields


def test_a_field_that_no_record_has_is_told() -> None:
    made = Filter('device["odd dev"].n == 12 and device["odd dev"].nn == 1')
    made("m", 0, STATE)
    (note,) = made.notes()
    assert note.startswith('no record in which device["odd dev"].nn was looked for has it')


# ---------------------------------------------------------------- nothing raises, nothing hangs


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "((a{0,9}){0,9})*b",
        "(a|aa|aaa){150}b",
        "(x+x+)+y",
        "(?:a?){400}a{400}",
        "(.*a){20}b",
        "(a|a)*c",
    ],
)
def test_no_pattern_hangs(pattern: str) -> None:
    made = Filter(f'expert.message matches "{pattern}"')
    finding = next(event for event in EVENTS if isinstance(event, Finding))
    from msgspec.structs import replace

    long = replace(finding, message="a" * (4 * MAX_SEARCHED))
    began = time.process_time()
    made("m", 0, long)
    assert time.process_time() - began < 2
    assert made.failed is None


def test_matches_looks_at_the_beginning_of_long_values() -> None:
    state = device(0, 1, "d", fields=(Field("b", "x", 0, 1, raw=b"." * MAX_SEARCHED + b"z"),))
    assert not Filter('device.d.b matches "z"')("m", 0, state)
    assert Filter('device.d.b contains "z"')("m", 0, state)


def test_a_bug_is_no_match_and_is_told() -> None:
    made = Filter('section.name == "timer"')
    broken = device(0, 1, None)  # type: ignore[arg-type]
    assert not made("m", 0, broken)
    assert made.failed is not None
    assert "bug" in list(made.notes())[-1]
    assert made("m", 0, device(0, 1, "timer"))


def test_what_has_no_record_never_matches() -> None:
    for event in (event for event in EVENTS if isinstance(event, UNLISTED)):
        assert not Filter("!ram")("m", 0, event)


EXPRESSIONS = [
    *(text for text, _ in COMPREHENSIONS),
    'device.d.f == "x" or device.d.f > 1 or device.d.f & 1 or device.d.f[0:2] == 01:02',
    'device.d.f matches "a.*b" or device.d.f contains "a" or device.d.f[1] == 1 or device.d.f == device.d.g',
    'device.d.f in {1, 2.5, 3..4, "a".."b", 01:02} or len(device.d.f) > 1 or count(device.d.f) > 1',
    'string(device.d.f) == "1" or max(device.d.f) > 1 or abs(device.d.f) > 1 or lower(device.d.f) == "a"',
    'all device.d.f != 1 or device.d.f === true or device.d.f < device.d.f or meaning(device.d.f) == ""',
]
FILTERS = [Filter(text) for text in EXPRESSIONS]
COLUMNS = [
    Column(text) for text in ("device.d.f", "device.d.f[1]", "device.d.f[0:2]", "len(device.d.f)", "time")
]
SINGLE = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(max_size=8)
)
VALUES: st.SearchStrategy[Value] = st.one_of(SINGLE, st.lists(SINGLE, max_size=4).map(tuple))
FIELDS = st.recursive(
    st.builds(
        Field,
        name=st.sampled_from(["f", "g", "f[1]", "a.f", "", "f.", "[0]"]),
        type=st.just("t"),
        offset=st.just(0),
        size=st.just(1),
        array_len=st.none() | st.integers(0, 5),
        index=st.none() | st.integers(0, 3),
        raw=st.binary(max_size=8),
        value=VALUES,
        meaning=st.text(max_size=4),
    ),
    lambda inner: st.builds(
        Field,
        name=st.sampled_from(["f", "s", "x y"]),
        type=st.just("struct"),
        offset=st.just(0),
        size=st.just(1),
        index=st.none() | st.integers(0, 3),
        children=st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FIELDS, max_size=4))
def test_no_state_makes_a_filter_fail(fields: list[Field]) -> None:
    state = device(0, 1, "0/d", fields=tuple(fields))
    for made in FILTERS:
        made("m", 0, state)
        assert made.failed is None, made.expression
    for column in COLUMNS:
        assert all(isinstance(text, str) for text in column.texts("m", 0, state))


@pytest.mark.parametrize("made", FILTERS, ids=[made.expression for made in FILTERS])
def test_no_record_makes_a_filter_fail(made: Filter) -> None:
    for event in EVENTS:
        made("m", 0, event)
    assert made.failed is None


def test_what_cannot_match_is_known_without_a_look() -> None:
    made = Filter('section.name == "timer" and device.timer.cpu_clock_offset > 5 and time > 1')
    looked_at = {cls for cls in PREFIXES if callable(made._answers[cls])}
    assert looked_at == {DeviceSection}
    assert Filter("ram or !ram")._answers[MultifdPacket] is True


def test_values_as_text() -> None:
    assert [text_of(value) for value in (True, b"\x0a", 0.5, 3, "x", 1e300)] == [
        "true",
        "0a",
        "0.5",
        "3",
        "x",
        "1e+300",
    ]


def test_columns_show_what_is_not_hidden() -> None:
    section = ram(0, 5, "PART", PRECOPY[8][1].counts)  # type: ignore[attr-defined]
    assert Column("section.name").texts("m", 0, device(0, 1, "a/b")) == ["a/b"]
    assert Column("ram.block").texts("m", 0, section) == ["pc.ram"]
    assert Column("expert.severity").texts("m", 0, _finding("warn")) == ["warn"]
    assert Column("ram").texts("m", 0, section) == ["ram"]
    assert Column("time").texts("m", 1_500_000, section) == ["1.5"]
    with pytest.raises(FilterError, match="a column is a field"):
        Column("5")


def _finding(severity: Any) -> Event:
    return Finding(
        channel="main", direction="fwd", offset=0, size=0, severity=severity, code="c", message="m"
    )
