"""The payloads of live sections other than ram: one registered handler each, with the layout of its records.

A reader is a generator that steps over one payload, the contents of disks and device memory as contents,
raises StreamProblem where the bytes do not fit, and returns in words what the payload carried. Whatever is
not registered here ends at its footer.
"""

from collections.abc import Callable, Generator
from typing import Final

import msgspec

from migsniff.core.bytequeue import ByteQueue
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event
from migsniff.core.layout import Contents, Layout, Named, Part, Tagged
from migsniff.core.records import read_record
from migsniff.core.registry import Registry
from migsniff.core.text import readable
from migsniff.core.wire import BlockFlag, CmmaFlag, DirtyBitmapFlag, VfioTag

Reading = Generator[Event | None, None, str]
PayloadReader = Callable[[ByteQueue], Reading]
NO_TABLE: Final = 0xFFFFFFFF  # the size of no hash page table
MAX_NAMES: Final = 8  # of disks and bitmaps that one payload's words mention


class LiveHandler(msgspec.Struct, frozen=True):
    """How a handler's payload reads, and its records: one of each in this order, the last repeated.

    `secret`: behind an error the contents of a guest's disk may stand, so that nothing there may be kept.
    """

    read: PayloadReader
    records: tuple[Tagged, ...]
    secret: bool


LIVE_SECTIONS: Final[Registry[str, LiveHandler]] = Registry("live section")


def live_section(idstr: str) -> LiveHandler | None:
    """The handler of that name, by the last part of it (`<bus path>/vfio` is vfio)."""
    return LIVE_SECTIONS.get(idstr) or LIVE_SECTIONS.get(idstr.rsplit("/", 1)[-1])


def handler(
    idstr: str, *records: Tagged, source: str, secret: bool = False
) -> Callable[[PayloadReader], PayloadReader]:
    """Register the reader of a handler's payload, which consists of these records."""

    def register(read: PayloadReader) -> PayloadReader:
        LIVE_SECTIONS(idstr, source=source)(LiveHandler(read, records, secret))
        return read

    return register


HTAB_HEADER: Final = Tagged("HashTableHeader", Layout(("shift", "I")))  # log2 of its size
HTAB_CHUNK: Final = Tagged(
    "HashTableChunk",
    Layout(("index", "I"), ("valid", "H"), ("invalid", "H"), ("entries", Contents("valid", 16))),
)


@handler("spapr/htab", HTAB_HEADER, HTAB_CHUNK, source="hw/ppc/spapr.c htab_save_setup")
def htab(queue: ByteQueue) -> Reading:
    """The hash page table of a pseries: its size, or valid and invalid entries of 16 bytes each."""
    shift = (yield from read_record(queue, HTAB_HEADER))["shift"]
    if shift == NO_TABLE:
        return "no table"
    if shift:
        return f"a table of 2^{shift} bytes"
    entries = cleared = 0
    while True:
        yield from queue.record()
        chunk = yield from read_record(queue, HTAB_CHUNK)
        if not (chunk["index"] or chunk["valid"] or chunk["invalid"]):
            return f"{entries} entries, {cleared} cleared"
        entries += chunk["valid"]
        cleared += chunk["invalid"]


CMMA_FLAGS: Final = 0xFFF  # of a word, whose other bits are an address
CMMA: Final = Tagged(
    "StorageAttributes",
    Layout(("word", Named("Q", CmmaFlag))),
    Part(
        lambda word: word & CMMA_FLAGS == CmmaFlag.MORE,
        Layout(("count", "Q"), ("attributes", Contents("count"))),
    ),
)


@handler("s390-storage_attributes", CMMA, source="hw/s390x/s390-stattrib.c cmma_save")
def storage_attributes(queue: ByteQueue) -> Reading:
    """Words of flags and address; MORE brings a byte for each page."""
    pages = 0
    while True:
        yield from queue.record()
        record = yield from read_record(queue, CMMA)
        flags = record["word"] & CMMA_FLAGS
        if flags == CmmaFlag.EOS:
            return f"of {pages} pages"
        if flags == CmmaFlag.MORE:
            pages += record["count"]
        elif flags != CmmaFlag.DONE:
            raise StreamProblem("live-flags", what="storage attributes", flags=flags)


BLOCK_FLAGS: Final = 0x1FF  # of a word, whose other bits are a sector, or percents
BLOCK_CHUNK: Final = 1 << 20
ZERO_CHUNK: Final = BlockFlag.DEVICE_BLOCK | BlockFlag.ZERO_BLOCK
BLOCK: Final = Tagged(
    "BlockMigration",
    Layout(("word", Named("Q", BlockFlag))),
    Part(
        lambda word: word & BLOCK_FLAGS in (BlockFlag.DEVICE_BLOCK, ZERO_CHUNK),
        Layout(("device", "str8")),
    ),
    Part(
        lambda word: word & BLOCK_FLAGS == BlockFlag.DEVICE_BLOCK,
        Layout(("data", Contents(unit=BLOCK_CHUNK))),
    ),
)


