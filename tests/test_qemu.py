"""Truth from QEMU: real migrations through the real command, and QEMU's own account of them."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from migsniff.qemu import Qemu, QmpError
from tests.counters import agrees
from tests.qemu import SYSTEM, Folder, Migration, poll, require
from tests.relays import Proxy, Recorder

VERSIONS = ("5.2", "7.2", "10.0", "11.1")
SLOW = {"max-bandwidth": 20_000_000}  # a migration that is still busy when something happens to it


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def proxied(
    migration: Migration, folder: Path, loop: str, *options: str
) -> Iterator[tuple[Recorder, Proxy, Recorder]]:
    """Source -> recorder -> migsniff -> recorder -> destination: the recorder to migrate to comes first."""
    with (
        Recorder(folder / "behind", migration.listen()) as behind,
        Proxy(folder, behind.where, "--loop", loop, *options) as proxy,
        Recorder(folder / "before", proxy.where) as before,
    ):
        yield before, proxy, behind


# ---------------------------------------------------------------- it completes

GUESTS: dict[str, dict[str, Any]] = {
    "workload": {"workload": 32},
    "return-path": {"workload": 32, "caps": ["return-path"]},
    "devices": {
        "machine": "q35",
        "args": "-device virtio-net-pci -device virtio-scsi-pci -device qemu-xhci -device usb-tablet"
        " -device e1000e -device virtio-gpu-pci -device virtio-rng-pci"
        " -audiodev none,id=sound -device intel-hda -device hda-duplex,audiodev=sound",
    },
}


@pytest.mark.parametrize(
    ("guest", "loop"),
    [("workload", "uvloop"), ("workload", "asyncio"), ("return-path", "asyncio"), ("devices", "uvloop")],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_migration_completes_and_the_log_counts_what_qemu_counts(
    version: str, guest: str, loop: str, tmp_path: Path
) -> None:
    require(version)
    with Migration(version, **GUESTS[guest]) as migration:
        with proxied(migration, tmp_path, loop) as (before, proxy, behind):
            result = migration.run(f"tcp:{before.where}")
            assert (result.status, result.destination_runs) == ("completed", True)
            assert before.recorded() == behind.recorded()
            (verdict,) = proxy.verdicts()
            assert (verdict["ok"], verdict["outcome"]) == (True, "completed")
            assert proxy.stop() == 0
            agrees(result.version, result.ram, proxy.events)
        if migration.workload:
            migration.destination.wait_for_passes()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("aarch64", {"machine": "virt", "args": "-cpu max -device virtio-net-pci -smp 2"}),
        ("riscv64", {"machine": "virt"}),
        ("ppc64", {"machine": "pseries", "mem": 256}),
    ],
)
def test_other_architectures_agree_with_qemu(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    require(SYSTEM, arch)
    with (
        Migration(SYSTEM, arch=arch, **options) as migration,
        proxied(migration, tmp_path, "uvloop") as (before, proxy, behind),
    ):
        result = migration.run(f"tcp:{before.where}")
        assert (result.status, result.destination_runs) == ("completed", True)
        assert before.recorded() == behind.recorded()
        (verdict,) = proxy.verdicts()
        assert verdict["ok"]
        agrees(result.version, result.ram, proxy.events)
        assert not [event for event in proxy.events if event["type"] == "undecodable"]


def test_from_an_older_qemu_to_a_newer_one(tmp_path: Path) -> None:
    require("5.2")
    require("7.2")
    machine = "pc-i440fx-5.2"
    with (
        Migration("5.2", destination_version="7.2", machine=machine, workload=16) as migration,
        proxied(migration, tmp_path, "uvloop") as (before, proxy, _),
    ):
        result = migration.run(f"tcp:{before.where}")
        assert (result.status, result.destination_runs) == ("completed", True)
        proxy.verdicts()
        agrees(result.version, result.ram, proxy.events)


def test_unix_sockets_on_both_sides(loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    with Migration(SYSTEM, workload=16) as migration:
        folder = Folder(SYSTEM)  # a short path: a socket's may have 107 bytes
        try:
            where = migration.listen(f"unix:{folder.path}/in")
            listen = f"unix:{folder.path}/out"
            with Proxy(tmp_path, f"unix:{where}", "--loop", loop, listen=listen) as proxy:
                result = migration.run(listen)
                assert (result.status, result.destination_runs) == ("completed", True)
                assert proxy.verdicts()[0]["ok"]
                agrees(result.version, result.ram, proxy.events)
        finally:
            folder.remove()


# ---------------------------------------------------------------- what is saved


def guest_words(count: int) -> bytes:
    """The first words that the workload writes into guest memory."""
    word, words = 0x12345678, []
    for _ in range(count):
        word = (word * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(word)
    return struct.pack(f"<{count}I", *words)


def test_no_guest_memory_is_saved(loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    with (
        Migration(SYSTEM, workload=16) as migration,
        proxied(migration, tmp_path, loop) as (before, proxy, _),
    ):
        assert migration.run(f"tcp:{before.where}").status == "completed"
        assert proxy.stop() == 0
        # 1 MiB's first byte is counted up, the words behind it stay
        secret = guest_words(8)[4:]
        assert secret in before.recorded()["connection-0.fwd"]
        saved = [path for path in proxy.capture().rglob("*") if path.is_file()]
        assert saved
        assert not [path for path in saved if secret in path.read_bytes()]
        assert sum(path.stat().st_size for path in saved) < 1 << 20


@pytest.mark.parametrize("caps", [[], ["return-path"]])
def test_a_kept_capture_is_the_wire_and_qemu_loads_it(caps: list[str], loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    with Migration(SYSTEM, workload=16, caps=caps) as migration:
        with proxied(migration, tmp_path, loop, "--ram", "keep") as (before, proxy, _):
            assert migration.run(f"tcp:{before.where}").status == "completed"
            assert proxy.stop() == 0
            recorded = before.recorded()
        kept = proxy.capture()
        assert (kept / "main.fwd").read_bytes() == recorded["connection-0.fwd"]
        if caps:
            assert (kept / "main.rev").read_bytes() == recorded["connection-0.rev"]
    if not caps:  # a stream that opens the return path cannot be loaded from a pipe
        folder = Folder(SYSTEM)
        (folder.path / "disk").write_bytes(bytes(1 << 20))
        disk = f"file={folder.path}/disk,format=raw,if=ide"
        guest = ["-m", "64", "-drive", disk, "-incoming", f"exec:cat {kept / 'main.fwd'}"]
        loaded = Qemu("x86_64", guest, folder.path, "loaded", enter=folder.enter, inside=folder.inside)
        try:
            assert poll(lambda: bool(loaded.execute("query-status")["running"])), loaded.log
            loaded.wait_for_passes()
        finally:
            loaded.kill()
            folder.remove()


# ---------------------------------------------------------------- it fails


def ends(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Which directions were ended by whom."""
    return [(event["direction"], event["by"]) for event in events if event["type"] == "end"]


