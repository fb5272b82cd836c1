"""Files with the capability mapped-ram: those of real QEMUs, and headers that lie."""

import struct
import time
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.core.events import RamPages, RamSection
from migsniff.core.session import Session
from migsniff.core.wire import ItemType
from migsniff.feed.files import open_source
from migsniff.qemu import Qemu, boot_disk
from tests.catalogue import SMALL
from tests.playing import arrivals, decode, of, play, precopy, verdict
from tests.qemu import Folder, require
from tests.saving import owned
from tests.streams import HEADER, capabilities, configuration, filled, mapped_list, page_bits, ram
from tests.test_bombs import Peak

MIB = 1 << 20
CAPABLE = configuration(b"virt", page_bits(8), capabilities(b"mapped-ram"))
MAPPED = struct.Struct(">IQQQ")
MODES: dict[str, dict[str, Any]] = {
    "alone": {},
    "multifd": {"capabilities": ["multifd"], "params": {"multifd-channels": 3}},
    "at an offset": {"offset": 8192},
}


def migrated(qemu: Qemu, folder: Folder, capabilities: list[str], params: dict[str, Any], offset: int) -> Any:
    """Have QEMU write its stopped guest into a file; returns its own counters."""
    qemu.wait_for_passes(2)
    qemu.execute("stop")
    states = [{"capability": name, "state": True} for name in ("mapped-ram", *capabilities)]
    qemu.execute("migrate-set-capabilities", capabilities=states)
    qemu.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40, **params})
    qemu.execute("migrate", uri=f"file:{folder.inside}/file,offset={offset}")
    deadline = time.monotonic() + 60
    while (last := qemu.execute("query-migrate"))["status"] not in ("completed", "failed"):
        assert time.monotonic() < deadline, last
        time.sleep(0.01)
    assert last["status"] == "completed", last
    return last["ram"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_real_files(version: str, mode: str, tmp_path: Path) -> None:
    """Read to the last byte; pages are as many as QEMU counted, and are what the guest has in its memory."""
    require(version)
    options = {"capabilities": [], "params": {}, "offset": 0, **MODES[mode]}
    offset = options["offset"]
    folder = Folder(version)
    try:
        (folder.path / "disk").write_bytes(boot_disk(8))
        arguments = ["-m", "16", "-drive", f"file={folder.inside}/disk,format=raw,if=ide"]
        qemu = Qemu("x86_64", arguments, folder.path, "source", enter=folder.enter, inside=folder.inside)
        try:
            counted = migrated(qemu, folder, **options)
            qemu.execute("pmemsave", val=0, size=16 * MIB, filename=f"{folder.inside}/memory")
        finally:
            qemu.kill()
        path = folder.path / "file"
        events = decode(Session(), owned(open_source(str(path), offset=offset).arrivals()))
        assert verdict(events).outcome == "completed"
        assert max(event.offset + event.size for event in events) == path.stat().st_size - offset
        pages = [event.counts for event in of(events, RamSection)]
        assert sum(count.normal for count in pages) == counted["normal"]
        assert sum(count.zero for count in pages) == counted["duplicate"]
        where = ["-f", str(path), "--offset", str(offset), "--output-dir", str(tmp_path)]
        assert main(["analyze", "-x", *where]) == 0
        assert (tmp_path / "pc.ram").read_bytes() == (folder.path / "memory").read_bytes()
        with path.open("r+b") as file:
            file.truncate(offset + 2 * MIB)
        cut = verdict(decode(Session(), owned(open_source(str(path), offset=offset).arrivals())))
        assert cut.outcome == "truncated"
        assert "in section ram instance 0 (START), the mapped RAM of block pc.ram, " in cut.message
    finally:
        folder.remove()


def lying(**lies: int) -> bytes:
    """A list of two blocks; what the header of the second says is replaced."""
    list_ = bytearray(mapped_list({b"ram": [filled(SMALL), None], b"rom": [filled(SMALL)]}, SMALL))
    at = list_.index(b"\3rom") + 4 + 8
    names = ("version", "page_size", "bitmap", "pages")
    told = dict(zip(names, MAPPED.unpack_from(list_, at), strict=True)) | lies
    MAPPED.pack_into(list_, at, *(told[name] for name in names))
    if "length" in lies:
        struct.pack_into(">Q", list_, at - 8, lies["length"])
    return HEADER + CAPABLE + ram(ItemType.SECTION_START, bytes(list_))


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"version": 2}, "mapped RAM header version 2: only version 1 is known"),
        ({"page_size": 4096}, "mapped RAM with pages of 4096 bytes instead of 256"),
        ({"page_size": 0}, "mapped RAM with pages of 0 bytes instead of 256"),
        ({"bitmap": 5}, "block 'rom': its bitmap is said to be at 0x5 of the file, but 0x"),
        ({"bitmap": 1 << 63}, "its bitmap is said to be at 0x8000000000000000 of the file, but 0x"),
        ({"pages": 5}, "block 'rom': its pages at 0x5 begin inside its bitmap at"),
        ({"pages": 1 << 63}, "begin 9223372036854774"),
        ({"length": 100}, "not a multiple of the page size 256"),
        ({"length": 1 << 40}, "the RAM block lengths add up to more than the announced total"),
    ],
)
def test_headers_that_lie(lies: dict[str, int], message: str) -> None:
    events = play(precopy(lying(**lies)))
    assert verdict(events).outcome == "undecodable"
    assert message in verdict(events).message
    rest = "section ram instance 0 (START), the "
    assert rest in verdict(events).message


def test_a_bitmap_of_a_block_that_is_too_large() -> None:
    total = 1 << 50
    list_ = struct.pack(">Q", total | 4) + b"\3ram" + struct.pack(">Q", total)
    at = len(HEADER + CAPABLE) + 17 + len(list_)
    stream = (
        HEADER
        + CAPABLE
        + ram(ItemType.SECTION_START, list_ + MAPPED.pack(1, 256, at, at + (1 << 40)) + bytes(5000))
    )
    with Peak() as peak:
        events = play(precopy(stream))
    assert "a page bitmap of 549755813888 bytes: more than the" in verdict(events).message
    assert peak.bytes < 32 * MIB


def test_pages_are_handed_out_as_the_bitmap_has_them() -> None:
    list_ = mapped_list({b"ram": [filled(SMALL, 3), None, filled(SMALL, 4)]}, SMALL)
    session = Session(contents=True)
    found = []
    for arrival in arrivals(precopy(HEADER + CAPABLE + ram(ItemType.SECTION_START, list_))):
        found += [event for event in session.feed(arrival) if isinstance(event, RamPages)]
    assert [bool(normal) for event in found for normal in event.normal] == [True, False, True]
