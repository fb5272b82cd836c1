"""Two dumps of real guests: what differs is what was done to them, and no more."""

import time
from pathlib import Path

import pytest

from migsniff.cli import main
from tests.qemu import Migration, require

A_PAGE = 60


def dump(migration: Migration, name: str) -> Path:
    """The source's state, which may be migrated again afterwards: a stopped guest stays where it is."""
    migration.start(f"exec:cat>{migration.shared.inside}/{name}")
    status = ""
    while status not in ("completed", "failed"):
        status = migration.source.execute("query-migrate")["status"]
    assert status == "completed"
    return migration.shared.path / name


def diff(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    capfd.readouterr()
    code = main(["diff", "--descriptions", "none", *map(str, arguments)])
    return code, capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_an_idle_guest_twice(version: str, machine: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A page of output or less: its firmware has found nothing to boot, and waits."""
    require(version)
    with Migration(version, machine=machine, args="-net none") as migration:
        deadline = time.monotonic() + 60
        while not settled(migration) and time.monotonic() < deadline:
            time.sleep(0.2)
        first = dump(migration, "first")
        migration.source.execute("cont")
        time.sleep(0.5)
        second = dump(migration, "second")
        code, lines = diff(capfd, "--ignore", "clocks", first, second)
        assert code in (0, 1)
        assert len(lines) <= A_PAGE, lines


def settled(migration: Migration) -> bool:
    """Whether its CPU waits for an interrupt."""
    registers = migration.source.execute("human-monitor-command", **{"command-line": "info registers"})
    return "HLT=1" in str(registers)


def test_a_guest_that_never_ran_is_the_same_to_the_last_page(capfd: pytest.CaptureFixture[str]) -> None:
    require("7.2")
    with Migration("7.2", args="-S") as one, Migration("7.2", args="-S") as other:
        first, second = dump(one, "one"), dump(other, "other")
        assert diff(capfd, "--ignore", "clocks", first, second) == (0, [])


def test_the_table_of_another_msix_and_an_extra_device(capfd: pytest.CaptureFixture[str]) -> None:
    require("7.2")
    card = "-S -device virtio-net-pci,addr=5"
    with (
        Migration("7.2", args=card) as one,
        Migration("7.2", args=f"{card},vectors=8 -device virtio-rng-pci") as other,
    ):
        code, lines = diff(capfd, "--ignore", "clocks", dump(one, "one"), dump(other, "other"))
    assert code == 1
    assert any(line.startswith("+ extra: section ") and "virtio-rng" in line for line in lines)
    at = lines.index("! 0000:00:05.0/virtio-net/0.virtio.pci_config.msix.message_control:")
    assert ("table size 4" in lines[at + 1], "table size 8" in lines[at + 2]) == (True, True)
