"""Sections and RAM blocks that a machine has whatever its command line says, as the samples show them.

Where two sides do not fit, their command lines mostly differ in what was added: these are named last.
"""

from typing import Final

BOARD: Final = frozenset(
    [
        # pc, q35
        *("acpi_build/0", "apic/0", "cpu/0", "cpu_common/0", "dma/0", "dma/1", "fdc/0", "fw_cfg/0", "hpet/0"),
        *("i2c_bus/0", "i8254/0", "i8259/0", "i8259/1", "ioapic/0", "kvm-tpr-opt/0", "mc146818rtc/0"),
        *("pckbd/0", "pcspk/0", "port92/0", "ps2kbd/0", "ps2mouse/0", "serial/0", "vmmouse/0"),
        *("0000:00:00.0/I440FX/0", "0000:00:01.0/PIIX3/0", "0000:00:01.1/ide/0", "0000:00:01.3/piix4_pm/0"),
        *("0000:00:00.0/mch/0", "0000:00:1f.0/ICH9LPC/0", "0000:00:1f.2/ich9_ahci/0"),
        *("0000:00:1f.3/ich9_smb/0",),
        # virt of aarch64 and riscv64
        *("0000:00:00.0/gpex_root/0", "arm_gic/0", "goldfish_rtc/0", "gpio-key/0", "pflash_cfi01/0"),
        *("pflash_cfi01/1", "pl011/0", "pl031/0", "pl061/0", "riscv_mtimer/0", "riscv_sifive_plic/0"),
        *("virt_acpi_build/0",),
        # pseries
        *("icp/server/0", "ics/0", "nvram@71000001/spapr_nvram/0", "spapr-xive/0", "spapr/0", "spapr/htab/0"),
        *("spapr/rtc/0", "spapr_cpu/0", "spapr_iommu/2147483648", "spapr_iommu/2147483649", "spapr_pci/0"),
        *("vty@71000000/spapr_vty/0", "xive-source/0", "xive-tctx/0"),
        # s390-ccw-virtio
        *("ipl/0", "qemu-s390-flic/0", "s390-skeys/0", "s390-storage_attributes/0", "s390_css/0"),
        *("sclpconsole/0", "sclpquiesce/0", "todclock/0", "vmstate-event-facility/0"),
        # all of them
        *("PCIBUS/0", "PCIHost/0", "globalstate/0", "timer/0"),
    ]
)

FIRMWARE: Final = ("/rom@", "pc.bios", "pc.rom", "riscv_virt_board.mrom", "virt.flash")
"""How the names of RAM blocks begin that are not made by -m, nor by a device."""


def is_of_board(section: tuple[str, int]) -> bool:
    """Whether a section (idstr, instance) is the board's own."""
    return f"{section[0]}/{section[1]}" in BOARD


def likeliest(section: tuple[str, int]) -> int:
    """The order in which sections come into question: what was added, then the board, buses first in each."""
    return 2 * is_of_board(section) + ("/" not in section[0])
