"""Page records: framed, counted by block, kind and pass, and their contents handed out."""

import random
import struct
import zlib
from collections.abc import Callable

import pytest

from migsniff.core.events import (
    BlockPages,
    DirtySync,
    Event,
    PageCounts,
    RamBlocks,
    RamPages,
    RamSection,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.core.wire import Command, ItemType, RamFlag
from tests.catalogue import POSTCOPY_HEAD, SMALL, SMALL_BLOCKS, SMALL_HEAD, STREAMS, page
from tests.playing import Cut, Stream, arrivals, bytewise, of, pieces_of, play, precopy, verdict, whole
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    block_list,
    capabilities,
    command,
    compressed,
    configuration,
    filled,
    normal,
    page_bits,
    ram,
    ram_end,
    ram_part,
    ram_start,
    record,
    xbzrle,
    zero,
)

HEAD = SMALL_HEAD + ram_start(SMALL_BLOCKS)
KIB = 1024
HEAD_1K = HEADER + configuration(b"virt", page_bits(10)) + ram_start({b"ram": 64 * KIB})


def parts(events: list[Event]) -> list[RamSection]:
    return [event for event in of(events, RamSection) if event.section_type == "PART"]


class TestCounts:
    def test_by_kind_block_and_address(self) -> None:
        records = (
            page(SMALL, b"ram"),
            zero(2 * SMALL),
            xbzrle(5 * SMALL, None, b"\0\2xy"),
            zero(3 * SMALL, b"rom"),
            xbzrle(0, b"ram"),
        )
        (part,) = parts(play(precopy(HEAD, ram_part(*records), EOF)))
        sizes = [len(one) for one in records]
        assert part.counts == PageCounts(1, 2, 2, 0, sum(sizes), 0)
        assert part.blocks == (
            BlockPages("ram", 0, 5 * SMALL, PageCounts(1, 1, 2, 0, sum(sizes[:3]) + sizes[4], 0)),
            BlockPages("rom", 3 * SMALL, 3 * SMALL, PageCounts(zero=1, bytes=sizes[3])),
        )

    def test_compressed(self) -> None:
        records = (
            normal(0, b"ram", filled(KIB)),
            compressed(KIB, None, filled(KIB)),
            compressed(9 * KIB, b"ram", filled(KIB, 3)),
        )
        (part,) = parts(play(precopy(HEAD_1K, ram_part(*records), EOF)))
        assert part.counts == PageCounts(1, 0, 0, 2, sum(len(one) for one in records), 0)

    def test_sent_again(self) -> None:
        sections = [
            ram_part(page(0, b"ram"), zero(SMALL)),
            ram_part(zero(SMALL), zero(2 * SMALL)),
            ram_end(zero(SMALL), page(2 * SMALL), zero(4 * SMALL)),
        ]
        events = play(precopy(HEAD, *sections, EOF))
        assert [event.counts.resent for event in of(events, RamSection)] == [0, 0, 1, 2]

    def test_the_block_goes_on_over_sections(self) -> None:
        events = play(
            precopy(HEAD, ram_part(zero(0, b"rom")), ram_part(), ram_part(page(SMALL)), ram_end(), EOF)
        )
        assert [part.blocks[0].block if part.blocks else "" for part in parts(events)] == ["rom", "", "rom"]

    @pytest.mark.parametrize("count", [1, 8, 9, 63, 64, 1023, 1024, 1025, 5000])
    @pytest.mark.parametrize("kinds", ["n", "z", "x", "nz", "nzx", "zzzn"])
    def test_any_number_of_records(self, count: int, kinds: str) -> None:
        """However many are counted at once."""
        make: dict[str, Callable[..., bytes]] = {"n": page, "z": zero, "x": xbzrle}
        records = [make[kinds[i % len(kinds)]](i * SMALL, None if i else b"ram") for i in range(count)]
        head = SMALL_HEAD + ram_start({b"ram": 6000 * SMALL})
        (part,) = parts(play(precopy(head, ram_part(*records), EOF), pieces_of(70_000)))
        by_kind = {kind: sum(kinds[i % len(kinds)] == kind for i in range(count)) for kind in "nzx"}
        counts = PageCounts(by_kind["n"], by_kind["z"], by_kind["x"], 0, sum(map(len, records)), 0)
        assert part.counts == counts
        assert part.blocks == (BlockPages("ram", 0, (count - 1) * SMALL, counts),)

    @pytest.mark.parametrize("cut", [whole, pieces_of(100_000), pieces_of(36_870)])
    def test_long_runs_of_zero_pages(self, cut: Cut) -> None:
        """A guest that is mostly empty."""
        records = [zero(i * SMALL, None if i else b"ram") for i in range(40_000)]
        for number in (9_000, 9_001, 30_000):
            records[number] = page(number * SMALL)
        records += [zero(i * SMALL) for i in range(20_000)]
        head = SMALL_HEAD + ram_start({b"ram": 40_000 * SMALL})
        events = play(precopy(head, ram_part(*records), ram_end(), EOF), cut)
        (part,) = parts(events)
        assert part.counts == PageCounts(3, 59_997, 0, 0, sum(map(len, records)), 20_000)
        assert part.blocks[0].last == 39_999 * SMALL
        assert [sync.counts.pages for sync in of(events, DirtySync)] == [40_000, 20_000, 0]
        assert of(events, DirtySync)[0].offset == len(head) + 5 + sum(map(len, records[:40_000]))

    @pytest.mark.parametrize("cut", [whole, pieces_of(100_000), pieces_of(36_870)])
    def test_pages_that_look_like_a_long_run(self, cut: Cut) -> None:
        """The guest has filled them with what the flags of a zero page are, behind a few real ones."""
        looks = bytes([RamFlag.ZERO | RamFlag.CONTINUE]) * SMALL
        records = [zero(0, b"ram"), zero(SMALL), zero(2 * SMALL), zero(3 * SMALL)]
        for at in range(4, 2_000, 4):
            records += [normal(at * SMALL, None, looks), *(zero((at + i) * SMALL) for i in (1, 2, 3))]
        head = SMALL_HEAD + ram_start({b"ram": 40_000 * SMALL})
        (part,) = parts(play(precopy(head, ram_part(*records), ram_end(), EOF), cut))
        assert part.counts == PageCounts(499, 1_501, 0, 0, sum(map(len, records)), 0)

    @pytest.mark.parametrize(
        ("wrong", "code"), [(zero(0, None, 7), "zero-fill"), (zero(1 << 40), "ram-offset")]
    )
    def test_something_wrong_in_a_long_run(self, wrong: bytes, code: str) -> None:
        records = [zero(0, b"ram"), *(zero(i % 16 * SMALL) for i in range(9_000))]
        for at in (1, 4_097, 4_098, 8_000, 9_000):
            broken = [*records[:at], wrong, *records[at:], *records[1:]]
            (problem,) = of(play(precopy(HEAD, ram_part(*broken), EOF)), Undecodable)
            assert (problem.code, problem.offset) == (code, len(HEAD) + 5 + sum(map(len, records[:at])))

    def test_multifd_flushes(self) -> None:
        events = play(
            precopy(
                SMALL_HEAD,
                ram_start(SMALL_BLOCKS, FLUSH),
                ram_part(FLUSH, zero(0, b"ram"), FLUSH, zero(SMALL)),
                ram_part(),
                EOF,
            )
        )
        assert [event.multifd_flushes for event in of(events, RamSection)] == [1, 2, 0]

    def test_pages_so_small_that_flags_are_addresses(self) -> None:
        """Pages of 256 bytes: the bits of COMPRESS_PAGE and MULTIFD_FLUSH are part of the address."""
        (part,) = parts(play(precopy(HEAD, ram_part(page(0x100, b"ram"), zero(0x200), zero(0x300)), EOF)))
        assert part.counts.pages == 3
        assert (part.blocks[0].first, part.blocks[0].last) == (0x100, 0x300)


