"""Devices that save themselves without a vmstate: their description is one buffer, its layout is their own.

One registered function a device: the meaning of its bytes, in words. None: they are not as it writes them.
"""

from collections.abc import Callable
from enum import IntFlag
from typing import Final

from migsniff.core.layout import Contents, Layout, Named, Part, Tagged
from migsniff.core.records import split_records
from migsniff.core.registry import Registry

OLD_STYLE: Final = Registry[str, Callable[[bytes], str | None]]("old-style device")
SKEYS_FLAGS: Final = 0xFFF  # of a word, whose other bits are an address


class SkeysFlag(IntFlag):
    """Low bits of a storage keys word (S390_SKEYS_SAVE_FLAG_* in hw/s390x/s390-skeys.c)."""

    EOS = 0x01
    KEYS = 0x02
    ERROR = 0x04


SKEYS: Final = Tagged(
    "StorageKeys",
    Layout(("word", Named("Q", SkeysFlag))),
    Part(
        lambda word: word & SKEYS_FLAGS == SkeysFlag.KEYS, Layout(("count", "Q"), ("keys", Contents("count")))
    ),
)
TODCLOCK: Final = Tagged(
    "TodClock", Layout(("there", "B")), Part(lambda there: there == 1, Layout(("epoch", "B"), ("value", "Q")))
)
RECORDS: Final = {"todclock": TODCLOCK, "s390-skeys": SKEYS}


def meaning(idstr: str, raw: bytes) -> str | None:
    """What an old-style device's bytes mean, if that is known."""
    function = OLD_STYLE.get(idstr)
    return function(raw) if function else None


@OLD_STYLE("todclock", source="hw/s390x/tod.c")
def todclock(raw: bytes) -> str | None:
    """s390x: a byte that tells whether there is a clock, its epoch index and its value."""
    if raw == b"\0":
        return "no clock"
    found = next(split_records(raw, [TODCLOCK]), None)
    if found is None or found[1] != len(raw) or "value" not in found[3]:
        return None
    return f"epoch {found[3]['epoch']}, {found[3]['value']:#018x}"


@OLD_STYLE("s390-skeys", source="hw/s390x/s390-skeys.c")
def storage_keys(raw: bytes) -> str | None:
    """s390x: runs of storage keys, a byte a page, then EOS. A guest that uses none may send none."""
    keys = used = 0
    for _, end, _, record in split_records(raw, [SKEYS]):
        flags = record["word"] & SKEYS_FLAGS
        if flags == SkeysFlag.KEYS:
            count = record["count"]
            keys += count
            used += count - raw.count(0, end - count, end)
            continue
        what = f"{keys} storage keys, {used} of them not 0"
        if end != len(raw) or flags not in (SkeysFlag.EOS, SkeysFlag.ERROR):
            return None
        return what if flags == SkeysFlag.EOS else f"{what}; then QEMU could not read them"
    return None


@OLD_STYLE("slirp", source="net/slirp.c; the layout is that of libslirp, src/state.c")
def slirp(raw: bytes) -> str | None:
    """User-mode networking: its connections, in whatever way the library that wrote it keeps them."""
    return f"{len(raw)} bytes of libslirp's own"
