"""The numbers of the migration stream: each fact of the wire is defined here, once.

Sources are QEMU's migration/ folder (savevm.c, ram.c, multifd.h, qemu-file.c), versions 5.2 to 11.1.
Integers are big-endian. Limits are ours: what migsniff is willing to believe of a length that it reads.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

from migsniff.core.layout import Contents, Layout, Named, Part, Tagged

U8: Final = Struct(">B")
U16: Final = Struct(">H")
U32: Final = Struct(">I")
U64: Final = Struct(">Q")


FILE_MAGIC: Final = 0x5145564D  # "QEVM", migration/savevm.h
FILE_VERSION: Final = 3


class ItemType(IntEnum):
    """Type byte of a top-level item (QEMU_VM_* in migration/savevm.h)."""

    EOF = 0x00
    SECTION_START = 0x01
    SECTION_PART = 0x02
    SECTION_END = 0x03
    SECTION_FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    SECTION_FOOTER = 0x7E


class RamFlag(IntFlag):
    """Low bits of a RAM record's word (RAM_SAVE_FLAG_* in migration/ram.c)."""

    FULL = 0x01
    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    HOOK = 0x80
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


CAPABILITY_MAPPED_RAM: Final = "mapped-ram"
CAPABILITY_IGNORE_SHARED: Final = "x-ignore-shared"
OPTIONAL_NUMBER_MASK: Final = 0x3FF
"""The bits that a number behind the last RAM block has not, and every RAM record's word has one of."""

RAM_IDSTR: Final = "ram"
EEPROM_VERSION: Final = 20061113  # hw/nvram/eeprom93xx.c: of eepro100, dc390, tulip; all others are small
RAM_VERSION: Final = 4
XBZRLE_MARKER: Final = 1  # ENCODING_FLAG_XBZRLE, migration/ram.c
XBZRLE_LAYOUT: Final = Layout(("marker", "B"), ("length", "H"), ("data", Contents("length")))
XBZRLE_HEADER: Final = XBZRLE_LAYOUT.struct
COMPRESSED_LAYOUT: Final = Layout(("length", "I"), ("data", Contents("length")))
MAPPED_RAM_LAYOUT: Final = Layout(
    ("version", "I"), ("page_size", "Q"), ("bitmap_offset", "Q"), ("pages_offset", "Q")
)
MAPPED_RAM_HEADER: Final = MAPPED_RAM_LAYOUT.struct
MAPPED_RAM_VERSION: Final = 1


class BlockFlag(IntFlag):
    """Low bits of a block migration record's word (BLK_MIG_FLAG_* in migration/block.c)."""

    DEVICE_BLOCK = 0x01
    EOS = 0x02
    PROGRESS = 0x04
    ZERO_BLOCK = 0x08


class DirtyBitmapFlag(IntFlag):
    """Flags of a dirty bitmap chunk (DIRTY_BITMAP_MIG_FLAG_* in migration/block-dirty-bitmap.c)."""

    EOS = 0x01
    ZEROES = 0x02
    BITMAP_NAME = 0x04
    DEVICE_NAME = 0x08
    START = 0x10
    COMPLETE = 0x20
    BITS = 0x40
    EXTRA_FLAGS = 0x80


class CmmaFlag(IntFlag):
    """Low bits of a storage attributes word (STATTR_FLAG_* in hw/s390x/s390-stattrib.c)."""

    EOS = 0x01
    MORE = 0x02
    ERROR = 0x04
    DONE = 0x08


class VfioTag(IntEnum):
    """Words between the parts of a vfio payload (VFIO_MIG_FLAG_* in hw/vfio/migration.c)."""

    END_OF_STATE = 0xFFFFFFFFEF100001
    DEV_CONFIG_STATE = 0xFFFFFFFFEF100002
    DEV_SETUP_STATE = 0xFFFFFFFFEF100003
    DEV_DATA_STATE = 0xFFFFFFFFEF100004
    DEV_INIT_DATA_SENT = 0xFFFFFFFFEF100005
    DEV_CONFIG_LOAD_READY = 0xFFFFFFFFEF100006


class Command(IntEnum):
    """Commands on the main channel (MIG_CMD_* in migration/savevm.c)."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


class ReturnPathType(IntEnum):
    """Messages of the destination (MIG_RP_MSG_* in migration/migration.h)."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


PACKAGE_LOADED: Final = 3  # the ping behind the devices in a package (migration/migration.c)
RECV_BITMAP_END: Final = 0x0123456789ABCDEF  # RAMBLOCK_RECV_BITMAP_ENDING, migration/ram.c

