"""How connections ended: who was first, where, and what that has cost."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Final

from migsniff.core.events import (
    ChannelFound,
    DirectionEnded,
    Draining,
    EndOfStream,
    Event,
    Finding,
    Header,
    MultifdPacket,
    ReturnPathMessage,
    Verdict,
)
from migsniff.core.wire import MULTIFD_HEAD, MULTIFD_MAGIC, MULTIFD_VERSION
from migsniff.expert.codes import finding
from migsniff.expert.endings import HOW, how_it_ended
from migsniff.expert.evidence import message, section_footer
from migsniff.expert.framing import section_in
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name, place, seconds, wire

CHANNELS: Final = 256
CUTS: Final = 8  # channels of which it is told that they were cut
ALONE: Final = 100_000  # µs between a channel's end and those of its siblings
COSTLY: Final = ("cancelled", "failed", "refused", "reset", "truncated")


@rule("load-error-reported")
class Shut(Rule):
    """The destination's own word that it has failed."""

    watches: ClassVar = (ReturnPathMessage, DirectionEnded)

    def __init__(self) -> None:
        self._over: set[str] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account; a destination also says SHUT 1 to a source that has gone."""
        if isinstance(event, DirectionEnded):
            if event.direction == "fwd" and len(self._over) < CHANNELS:
                self._over.add(event.channel)
        elif isinstance(event, ReturnPathMessage) and event.name == "SHUT":
            value = event.arguments.get("value")
            if value and event.channel not in self._over:
                yield finding("load-error-reported", event, evidence=message(event), value=value)


@rule("ended-first", "source-done", "stream-cut", "channel-unlike-siblings")
class Endings(Rule):
    """The order in which connections ended, where each was, and which of several was unlike the others."""

    watches: ClassVar = (
        ChannelFound,
        Header,
        EndOfStream,
        ReturnPathMessage,
        Draining,
        DirectionEnded,
        Verdict,
    )

    def __init__(self) -> None:
        self._encrypted: set[str] = set()
        self._drained: dict[str, Draining] = {}
        self._ends: list[tuple[int, DirectionEnded]] = []
        self._shut: object = None
        self._finished = False

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        match event:
            case ChannelFound(role="tls") if len(self._encrypted) < 2 * CHANNELS:
                self._encrypted.add(event.channel)
            case Header():
                self._shut, self._finished = None, False
            case EndOfStream():
                self._finished = True
            case ReturnPathMessage() if event.name == "SHUT":
                self._shut = event.arguments.get("value")
            case Draining() if len(self._drained) < CHANNELS:
                self._drained[event.channel] = event
            case DirectionEnded() if len(self._ends) < 2 * CHANNELS:
                self._ends.append((time, event))
            case Verdict():
                yield from self._unlike(event)
                if not event.ok and event.outcome not in ("cancelled", "undecodable"):
                    yield from self._first(event)
                    yield from islice(self._cut(), CUTS)

    # ------------------------------------------------------------ who was first

    def _first(self, verdict: Verdict) -> Iterator[Finding]:
        own = [(time, end) for time, end in self._ends if end.by != "proxy"]
        if not own or own[0][1].by == "file":
            return
        time, first = own[0]
        encrypted = first.channel in self._encrypted
        if encrypted and (first.by, first.how) == ("source", "eof") and not first.inside:
            return  # as it ends in order, for all that is seen
        forward: DirectionEnded | Draining = first
        for _, end in self._ends:
            if (end.channel, end.direction) == (first.channel, "fwd"):
                forward = end  # what matters of a return path is how far the stream had come
        forward = self._drained.get(first.channel, forward)
        where = f"at offset {forward.offset} of {name(first.channel)}{place(forward.where)}"
        if packet := self.past.packets.get(first.channel):
            where += f", behind {_packet(packet)}"
        then = ""
        for later, end in self._ends[1:]:
            if end.by != first.by:
                at = f" at offset {end.offset} of {name(end.channel)}" if end.direction == "fwd" else ""
                after = f", {seconds(later - time)} later" if later > time else ""
                then = f"; then the {end.by} {how_it_ended(end)}{at}{after}"
                break
        offset, evidence = self._evidence(forward)
        in_order = (
            self._finished and verdict.outcome == "failed" and (first.by, first.how) == ("source", "eof")
        )
        yield finding(
            "source-done" if in_order and not self._return_path else "ended-first",
            forward,
            section=section_in(forward.where),
            offset=offset,
            size=len(evidence),
            evidence=evidence,
            who=f"the {first.by}",
            how=how_it_ended(first),
            place=where,
            back="what the return path said is encrypted" if encrypted else self._back(),
            then=then,
        )

    def _evidence(self, end: DirectionEnded | Draining) -> tuple[int, bytes]:
        """What stands where it ended: the header of what was cut off, or the end of what came before."""
        if isinstance(end, DirectionEnded) and end.inside:
            return end.offset - end.inside, bytes.fromhex(end.evidence)
        if packet := self.past.packets.get(end.channel):
            return packet.offset, _packet_head(packet)
        section = self.past.section
        if (
            section is not None
            and (section.channel, section.direction) == (end.channel, end.direction)
            and section.offset + section.size <= end.offset
        ):
            footer = section_footer(section)
            return section.offset + section.size - len(footer), footer
        return end.offset, b""

    def _back(self) -> str:
        if self._shut is not None:
            return f"the return path said SHUT {self._shut}"
        return "the return path said no SHUT" if self._return_path else "there is no return path"

    @property
    def _return_path(self) -> bool:
        return "OPEN_RETURN_PATH" in self.past.commands

    # ------------------------------------------------------------ what was cut

    def _cut(self) -> Iterator[Finding]:
        for _, end in self._ends:
            if end.by == "destination":
                return  # who has gone itself does not read what is cut
            inside = end.inside or section_in(end.where)
            if inside and end.direction == "fwd" and end.channel not in self._encrypted:
                what = end.where.rpartition(", ")[0] or end.where
                where = f"{end.inside} bytes into {what}" if end.inside else f"between records of {end.where}"
                yield finding(
                    "stream-cut",
                    end,
                    offset=end.offset - end.inside,
                    size=end.inside,
                    section=section_in(end.where),
                    evidence=bytes.fromhex(end.evidence),
                    channel="the file" if end.by == "file" else name(end.channel),
                    where=where,
                )

    # ------------------------------------------------------------ who was alone

    def _unlike(self, verdict: Verdict) -> Iterator[Finding]:
        packets = self.past.packets
        ends = [(time, end) for time, end in self._ends if end.channel in packets and end.direction == "fwd"]
        if len(ends) < 3:
            return
        times = sorted(time for time, _ in ends)
        kinds = Counter((end.how, end.by) for _, end in ends)
        usual, count = kinds.most_common(1)[0]
        if count <= len(ends) // 2:
            return
        for number, (time, end) in enumerate(ends):
            early = number == 0 and times[1] - time > ALONE
            # a destination that has loaded everything closes at any moment, maybe with a reset
            if not early and (verdict.ok or (end.how, end.by) == usual):
                continue
            packet = packets[end.channel]
            how = f"the {end.by} {how_it_ended(end)}"
            if early:
                how += f", {seconds(times[1] - time)} before the next"
            yield finding(
                "channel-unlike-siblings",
                end,
                offset=packet.offset,
                size=packet.size,
                evidence=_packet_head(packet),
                channel=name(end.channel),
                how=how + place(end.where),
                packet=_packet(packet),
                others=f"the {usual[1]} {HOW[usual[0]]}",
            )


@rule("attempt-cost")
class Cost(Rule):
    """What a migration that came to nothing has cost."""

    watches: ClassVar = (DirectionEnded, Verdict)

    def __init__(self) -> None:
        self._bytes = 0

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        if isinstance(event, DirectionEnded):
            if event.direction == "fwd":
                self._bytes += self.past.drained.get(event.channel, event.offset)
        elif isinstance(event, Verdict) and event.outcome in COSTLY and self._bytes and time:
            yield finding("attempt-cost", event, bytes=wire(self._bytes), time=seconds(time))


def _packet(packet: MultifdPacket) -> str:
    return f"packet {packet.packet_num} (flags {packet.flags:#x})"


def _packet_head(packet: MultifdPacket) -> bytes:
    return MULTIFD_HEAD.pack(MULTIFD_MAGIC, MULTIFD_VERSION, packet.flags)