@handler("block", BLOCK, source="migration/block.c (until 9.0)", secret=True)
def block_migration(queue: ByteQueue) -> Reading:
    """Disk contents in chunks of 1 MiB, and progress."""
    chunks: dict[str, int] = {}
    progress: list[str] = []
    while True:
        yield from queue.record()
        record = yield from read_record(queue, BLOCK)
        flags = record["word"] & BLOCK_FLAGS
        if flags == BlockFlag.EOS:
            return ", ".join([*(f"{count} MiB of {disk}" for disk, count in chunks.items()), *progress])
        if "device" in record:
            _count(chunks, readable(record["device"]))
        elif flags == BlockFlag.PROGRESS:
            progress = [f"{record['word'] >> 9} % done"]
        else:
            raise StreamProblem("live-flags", what="block migration", flags=flags)


def _bitmap_part(flag: DirtyBitmapFlag, *but: DirtyBitmapFlag) -> Callable[[int], bool]:
    """With this flag and none of the others; further flags, which nobody knows, may change all."""
    this, others = int(flag), int(sum(but) | DirtyBitmapFlag.EXTRA_FLAGS)  # plain numbers are quicker
    return lambda flags: bool(flags & this) and not flags & others


DIRTY_BITMAP: Final = Tagged(
    "DirtyBitmapChunk",
    Layout(("flags", Named("B", DirtyBitmapFlag))),
    Part(_bitmap_part(DirtyBitmapFlag.DEVICE_NAME), Layout(("node", "str8"))),
    Part(_bitmap_part(DirtyBitmapFlag.BITMAP_NAME), Layout(("bitmap", "str8"))),
    Part(_bitmap_part(DirtyBitmapFlag.START), Layout(("granularity", "I"), ("bitmap_flags", "B"))),
    Part(
        _bitmap_part(DirtyBitmapFlag.BITS, DirtyBitmapFlag.START),
        Layout(("first_sector", "Q"), ("sectors", "I")),
    ),
    Part(
        _bitmap_part(DirtyBitmapFlag.BITS, DirtyBitmapFlag.START, DirtyBitmapFlag.ZEROES),
        Layout(("size", "Q"), ("bits", Contents("size"))),
    ),
)


@handler("dirty-bitmap", DIRTY_BITMAP, source="migration/block-dirty-bitmap.c")
def dirty_bitmap(queue: ByteQueue) -> Reading:
    """Chunks of the dirty bitmaps of disks, the last one with EOS."""
    chunks: dict[str, int] = {}
    node, name = "the same node", "the same bitmap"  # sent when they change, maybe in an earlier section
    while True:
        yield from queue.record()
        chunk = yield from read_record(queue, DIRTY_BITMAP)
        if chunk["flags"] & DirtyBitmapFlag.EXTRA_FLAGS:
            raise StreamProblem("live-flags", what="dirty bitmap", flags=chunk["flags"])
        node = readable(chunk["node"]) if "node" in chunk else node
        name = readable(chunk["bitmap"]) if "bitmap" in chunk else name
        bitmap = f"{name} of {node}"
        if "granularity" in chunk and len(chunks) < MAX_NAMES:
            chunks.setdefault(bitmap, 0)
        elif "sectors" in chunk:
            _count(chunks, bitmap)
        if chunk["flags"] & DirtyBitmapFlag.EOS:
            return ", ".join(
                f"{name}: {count} chunks" if count else f"{name} begins" for name, count in chunks.items()
            )


VFIO: Final = Tagged(
    "VfioRecord",
    Layout(("tag", Named("Q", VfioTag))),
    Part(lambda tag: tag == VfioTag.DEV_DATA_STATE, Layout(("size", "Q"), ("data", Contents("size")))),
)


@handler("vfio", VFIO, source="hw/vfio/migration.c (read in the source, not yet seen on the wire)")
def vfio(queue: ByteQueue) -> Reading:
    """Tags, each with its data; device memory is contents. A device's configuration has no known length."""
    state = 0
    while True:
        yield from queue.record()
        record = yield from read_record(queue, VFIO)
        tag = record["tag"]
        if tag in (VfioTag.END_OF_STATE, VfioTag.DEV_INIT_DATA_SENT, VfioTag.DEV_CONFIG_LOAD_READY):
            return f"{state} bytes of device state"
        if tag == VfioTag.DEV_DATA_STATE:
            state += record["size"]
        elif tag != VfioTag.DEV_SETUP_STATE:
            raise StreamProblem("live-flags", what="vfio", flags=tag)


def _count(chunks: dict[str, int], name: str) -> None:
    """One more chunk of what has this name."""
    if name not in chunks and len(chunks) >= MAX_NAMES:
        name = "others"
    chunks[name] = chunks.get(name, 0) + 1
