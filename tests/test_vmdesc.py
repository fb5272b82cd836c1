"""Device bytes read by their description: what QEMU writes, and what a liar might."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.budget import Budget
from migsniff.core.description import Description
from migsniff.core.events import BREATH, Event, Field, Value
from migsniff.core.registry import field_type
from migsniff.core.vmdesc import BREATHS, PIECE, opaque, walk
from tests.describing import BASE, description, entry, read, struct, walked, with_field


def brief(field: Field) -> tuple[Any, ...]:
    """A field as the tables below write it: name, type, offset in the device, size, value, children."""
    name = field.name if field.index is None else f"{field.name}[{field.index}]"
    return (
        name,
        field.type,
        field.offset - BASE,
        field.size,
        field.value,
        [brief(child) for child in field.children],
    )


U8 = entry("a", "uint8", 1)
PAIR = struct("p", 3, entry("x", "uint8", 1), entry("y", "uint16", 2))
SUB = {"vmsd_name": "d/s", "version": 2, "fields": [U8]}
SUB_BYTES = "05 03 642f73 00000002"

WALKS: dict[str, tuple[Description, str, list[tuple[Any, ...]]]] = {
    "plain fields": (
        description(entry("a", "uint32", 4), entry("b", "int16", 2), entry("c", "bool", 1)),
        "0000002a fffe 01",
        [("a", "uint32", 0, 4, 42, []), ("b", "int16", 4, 2, -2, []), ("c", "bool", 6, 1, True, [])],
    ),
    "an array is one field": (
        description(entry("a", "uint16", 2, array_len=3), U8),
        "0001 0002 ffff 07",
        [("a", "uint16", 0, 6, (1, 2, 65535), []), ("a", "uint8", 6, 1, 7, [])],
    ),
    "elements described one by one": (
        description(entry("a", "buffer", 2, index=0), entry("a", "buffer", 3, index=1)),
        "6869 686579",
        [("a[0]", "buffer", 0, 2, "hi", []), ("a[1]", "buffer", 2, 3, "hey", [])],
    ),
    "a struct": (
        description(PAIR),
        "01 0002",
        [("p", "struct", 0, 3, None, [("x", "uint8", 0, 1, 1, []), ("y", "uint16", 1, 2, 2, [])])],
    ),
    "an array of structs": (
        description({**PAIR, "array_len": 2}),
        "01 0002 03 0004",
        [
            ("p[0]", "struct", 0, 3, None, [("x", "uint8", 0, 1, 1, []), ("y", "uint16", 1, 2, 2, [])]),
            ("p[1]", "struct", 3, 3, None, [("x", "uint8", 3, 1, 3, []), ("y", "uint16", 4, 2, 4, [])]),
        ],
    ),
    "an empty struct": (
        description(struct("e", 0), U8),
        "09",
        [("e", "struct", 0, 0, None, []), ("a", "uint8", 0, 1, 9, [])],
    ),
    "a subsection": (
        description(U8, subsections=[SUB]),
        f"01 {SUB_BYTES} 02",
        [("a", "uint8", 0, 1, 1, []), ("d/s", "subsection", 1, 10, None, [("a", "uint8", 10, 1, 2, [])])],
    ),
    "a subsection in a struct is within its size": (
        description(
            entry(
                "p",
                "struct",
                11,
                struct={"vmsd_name": "p", "version": 1, "fields": [U8], "subsections": [SUB]},
            ),
            U8,
        ),
        f"01 {SUB_BYTES} 02 03",
        [
            (
                *("p", "struct", 0, 11, None),
                [
                    ("a", "uint8", 0, 1, 1, []),
                    ("d/s", "subsection", 1, 10, None, [("a", "uint8", 10, 1, 2, [])]),
                ],
            ),
            ("a", "uint8", 11, 1, 3, []),
        ],
    ),
    "NULL pointers from 10.0": (
        description(entry("p", "nullptr", 1, array_len=3), {**PAIR, "index": 3}, entry("p", "nullptr", 1)),
        "303030 01 0002 30",
        [
            ("p", "nullptr", 0, 3, None, []),
            ("p[3]", "struct", 3, 3, None, [("x", "uint8", 3, 1, 1, []), ("y", "uint16", 4, 2, 2, [])]),
            ("p", "nullptr", 6, 1, None, []),
        ],
    ),
    "NULL pointers up to 9.x": (
        description(
            entry("p", "struct", 1, struct={}, index=0), entry("p", "struct", 1, struct={}, array_len=2)
        ),
        "30 3030",
        [("p[0]", "nullptr", 0, 1, None, []), ("p", "nullptr", 1, 2, None, [])],
    ),
    "an inline group": (
        description(
            entry(
                "f",
                "tmp",
                10,
                vmsd_name="f",
                version=1,
                fields=[entry("m", "uint64", 8), entry("e", "uint16", 2)],
            )
        ),
        "8000000000000000 3fff",
        [("f", "tmp", 0, 10, None, [("m", "uint64", 0, 8, 1 << 63, []), ("e", "uint16", 8, 2, 0x3FFF, [])])],
    ),
    "an array of inline groups": (
        description(entry("f", "vstruct", 1, vmsd_name="f", version=7, fields=[U8], array_len=2)),
        "01 02",
        [
            ("f[0]", "vstruct", 0, 1, None, [("a", "uint8", 0, 1, 1, [])]),
            ("f[1]", "vstruct", 1, 1, None, [("a", "uint8", 1, 1, 2, [])]),
        ],
    ),
    "an empty list": (
        description(entry("q", "qtailq", 1), U8),
        "00 05",
        [("q", "qtailq", 0, 1, None, []), ("a", "uint8", 1, 1, 5, [])],
    ),
    "a list of one": (
        description(entry("q", "qlist", 3, vmsd_name="e", version=1, fields=[U8])),
        "01 07 00",
        [("q", "qlist", 0, 3, None, [("e[0]", "struct", 0, 2, None, [("a", "uint8", 1, 1, 7, [])])])],
    ),
    "a list whose bytes are no list": (
        description(entry("q", "qtailq", 3, vmsd_name="e", version=1, fields=[U8]), U8),
        "02 07 00 09",
        [("q", "qtailq", 0, 3, None, []), ("a", "uint8", 3, 1, 9, [])],
    ),
    "a tree with plain keys": (
        description(entry("t", "gtree", 15, vmsd_name="v", version=1, fields=[U8])),
        "00000001 01 00000000000000ff 07 00",
        [
            (
                *("t", "gtree", 0, 15, None),
                [
                    (
                        "v[0]",
                        "struct",
                        4,
                        10,
                        None,
                        [("key", "uint64", 5, 8, 255, []), ("a", "uint8", 13, 1, 7, [])],
                    )
                ],
            )
        ],
    ),
    "an old-style device": (
        description(entry("data", "buffer", 4)),
        "00010203",
        [("data", "buffer", 0, 4, None, [])],
    ),
    "a struct that is longer than its fields": (
        description(struct("p", 3, U8), U8),
        "01 aabb 02",
        [
            (
                "p",
                "struct",
                0,
                3,
                None,
                [("a", "uint8", 0, 1, 1, []), ("undescribed", "opaque", 1, 2, None, [])],
            ),
            ("a", "uint8", 3, 1, 2, []),
        ],
    ),
    "a struct that is shorter than its fields": (
        description(struct("p", 2, U8, entry("b", "uint32", 4)), U8),
        "01 aa 02",
        [
            (
                "p",
                "struct",
                0,
                2,
                None,
                [("a", "uint8", 0, 1, 1, []), ("undescribed", "opaque", 1, 1, None, [])],
            ),
            ("a", "uint8", 2, 1, 2, []),
        ],
    ),
    "a subsection in a struct that the description leaves out": (
        description(struct("p", 11, U8), U8),
        f"01 {SUB_BYTES} 02 03",
        [
            ("p", "struct", 0, 11, None, [("a", "uint8", 0, 1, 1, []), ("d/s", "opaque", 1, 10, None, [])]),
            ("a", "uint8", 11, 1, 3, []),
        ],
    ),
    "capabilities bring their own lengths": (
        description(
            entry("n", "uint32", 4), entry("c", "capability", 3, array_len=2), entry("d", "capability", 2)
        ),
        "00000003 02 6162 03 636465 01 7a",
        [
            ("n", "uint32", 0, 4, 3, []),
            ("c[0]", "capability", 4, 3, "ab", []),
            ("c[1]", "capability", 7, 4, "cde", []),
            ("d", "capability", 11, 2, "z", []),
        ],
    ),
    "an unknown type": (description(entry("a", "no such", 2)), "0102", [("a", "no such", 0, 2, None, [])]),
}


@pytest.mark.parametrize("case", WALKS)
def test_walk(case: str) -> None:
    parsed, data, expected = WALKS[case]
    payload = bytes.fromhex(data)
    result = read(parsed, payload + b"\x7e")
    assert result.problem is None
    assert [brief(field) for field in result.fields] == expected
    assert result.end == 2 + len(payload)


@pytest.mark.parametrize("case", WALKS)
def test_walk_without_fields_ends_at_the_same_place(case: str) -> None:
    parsed, data, _ = WALKS[case]
    for cut in range(len(bytes.fromhex(data)) + 1):
        piece = bytes.fromhex(data)[:cut]
        full, bare = read(parsed, piece), read(parsed, piece, fields=False)
        assert (bare.end, bare.undescribed, str(bare.problem)) == (
            full.end,
            full.undescribed,
            str(full.problem),
        )
        assert bare.fields == ()


@pytest.mark.parametrize("case", WALKS)
def test_truncated_at_every_byte(case: str) -> None:
    parsed, data, _ = WALKS[case]
    payload = bytes.fromhex(data)
    whole = read(parsed, payload)
    for cut in range(len(payload)):
        part = read(parsed, payload[:cut])
        assert part.problem is not None
        assert part.problem.code in ("field-short", "field-subsection")
        assert part.end <= 2 + cut
        # what was read before is what would have been read of the whole, but for the last
        assert part.fields[:-1] == whole.fields[: max(0, len(part.fields) - 1)]


def leaves(fields: tuple[Field, ...]) -> bytes:
    """All raw bytes; an inline group's children are within its own."""
    return b"".join(field.raw or leaves(field.children) for field in fields if field.type != "subsection")


