"""Reading captures that were cut short, damaged, compressed or made to do harm."""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard
from msgspec.structs import replace

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.feed.captureformat import MAX_CONNECTIONS, RamMode
from migsniff.feed.captureread import open_capture
from migsniff.feed.container import BLOCK_HEADER, DIRECTIONS, FILE_HEADER, block_header, file_header
from tests.saving import ENDS, OPENED, OPENED_1, Live, chunk, owned, replayed, save, until_error

STEPS: list[Live] = [
    OPENED,
    chunk(1, b"headPAGE", 8, omitted=[(4, 8)], has_events=True),
    chunk(20, b"back", 4, direction="rev", has_events=True),
    OPENED_1,
    chunk(30, b"other", 5, 1, name="multifd-0", has_events=True),
    chunk(5000, b"PAGEPAGE", 16, omitted=[(8, 16)], has_events=True),
    *ENDS,
    Ended(9002, 1, "fwd", "eof", "source"),
    Ended(9003, 1, "rev", "eof", "source"),
]


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


# ---------------------------------------------------------------- cut short


def ends_of(told: list[Arrival], whole: list[Arrival] | None = None) -> list[Arrival]:
    """The ends of a capture that was cut short: of all directions that are still open, at the last time."""
    keys = [(a.connection, direction) for a in told if isinstance(a, Opened) for direction in DIRECTIONS]
    ended = [(a.connection, a.direction) for a in told if isinstance(a, Ended)]
    time = told[-1].time if told else 0
    if whole is not None and len(told) < len(whole) and told and told[-1] == whole[len(told) - 1]:
        time = whole[len(told)].time  # the line whose bytes are missing had been read
    return [
        Ended(time, number, direction, "closed", "proxy")
        for number, direction in keys
        if (number, direction) not in ended
    ]


def joined(arrivals: Sequence[Arrival]) -> dict[tuple[int, str], bytes]:
    """All bytes of each direction."""
    found: dict[tuple[int, str], bytes] = {}
    for arrival in arrivals:
        if isinstance(arrival, Chunk):
            key = arrival.connection, arrival.direction
            found[key] = found.get(key, b"") + bytes(arrival.data)
    return found


@pytest.mark.parametrize("ram", ["strip", "keep"])
def test_timeline_cut_anywhere(tmp_path: Path, ram: RamMode) -> None:
    """What stands in the files behind the last line is read too, with that line's time."""
    path = save(tmp_path, STEPS, ram)
    whole = replayed(path)
    assert len(whole) == len(STEPS)
    text = (path / "timeline.ndjson").read_bytes()
    edit_manifest(path, complete=False)
    for cut in range(len(text) + 1):
        (path / "timeline.ndjson").write_bytes(text[:cut])
        lines = [json.loads(line) for line in text[: text.rfind(b"\n", 0, cut) + 1].splitlines()]
        told = whole[: sum(line["kind"] != "file" for line in lines)]
        files = {(line["connection"], line["direction"]) for line in lines if line["kind"] == "file"}
        ended = {(a.connection, a.direction) for a in told if isinstance(a, Ended)}
        arrivals = replayed(path)
        behind = [a for a in arrivals[len(told) :] if isinstance(a, Chunk)]
        rest = joined(whole[len(told) :])
        assert joined(behind) == {key: rest[key] for key in rest if key in files - ended}
        assert arrivals == [*told, *(replace(a, time=told[-1].time) for a in behind), *ends_of(told)]


