"""Many connections of real QEMUs through the proxy: one migration in the log, in the capture, in `info`."""

import json
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.qemu import Migration, poll, require
from tests.relays import Proxy

Events = list[dict[str, Any]]


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["type"] == kind]


def read(capture: Path) -> Events:
    command = [sys.executable, "-m", "migsniff", "read", "-T", "ndjson", str(capture)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("version", "params"),
    [
        ("10.0", {"multifd-channels": 16}),
        ("11.1", {"multifd-channels": 3, "multifd-compression": "zlib"}),
        ("10.0", {"multifd-channels": 2, "multifd-compression": "zstd"}),
        ("7.2", {"multifd-channels": 4}),
        ("5.2", {"multifd-channels": 2, "multifd-compression": "zlib"}),
    ],
)
def test_multifd(version: str, params: dict[str, Any], tmp_path: Path) -> None:
    require(version)
    with (
        Migration(
            version, workload=16, caps=["multifd"], params={**params, "downtime-limit": 2000}
        ) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        result = migration.run(f"tcp:{proxy.where}")
        assert (result.status, result.destination_runs) == ("completed", True)
        assert proxy.verdicts()[0]["outcome"] == "completed"
        assert proxy.stop() == 0
    events = proxy.events
    assert not of(events, "undecodable") + of(events, "finding")
    channels = {f"multifd-{number}" for number in range(params["multifd-channels"])}
    assert {event["channel"] for event in of(events, "channel")} == {"main", *channels}
    assert {event["migration"] for event in events} == {events[0]["migration"]}
    # whatever came over whichever channel is in a pass, and all memory in the first
    total = sum(block["length"] for event in of(events, "ram-blocks") for block in event["blocks"])
    passes = [event["counts"] for event in of(events, "dirty-sync")]
    # QEMU looks for dirty pages before the first pass is over once the rest of it fits in the downtime limit
    # (migration/ram.c ram_save_pending); up to machine type 8.0 that rest and the next pass are in one round
    # and how much that is depends on how fast the host is: no lower bound there
    rest = total // 4096 if version in ("5.2", "7.2") else 0
    # 7.2 sends some again, which may come before what it sends again
    assert -rest <= passes[0]["normal"] + passes[0]["zero"] - total // 4096 < 200
    assert 2 <= len(passes) <= result.ram["dirty-sync-count"] + 1
    assert [event["final"] for event in of(events, "dirty-sync")][-1]
    packets = of(events, "multifd-packet")
    sections = [event["counts"] for event in of(events, "ram-section")]
    for kind in ("normal", "zero"):
        carried = sum(one[kind] for one in sections) + sum(one[kind] for one in packets)
        assert sum(one[kind] for one in passes) == carried
    resent = sum(one["resent"] for one in sections) + sum(one["resent"] for one in packets)
    assert sum(one["normal"] + one["zero"] for one in passes) - resent == total // 4096
    syncs = Counter(event["channel"] for event in of(events, "multifd-sync") if not event["last"])
    assert set(syncs) == channels
    assert len(set(syncs.values())) == 1
    assert as_told(read(proxy.capture())) == as_told(events)


def as_told(events: Events) -> Events:
    """Without what a description that was learnt meanwhile tells of devices."""
    return [event for event in events if event["type"] != "device"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def reaches(qemu: Any, status: str) -> None:
    assert poll(lambda: qemu.execute("query-migrate").get("status") == status, 20)


@pytest.mark.parametrize(
    ("version", "caps"), [("7.2", []), ("11.1", []), ("10.0", ["postcopy-preempt", "return-path"])]
)
def test_a_postcopy_that_is_recovered_through_another_pair(
    version: str, caps: list[str], tmp_path: Path
) -> None:
    require(version)
    port = free_port()
    slow = {"max-bandwidth": 10_000_000, "max-postcopy-bandwidth": 200_000}
    another = ["--listen", "127.0.0.1:0", "--forward", f"127.0.0.1:{port}"]
    with (
        Migration(version, workload=32, caps=["postcopy-ram", *caps], params=slow) as migration,
        Proxy(tmp_path, migration.listen(), *another) as proxy,
    ):
        assert poll(lambda: proxy.messages.count("listening on") == 2)
        second = re.findall(r"listening on (\S+),", proxy.messages)[1]
        migration.start(f"tcp:{proxy.where}")
        assert poll(lambda: bool(of(proxy.events, "ram-section")))
        migration.source.execute("migrate-start-postcopy")
        reaches(migration.source, "postcopy-active")
        assert poll(lambda: bool(migration.destination.execute("query-status")["running"]))
        migration.source.execute("migrate-pause")
        for side in (migration.source, migration.destination):
            reaches(side, "postcopy-paused")
        assert poll(lambda: "postcopy is paused at offset" in proxy.messages)
        assert not of(proxy.events, "verdict")
        migration.destination.execute("migrate-recover", uri=f"tcp:127.0.0.1:{port}")
        migration.source.execute("migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
        migration.source.execute("migrate", uri=f"tcp:{second}", resume=True)
        result = migration.wait()
        assert (result.status, result.destination_runs) == ("completed", True)
        assert [verdict["outcome"] for verdict in proxy.verdicts()] == ["completed"]
        assert proxy.stop() == 0
    events = proxy.events
    assert not of(events, "undecodable")
    assert len({event["migration"] for event in events}) == 1
    roles = Counter(event["role"] for event in of(events, "channel"))
    assert (roles["main"], roles["resumed"], roles["unknown"]) == (1, 1, 0)
    assert read(proxy.capture()) == events


def test_one_vm_after_the_other(tmp_path: Path) -> None:
    """Through one pair of endpoints: two migrations, and two captures."""
    require("7.2")
    with Migration("7.2", caps=["multifd"], params={"multifd-channels": 2}) as migration:
        where = migration.listen()
        with Proxy(tmp_path, where) as proxy:
            assert migration.run(f"tcp:{proxy.where}").status == "completed"
            proxy.verdicts(1)
            with Migration("7.2", caps=["multifd"], params={"multifd-channels": 2}) as other:
                other.listen(f"tcp:{where}")
                assert other.run(f"tcp:{proxy.where}").status == "completed"
            assert [one["outcome"] for one in proxy.verdicts(2)] == ["completed"] * 2
            assert proxy.stop() == 0
    found = {event["migration"] for event in proxy.events}
    assert len(found) == 2
    assert {folder.name for folder in (tmp_path / "captures").iterdir()} == found
