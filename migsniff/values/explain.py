"""Fields with their meaning: the one function that everybody calls who shows or compares device state."""

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.values.meaning import DEVICES, TYPES, Place


def explain(section: DeviceSection, machine: str = "") -> DeviceSection:
    """The section with what its fields mean filled in: `children` of images, `value`, `meaning`.

    Never raises for what the bytes say; offsets and sizes stay those of the wire.
    """
    if not section.fields:
        return section
    place = Place(machine, section.idstr.rpartition("/")[2], "")
    fields = section.fields
    if (device := DEVICES.get(place.device)) is not None:
        fields = device(fields, place)
    return replace(section, fields=tuple(_explained(field, place) for field in fields))


def _explained(field: Field, place: Place) -> Field:
    here = place._replace(path=f"{place.path}.{field.name}" if place.path else field.name)
    if (meaning := TYPES.get(field.type)) is not None:
        return meaning(field, here)
    if not field.children:
        return field
    return replace(field, children=tuple(_explained(child, here) for child in field.children))