def test_timeline_of_a_whole_capture_cut_anywhere(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS)
    whole = replayed(path)
    text = (path / "timeline.ndjson").read_bytes()
    for cut in range(len(text)):
        (path / "timeline.ndjson").write_bytes(text[:cut])
        arrivals, error = until_error(open_capture(path).arrivals())
        assert f"{path}/timeline.ndjson: " in error, cut
        count = text[:cut].count(b"\n") - text[:cut].count(b'"kind":"file"', 0, text.rfind(b"\n", 0, cut) + 1)
        assert arrivals[:count] == whole[:count]


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(("ram", "file"), [("strip", "main.strip"), ("keep", "main.fwd")])
def test_bytes_cut_anywhere(tmp_path: Path, ram: RamMode, file: str, complete: bool) -> None:
    """The capture ends where the first byte is missing that the timeline speaks of."""
    path = save(tmp_path, STEPS, ram)
    whole = replayed(path)
    data = (path / file).read_bytes()
    edit_manifest(path, complete=complete)
    first, second = (index for index, a in enumerate(whole) if isinstance(a, Chunk) and a.end in (8, 16))
    for cut in range(len(data)):
        (path / file).write_bytes(data[:cut])
        arrivals, error = until_error(open_capture(path).arrivals())
        if ram == "strip":
            told = whole[: second if cut >= FILE_HEADER.size + BLOCK_HEADER.size + 4 else first]
        else:
            chunk = whole[second if cut >= 8 else first]
            assert isinstance(chunk, Chunk)
            told = whole[: whole.index(chunk)]
            if cut % 8:
                told.append(replace(chunk, data=bytes(chunk.data)[: cut % 8], end=cut))
        if complete:
            assert f"{path}/{file}: " in error
            assert arrivals == told
        else:
            assert error == ""
            assert arrivals == [*told, *ends_of(told, whole)]


