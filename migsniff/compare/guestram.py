"""Where guest-physical addresses are in RAM blocks, as far as the stream proves it.

Most boards have their memory in one piece. A PC has a hole below 4 GiB whose place depends on the machine
type, on -m and on an option, and the firmware reads it from the clock's battery-backed memory: that is in the
stream, and is believed if it adds up to what there is.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from migsniff.core.events import DeviceSection

BASES: Final = {
    "mach-virt.ram": 0x4000_0000,  # hw/arm/virt.c
    "riscv_virt_board.ram": 0x8000_0000,  # hw/riscv/virt.c
    "ppc_spapr.ram": 0,  # hw/ppc/spapr.c
    "s390.ram": 0,  # hw/s390x/s390-virtio-ccw.c
}
"""Blocks whose boards have them in one piece, and where that begins."""
PC: Final = "pc.ram"
FOUR_GIB: Final = 1 << 32
AMD_HT: Final = 0xFD_0000_0000
"""From here on an AMD PC may have no memory: what would be here is then somewhere else."""
VGA: Final = range(0xA_0000, 0x10_0000)
"""Of a PC: memory, ROM or a device, as the chipset is told."""
CLOCK: Final = ("mc146818rtc", 0)
CMOS: Final = "cmos_data"


class RamPlace(NamedTuple):
    """A byte of guest memory."""

    block: str
    offset: int


class GuestRam(NamedTuple):
    """The RAM blocks of a guest by their lengths; `cmos` is a PC's, b"" if there is none."""

    blocks: Mapping[str, int]
    cmos: bytes

    def place(self, address: int) -> RamPlace | None:
        """Where the byte at a guest-physical address is; None if the stream does not prove it."""
        for block, base in BASES.items():
            if block in self.blocks:
                offset = address - base
                return RamPlace(block, offset) if 0 <= offset < self.blocks[block] else None
        below = self._below_four_gib()
        if below is None or address in VGA:
            return None
        if address < below:
            return RamPlace(PC, address)
        above = self.blocks[PC] - below
        if FOUR_GIB <= address < min(FOUR_GIB + above, AMD_HT):
            return RamPlace(PC, address - FOUR_GIB + below)
        return None

    def _below_four_gib(self) -> int | None:
        """How much of a PC's memory is below the hole (hw/i386/pc.c, pc_cmos_init)."""
        if PC not in self.blocks or len(self.cmos) < 0x5E:
            return None
        low = int.from_bytes(self.cmos[0x30:0x32], "little") << 10
        high = int.from_bytes(self.cmos[0x34:0x36], "little") << 16
        above = int.from_bytes(self.cmos[0x5B:0x5E], "little") << 16
        below = (16 << 20) + high if high else (1 << 20) + low
        return below if below + above == self.blocks[PC] else None


def cmos_in(section: DeviceSection) -> bytes:
    """The battery-backed memory of a PC's clock, b"" if this is none."""
    if (section.idstr, section.instance_id) != CLOCK:
        return b""
    return next((field.raw for field in section.fields if field.name == CMOS), b"")
