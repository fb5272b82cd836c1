"""How each kind of page record is framed."""

import pytest

from migsniff.core.errors import StreamProblem
from migsniff.core.pageencodings import PAGE_ENCODINGS
from migsniff.core.wire import RamFlag


@pytest.mark.parametrize(
    ("flag", "header", "page_size", "expected"),
    [
        (RamFlag.PAGE, b"", 4096, 4096),
        (RamFlag.ZERO, b"\0", 4096, 0),
        (RamFlag.ZERO, b"\1", 4096, "zero-fill"),
        (RamFlag.XBZRLE, b"\1\0\0", 4096, 0),
        (RamFlag.XBZRLE, b"\1\x10\0", 4096, 4096),
        (RamFlag.XBZRLE, b"\1\x10\1", 4096, "xbzrle-length"),
        (RamFlag.XBZRLE, b"\2\0\1", 4096, "xbzrle-header"),
        (RamFlag.COMPRESS_PAGE, b"\0\0\x0f\0", 4096, 0xF00),
        (RamFlag.COMPRESS_PAGE, b"\0\0\x10\x0e", 4096, 4096 + 14),
        (RamFlag.COMPRESS_PAGE, b"\0\0\x10\x0f", 4096, "compress-length"),
        (RamFlag.COMPRESS_PAGE, b"\0\0\0\0", 4096, "compress-length"),
        (RamFlag.COMPRESS_PAGE, b"\xff\xff\xff\xff", 4096, "compress-length"),
    ],
)
def test_encodings(flag: RamFlag, header: bytes, page_size: int, expected: int | str) -> None:
    encoding = PAGE_ENCODINGS.get(flag)
    assert encoding is not None
    assert encoding.header == len(header)
    if isinstance(expected, int):
        assert encoding.body(b"word" + header, 4, page_size) == expected
    else:
        with pytest.raises(StreamProblem) as raised:
            encoding.body(b"word" + header, 4, page_size)
        assert raised.value.code == expected
