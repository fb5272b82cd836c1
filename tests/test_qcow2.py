"""States of guests in qcow2 images: those of real QEMUs, images made by hand, and images that lie."""

import gzip
import random
import subprocess
from collections import deque
from contextlib import suppress
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.arrivals import Chunk
from migsniff.core.errors import CaptureError
from migsniff.core.events import Header
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from migsniff.feed.qcow2 import MAX_HOLE, Image, SnapshotChoice
from migsniff.offline import info
from migsniff.qemu import Qemu, boot_disk
from tests.playing import decode, of, verdict
from tests.qcow2images import CLUSTER, Made
from tests.qemu import Folder, require
from tests.saving import owned
from tests.test_bombs import Peak

STATE = b"QEVM\0\0\0\3" + random.Random(1).randbytes(600 * CLUSTER + 77)
MIB = 1 << 20


def stream(path: Path, snapshot: str | None = None) -> bytes:
    arrivals = owned(open_source(str(path), snapshot=snapshot).arrivals())
    return b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk))


# ---------------------------------------------------------------- real ones


def saved(version: str, folder: Folder, options: str) -> Path:
    """An image into which QEMU has saved its guest twice."""
    disk, image = folder.path / "boot", folder.path / "disk.qcow2"
    disk.write_bytes(boot_disk(4))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options]
    subprocess.run([*convert, str(disk), str(image)], check=True)
    arguments = ["-m", "8", "-drive", f"file={folder.inside}/disk.qcow2,format=qcow2,if=ide"]
    qemu = Qemu("x86_64", arguments, folder.path, "source", enter=folder.enter, inside=folder.inside)
    try:
        qemu.wait_for_passes(2)
        for name in ("one", "2"):
            assert qemu.execute("human-monitor-command", command_line=f"savevm {name}") == ""
    finally:
        qemu.kill()
    return image


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("5.2", "compat=0.10"),
        ("7.2", "cluster_size=512"),
        ("10.0", "extended_l2=on,cluster_size=64k"),
        ("11.1", "cluster_size=2M,compression_type=zstd"),
    ],
)
def test_savevm(version: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    require("7.2")  # its qemu-img
    require(version)
    folder = Folder(version)
    try:
        path = saved(version, folder, options)
        with pytest.raises(
            SnapshotChoice, match=r"disk\.qcow2: .*with 2 snapshots.*NAME or ID\n  one \(id 1\)"
        ) as choice:
            open_source(str(path))
        assert [s.name for s in choice.value.snapshots] == ["one", "2"]
        assert info(str(path), as_json=False) == 0
        assert "Snapshot 2:          2 (id 2), 20" in capsys.readouterr().out
        for name, label in (("one", "one (id 1)"), ("1", "one (id 1)"), ("2", "2 (id 2)")):
            source = open_source(str(path), snapshot=name)
            assert source.facts[0][1].startswith(label)
            events = decode(Session(), owned(source.arrivals()))
            assert verdict(events).outcome == "completed"
            assert len(of(events, Header)) == 1
        for snapshot in choice.value.snapshots:
            assert len(stream(path, snapshot.id)) == snapshot.state_size
    finally:
        folder.remove()


# ---------------------------------------------------------------- made by hand


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"version": 2},
        {"bits": 9},
        {"bits": 16, "disk_size": 1 << 30},
        {"bits": 14, "extended": True},
        {"packed": "zlib"},
        {"packed": "zstd"},
        {"disk_size": 0},
        {"extra": 24},
        {"extra": 8},
        {"extra": 0},
    ],
)
def test_images(tmp_path: Path, made: dict[str, Any]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(Made(STATE, **made).build())
    source = open_source(str(path))
    assert source.describe == "a snapshot in a qcow2 disk image"
    assert source.facts[0][1].startswith(
        "first (id 1), 2023-11-14 22:13:20 UTC, guest's clock 1.500 s, state "
    )
    assert stream(path) == stream(path, "first") == STATE


def test_what_is_not_in_the_file_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(Made(STATE, holes=frozenset({1, 5}), zero_flags=frozenset({2})).build())
    expected = bytearray(STATE)
    for number in (1, 2, 5):
        expected[number * CLUSTER : (number + 1) * CLUSTER] = bytes(CLUSTER)
    assert stream(path) == expected


def test_subclusters(tmp_path: Path) -> None:
    state = b"".join(b"QEVM" * 128 if n % 3 else bytes(512) for n in range(128))
    (tmp_path / "disk").write_bytes(Made(state, bits=14, extended=True).build())
    assert stream(tmp_path / "disk") == state


def test_names_from_an_image_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(Made(STATE, names=(("1", "a\x1b[2J"), ("2", "b"))).build())
    with pytest.raises(SnapshotChoice) as choice:
        open_source(str(tmp_path / "disk"))
    assert "\x1b" not in str(choice.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"version": 4}, "at 4: qcow2 version 4: only 2 and 3 are known"),
        ({"bits": 8}, r"at 20: clusters of 2\^8 bytes"),
        ({"bits": 12, "crypt": 1}, r"at 32: encrypted \(AES\)"),
        ({"crypt": 2}, r"at 32: encrypted \(LUKS\)"),
        ({"incompatible": 4}, "at 72: the data stands in another file"),
        ({"incompatible": 1 << 40}, "at 72: features 0x10000000000 that are not known"),
        ({"incompatible": 8}, "at 104: compression type 0"),
        ({"count": 65537}, "at 60: 65537 snapshots: more than the 65536 that QEMU allows"),
        ({"count": 0}, "a qcow2 disk image without snapshots"),
        ({"extra": 1025}, "a snapshot with 1025 bytes of extra data"),
        ({"state_size": 0}, "snapshot first holds no state of a guest, only its disk"),
        ({"state_size": 1 << 63}, "does not lead to a state of 9223372036854775808 bytes"),
        ({"l1_entries": 0xFFFFFFFF}, "its table of 4294967295 entries does not lead"),
        ({"l1_entries": 1}, "its table of 1 entries does not lead"),
        ({"l1_entry": 1 << 40}, "an L2 table at 1099511627776: the file has"),
        ({"l1_entry": CLUSTER + 512}, "an L2 table at 4608, which is no beginning of a cluster"),
        ({"entries": {1: 1 << 50}}, "at 1125899906842624: a cluster of the state: the file has"),
        ({"entries": {1: CLUSTER * 2 + 512}}, "at 8704: a cluster that begins inside another one"),
        ({"shared": True}, "clusters of the state overlap: they are more than the file holds"),
        ({"entries": {0: 1 << 62 | 0}}, "at 0: a compressed cluster that is broken"),
    ],
)
def test_images_that_lie(tmp_path: Path, made: dict[str, Any], message: str) -> None:
    (tmp_path / "disk").write_bytes(Made(STATE, **made).build())
    with pytest.raises(CaptureError, match=f"disk: (?s:.)*({message})"):
        stream(tmp_path / "disk")