MULTIFD_MAGIC: Final = 0x11223344  # migration/multifd.c
MULTIFD_VERSION: Final = 1


class MultifdFlag(IntFlag):
    """Flags of a multifd packet (MULTIFD_FLAG_* in migration/multifd.h)."""

    SYNC = 0x01
    METHOD_MASK = 0x3E
    DEVICE_STATE = 0x40


MULTIFD_HELLO_LAYOUT: Final = Layout(
    ("magic", "I"), ("version", "I"), ("uuid", "16s"), ("channel_id", "B"), ("unused", "39x")
)
MULTIFD_HELLO: Final = MULTIFD_HELLO_LAYOUT.struct
_MULTIFD_HEAD: Final = ("magic", "I"), ("version", "I"), ("flags", Named("I", MultifdFlag))
MULTIFD_HEAD: Final = Layout(*_MULTIFD_HEAD).struct  # tells what kind of packet it is
MULTIFD_PACKET_LAYOUT: Final = Layout(
    *_MULTIFD_HEAD,
    ("pages_alloc", "I"),
    ("normal_pages", "I"),
    ("next_packet_size", "I"),
    ("packet_num", "Q"),
    ("zero_pages", "I"),
    ("unused", "28x"),
    ("block", "256s"),
    ("offsets", Layout(("offset", "Q"))),
)
MULTIFD_PACKET: Final = MULTIFD_PACKET_LAYOUT.struct
MULTIFD_DEVICE_STATE_LAYOUT: Final = Layout(
    *_MULTIFD_HEAD,
    ("idstr", "256s"),
    ("instance_id", "I"),
    ("next_packet_size", "I"),
)
MULTIFD_DEVICE_STATE: Final = MULTIFD_DEVICE_STATE_LAYOUT.struct
MULTIFD_PACKET_BYTES: Final = 512 * 1024  # MULTIFD_PACKET_SIZE: a packet stands for so much guest memory


# Items of the main channel, from their type byte on, and the messages of the return path
TYPE: Final = ("type", Named("B", ItemType))
FILE_HEADER: Final = Layout(("magic", "I"), ("version", "I"))
CONFIGURATION: Final = Layout(TYPE, ("machine", "str32"))
SUBSECTION: Final = Layout(TYPE, ("subsection", "str8"), ("version_id", "I"), ("data", "rest"))
ANNOUNCED: Final = Layout(
    TYPE, ("section_id", "I"), ("idstr", "str8"), ("instance_id", "I"), ("version_id", "I")
)
CONTINUED: Final = Layout(TYPE, ("section_id", "I"))
FOOTER: Final = CONTINUED
_COMMAND_HEAD: Final = TYPE, ("command", Named("H", Command))
COMMAND_HEAD: Final = Layout(*_COMMAND_HEAD).struct
COMMAND_HEADER: Final = Layout(*_COMMAND_HEAD, ("length", "H"))
VMDESCRIPTION: Final = Layout(TYPE, ("text", "str32"))
RETURN_PATH_HEADER: Final = Layout(("message", Named("H", ReturnPathType)), ("length", "H"))
RAM_WORD: Final = ("word", Named("Q", RamFlag))
RAM_PAGE: Final = Tagged(
    "page", Layout(RAM_WORD), Part(lambda word: not word & RamFlag.CONTINUE, Layout(("block", "str8")))
)
RAM_BLOCK: Final = Layout(("block", "str8"), ("length", "Q"))
RAM_BLOCK_PAGE_SIZE: Final = ("page_size", "Q")  # behind the length, in some modes; then the address
RAM_BLOCK_ADDRESS: Final = ("address", "Q")
RECEIVED_BITMAP: Final = Layout(("size", "Q"), ("data", Contents("size")), ("end", "Q"))

IMAGE: Final = "virtio"
"""The type of a field with a layout of its own, which is handed out whether fields are wanted or not."""
SUBSECTION_PREFIX_CONFIGURATION: Final = b"configuration/"

TLS_HANDSHAKE: Final = 0x16  # first byte of a TLS ClientHello record
TLS_MAJOR: Final = 0x03

PAGE_SIZES: Final = (256, 1024, 2048, 4096, 8192, 16384, 65536)
"""Target page sizes that some QEMU target uses."""

