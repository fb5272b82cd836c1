"""All that QEMU refuses in code of its own and that both streams show; and what only a command line tells."""

import re
from collections.abc import Iterator
from typing import Final

from migsniff.compare.armregisters import register_refusals
from migsniff.compare.images import Images
from migsniff.compare.inventory import Inventory
from migsniff.compare.layout import Misfit
from migsniff.compare.refusal import Refusal, named, refusal
from migsniff.compare.virtiostate import port_refusals, queue_refusals
from migsniff.core.events import DeviceSection, Field

SLOTS: Final = re.compile(r"(.*\.)?acpi_memory_hotplug\.devs")
"""An array of -m slots=N elements (hw/acpi/memory_hotplug.c): no stream tells how many it has."""
CODEC, STREAMS, BUFFER = "hda-audio", "st", "hda-audio-stream/buffer"


def refusals(
    event: DeviceSection, local: DeviceSection, destination: Inventory, here: Images, there: Images
) -> Iterator[Refusal]:
    """What the destination has against a section whose fields have the right places."""
    kind = event.idstr.rpartition("/")[2]
    yield from register_refusals(event, local)
    yield from queue_refusals(kind, destination, here, there)
    if kind == "virtio-console":
        yield from port_refusals(here, there)
    elif kind == CODEC:
        yield from _codec(event, local)


def settled(found: Misfit) -> Misfit:
    """A misfit of whose array it is known that its length is not told."""
    return found._replace(certain=True) if SLOTS.fullmatch(found.path) else found


def _codec(event: DeviceSection, local: DeviceSection) -> Iterator[Refusal]:
    """A buffer of a stream that the destination's codec has not: QEMU has none to read it into."""
    its = [_buffer(one) for one in named(local.fields, STREAMS)]
    if not any(its):  # it has no timer, and sends none
        return
    for index, stream in enumerate(named(event.fields, STREAMS)):
        if (buffer := _buffer(stream)) is not None and index < len(its) and its[index] is None:
            yield refusal("check-codec", buffer, number=index)
            return


def _buffer(stream: Field) -> Field | None:
    return next(named(stream.children, BUFFER), None)
