"""Whether a stream loads at a destination: each event is compared when it comes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from msgspec.structs import replace

from migsniff.compare.images import Images, images_of
from migsniff.compare.inventory import MAX_SECTIONS, Inventory
from migsniff.compare.layout import (
    Fit,
    Groups,
    Misfit,
    each_name,
    grouped,
    grown,
    least_size,
    schema_misfit,
    subsections,
)
from migsniff.compare.omitted import Omitted, first_of
from migsniff.compare.pciconfig import difference
from migsniff.compare.schema import Schema
from migsniff.core.events import (
    Configuration,
    DeviceSection,
    EndOfStream,
    Event,
    Field,
    Finding,
    LiveSection,
    RamBlocks,
    RamSection,
    Section,
    Verdict,
)
from migsniff.expert.codes import ASSUMED, finding
from migsniff.expert.evidence import block_entries, plain, section_footer, section_header
from migsniff.expert.framing import called
from migsniff.feed.dumpvmstate import State
from migsniff.show.words import name
from migsniff.values.tables.pci import PCI_STATUS, PCI_STD_HEADER_SIZEOF
from migsniff.values.virtio import VirtioState
from migsniff.values.virtiofeatures import feature_names

OPTIONAL: Final = ("audio", "block", "dirty-bitmap", "globalstate", "spapr_drc")
"""What QEMU may know and not send: it has nothing to say of it, or only old ones do (audio, before 6.2)."""
RESIZEABLE: Final = "/rom@"
"""What hw/core/loader.c registers as resizeable: tables that the firmware reads."""
JUDGED: Final = 8
"""Findings by which vmstates that share a name are told apart."""


Local = Inventory | Schema
"""What is known of the destination."""


@dataclass(slots=True)
class Checker:
    """Compares the events of one stream with a destination; `omitted` is what could not be compared.

    What a section shows that is read by a description from elsewhere it tells, and once more, as it then is,
    when the stream's own has come.
    """

    destination: Local
    machine: str = ""
    seen: set[tuple[str, int]] = field(default_factory=set)
    common: int = 0
    """Of the sections seen, how many the destination's own stream has too."""
    refused: set[str] = field(default_factory=set)
    end: EndOfStream | None = None
    omitted: Omitted = field(default_factory=Omitted)
    images: dict[tuple[str, int], Images] = field(default_factory=dict)
    """Of the destination."""

    def see(self, event: Event) -> Iterator[Finding]:
        """What this event shows to be wrong; yields nothing for what fits."""
        match event:
            case Configuration():
                self.machine = event.machine
                yield from self._configuration(event)
            case RamBlocks() if isinstance(self.destination, Inventory):
                yield from self._ram(event, self.destination)
            case DeviceSection() | LiveSection() | RamSection():
                if event.section_type in ("START", "FULL"):
                    yield from self._header(event)
                if isinstance(event, DeviceSection) and (event.fields or not event.cut):
                    yield from self._device(event)
            case EndOfStream():
                self.end = event
            case Verdict() if self.end is not None:
                yield from self._missing(self.end)

    # ------------------------------------------------------------ what stands once

    def _missing(self, end: EndOfStream) -> Iterator[Finding]:
        """What the destination has and the stream, which is over, has not."""
        if isinstance(self.destination, Inventory) and self.seen:
            sections = self.destination.sections
            if count := len(sections) - self.common:
                missing = (f"{name(one[0])}/{one[1]}" for one in sections if one not in self.seen)
                yield finding("check-extra-sections", end, count=count, sections=first_of(missing, count))

    def _configuration(self, event: Configuration) -> Iterator[Finding]:
        local = self.destination.machine
        if not local.startswith(event.machine):  # QEMU compares as many bytes as it receives
            yield finding("check-machine", event, received=name(event.machine), local=name(local))
        if not isinstance(self.destination, Inventory) or (ours := self.destination.configuration) is None:
            return
        if None not in (event.page_bits, ours.page_bits) and event.page_bits != ours.page_bits:
            yield finding("check-page-size", event, received=event.page_bits, local=ours.page_bits)
        here, there = set(event.capabilities or ()), set(ours.capabilities or ())
        for capability in sorted(here ^ there):
            states = ("on", "off") if capability in here else ("off", "on")
            yield finding(
                "check-capability", event, name=name(capability), received=states[0], local=states[1]
            )

    def _ram(self, event: RamBlocks, there: Inventory) -> Iterator[Finding]:
        if not there.blocks:
            return
        for block, (offset, evidence) in zip(event.blocks, block_entries(event), strict=True):
            local = there.blocks.get(block.name)
            if local is not None and local.length == block.length:
                continue
            block_name = name(block.name)
            if local is None:
                code, lengths = "check-block-unknown", {}
            else:
                resizeable = block.name.startswith(RESIZEABLE)
                code = "check-block-resized" if resizeable else "check-block-size"
                lengths = {"received": f"{block.length:#x}", "local": f"{local.length:#x}"}
            yield finding(
                code,
                event,
                section="ram/0",
                field=block_name,
                offset=offset,
                size=len(evidence),
                evidence=evidence,
                block=block_name,
                **lengths,
            )
        sent = {block.name for block in event.blocks}
        if count := len(there.blocks) - sum(one in there.blocks for one in sent):
            extra = (name(one) for one in there.blocks if one not in sent)
            behind = event.offset + event.size
            few = first_of(extra, count)
            yield finding("check-extra-blocks", event, offset=behind, count=count, blocks=few)

    # ------------------------------------------------------------ sections

    def _header(self, event: Section) -> Iterator[Finding]:
        key = event.idstr, event.instance_id
        if key in self.seen or len(self.seen) >= MAX_SECTIONS:
            return
        self.seen.add(key)
        self.common += isinstance(self.destination, Inventory) and key in self.destination.sections
        if (found := self._known(event)) is not None:
            code, local = found
            self.refused.add(called(event))
            evidence = section_header(event)
            yield finding(
                code,
                event,
                section=called(event),
                offset=event.offset,
                size=len(evidence),
                evidence=evidence,
                name=name(event.idstr),
                instance=event.instance_id,
                version=event.version_id,
                local=local,
            )

    def _known(self, event: Section) -> tuple[str, int] | None:
        """What is wrong with a section's name, instance or version, and the version at the destination."""
        if isinstance(self.destination, Schema):
            states = self.destination.find(event.idstr)
            if not states:
                self.omitted.unknown[name(called(event))] = None
            elif event.version_id > (most := max(one.version_id for one in states)):
                return "check-version", most
            elif event.version_id < (least := min(one.minimum_version_id for one in states)):
                return "check-version-old", least
            return None
        local = self.destination.sections.get((event.idstr, event.instance_id))
        if local is None:
            if not self.destination.sections:
                return None
            return "check-section-maybe" if self._optional(event) else "check-section-unknown", 0
        return ("check-version", local.version_id) if event.version_id > local.version_id else None

    def _optional(self, event: Section) -> bool:
        """Whether the destination may know a section although its own stream has none."""
        assert isinstance(self.destination, Inventory)
        complete = self.destination.verdict is None or self.destination.verdict.ok
        old = event.idstr in self.destination.tails  # before devices had paths (compat in SaveStateEntry)
        return not complete or event.idstr in OPTIONAL or old

    def _device(self, event: DeviceSection) -> Iterator[Finding]:
        """What is inside, as far as a description tells."""
        section = called(event)
        if section in self.refused:  # its inside is not read
            return
        if (event.described or event.assumed) and not event.undescribed:
            self.omitted.undescribed.pop(name(section), None)
        elif len(self.omitted.undescribed) < MAX_SECTIONS:
            self.omitted.undescribed[name(section)] = None
        found = self._inside(event) if event.described or event.assumed else self._length(event)
        yield from (replace(one, message=one.message + ASSUMED) for one in found) if event.assumed else found

    def _inside(self, event: DeviceSection) -> Iterator[Finding]:
        if isinstance(self.destination, Schema):
            if not event.cut and (states := self.destination.find(event.idstr)):
                yield from self._schema(event, states)
            return
        local = self.local(event)
        if local is None:
            return
        yield from self._pci(event, local)
        if event.cut:  # what has not come does not fit either
            return
        older = event.version_id < local.version_id
        fit = Fit(event.fields, local.fields, older=older)
        found = fit.misfit()
        if older:
            yield self._older(event, local, found)
        elif found is not None:
            yield self._misfit(event, found)
        known = {one.name: one for one in reversed(list(subsections(local.fields)))}
        for one in each_name(subsections(event.fields)):
            there = known.get(one.name)
            if there is None:
                yield self._at(event, "check-subsection-maybe", one, subsection=name(one.name))
            elif (one.version or 0) > (there.version or 0):
                yield self._other_version(event, one, there.version or 0, "new")
            elif (found := fit.subsection(one, there)) is not None:
                yield self._misfit(event, found)

    def _length(self, event: DeviceSection) -> Iterator[Finding]:
        """A section of which nobody knows the fields can still be too short."""
        local = self.local(event)
        if local is None or not event.footer or not local.footer or event.version_id != local.version_id:
            return
        sizes = [one.size - len(section_header(one)) - len(section_footer(one)) for one in (event, local)]
        if (least := least_size(local.fields)) is not None and sizes[0] < least:
            words = f"{sizes[0]} bytes in the stream, at least {least} at the destination"
            yield self._misfit(event, Misfit("", words, certain=False))  # a field may come only sometimes

    def local(self, event: DeviceSection) -> DeviceSection | None:
        """The same section of the destination's own stream, if that describes it."""
        if isinstance(self.destination, Schema):
            return None
        local = self.destination.sections.get((event.idstr, event.instance_id))
        return local if isinstance(local, DeviceSection) and local.described else None

    def _schema(self, event: DeviceSection, states: list[State]) -> Iterator[Finding]:
        """What stands against the one that fits best of the vmstates that share a name."""
        inner = [(one, grouped(one.children)) for one in each_name(subsections(event.fields))]
        fields = grouped(event.fields)

        def against(state: State) -> Iterator[Finding]:
            if (found := schema_misfit(fields, state, event.version_id, self.omitted.renamed)) is not None:
                yield self._misfit(event, found)
            yield from self._schema_subsections(event, inner, state)

        best = states[0]
        if len(states) > 1:
            best = min(states, key=lambda state: sum(1 for _ in islice(against(state), JUDGED)))
        yield from against(best)

    def _schema_subsections(
        self, event: DeviceSection, inner: list[tuple[Field, Groups]], state: State
    ) -> Iterator[Finding]:
        for one, fields in inner:
            found, version = None, one.version or 0
            there = state.subsections_below.get(one.name, ())
            if not there:
                yield self._at(event, "check-subsection-unknown", one, subsection=name(one.name))
            elif version > (most := max(each.version_id for each in there)):
                yield self._other_version(event, one, most, "new")
            elif version < (least := min(each.minimum_version_id for each in there)):
                yield self._other_version(event, one, least, "old")
            elif len(there) == 1:
                found = schema_misfit(fields, there[0], version, self.omitted.renamed, f"{one.name}.")
            if found is not None:
                yield self._misfit(event, found)

    def _other_version(self, event: DeviceSection, one: Field, local: int, how: str) -> Finding:
        least = "minimum " if how == "old" else ""
        known = {"version": one.version, "local": local, "how": how, "least": least}
        return self._at(event, "check-subsection-version", one, subsection=name(one.name), **known)

    def _older(self, event: DeviceSection, local: DeviceSection, found: Misfit | None) -> Finding:
        """Which versions the destination still loads no stream tells; it looks at that before the fields."""
        added = found is None and grown(event.fields, local.fields)
        code = "check-version-lower" if added else "check-version-maybe"
        if found is not None and found.certain:
            code = "check-version-misfit"
        evidence = section_header(event)
        return finding(
            code,
            event,
            section=called(event),
            field=name(found.path) if found is not None else "",
            offset=event.offset,
            size=len(evidence),
            evidence=evidence,
            name=name(event.idstr),
            version=event.version_id,
            local=local.version_id,
            misfit=f"{name(found.path)}: {found.words}" if found is not None else "",
        )

    def _misfit(self, event: DeviceSection, found: Misfit) -> Finding:
        footer = section_footer(event)
        return finding(
            "check-footer" if found.certain else "check-footer-maybe",
            event,
            section=called(event),
            field=name(found.path),
            offset=event.offset + event.size - len(footer),
            size=len(footer),
            evidence=footer,
            name=name(event.idstr),
            path=name(found.path),
            words=found.words,
        )

    def _at(self, event: DeviceSection, code: str, one: Field, **details: object) -> Finding:
        """A finding about a subsection."""
        header = bytes([0x05, len(one.name)]) + (plain(one.name) or b"")
        return finding(
            code,
            event,
            section=called(event),
            field=name(one.name),
            offset=one.offset,
            size=one.size,
            evidence=header if plain(one.name) else b"",
            name=name(event.idstr),
            instance=event.instance_id,
            **details,
        )

    # ------------------------------------------------------------ PCI and virtio

    def _pci(self, event: DeviceSection, local: DeviceSection) -> Iterator[Finding]:
        key = event.idstr, event.instance_id
        if key not in self.images:  # they are as many as the destination's sections
            self.images[key] = images_of(local, self.machine)
        here, there = images_of(event, self.machine), self.images[key]
        ours, theirs = here.config, there.config
        if ours is not None and theirs is not None:
            self.omitted.bars = True
            if (found := difference(ours.raw, theirs.raw)) is not None:
                at = found.at
                yield finding(
                    "check-pci" if found.certain else "check-pci-maybe",
                    event,
                    section=called(event),
                    field=ours.name,
                    offset=ours.offset + at,
                    size=1,
                    evidence=ours.raw[at : at + 1],
                    i=f"{at:x}",
                    read=f"{found.read:x}",
                    device=f"{found.device:x}",
                    # pci_init_cmask compares all bits of all that is listed but status; others are writable
                    cmask=f"{found.mask if at == PCI_STATUS else 0xFF:x}",
                    wmask=f"{~found.mask & 0xFF if at >= PCI_STD_HEADER_SIZEOF else 0:x}",
                    register=found.register,
                )
        if here.opaque:
            self.omitted.opaque[name(called(event))] = None
            if here.virtio is not None and there.virtio is not None and here.virtio.features:
                yield from self._features(event, here.virtio, there.virtio)

    def _features(self, event: DeviceSection, here: VirtioState, there: VirtioState) -> Iterator[Finding]:
        section = called(event)
        kind = event.idstr.rpartition("/")[2]
        if not there.features:  # at reset, most likely: no guest has chosen any
            self.omitted.features[f"{name(section)} ({' '.join(feature_names(kind, here.features))})"] = None
        elif bits := here.features & ~there.features:
            size = 4 if here.features_offset < here.status_offset + 8 else 8
            yield finding(
                "check-virtio-features",
                event,
                section=section,
                field="virtio.guest_features",
                offset=here.features_offset,
                size=size,
                evidence=here.features.to_bytes(16, "big")[-size:],
                received=f"{here.features:#x}",
                local=f"{there.features:#x}",
                names=" ".join(feature_names(kind, bits)),
            )
