"""Guest memory into files and JSON: against a model, under hostile names and lengths, on failing disks."""

import errno
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.pipeline import Sink
from migsniff.show import extract
from migsniff.show.extract import MemoryDump, RamFiles, Unapplied
from migsniff.show.folder import Folder
from tests.catalogue import SMALL, SMALL_HEAD
from tests.playing import Cut, Stream, arrivals, bytewise, pieces_of, precopy, whole
from tests.streams import (
    EOF,
    HEADER,
    capabilities,
    compressed,
    configuration,
    filled,
    hello,
    mapped_list,
    multifd_packet,
    normal,
    page_bits,
    ram,
    ram_end,
    ram_part,
    ram_start,
    xbzrle,
    zero,
)

# ---------------------------------------------------------------- helpers

Record = tuple[bytes, int, int | None]
"""Block, page number, and the byte that fills the page; 0: a zero page, None: an XBZRLE delta."""


def stream_of(blocks: dict[bytes, int], records: Sequence[Record], per_section: int = 7) -> Stream:
    """A precopy of these records, in sections of ram of so many records each."""
    items = []
    block = None
    for name, page, fill in records:
        named = None if name == block else name
        block = name
        if fill is None:
            items.append(xbzrle(page * SMALL, named))
        else:
            items.append(
                normal(page * SMALL, named, filled(SMALL, fill)) if fill else zero(page * SMALL, named)
            )
    parts = [ram_part(*items[at : at + per_section]) for at in range(0, len(items), per_section)]
    return precopy(SMALL_HEAD, ram_start(blocks), *parts, ram_end(), EOF)


def show(stream: Stream, *sinks: Sink, cut: Cut = whole) -> None:
    """Give a stream's events to sinks while the bytes they lend are there."""
    session = Session(contents=True)

    def events() -> Iterator[Event]:
        for arrival in arrivals(stream, cut):
            yield from session.feed(arrival)
        yield from session.finish()

    for event in events():
        for sink in sinks:
            sink.show("m", 0, event)


def extracted(stream: Stream, path: Path, cut: Cut = whole) -> RamFiles:
    with Folder(str(path)) as folder:
        files = RamFiles(folder)
        show(stream, files, cut=cut)
        files.close()
    return files


def dumped(stream: Stream, path: Path, cut: Cut = whole) -> tuple[dict[str, str], list[str]]:
    out = io.StringIO()
    with Folder(str(path)) as folder:
        memory = MemoryDump(folder)
        show(stream, memory, cut=cut)
        memory.write(out.write, "")
        memory.close()
    pairs = json.loads(out.getvalue(), object_pairs_hook=list)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs), memory.problems


def on_disk(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


BLOCKS = {b"ram": 64 * SMALL, b"/rom@etc/acpi/tables": 8 * SMALL, b"vga": 16 * SMALL}

# ---------------------------------------------------------------- pages, against a model

any_record = st.tuples(st.sampled_from(list(BLOCKS)), st.integers(0, 7), st.integers(0, 3))
any_records = st.lists(any_record, max_size=60)
with_deltas = st.lists(st.one_of(any_record, any_record.map(lambda r: (r[0], r[1], None))), max_size=60)
CUTS: list[Cut] = [whole, bytewise, pieces_of(300), pieces_of(5000)]
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@PROPERTY
@given(records=any_records, cut=st.sampled_from(CUTS), per_section=st.integers(1, 60))
def test_files_hold_the_last_contents_of_every_page(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: Cut, per_section: int
) -> None:
    path = tmp_path_factory.mktemp("files")
    files = extracted(stream_of(BLOCKS, records, per_section), path, cut)
    model = {name: bytearray(length) for name, length in BLOCKS.items()}
    for name, page, fill in records:
        model[name][page * SMALL : (page + 1) * SMALL] = bytes([fill or 0]) * SMALL
    assert on_disk(path) == {name.decode().lstrip("/"): bytes(data) for name, data in model.items()}
    assert files.names == [name.decode() for name in BLOCKS]
    assert files.problems == []


@PROPERTY
@given(records=with_deltas, cut=st.sampled_from(CUTS), per_section=st.integers(1, 60))
def test_the_dump_has_each_page_once_where_it_first_came(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], cut: Cut, per_section: int
) -> None:
    model: dict[str, str] = {}
    for name, page, fill in records:
        value = "Filled with 0x00" if fill == 0 else bytes([fill or 0] * SMALL).hex(" ")
        model[f"{name.decode()} (0x{page * SMALL:016x})"] = (
            "XBZRLE or compressed, not applied" if fill is None else value
        )
    found, problems = dumped(stream_of(BLOCKS, records, per_section), tmp_path_factory.mktemp("dump"), cut)
    assert list(found.items()) == list(model.items())
    assert problems == []


