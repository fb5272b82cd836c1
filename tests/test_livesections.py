"""Live sections other than ram: their payloads end where their records say, and disk contents stay secret."""

import struct

import pytest

from migsniff.core.arrivals import Chunk
from migsniff.core.events import (
    Event,
    LiveSection,
    SectionType,
    Undecodable,
)
from migsniff.core.livesections import LIVE_SECTIONS, live_section
from migsniff.core.session import Session
from migsniff.core.wire import ItemType
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD
from tests.filtering import sample
from tests.playing import Cut, arrivals, bytewise, decode, of, pieces_of, play, precopy, strip, verdict, whole
from tests.streams import EOF, ping, ram_end, ram_start, section, str8, u64

START, PART, END = ItemType.SECTION_START, ItemType.SECTION_PART, ItemType.SECTION_END
HEAD = SMALL_HEAD + ram_start(SMALL_BLOCKS) + ram_end()
NO_FOOTERS = SMALL_HEAD + ram_start(SMALL_BLOCKS, footer=False) + ram_end(footer=False)
SECRET = b"s3cr3t" * 5
KINDS: dict[ItemType, SectionType] = {START: "START", PART: "PART", END: "END"}


def bits(flags: int, data: bytes = b"", node: bytes | None = None, name: bytes | None = None) -> bytes:
    """A chunk of a dirty bitmap."""
    names = b"".join(str8(one) for one in (node, name) if one is not None)
    flags |= 0x08 * (node is not None) | 0x04 * (name is not None)
    if flags & 0x10:
        names += b"\0\1\0\0\1"
    if flags & 0x40:
        names += struct.pack(">QI", 64, 32) + (b"" if flags & 2 else u64(len(data)) + data)
    return bytes([flags]) + names


VFIO = 0xFFFFFFFFEF100000
DISK = SECRET + bytes((1 << 20) - len(SECRET))
PAYLOADS: dict[str, tuple[str, ItemType, bytes]] = {
    "htab: its size": ("spapr/htab", START, b"\0\0\0\x0f"),
    "htab: none": ("spapr/htab", START, b"\xff\xff\xff\xff"),
    "htab: none, in a part": ("spapr/htab", PART, b"\xff\xff\xff\xff"),
    "htab: no entries": ("spapr/htab", PART, bytes(4 + 8)),
    "htab: entries": (
        "spapr/htab",
        END,
        struct.pack(">IIHH32sIHHIHH", 0, 7, 2, 3, SECRET, 5, 0, 9, 0, 0, 0),
    ),
    "storage attributes: the end": ("s390-storage_attributes", START, u64(1)),
    "storage attributes: done": ("s390-storage_attributes", END, u64(8, 1)),
    "storage attributes: some": ("s390-storage_attributes", PART, u64(0x5002, 30) + SECRET + u64(1)),
    "block: progress": ("block", START, u64(100 << 9 | 4, 2)),
    "block: chunks": (
        "block",
        PART,
        u64(9 << 9 | 1) + str8(b"disk0") + DISK + u64(9) + str8(b"\xc3\xa4") + u64(50 << 9 | 4, 2),
    ),
    "dirty bitmap: nothing": ("dirty-bitmap", PART, b"\1"),
    "dirty bitmap: one begins": ("dirty-bitmap", START, bits(0x10, b"", b"node", b"bitmap") + b"\1"),
    "dirty bitmap: bits": (
        "dirty-bitmap",
        END,
        bits(0x40, SECRET, b"n", b"b") + bits(0x42) + bits(0x40, b"") + b"\x20\1",
    ),
    "dirty bitmap: the last chunk ends it": ("dirty-bitmap", END, bits(0x41, SECRET)),
    "vfio: setup": ("0000:00:04.0/vfio", START, u64(VFIO + 3, VFIO + 1)),
    "vfio: data": ("a/b/vfio", PART, u64(VFIO + 4, 30) + SECRET + u64(VFIO + 4, 0, VFIO + 1)),
    "vfio: initial data sent": ("vfio", PART, u64(VFIO + 4, 30) + SECRET + u64(VFIO + 5)),
    "vfio: ready": ("x/vfio", END, u64(VFIO + 6)),
}


SUMMARIES: dict[str, str] = {
    "htab: its size": "a table of 2^15 bytes",
    "htab: none": "no table",
    "htab: none, in a part": "no table",
    "htab: no entries": "0 entries, 0 cleared",
    "htab: entries": "2 entries, 12 cleared",
    "storage attributes: the end": "of 0 pages",
    "storage attributes: done": "of 0 pages",
    "storage attributes: some": "of 30 pages",
    "block: progress": "100 % done",
    "block: chunks": r"1 MiB of disk0, 1 MiB of \xc3\xa4, 50 % done",
    "dirty bitmap: nothing": "",
    "dirty bitmap: one begins": "bitmap of node begins",
    "dirty bitmap: bits": "b of n: 3 chunks",
    "dirty bitmap: the last chunk ends it": "the same bitmap of the same node: 1 chunks",
    "vfio: setup": "0 bytes of device state",
    "vfio: data": "30 bytes of device state",
    "vfio: initial data sent": "30 bytes of device state",
    "vfio: ready": "0 bytes of device state",
}


def stream_of(idstr: str, kind: ItemType, payload: bytes, *, footer: bool = True) -> tuple[list[bytes], int]:
    """Items with this section among them, and its index."""
    item = section(kind, 50, payload, idstr.encode(), footer=footer)
    head = [HEAD if footer else NO_FOOTERS]
    if kind != START:
        begin = next(
            data
            for name, begins, data in PAYLOADS.values()
            if begins == START and name.split("/")[-1] == idstr.split("/")[-1]
        )
        head.append(section(START, 50, begin, idstr.encode(), footer=footer))
    return [*head, item, ping(1), EOF], len(head)