def test_raw_bytes_are_complete_and_kept_once() -> None:
    for parsed, data, _ in WALKS.values():
        if not parsed.devices[0].vmsd.subsections and SUB_BYTES not in data:
            assert leaves(read(parsed, bytes.fromhex(data)).fields) == bytes.fromhex(data)


def test_only_the_outermost_inline_group_keeps_its_bytes() -> None:
    inner = entry("i", "tmp", 1, vmsd_name="i", version=1, fields=[U8])
    result = read(description(entry("o", "tmp", 1, vmsd_name="o", version=1, fields=[inner])), b"\x07")
    (outer,) = result.fields
    assert outer.raw == b"\x07"
    assert outer.children[0].raw == b""
    assert outer.children[0].children[0].raw == b"\x07"


def test_undescribed_bytes_are_counted() -> None:
    assert read(description(struct("p", 3, U8)), b"\1\2\3").undescribed == 2
    assert read(description(struct("p", 1, U8)), b"\1").undescribed == 0


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("subsection", "05 03 642f73 00000002 aabb", ("d/s", 2)),
        ("subsection without a body", "05 03 642f73 00000002", ("d/s", 2)),
        ("too short for one", "05 03 642f73 000000", ("undescribed", None)),
        ("name with an escape", "05 03 641b73 00000002", ("undescribed", None)),
        ("anything", "0102", ("undescribed", None)),
        ("nothing", "", ("undescribed", None)),
    ],
)
def test_opaque_is_named_by_a_subsections_header(
    name: str, raw: str, expected: tuple[str, int | None]
) -> None:
    data = bytes.fromhex(raw)
    field = opaque(b"?" + data + b"?", 1, 1 + len(data), 77)
    assert (field.name, field.version) == expected
    assert (field.type, field.offset, field.size, field.raw) == ("opaque", 77, len(data), data)