@PROPERTY
@given(records=with_deltas, cut=st.sampled_from(CUTS))
def test_pages_whose_last_record_was_a_delta_are_counted(records: list[Record], cut: Cut) -> None:
    unapplied = Unapplied()
    show(stream_of(BLOCKS, records), unapplied, cut=cut)
    last = {(name, page): fill for name, page, fill in records}
    missing = sum(fill is None for fill in last.values())
    expected = f"{missing} page{'s' * (missing != 1)} came last as XBZRLE or compressed: not applied yet"
    assert unapplied.problems == ([expected] if missing else [])


@pytest.mark.parametrize("cut", CUTS)
def test_deltas_leave_a_page_as_it_was_last(tmp_path: Path, cut: Cut) -> None:
    records: list[Record] = [(b"vga", 0, 1), (b"vga", 0, None), (b"vga", 1, None), (b"vga", 2, 2)]
    extracted(stream_of({b"vga": 4 * SMALL}, records), tmp_path, cut)
    assert on_disk(tmp_path) == {"vga": b"\1" * SMALL + bytes(SMALL) + b"\2" * SMALL + bytes(SMALL)}


def test_compressed_pages_are_not_applied_either() -> None:
    unapplied = Unapplied()
    stream = precopy(
        HEADER,
        configuration(b"virt", page_bits(10)),
        ram_start({b"ram": 4096}),
        ram_part(compressed(1024, b"ram", filled(1024)), compressed(1024, None, filled(1024)), zero(0)),
        ram_end(),
        EOF,
    )
    show(stream, unapplied)
    assert unapplied.problems == ["1 page came last as XBZRLE or compressed: not applied yet"]


def test_pages_of_multifd_channels_are_told() -> None:
    unapplied = Unapplied()
    main = SMALL_HEAD + ram_start(BLOCKS) + ram_end() + EOF
    channel = hello(0) + multifd_packet(
        0, block=b"ram", normal=3, zero=1, page_size=SMALL, data=filled(3 * SMALL)
    )
    show(Stream(((0, "fwd", main[:60]), (1, "fwd", channel), (0, "fwd", main[60:]))), unapplied)
    assert unapplied.problems == ["4 pages came over multifd channels: not applied yet"]


@pytest.mark.parametrize("cut", CUTS)
def test_mapped_ram(tmp_path: Path, cut: Cut) -> None:
    pages = {
        b"ram": [filled(SMALL, 1), *[None] * 70, filled(SMALL, 2), filled(SMALL, 3)],
        b"rom": [None, filled(SMALL, 4)],
    }
    stream = precopy(
        HEADER,
        configuration(b"virt", page_bits(8), capabilities(b"mapped-ram")),
        ram(1, mapped_list(pages, SMALL)),  # type: ignore[arg-type]
        ram_end(),
        EOF,
    )
    files = extracted(stream, tmp_path / "files", cut)
    contents = {
        name.decode(): b"".join(page or bytes(SMALL) for page in listed) for name, listed in pages.items()
    }
    assert on_disk(tmp_path / "files") == contents
    assert (files.names, files.problems) == (["ram", "rom"], [])
    found, _ = dumped(stream, tmp_path / "dump", cut)
    assert list(found.items()) == [
        (
            f"{name.decode()} (0x{number * SMALL:016x})",
            "Filled with 0x00" if page is None else page.hex(" "),
        )
        for name, listed in pages.items()
        for number, page in enumerate(listed)
    ]


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
    monkeypatch.setattr(extract, "MAX_STATE_SLACK", 10 * extract.SEGMENT)
    records: list[Record] = [(b"ram", page * extract.SEGMENT, None) for page in range(100)]
    stream = stream_of({b"ram": 100 * extract.SEGMENT * SMALL}, records)
    unapplied = Unapplied()
    show(stream, unapplied)
    assert unapplied.problems[0].startswith("pages stand so far apart")
    assert unapplied.problems[1].startswith("11 pages came last as XBZRLE")
    found, problems = dumped(stream, tmp_path)
    assert problems == unapplied.problems[:1]
    assert 0 < len(found) < 12
