"""Where a section of unknown length ends: at its footer, or where something stands that can follow it."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context, SectionFacts
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event
from migsniff.core.messages import COMMANDS
from migsniff.core.text import printable
from migsniff.core.wire import (
    ANNOUNCED,
    EEPROM_VERSION,
    FOOTER,
    MAX_DEVICE_STATE,
    MAX_ITEM_HEADER,
    U16,
    U32,
    ItemType,
)

FOOTER_SIZE: Final = FOOTER.least
# Where a section without a footer may end: the beginning of a FULL section, or the EOF and the description.
NEXT_ITEM: Final = re.compile(rb"\x04.{4}[^\x00][ -~]|\x00\x06.{4}\{", re.DOTALL)
# In a package also a command that can follow device state: PING or POSTCOPY_RUN.
NEXT_IN_PACKAGE: Final = re.compile(NEXT_ITEM.pattern + rb"|\x08\x00[\x02\x05]\x00", re.DOTALL)
NEXT_SIZE: Final = 7  # bytes of the longest match
STEP: Final = 4096
MAX_STEP: Final = 1 << 20


def find_end(
    queue: ByteQueue,
    facts: SectionFacts,
    payload: bytearray,
    context: Context,
    seen: set[int],
    limit: int | None,
) -> Generator[Event | None, None, int]:
    """As `search_end`; in a stream that is cut off inside the section it has no end."""
    length = yield from search_end(queue, facts, payload, context, seen, limit)
    while length is None:
        yield None
    return length


def search_end(
    queue: ByteQueue,
    facts: SectionFacts,
    payload: bytearray,
    context: Context,
    seen: set[int],
    limit: int | None,
) -> Generator[Event | None, None, int | None]:
    """Read up to and over the footer of a section of unknown length; returns the payload's length.

    None: the stream was cut off in here. The payload goes into `payload`, whose beginning is dropped when it
    grows past MAX_DEVICE_STATE. Without footers the section ends where the next one, or the EOF with the
    description, begins; if there is neither, it ends before the stream's last byte, which is the EOF.
    """
    footer = b"\x7e" + U32.pack(facts.section_id) if context.footers is not False else b""
    search = EndSearch(footer, limit, context, seen)
    searched = dropped = 0
    ended = False
    while True:
        searched, found = search.end(payload, searched, queue.at - len(payload), ended=ended)
        if found:
            context.footers = bool(footer)
            behind = bytes(payload[searched + len(footer) :])
            queue.unread(behind, looked_at(behind))
            del payload[searched:]
            return dropped + searched
        if len(payload) > MAX_DEVICE_STATE:
            del payload[:searched]
            dropped, searched = dropped + searched, 0
        if ended:
            return None
        some = yield from _more(queue, payload, facts, limit)
        payload += some
        ended = not some


def find_footer(queue: ByteQueue, context: Context, seen: set[int], limit: int | None) -> Steps:
    """Read up to and over the footer of some FULL section, told by what follows it, as behind a hole.

    Only where streams have footers. `limit`: wire offset where the package ends, and the search with it.
    """
    window = bytearray()
    while True:
        at = window.find(b"\x7e") if context.footers else -1
        while at >= 0:
            behind = window[at + FOOTER_SIZE : at + FOOTER_SIZE + MAX_ITEM_HEADER]
            if (fits := _device_follows(behind, context, seen)) is None:
                break
            if fits:
                rest = bytes(window[at + FOOTER_SIZE :])
                queue.unread(rest, looked_at(rest))
                return
            at = window.find(b"\x7e", at + 1)
        del window[: len(window) if at < 0 else at]
        most = STEP if limit is None else min(STEP, limit - queue.at)
        if not most:
            return
        while not (some := queue.take_some(most)):
            if not queue.closed:
                queue.check_hole()
            yield None
        window += some


def _device_follows(behind: bytearray, context: Context, seen: set[int]) -> bool | None:
    """Whether a FULL section begins here, or the description behind the EOF; None: that takes more bytes."""
    if not behind:
        return None
    if behind[0] == ItemType.EOF:
        if behind[1:2] not in (bytearray(), bytearray((ItemType.VMDESCRIPTION,))):
            return False
        return None if len(behind) < 7 else behind[6] == ord("{")
    return behind[0] == ItemType.SECTION_FULL and plausible(behind, context, seen, ended=False)


def _more(
    queue: ByteQueue, payload: bytearray, facts: SectionFacts, limit: int | None
) -> Generator[Event | None, None, bytes]:
    """Some more bytes of a section; none if the stream has ended."""
    most = min(max(STEP, len(payload)), MAX_STEP)
    if limit is not None:
        most = min(most, limit - queue.at)
        if most <= 0:
            raise StreamProblem("package-end", item=facts.idstr)
    while not (some := queue.take_some(most)):
        if queue.closed:
            return b""
        queue.check_hole()
        yield None
    return some


@dataclass(frozen=True, slots=True)
class EndSearch:
    """What the end of a section looks like: its `footer`, empty if there are none, and what can follow it.

    `limit`: wire offset where the package ends. `seen`: ids of the FULL sections so far.
    """

    footer: bytes
    limit: int | None
    context: Context
    seen: set[int]

    def end(self, payload: bytearray, start: int, at: int, *, ended: bool) -> tuple[int, bool]:
        """Where the section ends, from index `start` on, and True; or where to look again, and False.

        `at`: wire offset of the payload. `ended`: no more will come.
        """
        while (candidate := self._candidate(payload, start)) >= 0:
            behind = candidate + len(self.footer)
            if at + behind == self.limit:
                return candidate, True
            head = payload[behind : behind + MAX_ITEM_HEADER]
            fits = plausible(head, self.context, self.seen, ended=ended and bool(self.footer))
            if fits and self.limit is not None and head and head[0] == ItemType.EOF:
                fits = False  # a package has none
            if fits or (fits is None and not ended):
                return candidate, bool(fits)
            start = candidate + 1
        if self.footer:
            return max(start, len(payload) - len(self.footer) + 1), False
        if ended and payload.endswith(b"\0"):
            return len(payload) - 1, True
        return max(start, len(payload) - NEXT_SIZE + 1), False

    def _candidate(self, payload: bytearray, start: int) -> int:
        if self.footer:
            return payload.find(self.footer, start)
        found = (NEXT_ITEM if self.limit is None else NEXT_IN_PACKAGE).search(payload, start)
        return found.start() if found else -1


def plausible(behind: bytes | bytearray, context: Context, seen: set[int], *, ended: bool) -> bool | None:
    """Whether `behind` can follow a section; None if more bytes are needed to tell.

    `ended`: no more will come. `seen`: ids of the FULL sections so far.
    """
    if not behind:
        return True if ended else None
    kind = behind[0]
    if kind in (ItemType.SECTION_FULL, ItemType.SECTION_START):
        if len(behind) < 6:
            return ended or None
        name = behind[6 : 6 + behind[5]]
        if not behind[5] or not printable(name) or U32.unpack_from(behind, 1)[0] in seen:
            return False
        if len(behind) < ANNOUNCED.least + behind[5]:
            return ended or None
        return parse_header(behind) is not None
    if kind in (ItemType.SECTION_PART, ItemType.SECTION_END):
        if len(behind) < 5:
            return ended or None
        return U32.unpack_from(behind, 1)[0] in context.sections
    if kind == ItemType.COMMAND:
        if len(behind) < 5:
            return ended or None
        entry = COMMANDS.get(U16.unpack_from(behind, 1)[0])
        return entry is not None and entry.least <= U16.unpack_from(behind, 3)[0] <= entry.most
    if kind == ItemType.EOF:
        if context.colo or context.postcopy:
            return True
        if len(behind) < 2:
            return ended or None
        if behind[1] != ItemType.VMDESCRIPTION:
            return False
        return ended or None if len(behind) < 7 else behind[6] == ord("{")
    return False


def looked_at(behind: bytes) -> int:
    """How many bytes `plausible` looks at, at most."""
    if len(behind) > 5 and behind[0] in (ItemType.SECTION_FULL, ItemType.SECTION_START):
        return ANNOUNCED.least + behind[5]
    return 7


def parse_header(data: bytes | bytearray | memoryview) -> tuple[SectionFacts, int] | None:
    """The header of a START or FULL section and its length; None if that is not one."""
    if len(data) < 6 or data[0] not in (ItemType.SECTION_START, ItemType.SECTION_FULL):
        return None
    length = ANNOUNCED.least + data[5]
    if not data[5] or len(data) < length:
        return None
    idstr = bytes(data[6 : 6 + data[5]])
    (section_id,) = U32.unpack_from(data, 1)
    instance_id, version_id = U32.unpack_from(data, length - 8)[0], U32.unpack_from(data, length - 4)[0]
    if (version_id >= 0x10000 and version_id != EEPROM_VERSION) or not printable(idstr):
        return None
    return SectionFacts(section_id, idstr.decode("ascii"), instance_id, version_id), length
