"""Every mode of migration, of every version and machine, through the proxy: `python -m tests.matrix`.

    python -m tests.matrix                          all cells; exit code 1 if one fails
    python -m tests.matrix --ci                     every mode, version and machine at least once
    python -m tests.matrix --only 7.2 --only s390x  the cells of a version, machine or mode (any of a kind)
    python -m tests.matrix --table docs/matrix.md   and write the table; cells that did not run stay

A cell is one real migration between two real QEMUs through `python -m migsniff`. It is ok if QEMU completed
and the guest runs at the destination, the verdict is good, every byte of every channel belongs to a decoded
record, QEMU's counters are those of the log, and the log of the capture is the log that was printed live.
Nothing is tried twice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from migsniff.qemu import Qemu, QmpError
from tests.counters import Events, differing
from tests.guests import aarch64_loop, s390x_loop
from tests.qemu import REQUIRED, Migration, missing, poll
from tests.relays import Proxy

VERSIONS = ("5.2", "7.2", "10.0", "11.1")
FORGETFUL = ("--descriptions", "none")
"""What one migration has taught would make the next log, or the capture's, richer than the first."""
UUID = "12345678-9abc-def0-1234-56789abcdef0"
TLS_KEY = "qemu:" + "5e" * 32 + "\n"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


# ---------------------------------------------------------------- machines


@dataclass(frozen=True)
class Machine:
    """A board, with a guest that keeps its memory changing if `busy`; `disk` names a block device."""

    arch: str
    guest: dict[str, Any]
    disk: str = "virtio-blk-pci"
    busy: bool = True

    @property
    def mem(self) -> int:
        return int(self.guest["mem"])


PCI = "-device virtio-net-pci -device virtio-balloon-pci -device virtio-serial-pci"
MACHINES: dict[str, Machine] = {
    "pc": Machine("x86_64", {"machine": "pc", "mem": 32, "workload": 16}),
    "q35": Machine(
        "x86_64",
        {
            "machine": "q35",
            "mem": 32,
            "workload": 16,
            "args": f"{PCI} -device virtio-scsi-pci -device qemu-xhci -device usb-tablet -device e1000e"
            " -device virtio-gpu-pci -device virtio-rng-pci -device ipmi-bmc-sim,id=bmc"
            " -device isa-ipmi-kcs,bmc=bmc -nic user",
        },
    ),
    "virt": Machine(
        "aarch64",
        {
            "machine": "virt",
            "mem": 32,
            "args": f"-cpu cortex-a57 -smp 2 {PCI}"
            " -device loader,file={folder}/loop,addr=0x41800000,cpu-num=0",
            "files": {"loop": aarch64_loop()},
        },
    ),
    "pseries": Machine("ppc64", {"machine": "pseries", "mem": 256, "args": PCI}, busy=False),
    "s390x": Machine(
        "s390x",
        {
            "machine": "s390-ccw-virtio",
            "mem": 32,
            "args": "-device virtio-net-ccw -device virtio-balloon-ccw -kernel {folder}/loop",
            "files": {"loop": s390x_loop()},
        },
        disk="virtio-blk-ccw",
    ),
}

# ---------------------------------------------------------------- modes


@dataclass(frozen=True)
class Mode:
    """How to migrate, from version `since` up to and without `until`."""

    caps: tuple[str, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    args: Callable[[Machine, str], str] = lambda machine, version: ""
    sides: tuple[str, str] = ("", "")
    """Arguments of the source and of the destination alone."""
    files: dict[str, bytes] = field(default_factory=dict)
    before: Callable[[Migration], None] | None = None
    meanwhile: Callable[[Migration, str], None] | None = None
    """What happens while it migrates; it is told where the proxy listens."""
    since: tuple[int, ...] = (0,)
    until: tuple[int, ...] = (99,)
    reason: str = ""
    builds: dict[str, str] = field(default_factory=dict)
    """Versions whose builds here lack it, and why."""
    verdict: str = "completed"
    file: bool = False
    """It goes to a file, of which no proxy hears: the file is read."""
    needs: Callable[[Machine], str | None] = lambda machine: None
    """What this computer lacks for it."""


def let_converge(migration: Migration, where: str) -> None:
    time.sleep(0.5)
    migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 5000})


def to_postcopy(migration: Migration, where: str) -> None:
    time.sleep(0.3)
    migration.source.execute("migrate-start-postcopy")


def reaches(qemu: Qemu, status: str) -> None:
    def reached() -> bool:
        return bool(qemu.execute("query-migrate").get("status") == status)

    assert poll(reached, 20), qemu.execute("query-migrate")


