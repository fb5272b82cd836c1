"""The recipes of failed/, which failed.py runs: two QEMUs, a guest, and what happens while it migrates."""

import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from captures.samples.make import SLOW, WORKLOAD
from tests.guests import HOTPLUGS_CPUS, LOOPS, TAKES_FEATURES, sector
from tests.matrix import TLS_KEY
from tests.qemu import Migration, poll
from tests.relays import Proxy

Meanwhile = Callable[[Migration, Proxy], None]


def _after(seconds: float, what: Callable[[Migration], object]) -> Meanwhile:
    def meanwhile(migration: Migration, proxy: Proxy) -> None:
        time.sleep(seconds)
        what(migration)

    return meanwhile


def _cancel(migration: Migration) -> None:
    migration.source.execute("migrate_cancel")


def _told(code: str, timeout: float, proxy: Proxy) -> None:
    if not poll(lambda: any(event.get("code") == code for event in proxy.events), timeout):
        raise RuntimeError(f"{code} was not told")


def _cancelled_when(*codes: str) -> Meanwhile:
    def meanwhile(migration: Migration, proxy: Proxy) -> None:
        for code in codes:
            _told(code, 40, proxy)
        _cancel(migration)

    return meanwhile


def _hangs(migration: Migration, proxy: Proxy) -> None:
    """A source that says nothing for ten seconds, and is then killed."""
    time.sleep(0.3)
    migration.source.process.send_signal(signal.SIGSTOP)
    _told("silence", 20, proxy)
    migration.source.kill()


def _dies_in_a_page(migration: Migration, proxy: Proxy) -> None:
    """A source that is killed in the middle of a page, while its destination does not read."""
    migration.destination.process.send_signal(signal.SIGSTOP)
    migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
    time.sleep(0.7)
    migration.source.kill()
    migration.destination.process.send_signal(signal.SIGCONT)


