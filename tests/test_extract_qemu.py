"""`analyze -x` of captures of real migrations against the memory of the guest, byte by byte.

The destination is started with -S: it loads the guest and does not run it, so that its memory is what the
wire carried. In postcopy it has to run; there the source, which stopped before, is what all pages must equal.
(Elsewhere the source may differ from the destination: TCG of some versions misses a write now and then.)

Three of these run always. All, some minutes: MIGSNIFF_PROOFS=1 python -m pytest tests/test_extract_qemu.py
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.qemu import Qemu
from tests.qemu import ENDED, Migration, poll, require
from tests.relays import Proxy
from tests.test_postcopy import pause

MEM = 64  # MiB
LOW = 0xA0000  # behind it the guest sees other things than pc.ram, up to 1 MiB
HIGH = 1 << 20
BIOS_END = 1 << 32
Status = Mapping[str, Any]
Captured = pytest.CaptureFixture[str]


def begun(status: Status) -> bool:
    return bool(status.get("ram", {}).get("transferred", 0) > 1 << 20)


def deltas(status: Status) -> bool:
    return bool(status.get("xbzrle-cache", {}).get("pages", 0) > 2000)


def twice(status: Status) -> bool:
    return bool(status.get("ram", {}).get("dirty-sync-count", 0) > 2)


def often(status: Status) -> bool:
    return bool(status.get("ram", {}).get("dirty-sync-count", 0) > 5)


@dataclass(frozen=True)
class Mode:
    """How to migrate. `until`: what QEMU has to say before the migration is let come to its end, or postcopy
    begins; `kinds`: what the log must have counted."""

    caps: Sequence[str] = ()
    params: Mapping[str, int | str] = field(default_factory=dict)
    until: Callable[[Status], bool] = twice
    kinds: Sequence[str] = ("normal", "zero")
    pauses: int = 0  # how often postcopy is interrupted, to go on over a new connection

    @property
    def postcopy(self) -> bool:
        return "postcopy-ram" in self.caps


SLOW = {"max-bandwidth": 60_000_000, "downtime-limit": 1}
CRAWL = {**SLOW, "max-postcopy-bandwidth": 200_000}
MODES = {
    "plain": Mode(),
    "xbzrle": Mode(["xbzrle"], SLOW, deltas, ("normal", "zero", "xbzrle")),
    "compress": Mode(["compress"], kinds=("zero", "compressed")),
    "multifd": Mode(["multifd"]),
    "zlib": Mode(["multifd"], {"multifd-compression": "zlib"}),
    "zstd": Mode(["multifd"], {"multifd-compression": "zstd"}),
    "passes": Mode(["multifd"], {"multifd-channels": 4, **SLOW}, often),
    "postcopy": Mode(["postcopy-ram"], SLOW, begun),
    "preempt": Mode(["postcopy-ram", "postcopy-preempt", "return-path"], SLOW, begun),
    "recovery": Mode(["postcopy-ram"], CRAWL, begun, pauses=1),
    "recoveries": Mode(["postcopy-ram", "postcopy-preempt", "return-path"], CRAWL, begun, pauses=2),
    "both": Mode(["postcopy-ram", "multifd"], SLOW, begun),
}
ALWAYS = [("7.2", "xbzrle"), ("10.0", "zstd"), ("10.0", "preempt")]
FIRST = {
    "preempt": "7.2",
    "recoveries": "7.2",
    "both": "11.1",
    "zstd": "7.2",
}  # 5.2 here was built without zstd
LAST = {"compress": "7.2"}
ALL = [
    (version, mode)
    for version in ("5.2", "7.2", "10.0", "11.1")
    for mode in MODES
    if float(FIRST.get(mode, "5.2")) <= float(version) <= float(LAST.get(mode, "11.1"))
]


def differing(found: bytes, truth: bytes) -> list[int]:
    """Addresses of the pages that differ."""
    assert len(found) == len(truth)
    return [at for at in range(0, len(truth), 4096) if found[at : at + 4096] != truth[at : at + 4096]]


def migrate(migration: Migration, mode: Mode, where: str) -> None:
    """Migrate, and wait for both sides; the guest runs there only if it has to."""
    source, destination = migration.source, migration.destination
    now: dict[str, Any] = {}

    def ended(side: Qemu) -> bool:
        now.clear()
        now.update(side.execute("query-migrate"))
        return now.get("status") in ENDED

    migration.start(f"tcp:{where}")
    assert poll(lambda: ended(source) or mode.until(now), 30)
    assert not mode.postcopy or now["status"] == "active"
    if mode.postcopy:
        source.execute("migrate-start-postcopy")
        for _ in range(mode.pauses):
            pause(migration, where)
        if mode.pauses:
            source.execute("migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
    else:
        source.execute("migrate-set-parameters", **{"downtime-limit": 100_000})
    for side in (source, destination):
        assert poll(partial(ended, side), 60), now
        assert now["status"] == "completed", now


def compare(migration: Migration, truth: str, file: Path, out: Path, capfd: Captured) -> None:
    """Extract the memory in a file, and compare it with that of the source or the destination."""
    low, high = migration.memory(truth, 0, LOW), migration.memory(truth, HIGH, (MEM << 20) - HIGH)
    code = main(["analyze", "-x", "-f", str(file), "--output-dir", str(out)])
    assert (code, capfd.readouterr().err) == (0, "")
    found, bios = (out / "pc.ram").read_bytes(), (out / "pc.bios").read_bytes()
    assert differing(bios, migration.memory(truth, BIOS_END - len(bios), len(bios))) == []
    assert differing(found[:LOW], low) == []
    assert differing(found[HIGH:], high) == []


@pytest.mark.parametrize(
    ("version", "mode"), ALL if os.environ.get("MIGSNIFF_PROOFS") else ALWAYS, ids=lambda value: value
)
def test_extracted_memory_is_the_guests(tmp_path: Path, capfd: Captured, version: str, mode: str) -> None:
    require(version)
    how = MODES[mode]
    waits = "" if how.postcopy else "-S"
    guest = Migration(version, mem=MEM, workload=48, caps=how.caps, params=how.params, destination_args=waits)
    with guest as migration, Proxy(tmp_path, migration.listen(), "--ram", "keep") as proxy:
        migrate(migration, how, proxy.where)
        truth = "source" if how.postcopy else "destination"
        (verdict,) = proxy.verdicts()
        assert verdict["outcome"] == "completed", verdict
        compare(migration, truth, proxy.capture(), tmp_path / "memory", capfd)
        carried = {
            kind
            for event in proxy.events
            if event["type"] == "dirty-sync"
            for kind, count in event["counts"].items()
            if count
        }
        assert set(how.kinds) <= carried


@pytest.mark.skipif(not os.environ.get("MIGSNIFF_PROOFS"), reason="MIGSNIFF_PROOFS is not set")
@pytest.mark.parametrize(
    ("version", "uri", "caps"),
    [
        ("7.2", "exec:cat > {}/dump", []),
        ("10.0", "file:{}/dump", ["mapped-ram"]),
        ("11.1", "file:{}/dump", ["mapped-ram", "multifd"]),
    ],
)
def test_memory_out_of_a_file(
    tmp_path: Path, capfd: Captured, version: str, uri: str, caps: list[str]
) -> None:
    require(version)
    with Migration(version, mem=MEM, workload=48, caps=caps) as migration:
        migration.source.execute("stop")
        migration.start(uri.format(migration.shared.inside))

        def status() -> object:
            return migration.source.execute("query-migrate").get("status")

        assert poll(lambda: status() in ENDED, 60)
        assert status() == "completed"
        compare(migration, "source", migration.shared.path / "dump", tmp_path, capfd)