MACHINE_PAGE_SIZE: Final[dict[str, int]] = {
    # Machine types that belong to one family of targets with a fixed page size (target/*/cpu-param.h, 5.2 to
    # 11.1). Names that several targets share ("virt", "sun4u" is not one of them) are left to inference.
    "pc": 4096,
    "pseries": 4096,
    "powernv": 4096,
    "s390-ccw-virtio": 4096,
    "microvm": 4096,
    "isapc": 4096,
    "xenfv": 4096,
    "spike": 4096,
    "sifive_u": 4096,
    "malta": 4096,
    "sun4u": 8192,
    "sun4v": 8192,
}

# Limits on what is believed. Each keeps a liar from making migsniff allocate or loop without bound.
MAX_MACHINE_NAME: Final = 255
MAX_CAPABILITIES: Final = 64
MAX_RAM_BLOCKS: Final = 65536
MAX_SECTIONS: Final = 65536
MAX_DESCRIPTION: Final = 16 << 20
MAX_DESCRIPTION_DEPTH: Final = 64
MAX_DEVICE_DESCRIPTION: Final = 1 << 20  # of one device in it (real ones: up to 76 KB)
MAX_FIELDS: Final = 1 << 20
MAX_ASSUMED_DESCRIPTION: Final = 256 << 10  # of one device, from elsewhere (real ones: up to 76 KB)
MAX_ASSUMED_FIELDS: Final = 1 << 15  # of one section (real ones: up to 24577)
MAX_ASSUMED: Final = 8  # descriptions that are tried for a section
MAX_DEVICE_STATE: Final = 32 << 20  # raw device bytes kept for the description, one migration
MAX_DEVICE_STATE_PROCESS: Final = 64 << 20  # and all migrations together
MAX_RETURN_PATH_MESSAGE: Final = 512  # QEMU's own buffer
MAX_MULTIFD_CHANNELS: Final = 256  # their number is one byte
MAX_MULTIFD_WAIT: Final = 4 << 20  # bytes of a multifd channel that wait for the list of RAM blocks
MAX_MULTIFD_WAIT_ALL: Final = 64 << 20  # and of all of them together
MAX_MULTIFD_HISTORY: Final = 1 << 30  # bytes that the inflaters of all channels keep of earlier pages
MAX_MULTIFD_DEVICE_STATE: Final = 1 << 30  # in one packet; vfio's are a MiB
MAX_MAPPED_RAM_BITMAP: Final = 64 << 20  # of one block, held while its pages are read
MAX_COLO_STATE: Final = 1 << 32  # of a checkpoint, read section by section
MAX_MAPPED_RAM_HOLE: Final = 1 << 30  # QEMU aligns pages to 1 MiB (MAPPED_RAM_FILE_OFFSET_ALIGNMENT)
MAX_RECV_BITMAP: Final = 1 << 32  # counted as it comes, never held
MAX_PAGE_REQUESTS: Final = 1 << 16  # of a postcopy destination, waiting for their pages
EARLY: Final = 4 << 20  # bytes that may be on their way when the destination refuses the first kilobyte
PROMPT: Final = 3_000_000  # µs within which it does: it reads that as soon as it comes
PAGE_STATE_SEGMENT: Final = 1 << 16  # pages whose state is made together
MAX_PAGE_STATE_SLACK: Final = 64 << 20  # bytes of page state beside one for each page record
PAGE_SIZE_RECORDS: Final = 8  # page records that are tried to find the page size
PAGE_SIZE_LOOKAHEAD: Final = 2 * 65536 + 1024
MAX_ITEM_HEADER: Final = FOOTER.least + ANNOUNCED.least + 255  # and the header of a section behind it


class ColoMessageType(IntEnum):
    """What the two sides of COLO say to each other (COLO_MESSAGE_* in qapi/migration.json)."""

    CHECKPOINT_READY = 0
    CHECKPOINT_REQUEST = 1
    CHECKPOINT_REPLY = 2
    VMSTATE_SEND = 3
    VMSTATE_SIZE = 4
    VMSTATE_RECEIVED = 5
    VMSTATE_LOADED = 6


COLO_MESSAGE: Final = Tagged(
    "ColoMessage",
    Layout(("message", Named("I", ColoMessageType))),
    Part(lambda number: number == ColoMessageType.VMSTATE_SIZE, Layout(("size", "Q"))),
)


DUMPED_MACHINE: Final = "vmschkmachine"
"""Where `qemu -dump-vmstate` has the machine type (dump_vmstate_json_to_file, migration/savevm.c)."""
