"""The system registers of an Arm CPU as cpu_post_load compares them (target/arm/machine.c).

Both streams hold the numbers of all that there are, in ascending order. QEMU up to 10.x has room for as many
as the destination has, and goes through its own: what comes behind the last of those is not looked at. It is
told from one that takes any number, and looks at all, by the type of the arrays' length in its description.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from migsniff.compare.omitted import first_of
from migsniff.compare.refusal import Refusal, named, refusal
from migsniff.core.events import DeviceSection, Field
from migsniff.values.cpuarm import NOT_SECURE, register_name
from migsniff.values.tables import arm

LENGTH: Final = "cpreg_vmstate_array_len"
INDICES, VALUES = "cpreg_vmstate_indexes", "cpreg_vmstate_values"
LIMITED: Final = "int32 le"
"""The type of a length that may not exceed the destination's."""
WIDTH: Final = 8


def _system(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    low = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    return arm.KVM_REG_ARM64 | arm.KVM_REG_SIZE_U64 | arm.KVM_REG_ARM64_SYSREG | low


FEATURE_BITMAP: Final = 0x16 << arm.KVM_REG_ARM_COPROC_SHIFT  # KVM_REG_ARM_FW_FEAT_BMAP, asm/kvm.h
TOLERATED: Final = {
    *(_system(3, 0, 2, 0, 3), _system(3, 0, 10, 2, 2), _system(3, 0, 10, 2, 3)),
    arm.KVM_REG_ARM64 | arm.KVM_REG_SIZE_U64 | FEATURE_BITMAP | 3,
}
"""What QEMU 11.1 does without under KVM (target/arm): TCR2_EL1, PIRE0_EL1, PIR_EL1, VENDOR_HYP_BMAP_2."""
AARCH64, COPROCESSOR_64 = 1 << 28, 1 << 15  # of QEMU's own numbers (target/arm/cpregs.h)


class Registers(NamedTuple):
    """The system registers of one CPU by their numbers; `limited`: it refuses more than it has."""

    length: Field
    indices: Field
    values: Field
    numbers: list[int]
    contents: dict[int, int]
    limited: bool

    @property
    def emulated(self) -> bool:
        """Whether these are TCG's: no kernel has a bit for the bank of a register."""
        mask, bank = arm.KVM_REG_ARCH_MASK | NOT_SECURE, arm.KVM_REG_ARM | NOT_SECURE
        return any(one & mask == bank for one in self.numbers)


def registers_of(section: DeviceSection) -> Registers | None:
    """The system registers in a section; None if it is no Arm CPU's."""
    found = [next(named(section.fields, one), None) for one in (LENGTH, INDICES, VALUES)]
    length, indices, values = found
    if length is None or indices is None or values is None:
        return None
    if not isinstance(indices.value, tuple) or not isinstance(values.value, tuple):
        return None
    numbers = [one for one in indices.value if isinstance(one, int)]
    contents = [one for one in values.value if isinstance(one, int)]
    if len(numbers) != len(contents):
        return None
    return Registers(
        length, indices, values, numbers, dict(zip(numbers, contents, strict=True)), length.type == LIMITED
    )


def without_registers(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The fields whose places are compared: how long those lists are the stream tells, or QEMU checks."""
    return tuple(field for field in fields if field.name not in (INDICES, VALUES))


def register_refusals(stream: DeviceSection, device: DeviceSection) -> Iterator[Refusal]:
    """What the destination has against the system registers that come."""
    here, there = registers_of(stream), registers_of(device)
    if here is None or there is None:
        return
    if there.limited and len(here.numbers) > len(there.numbers):
        count = len(there.numbers)
        yield refusal("check-register-count", here.length, count=len(here.numbers), local=count)
    yield from _unknown(here, there)
    yield from _identity(here, there)


def _unknown(here: Registers, there: Registers) -> Iterator[Refusal]:
    last = max(there.numbers, default=0)
    unknown = [
        (at, number)
        for at, number in enumerate(here.numbers)
        if number not in there.contents and not (there.limited and number > last)
    ]
    if not unknown:
        return
    at, number = unknown[0]
    names = first_of((register_name(one) for _, one in unknown), len(unknown))
    words = f"the destination has no {names}"
    code = "check-register-unknown" if there.limited else "check-register-stream"
    if not there.limited and unknown[-1][1] in TOLERATED:  # of all that it says, the last decides
        code = "check-register-maybe"
    yield refusal(code, here.indices, index=at, size=WIDTH, words=words, number=_own_number(number))


def _own_number(index: int) -> int:
    """As kvm_to_cpreg_id makes it of KVM's number: of 32-bit registers it says that they are not secure."""
    low = index & 0xFFFF_FFFF
    if index & arm.KVM_REG_ARCH_MASK == arm.KVM_REG_ARM64:
        return low | AARCH64
    low |= NOT_SECURE
    return low | COPROCESSOR_64 if index & arm.KVM_REG_SIZE_MASK == arm.KVM_REG_SIZE_U64 else low


def _identity(here: Registers, there: Registers) -> Iterator[Refusal]:
    """TCG writes what came, and reads it again: its ID registers are constants. A kernel may take them."""
    changed = [
        (at, number)
        for at, number in enumerate(here.numbers)
        if _identifies(number) and here.contents[number] != there.contents.get(number, here.contents[number])
    ]
    if not changed:
        return
    at, number = changed[0]
    words = f"{here.contents[number]:#x} in the stream, {there.contents[number]:#x} at the destination"
    words = f"{register_name(number)} is {words}"
    if others := changed[1:]:
        words += f", and so differ {first_of((register_name(one) for _, one in others), len(others))}"
    code = "check-register-value" if there.emulated else "check-register-maybe"
    yield refusal(code, here.values, index=at, size=WIDTH, words=words)


def _identifies(number: int) -> bool:
    """Whether a register tells what the CPU can do: op0 3 (or cp15), op1 0, CRn 0, CRm 1 to 7.

    The architecture lets no guest write them (Arm ARM, D24.2; the CPUID scheme of Armv7).
    """
    low = number & 0xFFFF
    if number & arm.KVM_REG_ARCH_MASK == arm.KVM_REG_ARM64:
        system = number & arm.KVM_REG_ARM_COPROC_MASK == arm.KVM_REG_ARM64_SYSREG
        return system and low >> 7 == 3 << 7 and low >> 3 & 0xF in range(1, 8)
    coprocessor = (number & arm.KVM_REG_ARM_COPROC_MASK) >> arm.KVM_REG_ARM_COPROC_SHIFT
    wide = number & arm.KVM_REG_SIZE_MASK == arm.KVM_REG_SIZE_U64
    return coprocessor == 15 and not wide and low >> 7 in range(1, 8) and not low >> 3 & 0xF
