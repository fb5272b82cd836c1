"""Virtqueues and guest memory in streams made byte by byte: what no firmware leaves, and what is not told.

What real destinations say: test_rings_qemu.py.
"""

import json
import os
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.compare.guestram import GuestRam, RamPlace
from migsniff.compare.memory import Unnamed
from migsniff.compare.rings import RingPages, Virtqueues
from migsniff.core.events import Finding
from migsniff.core.session import Session
from migsniff.core.wire import Command
from migsniff.pipeline import Pipeline, Sink
from tests.finding import findings
from tests.playing import Cut, Stream, arrivals, bytewise, pieces_of, precopy, whole
from tests.streams import (
    EOF,
    HEADER,
    PAGE_SIZE,
    command,
    configuration,
    description,
    full,
    normal,
    package,
    ram_end,
    ram_part,
    ram_start,
    subsection,
    xbzrle,
    zero,
)

BLOCK = b"mach-virt.ram"
BASE = 0x4000_0000
SIZE = 8
LAST = 0x134
"""How far the device has read the ring."""
PACKED, PLATFORM = 1 << 34, 1 << 33
AVAIL = 8 * 16 + 2
USED = PAGE_SIZE + 2


def device(
    *queues: tuple[int, int], features: int = 0, number: int = 40, idstr: bytes = b"virtio-mmio@a/virtio-rng"
) -> tuple[bytes, dict[str, object]]:
    """A legacy virtio-rng with its description; `queues`: (address, last_avail_idx)."""
    raw = struct.pack(">3IBBHIII", 0, 0, 12, 15, 0, 0, features & 0xFFFFFFFF, 0, len(queues))
    raw += b"".join(struct.pack(">IIQH", SIZE, PAGE_SIZE, *queue) for queue in queues)
    if features >> 32:
        raw += subsection(b"virtio/64bit_features", struct.pack(">Q", features))
    field = {"name": "virtio", "type": "virtio", "size": len(raw)}
    vmsd = {
        "name": idstr.decode(),
        "instance_id": 0,
        "vmsd_name": "virtio-rng",
        "version": 1,
        "fields": [field],
    }
    return full(number, idstr, raw), vmsd


def filled(avail: int, used: int | None = None) -> dict[int, bytes]:
    """Pages 0 and 1, in which the ring at page 0 has these indices."""
    pages = [bytearray(b"\x11" * PAGE_SIZE) for _ in range(2)]
    struct.pack_into("<H", pages[0], AVAIL, avail & 0xFFFF)
    struct.pack_into("<H", pages[1], USED - PAGE_SIZE, (avail if used is None else used) & 0xFFFF)
    return {number * PAGE_SIZE: bytes(page) for number, page in enumerate(pages)}


def pages(avail: int, used: int | None = None) -> bytes:
    return b"".join(
        normal(at, None if at else BLOCK, contents) for at, contents in filled(avail, used).items()
    )


def head(block: bytes = BLOCK) -> bytes:
    return HEADER + configuration(b"virt-7.2") + ram_start({block: 16 * PAGE_SIZE})


def text(*vmsds: dict[str, object]) -> bytes:
    return description(json.dumps({"page_size": PAGE_SIZE, "devices": list(vmsds)}).encode())


RNG, RNG_TEXT = device((BASE, LAST))


def stream(
    *records: bytes, behind: bytes = b"", rng: bytes = RNG, vmsd: dict[str, object] = RNG_TEXT
) -> Stream:
    return precopy(head(), ram_part(*records), ram_end(), rng, behind, EOF, text(vmsd))


# ---------------------------------------------------------------- both readings


def read(source: Stream, *sinks: Sink, cut: Cut = whole, contents: bool = False) -> None:
    pipeline = Pipeline("m", Session(fields=not contents, contents=contents), list(sinks))
    for arrival in arrivals(source, cut):
        for _ in pipeline.feed(arrival):
            pass
    for _ in pipeline.finish():
        pass


def found(source: Stream, cut: Cut = whole) -> tuple[list[Finding], list[str]]:
    """What is found, and what was not compared."""
    queues, omitted = Virtqueues(), list[str]()
    read(source, queues, cut=cut)
    with Unnamed() as folder, closing(RingPages(queues.rings(omitted), folder)) as rings:
        read(source, rings, cut=cut, contents=True)
        return [finding for _, finding in rings.findings(omitted)], omitted


