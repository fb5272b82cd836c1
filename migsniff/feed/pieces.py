"""The bytes of a file, piece by piece: a regular file's are not copied, as few of them are ever looked at."""

import mmap
import os
import stat
from collections.abc import Iterator
from io import FileIO, RawIOBase
from typing import Final

PIECE: Final = 1 << 20  # at once: more gains nothing
MADV_POPULATE_READ: Final = 22  # Linux 5.14, <asm-generic/mman-common.h>; Python has no name for it


def pieces(file: RawIOBase) -> Iterator[memoryview]:
    """What `file` holds from where it stands. A piece is valid until the next."""
    if isinstance(file, FileIO) and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        done = file.tell()
        for piece in _mapped(file.fileno(), done):
            yield piece
            done += len(piece)
        file.seek(done)  # all else is for reading to tell: more bytes by now, or the error of a disk
    buffer = memoryview(bytearray(PIECE))
    while taken := file.readinto(buffer):
        yield buffer[:taken]


def _mapped(file: int, begin: int) -> Iterator[memoryview]:
    """The pieces of a regular file from `begin` on that can be mapped, and as it stands in the page cache.

    Each is made present before it is touched: touching what is not there any more, or cannot be read from
    the disk, is the end of the process, while asking for it is an error that ends the iterator.
    """
    size = os.fstat(file).st_size
    try:
        mapping = mmap.mmap(file, size, prot=mmap.PROT_READ)
    except (OSError, ValueError, OverflowError):
        return
    view = memoryview(mapping)
    for start in range(begin - begin % PIECE, size, PIECE):
        length = min(PIECE, size - start)
        try:
            mapping.madvise(MADV_POPULATE_READ, start, length)
        except OSError:
            return
        yield view[max(start, begin) : start + length]
        mapping.madvise(mmap.MADV_DONTNEED, start, length)  # or memory seems to be used that is not
