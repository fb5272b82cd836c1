"""Opening what is to be read: captures, dumps, pipes, compressed or not, and telling what is no stream."""

import bz2
import gzip
import json
import lzma
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.feed.files import open_source
from migsniff.feed.pieces import PIECE
from migsniff.feed.recognise import recognise
from tests.saving import ENDS, OPENED, OPENED_1, START, Live, chunk, owned, replayed, save, until_error

STREAM = b"QEVM\0\0\0\3" + random.Random(1).randbytes(300_000) + bytes(2 * PIECE) + b"the end"


def zstd(data: bytes) -> bytes:
    """As the command does it: with a checksum, without the size."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"ignored"


def read(path: Path | str) -> tuple[list[Arrival], bytes]:
    """The arrivals of a source, and all of its bytes."""
    arrivals = owned(open_source(str(path)).arrivals())
    return arrivals, b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk))


def opened_and_read(path: Path) -> Iterator[Arrival]:
    """The arrivals of a source that may not even open."""
    yield from open_source(str(path)).arrivals()


def test_dump(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(STREAM)
    source = open_source(str(path))
    assert source.describe == "a stream"
    assert (source.migration, source.contents, source.start_time, source.capture) == (
        "dump",
        True,
        None,
        None,
    )
    arrivals, data = read(path)
    assert data == STREAM
    assert arrivals[0] == Opened(0, 0, str(path), "")
    assert arrivals[-1] == Ended(0, 0, "fwd", "eof", "file")
    chunks = [a for a in arrivals if isinstance(a, Chunk)]
    assert chunks[-1].end == len(STREAM)
    assert {(c.time, c.connection, c.direction, c.kept) for c in chunks} == {(0, 0, "fwd", "all")}
    assert max(len(c.data) for c in chunks) == PIECE


@pytest.mark.parametrize("form", PACKERS)
def test_compressed(tmp_path: Path, form: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(PACKERS[form](STREAM))
    assert open_source(str(path)).describe == f"a stream, {form}"
    arrivals, data = read(path)
    assert data == STREAM
    assert arrivals[-1] == Ended(0, 0, "fwd", "eof", "file")


@pytest.mark.parametrize(
    ("form", "between"),
    [
        ("gzip", b""),
        ("gzip", bytes(512)),
        ("zstd", b""),
        ("zstd", SKIPPABLE),
        ("xz", b""),
        ("xz", bytes(8)),
        ("bzip2", b""),
    ],
)
def test_many_compressed_members(tmp_path: Path, form: str, between: bytes) -> None:
    pack = PACKERS[form]
    path = tmp_path / "dump"
    path.write_bytes(pack(STREAM[:1000]) + between + pack(b"") + pack(STREAM[1000:]) + between)
    assert read(path)[1] == STREAM


def test_zstd_that_begins_with_a_frame_to_skip(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(SKIPPABLE + zstd(STREAM))
    assert read(tmp_path / "dump")[1] == STREAM


@pytest.mark.parametrize("form", PACKERS)
def test_compressed_and_cut_anywhere(tmp_path: Path, form: str) -> None:
    data = b"QEVM\0\0\0\3" + random.Random(2).randbytes(200)
    packed = PACKERS[form](data)
    path = tmp_path / "dump"
    for cut in range(8, len(packed)):
        path.write_bytes(packed[:cut])
        arrivals, error = until_error(opened_and_read(path))
        assert f"{path}: the {form} data ends too early" in error
        assert data.startswith(b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk)))


@pytest.mark.parametrize("form", PACKERS)
def test_compressed_and_damaged(tmp_path: Path, form: str) -> None:
    packed = bytearray(PACKERS[form](STREAM))
    packed[len(packed) // 2] ^= 0x55
    (tmp_path / "dump").write_bytes(packed)
    with pytest.raises(CaptureError, match=f"dump: broken {form} data before"):
        read(tmp_path / "dump")


@pytest.mark.parametrize("form", PACKERS)
def test_something_else_behind_compressed_data(tmp_path: Path, form: str) -> None:
    (tmp_path / "dump").write_bytes(PACKERS[form](STREAM) + b"something else")
    with pytest.raises(CaptureError, match=f"dump: broken {form} data before"):
        read(tmp_path / "dump")


@pytest.mark.parametrize("form", ["zstd", "xz"])
def test_windows_are_bounded(tmp_path: Path, form: str) -> None:
    if form == "zstd":
        wide = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
        packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        packed = packer.compress(STREAM) + packer.flush()
    else:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "preset": 0, "mf": lzma.MF_HC3}]
        packed = lzma.compress(STREAM[:100], filters=filters)
    (tmp_path / "dump").write_bytes(packed)
    with pytest.raises(CaptureError, match=f"dump: broken {form} data.*([Mm]emory)"):
        read(tmp_path / "dump")


@pytest.mark.parametrize("form", PACKERS)
def test_bombs_come_in_pieces(tmp_path: Path, form: str) -> None:
    """64 MiB from a few KiB: no piece is larger than what is read at once."""
    size = 64 << 20
    (tmp_path / "dump").write_bytes(PACKERS[form](bytes(size)))
    pieces = [len(a.data) for a in open_source(str(tmp_path / "dump")).arrivals() if isinstance(a, Chunk)]
    assert sum(pieces) == size
    assert max(pieces) <= PIECE


# ---------------------------------------------------------------- pipes


class Pipe:
    """A named pipe that a test writes to, and the arrivals that come out of it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.writer = -1
        thread = threading.Thread(target=self._open, args=(path,))
        thread.start()
        self.reader = os.open(path, os.O_RDONLY)
        thread.join()

    def _open(self, path: Path) -> None:
        self.writer = os.open(path, os.O_WRONLY)


