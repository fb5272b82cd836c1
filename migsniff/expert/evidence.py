"""The bytes that an event was read from, for what is the same in each stream: headers, footers, messages.

An event holds all that such a record says, and the decoder has checked the rest: the bytes can be had again
without having been kept. Where that is not so (a name that is not plain text), there are none.
"""

import struct

from migsniff.core.events import (
    CommandSent,
    RamBlock,
    RamBlocks,
    ReturnPathMessage,
    Section,
    SectionType,
)
from migsniff.core.wire import ItemType, RamFlag

KINDS: dict[SectionType, ItemType] = {
    "START": ItemType.SECTION_START,
    "PART": ItemType.SECTION_PART,
    "END": ItemType.SECTION_END,
    "FULL": ItemType.SECTION_FULL,
}


def plain(text: str) -> bytes | None:
    """A name as it stood in the stream; None if it may have been made readable."""
    return text.encode() if text.isascii() and text.isprintable() and "\\" not in text else None


def section_header(section: Section) -> bytes:
    """The header of a section."""
    if section.section_type not in ("START", "FULL"):
        return struct.pack(">BI", KINDS[section.section_type], section.section_id)
    key = section.idstr, section.instance_id
    return first_header(section.section_type, section.section_id, *key, section.version_id)


def first_header(kind: SectionType, number: int, idstr: str, instance: int, version: int) -> bytes:
    """The header with which a section begins; without its name if that may have been made readable."""
    head = struct.pack(">BI", KINDS[kind], number)
    name = plain(idstr)
    return head if name is None else head + bytes([len(name)]) + name + struct.pack(">II", instance, version)


def section_footer(section: Section) -> bytes:
    """The footer of a section that has one."""
    return struct.pack(">BI", ItemType.SECTION_FOOTER, section.section_id) if section.footer else b""


def message(event: ReturnPathMessage) -> bytes:
    """A message of the return path with one number, or none."""
    values = list(event.arguments.values())
    body = struct.pack(">I", values[0]) if len(values) == 1 and isinstance(values[0], int) else b""
    return struct.pack(">HH", event.message, event.size - 4) + body


def command(event: CommandSent) -> bytes:
    """The header of a command."""
    return struct.pack(">BHH", ItemType.COMMAND, event.command, max(0, event.size - 5))


def block_entry(event: RamBlocks, wanted: RamBlock) -> tuple[int, bytes]:
    """Wire offset and bytes of a RAM block in the list, up to its length; none if that cannot be told."""
    return next(
        (place for block, place in zip(event.blocks, block_entries(event), strict=True) if block is wanted),
        _whole_list(event),
    )


def block_entries(event: RamBlocks) -> list[tuple[int, bytes]]:
    """The same of each block in the list."""
    at = event.offset + 8
    found = []
    for block in event.blocks:
        name = plain(block.name)
        if name is None:
            break
        found.append((at, bytes([len(name)]) + name + struct.pack(">Q", block.length)))
        at += 1 + len(name) + 8 * (1 + (block.page_size is not None) + (block.address is not None))
    if at != event.offset + event.size:  # mapped RAM has more in between
        return [_whole_list(event)] * len(event.blocks)
    return found


def _whole_list(event: RamBlocks) -> tuple[int, bytes]:
    return event.offset, struct.pack(">Q", event.total | RamFlag.MEM_SIZE)