def delta(avail: int) -> bytes:
    """To the available index."""
    return bytes([AVAIL | 0x80, AVAIL >> 7, 2]) + struct.pack("<H", avail)


FITS: dict[str, Stream] = {
    "nothing on its way": stream(pages(LAST)),
    "a full ring": stream(pages(LAST + SIZE, LAST)),
    "all of it on its way": stream(pages(LAST, LAST - SIZE)),
    "behind the end of the numbers": stream(
        pages(1, 0xFFFE), rng=(other := device((BASE, 0xFFFF)))[0], vmsd=other[1]
    ),
    "a later pass": precopy(
        head(), ram_part(pages(0x12C)), ram_part(pages(LAST)), ram_end(), RNG, EOF, text(RNG_TEXT)
    ),
    "a delta": precopy(
        head(),
        ram_part(pages(0x12C, LAST)),
        ram_part(xbzrle(0, BLOCK, delta(LAST))),
        ram_end(),
        RNG,
        EOF,
        text(RNG_TEXT),
    ),
    "memory that comes behind the device": stream(pages(LAST), behind=ram_part(pages(0x12C))),
    "a queue that is not set up": stream(pages(0), rng=(empty := device((0, 0)))[0], vmsd=empty[1]),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits(name: str) -> None:
    assert found(FITS[name]) == ([], [])


MISFITS: dict[str, tuple[Stream, str]] = {
    "memory from before": (
        stream(pages(0x12C)),
        "VQ 0 size 0x8 Guest index 0x12c inconsistent with Host index 0x134: delta 0xfff8",
    ),
    "more than a full ring": (
        stream(pages(LAST + SIZE + 1, LAST)),
        "VQ 0 size 0x8 Guest index 0x13d inconsistent with Host index 0x134: delta 0x9",
    ),
    "more on its way than can be": (
        stream(pages(LAST, LAST - SIZE - 1)),
        "VQ 0 size 0x8 < last_avail_idx 0x134 - used_idx 0x12b",
    ),
    "a page of zeroes": (
        stream(zero(0, BLOCK), zero(PAGE_SIZE)),
        "VQ 0 size 0x8 Guest index 0x0 inconsistent with Host index 0x134: delta 0xfecc",
    ),
    "a delta": (
        precopy(
            head(), ram_part(pages(LAST)), ram_part(xbzrle(0, BLOCK, delta(0x12C))), ram_end(), RNG, EOF,
            text(RNG_TEXT),
        ),
        "VQ 0 size 0x8 Guest index 0x12c inconsistent with Host index 0x134: delta 0xfff8",
    ),
    "memory that fits comes behind the device": (
        stream(pages(0x12C), behind=ram_part(pages(LAST))),
        "VQ 0 size 0x8 Guest index 0x12c inconsistent with Host index 0x134: delta 0xfff8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", [whole, pieces_of(1000), bytewise], ids=["whole", "pieces", "bytes"])
@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit(name: str, cut: Cut) -> None:
    source, words = MISFITS[name]
    (finding,), omitted = found(source, cut)
    assert omitted == []
    assert finding.message.startswith(f"{words}: ")
    assert finding.severity == ("error" if "used_idx" in words else "warn")
    assert (finding.section, finding.field) == (
        "virtio-mmio@a/virtio-rng/0",
        "virtio.queue[0].last_avail_idx",
    )
    assert finding.evidence == source.main[finding.offset :][:2].hex() == "0134"


def test_both_places_are_told() -> None:
    """Where the page came last, and the device."""
    source = precopy(
        head(), ram_part(pages(LAST)), ram_part(pages(0x12C)), ram_end(), RNG, EOF, text(RNG_TEXT)
    )
    (finding,), _ = found(source)
    contents = source.main.rindex(filled(0x12C)[0])
    at = source.main.index(RNG)
    assert f"at 0x82 of mach-virt.ram, whose page came last at offset {contents} of main" in finding.message
    assert f"the device's state at {at};" in finding.message


def test_each_queue_is_compared_up_to_where_loading_ends() -> None:
    """An index that does not fit breaks the device, and the next queue is looked at."""
    rng, vmsd = device((BASE, LAST), (BASE, LAST + 1), (BASE, 0x100), (BASE, 0x100))
    found_, _ = found(stream(pages(LAST + 1, 0x1000), rng=rng, vmsd=vmsd))
    assert [(each.code, each.field[13]) for each in found_] == [("virtqueue-in-flight", "0")]
    rng, vmsd = device((BASE, 0x100), (BASE, LAST), (BASE, 0x101))
    found_, _ = found(stream(pages(LAST), rng=rng, vmsd=vmsd))
    assert [(each.code, each.field[13]) for each in found_] == [("virtqueue-index", each) for each in "02"]


def made(
    address: int = BASE, *, features: int = 0, block: bytes = BLOCK, records: bytes = pages(0x12C)
) -> Stream:
    rng, vmsd = device((address, LAST), features=features)
    return precopy(head(block), ram_part(records), ram_end(), rng, EOF, text(vmsd))


LISTENS = command(Command.POSTCOPY_LISTEN)
UNTOLD: dict[str, tuple[Stream, str]] = {
    "packed rings": (made(features=PACKED), "packed rings, which have no index"),
    "behind an IOMMU": (made(features=PLATFORM), "VIRTIO_F_ACCESS_PLATFORM"),
    "outside of memory": (made(BASE - PAGE_SIZE), "the stream does not prove"),
    "partly outside": (made(BASE + 15 * PAGE_SIZE), "the stream does not prove"),
    "another board": (made(block=b"a", records=normal(0, b"a")), "the stream does not prove"),
    "a PC without its clock": (
        made(block=b"pc.ram", records=normal(0, b"pc.ram")),
        "the stream does not prove",
    ),
    "pages that were not sent": (made(records=zero(5 * PAGE_SIZE, BLOCK)), "1 ring whose pages are not in"),
    "a page that cannot be read": (
        made(records=pages(0x12C) + xbzrle(0, BLOCK, b"\xff\xff\x7f\x01a")),
        "1 ring whose pages are not in",
    ),
    "postcopy that broke off": (
        precopy(head(), ram_part(pages(0x12C)), package(LISTENS, RNG), text(RNG_TEXT), outcome="undecodable"),
        "not that of the moment",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOLD)
def test_of_what_is_not_known_nothing_is_found(name: str) -> None:
    source, words = UNTOLD[name]
    told, omitted = found(source)
    assert told == []
    assert all(words in each for each in omitted)
    assert len(omitted) == 1


# ---------------------------------------------------------------- where memory is


def cmos(below: int, above: int) -> bytes:
    """What the firmware of a PC finds."""
    raw = bytearray(128)
    struct.pack_into("<H", raw, 0x30, min((below - (1 << 20)) >> 10, 0xFFFF))
    struct.pack_into("<H", raw, 0x34, max(0, below - (16 << 20)) >> 16)
    raw[0x5B:0x5E] = (above >> 16).to_bytes(3, "little")
    return bytes(raw)


GIB, MIB = 1 << 30, 1 << 20
PC = {"pc.ram": 8 * GIB}
HOLE = cmos(3 * GIB, 5 * GIB)
HUGE = {"pc.ram": 1025 * GIB}
PLACES: list[tuple[dict[str, int], bytes, int, int | None]] = [
    (PC, HOLE, 0, 0),
    (PC, HOLE, 0x9FFFF, 0x9FFFF),
    (PC, HOLE, 0xA0000, None),
    (PC, HOLE, 0xFFFFF, None),
    (PC, HOLE, MIB, MIB),
    (PC, HOLE, 3 * GIB - 1, 3 * GIB - 1),
    (PC, HOLE, 3 * GIB, None),
    (PC, HOLE, 4 * GIB - 1, None),
    (PC, HOLE, 4 * GIB, 3 * GIB),
    (PC, HOLE, 9 * GIB - 1, 8 * GIB - 1),
    (PC, HOLE, 9 * GIB, None),
    (PC, b"", MIB, None),
    (PC, cmos(3 * GIB, 4 * GIB), MIB, None),
    (HUGE, cmos(2 * GIB, 1023 * GIB), 1011 * GIB, 1009 * GIB),
    (HUGE, cmos(2 * GIB, 1023 * GIB), 1012 * GIB, None),
    ({"pc.ram": 8 * MIB}, cmos(8 * MIB, 0), 8 * MIB - 1, 8 * MIB - 1),
    ({"mach-virt.ram": GIB}, b"", GIB, 0),
    ({"mach-virt.ram": GIB}, b"", GIB - 1, None),
    ({"mach-virt.ram": GIB}, b"", 2 * GIB, None),
    ({"riscv_virt_board.ram": GIB}, b"", 2 * GIB + 5, 5),
    ({"ppc_spapr.ram": GIB}, b"", 5, 5),
    ({"s390.ram": GIB}, b"", GIB - 1, GIB - 1),
    ({"ram0": GIB}, HOLE, 5, None),
]


@pytest.mark.parametrize(("blocks", "clock", "address", "offset"), PLACES)
def test_where_an_address_is(blocks: dict[str, int], clock: bytes, address: int, offset: int | None) -> None:
    (block,) = blocks
    expected = None if offset is None else RamPlace(block, offset)
    assert GuestRam(blocks, clock).place(address) == expected


# ---------------------------------------------------------------- the commands


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "-T", "json", "--descriptions", "none"])
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, told


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A stream that does not fit, and one that does."""
    paths = tmp_path / "bad", tmp_path / "good"
    for path, source in zip(paths, (stream(pages(0x12C)), stream(pages(LAST))), strict=True):
        path.write_bytes(source.main)
    return str(paths[0]), str(paths[1])


def test_expert_and_check_tell_it(files: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    bad, good = files
    _, told = run(capfd, "expert", bad)
    assert told["counts"]["warn"] == {"virtqueue-index": 1}
    code, told = run(capfd, "check", bad, "--against", good)
    assert (code, [each["code"] for each in told["findings"]]) == (0, ["virtqueue-index"])
    code, told = run(capfd, "check", good, "--against", bad)
    assert (code, told["findings"]) == (0, [])
    assert not any("virtqueues against guest memory" in words for words in told["not_compared"])


def test_a_pipe_is_not_read_twice(files: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    bad, good = files
    with open(bad, "rb") as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            code, told = run(capfd, "check", "-", "--against", good)
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert (code, told["findings"]) == (0, [])
    assert (
        "virtqueues against guest memory: what comes through a pipe cannot be read twice"
        in told["not_compared"]
    )


# ---------------------------------------------------------------- without memory

NOWHERE, NOWHERE_TEXT = device((BASE, LAST), (0, LAST), (0, 5))


def test_a_queue_that_is_nowhere_is_found_whether_fields_are_wanted_or_not() -> None:
    source = stream(pages(LAST), rng=NOWHERE, vmsd=NOWHERE_TEXT)
    (finding,) = findings(source)
    assert finding.message == "VQ 1 address 0x0 inconsistent with Host index 0x134"
    assert (finding.code, finding.severity) == ("virtqueue-no-address", "error")
    assert finding.field == "virtio.queue[1].last_avail_idx"
    assert finding.evidence == source.main[finding.offset :][:2].hex() == "0134"
    assert findings(source) == findings(source, bytewise) == findings(source, fields=True)


def test_what_would_hold_up_others_is_not_looked_through() -> None:
    """A state of 256 KiB, or one full of what looks like subsections."""
    rng, vmsd = device((0, LAST))
    for more in (b"\x05\x0dvirtio/broken\0\0\0\1\0" * 65, bytes(1 << 18)):
        raw = rng[rng.index(b"rng") + 11 : -5] + more
        fields = [{"name": "virtio", "type": "virtio", "size": len(raw)}]
        large = full(40, b"virtio-mmio@a/virtio-rng", raw)
        assert findings(stream(rng=large, vmsd={**vmsd, "fields": fields})) == []
    assert [each.code for each in findings(stream(rng=rng, vmsd=vmsd))] == ["virtqueue-no-address"]


def test_check_says_that_it_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream(pages(LAST), rng=NOWHERE, vmsd=NOWHERE_TEXT).main)
    code, told = run(capfd, "check", str(path), "--against", str(path))
    assert (code, [each["code"] for each in told["findings"]]) == (1, ["virtqueue-no-address"])
