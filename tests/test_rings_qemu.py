"""Virtqueues and the guest memory that they are in: what real destinations say is what was predicted.

Rings are what firmware leaves that has looked for a system on the disk, or what a program of a few
instructions sets up wrongly.
"""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from migsniff.cli import main
from migsniff.compare.rings import Ring, Virtqueues
from migsniff.descriptions import open_descriptions
from migsniff.offline import survey
from tests.checkpairs import ARCH
from tests.guests import LOOPS, RING_ABOVE_4_GIB, aarch64_ring, riscv64_ring, sector
from tests.loading import load, stream
from tests.qemu import Migration, poll, require
from tests.relays import Proxy

pytestmark = pytest.mark.timeout(120)
LOOPING = sector(LOOPS)
DISK = "-drive if=none,id=disk,file={folder}/disk,format=raw"
BLK = f"{DISK} -device virtio-blk-pci,drive=disk,addr=5"
SCSI = f"{DISK} -device virtio-scsi-pci,addr=5 -device scsi-hd,drive=disk"
CCW = f"{DISK} -device virtio-blk-ccw,drive=disk,bootindex=1 -no-shutdown -action panic=pause"
MOVED = 4
"""By how much an index is changed."""


class Guest(NamedTuple):
    """A guest whose firmware reads from a virtio disk, after some seconds."""

    version: str
    arguments: str
    arch: str = ARCH
    runs: float = 2.5

    @property
    def about(self) -> dict[str, Any]:
        return {"arch": self.arch, "files": {"disk": LOOPING}}

    def sends(self) -> bytes:
        require(self.version, self.arch)
        return stream(self.version, self.arguments, runs=self.runs, **self.about)

    def loads(self, data: bytes) -> tuple[bool, list[str]]:
        return load(self.version, self.arguments, data, **self.about)


GUESTS = {
    "pc": Guest("7.2", f"-M pc-i440fx-7.2 -m 32 {BLK}"),
    "pc of 10.0": Guest("10.0", f"-M pc-i440fx-7.2 -m 32 {BLK}"),
    "pc of 11.1": Guest("11.1", f"-M pc-i440fx-10.0 -m 32 {BLK}"),
    "q35, SCSI": Guest("7.2", f"-M pc-q35-7.2 -m 32 {SCSI}"),
    "legacy": Guest("7.2", f"-M pc-i440fx-7.2 -m 32 {BLK},disable-modern=on"),
    "a hole at 24 MiB": Guest("7.2", f"-M pc-q35-7.2,max-ram-below-4g=24M -m 32 {BLK}"),
    "s390x": Guest("7.2", f"-M s390-ccw-virtio-7.2 -m 64 {CCW}", "s390x", 4),
    "pseries": Guest("7.2", f"-M pseries-7.2 -m 256 {BLK},bootindex=1".replace("addr=5,", ""), "ppc64", 20),
}