@pytest.mark.parametrize("footer", [True, False])
@pytest.mark.parametrize("cut", [whole, pieces_of(7)])
@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads(name: str, cut: Cut, footer: bool) -> None:
    idstr, kind, payload = PAYLOADS[name]
    items, index = stream_of(idstr, kind, payload, footer=footer)
    events = play(precopy(*items), cut)
    found = of(events, LiveSection)[-1]
    assert (found.offset, found.size) == (sum(map(len, items[:index])), len(items[index]))
    assert (found.section_type, found.idstr, found.section_id) == (KINDS[kind], idstr, 50)
    assert (found.provisional, found.footer) == (False, footer)
    assert found.summary == SUMMARIES[name]
    assert not of(events, Undecodable)
    assert verdict(events).ok


@pytest.mark.parametrize("name", PAYLOADS)
def test_contents_are_left_out_of_a_capture(name: str) -> None:
    items, _ = stream_of(*PAYLOADS[name])
    events, kept = strip(arrivals(precopy(*items), lambda data: [data[:1000], data[1000:]]))
    stored = b"".join(bytes(arrival.data) for arrival in kept if isinstance(arrival, Chunk))
    assert b"s3cr3t" not in stored
    assert len(stored) < 1000
    assert decode(Session(), kept) == events


@pytest.mark.parametrize("name", ["ppc64-72-hash-table", "ppc64-100-hash-table"])
def test_the_entries_of_a_real_hash_page_table(name: str) -> None:
    """As many as the guest made (guests.ppc64_hash_table), whichever section they were sent in."""
    sections = [
        section
        for section in of([event for _, event in sample(name)], LiveSection)
        if section.idstr == "spapr/htab"
    ]
    assert [section.section_type for section in sections][0::2] == ["START", "END"]
    assert not any(section.provisional for section in sections)
    entries = [int(section.summary.split()[0]) for section in sections[1:]]
    assert sum(entries) == 256


WRONG: dict[str, tuple[str, bytes, str]] = {
    "storage attributes: an error of the source": ("s390-storage_attributes", u64(4), "live-flags"),
    "storage attributes: two at once": ("s390-storage_attributes", u64(2 | 8), "live-flags"),
    "dirty bitmap: flags to come": ("dirty-bitmap", b"\x80", "live-flags"),
    "vfio: a configuration": ("x/vfio", u64(VFIO + 2), "live-flags"),
    "vfio: no tag": ("x/vfio", u64(7), "live-flags"),
    "a payload that goes on": ("s390-storage_attributes", u64(1) + b"more", "footer"),
}


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str, cut: Cut) -> None:
    """It is told, and decoding goes on behind the section's own footer."""
    idstr, payload, code = WRONG[name]
    item = section(START, 50, payload + b" and what follows", idstr.encode())
    events = play(precopy(HEAD, item, ping(1), EOF), cut)
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.where) == (code, f"section {idstr} instance 0 (START)")
    (found,) = of(events, LiveSection)
    assert (found.offset, found.size, found.provisional) == (len(HEAD), len(item), True)
    assert verdict(events).ok


NO_NAMES: dict[str, tuple[str, bytes, bytes, str]] = {
    "a disk": ("block", u64(9 << 9 | 1), b"virtio0\xff", "the name of a device is not text: virtio0\\xff"),
    "a node": ("dirty-bitmap", b"\x18", b"node\0", "the name of a node is not text: node\\x00"),
    "a bitmap": (
        "dirty-bitmap",
        b"\x14",
        b"\xc3\xa4\xe2\x82A",
        r"the name of a bitmap is not text: \xc3\xa4\xe2\x82A",
    ),
}


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_none_ends_decoding(name: str, cut: Cut) -> None:
    """What stands behind it may be the contents of a disk: none of it is told, or kept."""
    idstr, begin, wrong, message = NO_NAMES[name]
    data = HEAD + section(START, 50, begin + b"\xff" + wrong + SECRET * 20, idstr.encode())
    events, kept = strip(arrivals(precopy(data, ping(1), EOF), cut))
    (problem,) = of(events, Undecodable)
    assert (problem.code, problem.message) == ("string-text", message)
    assert verdict(events).outcome == "undecodable"
    stored = b"".join(bytes(arrival.data) for arrival in kept if isinstance(arrival, Chunk))
    assert stored == data[: data.index(wrong) + len(wrong)]
    assert decode(Session(), kept) == events


def test_by_the_last_part_of_the_name() -> None:
    assert live_section("0000:00:04.0/vfio") is live_section("vfio") is LIVE_SECTIONS.get("vfio")
    assert live_section("spapr/htab") is LIVE_SECTIONS.get("spapr/htab")
    assert live_section("htab") is None
    assert live_section("vfio/other") is None


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([section(PART, 50, b"", b"")], "section-unknown"),
        ([section(START, 2, b"\0\0\0\x0f", b"spapr/htab")], "section-id-reused"),
        ([section(START, 50, b"\1", b"")], "string-empty"),
        ([section(START, 50, b"\1", b"dirty\nbitmap")], "string-text"),
    ],
)
def test_wrong_headers(items: list[bytes], expected: str) -> None:
    events: list[Event] = play(precopy(HEAD, *items, EOF))
    assert [event.code for event in of(events, Undecodable)] == [expected]
