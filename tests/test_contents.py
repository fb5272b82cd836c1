"""Pages that do not come as they are: XBZRLE deltas, compressed pages, mapped-ram; and what can be wrong."""

import struct
import zlib
from pathlib import Path

import pytest

from migsniff.core.wire import RamFlag
from migsniff.show import extract
from tests.catalogue import SMALL
from tests.extracting import CUTS, Record, dumped, extracted, number, on_disk, stream_of
from tests.playing import Cut, Stream, precopy
from tests.streams import (
    EOF,
    HEADER,
    capabilities,
    compressed,
    configuration,
    filled,
    mapped_list,
    page_bits,
    ram,
    ram_end,
    ram_part,
    ram_start,
    record,
    xbzrle,
    zero,
)

BAD_DELTAS = {
    b"\x01": "ends inside a run",
    b"\x81": "ends inside a run",
    b"\x00\x81": "ends inside a run",
    b"\x00\x02a": "ends inside a run",
    b"\x00\x00": "has a run of no bytes",
    b"\x00\x01a\x00\x01b": "has a run of no bytes",
    b"\x81\x81\x01\x01a": "has a number of more than two bytes",
    number(SMALL) + b"\x01a": f"runs over the page's {SMALL} bytes",
    number(SMALL - 1) + b"\x02ab": f"runs over the page's {SMALL} bytes",
}


@pytest.mark.parametrize("bad", BAD_DELTAS, ids=lambda bad: bad.hex())
def test_a_bad_delta_is_told_with_its_place(tmp_path: Path, bad: bytes) -> None:
    records: list[Record] = [(b"vga", 1, 1), (b"vga", 2, 2), (b"vga", 1, bad), (b"vga", 2, b"\x03\x01!")]
    stream = stream_of({b"vga": 4 * SMALL}, records)
    files = extracted(stream, tmp_path)
    place = stream.main.index(xbzrle(SMALL, None, bad)) + 11
    assert files.problems == [
        f"page {SMALL:#x} of vga, at offset {place} of main: the XBZRLE delta {BAD_DELTAS[bad]}",
        "1 page could not be put together from what was sent last",
    ]
    assert on_disk(tmp_path)["vga"][2 * SMALL :] == b"\2\2\2!" + b"\2" * (SMALL - 4) + bytes(SMALL)


def test_a_delta_for_a_page_never_sent(tmp_path: Path) -> None:
    ok = b"\x00\x01!"
    records: list[Record] = [
        (b"vga", 1, ok),
        (b"vga", 1, ok),
        (b"vga", 3, ok),
        (b"vga", 3, 7),
        (b"vga", 3, ok),
    ]
    files = extracted(stream_of({b"vga": 4 * SMALL}, records), tmp_path)
    assert [problem.partition(", at ")[0] for problem in files.problems[:2]] == [
        "page 0x100 of vga",
        "page 0x300 of vga",
    ]
    assert files.problems[0].endswith(": an XBZRLE delta for a page that was never sent whole")
    assert files.problems[2:] == ["1 page could not be put together from what was sent last"]
    assert on_disk(tmp_path)["vga"] == bytes(3 * SMALL) + b"!" + b"\7" * (SMALL - 1)


def test_thousands_of_bad_deltas_are_told_in_few_lines(tmp_path: Path) -> None:
    records: list[Record] = [(b"ram", page, b"\x01") for page in range(1000)]
    files = extracted(stream_of({b"ram": 1000 * SMALL}, records), tmp_path)
    assert len(files.problems) == extract.MOST_PROBLEMS + 1
    assert files.problems[-1].startswith("1000 pages could not be put together")


KILO = 1024


def compressed_stream(*records: bytes) -> Stream:
    return precopy(
        HEADER,
        configuration(b"virt", page_bits(10)),
        ram_start({b"ram": 4 * KILO}),
        ram_part(*records),
        ram_end(),
        EOF,
    )


def deflated(packed: bytes, page: int = 1) -> bytes:
    return record(page * KILO, RamFlag.COMPRESS_PAGE, struct.pack(">I", len(packed)) + packed, None)


@pytest.mark.parametrize("cut", CUTS)
def test_compressed_pages_are_inflated(tmp_path: Path, cut: Cut) -> None:
    pages = [bytes(number * 7 % 251 for number in range(start, start + KILO)) for start in range(3)]
    stream = compressed_stream(
        compressed(KILO, b"ram", pages[0]),
        compressed(0, None, pages[1]),
        compressed(2 * KILO, None, pages[2]),
        compressed(0, None, pages[2]),
        zero(2 * KILO),
    )
    files = extracted(stream, tmp_path, cut)
    assert files.problems == []
    assert on_disk(tmp_path) == {"ram": pages[2] + pages[0] + bytes(2 * KILO)}


GOOD = zlib.compress(filled(KILO))
BAD_PAGES = [
    (b"junk", " cannot be decompressed: Error -3 while decompressing data: incorrect header check"),
    (zlib.compress(bytes(KILO + 1)), " decompresses to more than its 1024 bytes"),
    (zlib.compress(bytes(1 << 19), 9), " decompresses to more than its 1024 bytes"),  # a bomb
    (zlib.compress(bytes(KILO - 1)), " decompresses to 1023 bytes instead of 1024"),
    (GOOD[:-2], " is cut short: its compressed data ends behind 1024 of 1024 bytes"),
    (GOOD + b"abc", ": 3 bytes behind the end of its compressed data"),
]


@pytest.mark.parametrize(("packed", "problem"), BAD_PAGES)
def test_a_bad_compressed_page_is_told_with_its_place(tmp_path: Path, packed: bytes, problem: str) -> None:
    good = filled(KILO)
    stream = compressed_stream(
        compressed(0, b"ram", good), deflated(packed), compressed(2 * KILO, None, good)
    )
    files = extracted(stream, tmp_path)
    place = stream.main.index(struct.pack(">I", len(packed)) + packed) + 4
    assert files.problems == [
        f"page 0x400 of ram, at offset {place} of main: the page{problem}",
        "1 page could not be put together from what was sent last",
    ]
    assert on_disk(tmp_path) == {"ram": filled(KILO) + bytes(KILO) + filled(KILO) + bytes(KILO)}


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
