"""Findings of what a device's own code reads: PCI configuration space, virtio's state, what it refuses."""

from collections.abc import Iterator

from migsniff.compare.images import Images
from migsniff.compare.inventory import Inventory
from migsniff.compare.omitted import Omitted
from migsniff.compare.pciconfig import difference
from migsniff.compare.refusals import refusals
from migsniff.compare.virtiostate import ports_size
from migsniff.core.events import DeviceSection, Finding
from migsniff.expert.codes import finding
from migsniff.expert.framing import called
from migsniff.show.words import name
from migsniff.values.tables.pci import PCI_STATUS
from migsniff.values.virtiofeatures import feature_names


def config_findings(
    event: DeviceSection, here: Images, there: Images, destination: Inventory, omitted: Omitted
) -> Iterator[Finding]:
    """The first byte of PCI configuration space that differs and may not."""
    ours, theirs = here.config, there.config
    if ours is None or theirs is None:
        return
    omitted.bars = True
    ports = 0 if there.virtio is None else ports_size(theirs.raw, there.virtio.config_len)
    found = difference(ours.raw, theirs.raw, ports=ports, at_reset=destination.at_reset)
    if found is not None:
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
            wmask=f"{found.wmask:x}",
            register=found.register,
        )


def refused(
    event: DeviceSection, local: DeviceSection, destination: Inventory, here: Images, there: Images
) -> Iterator[Finding]:
    """What code of the device's own refuses."""
    for one in refusals(event, local, destination, here, there):
        yield finding(
            one.code,
            event,
            section=called(event),
            field=name(one.field),
            offset=one.offset,
            size=one.size,
            evidence=one.evidence,
            name=name(event.idstr),
            instance=event.instance_id,
            **one.details,
        )


def feature_findings(
    event: DeviceSection, here: Images, there: Images, omitted: Omitted
) -> Iterator[Finding]:
    """The features that the guest uses, against those that the destination's own guest does."""
    if not here.opaque:
        return
    section = called(event)
    omitted.opaque[name(section)] = None
    mine, its = here.virtio, there.virtio
    if mine is None or its is None or not mine.features:
        return
    kind = event.idstr.rpartition("/")[2]
    if not its.features:  # at reset, most likely: no guest has chosen any
        omitted.features[f"{name(section)} ({' '.join(feature_names(kind, mine.features))})"] = None
    elif bits := mine.features & ~its.features:
        size = 4 if mine.features_offset < mine.status_offset + 8 else 8
        yield finding(
            "check-virtio-features",
            event,
            section=section,
            field="virtio.guest_features",
            offset=mine.features_offset,
            size=size,
            evidence=mine.features.to_bytes(16, "big")[-size:],
            received=f"{mine.features:#x}",
            local=f"{its.features:#x}",
            names=" ".join(feature_names(kind, bits)),
        )
