"""Captures as packets: Wireshark finds nothing wrong with them, and migsniff reads the same out of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.core.arrivals import Chunk
from migsniff.export import pieces
from migsniff.feed.pcapwrite import MAX_PAYLOAD
from tests.qcow2images import Made
from tests.rawsamples import FOLDER, raw
from tests.tools import tshark

# without those whose page size only their pages tell
SAMPLES = [
    "x86-72-return-path",
    "x86-100-multifd",
    "x86-100-postcopy",
    "x86-72-refused",
    "x86-72-cancelled",
    "x86-111-q35",
    "aarch64-72-virt",
    "s390x-72-ccw",
]


def exported(path: Path, folder: Path) -> Path:
    out = folder / "out.pcapng"
    assert main(["export", str(path), "--pcapng", str(out)]) == main(["read", str(path)])
    return out


def records(path: Path, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capfd.readouterr()
    main(["read", "--descriptions", "none", "-T", "ndjson", str(path)])
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for record in found:
        del record["migration"]
        if record["type"] in (
            "end",
            "verdict",
        ):  # no proxy is between; a reset ends both ways
            for key in ("message", "error", "time"):
                record.pop(key, None)
        if record["type"] == "finding":  # nothing names the error there
            message = re.sub(r"(, | \()ECONN\w+\)?", "", record["message"]).replace("(RST)", "(RST")
            record["message"] = message.partition(" in ")[0] if record["code"] == "attempt-cost" else message
            del record["time"]
    # one reset ends both directions, in either order
    return sorted(found, key=lambda record: record["direction"] if record["type"] == "end" else "")


@pytest.mark.parametrize("name", SAMPLES)
def test_it_comes_back(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every record at the same offset, with the same fields and times, though page contents are missing."""
    out = exported(FOLDER / name, tmp_path)
    assert out.stat().st_mode & 0o777 == 0o600
    assert records(out, capfd) == records(FOLDER / name, capfd)


def test_whole_bytes_come_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a dump nothing is missing."""
    dump = tmp_path / "dump"
    dump.write_bytes(raw("x86-72-pc").main)
    out = exported(dump, tmp_path)

    def lasting(path: Path) -> list[dict[str, Any]]:
        return [r for r in records(path, capfd) if r["type"] != "end" and r.get("direction") == "fwd"]

    assert lasting(out) == lasting(dump)
    capfd.readouterr()
    main(["read", str(out)])
    assert capfd.readouterr().err == ""
    assert out.stat().st_size > dump.stat().st_size


@pytest.mark.parametrize("name", SAMPLES)
def test_tshark_finds_nothing_wrong(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No malformed packet, no retransmission, nothing out of order; the comments are the log."""
    out = exported(FOLDER / name, tmp_path)
    assert tshark(out, "-Y", "_ws.malformed || tcp.analysis.flags || ip.checksum.status == 0") == []
    comments = tshark(
        out, "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment", "-E", "aggregator=\t"
    )
    shown = sorted(comment for line in comments for comment in line.split("\t"))
    capfd.readouterr()
    main(["read", "--descriptions", "none", str(FOLDER / name)])
    assert shown == sorted(line.strip() for line in capfd.readouterr().out.splitlines())


def test_tshark_counts_the_same_bytes(tmp_path: Path) -> None:
    out = exported(FOLDER / "x86-100-postcopy", tmp_path)
    lengths = tshark(out, "-T", "fields", "-e", "tcp.srcport", "-e", "tcp.len", "-Y", "tcp.len > 0")
    sums: dict[str, int] = {}
    for line in lengths:
        port, length = line.split()
        sums[port] = sums.get(port, 0) + int(length)
    stream = raw("x86-100-postcopy")
    sent = sum(len(data) for _, way, data in stream.pieces if way == "fwd")
    assert sorted(sums.values()) == [sum(len(data) for _, way, data in stream.pieces) - sent, sent]


def test_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["export", str(FOLDER / "x86-72-pc"), "--pcapng", "-"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"\x0a\x0d\x0d\x0a")


