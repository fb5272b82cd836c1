"""Guest memory into files and JSON: against a model, under hostile names and lengths, on failing disks."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.wire import Command, ItemType
from migsniff.show import extract, pagestates
from tests.catalogue import SMALL, SMALL_HEAD
from tests.extracting import (
    BLOCKS,
    CUTS,
    Record,
    allocated,
    delta,
    dumped,
    extracted,
    on_disk,
    stream_of,
)
from tests.playing import Cut, Stream, precopy
from tests.streams import (
    EOF,
    FLUSH,
    HEADER,
    PAGE_SIZE,
    block_list,
    capabilities,
    command,
    configuration,
    discard,
    filled,
    normal,
    package,
    page_bits,
    ram,
    ram_end,
    ram_part,
    ram_start,
    xbzrle,
    zero,
)

# ---------------------------------------------------------------- pages, against a model

any_record = st.tuples(st.sampled_from(list(BLOCKS)), st.integers(0, 7), st.integers(0, 3))
any_runs = st.lists(
    st.tuples(st.integers(1, 300), st.binary(min_size=1, max_size=200)), min_size=1, max_size=4
)
any_records = st.lists(
    st.one_of(
        any_record,
        st.tuples(st.sampled_from(list(BLOCKS)), st.integers(0, 7), any_runs.map(lambda runs: delta(*runs))),
    ),
    max_size=60,
)
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def changed(page: bytes, encoded: bytes) -> bytes:
    """The page with a delta applied, as the format has it, a byte at a time."""
    at, result, source = 0, bytearray(page), iter(encoded)

    def value(first: int) -> int:
        return first if first < 128 else first & 127 | next(source) << 7

    for first in source:
        at += value(first)
        for _ in range(value(next(source))):
            result[at] = next(source)
            at += 1
    return bytes(result)


def model_of(records: list[Record]) -> tuple[dict[tuple[bytes, int], bytes | None], int]:
    """What each page that came is at last, None if a delta came before any page; and how many are so."""
    model: dict[tuple[bytes, int], bytes | None] = {}
    for name, page, fill in records:
        if isinstance(fill, bytes):
            before = model.get((name, page))
            model[name, page] = None if before is None else changed(before, fill)
        else:
            model[name, page] = bytes([fill]) * SMALL
    return model, sum(page is None for page in model.values())


@PROPERTY
@given(records=any_records, cut=st.sampled_from(CUTS), per_section=st.integers(1, 60), held=st.integers(1, 9))
def test_files_hold_the_last_contents_of_every_page(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: Cut, per_section: int, held: int
) -> None:
    path = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "MOST_EDITED", held * SMALL)
        files = extracted(stream_of(BLOCKS, records, per_section), path, cut)
    model, broken = model_of(records)
    found = on_disk(path)
    assert {name: len(contents) for name, contents in found.items()} == {
        name.decode().lstrip("/"): length for name, length in BLOCKS.items()
    }
    for name, length in BLOCKS.items():
        contents = found[name.decode().lstrip("/")]
        for page in range(length // SMALL):
            expected = model.get((name, page), bytes(SMALL))
            assert expected in (None, contents[page * SMALL : (page + 1) * SMALL])
    assert files.names == [name.decode() for name in BLOCKS]
    summary = f"{broken} page{'s' * (broken != 1)} could not be put together from what was sent last"
    assert (summary in files.problems) == bool(broken)
    assert all(" never sent " in problem for problem in files.problems if problem != summary)
    if not any(isinstance(fill, bytes) for _, _, fill in records):
        assert files.problems == []


@PROPERTY
@given(records=any_records, cut=st.sampled_from(CUTS), per_section=st.integers(1, 60))
def test_the_dump_has_each_page_once_where_it_first_came(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: Cut, per_section: int
) -> None:
    last = {(name, page): fill for name, page, fill in records}
    model = {
        f"{name.decode()} (0x{page * SMALL:016x})": "could not be put together"
        if contents is None
        else "Filled with 0x00"
        if last[name, page] == 0
        else contents.hex(" ")
        for (name, page), contents in model_of(records)[0].items()
    }
    found, _ = dumped(stream_of(BLOCKS, records, per_section), tmp_path_factory.mktemp("dump"), cut)
    assert list(found.items()) == list(model.items())


# ---------------------------------------------------------------- sparse


def test_files_are_sparse(tmp_path: Path) -> None:
    size = 1 << 30
    records: list[Record] = [(b"ram", page, 0) for page in range(1000)]
    records += [(b"ram", size // SMALL - 1, 3), (b"ram", 5, 0), (b"ram", 1 << 20, 0)]
    extracted(stream_of({b"ram": size}, records), tmp_path)
    assert (tmp_path / "ram").stat().st_size == size
    assert allocated(tmp_path / "ram") < 1 << 20


def test_zero_pages_behind_data_clear_it_and_leave_holes(tmp_path: Path) -> None:
    size = 4 << 20
    records: list[Record] = [(b"ram", 10, 1), (b"ram", size // SMALL - 1, 1)]
    records += [(b"ram", page, 0) for page in range(size // SMALL)]
    extracted(stream_of({b"ram": size}, records, 1 << 20), tmp_path)
    assert on_disk(tmp_path) == {"ram": bytes(size)}
    assert allocated(tmp_path / "ram") <= 1 << 17


def test_many_pages_side_by_side(tmp_path: Path) -> None:
    """More than one writev takes."""
    records: list[Record] = [(b"ram", page, page % 255 + 1) for page in range(3000)]
    extracted(stream_of({b"ram": 3000 * SMALL}, records, 3000), tmp_path)
    expected = b"".join(bytes([page % 255 + 1]) * SMALL for page in range(3000))
    assert on_disk(tmp_path) == {"ram": expected}


def test_more_blocks_than_files_are_open(tmp_path: Path) -> None:
    blocks = {b"block%03d" % number: SMALL for number in range(2 * extract.OPEN_FILES + 10)}
    records: list[Record] = [(name, 0, fill) for fill in (9, 5) for name in (*blocks, *reversed(blocks))]
    extracted(stream_of(blocks, records), tmp_path)
    assert on_disk(tmp_path) == {name.decode(): b"\5" * SMALL for name in blocks}


# ---------------------------------------------------------------- names


def test_names_that_need_encoding_are_told_as_they_are_on_disk(tmp_path: Path) -> None:
    blocks = {
        b"/rom@etc/x": SMALL,
        b"../x": SMALL,
        b"x": SMALL,
        b"x/y": SMALL,
        b"desc.json": SMALL,
        b"\x1b": SMALL,
    }
    records: list[Record] = [(name, 0, number) for number, name in enumerate(blocks, 1)]
    files = extracted(stream_of(blocks, records), tmp_path / "here")
    assert files.names == ["/rom@etc/x", "%2E.%2Fx", "x", "%78%2Fy", "%64esc.json", "%5Cx1b"]
    assert on_disk(tmp_path) == {
        f"here/{name.lstrip('/')}": bytes([number]) * SMALL for number, name in enumerate(files.names, 1)
    }


# ---------------------------------------------------------------- what is in the folder already

ONE: dict[bytes, int] = {b"a/b/ram": SMALL}
ONE_PAGE: list[Record] = [(b"a/b/ram", 0, 7)]


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        extracted(stream_of(ONE, ONE_PAGE), tmp_path / "new" / "er")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes.pop("new") == 0o777  # which the user named on the way, and which is not ours
    assert modes == {"new/er": 0o700, "new/er/a": 0o700, "new/er/a/b": 0o700, "new/er/a/b/ram": 0o600}


def test_a_regular_file_is_replaced_and_its_other_names_keep_what_they_had(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "kept").write_bytes(b"precious")
    os.link(tmp_path / "kept", tmp_path / "a/b/ram")
    (tmp_path / "kept").chmod(0o644)
    assert extracted(stream_of(ONE, ONE_PAGE), tmp_path).problems == []
    assert (tmp_path / "a/b/ram").read_bytes() == b"\7" * SMALL
    assert (tmp_path / "a/b/ram").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kept").read_bytes() == b"precious"


@pytest.mark.parametrize("where", ["a", "a/b", "a/b/ram"])
def test_symbolic_links_are_not_followed(tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "inside"
    link = inside / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "ram" if where.endswith("ram") else outside)
    if where.endswith("ram"):
        (outside / "ram").write_bytes(b"precious")
    files = extracted(stream_of(ONE, ONE_PAGE), inside)
    assert len(files.problems) == 1
    assert "a/b/ram is not complete: " in files.problems[0]
    assert files.names == []
    assert on_disk(outside) == ({"ram": b"precious"} if where.endswith("ram") else {})
    assert link.is_symlink()


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    os.mkfifo(tmp_path / "a/b/ram")
    files = extracted(stream_of(ONE, ONE_PAGE), tmp_path)
    assert files.problems == ["a/b/ram is not complete: it exists, and is no regular file"]
    assert (tmp_path / "a/b/ram").is_fifo()


# ---------------------------------------------------------------- what the disk does not do


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - (1 << 20)])
def test_a_block_longer_than_any_file_is_told_and_the_others_are_written(tmp_path: Path, length: int) -> None:
    blocks = {b"ram": SMALL, b"huge": length, b"rom": SMALL}
    records: list[Record] = [(b"ram", 0, 1), (b"huge", 7, 2), (b"huge", 1 << 40, 0), (b"rom", 0, 3)]
    files = extracted(stream_of(blocks, records), tmp_path)
    assert files.names == ["ram", "rom"]
    assert len(files.problems) == 1
    assert files.problems[0].startswith("huge is not complete: ")
    assert on_disk(tmp_path) == {"ram": b"\1" * SMALL, "rom": b"\3" * SMALL}
    found, problems = dumped(stream_of(blocks, records), tmp_path / "dump")
    assert "rom (0x0000000000000000)" in found
    assert problems == files.problems


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Record] = [(b"ram", page, page + 1) for page in range(20)]

    def short(file: int, buffers: Sequence[memoryview], address: int) -> int:
        return os.pwrite(file, b"".join(buffers)[:100], address)

    monkeypatch.setattr(os, "pwritev", short)
    extracted(stream_of({b"ram": 20 * SMALL}, records, 20), tmp_path)
    assert on_disk(tmp_path) == {"ram": b"".join(bytes([page + 1]) * SMALL for page in range(20))}


def test_a_full_disk_is_told_once_and_other_blocks_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def full_for_ram(file: int, buffers: Sequence[memoryview], address: int) -> int:
        if os.readlink(f"/proc/self/fd/{file}").endswith("/ram"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, buffers, address)

    monkeypatch.setattr(os, "pwritev", full_for_ram)
    records: list[Record] = [(b"ram", 0, 1), (b"vga", 0, 2), (b"ram", 1, 1), (b"vga", 1, 2)]
    files = extracted(stream_of({b"ram": 2 * SMALL, b"vga": 2 * SMALL}, records), tmp_path)
    assert files.problems == ["ram is not complete: No space left on device"]
    assert on_disk(tmp_path)["vga"] == b"\2" * 2 * SMALL


def test_pages_far_apart_do_not_buy_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagestates, "MAX_STATE_SLACK", 10 * pagestates.SEGMENT)
    records: list[Record] = [(b"ram", page * pagestates.SEGMENT, 1) for page in range(100)]
    stream = stream_of({b"ram": 100 * pagestates.SEGMENT * SMALL}, records)
    assert [text[:24] for text in extracted(stream, tmp_path / "files").problems] == [
        "pages stand so far apart"
    ]
    found, problems = dumped(stream, tmp_path / "dump")
    assert [text[:24] for text in problems] == ["pages stand so far apart"]
    assert 0 < len(found) < 12


# ---------------------------------------------------------------- postcopy, several tries, what is elsewhere


@pytest.mark.parametrize("cut", CUTS)
def test_discarded_pages_are_zero_until_they_come_again(tmp_path: Path, cut: Cut) -> None:
    page = [filled(SMALL, number) for number in range(9)]
    stream = precopy(
        SMALL_HEAD,
        ram_start({b"ram": 8 * SMALL}),
        ram_part(normal(0, b"ram", page[1]), *(normal(n * SMALL, None, page[n + 1]) for n in range(1, 6))),
        ram_part(xbzrle(SMALL, None, b"\0\1!"), xbzrle(2 * SMALL, None, b"\0\1!")),
        discard(b"ram", (2 * SMALL, 2 * SMALL), (6 * SMALL, 1 << 60)),
        discard(b"ram", (5 * SMALL, SMALL)),
        package(command(Command.POSTCOPY_LISTEN), command(Command.POSTCOPY_RUN)),
        ram_part(normal(5 * SMALL, b"ram", page[8])),
        ram_end(),
        EOF,
    )
    assert extracted(stream, tmp_path / "files", cut).problems == []
    pages = [page[1], b"!" + page[2][1:], bytes(SMALL), bytes(SMALL), page[5], page[8], bytes(2 * SMALL)]
    assert on_disk(tmp_path / "files") == {"ram": b"".join(pages)}
    found, _ = dumped(stream, tmp_path / "dump", cut)
    assert [value[:6] for value in found.values()] == [
        "01 01 ",
        "21 02 ",
        *["Filled"] * 2,
        "05 05 ",
        "08 08 ",
    ]


def test_the_last_of_several_migrations(tmp_path: Path) -> None:
    """A migration is tried again over new connections: it begins from nothing, and may have other blocks."""
    first = (
        SMALL_HEAD
        + ram_start({b"ram": 4 * SMALL, b"old": SMALL})
        + ram_part(
            normal(0, b"ram", filled(SMALL, 1)),
            normal(SMALL, None, filled(SMALL, 1)),
            xbzrle(SMALL, None, b"\0\1!"),
            normal(0, b"old", filled(SMALL, 1)),
        )
    )
    second = b"".join(
        (
            SMALL_HEAD,
            ram_start({b"ram": 2 * SMALL, b"new": SMALL}),
            ram_part(normal(SMALL, b"ram", filled(SMALL, 2)), zero(0, b"new")),
            ram_end(),
            EOF,
        )
    )
    stream = Stream(((0, "fwd", first), (1, "fwd", second)))
    files = extracted(stream, tmp_path / "files")
    assert files.problems == ["2 migrations began: the memory is that of the last one"]
    assert files.names == ["ram", "new"]
    assert on_disk(tmp_path / "files") == {"ram": bytes(SMALL) + filled(SMALL, 2), "new": bytes(SMALL)}
    found, _ = dumped(stream, tmp_path / "dump")
    assert list(found) == ["ram (0x0000000000000100)", "new (0x0000000000000000)"]


def test_pages_that_are_shared_and_not_sent(tmp_path: Path) -> None:
    stream = precopy(
        HEADER,
        configuration(b"virt", page_bits(8), capabilities(b"x-ignore-shared")),
        ram(ItemType.SECTION_START, block_list({b"ram": 2 * SMALL, b"rom": SMALL, b"\x1b": SMALL}, 0)),
        ram_part(zero(0, b"rom")),
        ram_end(),
        EOF,
    )
    files = extracted(stream, tmp_path)
    assert files.problems == ["x-ignore-shared: no pages were sent of ram, \\x1b"]


def test_multifd_channels_that_are_not_there(tmp_path: Path) -> None:
    stream = precopy(SMALL_HEAD, ram_start(BLOCKS, FLUSH), ram_end(FLUSH), EOF)
    assert extracted(stream, tmp_path).problems == [
        "pages went over multifd channels, which are not in this file"
    ]


def test_flushes_without_multifd(tmp_path: Path) -> None:
    """QEMU 8.1 sends MULTIFD_FLUSH whether multifd is on or not (migration/ram.c ram_save_setup)."""
    page = filled(PAGE_SIZE, 1)
    stream = precopy(
        HEADER,
        configuration(b"pc-i440fx-8.1"),
        ram_start({b"pc.ram": PAGE_SIZE}, FLUSH),
        ram_part(FLUSH, normal(0, b"pc.ram", page)),
        ram_end(FLUSH),
        EOF,
    )
    assert extracted(stream, tmp_path).problems == []
    assert on_disk(tmp_path) == {"pc.ram": page}


def test_what_is_there_of_a_stream_that_breaks_off(tmp_path: Path) -> None:
    stream = stream_of(BLOCKS, [(b"ram", 0, 1), (b"ram", 1, b"\0\1!"), (b"ram", 2, 2)])
    cut = stream.main.index(filled(SMALL, 2)) + 10
    extracted(Stream(((0, "fwd", stream.main[:cut]),)), tmp_path)
    assert on_disk(tmp_path)["ram"] == filled(SMALL, 1) + bytes(63 * SMALL)