def test_only_one_channel(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS)
    back = owned(open_capture(path).arrivals("multifd-0.strip"))
    assert back == [arrival for arrival in replayed(path) if arrival.connection == 1]
    assert len(back) == 4
    with pytest.raises(CaptureError, match=r"does not mention multifd-9\.strip"):
        open_capture(path).arrivals("multifd-9.strip")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".zst", zstandard.ZstdCompressor().compress),
        (".gz", gzip.compress),
        (".xz", lambda data: lzma.compress(data, preset=6)),
    ],
)
@pytest.mark.parametrize("ram", ["strip", "keep"])
def test_files_may_be_compressed(
    tmp_path: Path, ram: RamMode, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = save(tmp_path, STEPS, ram)
    whole = replayed(path)
    for file in list(path.iterdir()):
        if file.name != "manifest.json":
            (path / (file.name + suffix)).write_bytes(pack(file.read_bytes()))
            file.unlink()
    assert replayed(path) == whole
    packed = path / ("main.strip" if ram == "strip" else "main.fwd")
    packed = packed.with_name(packed.name + suffix)
    packed.write_bytes(packed.read_bytes()[:-6])
    arrivals, error = until_error(open_capture(path).arrivals())
    assert re.search(rf"{packed}: (the \w+ data ends too early|broken \w+ data)", error)
    assert arrivals == whole[: len(arrivals)]


# ---------------------------------------------------------------- made to do harm


MANIFEST: dict[str, Any] = {
    "format": "migsniff-capture",
    "version": 1,
    "migsniff": "0",
    "migration": "m",
    "start": "2026-01-01T00:00:00Z",
    "ram": "keep",
    "complete": False,
}


def opened(connection: int = 0, time: int = 0) -> dict[str, object]:
    return {"kind": "opened", "time": time, "connection": connection, "source": "a", "destination": "b"}


def file_line(file: str, connection: int = 0, direction: str = "fwd") -> dict[str, object]:
    return {"kind": "file", "connection": connection, "direction": direction, "channel": "main", "file": file}


def chunk_line(end: int, time: int = 0, connection: int = 0) -> dict[str, object]:
    return {"kind": "chunk", "time": time, "connection": connection, "direction": "fwd", "end": end}


def ended(connection: int = 0, direction: str = "fwd") -> dict[str, object]:
    return {
        "kind": "ended",
        "time": 0,
        "connection": connection,
        "direction": direction,
        "how": "eof",
        "by": "source",
    }


def make(path: Path, lines: list[dict[str, object] | bytes], **manifest: object) -> Path:
    """A capture written by hand."""
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_text(json.dumps({**MANIFEST, **manifest}))
    (path / "timeline.ndjson").write_bytes(
        b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    )
    return path


GOOD: list[dict[str, object] | bytes] = [opened(), file_line("main.fwd"), chunk_line(4)]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([opened()], "connection 0 is opened again"),
        ([file_line("main.fwd")], "a second file for fwd of connection 0"),
        ([file_line("main.rev", 3)], "connection 3 was not opened"),
        ([chunk_line(5, connection=3)], "connection 3 was not opened"),
        ([ended(3)], "connection 3 was not opened"),
        ([chunk_line(3)], "wire offset 3 after 4"),
        ([chunk_line(1 << 63)], "Expected `int` <= 9223372036854775807"),
        ([chunk_line(1 << 70)], "Expected `int` <= 9223372036854775807"),
        ([chunk_line(8, time=1 << 60)], "Expected `int` <= 281474976710656"),
        ([chunk_line(-1)], "Expected `int` >= 0"),
        ([chunk_line(8, time=-1)], "Expected `int` >= 0"),
        ([opened(1, time=9), chunk_line(4, time=8)], "time 8 after time 9"),
        ([ended()], "the direction ends here, but its file goes on"),
        ([chunk_line(8), ended(), ended()], "fwd of connection 0 has ended"),
        ([chunk_line(8), ended(), chunk_line(9)], "fwd of connection 0 has ended"),
        ([opened(1), chunk_line(1, connection=1)], "bytes of connection 1, which has no file"),
        ([opened(1), file_line("main.rev", 1)], "main.rev is no file for fwd"),
        ([opened(1), file_line("main.strip", 1)], "main.strip is no file for fwd"),
        ([opened(1), file_line("../main.fwd", 1)], "Expected `str` matching"),
        ([opened(1), file_line("/etc/passwd", 1)], "Expected `str` matching"),
        ([opened(1), file_line("manifest.json", 1)], "Expected `str` matching"),
        ([opened(1), file_line(".hidden.fwd", 1)], "Expected `str` matching"),
        ([opened(1), file_line("main.fwd\n", 1)], "Expected `str` matching"),
        ([opened(1), file_line("x" * 90 + ".fwd", 1)], "Expected `str` matching"),
        ([b"{}\n"], "Object missing required field `kind`"),
        ([b"\n"], "Input data was truncated"),
        ([b"[" * 60_000 + b"\n"], "Expected `object`"),
        ([b'{"kind":"chunk","x":' + b"[" * 60_000 + b"\n"], "maximum recursion depth"),
        ([b'{"kind":"odd"}\n'], "Invalid value 'odd'"),
        ([b"\0" * 100 + b"\n"], "JSON is malformed"),
        ([b'{"kind":"stopped","time":0,"reason":"\xff"}\n'], "'utf-8' codec can't decode"),
        ([b'{"kind":"' + b"x" * 70_000 + b"\n"], "a line of more than 65536 bytes"),
    ],
)
def test_timelines_that_lie(tmp_path: Path, lines: list[dict[str, object] | bytes], reason: str) -> None:
    path = make(tmp_path / "c", [*GOOD, *lines])
    (path / "main.fwd").write_bytes(b"12345678")
    arrivals, error = until_error(open_capture(path).arrivals())
    assert re.fullmatch(rf"{path}/timeline.ndjson: at \d+: {re.escape(reason)}.*", error), error
    assert arrivals[:2] == [Opened(0, 0, "a", "b"), Chunk(0, 0, "fwd", b"1234", 4)]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"QEVM", "JSON is malformed"),
        (b"[]", "Expected `object`"),
        (b'{"format":"x","version":1}', "not the manifest of a migsniff capture"),
        (b'{"format":"migsniff-capture","version":2}', "version 2, only version 1 is known"),
        (b'{"format":"migsniff-capture","version":1}', "missing required field"),
        (b"[" * 100_000, "nests deeper than 32 levels"),
        (b" " * (5 << 20), "larger than 4194304 bytes"),
        (json.dumps({**MANIFEST, "ram": "all"}).encode(), "Invalid enum value"),
        (json.dumps({**MANIFEST, "start": "yesterday"}).encode(), "start: not a time"),
        (json.dumps({**MANIFEST, "start": "9999-12-31T23:59:59-23:59"}).encode(), "start: not a time"),
        (json.dumps({**MANIFEST, "start": "9999-12-31T23:59:59Z"}).encode(), "start: not a time"),
    ],
)
def test_manifests_that_lie(tmp_path: Path, manifest: bytes, reason: str) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(CaptureError, match=rf"{tmp_path}/manifest.json: .*{reason}"):
        open_capture(tmp_path)


def test_brackets_in_strings_are_no_depth(tmp_path: Path) -> None:
    make(tmp_path, GOOD, facts={"odd": '[{"\\' * 50})
    assert open_capture(tmp_path).manifest.facts == {"odd": '[{"\\' * 50}