# ---------------------------------------------------------------- lists whose keys repeat


def test_a_lists_keys_repeat_once_an_element() -> None:
    element = '"vmsd_name":"e","version":1,"fields":[{"name":"a","type":"uint8","size":1}]'
    text = with_field(f'{{"name":"q","type":"qtailq",{element},{element},{element},"size":7}}')
    result = read(Description.parse(text.encode()), bytes.fromhex("01 0a 01 0b 01 0c 00"))
    (field,) = result.fields
    assert [(child.index, child.children[0].value) for child in field.children] == [(0, 10), (1, 11), (2, 12)]
    assert field.raw == bytes.fromhex("01 0a 01 0b 01 0c 00")


def test_a_tree_whose_keys_are_structs() -> None:
    def part(name: str) -> str:
        return f'"vmsd_name":"{name}","version":1,"fields":[{{"name":"{name}","type":"uint8","size":1}}]'

    both = f"{part('k')},{part('v')}"
    text = with_field(f'{{"name":"t","type":"gtree",{both},{both},"size":11}}')
    result = read(Description.parse(text.encode()), bytes.fromhex("00000002 01 0a 0b 01 0c 0d 00"))
    (field,) = result.fields
    assert [[leaf.value for leaf in child.children] for child in field.children] == [[10, 11], [12, 13]]