@pytest.mark.parametrize("size", [5, 71, 80, CLUSTER + 10, CLUSTER + 50])
def test_cut_off(tmp_path: Path, size: int) -> None:
    (tmp_path / "disk").write_bytes(Made(STATE).build()[:size])
    with pytest.raises(CaptureError, match=r"disk: at \d+: the file ends inside the (header|table)"):
        stream(tmp_path / "disk")


def test_a_table_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(Made(STATE).build()[: 2 * CLUSTER])
    with pytest.raises(CaptureError, match="the L1 table of the snapshot goes beyond the end of the file"):
        stream(tmp_path / "disk")


def test_an_endless_state(tmp_path: Path) -> None:
    """Tables that lead nowhere, for as long as numbers go: bounded memory, and it ends."""
    made = Made(STATE[:CLUSTER], bits=21, disk_size=0, state_size=1 << 38, l1_entry=0)
    (tmp_path / "disk").write_bytes(made.build())
    arrivals = open_source(str(tmp_path / "disk")).arrivals()
    with (
        Peak() as peak,
        pytest.raises(CaptureError, match=f"more than {MAX_HOLE} bytes of its state in a row"),
    ):
        deque(arrivals, maxlen=0)
    assert peak.bytes < 32 * MIB


def test_tables_that_lead_to_themselves(tmp_path: Path) -> None:
    """The L1 entry names the L1 table as an L2 table, an L2 entry its own table: data, and an end."""
    path = tmp_path / "disk"
    path.write_bytes(Made(STATE, l1_entry=2 * CLUSTER).build())
    with Peak() as peak:
        assert len(stream(path)) == len(STATE)
    path.write_bytes(Made(STATE, entries=dict.fromkeys(range(600), 3 * CLUSTER)).build())
    assert len(stream(path)) == len(STATE)
    assert peak.bytes < 32 * MIB


def test_a_compressed_cluster_that_is_a_bomb(tmp_path: Path) -> None:
    """One that would give more than a cluster gives a cluster."""
    made = Made(bytes(2 << 20) + b"end", bits=21, packed="zlib", disk_size=0)
    (tmp_path / "disk").write_bytes(made.build())
    with Peak() as peak:
        assert stream(tmp_path / "disk") == made.state
    assert peak.bytes < 32 * MIB


def test_not_out_of_a_pipe_or_packed(tmp_path: Path) -> None:
    (tmp_path / "disk.gz").write_bytes(gzip.compress(Made(STATE).build()))
    with pytest.raises(CaptureError, match="can only be read as a file of its own"):
        open_source(str(tmp_path / "disk.gz"))


def test_a_snapshot_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(Made(STATE).build())
    with pytest.raises(CaptureError, match=r"disk: no snapshot other in it\n  first \(id 1\)"):
        open_source(str(tmp_path / "disk"), snapshot="other")


def test_mutations(tmp_path: Path) -> None:
    """Whatever an image says: a stream or a clear error, in bounded memory."""
    path = tmp_path / "disk"
    image = Made(STATE[: 5 * CLUSTER], disk_size=0).build()
    with Peak() as peak:
        for seed in range(400):
            chance = random.Random(seed)
            broken = bytearray(image)
            for _ in range(chance.choice((1, 1, 3, 10))):
                place = chance.choice((0, CLUSTER, 2 * CLUSTER, 3 * CLUSTER)) + chance.randrange(112)
                broken[place] = chance.choice((0, 255, chance.randrange(256)))
            path.write_bytes(broken)
            with suppress(CaptureError):
                deque(islice(open_source(str(path)).arrivals(), 2000), maxlen=0)
    assert peak.bytes < 64 * MIB


def test_the_table_of_snapshots_is_bounded(tmp_path: Path) -> None:
    """65536 entries with long names: read no further than 16 MiB."""
    path = tmp_path / "disk"
    path.write_bytes(Made(b"", names=(("i" * 60000, "n" * 60000),) * 200, count=65536).build())
    with (
        Peak() as peak,
        pytest.raises(CaptureError, match="a table of snapshots of more than 16777216 bytes"),
    ):
        Image(FileIO(path), "disk")
    assert peak.bytes < 64 * MIB