@pytest.mark.parametrize("member", ["manifest.json", "timeline.ndjson", "main.fwd", "main.fwd.zst"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_regular_files_of_the_folder(tmp_path: Path, member: str, kind: str) -> None:
    path = make(tmp_path / "c", GOOD)
    (path / "main.fwd").write_bytes(b"12345678")
    place = path / member
    if member == "main.fwd.zst":
        (path / "main.fwd").rename(place)
    if kind == "link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.unlink()
        (os.mkfifo if kind == "pipe" else os.mkdir)(place)
    reason = "a symbolic link, which is not followed" if kind == "link" else "not a regular file"
    with pytest.raises(CaptureError, match=f"{place}: {reason}"):
        list(open_capture(path).arrivals())


def test_names_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    path = make(tmp_path / "c\x1b[31m", GOOD)
    with pytest.raises(CaptureError, match=r"c\\x1b\[31m/main.fwd': the file is missing"):
        list(open_capture(path).arrivals())


def test_sparse_giant(tmp_path: Path) -> None:
    path = make(tmp_path, [*GOOD, chunk_line((1 << 63) - 1, time=7)])
    with (path / "main.fwd").open("wb") as file:
        file.truncate(1 << 40)
    pieces = list(islice((a for a in open_capture(path).arrivals() if isinstance(a, Chunk)), 50))
    assert [len(piece.data) for piece in pieces] == [4, *[1 << 20] * 49]
    assert pieces[-1].end == 4 + 49 * (1 << 20)


def test_too_many_connections(tmp_path: Path) -> None:
    path = make(tmp_path, [opened(number) for number in range(MAX_CONNECTIONS + 1)])
    arrivals, error = until_error(open_capture(path).arrivals())
    assert error.endswith(f"more than {MAX_CONNECTIONS} connections")
    assert len(arrivals) == MAX_CONNECTIONS


def test_too_many_compressed_files(tmp_path: Path) -> None:
    lines: list[dict[str, object] | bytes] = []
    for number in range(40):
        lines += [opened(number), file_line(f"x-{number}.fwd", number)]
        (tmp_path / f"x-{number}.fwd.zst").write_bytes(zstandard.compress(b""))
    _, error = until_error(open_capture(make(tmp_path, lines)).arrivals())
    assert error.endswith("more than 32 compressed files at once")


def test_a_window_that_wants_too_much_memory(tmp_path: Path) -> None:
    make(tmp_path, GOOD)
    wide = zstandard.ZstdCompressionParameters(window_log=26, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    (tmp_path / "main.fwd.zst").write_bytes(packer.compress(b"12345678") + packer.flush())
    _, error = until_error(open_capture(tmp_path).arrivals())
    assert "too much memory" in error


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (
            file_header("rev") + block_header(0, 4, 4) + b"1234",
            "main.strip: holds the direction rev, not fwd",
        ),
        (b"QEVM" + bytes(60), "main.strip: not a stripped channel"),
        (
            file_header("fwd") + block_header(0, 5, 4) + b"1234",
            "the block from wire offset 0 to 5 goes past 4",
        ),
        (file_header("fwd") + block_header(4, 5, 1) + b"1", "a block of wire offset 4 where 0 must follow"),
    ],
)
def test_containers_that_lie(tmp_path: Path, data: bytes, error: str) -> None:
    make(tmp_path, [opened(), file_line("main.strip"), chunk_line(4)], ram="strip")
    (tmp_path / "main.strip").write_bytes(data)
    arrivals, said = until_error(open_capture(tmp_path).arrivals())
    assert error in said
    assert arrivals == [Opened(0, 0, "a", "b")]


def test_a_capture_that_vanishes(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS)
    capture = open_capture(path)
    shutil.rmtree(path)
    with pytest.raises(CaptureError, match=r"timeline\.ndjson: the file is missing"):
        list(capture.arrivals())


def test_bzip2_members_are_not_a_thing(tmp_path: Path) -> None:
    make(tmp_path, GOOD)
    (tmp_path / "main.fwd.bz2").write_bytes(bz2.compress(b"12345678"))
    with pytest.raises(CaptureError, match=r"main\.fwd: the file is missing"):
        list(open_capture(tmp_path).arrivals())
