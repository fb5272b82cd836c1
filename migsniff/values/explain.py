"""Fields with their meaning: the one function that everybody calls who shows or compares device state."""

from msgspec.structs import replace

from migsniff.core.events import (
    Configuration,
    DeviceSection,
    Event,
    Field,
    Verdict,
)
from migsniff.values import cpu, interrupts, msix, pci, pctimers, virtio  # noqa: F401 - each registers what it knows
from migsniff.values.clocks import virtual_clock
from migsniff.values.meaning import DEVICES, TYPES, Place


def explain(section: DeviceSection, machine: str = "", clock: int | None = None) -> DeviceSection:
    """The section with what its fields mean filled in: `children` of images and arrays, `value`, `meaning`.

    `clock` is what virtual_clock() found in section timer of the same stream.

    Never raises for what the bytes say; offsets and sizes stay those of the wire. What has no meaning is not
    copied: a section without any comes back as it is.
    """
    if not section.fields:
        return section
    place = Place(machine, section.idstr.rpartition("/")[2], "", clock, section.instance_id)
    fields = section.fields
    if (device := DEVICES.get(place.device)) is not None:
        fields = device(fields, place)
    fields = _explained(fields, place, "")
    return section if fields is section.fields else replace(section, fields=fields)


class Explainer:
    """Explains the device sections among the events of migrations, each with its machine type and clock."""

    def __init__(self) -> None:
        self._machines: dict[str, str] = {}
        self._clocks: dict[str, int] = {}

    def explained(self, migration: str, event: Event) -> Event:
        """The event itself, or a device section with its meaning."""
        self.learn(migration, event)
        if isinstance(event, DeviceSection):
            return explain(event, self._machines.get(migration, ""), self._clocks.get(migration))
        return event

    def learn(self, migration: str, event: Event) -> None:
        """Take note of what the meaning of later events depends on."""
        if isinstance(event, DeviceSection):
            if (clock := virtual_clock(event)) is not None:
                self._clocks[migration] = clock
        elif isinstance(event, Configuration):
            self._machines[migration] = event.machine
        elif isinstance(event, Verdict):
            self._machines.pop(migration, None)
            self._clocks.pop(migration, None)


def _explained(fields: tuple[Field, ...], place: Place, prefix: str) -> tuple[Field, ...]:
    """The same tuple if nothing in it has a meaning: there may be millions of fields."""
    changed: list[Field] | None = None
    for index, field in enumerate(fields):
        if (meaning := TYPES.get(field.type)) is not None:
            explained = meaning(field, place._replace(path=prefix + field.name))
        elif field.children:
            children = _explained(field.children, place, f"{prefix}{field.name}.")
            explained = field if children is field.children else replace(field, children=children)
        else:
            continue
        if explained is not field:
            if changed is None:
                changed = list(fields)
            changed[index] = explained
    return fields if changed is None else tuple(changed)
