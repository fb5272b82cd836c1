"""Filters over records: what matches, on made and on real ones, and that nothing ever raises."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.events import (
    UNLISTED,
    DeviceSection,
    Event,
    Field,
    Finding,
    MultifdPacket,
    Value,
)
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