# ---------------------------------------------------------------- passes

Z = [zero(i * SMALL) for i in range(8)]
RAM0, ROM0 = page(0, b"ram"), zero(0, b"rom")  # nothing but zero pages would be that of multifd
PASSES: dict[str, tuple[list[bytes], list[tuple[int, bool]]]] = {
    # sections behind the START, and (pages, final) of each pass
    "one pass, and none dirty at the end": ([ram_part(RAM0, Z[1]), ram_end()], [(2, False), (0, True)]),
    "one pass in many parts": (
        [ram_part(RAM0), ram_part(), ram_part(Z[1]), ram_part(), ram_end()],
        [(2, False), (0, True)],
    ),
    "all in the END": ([ram_end(RAM0, Z[1], Z[2])], [(3, True)]),
    "back to a lower address": (
        [ram_part(RAM0, Z[5], Z[2], Z[3]), ram_end(Z[7])],
        [(2, False), (2, False), (1, True)],
    ),
    "back in the next part": (
        [ram_part(RAM0, Z[5]), ram_part(Z[2]), ram_end(Z[3])],
        [(2, False), (1, False), (1, True)],
    ),
    "the same page again": (
        [ram_part(RAM0), ram_part(RAM0), ram_part(RAM0), ram_end()],
        [(1, False)] * 3 + [(0, True)],
    ),
    "again and again in one part: QEMU looks for dirty pages between sections only": (
        [ram_part(RAM0, *([Z[5], Z[2], Z[5], Z[2], Z[2]] * 400)), ram_part(Z[3], Z[1]), ram_end()],
        [(2, False), (2000, False), (1, False), (0, True)],
    ),
    "again and again in the END": ([ram_part(RAM0), ram_end(*[Z[3]] * 1500)], [(1, False), (1500, True)]),
    "again and again in an END that is all": ([ram_end(RAM0, *[Z[3]] * 1500)], [(1501, True)]),
    "on to the next block": ([ram_part(RAM0, Z[5], ROM0, Z[1]), ram_end()], [(4, False), (0, True)]),
    "back to the block before": (
        [ram_part(ROM0, Z[1], RAM0, Z[5]), ram_end()],
        [(2, False), (2, False), (0, True)],
    ),
    "the END goes on where the part stopped": (
        [ram_part(RAM0, Z[1]), ram_end(Z[2], Z[3])],
        [(2, False), (2, True)],
    ),
    "the END goes around: the guest stands still": (
        [ram_part(RAM0), ram_end(Z[3], Z[1])],
        [(1, False), (2, True)],
    ),
    "nothing at all": ([ram_part(), ram_end()], [(0, True)]),
    "no END, as in a background snapshot": ([ram_part(RAM0, Z[1], RAM0)], [(2, False)]),
}


@pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(19)])
@pytest.mark.parametrize("name", PASSES)
def test_passes(name: str, cut: Cut) -> None:
    sections, expected = PASSES[name]
    events = play(precopy(HEAD, *sections, EOF), cut)
    syncs = of(events, DirtySync)
    assert [(sync.counts.pages, sync.final) for sync in syncs] == expected
    assert [sync.iteration for sync in syncs] == list(range(1, len(syncs) + 1))
    sent = sum(event.counts.pages for event in of(events, RamSection))
    open_pass = 1 if name.startswith("no END") else 0
    assert sum(sync.counts.pages for sync in syncs) == sent - open_pass


def test_where_a_pass_ends() -> None:
    """At the record with which the next one begins; before the END; and the last one behind its EOS."""
    part = ram_part(RAM0, Z[5], Z[2], Z[3])
    end = ram_end(Z[7])
    syncs = of(play(precopy(HEAD, part, end, EOF)), DirtySync)
    assert [sync.offset for sync in syncs] == [
        len(HEAD) + 5 + len(RAM0 + Z[5]),
        len(HEAD + part),
        len(HEAD + part + end) - 5,
    ]
    assert [(sync.blocks[0].first, sync.blocks[0].last) for sync in syncs] == [
        (0, 5 * SMALL),
        (2 * SMALL, 3 * SMALL),
        (7 * SMALL, 7 * SMALL),
    ]


