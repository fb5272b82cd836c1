"""Pairs of QEMUs for tests/test_check_qemu.py and the table in docs/check.md."""

from typing import Final, NamedTuple

from tests.guests import sector, takes

ARCH: Final = "x86_64"
NET: Final = "-device virtio-net-pci,addr=5"
BLOCK: Final = "-drive if=none,id=d,driver=null-co -device virtio-blk-pci,addr=6,drive=d"
IDE: Final = "-drive if=none,id=d,driver=null-co -device ide-hd,drive=d"
RNG: Final = "virtio-rng-pci"
SCSI: Final = "-device virtio-scsi-pci,addr=5,vectors=4,num_queues="
SERIAL: Final = "-M pc-i440fx-5.2 -device virtio-serial-pci,addr=5,id=v"
SLOTS: Final = "-m 64,slots=2,maxmem=1G"
CODEC: Final = "-M pc-q35-7.2 -audiodev none,id=a -device intel-hda,addr=5 -device hda-"
AER: Final = "-M pc-q35-7.2 -device pcie-root-port,id=r,chassis=1,addr=4 -device e1000e,bus=r,romfile="
PORT: Final = "-M pc-q35-7.2 -device pcie-root-port,id=r,chassis=1,addr=5"


class Pair(NamedTuple):
    """Versions of source and destination, the arguments of both, and of the destination if they differ.

    `capabilities` of the source alone; `disk` is what both boot. `dump`: the codes that -dump-vmstate gives;
    `warned`: those of warnings although it loads; `later`: of errors behind what only a dump tells.
    """

    name: str
    source: str
    destination: str
    arguments: str
    local: str | None = None
    arch: str = ARCH
    capabilities: tuple[str, ...] = ()
    disk: bytes = b""
    dump: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def destination_arguments(self) -> str:
        return self.arguments if self.local is None else self.local