@pytest.mark.parametrize("form", [None, *PACKERS])
def test_standard_input_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str | None
) -> None:
    """What has been written is read before any more is written."""
    pipe = Pipe(tmp_path / "pipe")
    before = os.dup(0)
    os.dup2(pipe.reader, 0)
    try:
        parts = [b"QEVM\0\0\0\3", b"section", random.Random(3).randbytes(50_000)]
        written = [PACKERS[form](part) if form else part for part in parts]
        os.write(pipe.writer, written[0])
        source = open_source("-")
        assert source.describe.startswith("a stream")
        arrivals = source.arrivals()
        assert next(arrivals) == Opened(0, 0, "standard input", "")
        got = b""
        for count, part in enumerate(parts):
            if count:
                os.write(pipe.writer, written[count])
            if count == 2:
                os.close(pipe.writer)
            while len(got) < sum(map(len, parts[: count + 1])):
                arrival = next(arrivals)
                assert isinstance(arrival, Chunk)
                got += arrival.data
            assert got == b"".join(parts[: count + 1]), part
        assert owned(arrivals) == [Ended(0, 0, "fwd", "eof", "file")]
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(pipe.reader)


def test_first_bytes_one_by_one(tmp_path: Path) -> None:
    """What the first bytes are is not decided before they are there."""
    packed = zstd(STREAM[:5000])
    os.mkfifo(tmp_path / "pipe")

    def drip() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as file:
            for byte in packed[:10]:
                file.write(bytes([byte]))
            file.write(packed[10:])

    thread = threading.Thread(target=drip)
    thread.start()
    assert read(tmp_path / "pipe")[1] == STREAM[:5000]
    thread.join()


# ---------------------------------------------------------------- captures

STEPS: list[Live] = [
    OPENED,
    OPENED_1,
    chunk(1, b"headPAGE", 8, omitted=[(4, 8)], has_events=True),
    chunk(30, b"other", 5, 1, name="multifd-0", has_events=True),
    *ENDS,
]


@pytest.mark.parametrize("what", ["", "manifest.json", "timeline.ndjson"])
def test_capture(tmp_path: Path, what: str) -> None:
    path = save(tmp_path, STEPS)
    source = open_source(str(path / what))
    assert source.describe == "stripped capture"
    assert (source.migration, source.contents, source.start_time) == ("m-1", False, START)
    assert source.capture is not None
    assert source.capture.manifest.facts == {"listen": "[::]:4444"}
    assert owned(source.arrivals()) == replayed(path)


