"""Filters as text: what is understood, and what is wrong with the rest, at its place."""

import time
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from migsniff.filter.compile import Column, Filter
from migsniff.filter.errors import FilterError
from migsniff.filter.grammar import MAX_DEPTH, MAX_LENGTH, parse
from migsniff.filter.names import names
from migsniff.filter.tree import Both, Compare, Either, Exists, Masked, Node, Not, Path, Span, Value, Within


def shape(node: Node) -> object:
    """A tree without its places."""
    match node:
        case Path():
            return (*node.parts, *node.spans)
        case Value():
            return node.value
        case Masked():
            return shape(node.left), "&", shape(node.right)
        case Exists():
            return shape(node.value)
        case Compare():
            quantifier = (node.quantifier,) if node.quantifier else ()
            return *quantifier, shape(node.left), node.relation, shape(node.right)
        case Not():
            return "not", shape(node.test)
        case Both():
            return "and", *map(shape, node.tests)
        case Either():
            return "or", *map(shape, node.tests)
        case Within():
            items = [tuple(map(shape, one)) if isinstance(one, tuple) else shape(one) for one in node.items]
            return shape(node.left), "in", items
    raise AssertionError(node)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ram", ("ram",)),
        ("a or b and not c", ("or", ("a",), ("and", ("b",), ("not", ("c",))))),
        ("(a or b) && !c", ("and", ("or", ("a",), ("b",)), ("not", ("c",)))),
        ("a||b||c", ("or", ("a",), ("b",), ("c",))),
        ("NOT a AND b", ("and", ("not", ("a",)), ("b",))),
        ("instance.order == android", (("instance", "order"), "==", ("android",))),
        ("a ge 1 and b ne 2", ("and", (("a",), ">=", 1), (("b",), "!=", 2))),
        ("a === 1 or a !== 2", ("or", (("a",), "===", 1), (("a",), "!==", 2))),
        ("all a.b-c > 1", ("all", ("a", "b-c"), ">", 1)),
        ("a == 012 or a == -0x1f or a == 0b11", ("or", *((("a",), "==", n) for n in (10, -31, 3)))),
        ("a == 0 or a == 1.5", ("or", (("a",), "==", 0), (("a",), "==", 1.5))),
        ("a < 250ms", (("a",), "<", 0.25)),
        ("a < 293.490ms", (("a",), "<", 0.29349)),
        ("a == 0A:ff", (("a",), "==", b"\x0a\xff")),
        ("a == ff:", (("a",), "==", b"\xff")),
        ("ab == ab:cd", (("ab",), "==", b"\xab\xcd")),
        (r'a == "\x41\101\u00e9\n\"\\"', (("a",), "==", 'AA\u00e9\n"\\')),
        (r'a == r"\x41"', (("a",), "==", r"\x41")),
        ('a["b c"][3].d', ("a", "b c", 3, "d")),
        ("a[0:4] == 1", (("a", Span(0, 4)), "==", 1)),
        ("a[3-5,-2:,:2,-1] == 1", (("a", Span(3, None, 5), Span(-2), Span(0, 2), Span(-1, 1)), "==", 1)),
        ("a & 1", (("a",), "&", 1)),
        ("(a & 6) == 2", ((("a",), "&", 6), "==", 2)),
        ('a in {1, 3..7 "x"}', (("a",), "in", [1, (3, 7), "x"])),
        ("a not in {1}", ("not", (("a",), "in", [1]))),
    ],
)
def test_trees(text: str, expected: object) -> None:
    assert shape(parse(text)) == expected


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(1, 2), "bc"),
        (Span(1, None, 3), "bcd"),
        (Span(-2), "ef"),
        (Span(-3, 2), "de"),
        (Span(-1, 1), "f"),
        (Span(2, None, -2), "cde"),
        (Span(4, 9), "ef"),
        (Span(9, 2), ""),
        (Span(3, None, 1), ""),
        (Span(-9, 1), "a"),
    ],
)
def test_spans(span: Span, expected: str) -> None:
    assert "abcdef"[span.of(6)] == expected


