"""The state of a guest inside a qcow2 disk image: what `savevm` and internal snapshots leave there.

A snapshot has an L1 table of its own; the migration stream stands in the guest's address space that it maps,
behind the end of the disk. Nothing an image says is trusted: tables are read an entry and a cluster at a
time, what they lead to is counted against the size of the file.

Format: docs/interop/qcow2.rst and block/qcow2.h, QEMU 5.2 to 11.1. Read by ourselves: the library that knows
qcow2 (dissect.hypervisor 3.21) gives no access to the state behind the disk, has no limits, and is AGPL.
"""

import io
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from io import FileIO
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from migsniff.core.errors import CaptureError
from migsniff.feed.captureformat import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC: Final = b"QFI\xfb"
# magic, version, backing file, its name's length, cluster bits, disk size, encryption, L1 entries, L1 table,
# refcount table, its clusters, snapshots, snapshot table
HEADER: Final = Struct(">4sIQIIQIIQQIIQ")
FEATURES: Final = Struct(
    ">QQQII"
)  # of version 3: incompatible, compatible, autoclear, refcount order, length
ENTRY: Final = Struct(
    ">QIHHIIQII"
)  # L1 table, L1 entries, lengths of id and name, s, ns, clock, state, extra
SIZES: Final = Struct(">QQ")  # in an entry's extra data: size of the state, size of the disk
U64: Final = Struct(">Q")

CORRUPT, EXTERNAL, COMPRESSION, EXTENDED = 1 << 1, 1 << 2, 1 << 3, 1 << 4
KNOWN: Final = 0b11111
ENCRYPTIONS: Final = {1: "AES", 2: "LUKS"}
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
ZEROES: Final = 1
COMPRESSED: Final = 1 << 62
SECTOR: Final = 512
SUBCLUSTERS: Final = 32
WINDOW_BITS: Final = -15

# QEMU's own limits, block/qcow2.h and block/qcow2-snapshot.c
CLUSTER_BITS: Final = range(9, 22)
MAX_L1: Final = (32 << 20) // 8
MAX_SNAPSHOTS: Final = 65536
MAX_EXTRA: Final = 1024
# ours
MAX_TABLE: Final = 16 << 20  # bytes of the snapshot table
MAX_LISTED: Final = 64
MAX_HOLE: Final = 1 << 30  # bytes of state in a row that are nowhere in the file


class Snapshot(NamedTuple):
    """An entry of the snapshot table. `clock` is the guest's, in ns; sizes are in bytes."""

    id: str
    name: str
    date: datetime
    clock: int
    state_size: int
    disk_size: int
    l1_table: int
    l1_entries: int

    def __str__(self) -> str:
        seconds = self.clock / 1e9
        return (
            f"{printable(self.name)} (id {printable(self.id)}), {self.date:%Y-%m-%d %H:%M:%S} UTC,"
            f" guest's clock {seconds:.3f} s, state {self.state_size} bytes, disk {self.disk_size} bytes"
        )


class SnapshotChoice(CaptureError):
    """An image has several snapshots, and none was asked for: `snapshots` lists them."""

    def __init__(self, name: str, snapshots: Sequence[Snapshot]) -> None:
        self.snapshots = snapshots
        super().__init__(
            f"{name}: a qcow2 disk image with {len(snapshots)} snapshots: say which one with --snapshot"
            f" NAME or ID\n{listed(snapshots)}"
        )


def listed(snapshots: Sequence[Snapshot]) -> str:
    """A line for each snapshot, as far as there are not too many."""
    lines = [f"  {snapshot}" for snapshot in snapshots[:MAX_LISTED]]
    more = len(snapshots) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


