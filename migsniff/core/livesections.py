"""The payloads of live sections other than ram: one registered reader for each handler.

A reader is a generator that steps over one payload, the contents of disks and device memory as contents,
raises StreamProblem where the bytes do not fit, and returns in words what the payload carried. Whatever is
not registered here ends at its footer.
"""

from collections.abc import Callable, Generator
from typing import Final

from migsniff.core.bytequeue import ByteQueue
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event
from migsniff.core.registry import Registry
from migsniff.core.text import readable
from migsniff.core.wire import BlockFlag, CmmaFlag, DirtyBitmapFlag, ItemType, VfioTag

Reading = Generator[Event | None, None, str]
PayloadReader = Callable[[ByteQueue, ItemType], Reading]
LIVE_SECTIONS: Final[Registry[str, PayloadReader]] = Registry("live section")
NO_TABLE: Final = 0xFFFFFFFF  # the size of no hash page table
MAX_NAMES: Final = 8  # of disks and bitmaps that one payload's words mention


def live_section(idstr: str) -> PayloadReader | None:
    """The reader of a handler's payload, by the last part of its name (`<bus path>/vfio` is vfio)."""
    return LIVE_SECTIONS.get(idstr) or LIVE_SECTIONS.get(idstr.rsplit("/", 1)[-1])


@LIVE_SECTIONS("spapr/htab", source="hw/ppc/spapr.c htab_save_setup")
def htab(queue: ByteQueue, kind: ItemType) -> Reading:
    """The hash page table of a pseries: its size, or valid and invalid entries of 16 bytes each."""
    header = yield from queue.u32()
    if header == NO_TABLE:
        return "no table"
    if header:
        return f"a table of 2^{header} bytes"
    entries = cleared = 0
    while True:
        yield from queue.record()
        index = yield from queue.u32()
        valid = yield from queue.u16()
        invalid = yield from queue.u16()
        if not (index or valid or invalid):
            return f"{entries} entries, {cleared} cleared"
        entries += valid
        cleared += invalid
        yield from queue.contents(valid * 16)


@LIVE_SECTIONS("s390-storage_attributes", source="hw/s390x/s390-stattrib.c cmma_save")
def storage_attributes(queue: ByteQueue, kind: ItemType) -> Reading:
    """Words of flags and address; MORE brings a byte for each page."""
    pages = 0
    while True:
        yield from queue.record()
        flags = (yield from queue.u64()) & 0xFFF
        if flags == CmmaFlag.EOS:
            return f"of {pages} pages"
        if flags == CmmaFlag.MORE:
            count = yield from queue.u64()
            pages += count
            yield from queue.contents(count)
        elif flags != CmmaFlag.DONE:
            raise StreamProblem("live-flags", what="storage attributes", flags=flags)


@LIVE_SECTIONS("block", source="migration/block.c (until 9.0)")
def block_migration(queue: ByteQueue, kind: ItemType) -> Reading:
    """Disk contents in chunks of 1 MiB, and progress."""
    chunks: dict[str, int] = {}
    progress: list[str] = []
    while True:
        yield from queue.record()
        word = yield from queue.u64()
        flags = word & 0x1FF
        if flags == BlockFlag.EOS:
            return ", ".join([*(f"{count} MiB of {disk}" for disk, count in chunks.items()), *progress])
        if flags in (BlockFlag.DEVICE_BLOCK, BlockFlag.DEVICE_BLOCK | BlockFlag.ZERO_BLOCK):
            length = yield from queue.u8()
            _count(chunks, readable((yield from queue.take(length))))
            if not flags & BlockFlag.ZERO_BLOCK:
                yield from queue.contents(1 << 20)
        elif flags == BlockFlag.PROGRESS:
            progress = [f"{word >> 9} % done"]
        else:
            raise StreamProblem("live-flags", what="block migration", flags=flags)


@LIVE_SECTIONS("dirty-bitmap", source="migration/block-dirty-bitmap.c")
def dirty_bitmap(queue: ByteQueue, kind: ItemType) -> Reading:
    """Chunks of the dirty bitmaps of disks, the last one with EOS."""
    chunks: dict[str, int] = {}
    names: dict[DirtyBitmapFlag, str] = {}  # sent when they change, which may be in an earlier section
    while True:
        yield from queue.record()
        flags = yield from queue.u8()
        if flags & DirtyBitmapFlag.EXTRA_FLAGS:
            raise StreamProblem("live-flags", what="dirty bitmap", flags=flags)
        for named in (DirtyBitmapFlag.DEVICE_NAME, DirtyBitmapFlag.BITMAP_NAME):
            if flags & named:
                length = yield from queue.u8()
                names[named] = readable((yield from queue.take(length)))
        node = names.get(DirtyBitmapFlag.DEVICE_NAME, "the same node")
        bitmap = f"{names.get(DirtyBitmapFlag.BITMAP_NAME, 'the same bitmap')} of {node}"
        if flags & DirtyBitmapFlag.START:
            yield from queue.take(5)  # granularity, and the bitmap's flags
            if len(chunks) < MAX_NAMES:
                chunks.setdefault(bitmap, 0)
        elif flags & DirtyBitmapFlag.BITS:
            yield from queue.take(12)  # first sector, number of sectors
            _count(chunks, bitmap)
            if not flags & DirtyBitmapFlag.ZEROES:
                count = yield from queue.u64()
                yield from queue.contents(count)
        if flags & DirtyBitmapFlag.EOS:
            return ", ".join(
                f"{name}: {count} chunks" if count else f"{name} begins" for name, count in chunks.items()
            )


@LIVE_SECTIONS("vfio", source="hw/vfio/migration.c (read in the source, not yet seen on the wire)")
def vfio(queue: ByteQueue, kind: ItemType) -> Reading:
    """Tags, each with its data; device memory is contents. A device's configuration has no known length."""
    state = 0
    while True:
        yield from queue.record()
        tag = yield from queue.u64()
        if tag in (VfioTag.END_OF_STATE, VfioTag.DEV_INIT_DATA_SENT, VfioTag.DEV_CONFIG_LOAD_READY):
            return f"{state} bytes of device state"
        if tag == VfioTag.DEV_DATA_STATE:
            count = yield from queue.u64()
            state += count
            yield from queue.contents(count)
        elif tag != VfioTag.DEV_SETUP_STATE:
            raise StreamProblem("live-flags", what="vfio", flags=tag)


def _count(chunks: dict[str, int], name: str) -> None:
    """One more chunk of what has this name."""
    if name not in chunks and len(chunks) >= MAX_NAMES:
        name = "others"
    chunks[name] = chunks.get(name, 0) + 1
