"""A file's bytes, however they are had: mapped, read, or first the one and then the other."""

import errno
import mmap
import os
from io import FileIO
from pathlib import Path

import pytest

from migsniff.feed import pieces as module
from migsniff.feed.pieces import PIECE, pieces

CONTENTS = os.urandom(3 * PIECE + PIECE // 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    return path


def read_all(path: Path) -> bytes:
    with FileIO(path) as file:
        return b"".join(bytes(piece) for piece in pieces(file))


@pytest.mark.parametrize("size", [0, 1, 4095, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, len(CONTENTS)])
def test_a_regular_file(path: Path, size: int) -> None:
    os.truncate(path, size)
    assert read_all(path) == CONTENTS[:size]


def test_a_pipe_and_what_was_read_of_it_before() -> None:
    reader, writer = os.pipe()
    os.write(writer, CONTENTS[:5000])
    os.close(writer)
    assert os.read(reader, 10) == CONTENTS[:10]
    with FileIO(reader) as file:
        assert b"".join(bytes(piece) for piece in pieces(file)) == CONTENTS[10:5000]


def test_a_file_that_grows_meanwhile(path: Path) -> None:
    with FileIO(path) as file:
        source = pieces(file)
        got = bytes(next(source))
        with path.open("ab") as more:
            more.write(b"more" * 100)
        got += b"".join(bytes(piece) for piece in source)
    assert got == CONTENTS + b"more" * 100


@pytest.mark.parametrize("left", [0, 10, PIECE, PIECE + 10, 2 * PIECE + 5000])
def test_a_file_that_is_cut_off_meanwhile(path: Path, left: int) -> None:
    """Touching what is gone would end the process."""
    with FileIO(path) as file:
        source = pieces(file)
        got = bytes(next(source))
        os.truncate(path, left)
        got += b"".join(bytes(piece) for piece in source)
    assert got == CONTENTS[: max(left, PIECE)]


def test_mapping_is_not_possible(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert read_all(path) == CONTENTS


def test_an_older_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MADV_POPULATE_READ", 200)
    assert read_all(path) == CONTENTS


def test_little_memory_is_held(path: Path) -> None:
    def present() -> int:
        with open("/proc/self/smaps") as smaps:
            lines = iter(smaps)
            for line in lines:
                if str(path) in line:
                    return next(int(entry.split()[1]) << 10 for entry in lines if entry.startswith("Rss:"))
        return 0

    with FileIO(path) as file:
        seen = [present() for _ in pieces(file)]
    assert seen[0] >= PIECE
    assert max(seen) <= 2 * PIECE
