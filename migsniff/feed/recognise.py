"""What a file is that is no migration stream, told by its first bytes."""

from struct import Struct
from typing import Final

from migsniff.feed.container import MAGIC as STRIPPED
from migsniff.feed.libvirt import MAGICS as LIBVIRT

STREAM: Final = b"QEVM\0\0\0\3"  # what every stream begins with, core/wire.py FILE_MAGIC and FILE_VERSION

# (offset, bytes there, what it is)
SIGNS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, STRIPPED, "one channel of a stripped migsniff capture"),
    (0, b"\x16\x03", "TLS: an encrypted connection"),
    (0, b"QFI\xfb", "a qcow2 disk image (a snapshot made with savevm is inside it, not in the open)"),
    (0, b"QED\0", "a QED disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"KDUMP   ", "a compressed kdump (dump-guest-memory), not a migration"),
    (0, b"DISKDUMP", "a diskdump memory dump"),
    (0, b"makedumpfile\0", "a flattened makedumpfile dump (dump-guest-memory), not a migration"),
    (0, b"\xd4\xc3\xb2\xa1", "a pcap file"),
    (0, b"\xa1\xb2\xc3\xd4", "a pcap file"),
    (0, b"\x4d\x3c\xb2\xa1", "a pcap file"),
    (0, b"\xa1\xb2\x3c\x4d", "a pcap file"),
    (0, b"\x0a\x0d\x0d\x0a", "a pcapng file"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"\x89LZO\0\r\n\x1a\n", "lzop data: unpack it first (lzop -dc FILE | migsniff read -)"),
    (0, b"\x04\x22\x4d\x18", "lz4 data: unpack it first (lz4 -dc FILE | migsniff read -)"),
    (0, b"VMA\0", "a Proxmox backup (VMA)"),
    (0, b"\x7fVirtualBox SavedState", "a VirtualBox saved state"),
    (0, b"\xd2\xbe\xd2\xbe", "a VMware suspended state"),
    (0, b"\xd1\xba\xd1\xba", "a VMware suspended state"),
    (0, b"\xd0\xbe\xd2\xbe", "a VMware suspended state"),
    (0, b"Xen saved domain", "a Xen save file (xl save)"),
    (0, b"LinuxGuestRecord", "a Xen save file (xm save)"),
    (0, b"\xff\xff\xff\xff\xff\xff\xff\xffXENF", "a Xen migration stream (libxc)"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"SSH-", "an SSH greeting: the port belongs to an SSH server"),
    (0, b"HTTP/", "an HTTP answer"),
    (0, b"GET ", "an HTTP request"),
    (0, b"POST ", "an HTTP request"),
    (0, b"CONNECT ", "an HTTP request"),
    (0, b"RFB 0", "a VNC greeting"),
    (0, b"REDQ", "a SPICE connection"),
    (0, b"NBDMAGIC", "an NBD greeting: storage migration uses its own connection"),
    (0, b"#!", "a script"),
    (257, b"ustar", "a tar archive"),
)
ELF_TYPE_CORE: Final = 4


def recognise(head: bytes) -> str | None:
    """What a file that begins with `head` (512 bytes are enough) is, in words; None: no idea, or a stream."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "zeroes"
    if head.startswith(LIBVIRT):
        return "a libvirt save file"
    if head.startswith(b"\x7fELF"):
        return _elf(head)
    for offset, sign, words in SIGNS:
        if head.startswith(sign, offset):
            return words
    return _text(head)


def stream_within(head: bytes) -> int | None:
    """Where in `head` a stream begins, behind something else; None if it does nowhere."""
    found = head.find(STREAM)
    return None if found < 0 else found


def _elf(head: bytes) -> str:
    kind = Struct(">H" if head[5:6] == b"\2" else "<H")
    if len(head) >= 18 and kind.unpack_from(head, 16) == (ELF_TYPE_CORE,):
        return "an ELF core dump (dump-guest-memory), not a migration"
    return "an ELF file"


def _text(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b'{"QMP"'):
        return "a QMP greeting: this is QEMU's monitor, not its migration port"
    if start[:1] in (b"{", b"[") and _readable(start):
        return "JSON text"
    if start.startswith(b"<") and _readable(start):
        return "XML or HTML text"
    return "text" if _readable(head) else None


def _readable(head: bytes) -> bool:
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)
