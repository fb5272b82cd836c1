"""Interrupt controllers of PCs: local APIC, I/O APIC, and the two i8259."""

from collections.abc import Callable
from typing import Final

from migsniff.core.events import Field
from migsniff.values.clocks import moment
from migsniff.values.fields import FieldMeaning, array, bits, elements, says, told
from migsniff.values.meaning import DEVICES, Place
from migsniff.values.tables import x86
from migsniff.values.words import bits_text, ranges, shifted_down

PAGE: Final = 0xFFF
PINS: Final = 8  # of one i8259
REDIRECTIONS: Final = 240  # entries that an I/O APIC may have


# ---------------------------------------------------------------- local APIC


@DEVICES("apic", source="hw/intc/apic_common.c")
def apic(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The local APIC of a CPU."""
    when = says(moment(place.clock))
    vectors = array(vector_list)
    return told(
        fields,
        {
            "apicbase": says(apic_base),
            "spurious_vec": says(spurious),
            "isr": vectors,
            "tmr": vectors,
            "irr": vectors,
            "lvt": elements(x86.LOCAL_VECTORS, {"LVTT": timer_vector} | dict.fromkeys(_OTHERS, local_vector)),
            "esr": says(bits(x86.APIC_ERRORS)),
            "icr": elements({0: "ICR", 1: "ICR2"}, {"ICR": command}),
            "divide_conf": says(divider),
            "initial_count_load_time": when,
            "next_time": when,
            "timer_expiry": when,
        },
    )


_OTHERS: Final = [name for name in x86.LOCAL_VECTORS.values() if name != "LVTT"]


def apic_base(value: int) -> str:
    """Its address, and its modes."""
    return f"at {value & ~PAGE:#x}, {bits_text(value & PAGE, x86.APIC_BASE)}".removesuffix(", ")


def spurious(value: int) -> str:
    """The register that also turns it on."""
    state = "enabled" if value & x86.APIC_SPIV_APIC_ENABLED else "disabled"
    return f"APIC {state}, vector {value & x86.APIC_VECTOR_MASK}"


def vector_list(words: tuple[int, ...]) -> str:
    """256 bits in words of 32: the vectors that are set."""
    found = ranges(sum((word & 0xFFFF_FFFF) << 32 * index for index, word in enumerate(words[:PINS])))
    return f"vectors {found}" if found else "none"


def delivery(value: int) -> str:
    """How an interrupt is delivered, and its vector where it has one."""
    mode = x86.DELIVERY[shifted_down(value, x86.APIC_MODE_MASK)]
    has_vector = mode in ("FIXED", "LOWEST", "STARTUP")
    return f"{mode} vector {value & x86.APIC_VECTOR_MASK}" if has_vector else mode


def local_vector(value: int) -> str:
    """An entry of the local vector table."""
    words = [delivery(value), "level" if value & x86.APIC_LVT_LEVEL_TRIGGER else "edge"]
    flags = {
        x86.APIC_INPUT_POLARITY: "active low",
        x86.APIC_SEND_PENDING: "pending",
        x86.APIC_LVT_REMOTE_IRR: "remote IRR",
        x86.APIC_LVT_MASKED: "masked",
    }
    return ", ".join([*words, *(name for bit, name in flags.items() if value & bit)])


def timer_vector(value: int) -> str:
    """The entry of its timer."""
    if value & x86.APIC_LVT_TIMER_TSCDEADLINE:
        mode = "TSC deadline"
    else:
        mode = "periodic" if value & x86.APIC_LVT_TIMER_PERIODIC else "one-shot"
    masked = ", masked" if value & x86.APIC_LVT_MASKED else ""
    return f"{delivery(value)}, {mode}{masked}"


def command(value: int) -> str:
    """The last interrupt that it sent to other CPUs."""
    targets = {
        x86.APIC_DEST_SELF: "to itself",
        x86.APIC_DEST_ALLINC: "to all",
        x86.APIC_DEST_ALLBUT: "to all others",
    }
    target = targets.get(value & x86.APIC_DEST_ALLBUT, "")
    mode = "logical" if value & x86.APIC_DEST_LOGICAL else "physical"
    return ", ".join(filter(None, (delivery(value), mode, target)))


def divider(value: int) -> str:
    """How much slower than the bus the timer counts."""
    return f"divided by {x86.TIMER_DIVIDE[value & 0xB]}"


# ---------------------------------------------------------------- I/O APIC


@DEVICES("ioapic", source="hw/intc/ioapic_common.c")
def ioapic(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """The I/O APIC: where each of its pins leads."""
    pins = {index: f"pin{index}" for index in range(REDIRECTIONS)}
    return told(fields, {"irr": says(pin_list), "ioredtbl": elements(pins, redirection)})


def pin_list(value: int) -> str:
    """Bits as pins."""
    found = ranges(value) if value > 0 else ""
    return f"pins {found}" if found else "none"


def redirection(value: int) -> str:
    """What an interrupt at a pin becomes."""
    masks = x86.REDIRECTION
    destination = f"APIC {shifted_down(value, masks['destid_0_7'])}"
    if value & masks["dest_mode_logical"]:
        destination = f"logical {shifted_down(value, masks['destid_0_7']):#x}"
    words = [
        f"{delivery(value)} to {destination}",
        "level" if value & masks["is_level"] else "edge",
        "active low" if value & masks["active_low"] else "",
        "remote IRR" if value & masks["irr"] else "",
        "pending" if value & masks["delivery_status"] else "",
        "masked" if value & masks["masked"] else "",
    ]
    return ", ".join(filter(None, words))


# ---------------------------------------------------------------- i8259


@DEVICES("i8259", source="hw/intc/i8259_common.c")
def i8259(fields: tuple[Field, ...], place: Place) -> tuple[Field, ...]:
    """One of the two: the first has interrupts 0 to 7, the second, behind its pin 2, 8 to 15."""
    lines = says(irq_list(PINS * place.instance if place.instance < 2 else 0))
    meanings: dict[str, FieldMeaning] = dict.fromkeys(("last_irr", "irr", "imr", "isr", "elcr"), lines)
    meanings["irq_base"] = says(lambda value: f"vectors {value & ~7}-{value | 7}")
    return told(fields, meanings)


def irq_list(first: int) -> Callable[[int], str]:
    """Bits as interrupt numbers from `first` on."""

    def words(value: int) -> str:
        found = ranges((value & 0xFF) << first)
        return f"IRQ {found}" if found else ""

    return words
