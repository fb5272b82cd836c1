"""Names from the wire as text."""

from migsniff.core.errors import StreamProblem


def readable(name: bytes) -> str:
    """A name as text of one line: bytes that are not printable ASCII become backslash escapes."""
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in name)


def printable(name: bytes | bytearray) -> bool:
    """Whether a name is printable ASCII, as all are that QEMU writes."""
    return name.isascii() and name.decode("ascii").isprintable()


def printable_length(name: bytes) -> int:
    """How many of the first characters are printable ASCII."""
    return len(name) if printable(name) else next(n for n, b in enumerate(name) if not 0x20 <= b < 0x7F)


def text_length(name: bytes) -> int:
    """How many of the first bytes can be those of UTF-8 without control characters, as bitmaps are named."""
    good = next((n for n, b in enumerate(name) if b < 0x20 or b == 0x7F), len(name))
    try:
        name[:good].decode()
    except UnicodeDecodeError as error:
        if error.reason == "invalid start byte":
            return error.start
        if error.end < good:  # else it is the beginning of a character
            return error.end
    return good


def checked(name: bytes, what: str) -> str:
    """A name that QEMU writes in printable ASCII; StreamProblem if it is anything else."""
    if not name:
        raise StreamProblem("string-empty", what=what)
    if not printable(name):
        raise StreamProblem("string-text", what=what, found=readable(name))
    return name.decode("ascii")
