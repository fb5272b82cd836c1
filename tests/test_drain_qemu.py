"""Draining with real QEMUs: what the capture has more; the source fails as ever and runs its guest again."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.qemu import SYSTEM, Folder, Migration, Result, poll, require
from tests.relays import Proxy

VERSIONS = ("5.2", "7.2", "10.0", "11.1")
SLOW = {"max-bandwidth": 20_000_000}
DRAIN = ("--drain-after-failure", "2", "--descriptions", "none")
NETWORK = " ".join(f"-device virtio-net-pci,addr={slot:#x},romfile=" for slot in range(8, 20))


def kinds(proxy: Proxy, kind: str) -> list[dict[str, Any]]:
    return [event for event in proxy.events if event["type"] == kind]


def resumes(migration: Migration) -> bool:
    """Whether the source's guest runs again."""
    return poll(lambda: bool(migration.source.execute("query-status")["running"]), 5)


def reads_as_live(proxy: Proxy) -> bool:
    """Whether the capture has the very records of the live log."""
    command = [sys.executable, "-m", "migsniff", "read", "-T", "ndjson", "--descriptions", "none"]
    done = subprocess.run([*command, str(proxy.capture())], capture_output=True, check=False)
    told = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    return (done.returncode, told) == (1, proxy.events)


def verdict_of_failed(result: Result, migration: Migration, proxy: Proxy) -> dict[str, Any]:
    """The verdict on a migration that failed as any does: its guest runs on, its capture is the live log."""
    assert result.status == "failed"
    assert resumes(migration)
    (verdict,) = proxy.verdicts()
    assert proxy.stop() == 1
    assert reads_as_live(proxy)
    return verdict


@pytest.mark.parametrize("version", VERSIONS)
def test_a_destination_that_refuses_memory(version: str, tmp_path: Path) -> None:
    """It goes at the start; the devices and their description come all the same."""
    require(version)
    card = "-device virtio-net-pci,addr=5"
    with (
        Migration(
            version, caps=["return-path"], source_args=card, destination_args=f"{card},romfile="
        ) as migration,
        Proxy(tmp_path, migration.listen(), *DRAIN) as proxy,
    ):
        result = migration.run(f"tcp:{proxy.where}")
        verdict = verdict_of_failed(result, migration, proxy)
        (drained,) = kinds(proxy, "draining")
        assert (verdict["ok"], verdict["offset"]) == (False, drained["offset"])
        assert verdict["outcome"] in ("refused", "failed")
        assert "more were read from the source alone" in verdict["message"]
        assert len(kinds(proxy, "description")) == 1
        names = {event["idstr"] for event in kinds(proxy, "device") if event["described"]}
        assert "0000:00:05.0/virtio-net" in names
        (end,) = [event for event in kinds(proxy, "end") if event["direction"] == "fwd"]
        # the newer ones are told SHUT 1, and fail by themselves when they have sent everything
        shut = [event for event in kinds(proxy, "return-path") if event["name"] == "SHUT"]
        assert (end["how"], end["by"]) == (("eof", "source") if shut else ("closed", "proxy"))
        assert result.seconds < 2, "complete: it is not waited any longer"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("drains", [True, False])
def test_a_destination_without_a_device(version: str, drains: bool, tmp_path: Path) -> None:
    """Over a unix socket, which holds less than the devices behind the one that cannot be loaded."""
    require(version)
    missing = f"-device virtio-rng-pci,addr=7 {NETWORK}"
    with Migration(version, caps=["return-path"], source_args=missing, destination_args=NETWORK) as migration:
        folder = Folder(version)
        try:
            where = migration.listen(f"unix:{folder.inside}/in")
            assert where.endswith("/in")
            options = DRAIN if drains else DRAIN[2:]
            with Proxy(tmp_path, f"unix:{folder.path}/in", *options) as proxy:
                result = migration.run(f"tcp:{proxy.where}")
                verdict = verdict_of_failed(result, migration, proxy)
                assert not verdict["ok"]
                assert len(kinds(proxy, "draining")) == drains
                assert len(kinds(proxy, "description")) == drains
                devices = [event["idstr"] for event in kinds(proxy, "device") if event["described"]]
                assert ("0000:00:07.0/virtio-rng" in devices) == drains
                assert ("more were read" in verdict["message"]) == drains
        finally:
            folder.remove()


