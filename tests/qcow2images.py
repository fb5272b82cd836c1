"""Small qcow2 images with a state in them, made by hand: right ones, and those that lie."""

import struct
import zlib
from dataclasses import dataclass, field

import zstandard

BITS = 12
CLUSTER = 1 << BITS


@dataclass
class Made:
    """An image of one snapshot whose state is `state`. Each attribute is what the image says, true or not."""

    state: bytes = b""
    bits: int = BITS
    version: int = 3
    extended: bool = False
    packed: str | None = None
    crypt: int = 0
    incompatible: int = 0
    disk_size: int = 1 << 20
    state_size: int | None = None
    l1_entries: int | None = None
    extra: int = 16
    count: int | None = None
    names: tuple[tuple[str, str], ...] = (("1", "first"),)
    holes: frozenset[int] = frozenset()
    """Clusters of the state that are not in the file: they read as zeroes."""
    zero_flags: frozenset[int] = frozenset()
    entries: dict[int, int] = field(default_factory=dict)
    """L2 entries that are something else."""
    l1_entry: int | None = None
    shared: bool = False
    """All clusters of the state are the first one."""

    def build(self) -> bytes:
        cluster = 1 << self.bits
        width = 16 if self.extended else 8
        per_table = cluster // width
        reach = per_table * cluster
        first = -(-self.disk_size // reach)  # entry of the L1 table where the state begins
        clusters = -(-len(self.state) // cluster)
        tables = -(-clusters // per_table) or 1
        l1_entries = first + tables
        l1_size = -(-8 * l1_entries // cluster)
        l1_at, l2_at = 2, 2 + l1_size
        at = l2_at + tables
        data = bytearray()
        l2 = bytearray(tables * cluster)
        for number in range(clusters):
            piece = self.state[number * cluster : (number + 1) * cluster]
            entry, bitmap = self._put(data, number, piece.ljust(cluster, b"\0"), at)
            struct.pack_into(">Q", l2, number * width, self.entries.get(number, entry))
            if self.extended:
                struct.pack_into(">Q", l2, number * width + 8, bitmap)
        l1 = bytearray(l1_size * cluster)
        for number in range(tables):
            value = (l2_at + number) * cluster if self.l1_entry is None else self.l1_entry
            struct.pack_into(">Q", l1, 8 * (first + number), value | 1 << 63)
        features = self.incompatible | (8 if self.packed == "zstd" else 0) | (16 if self.extended else 0)
        count = len(self.names) if self.count is None else self.count
        header = struct.pack(
            ">4sIQIIQIIQQIIQ",
            *(
                b"QFI\xfb",
                self.version,
                0,
                0,
                self.bits,
                self.disk_size,
                self.crypt,
                0,
                0,
                0,
                0,
                count,
                cluster,
            ),
        )
        header += struct.pack(">QQQII8x", features, 0, 0, 4, 112)
        if self.packed == "zstd":
            header = header[:104] + b"\1" + header[105:]
        table = b"".join(self._entry(l1_at * cluster, l1_entries, *name) for name in self.names)
        return b"".join(
            (header.ljust(cluster, b"\0"), table.ljust(cluster, b"\0"), bytes(l1), bytes(l2), bytes(data))
        )

    def _put(self, data: bytearray, number: int, piece: bytes, at: int) -> tuple[int, int]:
        cluster = 1 << self.bits
        place = at * cluster + (0 if self.shared else len(data))
        if number in self.holes:
            return 0, 0
        if number in self.zero_flags:
            return 1, 0
        if self.packed is not None:
            packer = zlib.compressobj(9, zlib.DEFLATED, -12)
            packed = (
                zstandard.compress(piece)
                if self.packed == "zstd"
                else packer.compress(piece) + packer.flush()
            )
            data += packed
            bits = 62 - (self.bits - 8)
            sectors = (place + len(packed) - 1) // 512 - place // 512
            return 1 << 62 | sectors << bits | place, 0
        if not self.shared or not data:
            data += piece
        size = cluster // 32
        present = sum(1 << n for n in range(32) if any(piece[n * size : (n + 1) * size]))
        return place | 1 << 63, present | (~present & 0xFFFFFFFF) << 32

    def _entry(self, l1_at: int, l1_entries: int, number: str, name: str) -> bytes:
        size = len(self.state) if self.state_size is None else self.state_size
        words = number.encode() + name.encode()
        entry = struct.pack(
            ">QIHHIIQII",
            *(l1_at, l1_entries if self.l1_entries is None else self.l1_entries),
            *(len(number.encode()), len(name.encode()), 1_700_000_000, 0, 1_500_000_000),
            *(size & 0xFFFFFFFF, self.extra),
        )
        entry += struct.pack(">QQQ", size, self.disk_size, 0)[: self.extra] + words
        return entry + bytes(-len(entry) % 8)