FAIL: Final = (
    Pair("machine type", "7.2", "7.2", "-M pc-i440fx-7.2", "-M pc-i440fx-7.1", dump=("check-machine",)),
    Pair("machine type, back", "11.1", "10.0", "-M pc-q35-10.0", "-M pc-q35-9.2", dump=("check-machine",)),
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
    Pair("less RAM", "11.1", "5.2", "-M pc-q35-5.2 -m 128", "-M pc-q35-5.2 -m 64"),
    Pair(
        "a memory backend of another name",
        "7.2",
        "7.2",
        "-M pc-i440fx-7.2,memory-backend=a -object memory-backend-ram,id=a,size=64M",
        "-M pc-i440fx-7.2,memory-backend=b -object memory-backend-ram,id=b,size=64M",
    ),
    Pair(
        "another USB port",
        "7.2",
        "7.2",
        "-M pc-i440fx-7.2 -device piix3-usb-uhci,id=u -device usb-tablet,bus=u.0,port=1",
        "-M pc-i440fx-7.2 -device piix3-usb-uhci,id=u -device usb-tablet,bus=u.0,port=2",
    ),
    Pair("AER", "7.2", "10.0", f"{PORT} -device {RNG},bus=r", f"{PORT} -device {RNG},bus=r,aer=on"),
    Pair("ATS", "7.2", "10.0", f"{PORT} -device {RNG},bus=r", f"{PORT} -device {RNG},bus=r,ats=on"),
    Pair("slot number", "11.1", "7.2", f"{PORT},slot=1", f"{PORT},slot=2"),
    Pair("link width", "7.2", "11.1", f"{PORT},x-width=1", f"{PORT},x-width=16"),
    Pair(
        "size of a BAR",
        "10.0",
        "11.1",
        f"-M pc-q35-7.2 -device {RNG},addr=5,page-per-vq=on",
        f"-M pc-q35-7.2 -device {RNG},addr=5",
    ),
    Pair(
        "a BAR more",
        "5.2",
        "7.2",
        f"-M pc-q35-5.2 -device {RNG},addr=5,modern-pio-notify=on",
        f"-M pc-q35-5.2 -device {RNG},addr=5",
    ),
    Pair("a newer section", "7.2", "5.2", "-M pc-q35-5.2 -device am53c974,addr=5", dump=("check-version",)),
    Pair(
        "a newer section behind an EEPROM",
        "10.0",
        "5.2",
        "-M pc-q35-5.2 -device dc390,addr=5",
        dump=("check-version",),
    ),
    Pair(
        "a newer section, Arm",
        "7.2",
        "5.2",
        "-M virt-5.2 -device virtio-iommu-pci",
        arch="aarch64",
        dump=("check-version",),
    ),
    Pair("system registers", "7.2", "10.0", "-M virt-7.2 -cpu cortex-a57", arch="aarch64"),
    Pair("system registers, back", "10.0", "7.2", "-M virt-7.2 -cpu cortex-a57", arch="aarch64"),
    Pair("system registers, to 11.1", "10.0", "11.1", "-M virt-7.2 -cpu max -smp 2", arch="aarch64"),
    Pair(
        "EL2",
        "11.1",
        "11.1",
        "-M virt-10.0,virtualization=on -cpu cortex-a57",
        "-M virt-10.0 -cpu cortex-a57",
        arch="aarch64",
    ),
    Pair("ID registers", "5.2", "7.2", "-M virt-5.2 -cpu cortex-a15", arch="aarch64"),
    Pair(
        "no LPA2", "11.1", "11.1", "-M virt-10.0 -cpu max,lpa2=off", "-M virt-10.0 -cpu max", arch="aarch64"
    ),
    Pair(
        "another CPU, Arm",
        "11.1",
        "11.1",
        "-M virt-10.0 -cpu cortex-a57",
        "-M virt-10.0 -cpu cortex-a72",
        arch="aarch64",
    ),
    Pair(
        "size of a queue",
        "11.1",
        "11.1",
        f"-M pc-q35-11.1 {BLOCK},queue-size=256",
        f"-M pc-q35-11.1 {BLOCK},queue-size=128",
    ),
    Pair("fewer queues", "11.1", "11.1", f"-M pc-q35-11.1 {SCSI}3", f"-M pc-q35-11.1 {SCSI}1"),
    Pair(
        "no virtserialport",
        "5.2",
        "11.1",
        f"{SERIAL} -device virtserialport,bus=v.0,nr=2",
        SERIAL,
    ),
    Pair(
        "a virtserialport more",
        "7.2",
        "5.2",
        SERIAL,
        f"{SERIAL} -device virtserialport,bus=v.0,nr=2",
    ),
    Pair("no virtconsole", "11.1", "7.2", f"{SERIAL} -device virtconsole,bus=v.0", SERIAL),
    Pair("no slots for memory", "7.2", "10.0", f"-M pc-q35-7.2 {SLOTS}", "-M pc-q35-7.2 -m 64"),
    Pair(
        "slots for memory",
        "11.1",
        "7.2",
        "-M pc-i440fx-7.2 -m 64",
        f"-M pc-i440fx-7.2 {SLOTS}",
    ),
    Pair("codec", "7.2", "11.1", f"{CODEC}duplex,audiodev=a", f"{CODEC}output,audiodev=a"),
    Pair(
        "mask of AER",
        "11.1",
        "10.0",
        f"{AER},x-pcie-err-unc-mask=on",
        f"{AER},x-pcie-err-unc-mask=off",
    ),
    Pair("an older section, RISC-V", "7.2", "10.0", "-M virt", arch="riscv64"),
    Pair(
        "an older section, RISC-V, to 11.1",
        "10.0",
        "11.1",
        "-M virt",
        arch="riscv64",
        dump=("check-version-old",),
    ),
)
DUMP: Final = (
    Pair(
        "a subsection",
        "7.2",
        "5.2",
        "-M pc-q35-5.2 -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=on",
        "-M pc-q35-5.2",
        dump=("check-subsection-unknown",),
    ),
    Pair(
        "an older section, Arm",
        "5.2",
        "7.2",
        "-M virt-5.2 -device virtio-iommu-pci",
        arch="aarch64",
        dump=("check-version-old",),
        later=("check-register-value",),
    ),
)
"""What fails, and only -dump-vmstate tells: no stream has what is not needed, nor the oldest versions."""
DOUBT: Final = (
    Pair("a capability", "7.2", "10.0", "-M pc-q35-7.2", capabilities=("x-ignore-shared",)),
    Pair(
        "features",
        "7.2",
        "10.0",
        f"-M pc-i440fx-7.2 {NET}",
        f"-M pc-i440fx-7.2 {NET},mrg_rxbuf=off",
        disk=sector(takes(1 << 5 | 1 << 15 | 1 << 16)),
    ),
    Pair("sizes of queues", "10.0", "11.1", f"-M pc-q35-10.0 -device {RNG},addr=5"),
    Pair(
        "a longer machine type, LoongArch",
        "10.0",
        "11.1",
        "-M virt -m 256",
        arch="loongarch64",
        dump=("check-version-old",),
    ),
)
"""What fails, of which a stream of the destination's own can only warn."""
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
    Pair(
        "fewer queues, where none looks",
        "7.2",
        "10.0",
        f"-M pc-q35-7.2 {SCSI}3",
        f"-M pc-q35-7.2 {SCSI}1",
        warned=("check-queue-size-maybe",),
    ),
    Pair(
        "a larger queue", "11.1", "11.1", f"-M q35 {BLOCK},queue-size=128", f"-M q35 {BLOCK},queue-size=256"
    ),
    Pair(
        "serial ports",
        "7.2",
        "10.0",
        f"{SERIAL} -device virtconsole,bus=v.0 -device virtserialport,bus=v.0,nr=3",
    ),
    Pair("codec, back", "11.1", "7.2", f"{CODEC}output,audiodev=a", f"{CODEC}duplex,audiodev=a"),
    Pair(
        "more system registers",
        "5.2",
        "5.2",
        "-M virt-5.2 -cpu max,sve=off",
        "-M virt-5.2 -cpu max",
        arch="aarch64",
    ),
    Pair("Arm", "11.1", "11.1", "-M virt-10.0 -cpu max -smp 2", arch="aarch64"),
    Pair("Arm, 2 CPUs", "7.2", "7.2", "-M virt-7.2 -cpu cortex-a57 -smp 2", arch="aarch64"),
    Pair("IDE disk", "7.2", "7.2", f"-M pc-i440fx-7.2 {IDE}"),
    Pair("no IDE disk there", "7.2", "7.2", f"-M pc-i440fx-7.2 {IDE}", "-M pc-i440fx-7.2"),
    Pair("IDE disk, all the way", "5.2", "11.1", f"-M pc-i440fx-5.2 {IDE}"),
    Pair("IDE CD", "10.0", "7.2", "-M pc-i440fx-7.2 -device ide-cd"),
    Pair("SATA disk", "10.0", "11.1", f"-M pc-q35-7.2 {IDE}"),
    Pair("SATA CD", "7.2", "10.0", "-M pc-q35-7.2 -device ide-cd"),
    Pair("pseries", "5.2", "10.0", "-M pseries-5.2 -m 256 -cpu power8", arch="ppc64"),
    Pair("pseries, to 11.1", "10.0", "11.1", "-M pseries-7.2 -m 256", arch="ppc64"),
    Pair("pseries, back", "11.1", "10.0", "-M pseries-7.2 -m 256", arch="ppc64"),
    Pair(
        "pseries, a device more",
        "7.2",
        "7.2",
        "-M pseries-7.2 -m 256",
        "-M pseries-7.2 -m 256 -device spapr-vscsi",
        arch="ppc64",
    ),
    Pair("s390x", "5.2", "11.1", "-S -M s390-ccw-virtio-5.2 -device virtio-rng-ccw", arch="s390x"),
    Pair("s390x, back", "11.1", "5.2", "-S -M s390-ccw-virtio-5.2", arch="s390x"),
)
