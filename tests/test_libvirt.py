"""What libvirt saves: a file that libvirt 9.0 wrote, and headers that lie."""

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from migsniff.core.arrivals import Chunk
from migsniff.core.errors import CaptureError
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from migsniff.feed.libvirt import HEADER_SIZE, MAX_DATA, MAX_XML, domain_facts
from tests.playing import decode, verdict
from tests.saving import owned

SAMPLE = Path(__file__).parents[1] / "captures/samples/files/libvirt-90-xz"
SAVED = SAMPLE.read_bytes()
DATA = struct.unpack_from("<I", SAVED, 20)[0]
STREAM = lzma.decompress(SAVED[HEADER_SIZE + DATA :])
FACTS = (
    ("Saved by libvirt", "complete"),
    ("Saved as", "xz"),
    ("Domain was", "running"),
    ("Domain", "sample-guest"),
    ("Domain UUID", "6b1dd9a4-2b0f-4f0c-9d0a-0c6a1a2f3e4d"),
    ("Domain memory", "16384 KiB"),
    ("Domain CPUs", "1"),
    ("Domain machine", "pc-i440fx-7.2"),
    ("Emulator", "/usr/bin/qemu-system-x86_64"),
)


def image(
    *,
    magic: bytes = b"LibvirtQemudSave",
    order: str = "<",
    version: int = 2,
    length: int | None = None,
    running: int = 1,
    form: int = 0,
    cookie: int = 0,
    xml: bytes = b"<domain><name>n</name></domain>\0",
    behind: bytes = STREAM,
) -> bytes:
    numbers = struct.pack(
        order + "5I", version, len(xml) if length is None else length, running, form, cookie
    )
    return magic + numbers + bytes(56) + xml + behind


def stream(path: Path, offset: int = 0) -> bytes:
    arrivals = owned(open_source(str(path), offset=offset).arrivals())
    return b"".join(bytes(a.data) for a in arrivals if isinstance(a, Chunk))


def test_what_libvirt_saved() -> None:
    source = open_source(str(SAMPLE))
    assert source.describe == "a libvirt save file, xz"
    assert source.facts == FACTS
    events = decode(Session(), owned(source.arrivals()))
    assert verdict(events).outcome == "completed"
    assert stream(SAMPLE) == STREAM


@pytest.mark.parametrize(
    ("form", "name", "pack"),
    [
        (0, "raw", bytes),
        (1, "gzip", gzip.compress),
        (2, "bzip2", bz2.compress),
        (3, "xz", lzma.compress),
        (5, "zstd", zstandard.compress),
        (6, "sparse", bytes),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_formats(tmp_path: Path, form: int, name: str, pack: Callable[[bytes], bytes], order: str) -> None:
    path = tmp_path / "saved"
    path.write_bytes(image(form=form, order=order, behind=pack(STREAM)))
    assert open_source(str(path)).describe == f"a libvirt save file, {name}"
    assert stream(path) == STREAM
    path.write_bytes(b"x" * 5000 + path.read_bytes())
    assert stream(path, 5000) == STREAM
    packed = tmp_path / "saved.gz"
    packed.write_bytes(gzip.compress(image(form=form, order=order, behind=pack(STREAM))))
    assert stream(packed) == STREAM


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (
            {"magic": b"LibvirtQemudPart"},
            ("Saved by libvirt", "unfinished: libvirt did not come to its end"),
        ),
        ({"running": 0}, ("Domain was", "paused or stopped")),
        ({"version": 1, "form": 9 % 7}, ("Saved as", "raw")),
        ({"xml": b"<domain><name>n</name></domain>\0<cookie/>\0" + bytes(99), "cookie": 32}, ("Domain", "n")),
        ({"xml": b"<domain><name>n</name></domain>" + bytes(65536)}, ("Domain", "n")),
        (
            {"xml": b"<domain><name>n</domain>\0"},
            ("Domain XML", "cannot be read: mismatched tag: line 1, colum"),
        ),
        ({"xml": b""}, ("Domain XML", "cannot be read: no element found: line 1, column 0")),
    ],
)
def test_headers(tmp_path: Path, arguments: dict[str, object], facts: tuple[str, str]) -> None:
    path = tmp_path / "saved"
    path.write_bytes(image(**arguments))  # type: ignore[arg-type]
    found = dict(open_source(str(path)).facts)
    assert found[facts[0]].startswith(facts[1])
    assert stream(path) == STREAM


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (image()[:91], "the file ends inside the header of a libvirt save file"),
        (image(version=9), "libvirt save file version 9: only versions up to 2 are known"),
        (image(version=9, order=">"), "libvirt save file version 9: only versions up to 2 are known"),
        (image(version=0), "libvirt save file version 0: only versions up to 2 are known"),
        (image(form=7), "libvirt save format 7 is not known"),
        (image(length=MAX_DATA + 1), f"{MAX_DATA + 1} bytes: more than the {MAX_DATA} that migsniff reads"),
        (image(length=0xFFFFFFFF), "more than the"),
        (
            image(length=len(STREAM) + 100),
            f"the file ends inside libvirt's XML and cookie, which take {len(STREAM) + 100}",
        ),
        (image(length=MAX_XML + 5), "the file ends inside libvirt's XML and cookie"),
        (image(cookie=33), "libvirt's cookie at 33 of 32 bytes"),
        (
            image(form=4),
            r"a libvirt save file, lzop: unpack it first \(tail -c \+125 FILE \| lzop -dc \| migsniff",
        ),
    ],
)
def test_headers_that_lie(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "saved").write_bytes(contents)
    with pytest.raises(CaptureError, match=f"saved: .*{message}"):
        stream(tmp_path / "saved")


def test_not_packed_as_the_header_says(tmp_path: Path) -> None:
    (tmp_path / "saved").write_bytes(image(form=3))
    with pytest.raises(CaptureError, match="saved: broken xz data before"):
        stream(tmp_path / "saved")


def test_a_snapshot_of_what_has_none() -> None:
    with pytest.raises(CaptureError, match="no qcow2 disk image: it has no snapshots"):
        open_source(str(SAMPLE), snapshot="1")


# ---------------------------------------------------------------- XML that means harm

BOMB = b'<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">%s]><domain><name>&j;</name></domain>' % b"".join(
    b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in range(ord("b"), ord("k"))
)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (BOMB, "it declares a document type or entities"),
        (b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>', "it declares a document type or entities"),
        (b"<domain>" + b"<a>" * 1_000_000, "it nests deeper than 256 levels"),
        (b"<?xml version='1.0' encoding='none-such'?><domain/>", "unknown encoding"),
        (b"\0\1\2", "not well-formed"),
    ],
)
def test_xml_that_means_harm(xml: bytes, reason: str) -> None:
    ((label, text),) = domain_facts(xml)
    assert label == "Domain XML"
    assert reason in text


def test_long_names_are_cut() -> None:
    assert domain_facts(b"<domain><name>" + b"n" * 1_000_000 + b"</name></domain>") == (
        ("Domain", "n" * 256),
    )


def test_mutations(tmp_path: Path) -> None:
    """Whatever a header says: a stream or a clear error."""
    path = tmp_path / "saved"
    for seed in range(300):
        chance = random.Random(seed)
        broken = bytearray(image(form=chance.randrange(7)))
        for _ in range(chance.choice((1, 2, 8))):
            broken[chance.randrange(130)] = chance.choice((0, 255, chance.randrange(256)))
        path.write_bytes(broken)
        with suppress(CaptureError):
            stream(path)