def _loses_a_channel(migration: Migration, proxy: Proxy) -> None:
    """The kernel ends the busiest connection at the destination, as it would for a broken network."""
    time.sleep(0.4)
    port = migration.where.rpartition(":")[2]
    said = subprocess.run(
        ["ss", "-tinHO", "state", "established", "sport", "=", f":{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    carried = {
        line.split()[3]: int(found[1])
        for line in said.stdout.splitlines()
        if (found := re.search(r"bytes_received:(\d+)", line))
    }
    _, _, peer = max(carried, key=lambda each: carried[each]).rpartition(":")
    subprocess.run(["ss", "-K", "sport", "=", f":{port}", "dport", "=", f":{peer}"], check=True)


def _gives_up_a_ring(sent: bytes) -> bytes:
    """The ring of the disk, which the firmware has put there, is nowhere; how far it was read stays."""
    record = struct.pack(">IQ", 256, RING)
    if sent.count(record) != 1:
        raise RuntimeError("the ring is not where it is expected")
    return sent.replace(record, struct.pack(">IQ", 256, 0))


@dataclass(frozen=True)
class Failure:
    """Two QEMUs, a guest, how long it runs first, and what happens while it migrates.

    `own`: the destination's own stream tells why. `change`: what comes of the bytes on their way.
    """

    source: str
    destination: str
    guest: dict[str, Any]
    arch: str = "x86_64"
    settle: float = 0
    meanwhile: Meanwhile | None = None
    own: bool = True
    change: Callable[[bytes], bytes] | None = None


PC: Final = {"mem": 32, "machine": "pc-i440fx-7.2"}
Q35: Final = {"mem": 32, "machine": "pc-q35-7.2"}
BOOT: Final = "-drive file={folder}/boot,format=raw,if=ide"
PORT: Final = "-device pcie-root-port,id=root,chassis=1,addr=4"
NET: Final = "-device virtio-net-pci,addr=5,romfile="
RING: Final = 0x1FDD000
"""Where SeaBIOS has the descriptors of its first virtio disk in 32 MiB."""
LIMITED: Final = {"mem": 32, "workload": 16, "params": {"max-bandwidth": 10_000_000}}
KEY: Final = "-object tls-creds-psk,id=tls,dir={folder},endpoint="

FAILURES: Final[dict[str, Failure]] = {
    # a field that came with 6.0, and that the machine types before it did not hide
    "01-footer-piix4": Failure(
        "5.2",
        "7.2",
        {
            **PC,
            "machine": "pc-i440fx-5.2",
            "destination_args": "-global PIIX4_PM.x-not-migrate-acpi-index=off",
        },
    ),
    "02-footer-ich9": Failure(
        "7.2",
        "7.2",
        {
            **Q35,
            "args": BOOT,
            "files": {"boot": sector(HOTPLUGS_CPUS)},
            "source_args": "-smp 1,maxcpus=4",
            "destination_args": "-smp 1,maxcpus=1",
        },
        settle=3,
    ),
    "03-virtio-features": Failure(
        "10.0",
        "7.2",
        {
            **PC,
            "args": BOOT,
            "files": {"boot": sector(TAKES_FEATURES)},
            "source_args": NET,
            "destination_args": f"{NET},ctrl_rx=off,ctrl_vlan=off,guest_announce=off,mrg_rxbuf=off",
        },
        settle=3,
    ),
    "04-pci-msix": Failure(
        "7.2",
        "10.0",
        {**PC, "caps": ["return-path"], "source_args": NET, "destination_args": f"{NET},vectors=8"},
    ),
    "05-pci-chain": Failure(
        "7.2",
        "7.2",
        {
            **PC,
            "source_args": "-device virtio-rng-pci,addr=5,vectors=0",
            "destination_args": "-device virtio-rng-pci,addr=5",
        },
    ),
    "06-pcie-ats": Failure(
        "11.1",
        "11.1",
        {
            **Q35,
            "args": PORT,
            "source_args": "-device virtio-rng-pci,bus=root,ats=on,x-ats-page-aligned=off",
            "destination_args": "-device virtio-rng-pci,bus=root,ats=on",
        },
    ),
    "07-pcie-aer": Failure(
        "10.0",
        "7.2",
        {
            **Q35,
            "args": PORT,
            "source_args": "-device e1000e,bus=root,x-pcie-err-unc-mask=on,romfile=",
            "destination_args": "-device e1000e,bus=root,romfile=",
        },
    ),
    # a BAR of 32 bytes whose address is none for one of 64
    "08-pci-bar": Failure(
        "7.2",
        "10.0",
        {
            **PC,
            "args": "-device virtio-rng-pci,vectors=0,addr=4",
            "source_args": "-device virtio-balloon-pci,addr=5,page-poison=off",
            "destination_args": "-device virtio-balloon-pci,addr=5",
        },
        settle=2,
    ),
    "09-pcie-slot": Failure(
        "7.2",
        "5.2",
        {
            **WORKLOAD,
            "machine": "pc-q35-5.2",
            "args": PORT,
            "destination_args": "-device virtio-rng-pci,bus=root",
        },
    ),
    "10-serial": Failure("10.0", "7.2", {**PC, "source_args": "-device isa-serial"}),
    "11-rom-missing": Failure(
        "7.2",
        "11.1",
        {
            **PC,
            "caps": ["return-path"],
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": NET,
        },
    ),
    # a guest's memory that has a back end at the destination, and the name of that
    "11-spapr-ram": Failure(
        "10.0",
        "7.2",
        {
            "mem": 256,
            "machine": "pseries-7.2",
            "destination_args": "-object memory-backend-ram,id=ram0,size=256M -machine memory-backend=ram0",
        },
        arch="ppc64",
    ),
    "12-mach-virt-ram": Failure(
        "7.2",
        "10.0",
        {"mem": 32, "machine": "virt-7.2", "args": "-cpu max", "destination_args": "-m 64"},
        arch="aarch64",
    ),
    "12-ram-size": Failure("7.2", "10.0", {**PC, "destination_args": "-m 64"}),
    "12-rom-grew": Failure(
        "7.2",
        "7.2",
        {
            **PC,
            "source_args": "-device virtio-net-pci,addr=5,romsize=524288",
            "destination_args": "-device virtio-net-pci,addr=5",
        },
    ),
    "13-audio": Failure(
        "5.2", "10.0", {**PC, "machine": "pc-i440fx-5.2", "source_args": "-audiodev none,id=sound"}
    ),
    # no QEMU here sends this: a proxy in front of migsniff's own does it
    "14-virtqueue": Failure(
        "7.2",
        "10.0",
        {
            **PC,
            "files": {"disk": sector(LOOPS)},
            "args": "-drive if=none,id=disk,file={folder}/disk,format=raw "
            "-device virtio-blk-pci,drive=disk,addr=5",
        },
        settle=3,
        own=False,
        change=_gives_up_a_ring,
    ),
    "16-cut-in-a-page": Failure("10.0", "10.0", LIMITED, meanwhile=_dies_in_a_page, own=False),
    "17-multifd-channel": Failure(
        "7.2",
        "10.0",
        {
            **LIMITED,
            **PC,
            "caps": ["multifd"],
            "params": {"max-bandwidth": 10_000_000, "multifd-channels": 4},
        },
        meanwhile=_loses_a_channel,
        own=False,
    ),
    "18-killed": Failure(
        "11.1",
        "11.1",
        {**LIMITED, "caps": ["return-path"]},
        meanwhile=_after(0.3, lambda each: each.destination.kill()),
        own=False,
    ),
    # QEMU 10.0 minds a TLS session without an end unless its machine type says that the source is old
    "19-tls": Failure(
        "7.2",
        "10.0",
        {
            **WORKLOAD,
            **PC,
            "caps": ["multifd"],
            "params": {"tls-creds": "tls"},
            "files": {"keys.psk": TLS_KEY.encode()},
            "source_args": f"{KEY}client",
            "destination_args": f"{KEY}server -global migration.multifd-clean-tls-termination=on",
        },
        own=False,
    ),
    "20-not-converging": Failure(
        "10.0", "10.0", LIMITED, meanwhile=_cancelled_when("not-converging", "limited-by-source"), own=False
    ),
    "22-hangs": Failure("7.2", "7.2", {**LIMITED, "caps": ["return-path"]}, meanwhile=_hangs, own=False),
    "cancelled": Failure(
        "10.0",
        "10.0",
        {**WORKLOAD, "params": SLOW, "caps": ["return-path"]},
        meanwhile=_after(0.3, _cancel),
        own=False,
    ),
}
