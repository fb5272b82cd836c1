"""What has a meaning: one registered function for each field type or device."""

from collections.abc import Callable
from typing import Final, NamedTuple

from migsniff.core.events import Field
from migsniff.core.registry import Registry


class Place(NamedTuple):
    """Where a field stands: the machine type, the last part of the section's name, the field's path.

    `clock` is the guest's virtual clock in nanoseconds, if the stream has told it; `instance` the section's.
    """

    machine: str
    device: str
    path: str
    clock: int | None = None
    instance: int = 0


TypeMeaning = Callable[[Field, Place], Field]
"""A field as it came -> the same with `children`, `value` or `meaning`; unchanged if its bytes do not fit."""
DeviceMeaning = Callable[[tuple[Field, ...], Place], tuple[Field, ...]]
"""All fields of a device -> the same with values, meanings and children filled in."""

TYPES: Final[Registry[str, TypeMeaning]] = Registry("field type with a meaning")
"""By the type in the description: "pci config"."""
DEVICES: Final[Registry[str, DeviceMeaning]] = Registry("device with a meaning")
"""By the last part of the section's name: "cpu"."""
