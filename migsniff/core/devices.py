"""Device state: where each FULL section ends, first by its footer, then exactly by the description.

A FULL section carries no length. Live its end is where its footer stands with something plausible behind it;
when the description arrives, walking it must land on that footer. The raw bytes are kept until then.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context, SectionFacts
from migsniff.core.errors import StreamProblem, problem_text
from migsniff.core.events import Data, DeviceSection, Event, Field, Finding
from migsniff.core.messages import COMMANDS
from migsniff.core.text import printable
from migsniff.core.vmdesc import Budget, Description, DeviceDescription, opaque, walk
from migsniff.core.wire import (
    MAX_DEVICE_STATE,
    MAX_DEVICE_STATE_PROCESS,
    MAX_ITEM_HEADER,
    U16,
    U32,
    ItemType,
)

FOOTER_SIZE: Final = 5
# Where a section without a footer may end: the beginning of a FULL section, or the EOF and the description.
NEXT_ITEM: Final = re.compile(rb"\x04.{4}[^\x00][ -~]|\x00\x06.{4}\{", re.DOTALL)
# In a package also a command that can follow device state: PING or POSTCOPY_RUN.
NEXT_IN_PACKAGE: Final = re.compile(NEXT_ITEM.pattern + rb"|\x08\x00[\x02\x05]\x00", re.DOTALL)
NEXT_SIZE: Final = 7  # bytes of the longest match
STEP: Final = 4096
MAX_STEP: Final = 1 << 20


class DeviceStateBudget:
    """How many bytes of device state this process may still keep, over all migrations."""

    def __init__(self, limit: int = MAX_DEVICE_STATE_PROCESS) -> None:
        self.left = limit


@dataclass(slots=True)
class Run:
    """FULL sections that stand one behind the other: their bytes from wire offset `offset` on, if kept."""

    offset: int
    data: bytearray = field(default_factory=bytearray)
    ends: dict[int, tuple[SectionFacts, int]] = field(default_factory=dict)
    """Index where a section begins -> its header's facts, and the index where it was found to end."""