def test_passes_of_compressed_pages_are_told_by_repetition() -> None:
    """Their threads finish out of order, so that going back means nothing."""
    one = [compressed(i * KIB, None, filled(KIB, i)) for i in (3, 1, 2, 7)]
    two = [compressed(i * KIB, None, filled(KIB, i)) for i in (2, 7, 1)]
    first = normal(0, b"ram", filled(KIB))
    events = play(precopy(HEAD_1K, ram_part(first, *one), ram_part(*two), ram_end(zero(2 * KIB)), EOF))
    assert [(sync.counts.pages, sync.final) for sync in of(events, DirtySync)] == [
        (5, False),
        (3, False),
        (1, True),
    ]


def test_hundreds_of_passes() -> None:
    """More than a page's count can tell."""
    count = 700
    parts_ = [ram_part(zero(0, b"ram"), zero(SMALL)) for _ in range(count)]
    events = play(precopy(HEAD, *parts_, ram_end(), EOF))
    assert len(of(events, DirtySync)) == count + 1
    assert of(events, RamSection)[-2].iteration == count


def test_postcopy_ends_the_pass_before_it() -> None:
    """From then on pages come as they are asked for."""
    events = play(
        precopy(POSTCOPY_HEAD, ram_part(page(5 * SMALL, b"ram"), page(0), zero(3 * SMALL)), ram_end(), EOF)
    )
    (sync,) = of(events, DirtySync)
    assert (sync.counts.pages, sync.final) == (3, False)
    assert [event.counts.pages for event in of(events, RamSection)] == [0, 3, 0, 3, 0]


# ---------------------------------------------------------------- blocks


def blocks_of(head: bytes, *numbers: int) -> RamBlocks:
    start = ram(ItemType.SECTION_START, block_list(SMALL_BLOCKS, *numbers))
    events = play(precopy(head, start, ram_end(page(0, b"ram")), EOF))
    assert verdict(events).ok
    return of(events, RamBlocks)[0]


@pytest.mark.parametrize(
    ("shared", "numbers", "page_size", "address"),
    [
        (False, (), None, None),
        (False, (1 << 21,), 1 << 21, None),
        (True, (0xFFFC0000,), None, 0xFFFC0000),
        (True, (0,), None, 0),
        (True, (1 << 21, 1 << 32), 1 << 21, 1 << 32),
    ],
)
def test_numbers_behind_a_block(
    shared: bool, numbers: tuple[int, ...], page_size: int | None, address: int | None
) -> None:
    names = (b"x-ignore-shared",) if shared else ()
    event = blocks_of(HEADER + configuration(b"virt", page_bits(8), capabilities(*names)), *numbers)
    assert [(block.name, block.length, block.page_size, block.address) for block in event.blocks] == [
        ("ram", 16 * SMALL, page_size, address),
        ("rom", 4 * SMALL, page_size, address),
    ]
    assert event.total == 20 * SMALL


def test_block_list() -> None:
    event = blocks_of(SMALL_HEAD)
    assert (event.offset, event.size) == (len(SMALL_HEAD) + 17, len(block_list(SMALL_BLOCKS)))
    assert (event.page_size, event.page_size_from) == (SMALL, "configuration")