@pytest.mark.parametrize("caps", [[], ["return-path"]])
def test_a_destination_that_dies_fails_the_source_within_a_second(
    caps: list[str], loop: str, tmp_path: Path
) -> None:
    require(SYSTEM)
    with (
        Migration(SYSTEM, workload=48, caps=caps, params=SLOW) as migration,
        Proxy(tmp_path, migration.listen(), "--loop", loop) as proxy,
    ):
        migration.start(f"tcp:{proxy.where}")
        time.sleep(0.3)
        migration.destination.kill()
        killed = time.monotonic()
        result = migration.wait()
        assert time.monotonic() - killed < 2  # one second for the source, one to ask the dead destination
        assert result.status == "failed"
        (verdict,) = proxy.verdicts()
        assert not verdict["ok"]
        assert "destination" in verdict["message"]
        assert all(by == "destination" for direction, by in ends(proxy.events) if direction == "rev")
        assert proxy.stop() == 1


def test_cancelled_and_started_again_through_the_same_proxy(loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    with Migration(SYSTEM, workload=48, params=SLOW) as first:
        where = first.listen()
        with Proxy(tmp_path, where, "--loop", loop) as proxy:
            first.start(f"tcp:{proxy.where}")
            time.sleep(0.3)
            first.source.execute("migrate_cancel")
            assert first.wait().status == "cancelled"
            (verdict,) = proxy.verdicts()
            assert not verdict["ok"]
            assert "source" in verdict["message"]
            with Migration(SYSTEM, workload=16) as second:
                assert poll(lambda: first.destination.process.poll() is not None)
                assert second.listen(f"tcp:{where}") == where
                result = second.run(f"tcp:{proxy.where}")
                assert (result.status, result.destination_runs) == ("completed", True)
                assert [verdict["ok"] for verdict in proxy.verdicts(2)] == [False, True]
                migrations = {event["migration"] for event in proxy.events}
                assert len(migrations) == 2
            assert proxy.stop() == 1  # the worst it saw
            assert len(list((tmp_path / "captures").iterdir())) == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # what differs between the sides, and what the destination's log says
    "unknown-section": (
        {"source_args": "-device virtio-rng-pci"},
        "Unknown savevm section or instance '0000:00:02.0/virtio-rng'",
    ),
    "unknown-ramblock": (
        {
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,romfile=",
        },
        'Unknown ramblock "0000:00:05.0/virtio-net-pci.rom"',
    ),
    "msix-table": (
        {
            "source_args": "-device virtio-net-pci,addr=5",
            "destination_args": "-device virtio-net-pci,addr=5,vectors=8",
            "caps": ["return-path"],
        },
        "Bad config data: i=0x9a",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_migration_that_the_destination_refuses(case: str, loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    options, reason = REFUSED[case]
    with (
        Migration(SYSTEM, **options) as migration,
        Proxy(tmp_path, migration.listen(), "--loop", loop) as proxy,
    ):
        result = migration.run(f"tcp:{proxy.where}")
        assert not result.destination_runs
        assert reason in migration.destination.log
        (verdict,) = proxy.verdicts()
        assert not verdict["ok"]
        assert "destination" in verdict["message"]
        assert proxy.stop() == 1


# ---------------------------------------------------------------- what is decoded later passes unharmed


def let_it_converge(migration: Migration) -> None:
    time.sleep(0.5)
    migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 5000})


def to_postcopy(migration: Migration) -> None:
    time.sleep(0.3)
    migration.source.execute("migrate-start-postcopy")


MODES: dict[str, tuple[list[str], dict[str, int | str], Callable[[Migration], None] | None]] = {
    "multifd": (["multifd"], {"multifd-channels": 4}, None),
    "multifd-zstd": (["multifd"], {"multifd-channels": 2, "multifd-compression": "zstd"}, None),
    "xbzrle": (["xbzrle"], {"max-bandwidth": 60_000_000, "downtime-limit": 20}, let_it_converge),
    "compress": (["compress"], {}, None),
    "postcopy": (["postcopy-ram"], {"max-bandwidth": 10_000_000}, to_postcopy),
    "preempt": (
        ["postcopy-ram", "postcopy-preempt", "return-path"],
        {"max-bandwidth": 10_000_000},
        to_postcopy,
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_passes_unharmed(mode: str, loop: str, tmp_path: Path) -> None:
    require(SYSTEM)
    caps, params, meanwhile = MODES[mode]
    try:
        migration = Migration(SYSTEM, workload=32, caps=caps, params=params).__enter__()
    except QmpError as error:
        pytest.skip(f"this QEMU cannot do it here: {error}")
    with migration, proxied(migration, tmp_path, loop) as (before, proxy, behind):
        migration.start(f"tcp:{before.where}")
        if meanwhile:
            meanwhile(migration)
        result = migration.wait()
        assert (result.status, result.destination_runs) == ("completed", True)
        migration.destination.wait_for_passes()
        # in which order a recorder behind the proxy sees several connections is not told
        assert sorted(before.recorded().values()) == sorted(behind.recorded().values())
        assert proxy.stop() == 0
        assert not [event for event in proxy.events if event["type"] == "undecodable"]
