"""Devices that save themselves without a vmstate: their description is one buffer, its layout is their own.

One registered function a device: the meaning of its bytes, in words. None: they are not as it writes them.
"""

from collections.abc import Callable
from typing import Final

from migsniff.core.registry import Registry
from migsniff.core.wire import U64

OLD_STYLE: Final = Registry[str, Callable[[bytes], str | None]]("old-style device")
SKEYS: Final = 0x02
SKEYS_ERROR: Final = 0x04
SKEYS_EOS: Final = 0x01


def meaning(idstr: str, raw: bytes) -> str | None:
    """What an old-style device's bytes mean, if that is known."""
    function = OLD_STYLE.get(idstr)
    return function(raw) if function else None


@OLD_STYLE("todclock", source="hw/s390x/tod.c")
def todclock(raw: bytes) -> str | None:
    """s390x: a byte that tells whether there is a clock, its epoch index and its value."""
    if raw == b"\0":
        return "no clock"
    if len(raw) != 10 or raw[0] != 1:
        return None
    return f"epoch {raw[1]}, {U64.unpack_from(raw, 2)[0]:#018x}"


@OLD_STYLE("s390-skeys", source="hw/s390x/s390-skeys.c")
def storage_keys(raw: bytes) -> str | None:
    """s390x: runs of storage keys, a byte a page, then EOS. A guest that uses none may send none."""
    at = keys = used = 0
    while at + 8 <= len(raw):
        flags = U64.unpack_from(raw, at)[0] & 0xFFF
        at += 8
        if flags != SKEYS:
            what = f"{keys} storage keys, {used} of them not 0"
            if at != len(raw) or flags not in (SKEYS_EOS, SKEYS_ERROR):
                return None
            return what if flags == SKEYS_EOS else f"{what}; then QEMU could not read them"
        if at + 8 > len(raw):
            return None
        (count,) = U64.unpack_from(raw, at)
        at += 8
        if count > len(raw) - at:
            return None
        keys += count
        used += count - raw.count(0, at, at + count)
        at += count
    return None


@OLD_STYLE("slirp", source="net/slirp.c; the layout is that of libslirp, src/state.c")
def slirp(raw: bytes) -> str | None:
    """User-mode networking: its connections, in whatever way the library that wrote it keeps them."""
    return f"{len(raw)} bytes of libslirp's own"
