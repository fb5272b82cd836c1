"""Floods of small records: decoding takes turns with others, and can be ended at any time."""

import struct

import pytest

from migsniff.core.arrivals import Chunk
from migsniff.core.events import BREATH
from migsniff.core.session import Session
from migsniff.core.wire import ItemType
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD, page
from tests.streams import FLUSH, ram_start, section, xbzrle, zero


def live(idstr: bytes, begun: bytes = b"", *, version: int = 1) -> bytes:
    """A stream in the middle of the START of a live section."""
    return SMALL_HEAD + section(ItemType.SECTION_START, 3, begun, idstr, version=version, footer=False)


HEAD = SMALL_HEAD + ram_start(SMALL_BLOCKS)
PART = b"\x02" + struct.pack(">I", 2)
PAGES = HEAD + PART + page(0, b"ram")
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "one page again and again, as deltas": (PAGES, xbzrle(0, None, b"")),
    "one page again and again, as zeros": (PAGES, zero(0)),
    "one page again and again, with its block": (PAGES, zero(0, b"ram")),
    "MULTIFD_FLUSH": (PAGES, FLUSH),
    "progress of block migration": (live(b"block"), struct.pack(">Q", 0x204)),
    "chunks of dirty bitmaps": (live(b"dirty-bitmap"), b"\x40" + bytes(12 + 8)),
    "storage attributes": (live(b"s390-storage_attributes", version=0), struct.pack(">QQ", 2, 0)),
    "device memory": (live(b"x/vfio"), struct.pack(">QQ", 0xFFFFFFFFEF100004, 0)),
    "a hash page table": (live(b"spapr/htab", bytes(4)), struct.pack(">IHH", 1, 0, 0)),
    "TLS records": (b"", b"\x16\3\3\0\0"),
}
"""What stands before, and what comes again and again."""
COUNT = 20_000
MOST = 1024  # records that may be decoded in one go: a few milliseconds


@pytest.mark.parametrize("name", FLOODS)
def test_decoding_takes_turns(name: str) -> None:
    """Without an event, BREATH comes; and never if nobody has asked for it."""
    head, record = FLOODS[name]
    data = head + record * COUNT
    for breathe in (True, False):
        session = Session(breathe=breathe)
        events = [*session.feed(Chunk(0, 0, "fwd", head, len(head)))] if head else []
        before = len(events)
        events += session.feed(Chunk(0, 0, "fwd", data[len(head) :], len(data)))
        assert not [event for event in events if hasattr(event, "code")], events[-1]
        breaths = sum(event is BREATH for event in events[before:])
        assert breaths >= COUNT // MOST - 1 if breathe else not breaths