def test_of_other_repeated_keys_the_last_counts() -> None:
    text = with_field('{"name":"x","name":"a","type":"uint8","size":9,"size":1}')
    (field,) = read(Description.parse(text.encode()), b"\x05").fields
    assert (field.name, field.value) == ("a", 5)


# ---------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("parsed", "data", "code", "end"),
    [
        (description(U8, entry("b", "uint32", 4)), "01 0203", "field-short", 1),
        (description(entry("b", "uint32", 4, array_len=1 << 31)), "01 0203", "field-short", 0),
        (description({**PAIR, "array_len": 3}), "01 0002 03", "field-short", 4),
        (description(U8, subsections=[SUB]), "01", "field-subsection", 1),
        (description(U8, subsections=[SUB]), "01 7e 00000001", "field-subsection", 1),
        (description(U8, subsections=[SUB]), "01 05 03 642f74 00000002 02", "field-subsection", 1),
        (description(U8, subsections=[SUB]), "01 05 03 642f73 00000003 02", "field-subsection", 1),
        (description(entry("p", "nullptr", 1)), "31", "description-shape", 0),
        # up to 9.x an array is described like its first, which is NULL; css of s390x is known
        (description(entry("p", "struct", 1, struct={}, array_len=4)), "30 30 01 30", "description-shape", 2),
        (description(entry("c", "capability", 3)), "05 6162", "field-short", 0),
    ],
)
def test_a_problem_ends_the_walk(parsed: Description, data: str, code: str, end: int) -> None:
    for fields in (True, False):
        result = read(parsed, bytes.fromhex(data), fields=fields)
        assert result.problem is not None
        assert result.problem.code == code
        assert result.end == 2 + end
    assert sum(field.size for field in read(parsed, bytes.fromhex(data)).fields) == end


WORD = entry("a", "uint16", 2)
LARGE = {
    "an array of structs": [struct("s", 4, WORD, WORD, array_len=3000)],
    "an array of empty structs": [struct("s", 0, array_len=9000)],
    "arrays in a struct in an array": [
        struct("o", 2000, struct("m", 2000, struct("i", 2, WORD, array_len=1000)), array_len=4)
    ],
    "an inline group": [
        entry("t", "tmp", 8000, struct=struct("t", 8000, struct("s", 2, WORD, array_len=4000))["struct"])
    ],
    "names": [entry("c", "capability", 2, array_len=9000)],
    "a subsection": [],
}


