"""Registers of the guest's CPUs ("cpu"): one name for all architectures, told by what they alone have."""

from typing import Final

from migsniff.core.events import Field
from migsniff.values import cpux86
from migsniff.values.fields import Table, told
from migsniff.values.meaning import DEVICES, Place

ARCHITECTURES: Final[dict[str, Table]] = {
    "env.eip": cpux86.REGISTERS,
}
"""By a field that only this architecture has."""


@DEVICES("cpu", source="target/*/machine.c")
def cpu(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The registers of one CPU."""
    for field in fields:
        if (registers := ARCHITECTURES.get(field.name)) is not None:
            return told(fields, registers)
    return fields
