"""Whether a stream loads at a destination: each event is compared when it comes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from migsniff.compare.inventory import MAX_SECTIONS, Inventory
from migsniff.compare.layout import Misfit, misfit, schema_misfit, subsections
from migsniff.compare.pciconfig import EXPRESS_SIZE, SIZE, difference, is_express, msix_vectors
from migsniff.compare.schema import Schema, State
from migsniff.core.events import (
    Configuration,
    DeviceSection,
    Event,
    Field,
    Finding,
    LiveSection,
    RamBlocks,
    RamSection,
    Section,
)
from migsniff.expert.codes import finding
from migsniff.expert.evidence import block_entry, plain, section_footer, section_header
from migsniff.show.words import name

OPTIONAL: Final = ("block", "dirty-bitmap", "globalstate")
"""Sections that QEMU sends only when there is something to say, and always knows."""
RESIZEABLE: Final = "/rom@"
"""What hw/core/loader.c registers as resizeable: tables that the firmware reads."""
LISTED: Final = 8


@dataclass(slots=True)
class Checker:
    """Compares the events of one stream with a destination; `omitted` says what could not be compared."""

    destination: Inventory | Schema
    seen: set[tuple[str, int]] = field(default_factory=set)
    blocks: set[str] = field(default_factory=set)
    undescribed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    bars: int = 0

    def see(self, event: Event) -> Iterator[Finding]:
        """What this event shows to be wrong; yields nothing for what fits."""
        match event:
            case Configuration():
                yield from self._configuration(event)
            case RamBlocks() if isinstance(self.destination, Inventory):
                yield from self._ram(event, self.destination)
            case DeviceSection() | LiveSection() | RamSection():
                if event.section_type in ("START", "FULL"):
                    yield from self._header(event)
                if isinstance(event, DeviceSection) and not event.provisional and not event.cut:
                    yield from self._device(event)

    def finish(self) -> Iterator[Finding]:
        """What the destination has and the stream has not."""
        if not isinstance(self.destination, Inventory):
            return
        at = Event(channel="main", direction="fwd", offset=0, size=0)
        missing = [one for one in self.destination.sections if one not in self.seen]
        if missing and self.seen:
            listed = ", ".join(f"{name(idstr)}/{instance}" for idstr, instance in missing[:LISTED])
            yield finding("check-extra-sections", at, count=len(missing), sections=listed + _more(missing))
        extra = [one for one in self.destination.blocks if one not in self.blocks]
        if extra and self.blocks:
            listed = ", ".join(map(name, extra[:LISTED])) + _more(extra)
            yield finding("check-extra-blocks", at, count=len(extra), blocks=listed)

    def omitted(self) -> list[str]:
        """What was not compared, in words."""
        words = ["values that QEMU checks in code of its own (post_load), and features that the host lacks"]
        if self.bars:
            words.append("sizes of PCI BARs and registers that are read-only in some devices alone")
        if self.opaque:
            words.append(f"virtio state behind the PCI configuration space: {_few(self.opaque)}")
        if self.features:
            words.append(
                "whether the destination allows the features that the guest uses (bits 0 to 31), else "
                f'"Features ... unsupported": {_few(self.features)}'
            )
        if self.undescribed:
            words.append(f"fields of sections without a description: {_few(self.undescribed)}")
        if isinstance(self.destination, Schema):
            words.append("instances of sections, RAM blocks and PCI configuration: -dump-vmstate has none")
            if self.renamed:
                words.append(f"fields that have another name there: {_few(self.renamed)}")
            if self.unknown:
                words.append(f"sections that -dump-vmstate does not list: {_few(self.unknown)}")
        return words

    # ------------------------------------------------------------ what comes first

    def _configuration(self, event: Configuration) -> Iterator[Finding]:
        local = self.destination.machine
        if local and event.machine != local:
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
        for block in event.blocks:
            self.blocks.add(block.name)
            local = there.blocks.get(block.name)
            if not there.blocks or (local is not None and local.length == block.length):
                continue
            offset, evidence = block_entry(event, block)
            place = {"offset": offset, "size": len(evidence), "evidence": evidence}
            called = name(block.name)
            if local is None:
                code, lengths = "check-block-unknown", {}
            else:
                resizeable = block.name.startswith(RESIZEABLE)
                code = "check-block-resized" if resizeable else "check-block-size"
                lengths = {"received": f"{block.length:#x}", "local": f"{local.length:#x}"}
            yield finding(code, event, section="ram/0", field=called, block=called, **place, **lengths)  # type: ignore[arg-type]

    # ------------------------------------------------------------ sections

    def _header(self, event: Section) -> Iterator[Finding]:
        key = event.idstr, event.instance_id
        if key in self.seen or len(self.seen) >= MAX_SECTIONS:
            return
        self.seen.add(key)
        evidence = section_header(event)
        place = {
            "section": _called(event),
            "evidence": evidence,
            "size": len(evidence),
            "offset": event.offset,
        }
        named = {"name": name(event.idstr), "instance": event.instance_id, "version": event.version_id}
        if isinstance(self.destination, Schema):
            states = self.destination.find(event.idstr)
            if not states:
                self.unknown.append(_called(event))
            elif event.version_id > (most := max(one.version_id for one in states)):
                yield finding("check-version", event, **place, **named, local=most)  # type: ignore[arg-type]
            elif event.version_id < (least := min(one.minimum_version_id for one in states)):
                yield finding("check-version-old", event, **place, **named, local=least)  # type: ignore[arg-type]
            return
        local = self.destination.sections.get(key)
        if local is not None:
            if event.version_id > local.version_id:
                yield finding("check-version", event, **place, **named, local=local.version_id)  # type: ignore[arg-type]
        elif self.destination.sections:
            code = "check-section-maybe" if self._optional(event) else "check-section-unknown"
            yield finding(code, event, **place, **named)  # type: ignore[arg-type]

    def _optional(self, event: Section) -> bool:
        """Whether the destination may know a section although its own stream has none."""
        assert isinstance(self.destination, Inventory)
        complete = self.destination.verdict is None or self.destination.verdict.ok
        tail = f"/{event.idstr}"  # a name of old, before devices had paths (compat in SaveStateEntry)
        old = "/" not in event.idstr and any(one.endswith(tail) for one, _ in self.destination.sections)
        return not complete or event.idstr in OPTIONAL or old

    def _device(self, event: DeviceSection) -> Iterator[Finding]:
        if not event.described or event.undescribed:
            self.undescribed.append(_called(event))
        if not event.described:
            return
        if isinstance(self.destination, Schema):
            if states := self.destination.find(event.idstr):
                # classes share a name: the one that fits best
                yield from min((list(self._schema(event, state)) for state in states), key=len)
            return
        local = self.destination.sections.get((event.idstr, event.instance_id))
        if not isinstance(local, DeviceSection) or not local.described:
            return
        yield from self._pci(event, local)
        if (found := misfit(event.fields, local.fields)) is not None:
            yield self._misfit(event, found)
        known = {one.name for one in subsections(local.fields)}
        for one in subsections(event.fields):
            if one.name not in known:
                known.add(one.name)
                yield self._at(event, "check-subsection-maybe", one, subsection=name(one.name))

    def _schema(self, event: DeviceSection, state: State) -> Iterator[Finding]:
        if (found := schema_misfit(event.fields, state, event.version_id, self.renamed)) is not None:
            yield self._misfit(event, found)
        known = state.known_subsections()
        for one in subsections(event.fields):
            if one.name not in known:
                known.add(one.name)
                yield self._at(event, "check-subsection-unknown", one, subsection=name(one.name))

    def _misfit(self, event: DeviceSection, found: Misfit) -> Finding:
        footer = section_footer(event)
        return finding(
            "check-footer" if found.certain else "check-footer-maybe",
            event,
            section=_called(event),
            field=name(found.path),
            offset=event.offset + event.size - len(footer),
            size=len(footer),
            evidence=footer,
            name=name(event.idstr),
            path=name(found.path),
            words=found.words,
        )

    def _at(self, event: DeviceSection, code: str, one: Field, **details: object) -> Finding:
        header = bytes([0x05, len(one.name)]) + (plain(one.name) or b"")
        return finding(
            code,
            event,
            section=_called(event),
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
        ours, theirs = _config(event.fields), _config(local.fields)
        if ours is None or theirs is None:
            return
        self.bars += 1
        place, stream, rest = ours
        if (found := difference(stream, theirs[1])) is not None:
            yield finding(
                "check-pci" if found.certain else "check-pci-maybe",
                event,
                section=_called(event),
                field=place.name,
                offset=place.offset + place.size - len(place.raw) + rest + found.at,
                size=1,
                evidence=stream[found.at : found.at + 1],
                i=f"{found.at:x}",
                read=f"{found.read:x}",
                device=f"{found.device:x}",
                # pci_init_cmask compares all bits of all that is listed but status; the others are writable
                cmask="10" if found.at == 6 else "ff",
                wmask=f"{~found.mask & 0xFF:x}" if found.at > 0x3F else "0",
                register=found.register,
            )
        if place.type == "virtio":
            self.opaque.append(_called(event))
            yield from self._features(event, place, theirs[0], rest, len(stream))

    def _features(
        self, event: DeviceSection, ours: Field, theirs: Field, config: int, length: int
    ) -> Iterator[Finding]:
        here, there = (_acked(one.raw, config, length) for one in (ours, theirs))
        if here is None or there is None or not here[1]:
            return
        if not there[1]:  # at reset, most likely: no guest has chosen any
            self.features.append(f"{_called(event)} {here[1]:#x}")
            return
        if not (bits := here[1] & ~there[1]):
            return
        yield finding(
            "check-virtio-features",
            event,
            section=_called(event),
            field="virtio.guest_features",
            offset=ours.offset + here[0],
            size=4,
            evidence=ours.raw[here[0] : here[0] + 4],
            received=f"{here[1]:#x}",
            local=f"{there[1]:#x}",
            bits=", ".join(str(bit) for bit in range(32) if bits >> bit & 1),
        )


def _config(fields: tuple[Field, ...]) -> tuple[Field, bytes, int] | None:
    """The field with PCI configuration space, the space, and where in the field it begins."""
    waiting = list(reversed(fields))
    while waiting:
        one = waiting.pop()
        if one.type == "pci config":
            return one, one.raw, 0
        if one.type == "virtio" and len(one.raw) >= 4 + SIZE:
            version = int.from_bytes(
                one.raw[:4], "big"
            )  # VMSTATE_INT32_POSITIVE_LE is big-endian on the wire
            if version in (1, 2):
                size = EXPRESS_SIZE if is_express(one.raw[4 : 4 + SIZE]) else SIZE
                return one, one.raw[4 : 4 + size], 4
            return None
        waiting += reversed(one.children)
    return None


def _acked(raw: bytes, config: int, length: int) -> tuple[int, int] | None:
    """Where the guest's features stand in what virtio_save writes (hw/virtio/virtio.c), and the lower 32."""
    vectors = msix_vectors(raw[config : config + length])
    at = config + length + 16  # behind the state of the interrupt pins
    if vectors:
        at += 16 * vectors + (vectors + 7) // 8 + 2
    at += 4  # status, isr, queue_sel
    return (at, int.from_bytes(raw[at : at + 4], "big")) if len(raw) >= at + 4 else None


def _called(event: Section) -> str:
    return f"{name(event.idstr)}/{event.instance_id}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + _more(names)


def _more(names: list[str] | list[tuple[str, int]]) -> str:
    return f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