class Image:
    """A qcow2 image in a file that can be read anywhere. Raises CaptureError."""

    def __init__(self, file: FileIO, name: str) -> None:
        self.name = name
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        header = self.read(0, HEADER.size)
        if len(header) < HEADER.size:
            raise self.error(0, "the file ends inside the header")
        _, version, _, _, bits, self.disk_size, crypt, _, _, _, _, count, table = HEADER.unpack(header)
        if version not in (2, 3):
            raise self.error(4, f"qcow2 version {version}: only 2 and 3 are known")
        if bits not in CLUSTER_BITS:
            raise self.error(20, f"clusters of 2^{bits} bytes: qcow2 has 2^9 to 2^21")
        if crypt:
            raise self.error(32, f"encrypted ({ENCRYPTIONS.get(crypt, crypt)}): what is in it cannot be read")
        self.cluster_bits: int = bits
        self.zstd = self.extended = False
        if version == 3:
            self._features()
        self.snapshots = self._snapshots(count, table)

    @property
    def l2_bits(self) -> int:
        """An L2 table is one cluster: how many address bits it decodes."""
        return self.cluster_bits - 4 if self.extended else self.cluster_bits - 3

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of the file from `offset` on, fewer at its end."""
        if not 0 <= offset < self.size:
            return b""
        self._file.seek(offset)
        taken = bytearray()
        while len(taken) < size and (some := self._file.read(size - len(taken))):
            taken += some
        return bytes(taken)

    def error(self, offset: int, reason: str) -> CaptureError:
        """The error for something at an offset in the file."""
        return CaptureError(f"{self.name}: at {offset}: {reason}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def snapshot(self, wanted: str | None) -> Snapshot:
        """The one with this name or id; if none is asked for, the only one that has a state."""
        if not self.snapshots:
            raise CaptureError(
                f"{self.name}: a qcow2 disk image without snapshots: savevm would put a guest's state into it"
            )
        if wanted is None:
            with_state = [snapshot for snapshot in self.snapshots if snapshot.state_size]
            if len(with_state) > 1:
                raise SnapshotChoice(self.name, self.snapshots)
            found = with_state or self.snapshots[:1]
        else:
            found = [s for s in self.snapshots if s.name == wanted] or [
                s for s in self.snapshots if s.id == wanted
            ]
        if not found:
            raise CaptureError(
                f"{self.name}: no snapshot {printable(wanted or '')} in it\n{listed(self.snapshots)}"
            )
        if not found[0].state_size:
            raise CaptureError(
                f"{self.name}: snapshot {printable(found[0].name)} holds no state of a guest, only its disk\n"
                f"{listed(self.snapshots)}"
            )
        return found[0]

    # ------------------------------------------------------------ what the image says of itself

    def _features(self) -> None:
        more = self.read(HEADER.size, FEATURES.size + 1)
        if len(more) < FEATURES.size:
            raise self.error(HEADER.size, "the file ends inside the header")
        incompatible, _, _, _, length = FEATURES.unpack_from(more)
        if unknown := incompatible & ~KNOWN:
            raise self.error(72, f"features {unknown:#x} that are not known")
        if incompatible & EXTERNAL:
            raise self.error(72, "the data stands in another file: no snapshot can be in this one")
        if incompatible & COMPRESSION and length > HEADER.size + FEATURES.size:
            if len(more) <= FEATURES.size or more[-1] != 1:
                raise self.error(104, f"compression type {more[-1]}: only zlib (0) and zstd (1) are known")
            self.zstd = True
        self.extended = bool(incompatible & EXTENDED)
        if self.extended and self.cluster_bits < 14:
            raise self.error(20, f"subclusters in clusters of 2^{self.cluster_bits} bytes")

    def _snapshots(self, count: int, table: int) -> list[Snapshot]:
        if count > MAX_SNAPSHOTS:
            raise self.error(60, f"{count} snapshots: more than the {MAX_SNAPSHOTS} that QEMU allows")
        found = []
        at = table
        for _ in range(count):
            head = self.read(at, ENTRY.size)
            if len(head) < ENTRY.size:
                raise self.error(at, "the file ends inside the table of snapshots")
            l1_table, entries, id_size, name_size, seconds, _, clock, state, extra = ENTRY.unpack(head)
            if extra > MAX_EXTRA:
                raise self.error(at, f"a snapshot with {extra} bytes of extra data: QEMU writes {SIZES.size}")
            rest = self.read(at + ENTRY.size, extra + id_size + name_size)
            if len(rest) < extra + id_size + name_size:
                raise self.error(at, "the file ends inside the table of snapshots")
            disk = self.disk_size
            if extra >= SIZES.size:
                state, disk = SIZES.unpack_from(rest)
            elif extra >= U64.size:
                (state,) = U64.unpack_from(rest)
            id_text = rest[extra : extra + id_size].decode("utf-8", "replace")
            words = rest[extra + id_size :].decode("utf-8", "replace")
            date = datetime.fromtimestamp(seconds, UTC)
            found.append(Snapshot(id_text, words, date, clock, state, disk, l1_table, entries))
            at += (ENTRY.size + len(rest) + 7) & ~7
            if at - table > MAX_TABLE:
                raise self.error(at, f"a table of snapshots of more than {MAX_TABLE} bytes")
        return found


class SnapshotState(io.RawIOBase):
    """The stream in a snapshot, from its first byte to its last."""

    def __init__(self, image: Image, snapshot: Snapshot) -> None:
        super().__init__()
        self._image = image
        self._snapshot = snapshot
        self._cluster = 1 << image.cluster_bits
        reach = self._cluster << image.l2_bits  # bytes that one L2 table maps
        self._at = -(-snapshot.disk_size // reach) * reach
        self._end = self._at + snapshot.state_size
        if snapshot.l1_entries > MAX_L1 or self._end > snapshot.l1_entries * reach:
            raise CaptureError(
                f"{image.name}: snapshot {printable(snapshot.name)}: its table of {snapshot.l1_entries}"
                f" entries does not lead to a state of {snapshot.state_size} bytes behind a disk of"
                f" {snapshot.disk_size}"
            )
        self._l2_at = -1
        self._l2 = b""
        self._taken = 0  # bytes of the file that clusters of the state stand in
        self._hole = 0
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._image.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        if not self._piece and self._at < self._end:
            offset = self._at % self._cluster
            size = min(self._cluster - offset, self._end - self._at)
            self._piece = memoryview(self._read_cluster(self._at))[offset : offset + size]
            self._at += size
        size = min(len(view), len(self._piece))
        view[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size

    # ------------------------------------------------------------ the way to a cluster

    def _read_cluster(self, address: int) -> bytes:
        entry, subclusters = self._lookup(address)
        offset = entry & OFFSET_MASK
        if entry & COMPRESSED:
            return self._inflate(entry)
        extended = self._image.extended
        if not offset or (entry & ZEROES and not extended) or (extended and not subclusters & 0xFFFF_FFFF):
            return self._zeroes()
        if offset % self._cluster:
            raise self._image.error(offset, "a cluster that begins inside another one")
        data = self._read(offset, self._cluster).ljust(self._cluster, b"\0")  # the last one may be shorter
        if not extended:
            return data
        size = self._cluster // SUBCLUSTERS
        return b"".join(
            data[n * size : (n + 1) * size] if subclusters >> n & 1 else bytes(size)
            for n in range(SUBCLUSTERS)
        )

    def _lookup(self, address: int) -> tuple[int, int]:
        """The L2 entry for an address, and its bitmap of subclusters; 0 if there is none."""
        image = self._image
        number = address >> image.cluster_bits
        entry_at = self._snapshot.l1_table + 8 * (number >> image.l2_bits)
        entry = image.read(entry_at, 8)
        if len(entry) < 8:
            raise image.error(entry_at, "the L1 table of the snapshot goes beyond the end of the file")
        table = U64.unpack(entry)[0] & OFFSET_MASK
        if not table:
            return 0, 0
        if table % self._cluster:
            raise image.error(entry_at, f"an L2 table at {table}, which is no beginning of a cluster")
        if table != self._l2_at:
            self._l2_at, self._l2 = table, image.read(table, self._cluster)
            if len(self._l2) < self._cluster:
                raise image.error(entry_at, f"an L2 table at {table}: the file has {image.size} bytes")
        index = number & ((1 << image.l2_bits) - 1)
        if image.extended:
            low, high = U64.unpack_from(self._l2, 16 * index), U64.unpack_from(self._l2, 16 * index + 8)
            return low[0], high[0]
        return U64.unpack_from(self._l2, 8 * index)[0], 0

    def _read(self, offset: int, size: int, charged: int | None = None) -> bytes:
        """Bytes of the file. They, or as many as `charged`, count as taken by the state."""
        image = self._image
        if offset >= image.size:
            raise image.error(offset, f"a cluster of the state: the file has {image.size} bytes")
        data = image.read(offset, size)
        self._hole = 0
        self._taken += len(data) if charged is None else charged
        if self._taken > image.size + self._cluster:
            raise image.error(offset, "clusters of the state overlap: they are more than the file holds")
        return data

    def _zeroes(self) -> bytes:
        self._hole += self._cluster
        if self._hole > MAX_HOLE:
            raise CaptureError(
                f"{self._image.name}: snapshot {printable(self._snapshot.name)}: more than {MAX_HOLE} bytes"
                " of its state in a row are not in the file"
            )
        return bytes(self._cluster)

    def _inflate(self, entry: int) -> bytes:
        bits = 62 - (self._image.cluster_bits - 8)
        offset = entry & ((1 << bits) - 1)
        sectors = (entry & (COMPRESSED - 1)) >> bits
        size = (sectors + 1) * SECTOR - offset % SECTOR
        # neighbours share sectors; deflate makes a thousandth at best
        data = self._read(offset, min(size, 2 * self._cluster), self._cluster >> 10 or 1)
        try:
            if self._image.zstd:
                with zstandard.ZstdDecompressor(max_window_size=1 << 22).stream_reader(data) as reader:
                    plain = reader.read(self._cluster)
            else:
                plain = zlib.decompressobj(WINDOW_BITS).decompress(data, self._cluster)
        except (zlib.error, zstandard.ZstdError) as error:
            raise self._image.error(offset, f"a compressed cluster that is broken: {error}") from None
        if len(plain) < self._cluster:
            raise self._image.error(offset, "a compressed cluster that is cut short")
        return plain
