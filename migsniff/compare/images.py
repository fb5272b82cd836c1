"""What stands in the images of a section: PCI configuration space, and what all virtio devices have."""

from typing import NamedTuple

from migsniff.core.events import DeviceSection, Field
from migsniff.core.wire import IMAGE
from migsniff.values.virtio import VirtioState, virtio_image
from migsniff.values.virtiotransports import cut_config


class Images(NamedTuple):
    """What was found of either. `opaque`: virtio's own state stands there, readable or not: its `fields`."""

    config: Field | None
    virtio: VirtioState | None
    opaque: bool
    fields: tuple[Field, ...] = ()


def images_of(section: DeviceSection, machine: str) -> Images:
    """The images of a device whose fields are decoded; of one that is cut off, what has come."""
    if section.cut and section.fields and section.fields[-1].name == IMAGE:
        return Images(cut_config(section.fields[-1].raw, section.fields[-1].offset), None, False)
    opaque = any(field.type == IMAGE for field in section.fields)
    read = virtio_image(section, machine) if opaque else None
    fields, state = (section.fields, None) if read is None else read
    return Images(_config(fields), state, opaque, () if read is None else fields)


def _config(fields: tuple[Field, ...]) -> Field | None:
    """The first field with PCI configuration space."""
    waiting = list(reversed(fields))
    while waiting:
        one = waiting.pop()
        if one.type == "pci config" and one.raw:
            return one
        waiting += reversed(one.children)
    return None
