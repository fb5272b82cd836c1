"""PCI configuration space ("pci config" of hw/pci/pci.c): header, BARs, chains of capabilities by name."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.image import bytes_field
from migsniff.values.meaning import TYPES, Place
from migsniff.values.pciexpress import express
from migsniff.values.pciextended import EXTENDED, error_reporting
from migsniff.values.pciregisters import (
    BRIDGE_HEADER,
    CAPABILITIES,
    COMMON_HEADER,
    DEVICE_HEADER,
    MSI_CONTROL,
    POINTER,
    Named,
    Register,
)
from migsniff.values.tables import pci, virtio

SIZES: Final = (pci.PCI_CFG_SPACE_SIZE, pci.PCI_CFG_SPACE_EXP_SIZE)
VIRTIO_VENDOR: Final = 0x1AF4  # linux/virtio_pci.h: Red Hat, for Qumranet
PARTS_NAMED: Final = 3
CAPABILITY_HEADER: Final = (
    Register("id", pci.PCI_CAP_LIST_ID, 1),
    Register("next", pci.PCI_CAP_LIST_NEXT, 1),
)
EXTENDED_HEADER: Final = Register("header", 0, 4, words=lambda header: f"version {header >> 16 & 0xF}")
SINGLE: Final[dict[int, str]] = {1: "uint8", 2: "le16", 4: "le32", 8: "le64"}


class Capability(NamedTuple):
    """One capability of a chain: where it begins, up to where it may reach, and where the next one stands."""

    id: int
    at: int
    end: int
    next: int
    extended: bool
    named: Named
    registers: tuple[Register, ...]

    @property
    def title(self) -> str:
        """ "MSI-X capability at 0x98"."""
        extended = "extended " if self.extended else ""
        return f"{self.named.title} {extended}capability at {self.at:#x}"


class Layout(NamedTuple):
    """What stands where in a configuration space: `ends` say how each of the two chains ends, if badly."""

    header: tuple[Register, ...]
    capabilities: tuple[Capability, ...]
    chain: tuple[Capability, ...]
    ends: tuple[str, ...]


def number(config: bytes, at: int, size: int) -> int:
    """A little-endian number; what lies behind the end is 0."""
    return int.from_bytes(config[at : at + size], "little")


# ---------------------------------------------------------------- what stands where


def lay_out(config: bytes) -> Layout:
    """Follow both chains: each step once, none out of the configuration space."""
    header_type = number(config, pci.PCI_HEADER_TYPE, 1) & pci.PCI_HEADER_TYPE_MASK
    header: tuple[Register, ...] = COMMON_HEADER
    if header_type == pci.PCI_HEADER_TYPE_NORMAL:
        header = (*COMMON_HEADER, *bars(config, pci.PCI_STD_NUM_BARS), *DEVICE_HEADER)
    elif header_type == pci.PCI_HEADER_TYPE_BRIDGE:
        header = (*COMMON_HEADER, *bars(config, 2), *BRIDGE_HEADER)
    standard, end = _standard_chain(config, header)
    extended, extended_end = _extended_chain(config)
    express_at = next((at for identity, at, _ in standard if identity == pci.PCI_CAP_ID_EXP), None)
    port = None if express_at is None else port_type(config, express_at)
    places = sorted(at for _, at, _ in (*standard, *extended))
    chain = []
    for index, (identity, at, following) in enumerate((*standard, *extended)):
        limit = len(config) if at >= pci.PCI_CFG_SPACE_SIZE else min(len(config), pci.PCI_CFG_SPACE_SIZE)
        behind = bisect_right(places, at)
        if behind < len(places):
            limit = min(limit, places[behind])
        named = _named(config, identity, at) if index < len(standard) else _extended(identity, port)
        chain.append(_capability(named, identity, at, limit, following, index >= len(standard)))
    ends = tuple(filter(None, (end, extended_end)))
    return Layout(header, tuple(sorted(chain, key=lambda one: one.at)), tuple(chain), ends)


def bars(config: bytes, count: int) -> Iterator[Register]:
    """The base address registers; one with a 64-bit address takes two places."""
    bar = 0
    while bar < count:
        at = pci.PCI_BASE_ADDRESS_0 + 4 * bar
        value = number(config, at, 4)
        io = value & pci.PCI_BASE_ADDRESS_SPACE_IO
        wide = not io and value & pci.PCI_BASE_ADDRESS_MEM_TYPE_MASK == pci.PCI_BASE_ADDRESS_MEM_TYPE_64
        places = 2 if wide and bar + 1 < count else 1
        yield Register("bar", at, 4 * places, words=bar_text, index=bar)
        bar += places


def bar_text(value: int) -> str:
    """Type and address; nothing for a register that is all zero, which may not be there at all."""
    if not value:
        return ""
    if value & pci.PCI_BASE_ADDRESS_SPACE_IO:
        return f"I/O ports at {value & ~0x3:#x}"
    kinds = {
        pci.PCI_BASE_ADDRESS_MEM_TYPE_32: "32-bit",
        pci.PCI_BASE_ADDRESS_MEM_TYPE_1M: "below 1 MiB",
        pci.PCI_BASE_ADDRESS_MEM_TYPE_64: "64-bit",
    }
    kind = kinds.get(value & pci.PCI_BASE_ADDRESS_MEM_TYPE_MASK, "of a reserved type")
    prefetchable = ", prefetchable" if value & pci.PCI_BASE_ADDRESS_MEM_PREFETCH else ""
    return f"memory, {kind}{prefetchable}, at {value & ~0xF:#x}"


def _standard_chain(config: bytes, header: tuple[Register, ...]) -> tuple[list[tuple[int, int, int]], str]:
    """(id, where it stands, where the next one does) of each, and what is wrong with the end."""
    chain: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    listed = POINTER in header and number(config, pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST
    at = number(config, pci.PCI_CAPABILITY_LIST, 1) & ~3 if listed else 0
    while at:
        if at < pci.PCI_STD_HEADER_SIZEOF or at + 2 > len(config):
            return chain, f"the chain of capabilities leads to {at:#x}, where none can be"
        if at in seen:
            return chain, f"the chain of capabilities leads back to {at:#x}"
        seen.add(at)
        following = config[at + pci.PCI_CAP_LIST_NEXT] & ~3
        chain.append((config[at], at, following))
        at = following
    return chain, ""


def _extended_chain(config: bytes) -> tuple[list[tuple[int, int, int]], str]:
    chain: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    at = pci.PCI_CFG_SPACE_SIZE if len(config) > pci.PCI_CFG_SPACE_SIZE else 0
    while at and (header := number(config, at, 4)):
        if at in seen:
            return chain, f"the chain of extended capabilities leads back to {at:#x}"
        seen.add(at)
        following = header >> 20 & 0xFFC
        chain.append((header & 0xFFFF, at, following))
        at = following
        if at and (at < pci.PCI_CFG_SPACE_SIZE or at + 4 > len(config)):
            return chain, f"the chain of extended capabilities leads to {at:#x}, where none can be"
    return chain, ""


def _capability(
    named: Named, identity: int, at: int, limit: int, following: int, extended: bool
) -> Capability:
    """With those of its registers that fit before `limit`."""
    header = (EXTENDED_HEADER,) if extended else CAPABILITY_HEADER
    registers = (*header, *named.registers)
    fitting = tuple(one for one in registers if at + one.at + one.size <= limit)
    return Capability(identity, at, limit, following, extended, named, fitting)


def _unknown(identity: int) -> Named:
    return Named(f"unknown_{identity:#x}", f"unknown ({identity:#x})")


def port_type(config: bytes, at: int) -> int:
    """What a device is, by its PCI Express capability at `at`."""
    return (number(config, at + pci.PCI_EXP_FLAGS, 2) & pci.PCI_EXP_FLAGS_TYPE) >> 4


def _extended(identity: int, port: int | None) -> Named:
    """A capability of the second chain, of a device whose type is `port`."""
    named = EXTENDED.get(identity) or _unknown(identity)
    if identity == pci.PCI_EXT_CAP_ID_ERR:
        return named._replace(registers=error_reporting(port))
    return named


def _named(config: bytes, identity: int, at: int) -> Named:
    """A capability of the first chain; the layout of some depends on what stands in it."""
    named = CAPABILITIES.get(identity) or _unknown(identity)
    if identity == pci.PCI_CAP_ID_EXP:
        return named._replace(registers=express(number(config, at + pci.PCI_EXP_FLAGS, 2)))
    if identity == pci.PCI_CAP_ID_MSI:
        return named._replace(registers=msi(number(config, at + pci.PCI_MSI_FLAGS, 2)))
    if identity == pci.PCI_CAP_ID_VNDR:
        if number(config, pci.PCI_VENDOR_ID, 2) == VIRTIO_VENDOR:
            return virtio_capability(number(config, at + virtio.VIRTIO_PCI_CAP_CFG_TYPE, 1))
        return named._replace(registers=(Register("length", pci.PCI_CAP_FLAGS, 1),))
    return named


def msi(control: int) -> tuple[Register, ...]:
    """The registers of the MSI capability whose message control is `control`."""
    if control & pci.PCI_MSI_FLAGS_64BIT:
        address = Register("address", pci.PCI_MSI_ADDRESS_LO, 8)
        data, mask, pending = pci.PCI_MSI_DATA_64, pci.PCI_MSI_MASK_64, pci.PCI_MSI_PENDING_64
    else:
        address = Register("address", pci.PCI_MSI_ADDRESS_LO, 4)
        data, mask, pending = pci.PCI_MSI_DATA_32, pci.PCI_MSI_MASK_32, pci.PCI_MSI_PENDING_32
    registers = (MSI_CONTROL, address, Register("data", data, 2))
    if control & pci.PCI_MSI_FLAGS_MASKBIT:
        return (*registers, Register("mask_bits", mask, 4), Register("pending_bits", pending, 4))
    return registers


def virtio_capability(kind: int) -> Named:
    """struct virtio_pci_cap of linux/virtio_pci.h, and what follows it in some kinds."""
    name = virtio.PCI_CAPABILITIES.get(kind, f"VIRTIO_PCI_CAP {kind}")
    registers: tuple[Register, ...] = (
        Register("length", virtio.VIRTIO_PCI_CAP_LEN, 1),
        Register("cfg_type", virtio.VIRTIO_PCI_CAP_CFG_TYPE, 1, words=lambda _: name),
        Register("bar", virtio.VIRTIO_PCI_CAP_BAR, 1),
        Register("region_id", virtio.VIRTIO_PCI_CAP_BAR + 1, 1),
        Register("offset", virtio.VIRTIO_PCI_CAP_OFFSET, 4),
        Register("region_length", virtio.VIRTIO_PCI_CAP_LENGTH, 4),
    )
    behind = virtio.VIRTIO_PCI_NOTIFY_CAP_MULT
    if name == "VIRTIO_PCI_CAP_NOTIFY_CFG":
        registers = (*registers, Register("notify_off_multiplier", behind, 4))
    elif name == "VIRTIO_PCI_CAP_PCI_CFG":
        registers = (*registers, Register("pci_cfg_data", behind, 4))
    elif name == "VIRTIO_PCI_CAP_SHARED_MEMORY_CFG":
        registers = (*registers, Register("offset_high", behind, 4), Register("length_high", behind + 4, 4))
    short = name.removeprefix("VIRTIO_PCI_CAP_").lower().replace(" ", "_")
    return Named(f"virtio_{short}", f"vendor-specific ({name})", registers)


# ---------------------------------------------------------------- fields


@TYPES("pci config", source="hw/pci/pci.c")
def pci_config(field: Field, place: Place) -> Field:
    """The registers of a configuration space of 256 or 4096 bytes."""
    if len(field.raw) not in SIZES or field.children:
        return field
    children, meaning = config_fields(field.raw, field.offset)
    return replace(field, children=children, meaning=meaning)


def config_fields(config: bytes, offset: int) -> tuple[tuple[Field, ...], str]:
    """Its fields, one behind the other to the last byte, and what it is in words."""
    layout = lay_out(config)
    found = [_field(config, register, 0, offset) for register in layout.header]
    names = Counter(one.named.name for one in layout.capabilities)
    seen: Counter[str] = Counter()
    for capability in layout.capabilities:
        name = capability.named.name
        children = tuple(_field(config, each, capability.at, offset) for each in capability.registers)
        size = max(child.offset + child.size for child in children) - offset - capability.at
        kind = "pci extended capability" if capability.extended else "pci capability"
        found.append(
            Field(
                name,
                kind,
                offset + capability.at,
                size,
                index=seen[name] if names[name] > 1 else None,
                children=children,
                meaning=f"{capability.title}, "
                + (f"the next one is at {capability.next:#x}" if capability.next else "the last one"),
            )
        )
        seen[name] += 1
    return tuple(_with_gaps(config, sorted(found, key=lambda one: one.offset), offset)), _summary(
        config, layout
    )


def _field(config: bytes, register: Register, base: int, offset: int) -> Field:
    at = base + register.at
    value = number(config, at, register.size)
    return Field(
        register.name,
        SINGLE[register.size],
        offset + at,
        register.size,
        index=register.index,
        value=value,
        meaning=register.text(value),
    )


def _with_gaps(config: bytes, fields: list[Field], offset: int) -> Iterator[Field]:
    """The fields in order, and bytes that belong to none between them."""
    at = 0
    for field in fields:
        start = field.offset - offset
        if start > at:
            yield bytes_field(f"at_{at:#x}", config[at:start], offset + at)
        yield field
        at = max(at, start + field.size)
    if at < len(config):
        yield bytes_field(f"at_{at:#x}", config[at:], offset + at)


def _summary(config: bytes, layout: Layout) -> str:
    identity = f"{number(config, pci.PCI_VENDOR_ID, 2):04x}:{number(config, pci.PCI_DEVICE_ID, 2):04x}"
    names = ", ".join(one.named.title for one in layout.chain)
    return "; ".join(filter(None, (identity, names, *layout.ends)))


# ---------------------------------------------------------------- in words


def register_at(config: bytes, offset: int, changed: int = 0) -> str:
    """What stands at `offset` of a configuration space, in words, as QEMU's "Bad config data: i=0x9a" asks.

    `changed`: the bits of that byte that it is about, as in "read: 3 device: 7" those of 3 ^ 7; 0 means all.
    """
    if not 0 <= offset < len(config):
        return f"nothing: configuration space has {len(config)} bytes"
    layout = lay_out(config)
    for register in layout.header:
        if register.at <= offset < register.at + register.size:
            return _header_text(config, layout, register, offset, changed)
    within = None
    for capability in layout.capabilities:
        for register in capability.registers:
            if capability.at + register.at <= offset < capability.at + register.at + register.size:
                return _capability_text(config, layout, capability, register, offset, changed)
        if capability.at <= offset < capability.end:
            within = capability
    if within is not None:
        return f"no register that is known, {offset - within.at:#x} behind the start of the {within.title}"
    return "no register that is known"


def _header_text(config: bytes, layout: Layout, register: Register, offset: int, changed: int) -> str:
    if register == POINTER:
        return f"the start of the chain of capabilities: {_chain_text(layout, False) or 'none'}"
    if register.name in ("bar", "expansion_rom"):
        words = register.text(number(config, register.at, register.size)) or "0"
        low = "type and lowest address bits" if offset == register.at else "address"
        title = register.title if register.name == "bar" else "expansion ROM"
        return f"{low} of {title} ({words})"
    return _register_text(register, offset - register.at, changed)


def _capability_text(
    config: bytes, layout: Layout, capability: Capability, register: Register, offset: int, changed: int
) -> str:
    byte = offset - capability.at - register.at
    if (capability.extended and register.name == "header") or register.name in ("id", "next"):
        here = f"{'id' if byte == 0 and register.name != 'next' else 'header'} of the {capability.title}"
        if register.name == "next":
            here = f"the link from the {capability.title} to the next one"
        return f"{here}; the chain: {_chain_text(layout, capability.extended)}"
    return f"{_register_text(register, byte, changed)} of the {capability.title}"


def _register_text(register: Register, byte: int, changed: int) -> str:
    """A register, or the parts of it that stand in byte number `byte`, or in the `changed` bits of that."""
    shown = (changed & 0xFF or 0xFF) << 8 * byte
    parts = [part.name for part in register.parts if part.mask & shown]
    if changed and parts:
        return f"{', '.join(parts)} in the {register.title}"
    if 0 < len(parts) <= PARTS_NAMED and register.words is None:
        return ", ".join(parts)
    return f"{register.title} (bits {8 * byte} to {8 * byte + 7})" if register.parts else register.title


def _chain_text(layout: Layout, extended: bool) -> str:
    """ "MSI-X at 0x98, power management at 0xc8"."""
    return ", ".join(f"{one.named.title} at {one.at:#x}" for one in layout.chain if one.extended == extended)
