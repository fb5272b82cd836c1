"""Makes the samples of failed/ again, as make.py the others: `python -m captures.samples.failed [NAME ...]`.

Each is a migration that failed for one of the reasons in docs/cases.md, between two real QEMUs. Beside what
make.py writes stand

    destination.log         what the destination wrote to its standard error
    destination/            a capture of the destination's own command line, for `migsniff check --against`
    expected.json           what migsniff must say: written by hand, and left as it is

`--golden` only decodes the captures that are there again.
"""

import argparse
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zstandard

from captures.samples.make import HERE, SLOW, WORKLOAD, decode, keep
from migsniff.qemu import QmpError
from tests.guests import HOTPLUGS_CPUS, TAKES_FEATURES, sector
from tests.matrix import TLS_KEY
from tests.qemu import Migration, missing, poll
from tests.relays import Proxy

FOLDER: Final = "failed"
EXPECTED: Final = "expected.json"
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


@dataclass(frozen=True)
class Failure:
    """Two QEMUs, a guest, how long it runs first, and what happens while it migrates.

    `own`: the destination's own stream tells why.
    """

    source: str
    destination: str
    guest: dict[str, Any]
    settle: float = 0
    meanwhile: Meanwhile | None = None
    own: bool = True


PC: Final = {"mem": 32, "machine": "pc-i440fx-7.2"}
Q35: Final = {"mem": 32, "machine": "pc-q35-7.2"}
BOOT: Final = "-drive file={folder}/boot,format=raw,if=ide"
PORT: Final = "-device pcie-root-port,id=root,chassis=1,addr=4"
NET: Final = "-device virtio-net-pci,addr=5,romfile="
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


def make(name: str, failure: Failure) -> None:
    """Run the migration and put the sample in place of the one that is there.

    Raises RuntimeError if what is read from it is not what the live log said.
    """
    with tempfile.TemporaryDirectory(prefix="migsniff-") as scratch:
        sample = Path(scratch) / "sample"
        sample.mkdir()
        live = _failed(Path(scratch), sample, failure)
        if failure.own:
            (sample / "destination").mkdir()
            _own(Path(scratch), sample / "destination", failure)
        where = HERE / FOLDER / name
        if (where / EXPECTED).exists():
            shutil.copy(where / EXPECTED, sample)
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(sample, where)
    decode(f"{FOLDER}/{name}")
    if zstandard.decompress((where / "golden.ndjson.zst").read_bytes()) != live:
        raise RuntimeError(f"{name}: the live log said something else")


def _failed(work: Path, sample: Path, failure: Failure) -> bytes:
    """The migration that fails; returns the live log."""
    with (
        Migration(failure.source, destination_version=failure.destination, **failure.guest) as migration,
        Proxy(work / "failed", migration.listen(), "--descriptions", "none") as proxy,
    ):
        time.sleep(failure.settle)
        versions = {
            side.name: side.execute("query-version")["qemu"]
            for side in (migration.source, migration.destination)
        }
        migration.start(f"tcp:{proxy.where}")
        source = None
        with contextlib.suppress(QmpError):  # one that has been killed
            if failure.meanwhile:
                failure.meanwhile(migration, proxy)
            source = migration.wait().source
        proxy.verdicts()
        proxy.stop()
        log = migration.destination.log
        qemu = {
            "versions": {
                side: "{major}.{minor}.{micro}".format(**version) for side, version in versions.items()
            },
            "guest": {key: value for key, value in failure.guest.items() if key != "files"},
            "source": source,
        }
    _keep_capture(proxy, sample)
    (sample / "qemu.json").write_text(json.dumps(qemu, indent=1) + "\n")
    lines = [line for line in log.splitlines() if ": warning: " not in line]
    (sample / "destination.log").write_text("".join(f"{line}\n" for line in lines))
    return (proxy.folder / "log").read_bytes()


def _own(work: Path, folder: Path, failure: Failure) -> None:
    """What the destination would send itself: its command line, its guest, and nothing that happens."""
    guest = dict(failure.guest)
    guest.pop("source_args", None)
    guest["args"] = f"{guest.get('args', '')} {guest.pop('destination_args', '')}"
    with (
        Migration(failure.destination, **guest) as migration,
        Proxy(work / "own", migration.listen(), "--descriptions", "none") as proxy,
    ):
        time.sleep(failure.settle)
        result = migration.run(f"tcp:{proxy.where}")
        if result.status != "completed":
            raise RuntimeError(f"the destination's own: {result.status}: {result.source}")
        proxy.verdicts()
        proxy.stop()
    _keep_capture(proxy, folder)


def _keep_capture(proxy: Proxy, folder: Path) -> None:
    for path in sorted(proxy.capture().iterdir()):
        keep(folder, path.name, path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", nargs="*", choices=[*FAILURES, []], help="which samples (all)", metavar="NAME"
    )
    parser.add_argument("--golden", action="store_true", help="only decode again")
    given = parser.parse_args()
    failed = 0
    for name in given.name or FAILURES:
        failure = FAILURES[name]
        reason = missing(failure.source) or missing(failure.destination)
        if reason and not given.golden:
            print(f"{name}: left as it is: {reason}", file=sys.stderr)
            failed = 1
            continue
        if given.golden:
            decode(f"{FOLDER}/{name}")
        else:
            make(name, failure)
        size = sum(path.stat().st_size for path in (HERE / FOLDER / name).rglob("*") if path.is_file())
        print(f"{name}: {size >> 10} KiB", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