def test_names_are_shown_in_one_line() -> None:
    events = play(precopy(SMALL_HEAD, ram_start({b"a\x1b[31m\nb\xff\\": SMALL}), EOF))
    assert of(events, RamBlocks)[0].blocks[0].name == "a\\x1b[31m\\x0ab\\xff\\x5c"


def test_a_name_that_is_longer_than_it_can_be_is_read_up_to_where_it_is_none() -> None:
    """Behind it stands the block's length, which begins with a 0, and later guest memory."""
    before, _, behind = ram_start({b"ram": SMALL}).rpartition(b"\x03ram")
    start = before + b"\xffram" + behind
    (problem,) = of(play(precopy(SMALL_HEAD, start, ram_part(page(0, b"ram")))), Undecodable)
    assert (problem.code, problem.message) == ("string-text", "the name of a RAM block is not text: ram\\x00")


@pytest.mark.parametrize(
    ("name", "shown"), [(b"rxm", "rx"), (b"rammer", "ramm"), (b"xyz", "x"), (b"ra", "ra"), (b"", "")]
)
@pytest.mark.parametrize("cut", [whole, bytewise])
def test_a_name_of_no_block_is_read_up_to_where_it_is_none(name: bytes, shown: str, cut: Cut) -> None:
    events = play(precopy(SMALL_HEAD, ram_start(SMALL_BLOCKS), ram_part(page(0, name)), EOF), cut)
    (problem,) = of(events, Undecodable)
    assert problem.message == (
        f"RAM record names a block of {len(name)} characters that begins with {shown!r}, which is not in the "
        "block list"
    )


# ---------------------------------------------------------------- what is wrong

WRONG: dict[str, tuple[bytes, str]] = {
    "flags": (record(SMALL, 1, b"", None), "ram-flags"),
    "two kinds at once": (record(SMALL, RamFlag.PAGE | RamFlag.ZERO, b"", None), "ram-flags"),
    "no kind": (record(SMALL, 0, b"", None), "ram-flags"),
    "a block list": (block_list(SMALL_BLOCKS), "ram-flags"),
    "RDMA": (record(0, RamFlag.HOOK, b"", None), "ram-hook"),
    "an unknown block": (page(0, b"pc.ram"), "ram-block"),
    "a name of no bytes": (page(0, b""), "ram-block"),
    "an address behind the block": (page(16 * SMALL), "ram-offset"),
    "an address far behind the block": (page(1 << 63), "ram-offset"),
    "a page filled with something": (zero(SMALL, None, 1), "zero-fill"),
    "a delta that is too long": (xbzrle(0, None, bytes(SMALL + 1)), "xbzrle-length"),
    "a delta of another kind": (record(0, RamFlag.XBZRLE, b"\2\0\1x", None), "xbzrle-header"),
}


@pytest.mark.parametrize("before", [1, 30])
@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str, cut: Cut, before: int) -> None:
    wrong, code = WRONG[name]
    good = [zero(0, b"ram"), *(page(i % 16 * SMALL) for i in range(before))]
    events = play(precopy(HEAD, ram_part(*good, wrong, page(0), zero(SMALL)), EOF), cut)
    (problem,) = of(events, Undecodable)
    assert problem.code == code
    assert problem.offset == len(HEAD) + 5 + sum(map(len, good))
    assert problem.where == "section ram instance 0 (PART)"
    assert verdict(events).outcome == "undecodable"


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([ram(ItemType.SECTION_START, version=3)], "ram-version"),
        ([ram(ItemType.SECTION_START, zero(0, b"ram"))], "ram-flags"),
        ([ram(ItemType.SECTION_START), ram_part(zero(0, b"ram"))], "ram-no-list"),
        ([ram_part(zero(0, b"ram"))], "section-unknown"),
        ([ram_start(SMALL_BLOCKS), ram_part(zero(0))], "ram-no-block"),
        ([ram_start({b"a": 1000, b"b": 1048})], "ram-block-length"),
        ([ram_start({b"": SMALL})], "string-empty"),
        ([ram(ItemType.SECTION_START, block_list(SMALL_BLOCKS, 1 << 21, 0, 0))], "ram-block-numbers"),
        (
            [
                ram(
                    ItemType.SECTION_START,
                    struct.pack(">Q", SMALL | 4) + b"\3ram" + struct.pack(">Q", 2 * SMALL),
                )
            ],
            "ram-blocks-total",
        ),
        (
            [
                ram_start(SMALL_BLOCKS),
                ram_part(zero(0, b"ram")),
                command(Command.POSTCOPY_LISTEN),
                ram_part(zero(SMALL)),
            ],
            "ram-no-block",
        ),
        (
            [
                ram_start(SMALL_BLOCKS),
                ram_part(zero(0, b"ram")),
                command(Command.POSTCOPY_RESUME),
                ram_part(zero(SMALL)),
            ],
            "ram-no-block",
        ),
    ],
)
def test_wrong_sections(items: list[bytes], code: str) -> None:
    events = play(precopy(SMALL_HEAD, *items, EOF))
    assert [event.code for event in of(events, Undecodable)] == [code]