@pytest.mark.parametrize("case", LARGE)
def test_a_walk_takes_breath(case: str) -> None:
    inside = struct("s", 2, WORD, array_len=5000)
    more = {} if LARGE[case] else {"subsections": [{"vmsd_name": "d/s", "version": 1, "fields": [inside]}]}
    device = description(*LARGE[case], **more).devices[0]
    data = (b"\5\3d/s\0\0\0\1" if more else b"") + bytes(40_000)
    expected = walked(device, data, 0, 0, fields=True, budget=Budget())
    assert expected.problem is None
    budget = Budget()
    stops, result = [budget.fields], None

    def steps() -> Iterator[Event]:
        nonlocal result
        result = yield from walk(device, data, 0, 0, fields=True, budget=budget, breathe=True)

    for event in steps():
        assert event is BREATH
        stops.append(budget.fields)
    stops.append(budget.fields)
    taken = [before - after for before, after in pairwise(stops)]
    assert result == expected
    assert sum(taken) > 1000
    assert max(taken) <= BREATHS + 1


@pytest.mark.parametrize(("kind", "size"), [("uint32", 4), ("int8", 1), ("timer", 8), ("bool", 1)])
def test_the_values_of_an_array_take_breath(kind: str, size: int) -> None:
    device = description(entry("a", kind, size, array_len=3 * PIECE + 1)).devices[0]
    data = bytes(range(251)) * (4 * PIECE * size // 251)
    steps = list(walk(device, data, 0, 0, fields=True, budget=Budget(), breathe=True))
    assert steps == [BREATH] * 3
    (array,) = walked(device, data, 0, 0, fields=True, budget=Budget()).fields
    decode = field_type.get(kind)
    assert decode is not None
    assert array.raw == data[: size * (3 * PIECE + 1)]
    assert array.value == tuple(decode(array.raw[at : at + size]) for at in range(0, len(array.raw), size))


def test_the_problem_does_not_hold_the_bytes() -> None:
    data = bytearray(b"\1")
    result = walked(description(entry("a", "uint32", 4)).devices[0], data, 0, 0, fields=True, budget=Budget())
    assert result.problem is not None
    data += b"a bytearray that is still viewed cannot grow"
    assert data.startswith(b"\1a")


def test_a_subsection_that_no_description_has_is_left_to_the_caller() -> None:
    result = read(description(U8), bytes.fromhex(f"01 {SUB_BYTES} 02"))
    assert (result.end, result.problem) == (3, None)


@pytest.mark.parametrize(
    "bomb",
    [
        description(struct("e", 0, array_len=1 << 31)),
        description(struct("o", 0, struct("i", 0, array_len=1 << 20), array_len=1 << 20)),
        description(struct("o", 0, entry("i", "uint8", 0), subsections=[], array_len=1 << 31)),
    ],
)
def test_structs_out_of_nothing_are_counted(bomb: Description) -> None:
    budget = Budget(fields=1000)
    result = read(bomb, b"", budget=budget)
    assert result.problem is not None
    assert result.problem.code == "description-nodes"
    # the budget is the migration's: what comes later gets nothing
    assert str(read(description(U8), b"\1", budget=budget).problem) == str(result.problem)


def test_an_exhausted_budget_inside_a_struct_is_told() -> None:
    parsed = description(struct("o", 4, struct("i", 0, array_len=1 << 31)))
    result = read(parsed, b"\0\0\0\0", budget=Budget(fields=50))
    assert result.problem is not None
    assert result.problem.code == "description-nodes"


def test_an_array_of_no_bytes_costs_nothing() -> None:
    (field,) = read(description(entry("a", "uint8", 0, array_len=(1 << 32) - 1)), b"").fields
    assert (field.array_len, field.raw, field.value) == ((1 << 32) - 1, b"", None)


def test_arrays_beyond_the_budget_have_bytes_but_no_values() -> None:
    parsed = description(entry("a", "uint8", 1, array_len=6), entry("b", "uint8", 1, array_len=3))
    first, second = read(parsed, bytes(range(9)), budget=Budget(values=8)).fields
    assert first.value == (0, 1, 2, 3, 4, 5)
    assert (second.value, second.raw) == (None, b"\x06\x07\x08")


@pytest.mark.parametrize(
    ("kind", "size", "raw", "value"),
    [
        ("int8", 1, "ff 01", (-1, 1)),
        ("int16", 2, "ffff 0001", (-1, 1)),
        ("int32 le", 4, "ffffffff 00000001", (-1, 1)),
        ("int64", 8, "ffffffffffffffff 0000000000000001", (-1, 1)),
        ("uint8", 1, "ff 01", (255, 1)),
        ("uint16", 2, "ffff 0001", (65535, 1)),
        ("uint32", 4, "ffffffff 00000001", (0xFFFFFFFF, 1)),
        ("int64 equal", 8, "ffffffffffffffff 0000000000000001", ((1 << 64) - 1, 1)),
        ("uint32", 3, "ffffff 000001", (0xFFFFFF, 1)),
        ("bool", 1, "00 01", (False, True)),
        ("timer", 8, "ffffffffffffffff 0000000000000001", (None, 1)),
        ("buffer", 2, "6162 6300", ("ab", "c")),
        ("pci irq state", 16, "00" * 32, None),
        ("no such", 1, "00 01", None),
    ],
)
def test_values_of_an_array(kind: str, size: int, raw: str, value: Value) -> None:
    (field,) = read(description(entry("a", kind, size, array_len=2)), bytes.fromhex(raw)).fields
    assert (field.value, field.raw, field.array_len) == (value, bytes.fromhex(raw), 2)


# ---------------------------------------------------------------- anything at all

ENTRIES = st.recursive(
    st.builds(
        entry,
        st.sampled_from(["a", "b"]),
        st.sampled_from(sorted({*field_type, "qtailq", "gtree", "tmp"} - {"nullptr"})),
        st.integers(0, 9),
    )
    | st.just(entry("a", "nullptr", 1))
    | st.just(entry("b", "struct", 1, struct={})),
    lambda inner: st.builds(
        lambda base, fields, extra, kind: {
            **base,
            "type": kind,
            **({"struct": fields} if kind == "struct" else fields),
            **extra,
        },
        st.builds(entry, st.sampled_from(["a", "b"]), st.just("struct"), st.integers(0, 20)),
        st.fixed_dictionaries(
            {"vmsd_name": st.just("v"), "version": st.integers(0, 2), "fields": st.lists(inner, max_size=3)},
            optional={
                "subsections": st.lists(
                    st.fixed_dictionaries(
                        {
                            "vmsd_name": st.just("s"),
                            "version": st.just(1),
                            "fields": st.lists(inner, max_size=2),
                        }
                    ),
                    max_size=1,
                )
            },
        ),
        st.dictionaries(st.sampled_from(["array_len", "index"]), st.integers(0, 5), max_size=1),
        st.sampled_from(["struct", "tmp", "vstruct", "qtailq", "qlist", "gtree"]),
    ),
    max_leaves=8,
)
BYTES = st.lists(st.sampled_from([b"\0", b"\1", b"0", b"\5\1s\0\0\0\1", b"\xff\x7e"]), max_size=40).map(
    b"".join
)


@given(st.lists(ENTRIES, max_size=4), BYTES, st.integers(0, 60))
def test_walks_never_raise(fields: list[dict[str, Any]], data: bytes, budget: int) -> None:
    parsed = description(*fields)
    result = read(parsed, data, budget=Budget(fields=budget))
    assert 2 <= result.end <= 2 + len(data)
    full, bare = read(parsed, data), read(parsed, data, fields=False)
    assert (bare.end, bare.undescribed, str(bare.problem)) == (full.end, full.undescribed, str(full.problem))
    # fields lie one behind the other, from the start to the end
    at = BASE
    for field in full.fields:
        assert field.offset == at
        at += field.size
    assert at - BASE == full.end - 2