def test_one_channel_of_a_capture(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS)
    source = open_source(str(path / "multifd-0.strip"))
    assert source.describe == "stripped capture, only multifd-0.strip"
    assert owned(source.arrivals()) == [a for a in replayed(path) if a.connection == 1]
    (path / "multifd-0.strip.zst").write_bytes(zstd((path / "multifd-0.strip").read_bytes()))
    (path / "multifd-0.strip").unlink()
    packed = open_source(str(path / "multifd-0.strip.zst"))
    assert owned(packed.arrivals()) == [a for a in replayed(path) if a.connection == 1]


@pytest.mark.parametrize("form", [None, *PACKERS])
def test_a_channel_alone(tmp_path: Path, form: str | None) -> None:
    data = (save(tmp_path, STEPS) / "main.strip").read_bytes()
    path = tmp_path / "alone"
    path.write_bytes(PACKERS[form](data) if form else data)
    source = open_source(str(path))
    assert source.describe == "a channel of a stripped capture, alone"
    assert not source.contents
    assert owned(source.arrivals()) == [
        Opened(0, 0, str(path), ""),
        Chunk(0, 0, "fwd", b"head", 8, "framed"),
        Ended(0, 0, "fwd", "eof", "file"),
    ]


def test_kept_bytes_of_a_capture_are_a_stream(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS, "keep")
    assert open_source(str(path)).contents
    assert read(path / "main.fwd")[1] == b"headPAGE"


def test_incomplete_capture(tmp_path: Path) -> None:
    path = save(tmp_path, STEPS, "keep")
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    assert open_source(str(path)).describe == "incomplete capture"


def test_a_folder_that_holds_one_capture_is_that_capture(tmp_path: Path) -> None:
    path = save(tmp_path / "captures", STEPS, "keep")
    (tmp_path / "captures/notes.txt").write_text("no capture")
    source = open_source(str(tmp_path / "captures"))
    assert source.capture is not None
    assert source.capture.path == path
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/nowhere")
    with pytest.raises(CaptureError, match=r"manifest\.json: "):  # not what else may be in a damaged one
        open_source(str(path))


@pytest.mark.parametrize(("count", "told"), [(2, "m-1, m-1-2"), (12, "2 more and m-1-11, m-1-12, m-1-2, ")])
def test_a_folder_that_holds_several_captures_says_which(tmp_path: Path, count: int, told: str) -> None:
    for _ in range(count):
        save(tmp_path, STEPS, "keep")
    with pytest.raises(CaptureError, match=f"{count} captures are in it, name one: {told}"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "missing: No such file or directory"),
        ("folder", "folder: no capture, nor one in it"),
        ("folder/manifest.json", "folder: no capture$"),
        ("odd\x1b[2J", r"odd\\x1b\[2J': No such file"),
        ("file/below", "file/below: Not a directory"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CaptureError, match=reason):
        open_source(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(CaptureError, match="secret: Permission denied"):
        open_source(str(tmp_path / "secret"))


# ---------------------------------------------------------------- what is no stream


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "an empty file"),
        (bytes(512), "zeroes"),
        (b"\x16\x03\x01\x02\x00\x01", "TLS: an encrypted connection"),
        (b"LibvirtQemudSave\2\0", "a libvirt save file"),
        (b"LibvirtQemudPart\2\0", "a libvirt save file"),
        (
            b"QFI\xfb\0\0\0\3",
            "a qcow2 disk image (a snapshot made with savevm is inside it, not in the open)",
        ),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\4\0", "an ELF core dump (dump-guest-memory), not a migration"),
        (b"\x7fELF\2\2\1" + bytes(9) + b"\0\4", "an ELF core dump (dump-guest-memory), not a migration"),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\2\0", "an ELF file"),
        (b"\x7fELF", "an ELF file"),
        (b"KDUMP   \6\0\0\0", "a compressed kdump (dump-guest-memory), not a migration"),
        (b"makedumpfile\0\0\0\0", "a flattened makedumpfile dump (dump-guest-memory), not a migration"),
        (b"\xd4\xc3\xb2\xa1\2\0\4\0", "a pcap file"),
        (b"\n\r\r\n\x1c\0\0\0", "a pcapng file"),
        (gzip.compress(b"x", mtime=0), "gzip data"),
        (zstd(b"x"), "zstd data"),
        (b"\x89LZO\0\r\n\x1a\n", "lzop data: unpack it first (lzop -dc FILE | migsniff read -)"),
        (b"\x7fVirtualBox SavedState V2.0\n", "a VirtualBox saved state"),
        (b"Xen saved domain, xl format\n \0 \r", "a Xen save file (xl save)"),
        (b"some/file".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH greeting: the port belongs to an SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP answer"),
        (b'{"QMP": {"version"', "a QMP greeting: this is QEMU's monitor, not its migration port"),
        (b'  {"migration": "m"}\n', "JSON text"),
        (b"<domain type='kvm'>\n", "XML or HTML text"),
        (b"root:x:0:0:\n", "text"),
        (b"\x89migsniff-strip\n\0\1\0\0", "one channel of a stripped migsniff capture"),
        (b"QEVM\0\0\0\3\7", None),
        (b"\x11\x22\x33\x44\0\0\0\1", None),
        (b"{\xff\xfe binary", None),
        (random.Random(9).randbytes(512), None),
    ],
)
def test_recognise(head: bytes, words: str | None) -> None:
    assert recognise(head) == words


