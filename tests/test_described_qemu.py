"""Descriptions remembered, with real QEMUs: from one migration to the next, and from -dump-vmstate."""

import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.events import DeviceSection, Field
from migsniff.core.session import Session
from migsniff.describe import read_descriptions
from migsniff.descriptions import complain, default_folder
from migsniff.feed.descriptions import Descriptions
from tests import rawsamples
from tests.playing import arrivals, decode, of
from tests.qemu import SYSTEM, Folder, Migration, poll, require
from tests.relays import Proxy, Recorder
from tests.test_assumed import flat

POSTCOPY: dict[str, Any] = {"caps": ["postcopy-ram"], "params": {"max-bandwidth": 10_000_000}}


def devices(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == "device"]


def of_last_migration(proxy: Proxy) -> list[dict[str, Any]]:
    return [event for event in proxy.events if event["migration"] == proxy.events[-1]["migration"]]


def cut_off(where: str, stream: bytes, unix: str) -> None:
    """Send a stream's beginning through the proxy to a destination that only listens."""
    Path(unix).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(unix)
        listener.listen()

        def swallow() -> None:
            connection, _ = listener.accept()
            with connection:
                while connection.recv(1 << 20):
                    pass

        thread = threading.Thread(target=swallow, daemon=True)
        thread.start()
        host, port = where.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as source:
            source.sendall(stream)
        thread.join(20)


def test_from_one_migration_to_the_next(tmp_path: Path) -> None:
    """Precopy twice, postcopy, and one that is cut off, all through one proxy."""
    require(SYSTEM)
    folder = Folder(SYSTEM)  # a short path: a socket's may have 107 bytes
    inside, outside = f"{folder.inside}/in", f"{folder.path}/in"
    try:
        with Proxy(tmp_path, f"unix:{outside}") as proxy:
            for number, options in enumerate(({}, {}, POSTCOPY)):
                with (
                    Migration(SYSTEM, workload=16, **options) as migration,
                    Recorder(tmp_path / f"recorded-{number}", proxy.where) as recorder,
                ):
                    migration.listen(f"unix:{inside}")
                    migration.start(f"tcp:{recorder.where}")
                    if options:
                        time.sleep(0.3)
                        migration.source.execute("migrate-start-postcopy")
                    assert migration.wait().status == "completed"
                    recorded = recorder.recorded()
                proxy.verdicts(number + 1)
                if number == 0:
                    first = devices(proxy.events)
                    stream = recorded["connection-0.fwd"]
                    assert not any(event["assumed"] for event in first)
                    assert poll(lambda: any(own_cache().glob("*.json")), 20)
                    time.sleep(0.5)  # it is read again once it has been written
                else:
                    last = devices(of_last_migration(proxy))
                    live = [event for event in last if event["provisional"]]
                    assert len(live) > 25
                    assert all(event["assumed"] and event["fields"] for event in live)
                    exact = {(e["idstr"], e["instance_id"]): e for e in last if not e["provisional"]}
                    assert len(exact) == (0 if options else len(live))
                    for event in live if exact else ():
                        assert event["fields"] == exact[event["idstr"], event["instance_id"]]["fields"]
            (pit,) = [event for event in first if event["idstr"] == "i8254" and not event["provisional"]]
            last_bytes = pit["offset"] + pit["size"] - 5 - 3
            cut_off(proxy.where, stream[:last_bytes], outside)
            verdict = proxy.verdicts(4)[-1]
            assert (
                "section i8254 instance 0 (FULL), 5 of 8 bytes into its field 'channels["
                in verdict["message"]
            )
            assert "next_transition_time' (seen in 20" in verdict["message"]
            proxy.stop()
    finally:
        folder.remove()


def own_cache() -> Path:
    folder = default_folder()
    assert folder is not None
    return folder


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
@pytest.mark.parametrize(
    ("version", "sample", "least"),
    [
        ("5.2", "x86-52-pc", 9),
        ("7.2", "x86-72-pc", 11),
        ("10.0", "x86-100-pc", 19),
        ("11.1", "x86-111-pc", 19),
    ],
)
def test_dump_vmstate(version: str, sample: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What it leads to the end of is cut into the same fields as by the stream's own description."""
    require(version)
    folder = Folder(version)
    try:
        command = [*folder.enter, "qemu-system-x86_64", "-M", "pc", "-display", "none", "-vga", "none"]
        command += ["-vnc", "none", "-dump-vmstate", f"{folder.inside}/dump"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        found = read_descriptions(f"{folder.path}/dump", complain)
    finally:
        folder.remove()
    assert found.machine is not None
    assert found.machine.startswith("pc-i440fx-")
    assert "devices cannot be used" in capsys.readouterr().err
    for name in (sample, sample.replace("-pc", "-q35")):
        known = Descriptions(None, found.entries)
        events = decode(Session(fields=True, assumed=known.lookup), arrivals(rawsamples.raw(name)))
        exact = {
            (event.idstr, event.instance_id): event.fields
            for event in of(events, DeviceSection)
            if not event.provisional
        }
        assumed = [event for event in of(events, DeviceSection) if event.assumed]
        assert len(assumed) >= least
        for event in assumed:
            assert spans(event.fields) == spans(exact[event.idstr, event.instance_id])


def spans(fields: tuple[Field, ...]) -> list[tuple[int, bytes]]:
    return [(offset, raw) for _, offset, raw in flat(fields)]
