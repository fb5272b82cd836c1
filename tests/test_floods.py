"""Floods of small records: decoding takes turns with others, and can be ended at any time."""

import json
import re
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from migsniff.cli import main
from migsniff.core.arrivals import Chunk
from migsniff.core.events import BREATH
from migsniff.core.session import Session
from migsniff.core.wire import Command, ItemType
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD, page
from tests.qemu import poll
from tests.relays import Proxy
from tests.streams import FLUSH, command, ram_part, ram_start, section, xbzrle, zero
from tests.test_bombs_proxy import Sink
from tests.test_proxy import connected, ended, start


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


ENDLESS = HEAD + ram_part(page(0, b"ram")) + ram_part(xbzrle(0, None, b"")) * 150_000
"""Each section of 37 bytes ends a pass: to decode this takes half a minute, to forward it a moment."""


SECTIONS = "ram-section", "dirty-sync"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_second_signal_ends_what_is_still_to_be_decoded(
    loop: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Meanwhile others are forwarded; what was left out is said, and the captures hold what was decoded."""
    sink = Sink()
    with Proxy(tmp_path, sink.where, "--loop", loop) as proxy:
        host, port = proxy.where.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 20) as source:
            source.sendall(ENDLESS)
        assert sink.has([ENDLESS])
        began = time.monotonic()
        with socket.create_connection((host, int(port)), 20) as other:
            other.sendall(b"GET / HTTP/1.1")
            assert poll(lambda: len(sink.found) == 2 and sink.found[1][0] == 14)
        assert time.monotonic() - began < 2
        proxy.process.send_signal(signal.SIGINT)
        assert poll(lambda: "a second signal ends it now" in proxy.messages)
        time.sleep(0.4)
        began = time.monotonic()
        proxy.process.send_signal(signal.SIGINT)
        assert proxy.process.wait(20) == 1
        assert time.monotonic() - began < 4  # half a second for decoding, the rest for a busy machine
    assert "bytes that had come were not decoded; decoded up to offset" in proxy.messages
    sink.close()
    last = proxy.verdicts(2)[-1]
    assert last["outcome"] == "undecodable"
    assert sum(event["type"] == "dirty-sync" for event in proxy.events) > 100
    for capture in (tmp_path / "captures").iterdir():
        assert json.loads((capture / "manifest.json").read_text())["complete"]
        capfd.readouterr()
        assert main(["read", str(capture), "-T", "ndjson"]) == 1
        read = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        seen = [event for event in proxy.events if event["migration"] == capture.name]
        assert [event for event in read if event["type"] in SECTIONS] == [
            event for event in seen if event["type"] in SECTIONS
        ]


def test_a_second_signal_ends_what_is_still_to_be_shown(tmp_path: Path) -> None:
    """Trees of thousands of ranges take long to make; the verdict is shown, and what was left out is counted.

    How much that is depends on the machine; what is told when there is no time at all: tests/test_aside.py.
    """
    sink = Sink()
    ranges = b"".join(struct.pack(">QQ", number << 12, 4096) for number in range(4090))
    discard = command(Command.POSTCOPY_RAM_DISCARD, b"\0\x03ram\0" + ranges)
    discards = discard * 400
    pair = ["--listen", f"unix:{tmp_path}/in", "--forward", sink.where]
    log, messages = tmp_path / "log", tmp_path / "messages"
    with log.open("wb") as out, messages.open("wb") as said:
        process = start(*pair, "--no-save", "-V", stdout=out, stderr=said)
    with ended(process), connected(tmp_path / "in") as source:
        source.sendall(HEAD + discards)
        assert sink.has([HEAD + discards])
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        began = time.monotonic()
        assert process.wait(20) == 1
        assert time.monotonic() - began < 4
    sink.close()
    text = log.read_text()
    told = sum(map(int, re.findall(r"no time was left to show (\d+) record", messages.read_text())))
    missing = sum(map(int, re.findall(r" (\d+) records?, because ", text)))
    assert missing >= told  # some had no room either
    assert text.count(" verdict ") == 1
    (offset,) = re.findall(r"verdict .* at offset (\d+) of main", text)
    # each discard has two records, its own and a warning that the block is none of those that were listed
    records = (int(offset) - len(HEAD)) // len(discard) * 2
    assert records - 2 <= text.count("POSTCOPY_RAM_DISCARD") + missing <= records + 8
