"""Virtqueues that no destination takes, as a device's own state tells (virtio_load of hw/virtio/virtio.c)."""

from collections.abc import Iterator
from typing import ClassVar, Final

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Event, Field, Finding
from migsniff.expert.codes import ASSUMED, finding
from migsniff.expert.framing import MAX_TOLD, called
from migsniff.expert.rules import Rule, rule
from migsniff.values.virtio import virtio_state

MAX_IMAGE: Final = 1 << 18
"""Bytes of a state that are looked through while others wait: a device with 1024 queues has some 70 kB."""

MAX_NAMES: Final = 64
"""Of subsections, which are looked for: a device has at most ten, each once."""


@rule("virtqueue-no-address")
class Unplaced(Rule):
    """A queue that is nowhere and was used: the first of a device, which is where loading ends."""

    watches: ClassVar = (DeviceSection,)

    def __init__(self) -> None:
        self._told: set[str] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one section into account."""
        assert isinstance(event, DeviceSection)
        section = called(event)
        if not isinstance(event.image, Field) or _too_large(event.image.raw):
            return
        if section in self._told or len(self._told) >= MAX_TOLD:
            return
        state = virtio_state(event)
        for queue in state.queues if state is not None else ():
            index = event.image.raw[queue.index_offset - event.image.offset :][:2]
            if not queue.desc and any(index):
                self._told.add(section)
                found = finding(
                    "virtqueue-no-address",
                    event,
                    section=section,
                    field=index_field(queue.index),
                    offset=queue.index_offset,
                    size=len(index),
                    evidence=index,
                    index=queue.index,
                    host=int.from_bytes(index),
                )
                yield replace(found, message=found.message + ASSUMED) if event.assumed else found
                return


def _too_large(raw: bytes) -> bool:
    return len(raw) > MAX_IMAGE or raw.count(b"virtio/") > MAX_NAMES


def index_field(queue: int) -> str:
    """Where last_avail_idx of a queue stands, by its path."""
    return f"virtio.queue[{queue}].last_avail_idx"