def test_first_bytes_are_remembered(tmp_path: Path) -> None:
    archive = b"some/file".ljust(257, b"\0") + b"ustar\x0000" + bytes(10_000)
    (tmp_path / "dump").write_bytes(gzip.compress(archive, mtime=0))
    source = open_source(str(tmp_path / "dump"))
    for _ in source.arrivals():
        pass
    assert source.head == archive[:512]
    assert recognise(source.head) == "a tar archive"


# ---------------------------------------------------------------- streams that begin further on


@pytest.mark.parametrize("offset", [1, 511, 4096, PIECE - 1, PIECE, PIECE + 4097])
def test_offset(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "dump"
    path.write_bytes(bytes(offset) + STREAM)
    source = open_source(str(path), offset=offset)
    assert source.describe == f"a stream from {offset} on"
    arrivals = owned(source.arrivals())
    assert b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk)) == STREAM
    path.write_bytes(b"other" * (offset // 5) + b"x" * (offset % 5) + gzip.compress(STREAM))
    arrivals = owned(open_source(str(path), offset=offset).arrivals())
    assert b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk)) == STREAM


def test_offset_in_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(bytes(100_000) + STREAM,))
    thread.start()
    arrivals = owned(open_source(str(tmp_path / "pipe"), offset=100_000).arrivals())
    assert b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk)) == STREAM
    thread.join()


@pytest.mark.parametrize("size", [0, 10, 4096])
def test_offset_behind_the_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "dump").write_bytes(bytes(size))
    with pytest.raises(CaptureError, match=f"dump: the file ends {5000 - size} bytes before offset 5000"):
        open_source(str(tmp_path / "dump"), offset=5000)


def test_offset_in_a_capture(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="a capture is read from its beginning, not from offset 5"):
        open_source(str(save(tmp_path, STEPS)), offset=5)


@pytest.mark.parametrize(
    ("before", "hint"),
    [
        (bytes(8192), "a stream begins at offset 8192: use --offset 8192"),
        (b"something else" * 300, "a stream begins at offset 4200: use --offset 4200"),
        (bytes(PIECE - 8), f"a stream begins at offset {PIECE - 8}: use --offset {PIECE - 8}"),
        (bytes(PIECE), ""),
        (b"", ""),
    ],
)
def test_where_a_stream_begins_is_told(tmp_path: Path, before: bytes, hint: str) -> None:
    (tmp_path / "dump").write_bytes(before + STREAM)
    assert open_source(str(tmp_path / "dump")).hint == hint
