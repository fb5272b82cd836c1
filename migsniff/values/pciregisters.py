"""Registers of PCI configuration space: names and places, as PCI's specifications call them.

The numbers are those of the tables; `at` of a capability's register is the distance from where it begins.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from migsniff.values.image import Part, parts_text
from migsniff.values.tables import pci


class Register(msgspec.Struct, frozen=True):
    """`size` bytes, little-endian. `words` of the whole value; else its parts say what it means."""

    name: str
    at: int
    size: int
    parts: tuple[Part, ...] = ()
    words: Callable[[int], str] | None = None
    index: int | None = None

    def text(self, value: int) -> str:
        """What the value means."""
        return self.words(value) if self.words else parts_text(self.parts, value)

    @property
    def title(self) -> str:
        """In words: "BAR 0"."""
        title = self.name.replace("_", " ")
        if self.index is not None:
            title = f"{title.upper() if title == 'bar' else title} {self.index}"
        return title


def bits(**masks: int) -> tuple[Part, ...]:
    """Parts without words of their own, by their names."""
    return tuple(Part(name.replace("_", " "), mask) for name, mask in masks.items())


def bytes_of(exponent: int) -> str:
    """A size that is coded as a power of two, 0 for 128 bytes."""
    return f"{128 << exponent} bytes"


def bus_address(value: int) -> str:
    """Who asked: bus:device.function."""
    return f"{value >> 8:02x}:{value >> 3 & 31:02x}.{value & 7}"


# ---------------------------------------------------------------- header

COMMAND: Final = bits(
    io=pci.PCI_COMMAND_IO,
    memory=pci.PCI_COMMAND_MEMORY,
    bus_master=pci.PCI_COMMAND_MASTER,
    special_cycles=pci.PCI_COMMAND_SPECIAL,
    memory_write_and_invalidate=pci.PCI_COMMAND_INVALIDATE,
    VGA_palette_snoop=pci.PCI_COMMAND_VGA_PALETTE,
    parity_error_response=pci.PCI_COMMAND_PARITY,
    stepping=pci.PCI_COMMAND_WAIT,
    SERR=pci.PCI_COMMAND_SERR,
    fast_back_to_back=pci.PCI_COMMAND_FAST_BACK,
    INTx_disabled=pci.PCI_COMMAND_INTX_DISABLE,
)
STATUS: Final = (
    *bits(
        immediate_readiness=pci.PCI_STATUS_IMM_READY,
        interrupt=pci.PCI_STATUS_INTERRUPT,
        capabilities=pci.PCI_STATUS_CAP_LIST,
    ),
    Part("66 MHz", pci.PCI_STATUS_66MHZ),
    *bits(
        user_definable_features=pci.PCI_STATUS_UDF,
        fast_back_to_back=pci.PCI_STATUS_FAST_BACK,
        master_data_parity_error=pci.PCI_STATUS_PARITY,
    ),
    Part("DEVSEL timing", pci.PCI_STATUS_DEVSEL_MASK, {0: "", 1: "DEVSEL medium", 2: "DEVSEL slow"}),
    *bits(
        signalled_target_abort=pci.PCI_STATUS_SIG_TARGET_ABORT,
        received_target_abort=pci.PCI_STATUS_REC_TARGET_ABORT,
        received_master_abort=pci.PCI_STATUS_REC_MASTER_ABORT,
        signalled_system_error=pci.PCI_STATUS_SIG_SYSTEM_ERROR,
        detected_parity_error=pci.PCI_STATUS_DETECTED_PARITY,
    ),
)
HEADER_TYPES: Final = {
    pci.PCI_HEADER_TYPE_NORMAL: "type 0, a device",
    pci.PCI_HEADER_TYPE_BRIDGE: "type 1, a bridge",
    pci.PCI_HEADER_TYPE_CARDBUS: "type 2, a CardBus bridge",
}
INTERRUPT_PINS: Final = {0: "", 1: "INTA", 2: "INTB", 3: "INTC", 4: "INTD"}

COMMON_HEADER: Final = (
    Register("vendor_id", pci.PCI_VENDOR_ID, 2),
    Register("device_id", pci.PCI_DEVICE_ID, 2),
    Register("command", pci.PCI_COMMAND, 2, COMMAND),
    Register("status", pci.PCI_STATUS, 2, STATUS),
    Register("revision_id", pci.PCI_REVISION_ID, 1),
    Register("programming_interface", pci.PCI_CLASS_PROG, 1),
    Register("class", pci.PCI_CLASS_DEVICE, 2),
    Register("cache_line_size", pci.PCI_CACHE_LINE_SIZE, 1),
    Register("latency_timer", pci.PCI_LATENCY_TIMER, 1),
    Register(
        "header_type",
        pci.PCI_HEADER_TYPE,
        1,
        (
            Part("header type", pci.PCI_HEADER_TYPE_MASK, HEADER_TYPES),
            Part("multi-function", pci.PCI_HEADER_TYPE_MFD),
        ),
    ),
    Register("bist", pci.PCI_BIST, 1),
)
POINTER: Final = Register("capabilities_pointer", pci.PCI_CAPABILITY_LIST, 1)
INTERRUPT: Final = (
    Register("interrupt_line", pci.PCI_INTERRUPT_LINE, 1),
    Register("interrupt_pin", pci.PCI_INTERRUPT_PIN, 1, (Part("pin", 0xFF, INTERRUPT_PINS),)),
)
ROM: Final = (Part("enabled", pci.PCI_ROM_ADDRESS_ENABLE),)
DEVICE_HEADER: Final = (
    Register("cardbus_cis", pci.PCI_CARDBUS_CIS, 4),
    Register("subsystem_vendor_id", pci.PCI_SUBSYSTEM_VENDOR_ID, 2),
    Register("subsystem_id", pci.PCI_SUBSYSTEM_ID, 2),
    Register("expansion_rom", pci.PCI_ROM_ADDRESS, 4, ROM),
    POINTER,
    *INTERRUPT,
    Register("min_gnt", pci.PCI_MIN_GNT, 1),
    Register("max_lat", pci.PCI_MAX_LAT, 1),
)
BRIDGE_HEADER: Final = (
    Register("primary_bus", pci.PCI_PRIMARY_BUS, 1),
    Register("secondary_bus", pci.PCI_SECONDARY_BUS, 1),
    Register("subordinate_bus", pci.PCI_SUBORDINATE_BUS, 1),
    Register("secondary_latency_timer", pci.PCI_SEC_LATENCY_TIMER, 1),
    Register("io_base", pci.PCI_IO_BASE, 1),
    Register("io_limit", pci.PCI_IO_LIMIT, 1),
    Register("secondary_status", pci.PCI_SEC_STATUS, 2, STATUS),
    Register("memory_base", pci.PCI_MEMORY_BASE, 2),
    Register("memory_limit", pci.PCI_MEMORY_LIMIT, 2),
    Register("prefetchable_memory_base", pci.PCI_PREF_MEMORY_BASE, 2),
    Register("prefetchable_memory_limit", pci.PCI_PREF_MEMORY_LIMIT, 2),
    Register("prefetchable_memory_base_upper", pci.PCI_PREF_BASE_UPPER32, 4),
    Register("prefetchable_memory_limit_upper", pci.PCI_PREF_LIMIT_UPPER32, 4),
    Register("io_base_upper", pci.PCI_IO_BASE_UPPER16, 2),
    Register("io_limit_upper", pci.PCI_IO_LIMIT_UPPER16, 2),
    POINTER,
    Register("expansion_rom", pci.PCI_ROM_ADDRESS1, 4, ROM),
    *INTERRUPT,
    Register(
        "bridge_control",
        pci.PCI_BRIDGE_CONTROL,
        2,
        bits(
            parity_error_response=pci.PCI_BRIDGE_CTL_PARITY,
            SERR=pci.PCI_BRIDGE_CTL_SERR,
            ISA=pci.PCI_BRIDGE_CTL_ISA,
            VGA=pci.PCI_BRIDGE_CTL_VGA,
            master_abort_mode=pci.PCI_BRIDGE_CTL_MASTER_ABORT,
            secondary_bus_reset=pci.PCI_BRIDGE_CTL_BUS_RESET,
            fast_back_to_back=pci.PCI_BRIDGE_CTL_FAST_BACK,
        ),
    ),
)

# ---------------------------------------------------------------- capabilities


def _where(words: str) -> tuple[Part, ...]:
    """A place in a BAR."""
    return (
        Part("BAR", pci.PCI_MSIX_TABLE_BIR, lambda bar: f"{words} in BAR {bar}"),
        Part("offset", pci.PCI_MSIX_TABLE_OFFSET, lambda eighths: f"at {eighths << 3:#x}"),
    )


POWER_MANAGEMENT: Final = (
    Register(
        "power_management_capabilities",
        pci.PCI_PM_PMC,
        2,
        (
            Part("version", pci.PCI_PM_CAP_VER_MASK),
            *bits(
                PME_clock=pci.PCI_PM_CAP_PME_CLOCK,
                device_specific_initialization=pci.PCI_PM_CAP_DSI,
                auxiliary_current=pci.PCI_PM_CAP_AUX_POWER,
                D1=pci.PCI_PM_CAP_D1,
                D2=pci.PCI_PM_CAP_D2,
                PME_from_D0=pci.PCI_PM_CAP_PME_D0,
                PME_from_D1=pci.PCI_PM_CAP_PME_D1,
                PME_from_D2=pci.PCI_PM_CAP_PME_D2,
                PME_from_D3hot=pci.PCI_PM_CAP_PME_D3hot,
                PME_from_D3cold=pci.PCI_PM_CAP_PME_D3cold,
            ),
        ),
    ),
    Register(
        "power_management_control_status",
        pci.PCI_PM_CTRL,
        2,
        (
            Part("power state", pci.PCI_PM_CTRL_STATE_MASK, lambda state: f"D{state}"),
            *bits(
                no_soft_reset=pci.PCI_PM_CTRL_NO_SOFT_RESET,
                PME_enabled=pci.PCI_PM_CTRL_PME_ENABLE,
                data_select=pci.PCI_PM_CTRL_DATA_SEL_MASK,
                data_scale=pci.PCI_PM_CTRL_DATA_SCALE_MASK,
                PME_status=pci.PCI_PM_CTRL_PME_STATUS,
            ),
        ),
    ),
    Register("bridge_extensions", pci.PCI_PM_PPB_EXTENSIONS, 1),
    Register("data", pci.PCI_PM_DATA_REGISTER, 1),
)
MSI_CONTROL: Final = Register(
    "message_control",
    pci.PCI_MSI_FLAGS,
    2,
    (
        Part("enabled", pci.PCI_MSI_FLAGS_ENABLE, {0: "disabled", 1: "enabled"}),
        Part("messages", pci.PCI_MSI_FLAGS_QMASK, lambda log: f"up to {1 << log} messages"),
        Part("messages in use", pci.PCI_MSI_FLAGS_QSIZE, lambda log: f"{1 << log} in use"),
        Part("64-bit addresses", pci.PCI_MSI_FLAGS_64BIT),
        Part("masks each vector", pci.PCI_MSI_FLAGS_MASKBIT),
    ),
)
MSIX: Final = (
    Register(
        "message_control",
        pci.PCI_MSIX_FLAGS,
        2,
        (
            Part("table size", pci.PCI_MSIX_FLAGS_QSIZE, lambda last: f"table size {last + 1}"),
            Part("all masked", pci.PCI_MSIX_FLAGS_MASKALL),
            Part("enabled", pci.PCI_MSIX_FLAGS_ENABLE, {0: "disabled", 1: "enabled"}),
        ),
    ),
    Register("table", pci.PCI_MSIX_TABLE, 4, _where("table")),
    Register("pending_bits", pci.PCI_MSIX_PBA, 4, _where("pending bits")),
)
BRIDGE_SUBSYSTEM: Final = (
    Register("subsystem_vendor_id", pci.PCI_SSVID_VENDOR_ID, 2),
    Register("subsystem_id", pci.PCI_SSVID_DEVICE_ID, 2),
)
VITAL_PRODUCT_DATA: Final = (
    Register("address", pci.PCI_VPD_ADDR, 2),
    Register("data", pci.PCI_VPD_DATA, 4),
)
SLOT_IDENTIFICATION: Final = (
    Register(
        "expansion_slot",
        pci.PCI_SID_ESR,
        1,
        bits(slots=pci.PCI_SID_ESR_NSLOTS, first_in_chassis=pci.PCI_SID_ESR_FIC),
    ),
    Register("chassis_number", pci.PCI_SID_CHASSIS_NR, 1),
)
SATA: Final = (
    Register("revision", pci.PCI_CAP_FLAGS, 2, bits(minor=0xF, major=0xF0)),
    Register("index_data_registers", pci.PCI_SATA_REGS, 4),
)
ADVANCED_FEATURES: Final = (
    Register("length", pci.PCI_AF_LENGTH, 1),
    Register(
        "capabilities",
        pci.PCI_AF_CAP,
        1,
        bits(transactions_pending=pci.PCI_AF_CAP_TP, function_level_reset=pci.PCI_AF_CAP_FLR),
    ),
    Register("control", pci.PCI_AF_CTRL, 1),
    Register("status", pci.PCI_AF_STATUS, 1, bits(transactions_pending=pci.PCI_AF_STATUS_TP)),
)


class Named(NamedTuple):
    """A capability: the name of its Field, what it is called, and its registers that all of them have."""

    name: str
    title: str
    registers: tuple[Register, ...] = ()


CAPABILITIES: Final[Mapping[int, Named]] = {
    pci.PCI_CAP_ID_PM: Named("power_management", "power management", POWER_MANAGEMENT),
    pci.PCI_CAP_ID_AGP: Named("agp", "AGP"),
    pci.PCI_CAP_ID_VPD: Named("vital_product_data", "vital product data", VITAL_PRODUCT_DATA),
    pci.PCI_CAP_ID_SLOTID: Named("slot_identification", "slot identification", SLOT_IDENTIFICATION),
    pci.PCI_CAP_ID_MSI: Named("msi", "MSI"),
    pci.PCI_CAP_ID_CHSWP: Named("compactpci_hot_swap", "CompactPCI hot swap"),
    pci.PCI_CAP_ID_PCIX: Named("pcix", "PCI-X"),
    pci.PCI_CAP_ID_HT: Named("hypertransport", "HyperTransport"),
    pci.PCI_CAP_ID_VNDR: Named("vendor_specific", "vendor-specific"),
    pci.PCI_CAP_ID_DBG: Named("debug_port", "debug port"),
    pci.PCI_CAP_ID_CCRC: Named("compactpci_resource_control", "CompactPCI resource control"),
    pci.PCI_CAP_ID_SHPC: Named("shpc", "SHPC (standard hot-plug controller)"),
    pci.PCI_CAP_ID_SSVID: Named("bridge_subsystem", "bridge subsystem ID", BRIDGE_SUBSYSTEM),
    pci.PCI_CAP_ID_AGP3: Named("agp_bridge", "AGP bridge"),
    pci.PCI_CAP_ID_SECDEV: Named("secure_device", "secure device"),
    pci.PCI_CAP_ID_EXP: Named("express", "PCI Express"),
    pci.PCI_CAP_ID_MSIX: Named("msix", "MSI-X", MSIX),
    pci.PCI_CAP_ID_SATA: Named("sata", "SATA", SATA),
    pci.PCI_CAP_ID_AF: Named("advanced_features", "advanced features", ADVANCED_FEATURES),
    pci.PCI_CAP_ID_EA: Named("enhanced_allocation", "enhanced allocation"),
}
