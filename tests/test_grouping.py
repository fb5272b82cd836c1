"""Which connections are one migration, told from their first bytes alone."""

from collections.abc import Hashable

import pytest

from migsniff.feed.grouping import Group, Opening, group_of, opening_of
from tests.streams import HEADER, command, hello

A, B = bytes(range(16)), bytes(range(1, 17))
MAIN, TLS, PAGE = HEADER, b"\x16\3\1\2\0\1", b"\0\0\0\0\0\0\x10\x08\6pc.ram"
RESUMED = command(10, b"\6pc.ram")


def joined(*steps: tuple[str, bytes] | tuple[str, bytes, Hashable] | str) -> list[int]:
    """Which migration, counted from 0, each connection becomes part of.

    A step is a connection (peer, first bytes, pair), or what becomes of a migration: "1 ends", "0 pauses",
    "0 is in postcopy".
    """
    groups: list[Group[int]] = []
    found = []
    for step in steps:
        if isinstance(step, str):
            group = groups[int(step.split()[0])]
            group.open = step.endswith("postcopy")
            group.postcopy = not step.endswith("ends")
            continue
        opening = opening_of(step[1], step[2] if len(step) > 2 else 0, step[0], final=True)
        assert opening is not None
        joins = group_of(opening, groups)
        if joins is None:
            joins = Group(len(groups))
            groups.append(joins)
        joins.enter(opening)
        found.append(joins.migration)
    return found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("h:1", MAIN), ("h:2", hello(0, A)), ("h:3", hello(1, A)), ("h:4", PAGE)], [0, 0, 0, 0]),
        ([("h:1", hello(1, A)), ("h:2", hello(0, A)), ("h:3", MAIN)], [0, 0, 0]),
        ([("h:1", hello(1)), ("h:2", PAGE), ("h:3", MAIN), ("h:4", hello(0))], [0, 0, 0, 0]),
        # one after the other
        ([("h:1", MAIN), "0 ends", ("h:2", MAIN), ("h:3", hello(0, A))], [0, 1, 1]),
        # another try while channels of the first are still open
        ([("h:1", MAIN), ("h:2", hello(0, A)), ("h:3", MAIN), ("h:4", hello(0, A))], [0, 0, 1, 0]),
        # two at once, from two hosts, from one, with and without uuids
        ([("g:1", MAIN), ("h:1", MAIN), ("g:2", hello(0)), ("h:2", hello(0)), ("g:3", PAGE)],
         [0, 1, 0, 1, 0]),
        ([("h:1", MAIN), ("h:2", hello(0, A)), ("h:3", MAIN), ("h:4", hello(0, B)), ("h:5", hello(1, A))],
         [0, 0, 1, 1, 0]),
        ([("h:1", hello(0, A)), ("h:2", hello(0, B)), ("h:3", hello(1, A)), ("h:4", MAIN), ("h:5", MAIN)],
         [0, 1, 0, 1, 0]),
        ([("h:1", MAIN), ("h:2", hello(0)), ("h:3", hello(0)), ("h:4", MAIN)], [0, 0, 1, 1]),
        # the same number of the same VM twice: that is for the decoder to say
        ([("h:1", MAIN), ("h:2", hello(0, A)), ("h:3", hello(0, A))], [0, 0, 0]),
        # two pairs
        ([("h:1", MAIN, 1), ("h:2", MAIN, 2), ("h:3", hello(0, A), 2), ("h:4", hello(0, A), 1)],
         [0, 1, 1, 0]),
        ([("h:1", MAIN, 1), ("h:2", PAGE, 2)], [0, 1]),
        # recovered postcopy, through the same pair or another
        ([("h:1", MAIN), "0 pauses", ("h:2", RESUMED), ("h:3", PAGE)], [0, 0, 0]),
        ([("h:1", MAIN, 1), "0 pauses", ("h:2", RESUMED, 2)], [0, 0]),
        ([("h:1", MAIN, 1), "0 pauses", ("h:2", RESUMED, 2), ("h:3", PAGE, 2)], [0, 0, 0]),
        ([("h:1", MAIN, 1), "0 is in postcopy", ("h:2", RESUMED, 2)], [0, 0]),
        ([("g:1", MAIN, 1), ("h:1", MAIN, 1), "0 pauses", "1 pauses", ("g:2", RESUMED, 2)], [0, 1, 0]),
        ([("h:1", MAIN), "0 pauses", ("h:2", MAIN), ("h:3", RESUMED)], [0, 1, 0]),
        ([("h:1", MAIN), "0 ends", ("h:2", RESUMED)], [0, 1]),
        # nothing can be told of these but where they go
        ([("h:1", TLS), ("h:2", TLS), ("h:3", TLS)], [0, 0, 0]),
        ([("h:1", TLS), ("h:2", MAIN), ("h:3", TLS), ("h:4", PAGE)], [0, 1, 0, 1]),
        ([("h:1", b"?"), ("h:2", b"GET /"), ("h:3", MAIN)], [0, 0, 0]),
    ],
)  # fmt: skip
def test_groups(steps: list[tuple[str, bytes] | str], expected: list[int]) -> None:
    assert joined(*steps) == expected


@pytest.mark.parametrize(
    ("head", "needed", "expected"),
    [
        (MAIN, 4, Opening("main", 0, "1.2.3.4")),
        (hello(7, A), 64, Opening("multifd", 0, "1.2.3.4", A, 7)),
        (hello(255), 64, Opening("multifd", 0, "1.2.3.4", None, 255)),
        (RESUMED, 4, Opening("resumed", 0, "1.2.3.4")),
        (command(9), 4, Opening("resumed", 0, "1.2.3.4")),
        (command(2), 4, Opening("other", 0, "1.2.3.4")),
        (TLS, 4, Opening("tls", 0, "1.2.3.4")),
        (PAGE, 4, Opening("other", 0, "1.2.3.4")),
    ],
)
def test_first_bytes(head: bytes, needed: int, expected: Opening) -> None:
    for length in range(len(head) + 1):
        found = opening_of(head[:length], 0, "1.2.3.4:5678")
        assert found == (expected if length >= needed else None)


@pytest.mark.parametrize("head", [b"", b"Q", b"QE", b"QEV", hello(3)[:20]])
def test_a_beginning_that_is_cut_off(head: bytes) -> None:
    assert opening_of(head, 0, "/run/x.sock", final=True) == Opening("other", 0, "/run/x.sock")