@pytest.mark.parametrize(
    ("caps", "why"),
    [
        (["return-path"], ""),
        (["return-path", "multifd"], ""),
        ([], "there is no return path"),
        (["return-path", "postcopy-ram"], "it may go into postcopy"),
    ],
)
def test_a_destination_that_is_killed(caps: list[str], why: str, tmp_path: Path) -> None:
    require(SYSTEM)
    with (
        Migration(SYSTEM, caps=caps, workload=32, params=SLOW) as migration,
        Proxy(tmp_path, migration.listen(), *DRAIN) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        assert poll(lambda: len(kinds(proxy, "ram-section")) > 2)
        migration.destination.kill()
        gone = time.monotonic()
        result = migration.wait()
        seconds = time.monotonic() - gone
        verdict = verdict_of_failed(result, migration, proxy)
        assert verdict["outcome"] in ("failed", "reset")
        drained = kinds(proxy, "draining")
        if why:
            assert f"--drain-after-failure is refused: {why}" in proxy.messages
            assert proxy.messages.count("--drain-after-failure") == 1
            assert not drained
            assert seconds < 1
        else:
            assert "--drain-after-failure" not in proxy.messages
            channels = 1 + 2 * ("multifd" in caps)
            assert len(drained) == channels
            assert 1.9 < seconds < 4
            (main,) = [event for event in drained if event["channel"] == "main"]
            assert verdict["offset"] == main["offset"]
            ends = [event for event in kinds(proxy, "end") if event["direction"] == "fwd"]
            assert {event["by"] for event in ends} <= {"proxy", "source"}
            sent = {event["channel"]: event["offset"] for event in ends}
            before = sum(event["offset"] for event in drained)
            assert sum(sent.values()) - before > SLOW["max-bandwidth"], "two seconds of it at this speed"


def test_a_source_that_is_cancelled_meanwhile(tmp_path: Path) -> None:
    require(SYSTEM)
    options = ("--drain-after-failure", "60", "--descriptions", "none")
    with (
        Migration(SYSTEM, caps=["return-path"], workload=32, params=SLOW) as migration,
        Proxy(tmp_path, migration.listen(), *options) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        assert poll(lambda: len(kinds(proxy, "ram-section")) > 2)
        migration.destination.kill()
        assert poll(lambda: bool(kinds(proxy, "draining")))
        migration.source.execute("migrate_cancel")
        assert migration.wait(20).status == "cancelled"
        assert resumes(migration)
        (verdict,) = proxy.verdicts()
        assert verdict["outcome"] in ("failed", "reset"), "the destination was first"
        assert proxy.stop() == 1


@pytest.mark.parametrize("caps", ["return-path", "return-path multifd", "", "return-path postcopy-ram"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_migration_that_completes_is_none_the_wiser(version: str, caps: str, tmp_path: Path) -> None:
    require(version)
    with (
        Migration(version, caps=caps.split(), workload=16) as migration,
        Proxy(tmp_path, migration.listen(), *DRAIN) as proxy,
    ):
        result = migration.run(f"tcp:{proxy.where}")
        assert (result.status, result.destination_runs) == ("completed", True)
        assert proxy.verdicts()[0]["outcome"] == "completed"
        assert proxy.stop() == 0
        assert not kinds(proxy, "draining")
        assert "--drain-after-failure" not in proxy.messages
        assert {event["by"] for event in kinds(proxy, "end")} == {"source", "destination"}
