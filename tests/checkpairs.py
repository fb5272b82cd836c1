"""Pairs of QEMUs for tests/test_check_qemu.py and the table in docs/check.md."""

from typing import Final, NamedTuple

NET: Final = "-device virtio-net-pci,addr=5"
BLOCK: Final = "-drive if=none,id=d,driver=null-co -device virtio-blk-pci,addr=6,drive=d"


class Pair(NamedTuple):
    """Versions of source and destination, the arguments of both, and of the destination if they differ."""

    name: str
    source: str
    destination: str
    arguments: str
    local: str | None = None

    @property
    def destination_arguments(self) -> str:
        return self.arguments if self.local is None else self.local


FAIL: Final = (
    Pair("machine type", "7.2", "7.2", "-M pc-i440fx-7.2", "-M pc-i440fx-7.1"),
    Pair("machine type, back", "11.1", "10.0", "-M pc-q35-10.0", "-M pc-q35-9.2"),
    Pair("more RAM", "5.2", "10.0", "-M pc-i440fx-5.2", "-M pc-i440fx-5.2 -m 128"),
    Pair("another VGA", "11.1", "7.2", "-M pc-i440fx-7.2 -vga std", "-M pc-i440fx-7.2 -vga cirrus"),
    Pair(
        "VGA memory",
        "10.0",
        "11.1",
        "-M pc-q35-7.2 -device VGA,vgamem_mb=16",
        "-M pc-q35-7.2 -device VGA,vgamem_mb=32",
    ),
    Pair("no option ROM", "7.2", "11.1", f"-M pc-i440fx-7.2 {NET}", f"-M pc-i440fx-7.2 {NET},romfile="),
    Pair(
        "another NIC",
        "5.2",
        "11.1",
        "-M pc-q35-5.2 -device e1000,addr=5",
        "-M pc-q35-5.2 -device e1000e,addr=5",
    ),
    Pair("no virtio-rng", "7.2", "7.2", "-M pc-i440fx-7.2 -device virtio-rng-pci", "-M pc-i440fx-7.2"),
    Pair("no virtio-rng, to 11.1", "5.2", "11.1", "-M pc-q35-5.2 -device virtio-rng-pci", "-M pc-q35-5.2"),
    Pair(
        "another slot",
        "7.2",
        "5.2",
        "-M pc-q35-5.2 -device virtio-rng-pci,addr=5",
        "-M pc-q35-5.2 -device virtio-rng-pci,addr=6",
    ),
    Pair("a serial port", "10.0", "7.2", "-M pc-i440fx-7.2 -device isa-serial", "-M pc-i440fx-7.2"),
    Pair("fewer CPUs", "7.2", "10.0", "-M pc-q35-7.2 -smp 2", "-M pc-q35-7.2 -smp 1"),
    Pair("no HPET", "7.2", "10.0", "-M pc-i440fx-7.2", "-M pc-i440fx-7.2,hpet=off"),
    Pair("MSI-X vectors", "7.2", "10.0", f"-M pc-i440fx-7.2 {NET}", f"-M pc-i440fx-7.2 {NET},vectors=8"),
    Pair(
        "MSI-X vectors, back",
        "11.1",
        "5.2",
        f"-M pc-q35-5.2 {BLOCK},vectors=2",
        f"-M pc-q35-5.2 {BLOCK},vectors=5",
    ),
    Pair(
        "virtio 1.0 only",
        "10.0",
        "7.2",
        "-M pc-q35-7.2 -device virtio-rng-pci,addr=5,disable-legacy=on,disable-modern=off",
        "-M pc-q35-7.2 -device virtio-rng-pci,addr=5,disable-legacy=off",
    ),
    Pair(
        "slot without hotplug",
        "7.2",
        "10.0",
        "-M pc-q35-7.2 -device pcie-root-port,id=a,chassis=1,addr=4",
        "-M pc-q35-7.2 -device pcie-root-port,id=a,chassis=1,addr=4,hotplug=off",
    ),
    Pair(
        "another USB controller",
        "11.1",
        "10.0",
        "-M pc-q35-7.2 -device qemu-xhci,addr=7",
        "-M pc-q35-7.2 -device nec-usb-xhci,addr=7",
    ),
    Pair(
        "USB ports",
        "11.1",
        "10.0",
        "-M pc-q35-7.2 -device qemu-xhci,addr=7,p2=4,p3=4",
        "-M pc-q35-7.2 -device qemu-xhci,addr=7,p2=8,p3=8",
    ),
)
LOAD: Final = (
    Pair("pc", "5.2", "7.2", "-M pc-i440fx-5.2"),
    Pair("pc, back", "7.2", "5.2", "-M pc-i440fx-5.2"),
    Pair("q35, all the way", "5.2", "11.1", "-M pc-q35-5.2"),
    Pair("q35, all the way back", "11.1", "5.2", "-M pc-q35-5.2"),
    Pair("virtio", "7.2", "10.0", f"-M pc-q35-7.2 {NET} -device virtio-rng-pci,addr=6"),
    Pair("virtio, back", "10.0", "7.2", f"-M pc-q35-7.2 {NET} -device virtio-rng-pci,addr=6"),
    Pair("VGA, e1000", "10.0", "11.1", "-M pc-i440fx-10.0 -vga std -device e1000,addr=5"),
    Pair("VGA, e1000, back", "11.1", "10.0", "-M pc-i440fx-10.0 -vga std -device e1000,addr=5"),
    Pair("USB", "5.2", "10.0", "-M pc-q35-5.2 -vga std -device qemu-xhci,addr=7"),
    Pair("USB, back", "10.0", "5.2", "-M pc-q35-5.2 -vga std -device qemu-xhci,addr=7"),
    Pair("balloon, 2 CPUs", "7.2", "11.1", "-M pc-i440fx-7.2 -device virtio-balloon-pci,addr=6 -smp 2"),
    Pair("balloon, 2 CPUs, back", "11.1", "7.2", "-M pc-i440fx-7.2 -device virtio-balloon-pci,addr=6 -smp 2"),
    Pair("a device more", "7.2", "7.2", "-M pc-i440fx-7.2", "-M pc-i440fx-7.2 -device virtio-rng-pci,addr=6"),
    Pair("disk", "5.2", "7.2", f"-M pc-i440fx-5.2 {BLOCK}"),
    Pair(
        "queues more",
        "7.2",
        "5.2",
        f"-M pc-i440fx-5.2 {BLOCK},vectors=2",
        f"-M pc-i440fx-5.2 {BLOCK},vectors=2,num-queues=4",
    ),
    Pair(
        "behind a root port",
        "7.2",
        "10.0",
        "-M pc-q35-7.2 -device pcie-root-port,id=a,chassis=1,addr=4 -device virtio-net-pci,bus=a",
    ),
    Pair(
        "more CPUs possible",
        "7.2",
        "10.0",
        "-M pc-q35-7.2 -smp 1,maxcpus=2",
        "-M pc-q35-7.2 -smp 1,maxcpus=4",
    ),
    Pair(
        "SCSI, AHCI", "11.1", "10.0", "-M pc-q35-10.0 -device virtio-scsi-pci,addr=6 -device ich9-ahci,addr=7"
    ),
)
