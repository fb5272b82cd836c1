"""Registers of the guest's CPUs ("cpu"): one name for all architectures, told by what they alone have."""

from collections.abc import Callable
from typing import Final

from migsniff.core.events import Field
from migsniff.values import cpuarm, cpupowerpc, cpuriscv, cpus390x, cpux86
from migsniff.values.meaning import DEVICES, Place

ARCHITECTURES: Final[dict[str, Callable[[tuple[Field, ...]], tuple[Field, ...]]]] = {
    "env.eip": cpux86.registers,
    "env.xregs": cpuarm.registers,
    "cpreg_vmstate_array_len": cpuarm.registers,
    "env.misa_ext": cpuriscv.registers,
    "env.nip": cpupowerpc.registers,
    "env.psw.mask": cpus390x.registers,
}
"""By a field that only this architecture has."""


@DEVICES("cpu", source="target/*/machine.c")
def cpu(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The registers of one CPU."""
    for field in fields:
        if (registers := ARCHITECTURES.get(field.name)) is not None:
            return registers(fields)
    return fields
