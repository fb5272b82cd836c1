"""What of a stream cannot be compared with a destination, and how that is told."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from migsniff.compare.inventory import Inventory
from migsniff.compare.schema import Schema

LISTED: Final = 8

Names = dict[str, None]
"""Names in their order, each once."""


@dataclass(slots=True)
class Omitted:
    """The sections, or fields, of which something was not compared, by what that is."""

    undescribed: Names = field(default_factory=dict)
    unknown: Names = field(default_factory=dict)
    opaque: Names = field(default_factory=dict)
    renamed: Names = field(default_factory=dict)
    features: Names = field(default_factory=dict)
    bars: bool = False
    """PCI configurations were compared: not the BARs in them."""

    def words(self, destination: Inventory | Schema) -> list[str]:
        """What was not compared with this destination, in words."""
        words = [
            "most values that QEMU checks in code of its own (post_load), and features that the host lacks"
        ]
        if self.bars:
            words.append("most sizes of PCI BARs, and registers that are read-only in some devices alone")
        if self.opaque:
            words.append(f"virtio state behind the PCI configuration space: {_few(self.opaque)}")
        if self.features:
            words.append(
                "whether the destination allows the features that the guest uses, else "
                f'"Features ... unsupported": {_few(self.features)}'
            )
        if self.undescribed:
            words.append(f"fields of sections without a description: {_few(self.undescribed)}")
        if isinstance(destination, Schema):
            words.append("instances of sections, RAM blocks and PCI configuration: -dump-vmstate has none")
            if self.renamed:
                words.append(f"fields that have another name there: {_few(self.renamed)}")
            if self.unknown:
                words.append(f"sections that -dump-vmstate does not list: {_few(self.unknown)}")
        return words


def _few(names: Names) -> str:
    return first_of(names, len(names))


def first_of(names: Iterable[str], count: int) -> str:
    """The first of `count` names, of which no more are made than are told."""
    more = f" and {count - LISTED} more" if count > LISTED else ""
    return ", ".join(islice(names, LISTED)) + more
