"""Makes the samples of this folder again: `python -m captures.samples.make [--script PATH] [NAME ...]`.

A sample is a real migration between two real QEMUs, as migsniff saved it: stripped of guest memory, and each
file compressed. Beside the capture stand

    qemu.json               how it was made, QEMU's version and its own counters (query-migrate of both sides)
    golden.ndjson.zst       what `migsniff read -T ndjson` prints of it
    script.state.json.zst   what QEMU's own scripts/analyze-migration.py prints of the whole stream, memory
    script.desc.json.zst    and all (-d state, -d desc), where it can read it; it is not ours, hence --script

`--golden` only decodes the captures that are there again, after a change that was meant to be seen. The
migrations that failed are made by failed.py.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from tests.guests import ppc64_hash_table, s390x_loop
from tests.matrix import DISK, MACHINES, UUID, add_bitmaps, disk, huge_memory, recover, shared_memory
from tests.qemu import ENDED, Migration, missing, poll
from tests.relays import Proxy, Recorder

HERE = Path(__file__).parent
PACK_LEVEL = 19
MANIFEST = "manifest.json"  # the one file of a capture that is never compressed


def _later(seconds: float, command: str) -> Callable[[Migration], None]:
    def meanwhile(migration: Migration) -> None:
        time.sleep(seconds)
        migration.source.execute(command)

    return meanwhile


def _boots(migration: Migration) -> None:
    time.sleep(0.5)


def _interrupted(migration: Migration) -> None:
    recover(migration, migration.uri.removeprefix("tcp:"))


def _let_converge(migration: Migration) -> None:
    time.sleep(0.3)
    migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 5000})


def _after_a_checkpoint(migration: Migration, proxy: Proxy) -> None:
    """COLO has no end: both sides die. (7.2's do not answer any more behind their first checkpoint.)"""
    if not poll(lambda: any(event.get("name") == "VMSTATE_LOADED" for event in proxy.events), 20):
        raise RuntimeError("no checkpoint was loaded")
    migration.source.kill()
    migration.destination.kill()


@dataclass(frozen=True)
class Recipe:
    """How a sample is made: a guest, a mode, and what happens while it migrates."""

    version: str
    guest: dict[str, Any] = field(default_factory=dict)
    arch: str = "x86_64"
    status: str = "completed"
    meanwhile: Callable[[Migration], None] | None = None
    before: Callable[[Migration], None] | None = None
    afterwards: Callable[[Migration, Proxy], None] | None = None
    """What happens once it has the status `status`, which is not its end."""


DEVICES = (
    "-device virtio-net-pci -device virtio-scsi-pci -device virtio-balloon-pci -device virtio-rng-pci"
    " -device virtio-serial-pci -device virtconsole -device qemu-xhci -device usb-tablet -device usb-kbd"
    " -device e1000e -device virtio-gpu-pci -audiodev none,id=sound -device intel-hda"
    " -device hda-duplex,audiodev=sound -drive if=none,id=disk,driver=null-co,size=1M"
    " -device virtio-blk-pci,drive=disk"
)
PC = {"mem": 32, "machine": "pc"}
Q35 = {"mem": 32, "machine": "q35", "args": DEVICES}
WORKLOAD = {"mem": 32, "workload": 16}
SLOW = {"max-bandwidth": 10_000_000}
STORED = {**PC, "args": disk(MACHINES["pc"], ""), "files": {"data": DISK}}
SHARED = {**WORKLOAD, "args": shared_memory(MACHINES["pc"], ""), "caps": ["x-ignore-shared"]}
HASH_TABLE = {
    "mem": 256,
    "machine": "pseries",
    "args": "-cpu power8 -bios {folder}/firmware",
    "files": {"firmware": ppc64_hash_table()},
}
SNAPSHOT = {**WORKLOAD, "caps": ["background-snapshot"]}
VIRTIO_MEM = {
    **PC,
    "args": "-m 32M,maxmem=256M,slots=1 -object memory-backend-ram,id=more,size=128M"
    " -device virtio-mem-pci,memdev=more,requested-size=16M",
}
S390X = {
    "mem": 32,
    "machine": "s390-ccw-virtio",
    "args": "-netdev user,id=net -device virtio-net-ccw,netdev=net -kernel {folder}/loop",
    "files": {"loop": s390x_loop()},
}

RECIPES: dict[str, Recipe] = {
    "x86-52-pc": Recipe("5.2", PC),
    "x86-52-q35": Recipe("5.2", Q35),
    "x86-72-pc": Recipe("7.2", PC),
    "x86-72-q35": Recipe("7.2", Q35),
    "x86-100-pc": Recipe("10.0", PC),
    "x86-100-q35": Recipe("10.0", Q35),
    "x86-111-pc": Recipe("11.1", PC),
    "x86-111-q35": Recipe("11.1", Q35),
    # a page size that only the configuration tells; a subsection that the description leaves out
    "aarch64-72-virt": Recipe(
        "7.2",
        {"mem": 32, "machine": "virt", "args": "-cpu max -device virtio-net-pci -smp 2"},
        arch="aarch64",
    ),
    "aarch64-100-virt": Recipe("10.0", {"mem": 32, "machine": "virt", "args": "-cpu max"}, arch="aarch64"),
    "riscv64-100-virt": Recipe("10.0", {"mem": 32, "machine": "virt"}, arch="riscv64"),
    "ppc64-100-pseries": Recipe("10.0", {"mem": 256, "machine": "pseries"}, arch="ppc64"),
    # state that its own description does not explain
    "s390x-72-ccw": Recipe(
        "7.2",
        {
            "mem": 32,
            "machine": "s390-ccw-virtio",
            "args": "-device virtio-net-ccw -no-shutdown -action panic=none",
        },
        arch="s390x",
    ),
    "x86-72-passes": Recipe("7.2", {**WORKLOAD, "params": {"max-bandwidth": 40_000_000}}),
    "x86-72-return-path": Recipe("7.2", {**WORKLOAD, "caps": ["return-path"]}),
    "x86-111-return-path": Recipe("11.1", {**WORKLOAD, "caps": ["return-path"]}),
    "x86-72-xbzrle": Recipe(
        "7.2",
        {**WORKLOAD, "caps": ["xbzrle"], "params": {"max-bandwidth": 60_000_000, "downtime-limit": 1}},
        meanwhile=_let_converge,
    ),
    "x86-72-compress": Recipe("7.2", {**WORKLOAD, "caps": ["compress"]}),
    "x86-100-postcopy": Recipe(
        "10.0",
        {**WORKLOAD, "caps": ["postcopy-ram"], "params": SLOW},
        meanwhile=_later(0.3, "migrate-start-postcopy"),
    ),
    # the list of RAM blocks tells page sizes, and postcopy moves 2 MiB at a time
    "x86-72-huge-pages": Recipe(
        "7.2",
        {
            **WORKLOAD,
            "args": huge_memory(MACHINES["pc"], "7.2"),
            "mem": MACHINES["pc"].mem,
            "caps": ["postcopy-ram"],
            "params": SLOW,
        },
        meanwhile=_later(0.3, "migrate-start-postcopy"),
    ),
    # pages that the guest asks for come on a channel of their own
    "x86-100-preempt": Recipe(
        "10.0",
        {
            **WORKLOAD,
            "caps": ["postcopy-ram", "postcopy-preempt"],
            "params": {**SLOW, "max-postcopy-bandwidth": 10_000_000},
        },
        meanwhile=_later(0.3, "migrate-start-postcopy"),
    ),
    # interrupted in postcopy, it goes on over a second connection
    "x86-72-recovered": Recipe(
        "7.2", {**WORKLOAD, "caps": ["postcopy-ram"], "params": SLOW}, meanwhile=_interrupted
    ),
    "x86-100-multifd": Recipe("10.0", {**WORKLOAD, "caps": ["multifd"]}),
    "x86-72-cancelled": Recipe(
        "7.2", {**WORKLOAD, "params": SLOW}, status="cancelled", meanwhile=_later(0.3, "migrate_cancel")
    ),
    # live sections beside ram
    "x86-72-dirty-bitmap": Recipe("7.2", {**STORED, "caps": ["dirty-bitmaps"]}, before=add_bitmaps),
    "x86-111-dirty-bitmap": Recipe("11.1", {**STORED, "caps": ["dirty-bitmaps"]}, before=add_bitmaps),
    "x86-52-block": Recipe("5.2", {**STORED, "caps": ["block"]}),
    "x86-72-block": Recipe("7.2", {**STORED, "caps": ["block"]}),
    "ppc64-72-pseries": Recipe("7.2", {"mem": 256, "machine": "pseries"}, arch="ppc64"),
    # a hash page table with entries
    "ppc64-72-hash-table": Recipe("7.2", HASH_TABLE, arch="ppc64", before=_boots),
    "ppc64-100-hash-table": Recipe("10.0", HASH_TABLE, arch="ppc64", before=_boots),
    # skeys (all of them in 5.2), storage attributes, todclock, slirp
    "s390x-52-ccw": Recipe("5.2", S390X, arch="s390x"),
    "s390x-100-ccw": Recipe("10.0", S390X, arch="s390x"),
    # device state in the setup phase: behind the START of ram, and before it
    "x86-100-virtio-mem": Recipe("10.0", VIRTIO_MEM),
    "x86-111-virtio-mem": Recipe("11.1", VIRTIO_MEM),
    "x86-72-colo": Recipe(
        "7.2",
        {**PC, "workload": 8, "caps": ["x-colo"], "params": {"x-checkpoint-delay": 3000}},
        status="colo",
        afterwards=_after_a_checkpoint,
    ),
    # no END of ram
    "x86-72-background-snapshot": Recipe("7.2", SNAPSHOT),
    "x86-100-background-snapshot": Recipe("10.0", SNAPSHOT),
    "x86-111-background-snapshot": Recipe("11.1", SNAPSHOT),
    "x86-72-ignore-shared": Recipe("7.2", SHARED),
    "x86-100-ignore-shared": Recipe("10.0", SHARED),
    "x86-72-validate-uuid": Recipe("7.2", {**PC, "args": f"-uuid {UUID}", "caps": ["validate-uuid"]}),
    # no footers, no configuration, no description; no configuration; everything; and each switched off
    "x86-52-pc-2.2": Recipe("5.2", {**PC, "machine": "pc-i440fx-2.2"}),
    "x86-72-pc-2.2": Recipe("7.2", {**PC, "machine": "pc-i440fx-2.2"}),
    "x86-72-pc-2.3": Recipe("7.2", {**PC, "machine": "pc-i440fx-2.3"}),
    "x86-72-pc-2.4": Recipe("7.2", {**PC, "machine": "pc-i440fx-2.4"}),
    "x86-72-no-description": Recipe("7.2", {**PC, "machine": "pc,suppress-vmdesc=on"}),
    "x86-72-no-footers": Recipe("7.2", {**PC, "args": "-global migration.send-section-footer=off"}),
    # fields that are groups with a version, lists, and devices on another bus than PCI
    "x86-72-ipmi": Recipe(
        "7.2", {**PC, "args": "-nic user -device ipmi-bmc-sim,id=bmc -device isa-ipmi-kcs,bmc=bmc"}
    ),
    "x86-111-uefi-vars": Recipe("11.1", {"mem": 32, "machine": "q35", "args": "-device uefi-vars-x64"}),
    "aarch64-100-virtio-mmio": Recipe(
        "10.0",
        {
            "mem": 32,
            "machine": "virt",
            "args": "-cpu max -device virtio-net-device -device virtio-rng-device"
            " -device virtio-balloon-device -device virtio-serial-device"
            " -device virtconsole -device virtio-scsi-device",
        },
        arch="aarch64",
    ),
    "x86-72-multifd": Recipe("7.2", {**WORKLOAD, "caps": ["multifd"]}),
    "x86-100-multifd-zstd": Recipe(
        "10.0", {**WORKLOAD, "caps": ["multifd"], "params": {"multifd-compression": "zstd"}}
    ),
    "x86-111-multifd-zlib": Recipe(
        "11.1", {**WORKLOAD, "caps": ["multifd"], "params": {"multifd-compression": "zlib"}}
    ),
    "x86-100-multifd-16": Recipe(
        "10.0", {**WORKLOAD, "caps": ["multifd"], "params": {"multifd-channels": 16}}
    ),
    # the two sides have MSI-X tables of different size: the destination says so, and why, on the return path
    "x86-72-refused": Recipe(
        "7.2",
        {
            **PC,
            "caps": ["return-path"],
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,vectors=8",
        },
        status="failed",
    ),
    # the destination lacks a device, and the source, without a return path, believes that all went well
    "x86-100-refused": Recipe("10.0", {**PC, "source_args": "-device virtio-rng-pci"}),
}


def make(name: str, recipe: Recipe, script: Path | None) -> None:
    """Run the migration and put the sample in place of the one that is there."""
    with tempfile.TemporaryDirectory(prefix="migsniff-") as scratch:
        work = Path(scratch)
        with (
            Migration(recipe.version, arch=recipe.arch, **recipe.guest) as migration,
            Proxy(work / "proxy", migration.listen()) as proxy,
            Recorder(work / "raw", proxy.where) as recorder,
        ):
            if recipe.before:
                recipe.before(migration)
            migration.start(f"tcp:{recorder.where}")
            if recipe.meanwhile:
                recipe.meanwhile(migration)
            result = migration.wait(until=(*ENDED, recipe.status))
            if result.status != recipe.status:
                raise RuntimeError(f"{name}: {result.status} instead of {recipe.status}: {result.source}")
            if recipe.afterwards:
                recipe.afterwards(migration, proxy)
            recorder.recorded()
            proxy.verdicts()
            proxy.stop()
            qemu = {
                "version": result.version,
                "arch": recipe.arch,
                "guest": {name: value for name, value in recipe.guest.items() if name != "files"},
                "source": result.source,
                "destination": result.destination,
                "destination_runs": result.destination_runs,
                "destination_log": migration.destination.log.splitlines(),
            }
        sample = work / "sample"
        sample.mkdir()
        for path in sorted(proxy.capture().iterdir()):
            keep(sample, path.name, path.read_bytes())
        (sample / "qemu.json").write_text(json.dumps(qemu, indent=1) + "\n")
        if script:
            for what in ("state", "desc"):
                printed = _printed_by(script, "-d", what, "-f", str(work / "raw" / "connection-0.fwd"))
                if printed is not None:
                    keep(sample, f"script.{what}.json", printed)
        shutil.rmtree(HERE / name, ignore_errors=True)
        shutil.copytree(sample, HERE / name)


def _printed_by(script: Path, *arguments: str) -> bytes | None:
    """What QEMU's script prints; None if it fails, as it does on many streams."""
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def decode(name: str) -> None:
    """Write down what migsniff prints of a sample."""
    command = [sys.executable, "-m", "migsniff", "read", "--descriptions", "none"]
    command += ["-T", "ndjson", str(HERE / name)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode > 1:
        raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stderr.decode()}")
    keep(HERE / name, "golden.ndjson", done.stdout)


def keep(folder: Path, name: str, content: bytes) -> None:
    """Put a file of a capture, or one beside it, into a sample."""
    if name == MANIFEST:
        (folder / name).write_bytes(content)
    else:
        (folder / f"{name}.zst").write_bytes(zstandard.ZstdCompressor(level=PACK_LEVEL).compress(content))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", choices=[*RECIPES, []], help="which samples (all)", metavar="NAME")
    parser.add_argument("--script", type=Path, help="QEMU's scripts/analyze-migration.py")
    parser.add_argument("--golden", action="store_true", help="only decode again")
    given = parser.parse_args()
    failed = 0
    for name in given.name or RECIPES:
        recipe = RECIPES[name]
        reason = None if given.golden else missing(recipe.version, recipe.arch)
        if reason:
            print(f"{name}: left as it is: {reason}", file=sys.stderr)
            failed = 1
            continue
        if not given.golden:
            make(name, recipe, given.script)
        decode(name)
        size = sum(path.stat().st_size for path in (HERE / name).iterdir())
        print(f"{name}: {size >> 10} KiB", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
