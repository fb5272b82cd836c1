"""What differs between any two migrations and says nothing: sets of names, and the user's own patterns."""

import fnmatch
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from migsniff.core.events import Field

MAX_PATTERN: Final = 1000


class Entry(NamedTuple):
    """Values that are ignored: a pattern over their path, why, and where in QEMU that comes from."""

    pattern: str
    reason: str
    source: str


SETS: Final[dict[str, tuple[Entry, ...]]] = {
    "clocks": (
        Entry("timer/0.cpu_ticks_offset", "the guest's tick counter", "system/cpu-timers.c"),
        Entry("timer/0.cpu_clock_offset", "the guest's virtual clock", "system/cpu-timers.c"),
        Entry("cpu/*.env.tsc", "the time stamp counter", "target/i386/machine.c"),
        Entry("kvmclock/0.clock", "KVM's paravirtual clock", "hw/i386/kvm/clock.c"),
        *(
            Entry(f"mc146818rtc/*.cmos_data[[]{index}]", reason, "hw/rtc/mc146818rtc.c")
            for index, reason in (
                (0, "seconds"),
                (2, "minutes"),
                (4, "hours"),
                (6, "day of the week"),
                (7, "day of the month"),
                (8, "month"),
                (9, "year"),
                (10, "register A: an update of the clock is going on"),
                (12, "register C: interrupts of the clock that nobody has read yet"),
                (50, "century"),
            )
        ),
        Entry("mc146818rtc/*.base_rtc", "the second at the last update", "hw/rtc/mc146818rtc.c"),
        Entry("mc146818rtc/*.last_update", "when that was", "hw/rtc/mc146818rtc.c"),
        Entry("mc146818rtc/*.next_alarm_time", "when the alarm is due", "hw/rtc/mc146818rtc.c"),
        Entry("mc146818rtc/*.next_periodic_time", "when the next tick is due", "hw/rtc/mc146818rtc.c"),
        Entry("pl031/*.tick_offset_vmstate", "the time of day of Arm boards", "hw/rtc/pl031.c"),
        Entry("goldfish_rtc/*.tick_offset", "the time of day of RISC-V boards", "hw/rtc/goldfish_rtc.c"),
        Entry("spapr/rtc/*.ns_offset", "the time of day of a pseries", "hw/ppc/spapr_rtc.c"),
        Entry("spapr/*.tb.guest_timebase", "the time base of PowerPC", "hw/ppc/ppc.c"),
        Entry("spapr/*.tb.time_of_the_day_ns", "the host's time that belongs to it", "hw/ppc/ppc.c"),
        Entry("todclock/*.data", "the time-of-day clock of s390x", "hw/s390x/tod.c"),
        Entry("i8254/*.count_load_time", "when the counter was loaded", "hw/timer/i8254_common.c"),
        Entry("i8254/*.next_transition_time", "when its output changes next", "hw/timer/i8254_common.c"),
        Entry("hpet/*.hpet_counter", "the main counter", "hw/timer/hpet.c"),
        Entry("apic/*.initial_count_load_time", "when the timer was loaded", "hw/intc/apic_common.c"),
        Entry("apic/*.next_time", "when it is due", "hw/intc/apic_common.c"),
        Entry("apic/*.timer_expiry", "when it is due", "hw/intc/apic_common.c"),
        Entry("*/xhci/*.mfindex_start", "when the frame counter was started", "hw/usb/hcd-xhci.c"),
    ),
    "registers": (
        Entry("cpu/*.env.regs", "general registers: x86, Arm, s390x", "target/*/machine.c"),
        Entry("cpu/*.env.eip", "the instruction pointer", "target/i386/machine.c"),
        Entry("cpu/*.env.eflags", "the flags", "target/i386/machine.c"),
        Entry("cpu/*.env.msr_smi_count", "how often the firmware's SMM was entered", "target/i386/machine.c"),
        Entry("cpu/*.env.gpr", "general registers: PowerPC, RISC-V", "target/*/machine.c"),
        Entry("cpu/*.env.nip", "the instruction pointer", "target/ppc/machine.c"),
        Entry("cpu/*.env.crf", "condition registers", "target/ppc/machine.c"),
        Entry("cpu/*.env.pc", "the program counter", "target/riscv/machine.c"),
        Entry("cpu/*.env.xregs", "general registers", "target/arm/machine.c"),
        Entry("cpu/*.env.psw.addr", "the instruction address", "target/s390x/machine.c"),
    ),
}
"""By the name that --ignore takes. `clocks` also has each armed timer (fields of type "timer").

Most of them differed in real migrations of guests that idle in their firmware, 5.2 to 11.1. Not seen to:
tsc and kvmclock, which need KVM; hpet, apic, xregs and psw.addr, which no firmware at rest changes.
"""


def _any_of(patterns: Sequence[str]) -> "re.Pattern[str] | None":
    """One expression for all; fnmatch makes such as do not take long, whatever the pattern."""
    return re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else None


class Ignore:
    """What --ignore asked for.

    A set takes values out, never structure. A pattern of the user's (`*` and `?`, all else is itself) takes
    out whatever stands at a path that it matches as a whole, or below it.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        sets = [entry.pattern for pattern in patterns for entry in SETS.get(pattern, ())]
        own = [pattern.replace("[", "[[]") for pattern in patterns if pattern not in SETS]
        self._timers = "clocks" in patterns
        self._sets = _any_of(sets)
        self._own = _any_of(own)

    def all_of(self, path: str) -> bool:
        """Whether whatever is at this path, and below, is of no interest."""
        return self._own is not None and self._own.match(path) is not None

    def value(self, path: str) -> bool:
        """Whether the values at this path, and below, are of no interest."""
        return self._sets is not None and self._sets.match(path) is not None

    def timers(self, left: Field, right: Field) -> bool:
        """Whether this is a timer armed on both sides, and these are of no interest."""
        return self._timers and left.type == right.type == "timer" and None not in (left.value, right.value)


CLOCKS: Final = Ignore(["clocks"])
"""To tell those who did not ask for it how much there is of it."""
