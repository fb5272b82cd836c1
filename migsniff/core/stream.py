"""The main channel: header, items (sections and commands), EOF.

Parsers are generators over the byte queue: they read like blocking code, yield events, and yield None when
the bytes run out. Format: migration/savevm.c, QEMU 5.2 to 11.1.
"""

from migsniff.core import wire
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.commands import read_command
from migsniff.core.configuration import read_configuration
from migsniff.core.context import Context, SectionFacts
from migsniff.core.description import Description
from migsniff.core.devices import DeviceStateBudget, DeviceStates
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    EndOfStream,
    Finding,
    Header,
    LiveSection,
    Opaque,
    RamSection,
    SectionType,
    Undecodable,
    problem_finding,
)
from migsniff.core.livesections import live_section
from migsniff.core.ram import RamReader
from migsniff.core.sectionend import find_end, find_footer
from migsniff.core.text import checked, printable_length
from migsniff.core.vmdescription import read_description
from migsniff.core.wire import (
    ANNOUNCED,
    CONTINUED,
    FILE_MAGIC,
    FILE_VERSION,
    MAX_SECTIONS,
    RAM_IDSTR,
    RAM_VERSION,
    U32,
    ItemType,
)

PART, FOOTER = CONTINUED.struct, wire.FOOTER.struct
KINDS: dict[int, SectionType] = {
    ItemType.SECTION_START: "START",
    ItemType.SECTION_PART: "PART",
    ItemType.SECTION_END: "END",
    ItemType.SECTION_FULL: "FULL",
}


