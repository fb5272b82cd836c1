"""The MSI-X table and its pending bits ("msix state" of hw/pci/msix.c)."""

from typing import Final

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.image import Image
from migsniff.values.meaning import TYPES, Place
from migsniff.values.tables import pci

MAX_ENTRIES: Final = pci.PCI_MSIX_FLAGS_QSIZE + 1


@TYPES("msix state", source="hw/pci/msix.c")
def msix_state(field: Field, place: Place) -> Field:
    """`n` entries of 16 bytes and `n` bits in whole bytes: the size tells n."""
    entries = entries_of(len(field.raw))
    if not entries or entries > MAX_ENTRIES or field.children:
        return field
    image = Image(field.raw, field.offset)
    meaning = msix_fields(image, entries)
    return replace(field, children=tuple(image.fields), meaning=meaning)


def entries_of(size: int) -> int | None:
    """How many entries a table has that takes `size` bytes with its pending bits."""
    entries = 8 * size // (8 * pci.PCI_MSIX_ENTRY_SIZE + 1)
    return entries if size_of(entries) == size else None


def size_of(entries: int) -> int:
    """Bytes of a table with its pending bits."""
    return pci.PCI_MSIX_ENTRY_SIZE * entries + (entries + 7) // 8


def msix_fields(image: Image, entries: int) -> str:
    """Read the table and the pending bits; says in words what is in them. Raises Short."""
    if size_of(entries) > image.left:
        image.take(size_of(entries))
    used = masked = 0
    for index in range(entries):
        start, first = image.at, len(image.fields)
        address = image.number("address", 8, "little")
        data = image.number("data", 4, "little")
        control = image.number("control", 4, "little", words=_control)
        hidden = control & pci.PCI_MSIX_ENTRY_CTRL_MASKBIT
        used += bool(address or data)
        masked += bool(hidden)
        words = f"{data:#x} to {address:#x}" if address or data else "not set up"
        meaning = f"{words}, masked" if hidden else words
        image.group("entry", "msix entry", start, first, index=index, meaning=meaning)
    pending = int.from_bytes(image.raw[image.at : image.at + (entries + 7) // 8], "little")
    waiting = ", ".join(str(entry) for entry in range(entries) if pending >> entry & 1)
    image.bytes("pending", (entries + 7) // 8, f"pending: {waiting}" if waiting else "")
    return f"{entries} entries, {used} set up, {masked} masked" + (f", pending: {waiting}" if waiting else "")


def _control(control: int) -> str:
    return "masked" if control & pci.PCI_MSIX_ENTRY_CTRL_MASKBIT else ""