# ---------------------------------------------------------------- contents


def contents(stream: Stream, cut: Cut) -> list[tuple[str, int, bytes]]:
    """(block, word, contents) of all records that are handed out, in order."""
    session = Session(contents=True)
    found = []
    for arrival in arrivals(stream, cut):
        for event in session.feed(arrival):
            if isinstance(event, RamPages):
                data = bytes(event.data)
                assert len(data) == event.size or event.channel.startswith("multifd")
                for word, body, length in zip(event.words, event.bodies, event.lengths, strict=True):
                    found.append((event.block, int(word), data[int(body) : int(body + length)]))
    return found


def test_contents() -> None:
    records = [
        page(0, b"ram"),
        zero(SMALL),
        normal(2 * SMALL, None, filled(SMALL, 7)),
        xbzrle(0, None, b"\1\2hi"),
        zero(0, b"rom"),
    ]
    words = [struct.unpack_from(">Q", one)[0] for one in records]
    stream = precopy(HEAD, ram_part(*records[:2]), ram_part(*records[2:]), EOF)
    expected = [
        ("ram", words[0], filled(SMALL)),
        ("ram", words[1], b""),
        ("ram", words[2], filled(SMALL, 7)),
        ("ram", words[3], b"\1\2hi"),
        ("rom", words[4], b""),
    ]
    for cut in (whole, bytewise, pieces_of(7), pieces_of(300)):
        assert contents(stream, cut) == expected


def test_compressed_contents() -> None:
    stream = precopy(HEAD_1K, ram_part(compressed(0, b"ram", filled(KIB, 5))), EOF)
    (found,) = contents(stream, bytewise)
    assert zlib.decompress(found[2]) == filled(KIB, 5)


@pytest.mark.parametrize("name", STREAMS)
def test_contents_do_not_depend_on_the_cuts(name: str) -> None:
    expected = contents(STREAMS[name], whole)
    for cut in (bytewise, pieces_of(100)):
        assert contents(STREAMS[name], cut) == expected


def test_contents_of_many_records() -> None:
    chance = random.Random(1)
    kinds: list[Callable[..., bytes]] = [chance.choice((page, zero, xbzrle)) for _ in range(3000)]
    records = [kind(chance.randrange(16) * SMALL, None if i else b"ram") for i, kind in enumerate(kinds)]
    stream = precopy(HEAD, ram_part(*records), EOF)
    expected = contents(stream, whole)
    assert [word for _, word, _ in expected] == [struct.unpack_from(">Q", one)[0] for one in records]
    lengths = {page: SMALL, zero: 0, xbzrle: 5}
    assert [len(data) for _, _, data in expected] == [lengths[kind] for kind in kinds]
    for cut in (pieces_of(1000), pieces_of(33_333)):
        assert contents(stream, cut) == expected