class MainReader:
    """Parses a main channel from its first byte (`run`), or a resumed one, which has no header (`resume`)."""

    def __init__(self, channel: str, queue: ByteQueue, context: Context, budget: DeviceStateBudget) -> None:
        self.channel = channel
        self.queue = queue
        self.context = context
        self.ram = RamReader(channel, queue, context)
        self.devices = DeviceStates(channel, context, budget)
        self.item = "the header"
        self.finished = False  # EOF has been read: nothing is missing if the stream ends now
        self.described = False
        self.description: Description | None = None  # kept for the checkpoints of COLO
        self.checkpoints: int | None = None  # how many of COLO were sent; None: it did not get there
        self.at_footer = False
        self.resumed = False  # this connection goes on with what another one began
        self.in_package = False
        self.switched = False  # the last sections begin: the source has stopped its guest
        self.ram_ended = False
        self.among_devices = False  # this item, or the one before, is a device behind the end of RAM
        self.holes = 0  # behind which decoding went on

    @property
    def where(self) -> str:
        """What is being read: section or item, and the record in it."""
        within = self.ram.where or self.devices.where
        item = f"{self.item}, {within}" if within else self.item
        if self.at_footer and self.queue.wire_end > self.queue.mark:
            item = f"the footer of {item}"
        return f"the package, {item}" if self.in_package else item

    @property
    def head(self) -> bytes:
        """The header of the page record whose contents are being read, or of the FULL section."""
        return self.ram.head if self.ram.where else self.devices.head

    @property
    def between_iterations(self) -> bool:
        """Whether all sections are complete but for a footer, and more iterations were to come.

        There a source stops by itself when its migration is cancelled.
        """
        return not self.switched and (self.item == "between sections" or self.at_footer)

    def run(self) -> Steps:
        """A whole stream."""
        yield from self._header()
        self.item = "the configuration"
        yield from read_configuration(self.channel, self.queue, self.context)
        yield from self.items(None)
        yield from read_description(self)

    def resume(self) -> Steps:
        """What goes on after postcopy was paused: items up to the EOF."""
        self.resumed = self.switched = True
        self.context.postcopy = self.context.return_path = True  # also if what was before was not seen
        self.context.memory.begin_postcopy()
        yield from self.items(None)
        yield from read_description(self)

    # ------------------------------------------------------------ header

    def _header(self) -> Steps:
        queue = self.queue
        yield from queue.wait(4)
        if U32.unpack_from(queue.data, queue.pos)[0] != FILE_MAGIC:
            raise StreamProblem("magic", found=queue.peek(4).hex(" "))
        yield from queue.u32()
        version = yield from queue.u32()
        if version != FILE_VERSION:
            raise StreamProblem("version", found=version)
        yield Header(channel=self.channel, direction="fwd", offset=0, size=8, version=version)

    # ------------------------------------------------------------ items

    def items(self, limit: int | None) -> Steps:
        """Items up to the EOF, or up to wire offset `limit`, where a package ends.

        What is missing between devices ends nothing: behind the hole the next section is looked for. Nowhere
        else: elsewhere the guest chooses bytes, and could make them look like a section.
        """
        problem: StreamProblem | None = None
        while True:
            try:
                if problem is not None:
                    yield from self._behind_hole(problem, limit)
                yield from self._until_hole(limit)
                return
            except StreamProblem as hole:
                if hole.code != "hole" or not self.among_devices:
                    raise
                problem = hole

    def _behind_hole(self, problem: StreamProblem, limit: int | None) -> Steps:
        """Step over a hole, and over what follows up to the end of some section."""
        queue = self.queue
        queue.discard()
        if limit is not None and queue.at > limit:
            self.among_devices = False
            raise problem
        yield self.undecodable(problem)
        self.item = "behind a hole"
        start = queue.mark = queue.at
        self.holes += 1
        yield from find_footer(queue, self.context, self.devices.seen, limit)
        if queue.at > start:
            yield Opaque(
                channel=self.channel,
                direction="fwd",
                offset=start,
                size=queue.at - start,
                what="bytes behind a hole, up to the end of a section",
            )

    def _until_hole(self, limit: int | None) -> Steps:
        queue = self.queue
        while True:
            if limit is not None and queue.at >= limit:
                if queue.at > limit:
                    raise StreamProblem("package-end", item=self.item)
                return
            self.item = "between sections"
            queue.mark = queue.at
            if not queue.ensure(1):
                yield from queue.wait(1)
            kind = queue.data[queue.pos]
            self.among_devices = kind == ItemType.SECTION_FULL and (self.ram_ended or limit is not None)
            if kind in (ItemType.SECTION_PART, ItemType.SECTION_END):
                yield from self._continued(ItemType(kind))
            elif kind in (ItemType.SECTION_START, ItemType.SECTION_FULL):
                yield from self._announced(ItemType(kind), limit)
            elif kind == ItemType.COMMAND:
                yield from read_command(self, limit)
            elif kind == ItemType.EOF and limit is not None:
                raise StreamProblem("package-eof", left=limit - queue.at)
            elif kind == ItemType.EOF:
                yield from queue.u8()
                self.finished = True
                self.item = "behind the end of the stream"
                yield EndOfStream(channel=self.channel, direction="fwd", offset=queue.mark, size=1)
                return
            else:
                raise StreamProblem("item-type", found=kind)

    def _announced(self, kind: ItemType, limit: int | None) -> Steps:
        """A START or FULL: its header says what it is."""
        queue, context = self.queue, self.context
        start = queue.at
        self.item = f"the header of a {KINDS[kind]} section"
        before = ANNOUNCED.struct.size + 1
        yield from queue.wait(before)
        _, section_id = ANNOUNCED.struct.unpack_from(queue.data, queue.pos)
        count = queue.data[queue.pos + before - 1]
        length = ANNOUNCED.least + count
        idstr = checked(
            (yield from queue.fitting(before, count, printable_length)), f"the name of section {section_id}"
        )
        yield from queue.wait(length)
        header = bytes(queue.data[queue.pos : queue.pos + length])
        instance_id, version_id = (U32.unpack_from(header, at)[0] for at in (length - 8, length - 4))
        known = context.sections.get(section_id)
        if known is not None and known.idstr != idstr:
            raise StreamProblem("section-id-reused", section_id=section_id, idstr=idstr, earlier=known.idstr)
        if len(context.sections) >= MAX_SECTIONS:
            raise StreamProblem("count", what="sections", count=MAX_SECTIONS + 1, limit=MAX_SECTIONS)
        queue.advance(length)
        facts = context.sections[section_id] = SectionFacts(section_id, idstr, instance_id, version_id)
        self.item = f"section {idstr} instance {instance_id} ({KINDS[kind]})"
        if kind == ItemType.SECTION_FULL:
            yield from self.devices.section(queue, facts, header, limit)
        else:
            yield from self._live(kind, facts, start, limit)

    def _continued(self, kind: ItemType) -> Steps:
        """A PART or END of a section that has been announced."""
        queue = self.queue
        start = queue.at
        if not queue.ensure(PART.size):
            self.item = f"the header of a {KINDS[kind]} section"
            yield from queue.wait(PART.size)
            self.item = "between sections"
        _, section_id = PART.unpack_from(queue.data, queue.pos)
        facts = self.context.sections.get(section_id)
        if facts is None:
            code = "resumed-alone" if self.resumed else "section-unknown"
            raise StreamProblem(code, kind=KINDS[kind], section_id=section_id)
        queue.advance(PART.size)
        self.switched = self.switched or kind == ItemType.SECTION_END
        self.item = f"section {facts.idstr} instance {facts.instance_id} ({KINDS[kind]})"
        yield from self._live(kind, facts, start, None)

    # ------------------------------------------------------------ live sections

    def _live(self, kind: ItemType, facts: SectionFacts, start: int, limit: int | None) -> Steps:
        if facts.idstr == RAM_IDSTR:
            yield from self._ram(kind, facts, start)
            return
        handler = live_section(facts.idstr)
        provisional, summary = handler is None, ""
        if handler is not None:
            try:
                summary = yield from handler.read(self.queue)
                yield from self._footer(facts)
            except StreamProblem as problem:
                if handler.secret or problem.code == "string-text":
                    raise  # what follows may be contents, which must not be kept as a section is
                yield self.undecodable(problem)
                provisional = True
        if provisional:
            yield from find_end(self.queue, facts, bytearray(), self.context, self.devices.seen, limit)
        yield LiveSection(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=self.queue.at - start,
            section_type=KINDS[kind],
            section_id=facts.section_id,
            idstr=facts.idstr,
            instance_id=facts.instance_id,
            version_id=facts.version_id,
            footer=bool(self.context.footers),
            provisional=provisional,
            summary=summary,
        )

    def _ram(self, kind: ItemType, facts: SectionFacts, start: int) -> Steps:
        queue, ram, memory = self.queue, self.ram, self.context.memory
        if facts.version_id != RAM_VERSION:
            raise StreamProblem("ram-version", found=facts.version_id)
        multifd = self.context.multifd
        last = kind == ItemType.SECTION_END and memory.count_passes
        # QEMU looks for dirty pages once more before the last ones, which multifd channels have sent by now
        if last and memory.pass_tallies and memory.lacks_channels:
            memory.begin_rounds()
        if last and memory.pass_tallies and memory.rounds is None:
            yield ram.counter.end_pass(start, final=False)
        memory.may_end = not last
        if last:  # its scan goes on where the one before has stopped, and around to there
            memory.ordered = False
        counts, blocks = yield from ram.payload(start=kind == ItemType.SECTION_START)
        yield from memory.next_round(self.channel, queue.at)
        end = queue.at
        yield from self._footer(facts)
        ram.told()
        yield RamSection(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            section_type=KINDS[kind],
            section_id=facts.section_id,
            idstr=facts.idstr,
            instance_id=facts.instance_id,
            version_id=facts.version_id,
            footer=bool(self.context.footers),
            iteration=memory.iteration,
            counts=counts,
            blocks=blocks,
            multifd_flushes=ram.flushes,
        )
        self.ram_ended = self.ram_ended or kind == ItemType.SECTION_END
        if last and not memory.caught_up:
            multifd.end = self.channel, end
        elif last:
            yield from memory.last_pass(self.channel, end)

    def _footer(self, facts: SectionFacts) -> Steps:
        """The footer of a section whose payload has a known end; the first tells whether there are any."""
        queue, context = self.queue, self.context
        queue.mark = queue.at
        self.at_footer = True
        if context.footers is None:
            yield from queue.wait(1)
            context.footers = queue.data[queue.pos] == ItemType.SECTION_FOOTER
        if not context.footers:
            self.at_footer = False
            return
        size = FOOTER.size
        if not queue.ensure(size):
            yield from queue.wait(size)
        self.at_footer = False
        if FOOTER.unpack_from(queue.data, queue.pos) != (ItemType.SECTION_FOOTER, facts.section_id):
            raise StreamProblem("footer", section_id=facts.section_id, found=queue.peek(size).hex(" "))
        queue.advance(size)

    # ------------------------------------------------------------ what is wrong

    def undecodable(self, problem: StreamProblem) -> Undecodable:
        """The event for a problem at the record that is being read."""
        return Undecodable(
            channel=self.channel,
            direction="fwd",
            offset=self.queue.mark,
            size=max(0, self.queue.at - self.queue.mark),
            code=problem.code,
            message=problem.text,
            where=self.where,
        )

    def finding(self, offset: int, code: str, **details: object) -> Finding:
        """The event for what is wrong in the bytes from `offset` up to here, but ends nothing."""
        return problem_finding(
            StreamProblem(code, **details),
            channel=self.channel,
            direction="fwd",
            offset=offset,
            size=self.queue.at - offset,
        )