def test_a_stream_that_begins_later_in_its_file(tmp_path: Path) -> None:
    """As migrate file:F,offset=N writes it: byte for byte the packets of the stream alone."""
    stream = raw("x86-72-pc").main
    for name, data in (("alone", stream), ("behind", b"x" * 4096 + stream)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dump").write_bytes(data)
    outs = [tmp_path / name / "out" for name in ("alone", "behind")]
    assert main(["export", str(tmp_path / "alone" / "dump"), "--pcapng", str(outs[0])]) == 0
    behind = ["export", str(tmp_path / "behind" / "dump"), "--pcapng", str(outs[1])]
    assert main([*behind, "--offset", "4k"]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_snapshot_in_a_disk_image(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = raw("x86-72-pc").main
    image = tmp_path / "disk.qcow2"
    image.write_bytes(Made(state, names=(("1", "SNAP"), ("2", "other"))).build())
    out = tmp_path / "out"
    assert main(["export", str(image), "--snapshot", "SNAP", "--pcapng", str(out)]) == 0
    assert capfd.readouterr().err == ""
    main(["info", str(out), "-T", "json"])
    assert json.loads(capfd.readouterr().out)["verdict"]["outcome"] == "completed"
    assert main(["export", str(image), "--pcapng", str(out)]) == 1
    assert "--snapshot" in capfd.readouterr().err
    assert main(["export", str(FOLDER / "x86-72-pc"), "--snapshot", "a", "--pcapng", str(out)]) == 1
    assert "no snapshots" in capfd.readouterr().err


def test_what_cannot_be_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), "--pcapng", str(tmp_path / "out")]) == 1
    assert "nothing: No such file" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stored", "end", "omitted", "comments", "expected"),
    [
        (b"abcdef", 16, [], [], [(b"abcdef", 6, [])]),
        (b"abcdef", 16, [], [(13, "x"), (16, "y")], [(b"abc", 3, ["x"]), (b"def", 3, ["y"])]),
        (b"abcdef", 26, [(13, 23)], [], [(b"abc", 13, []), (b"def", 3, [])]),
        (b"abcdef", 36, [(13, 23), (23, 33)], [], [(b"abc", 13, []), (b"", 10, []), (b"def", 3, [])]),
        (b"ab", 32, [(12, 32)], [(32, "x")], [(b"ab", 22, ["x"])]),
        (b"ab", 32, [(10, 30)], [(31, "x")], [(b"", 20, []), (b"a", 1, ["x"]), (b"b", 1, [])]),
        (b"ab", 32, [], [], [(b"ab", 22, [])]),  # where it stood is not known
        (
            b"",
            10 + 2 * MAX_PAYLOAD + 5,
            [],
            [],
            [(b"", MAX_PAYLOAD, []), (b"", MAX_PAYLOAD, []), (b"", 5, [])],
        ),
        (b"abc", 13, [], [(3, "of before"), (99, "of later")], [(b"abc", 3, ["of before", "of later"])]),
    ],
)
def test_pieces(
    stored: bytes,
    end: int,
    omitted: list[tuple[int, int]],
    comments: list[tuple[int, str]],
    expected: list[tuple[bytes, int, list[str]]],
) -> None:
    """Chunks are cut behind what is missing, and behind records."""
    chunk = Chunk(0, 0, "fwd", stored, end, "framed")
    assert [(bytes(d), n, lines) for d, n, lines in pieces(chunk, 10, omitted, comments)] == expected


def test_what_is_no_stream_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("nothing of a migration\n")
    assert main(["export", str(text), "--pcapng", str(tmp_path / "out")]) == 1
    assert (
        capsys.readouterr().err == "migsniff: not-a-stream: no QEMU migration stream: this looks like text\n"
    )


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "nowhere" / "out")
    assert main(["export", str(FOLDER / "x86-72-pc"), "--pcapng", target]) == 2
    assert capsys.readouterr().err == f"migsniff: {target}: No such file or directory\n"