def expert(path: Path, capfd: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    """What is found of virtqueues."""
    assert main(["expert", "-T", "json", "--descriptions", "none", *options, str(path)]) in (0, 1)
    found = json.loads(capfd.readouterr().out)["findings"]
    return [each for each in found if each["code"].startswith("virtqueue-")]


def check(path: Path, against: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    files = [str(path), "--against", str(against)]
    code = main(["check", *files, "-T", "json", "--descriptions", "none"])
    return code, json.loads(capfd.readouterr().out)


def rings(path: Path, describe: Sequence[str] = ()) -> list[Ring]:
    """Those that are compared."""
    queues = Virtqueues()
    known = open_descriptions(Namespace(describe=describe, descriptions="none"))
    survey(str(path), lambda _: [queues], lambda _: None, fields=True, known=known)
    omitted: list[str] = []
    found = queues.rings(omitted)
    assert omitted == []
    return found


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("VQ ")]


def core(message: str) -> str:
    """QEMU's own words in a finding."""
    return re.split(r"(?<=[0-9a-f]): the |; read by", message)[0]


@pytest.mark.parametrize("name", GUESTS)
def test_what_firmware_leaves(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As it was sent it loads, and nothing is found; with a number changed, what is said is found."""
    guest = GUESTS[name]
    data, path = guest.sends(), tmp_path / "stream"
    path.write_bytes(data)
    (ring,) = (ring for ring in rings(path) if ring.last_avail_idx)
    assert said(guest.loads(data)[1]) == []
    assert expert(path, capfd) == []
    number = slice(ring.offset, ring.offset + 2)
    changes = {
        "virtqueue-index": (number, (ring.last_avail_idx + MOVED).to_bytes(2)),
        "virtqueue-in-flight": (number, (ring.last_avail_idx - ring.size & 0xFFFF).to_bytes(2)),
        "virtqueue-no-address": (slice(ring.offset - 8, ring.offset), bytes(8)),
    }
    for code, (where, value) in changes.items():
        changed = bytearray(data)
        changed[where] = value
        (tmp_path / code).write_bytes(changed)
        loads, lines = guest.loads(bytes(changed))
        assert loads is (code == "virtqueue-index"), lines
        (found,) = expert(tmp_path / code, capfd)
        assert said(lines) == [core(found["message"])]
        assert found["code"] == code
        assert found["section"] == "/".join((ring.key[0], str(ring.key[1])))
        assert changed[found["offset"] :][:2].hex() == found["evidence"]
        result, told = check(tmp_path / code, path, capfd)
        assert [each["code"] for each in told["findings"] if each["severity"] != "note"] == [code]
        assert (result, told["loads"]) == ((0, True) if loads else (1, False))
        assert not any("virtqueues against" in words for words in told["not_compared"])


def test_memory_that_is_older_than_the_device(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Through the proxy, with all memory kept: the index in the guest's page is changed there."""
    require("7.2")
    with (
        Migration("7.2", mem=32, args=f"-M pc-i440fx-7.2 {BLK}", files={"disk": LOOPING}) as migration,
        Proxy(tmp_path, migration.listen(), "--ram", "keep", "--descriptions", "none") as proxy,
    ):
        assert poll_used(migration)
        assert migration.run(f"tcp:{proxy.where}").status == "completed"
        proxy.verdicts()
        proxy.stop()
        capture = proxy.capture()
    assert expert(capture, capfd) == []
    (ring,) = rings(capture)
    kept = capture / "main.fwd"
    sent = bytearray(kept.read_bytes())
    sent[ring.offset : ring.offset + 2] = (ring.last_avail_idx + MOVED).to_bytes(2)
    kept.write_bytes(sent)
    (found,) = expert(capture, capfd)
    place = re.search(
        r"at 0x([0-9a-f]+) of pc\.ram, whose page came last at offset (\d+) of main \(0\.\d+ s\), "
        r"and the device's state at \d+ \(0\.\d+ s\);",
        found["message"],
    )
    assert place
    at = int(place[2]) + int(place[1], 16) % 4096
    assert sent[at : at + 2] == ring.last_avail_idx.to_bytes(2, "little")
    # the device as it was, and memory from before it
    sent[ring.offset : ring.offset + 2] = ring.last_avail_idx.to_bytes(2)
    sent[at : at + 2] = (ring.last_avail_idx - 1).to_bytes(2, "little")
    kept.write_bytes(sent)
    (found,) = expert(capture, capfd)
    arguments = f"-M pc-i440fx-7.2 -m 32 {BLK}"
    loads, lines = load("7.2", arguments, bytes(sent), files={"disk": LOOPING})
    assert loads
    assert "delta 0xffff" in found["message"]
    assert said(lines) == [core(found["message"])]


SHOWS = {"multifd": "multifd-sync", "postcopy-ram": "POSTCOPY_RUN"}
"""What the log has of each."""


@pytest.mark.parametrize("capability", SHOWS)
def test_through_the_proxy(capability: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Memory that comes on other channels, or behind the devices."""
    require("7.2")
    with (
        Migration(
            "7.2", mem=32, args=f"-M pc-i440fx-7.2 {BLK}", files={"disk": LOOPING}, caps=[capability]
        ) as migration,
        Proxy(tmp_path, migration.listen(), "--ram", "keep", "--descriptions", "none") as proxy,
    ):
        assert poll_used(migration)
        if capability == "postcopy-ram":
            migration.source.execute("migrate-set-parameters", **{"max-bandwidth": 100_000})
        migration.start(f"tcp:{proxy.where}")
        if capability == "postcopy-ram":
            migration.wait(until=["active"])
            migration.source.execute("migrate-start-postcopy")
        assert migration.wait().status == "completed"
        proxy.verdicts()
        proxy.stop()
        capture = proxy.capture()
        seen = {event.get("name", event["type"]) for event in proxy.events}
    assert SHOWS[capability] in seen
    plain = tmp_path / "plain"  # in postcopy there is no description behind the devices
    plain.write_bytes(stream("7.2", f"-M pc-i440fx-7.2 -m 32 {BLK}", files={"disk": LOOPING}))
    assert expert(capture, capfd, "--describe", str(plain)) == []
    (ring,) = rings(capture, [str(plain)])
    result, told = check(capture, plain, capfd)
    assert (result, [each for each in told["findings"] if each["severity"] != "note"]) == (0, [])
    assert not any("virtqueues against" in words for words in told["not_compared"])
    kept = capture / "main.fwd"
    sent = bytearray(kept.read_bytes())
    sent[ring.offset : ring.offset + 2] = (ring.last_avail_idx + MOVED).to_bytes(2)
    kept.write_bytes(sent)
    (found,) = expert(capture, capfd, "--describe", str(plain))
    assert core(found["message"]).endswith(
        f"Guest index {ring.last_avail_idx:#x} inconsistent with Host index "
        f"{ring.last_avail_idx + MOVED:#x}: delta 0xfffc"
    )


def poll_used(migration: Migration) -> bool:
    """Whether the firmware has read from the disk."""
    (device,) = migration.source.execute("x-query-virtio")
    return poll(
        lambda: bool(
            migration.source.execute("x-query-virtio-queue-status", path=device["path"], queue=0)[
                "last-avail-idx"
            ]
        )
    )


WRONG = 300
"""An index that no queue of 8 descriptors can have at its beginning."""
PAGES = {
    "above 4 GiB of an i440FX": (ARCH, "-M pc-i440fx-7.2,max-ram-below-4g=24M -m 32", 0x10_0000),
    "above 4 GiB of a q35": (ARCH, "-M pc-q35-7.2,max-ram-below-4g=24M -m 32", 0x10_0000),
    "virt of aarch64": ("aarch64", "-M virt-7.2 -cpu max -m 32 -kernel {folder}/program", 0x4_0100),
    "virt of riscv64": ("riscv64", "-M virt -m 32 -bios {folder}/program", 0x8_0100),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_guest_that_sets_up_a_ring_wrongly(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing in the stream is changed: these guests do what no device takes, at a known place."""
    arch, arguments, page = PAGES[name]
    require("7.2", arch)
    program = {"aarch64": aarch64_ring, "riscv64": riscv64_ring}.get(arch)
    if program is None:
        arguments += " -drive if=ide,file={folder}/program,format=raw -device virtio-rng-pci,addr=5"
        content = sector(RING_ABOVE_4_GIB)
    else:
        arguments += " -device virtio-rng-device"
        content = program(page)
    where = (page << 12) + 8 * 16 + 2  # behind the descriptors and the flags
    loader = f" -device loader,addr={where:#x},data={WRONG},data-len=2"
    files = {"program": content}
    data = stream("7.2", arguments + loader, runs=2.5, arch=arch, files=files)
    (tmp_path / "stream").write_bytes(data)
    _, lines = load("7.2", arguments, data, arch=arch, files=files)
    assert said(lines) == ["VQ 0 size 0x8 Guest index 0x12c inconsistent with Host index 0x0: delta 0x12c"]
    (found,) = expert(tmp_path / "stream", capfd)
    assert core(found["message"]) == lines[0]