def recover(migration: Migration, where: str) -> None:
    """To postcopy, which is interrupted, and goes on over a new connection."""
    source, destination = migration.source, migration.destination
    source.execute("migrate-set-parameters", **{"max-postcopy-bandwidth": 200_000})
    to_postcopy(migration, where)
    # a destination that does not run yet cannot pause either: it would just fail
    assert poll(lambda: bool(destination.execute("query-status")["running"]), 20), destination.log
    time.sleep(0.3)
    source.execute("migrate-pause")
    reaches(source, "postcopy-paused")
    reaches(destination, "postcopy-paused")
    destination.execute("migrate-recover", uri=f"tcp:{migration.where}")
    source.execute("migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
    source.execute("migrate", uri=f"tcp:{where}", resume=True)


def add_bitmaps(migration: Migration) -> None:
    for name in ("every-write", "other"):
        migration.source.execute("block-dirty-bitmap-add", node="disk0", name=name, granularity=65536)


def disk(machine: Machine, version: str) -> str:
    return (
        "-drive if=none,id=drive0,node-name=disk0,file={folder}/data,format=raw"
        f" -device {machine.disk},drive=drive0,id=vda"
    )


def shared_memory(machine: Machine, version: str) -> str:
    backend = f"-object memory-backend-file,id=ram0,size={machine.mem}M,mem-path={{shared}}/ram,share=on"
    return f"{backend} -machine memory-backend=ram0"


def huge_memory(machine: Machine, version: str) -> str:
    backend = f"-object memory-backend-memfd,id=ram0,size={machine.mem}M,hugetlb=on,hugetlbsize=2M"
    return f"{backend} -machine memory-backend=ram0"


def huge_pages(machine: Machine) -> str | None:
    """Have the kernel set aside what both sides take, with as much for a migration beside this one."""
    wanted = 4 * (machine.mem // 2 + 1)
    reserved = Path("/proc/sys/vm/nr_hugepages")
    try:
        if int(reserved.read_text()) < wanted:
            reserved.write_text(str(wanted))
        return None if int(reserved.read_text()) >= wanted else "the kernel has no huge pages to give"
    except OSError as error:
        return f"huge pages: {error.strerror}"


PATIENT = {"downtime-limit": 5000}  # what takes long to compress: the guest changes it meanwhile
SLOW = {"max-bandwidth": 300_000}
POSTCOPY = {"max-bandwidth": 3_000_000}
DISK = bytes(1 << 20) + bytes(range(256)) * 4096 + bytes(300_000)
DISK += bytes(-len(DISK) % (2 << 20))

MODES: dict[str, Mode] = {
    "plain": Mode(),
    "return path": Mode(("return-path",)),
    "XBZRLE": Mode(("xbzrle",), {"max-bandwidth": 60_000_000, "downtime-limit": 1}, meanwhile=let_converge),
    "compress": Mode(("compress",), PATIENT, until=(9, 1), reason="capability compress is gone since 9.1"),
    "multifd none": Mode(("multifd",)),
    "multifd zlib": Mode(("multifd",), {"multifd-compression": "zlib", "multifd-channels": 3, **PATIENT}),
    "multifd zstd": Mode(
        ("multifd",),
        {"multifd-compression": "zstd", "multifd-channels": 4, **PATIENT},
        builds={"5.2": "Debian has built QEMU 5.2 without zstd"},
    ),
    "postcopy": Mode(("postcopy-ram",), POSTCOPY, meanwhile=to_postcopy),
    "preempt": Mode(
        ("postcopy-ram", "postcopy-preempt", "return-path"),
        POSTCOPY,
        meanwhile=to_postcopy,
        since=(7, 1),
        reason="capability postcopy-preempt is there since 7.1",
    ),
    "huge pages": Mode(
        ("postcopy-ram",), POSTCOPY, args=huge_memory, meanwhile=to_postcopy, needs=huge_pages
    ),
    "recovery": Mode(("postcopy-ram",), POSTCOPY, meanwhile=recover),
    "dirty bitmaps": Mode(("dirty-bitmaps",), args=disk, files={"data": DISK}, before=add_bitmaps),
    "block": Mode(
        ("block",),
        args=disk,
        files={"data": DISK},
        until=(9, 1),
        reason="capability block is gone since 9.1",
    ),
    "ignore-shared": Mode(("x-ignore-shared",), args=shared_memory),
    "validate-uuid": Mode(("validate-uuid",), args=lambda machine, version: f"-uuid {UUID}"),
    "background snapshot": Mode(
        ("background-snapshot",),
        since=(6, 0),
        reason="capability background-snapshot is there since 6.0",
    ),
    "mapped-ram": Mode(
        ("mapped-ram",), since=(9, 0), reason="capability mapped-ram is there since 9.0", file=True
    ),
    "TLS": Mode(
        params={"tls-creds": "tls0"},
        sides=tuple(  # type: ignore[arg-type]
            f"-object tls-creds-psk,id=tls0,dir={{folder}},endpoint={end}" for end in ("client", "server")
        ),
        files={"keys.psk": TLS_KEY.encode()},
        verdict="opaque",
    ),
}

# ---------------------------------------------------------------- differences that are known


Numbers = dict[str, int]
NORMAL = ("normal", "normal-bytes")
MULTIFD = ("multifd none", "multifd zlib", "multifd zstd")
MULTIFD_HEADER = 1344  # bytes of a packet without its pages, which are of 4 KiB


@dataclass(frozen=True)
class Known:
    """A difference between QEMU's counters and the wire that is QEMU's own, by name."""

    name: str
    counters: tuple[str, ...]
    modes: tuple[str, ...]
    fits: Callable[[Numbers, Numbers, Machine], bool]
    """Whether the differing numbers can be that difference: of the log, of QEMU."""
    until: tuple[int, ...] = (99,)


def less(own: Numbers, said: Numbers, machine: Machine) -> bool:
    """Whether QEMU counts more than the wire has."""
    return all(own[name] < said[name] for name in said)


KNOWN: tuple[Known, ...] = (
    Known(
        "compress: QEMU counts the last zero page of each idle thread again at every flush",
        ("duplicate",),
        ("compress",),
        less,
    ),
    Known(
        "multifd: QEMU sends the last page of a full packet again, and does not count that",
        NORMAL,
        MULTIFD,
        lambda own, said, machine: 0 < own["normal"] - said["normal"] < 0.05 * own["normal"],
        until=(8, 1),
    ),
    Known(
        "multifd: QEMU counts a last empty packet that it does not send any more",
        ("multifd-bytes", "transferred"),
        MULTIFD,
        lambda own, said, machine: all(
            said[name] - own[name] in range(MULTIFD_HEADER, 5 * MULTIFD_HEADER, MULTIFD_HEADER)
            for name in said
        ),
        until=(8, 1),
    ),
    Known(
        "ignore-shared: QEMU's total leaves the shared blocks out, the list on the wire has them",
        ("total",),
        ("ignore-shared",),
        lambda own, said, machine: own["total"] - said["total"] == machine.mem << 20,
    ),
    Known(
        "background snapshot: which pages were saved while the guest stood still is not on the wire",
        ("precopy-bytes", "downtime-bytes"),
        ("background snapshot",),
        lambda own, said, machine: sum(own.values()) == sum(said.values()),
    ),
    Known(
        "postcopy: the PART that flushes before the switchover is not counted",
        ("precopy-bytes",),
        ("postcopy", "preempt", "recovery", "huge pages"),
        lambda own, said, machine: own["precopy-bytes"] - said["precopy-bytes"] == 8,
    ),
    Known(
        "recovery: QEMU counts the EOS of the PART that was broken off",
        ("postcopy-bytes", "transferred"),
        ("recovery",),
        lambda own, said, machine: all(said[name] - own[name] == 8 for name in said),
    ),
    Known(
        "recovery: a page request that came when the connection was broken is not counted",
        ("postcopy-requests",),
        ("recovery",),
        lambda own, said, machine: 0 < own["postcopy-requests"] - said["postcopy-requests"] < 8,
    ),
    Known(
        "recovery: QEMU counts pages that were in its buffer when the connection broke",
        (*NORMAL, "duplicate", "transferred"),
        ("recovery",),
        lambda own, said, machine: (
            less(own, said, machine) and said.get("transferred", 0) - own.get("transferred", 0) <= 1 << 16
        ),
        until=(6, 0),
    ),
    Known(
        "mapped-ram: a page that is sent again takes the place of the first in the file",
        (*NORMAL, "duplicate"),
        ("mapped-ram",),
        less,
    ),
    Known(
        "mapped-ram: bytes are counted as sent, not as the file has them",
        ("transferred", "precopy-bytes", "downtime-bytes"),
        ("mapped-ram",),
        lambda own, said, machine: True,
    ),
)

# ---------------------------------------------------------------- a cell


@dataclass(frozen=True)
class Cell:
    version: str
    machine: str
    mode: str

    def __str__(self) -> str:
        return f"{self.version} {self.machine} {self.mode}"

    @property
    def absent(self) -> str | None:
        """Why there is no such migration, None if there is."""
        mode = MODES[self.mode]
        if not mode.since <= numbers(self.version) < mode.until:
            return mode.reason
        return mode.builds.get(self.version)


@dataclass
class Outcome:
    """What came of a cell: `failures` in words, `known` differences by name."""

    cell: Cell
    qemu: str = ""
    failures: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    seconds: float = 0.0
    missing: str | None = None


def run(cell: Cell) -> Outcome:
    """One migration, and what there is to say of it."""
    outcome = Outcome(cell)
    machine = MACHINES[cell.machine]
    outcome.missing = missing(cell.version, machine.arch)
    if outcome.missing and cell.version in REQUIRED.split():
        outcome.failures.append(f"{outcome.missing}, but MIGSNIFF_REQUIRE_QEMU={REQUIRED} demands it")
    outcome.missing = outcome.missing or MODES[cell.mode].needs(machine)
    if cell.absent or outcome.missing:
        return outcome
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="migsniff-") as folder:
            _migrate(cell, machine, MODES[cell.mode], Path(folder), outcome)
    except (QmpError, TimeoutError, RuntimeError, AssertionError, OSError) as error:
        outcome.failures.append(f"{type(error).__name__}: {str(error).strip()[:300]}")
    except Exception:
        outcome.failures.append(traceback.format_exc(limit=-3))
    outcome.seconds = time.monotonic() - began
    return outcome


def _migrate(cell: Cell, machine: Machine, mode: Mode, folder: Path, outcome: Outcome) -> None:
    guest = dict(machine.guest)
    guest["args"] = f"{guest.get('args', '')} {mode.args(machine, cell.version)}"
    guest["files"] = {**guest.get("files", {}), **mode.files}
    guest["source_args"], guest["destination_args"] = mode.sides
    params = dict(mode.params)
    if mode.params == POSTCOPY and not machine.busy:
        params.update(SLOW)
    with Migration(cell.version, arch=machine.arch, caps=mode.caps, params=params, **guest) as migration:
        if machine.busy and not migration.workload:
            time.sleep(0.5)  # the guest boots
        if mode.before:
            mode.before(migration)
        if mode.file:
            _to_a_file(migration, cell, outcome)
            return
        with Proxy(folder, migration.listen(), *FORGETFUL) as proxy:
            migration.start(f"tcp:{proxy.where}")
            if mode.meanwhile:
                mode.meanwhile(migration, proxy.where)
            result = migration.wait(40)
            outcome.qemu = result.version
            if (result.status, result.destination_runs) != ("completed", True):
                where = "" if result.destination_runs else ", not running at the destination"
                outcome.failures.append(
                    f"QEMU: {result.status}{where} {migration.destination.log[-200:].strip()}"
                )
            (verdict,) = proxy.verdicts()
            code = proxy.stop()
            _judge(mode, verdict, proxy.events, outcome)
            if code != 0:
                outcome.failures.append(f"exit code {code}")
            if "Traceback" in proxy.messages:
                outcome.failures.append(proxy.messages[-300:])
            captures = list((folder / "captures").iterdir())
            if len(captures) != 1:
                outcome.failures.append(f"{len(captures)} captures")
            elif _read(captures[0]) != (folder / "log").read_text():
                outcome.failures.append("the capture's log is not the live one")
            if mode.verdict != "opaque":
                _count(cell, result.version, result.ram, proxy.events, outcome)


def _to_a_file(migration: Migration, cell: Cell, outcome: Outcome) -> None:
    result = migration.run(f"file:{migration.shared.inside}/dump")
    outcome.qemu = result.version
    if result.status != "completed":
        outcome.failures.append(f"QEMU: {result.status}")
    events = [json.loads(line) for line in _read(migration.shared.path / "dump").splitlines()]
    verdict = next((event for event in events if event["type"] == "verdict"), None)
    _judge(MODES[cell.mode], verdict, events, outcome)
    _count(cell, result.version, result.ram, events, outcome)


def _read(path: Path) -> str:
    command = [sys.executable, "-m", "migsniff", "read", "-T", "ndjson", *FORGETFUL, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _judge(mode: Mode, verdict: dict[str, Any] | None, events: Events, outcome: Outcome) -> None:
    if verdict is None or not verdict["ok"] or verdict["outcome"] != mode.verdict:
        outcome.failures.append(f"verdict: {verdict and verdict['message']}")
    if mode.verdict == "opaque":
        return
    for event in events:
        if event["type"] in ("undecodable", "opaque", "dropped"):
            said = event.get("message") or event.get("what")
            outcome.failures.append(
                f"{event['type']} at {event.get('channel')} {event.get('offset')}: {said}"
            )
        if event["type"] == "channel" and event["role"] in ("unknown", "tls"):
            outcome.failures.append(f"channel {event['channel']}: {event['detail']}")
        if event["type"] == "finding" and event["severity"] in ("warn", "error"):
            outcome.failures.append(f"finding {event['code']}: {event['message']}")
    for gap in gaps(events):
        outcome.failures.append(f"no record holds {gap}")


def gaps(events: Events) -> Iterator[str]:
    """The stretches of each channel that no record holds."""
    ends: dict[tuple[str, str], int] = {}
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    broken = {(e["channel"], e["direction"], e["offset"] - 5) for e in events if e["type"] == "loose-pages"}
    for event in events:
        if event["type"] == "verdict":
            continue
        key = event["channel"], event["direction"]
        if event["type"] == "end":
            ends[key] = event["offset"]
        elif event["type"] != "finding":
            spans.setdefault(key, []).append((event["offset"], event["offset"] + event["size"]))
    for key, end in ends.items():
        at = 0
        for start, stop in [*sorted(spans.get(key, [])), (end, end)]:
            if (*key, at) in broken:  # the header of a section that was cut off among its pages
                at += 5
            eos = key == ("preempt", "fwd") and (start, at) == (end, end - 8)
            if start > at and not eos:
                yield f"{at} to {start} of {' '.join(key)}"
            at = max(at, stop)


def _count(cell: Cell, version: str, ram: dict[str, int], events: Events, outcome: Outcome) -> None:
    different = differing(version, ram, events)
    for known in KNOWN:
        own = {name: different[name][0] for name in known.counters if name in different}
        said = {name: different[name][1] for name in own}
        if (
            own
            and cell.mode in known.modes
            and numbers(cell.version) < known.until
            and known.fits(own, said, MACHINES[cell.machine])
        ):
            outcome.known.append(known.name)
            different = {name: pair for name, pair in different.items() if name not in own}
    for name, (own_one, said_one) in different.items():
        outcome.failures.append(f"{name}: the wire has {own_one}, QEMU counts {said_one}")


# ---------------------------------------------------------------- many cells


def cells(only: Iterable[str] = (), ci: bool = False) -> list[Cell]:
    """All cells; or those of these versions, machines and modes; or a selection that has each of them."""
    wanted = set(only)
    unknown = wanted - {*VERSIONS, *MACHINES, *MODES}
    if unknown:
        raise SystemExit(f"no such version, machine or mode: {', '.join(sorted(unknown))}")
    chosen = []
    for number, machine in enumerate(MACHINES):
        for at, version in enumerate(VERSIONS):
            for place, mode in enumerate(MODES):
                if not all(
                    name in wanted or not wanted & set(kind)
                    for name, kind in ((version, VERSIONS), (machine, MACHINES), (mode, MODES))
                ):
                    continue
                # each mode on one machine of each version, another one each time
                if ci and (place + at) % len(MACHINES) != number:
                    continue
                chosen.append(Cell(version, machine, mode))
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--ci", action="store_true", help="a selection")
    parser.add_argument("--jobs", type=int, default=2, help="migrations at a time (2)")
    parser.add_argument(
        "--results", type=Path, help="JSON lines: outcomes are added there, and make the table"
    )
    parser.add_argument("--table", type=Path, help="write the table there; cells that did not run now stay")
    given = parser.parse_args()
    began = time.monotonic()
    outcomes = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(run, cells(given.only, given.ci)):
            outcomes.append(outcome)
            if given.results:
                with given.results.open("ab") as kept:
                    kept.write(msgspec.json.encode(outcome) + b"\n")
            if not outcome.cell.absent:
                said = "; ".join(outcome.failures) or outcome.missing or "ok"
                known = f" [{'; '.join(outcome.known)}]" if outcome.known else ""
                print(f"{outcome.cell}: {said}{known} ({outcome.seconds:.1f} s)", flush=True)
    ran = [outcome for outcome in outcomes if outcome.qemu]
    failed = [outcome for outcome in outcomes if outcome.failures]
    print(f"{len(ran)} migrations, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    if given.table:
        from tests.matrixtable import read_table, table

        kept = read_table(given.table.read_text()) if given.table.exists() else []
        if given.results:
            lines = given.results.read_bytes().splitlines()
            outcomes = [msgspec.json.decode(line, type=Outcome) for line in lines]
        given.table.write_text(table([*kept, *outcomes]))
    return 1 if failed else 0


if __name__ == "__main__":
    # The module, not this script: a Cell of `__main__` is of another class, and equals none of the table's.
    from tests.matrix import main as the_module

    sys.exit(the_module())
