"""Device state: where each FULL section ends, first by its footer, then exactly by the description.

A FULL section carries no length. Live its end is where its footer stands with something plausible behind it;
when the description arrives, walking it must land on that footer. The raw bytes are kept until then.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET, UnsetType

from migsniff.core.arrivals import Data, Remembered
from migsniff.core.assumed import Assumptions, Guess
from migsniff.core.budget import Budget
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context, SectionFacts
from migsniff.core.description import Description, DeviceDescription
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    EVIDENCE,
    DeviceSection,
    Event,
    Field,
    Finding,
    problem_finding,
)
from migsniff.core.sectionend import FOOTER_SIZE, parse_header, search_end
from migsniff.core.vmdesc import UNNAMED, Walking, images, opaque, walk
from migsniff.core.wire import MAX_DEVICE_STATE, MAX_DEVICE_STATE_PROCESS, MAX_ITEM_HEADER, U32


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
    assumed: dict[int, Remembered] = field(default_factory=dict)
    """Index where a section begins -> the description from elsewhere that it was read by."""


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
        self.assumptions = Assumptions(context)
        self.head = b""  # the header of the section that is being read
        self.where = ""
        """Behind a stream that was cut off: the field in which it ends, if one can be named."""

    # ------------------------------------------------------------ live, by the footer

    def section(self, queue: ByteQueue, facts: SectionFacts, header: bytes, limit: int | None) -> Steps:
        """Read a payload of unknown length and its footer. `limit`: wire offset where the package ends."""
        start = queue.at - len(header)
        self.head = header
        self.seen.add(facts.section_id)
        payload = bytearray()
        found = yield from search_end(queue, facts, payload, self.context, self.seen, limit)
        if found is None:
            yield from self._cut_off(facts, payload, start, len(header), queue.at - start)
        self.head = b""
        length = found or 0
        footer = FOOTER_SIZE if self.context.footers else 0
        size = len(header) + length + footer
        at = start + len(header)
        guess: Guess | StreamProblem | None = None
        if length == len(payload):
            tail = b"\x7e" + U32.pack(facts.section_id) if footer else b""
            self._keep(start, (header, payload, tail), facts)
            guess = yield from self.assumptions.whole(facts, payload, at, fields=self.context.want_fields)
            if isinstance(guess, Guess) and self.runs:
                self.runs[-1].assumed[start - self.runs[-1].offset] = guess.remembered
        else:
            self.dropped = self.dropped or facts.idstr
            payload.clear()
        yield self._provisional(facts, start, size, at, payload, guess)
        if isinstance(guess, StreamProblem):
            yield self._finding(start, guess, facts)

    def _cut_off(self, facts: SectionFacts, payload: bytearray, start: int, header: int, size: int) -> Steps:
        """The stream ends inside a section: tell its header, and what has come of it, by name if possible."""
        at = start + header
        guess = None
        if size == header + len(payload):
            guess = yield from self.assumptions.cut_off(facts, payload, at)
            if guess is not None:
                self.where = guess.place
        else:
            payload.clear()
        yield self._provisional(facts, start, size, at, payload, guess, cut=True)
        while True:
            yield None

    def _provisional(
        self,
        facts: SectionFacts,
        start: int,
        size: int,
        at: int,
        payload: Data,
        guess: Guess | StreamProblem | None,
        *,
        cut: bool = False,
    ) -> DeviceSection:
        """A section before its description has come: `payload`, from `at` on, is empty if it was not kept."""
        fields: tuple[Field, ...] = ()
        image: Field | UnsetType = UNSET
        assumed: dict[str, Any] = {}
        if isinstance(guess, Guess):
            fields = guess.fields if self.context.want_fields else ()
            image = UNSET if cut else next(iter(images(guess.fields)), UNSET)
            assumed = {
                "assumed": True,
                "assumed_from": guess.remembered.source,
                "undescribed": guess.undescribed,
            }
        elif self.context.want_fields and payload:
            fields = (opaque(payload, 0, len(payload), at),)
        return DeviceSection(
            channel=self.channel,
            direction="fwd",
            offset=start,
            size=size,
            section_type="FULL",
            section_id=facts.section_id,
            idstr=facts.idstr,
            instance_id=facts.instance_id,
            version_id=facts.version_id,
            footer=bool(self.context.footers) and not cut,
            provisional=True,
            fields=fields,
            image=image,
            cut=cut,
            **assumed,
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
            problem = StreamProblem("device-too-big", limit=MAX_DEVICE_STATE, idstr=self.dropped)
            yield self._finding(0, problem)

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
                end, fields, undescribed, problem = yield from self._walk(
                    run, data, at + length, facts, device, budget
                )
                if end is None:  # no description, or one that does not lead to a footer
                    end = provisional[1] if provisional else self._footer_end(run, at + length, facts)
                    if end is None:
                        break
                stop = end - (FOOTER_SIZE if self.context.footers else 0)
                explained = at + length + undescribed[0]
                rest = opaque(data, explained, stop, run.offset + explained) if explained < stop else None
                if device is not None and explained != stop and problem is None:
                    problem = _not_described(facts, run.offset + explained, run.offset + stop, rest)
                image = next(iter(images(fields)), UNSET)
                if not self.context.want_fields:
                    fields = ()
                elif rest is not None:
                    fields = (*fields, rest)
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
                    image=image,
                    undescribed=undescribed[1] + max(0, stop - explained),
                    corrects=provisional[1] - at if provisional and provisional[1] != end else None,
                )
                if problem is not None:
                    evidence = bytes(data[explained : min(explained + EVIDENCE, end)])
                    yield self._finding(run.offset + explained, problem, facts, evidence)
                elif device is not None and at in run.assumed:
                    payload = bytes(data[at + length : stop])
                    wrong = yield from self.assumptions.difference(
                        facts, payload, run.offset + at + length, device, run.assumed[at]
                    )
                    if wrong is not None:
                        yield self._finding(run.offset + at, wrong, facts)
                at = end

    def _walk(
        self,
        run: Run,
        data: memoryview,
        at: int,
        facts: SectionFacts,
        device: DeviceDescription | None,
        budget: Budget,
    ) -> Walking[tuple[int | None, tuple[Field, ...], tuple[int, int], StreamProblem | None]]:
        """Walk one device from `at`: the section's end if that is proven, fields, bytes explained and not."""
        if device is None:
            return None, (), (0, 0), None
        walked = yield from walk(
            device,
            data,
            at,
            run.offset + at,
            fields=self.context.want_fields,
            budget=budget,
            breathe=self.context.breathe,
        )
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

    def _finding(
        self, offset: int, problem: StreamProblem, facts: SectionFacts | None = None, evidence: bytes = b""
    ) -> Finding:
        return problem_finding(
            problem,
            channel=self.channel,
            direction="fwd",
            offset=offset,
            section=f"{facts.idstr}/{facts.instance_id}" if facts is not None else "",
            evidence=evidence,
        )


def _not_described(facts: SectionFacts, at: int, found: int, rest: Field | None) -> StreamProblem:
    """A section ends at wire offset `found`, by its description at `at`; what stands between, if anything."""
    if rest is not None and rest.name != UNNAMED:
        return StreamProblem(
            "subsection-undescribed",
            idstr=facts.idstr,
            instance_id=facts.instance_id,
            size=rest.size,
            name=rest.name,
            version=rest.version,
        )
    return StreamProblem("walk-end", idstr=facts.idstr, instance_id=facts.instance_id, at=at, found=found)