ERRORS = [
    ("size ==", 7, "the expression ends here; expected: a field, a number, "),
    ("", 0, "an empty expression"),
    ("size 5", 5, "this is not understood here; expected: a comparison"),
    ("(size == 5", 10, "the expression ends here; expected: )"),
    ("size == 5)", 9, "this is not understood here; expected: "),
    ('channel == "x', 11, "a text without its closing quote"),
    ("channel == 'x'", 11, 'a text stands in "double quotes"'),
    ("size == 089", 8, "no octal number"),
    (r'channel == "ab\q"', 14, "no such escape"),
    (r'channel == "\ud800"', 12, "no such character"),
    ("size == 0x" + "f" * 40, 8, "a number of more than 128 bits"),
    ("channel[99999999999:1] == 1", 8, "an index beyond 32 bits"),
    ("!" * (MAX_DEPTH + 2) + "ram", MAX_DEPTH + 1, "nested more than"),
    ("ram or " * 1000, MAX_LENGTH, "an expression of more than"),
    ("ram and sectoin.name", 8, "there is no field sectoin.name; did you mean section.name"),
    ("statu == 1", 0, "there is no field statu"),
    ('size == "a"', 8, "the field is a number, and this is text"),
    ("size < 1s", 7, "the field is a number, and this is a number of seconds"),
    ("channel == 5", 11, "the field is a text, and this is a number"),
    ("size == channel", 8, "the field is a number, and this is text"),
    ("5 == channel", 0, "the field is a text, and this is a number"),
    ("direction == up", 13, "direction is one of: fwd, rev"),
    ('section.type == "PARTS"', 16, "section.type is one of: START, PART, END, FULL"),
    ('expert.severity > "bad"', 18, "a severity is one of: chat, note, warn, error"),
    ("expert.severity > 1", 18, "the field is a severity, and this is a number"),
    ("ram == 1", 0, "this is a kind of record, which has no value"),
    ("ram & 1", 0, "& takes whole numbers, and this is a record"),
    ("size & 1.5", 7, "& takes whole numbers, and this is a fraction"),
    ("1 == 1", 0, "neither side is a field"),
    ("ram and 5", 8, "a value alone is no test"),
    ("size[0:2] == 1", 0, "only text and bytes have parts, and this is a number"),
    ("device[1] == 1", 0, "a device has a name"),
    ('size matches "1"', 0, "matches looks into text and bytes, and this is a number; string() makes"),
    ('channel matches "("', 16, "no pattern: "),
    ('channel matches "' + "(((a{99}){99}){99})" + '"', 16, "no pattern: "),
    ("channel contains 5", 17, 'contains looks for a text in "double quotes"'),
    ("channel contains 0a:0b", 17, "the field is text, and these are bytes"),
    ("hash(size) == 1", 0, "there is no function hash"),
    ("abs(size, offset) == 1", 10, "abs() takes 1 of them at most"),
    ('lower("A") == channel', 6, "lower() takes a field"),
    ("lower(size) == channel", 6, "lower() takes no number"),
    ("size in {1, channel}", 12, "the field is a number, and this is text"),
    ("size in {1, offset}", 12, "a set has values, no fields"),
    ("size in {1, 5..1}", 15, "an empty range: its end is before its beginning"),
    ('section.name in {"b".."a"}', 22, "an empty range: its end is before its beginning"),
    ("device.a.b < 1s", 13, "a field of device state is not in seconds"),
]


@pytest.mark.parametrize(("text", "place", "message"), ERRORS)
def test_errors_point_at_their_place(text: str, place: int, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        Filter(text)
    assert caught.value.message.startswith(message)
    assert caught.value.start == min(place, len(text))
    said, shown, mark = str(caught.value).split("\n")
    assert said == caught.value.message
    at = mark.index("^")
    assert shown[at : at + 1].strip() == text[caught.value.start : caught.value.start + 1].strip()
    assert len(shown) <= 110


def test_an_error_shows_nothing_that_a_terminal_would_obey() -> None:
    with pytest.raises(FilterError) as caught:
        Filter("ram and \x1b[31m\u202e")
    assert str(caught.value).split("\n")[1] == "    ram and ?[31m?"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 2000 + "ram" + ")" * 2000,
        "ram||" * 800 + "ram",
        "channel[" + "1," * 1900 + '1] == "a"',
        "size in {" + "1 " * 2000 + "}",
    ],
)
def test_long_ones_take_no_time(text: str) -> None:
    began = time.process_time()
    Filter(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", ["!" * 4000 + "ram", "abs(" * 800 + "size" + ")" * 800, "1&" * 2000 + "1"])
def test_deep_ones_are_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(FilterError, match="nested more than"):
        Filter(text)
    assert time.process_time() - began < 2


WORDS = st.one_of(
    st.sampled_from(list(names())[:40]),
    st.sampled_from(
        ["==", "!=", "<", "&", "&&", "||", "!", "and", "not", "contains", "matches", "any", "all"]
    ),
    st.sampled_from(["in", "{", "}", "..", "(", ")", "[", "]", ":", "-", ",", '"', "\\", "len(", "max("]),
    st.sampled_from(
        ["1", "0x1f", "0a:0b", "warn", "true", "fwd", "1.5", "3s", '"a"', '["a b"]', "device.x.y"]
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map(" ".join)))
@example("\x00")
@example("a[\n")
def test_whatever_is_typed_is_a_filter_or_an_error(text: str) -> None:
    for make in (Filter, Column):
        with suppress(FilterError):
            make(text)
