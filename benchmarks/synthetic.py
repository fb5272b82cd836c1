"""Streams built record by record, for what no guest of ours sends by itself.

Each is a whole stream: header, configuration, section ram, EOF. The page size is 4096, the machine a `pc`.
"""

import struct
from collections.abc import Iterator

import numpy as np

from migsniff.core.wire import FILE_MAGIC, FILE_VERSION, ItemType, RamFlag

PAGE = 4096
_RAM_ID = 2
_BLOCK = b"pc.ram"
_EOS = struct.pack(">Q", RamFlag.EOS)
_FOOTER = struct.pack(">BI", ItemType.SECTION_FOOTER, _RAM_ID)
_END_OF_SECTION = _EOS + _FOOTER
_NAMED = bytes([len(_BLOCK)]) + _BLOCK


def opening(memory: int) -> bytes:
    """Everything up to the first PART, for a guest of `memory` bytes."""
    machine = b"pc-i440fx-7.2"
    return b"".join(
        (
            struct.pack(">II", FILE_MAGIC, FILE_VERSION),
            struct.pack(">BI", ItemType.CONFIGURATION, len(machine)) + machine,
            struct.pack(">BI", ItemType.SECTION_START, _RAM_ID) + b"\x03ram" + struct.pack(">II", 0, 4),
            struct.pack(">Q", memory | RamFlag.MEM_SIZE) + _NAMED + struct.pack(">Q", memory),
            _END_OF_SECTION,
        )
    )


def section(kind: ItemType, records: bytes = b"") -> bytes:
    """One PART or END of section ram."""
    return struct.pack(">BI", kind, _RAM_ID) + records + _END_OF_SECTION


def closing() -> bytes:
    return section(ItemType.SECTION_END) + struct.pack(">B", ItemType.EOF)


def alternating(pages: int) -> bytes:
    """Single zero pages between single normal pages."""
    normal = RamFlag.PAGE | RamFlag.CONTINUE
    zero = RamFlag.ZERO | RamFlag.CONTINUE
    contents = b"\xa5" * PAGE
    first = struct.pack(">Q", RamFlag.PAGE) + _NAMED + contents
    records = [
        struct.pack(">QB", page * PAGE | zero, 0)
        if page % 2
        else struct.pack(">Q", page * PAGE | normal) + contents
        for page in range(1, pages)
    ]
    return opening(pages * PAGE) + section(ItemType.SECTION_PART, first + b"".join(records)) + closing()


def nearly_empty(sections: int) -> bytes:
    """Sections that hold no page, as a migration sends them that waits for something else."""
    return opening(64 << 20) + section(ItemType.SECTION_PART) * sections + closing()


def long_stream(size: int) -> Iterator[memoryview]:
    """About `size` bytes of normal pages, each sent once; a piece of 64 MiB is valid until the next one."""
    record = 8 + PAGE
    each = (64 << 20) // record
    parts = -(-size // (each * record))
    flags = int(RamFlag.PAGE | RamFlag.CONTINUE)
    piece = bytearray(section(ItemType.SECTION_PART, bytes(each * record)))
    records = np.frombuffer(piece, np.uint8)[5 : 5 + each * record].reshape(each, record)
    records[:, 8:] = np.frombuffer(np.random.default_rng(1).bytes(PAGE), np.uint8)
    words = np.arange(each, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(flags)
    # the first page names the block, all others continue it
    named = struct.pack(">Q", (parts * each) * PAGE | RamFlag.PAGE) + _NAMED + bytes(PAGE)
    yield memoryview(opening((parts * each + 1) * PAGE) + section(ItemType.SECTION_PART, named))
    for _ in range(parts):
        records[:, :8] = words.astype(">u8").view(np.uint8).reshape(each, 8)
        words += np.uint64(each * PAGE)
        yield memoryview(piece)
    yield memoryview(closing())
