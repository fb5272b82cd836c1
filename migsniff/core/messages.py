"""What the two QEMUs say to each other beside the state: commands, and the messages of the return path.

Format: migration/savevm.c and migration/migration.c, QEMU 5.2 to 11.1. A payload is at most 64 KiB and
stands whole in memory when it is read.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from migsniff.core.errors import StreamProblem
from migsniff.core.events import Argument
from migsniff.core.layout import Layout
from migsniff.core.registry import Registry
from migsniff.core.text import readable
from migsniff.core.wire import Command, ReturnPathType

Arguments = dict[str, Argument]
Reader = Callable[[bytes], Arguments]
NOTHING: Final = Layout()
VALUE: Final = Layout(("value", "I"))
LENGTH: Final = Layout(("package", "I"))
BLOCK: Final = Layout(("block", "str8"))
PAGE_SIZES_ADVISED: Final = Layout(("block_page_sizes", "Q"), ("page_size", "Q"))
RANGE_LAYOUT: Final = Layout(("start", "Q"), ("size", "Q"))
RANGE: Final = RANGE_LAYOUT.struct
DISCARD: Final = Layout(("version", "B"), ("block", "str8"), ("end_of_name", "B"), ("ranges", RANGE_LAYOUT))
PAGES: Final = Layout(("start", "Q"), ("size", "I"))
REQUEST: Final = PAGES.struct
PAGES_OF_BLOCK: Final = Layout(*PAGES.fields, *BLOCK.fields)


class Message(msgspec.Struct, frozen=True):
    """A command or a message: its lengths (least, most), how its payload reads and how it is laid out."""

    name: str
    least: int
    most: int
    read: Reader
    layout: Layout

    def arguments(self, payload: bytes) -> Arguments:
        """The payload by name; StreamProblem if it is not as QEMU writes it."""
        return self.read(payload)


COMMANDS: Final = Registry[int, Message]("command")
RETURN_PATH: Final = Registry[int, Message]("return path message")


def command(
    number: Command, least: int = 0, most: int | None = None, layout: Layout = NOTHING
) -> Callable[[Reader], Reader]:
    """Register the payload of a command that is `least` to `most` bytes long (most: as least)."""

    def register(read: Reader) -> Reader:
        entry = Message(number.name, least, least if most is None else most, read, layout)
        COMMANDS(int(number), source="migration/savevm.c")(entry)
        return read

    return register


def return_path_message(
    number: ReturnPathType, least: int = 0, most: int | None = None, layout: Layout = NOTHING
) -> Callable[[Reader], Reader]:
    """Register the payload of a return path message, as `command` does."""

    def register(read: Reader) -> Reader:
        entry = Message(number.name, least, least if most is None else most, read, layout)
        RETURN_PATH(int(number), source="migration/migration.c")(entry)
        return read

    return register


def _string(payload: bytes, at: int, what: str) -> tuple[str, int]:
    """The str8 at index `at`, and the index behind it."""
    if at >= len(payload) or at + 1 + payload[at] > len(payload):
        raise StreamProblem("payload-short", what=what)
    end = at + 1 + payload[at]
    return readable(payload[at + 1 : end]), end


# ---------------------------------------------------------------- commands


@command(Command.OPEN_RETURN_PATH)
@command(Command.POSTCOPY_LISTEN)
@command(Command.POSTCOPY_RUN)
@command(Command.ENABLE_COLO)
@command(Command.POSTCOPY_RESUME)
@command(Command.SWITCHOVER_START)
def nothing(payload: bytes) -> Arguments:
    """Commands that say all by their number."""
    return {}


@command(Command.PING, 4, layout=VALUE)
@return_path_message(ReturnPathType.SHUT, 4, layout=VALUE)
@return_path_message(ReturnPathType.PONG, 4, layout=VALUE)
@return_path_message(ReturnPathType.RESUME_ACK, 4, layout=VALUE)
def one_value(payload: bytes) -> Arguments:
    """One number: of a ping, or 0 for success and anything else for an error."""
    return {"value": VALUE.struct.unpack(payload)[0]}


@command(Command.POSTCOPY_ADVISE, 0, 16, PAGE_SIZES_ADVISED)
def postcopy_advise(payload: bytes) -> Arguments:
    """Page sizes, bytes: all of the blocks' or-ed, and the target's. Empty with dirty bitmaps alone."""
    if not payload:
        return {}
    if len(payload) != RANGE.size:
        raise StreamProblem("command-length", name="POSTCOPY_ADVISE", length=len(payload), expected="0 or 16")
    block_page_sizes, page_size = RANGE.unpack(payload)
    return {"block_page_sizes": block_page_sizes, "page_size": page_size}


@command(Command.POSTCOPY_RAM_DISCARD, 3, 0xFFFF, DISCARD)
def postcopy_ram_discard(payload: bytes) -> Arguments:
    """Ranges of a block (start, length; bytes) that the destination must drop."""
    block, at = _string(payload, 1, "the block of a discard")
    at += 1
    if payload[0] or (len(payload) - at) % RANGE.size or at > len(payload):
        raise StreamProblem("payload-short", what="a list of discarded ranges")
    ranges = tuple((start, length) for start, length in RANGE.iter_unpack(payload[at:]))
    return {"block": block, "ranges": ranges}


@command(Command.PACKAGED, 4, layout=LENGTH)
def packaged(payload: bytes) -> Arguments:
    """How many bytes of package follow, outside the command's own length."""
    return {"length": VALUE.struct.unpack(payload)[0]}


@command(Command.RECV_BITMAP, 2, 256, BLOCK)
@return_path_message(ReturnPathType.RECV_BITMAP, 2, 256, BLOCK)
def received_bitmap(payload: bytes) -> Arguments:
    """A block whose received pages are asked for, or told: the bitmap then follows outside the length."""
    return {"block": _string(payload, 0, "the block of a received bitmap")[0]}


def resumed_command(number: int, length: int) -> int:
    """The present number of a command on a resumed connection: before 3.1 the two of a recovery had others.

    (8 and 9: ENABLE_COLO came in between. What asks for a bitmap names a block, what resumes is empty.)
    """
    if number == Command.ENABLE_COLO:
        return int(Command.POSTCOPY_RESUME)
    return int(Command.RECV_BITMAP) if number == Command.POSTCOPY_RESUME and length else number


# ---------------------------------------------------------------- return path


@return_path_message(ReturnPathType.REQ_PAGES, 12, layout=PAGES)
def request_pages(payload: bytes) -> Arguments:
    """A page fault of the destination's guest, in the block named last: start and length in bytes."""
    start, length = REQUEST.unpack_from(payload)
    return {"start": start, "length": length}


@return_path_message(ReturnPathType.REQ_PAGES_ID, 14, 12 + 256, PAGES_OF_BLOCK)
def request_pages_of_block(payload: bytes) -> Arguments:
    """A page fault with the name of its block."""
    return {
        "block": _string(payload, REQUEST.size, "the block of a page request")[0],
        **request_pages(payload),
    }


@return_path_message(ReturnPathType.SWITCHOVER_ACK)
def switchover_ack(payload: bytes) -> Arguments:
    """The destination is ready for the switchover."""
    return {}