class DeviceStates:
    """The FULL sections of one channel."""

    def __init__(self, channel: str, context: Context, budget: DeviceStateBudget) -> None:
        self.channel = channel
        self.context = context
        self.budget = budget
        self.runs: list[Run] = []
        self.kept = 0
        self.dropped = ""
        self.seen: set[int] = set()

    # ------------------------------------------------------------ live, by the footer

    def section(self, queue: ByteQueue, facts: SectionFacts, header: bytes, limit: int | None) -> Steps:
        """Read a payload of unknown length and its footer. `limit`: wire offset where the package ends."""
        start = queue.at - len(header)
        self.seen.add(facts.section_id)
        payload = bytearray()
        length = yield from find_end(queue, facts, payload, self.context, self.seen, limit)
        footer = FOOTER_SIZE if self.context.footers else 0
        size = len(header) + length + footer
        fields: tuple[Field, ...] = ()
        if length == len(payload):
            tail = b"\x7e" + U32.pack(facts.section_id) if footer else b""
            self._keep(start, (header, payload, tail), facts)
            if self.context.want_fields and payload:
                fields = (opaque(payload, 0, length, start + len(header)),)
        else:
            self.dropped = self.dropped or facts.idstr
        yield DeviceSection(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=size,
            section_type="FULL",
            section_id=facts.section_id,
            idstr=facts.idstr,
            instance_id=facts.instance_id,
            version_id=facts.version_id,
            footer=bool(footer),
            provisional=True,
            fields=fields,
        )

    def _keep(self, start: int, parts: tuple[Data, ...], facts: SectionFacts) -> None:
        size = sum(map(len, parts))
        if self.kept + size > MAX_DEVICE_STATE or size > self.budget.left:
            self.dropped = self.dropped or facts.idstr
            return
        if not self.runs or self.runs[-1].offset + len(self.runs[-1].data) != start:
            self.runs.append(Run(start))
        run = self.runs[-1]
        run.ends[len(run.data)] = (facts, len(run.data) + size)
        for part in parts:
            run.data += part
        self.kept += size
        self.budget.left -= size

    def release(self) -> None:
        """Let go of the raw bytes."""
        self.budget.left += self.kept
        self.runs, self.kept = [], 0

    # ------------------------------------------------------------ exactly, by the description

    def describe(self, description: Description) -> Iterator[Event]:
        """One exact DeviceSection for each section whose bytes were kept."""
        devices: dict[tuple[str, int], DeviceDescription] = {}
        for device in description.devices:
            devices.setdefault((device.name, device.instance_id), device)
        budget = Budget()
        for run in self.runs:
            yield from self._describe_run(run, devices, budget)
        if self.dropped:
            yield self._finding(
                0,
                "device-too-big",
                problem_text("device-too-big", limit=MAX_DEVICE_STATE, idstr=self.dropped),
            )

    def _describe_run(
        self, run: Run, devices: dict[tuple[str, int], DeviceDescription], budget: Budget
    ) -> Iterator[Event]:
        at = 0
        with memoryview(run.data) as data:
            while at < len(data):
                header = parse_header(data[at : at + MAX_ITEM_HEADER])
                if header is None:
                    break
                facts, length = header
                provisional = run.ends.get(at)
                device = devices.get((facts.idstr, facts.instance_id))
                end, fields, undescribed, problem = self._walk(run, data, at + length, facts, device, budget)
                if end is None:  # no description, or one that does not lead to a footer
                    end = provisional[1] if provisional else self._footer_end(run, at + length, facts)
                    if end is None:
                        break
                stop = end - (FOOTER_SIZE if self.context.footers else 0)
                explained = at + length + undescribed[0]
                if device is not None and explained != stop and problem is None:
                    problem = StreamProblem(
                        "walk-end",
                        idstr=facts.idstr,
                        instance_id=facts.instance_id,
                        at=run.offset + explained,
                        found=run.offset + stop,
                    )
                if explained < stop and self.context.want_fields:
                    fields = (*fields, opaque(data, explained, stop, run.offset + explained))
                yield DeviceSection(
                    channel=self.channel,
                    direction="fwd",
                    offset=run.offset + at,
                    size=end - at,
                    section_type="FULL",
                    section_id=facts.section_id,
                    idstr=facts.idstr,
                    instance_id=facts.instance_id,
                    version_id=facts.version_id,
                    footer=bool(self.context.footers),
                    provisional=False,
                    described=device is not None,
                    fields=fields,
                    undescribed=undescribed[1] + max(0, stop - explained),
                    corrects=provisional[1] - at if provisional and provisional[1] != end else None,
                )
                if problem is not None:
                    yield self._finding(run.offset + at, problem.code, problem.text)
                at = end

    def _walk(
        self,
        run: Run,
        data: memoryview,
        at: int,
        facts: SectionFacts,
        device: DeviceDescription | None,
        budget: Budget,
    ) -> tuple[int | None, tuple[Field, ...], tuple[int, int], StreamProblem | None]:
        """Walk one device from `at`: the section's end if that is proven, fields, bytes explained and not."""
        if device is None:
            return None, (), (0, 0), None
        walked = walk(device, data, at, run.offset + at, fields=self.context.want_fields, budget=budget)
        explained = (walked.end - at, walked.undescribed)
        if walked.problem is not None:
            return None, walked.fields, explained, walked.problem
        end = walked.end
        if not self.context.footers:
            last = end == len(data)
            landed = last or parse_header(data[end : end + MAX_ITEM_HEADER]) is not None
            return (end if landed else None), walked.fields, explained, None
        if data[end : end + FOOTER_SIZE] == b"\x7e" + U32.pack(facts.section_id):
            return end + FOOTER_SIZE, walked.fields, explained, None
        return None, walked.fields, explained, None

    def _footer_end(self, run: Run, at: int, facts: SectionFacts) -> int | None:
        if not self.context.footers:
            return None
        found = run.data.find(b"\x7e" + U32.pack(facts.section_id), at)
        return None if found < 0 else found + FOOTER_SIZE

    def _finding(self, offset: int, code: str, message: str) -> Finding:
        return Finding(
            channel=self.channel,
            direction="fwd",
            offset=offset,
            size=0,
            severity="warn",
            code=code,
            message=message,
        )


# ---------------------------------------------------------------- ends


def find_end(
    queue: ByteQueue,
    facts: SectionFacts,
    payload: bytearray,
    context: Context,
    seen: set[int],
    limit: int | None,
) -> Generator[Event | None, None, int]:
    """Read up to and over the footer of a section of unknown length; returns the payload's length.

    The payload goes into `payload`, whose beginning is dropped when it grows past MAX_DEVICE_STATE. Without
    footers the section ends where the next one, or the EOF with the description, begins; if there is neither,
    it ends before the stream's last byte, which is the EOF.
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
        while ended:
            yield None  # the stream was cut off in here
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
        if len(behind) < 14 + behind[5]:
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
        return 14 + behind[5]
    return 7


def parse_header(data: bytes | bytearray | memoryview) -> tuple[SectionFacts, int] | None:
    """The header of a START or FULL section and its length; None if that is not one."""
    if len(data) < 6 or data[0] not in (ItemType.SECTION_START, ItemType.SECTION_FULL):
        return None
    length = 14 + data[5]
    if not data[5] or len(data) < length:
        return None
    idstr = bytes(data[6 : 6 + data[5]])
    (section_id,) = U32.unpack_from(data, 1)
    instance_id, version_id = U32.unpack_from(data, length - 8)[0], U32.unpack_from(data, length - 4)[0]
    if version_id >= 0x10000 or not printable(idstr):
        return None
    return SectionFacts(section_id, idstr.decode("ascii"), instance_id, version_id), length
