"""A walk over device state by a description from elsewhere, which need not fit to the byte."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from migsniff.core.arrivals import Remembered
from migsniff.core.description import LISTS, DeviceDescription, FieldDescription, Vmsd
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Field
from migsniff.core.vmdesc import Walk, Walker, Walking, opaque
from migsniff.core.wire import SUBSECTION, ItemType

if TYPE_CHECKING:
    from migsniff.core.assumed import Assumptions

# Types whose size is another each time (hw/virtio, hw/scsi/scsi-bus.c, hw/usb/redirect.c, ui/vdagent.c).
VARIABLE: Final = frozenset(
    {
        "virtio",
        "virtio-gpu",
        "virtqueue_extra_state",
        "gtree",
        "scsi-requests",
        "usb-redir-parser",
        "usb-redir-bufpq",
        "usb-redir-packet-id-q",
        "vdagent/cbinfos",
    }
)
MAX_PATH: Final = 200  # characters of a field's path in a message
SUBSECTION_HEADER: Final = SUBSECTION.least  # without its name


class Candidate(NamedTuple):
    """A description that may fit a section."""

    device: DeviceDescription
    remembered: Remembered


class AssumingWalker(Walker):
    """A walk that takes subsections as they come, and sizes only from fields that hold no others.

    `path`: names of the fields that are being read, the outermost first. `counts`: an array behind a number
    has as many elements as that says. `grown`: this field has `growth` more bytes than it had.
    `cut`: more would have come.
    """

    __slots__ = ("assumptions", "counts", "cut", "grown", "growth", "known", "path")

    def __init__(
        self, data: memoryview, offset: int, assumptions: "Assumptions", known: dict[str, Vmsd]
    ) -> None:
        breathe = assumptions.context.breathe
        super().__init__(data, 0, offset, True, assumptions.budget(), breathe=breathe)
        self.assumptions = assumptions
        self.known = known
        self.path: list[str] = []
        self.grown: FieldDescription | None = None
        self.growth = 0
        self.counts = False
        self.cut = False

    def device(
        self, device: DeviceDescription, grown: FieldDescription | None, end: int
    ) -> Walking[tuple[Walk, StreamProblem | None]]:
        """Read a device up to index `end`. `grown` is the field that takes what the others leave of it."""
        found: list[Field] = []
        problem: StreamProblem | None = None
        size = described_size(device.vmsd) if grown is not None else None
        if grown is not None and size is not None:
            self.grown, self.growth = grown, max(end - size, -grown.size)
        try:
            yield from self.vmsd(device.vmsd, end, found)
        except StreamProblem as error:
            problem = error.with_traceback(None)
        self.assumptions.spend(self.budget)
        return Walk(self.at, tuple(found), problem, self.undescribed), problem

    # ------------------------------------------------------------ where it ended

    @property
    def name(self) -> str:
        """The field that was being read, by its path, or the end of a long one."""
        return shortened(".".join(self.path))

    def missing(self, short: StreamProblem) -> int:
        """How many bytes of it there were not."""
        return int(str(short.details["size"])) - int(str(short.details["left"]))

    def place(self, short: StreamProblem) -> str:
        """How far into it the bytes reach."""
        size, left = int(str(short.details["size"])), int(str(short.details["left"]))
        return (
            f"{left} of {size} bytes into its field {self.name!r}"
            if left
            else f"before its field {self.name!r}"
        )

    # ------------------------------------------------------------ what is read otherwise

    def plain(self, field: FieldDescription, limit: int, found: list[Field]) -> None:
        self.path.append(field.name)
        field = self.as_grown(field)
        if self.counts and field.array_len is not None and found:
            count = found[-1].value
            if isinstance(count, int) and 0 <= count <= limit - self.at:
                field = msgspec.structs.replace(field, array_len=count)
        super().plain(field, limit, found)
        self.path.pop()

    def sized(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        self.path.append(field.name)
        field = self.as_grown(field)
        if field.array_len is not None or field.type == "gtree":
            yield from super().sized(field, limit, found)
        elif field.type in LISTS:
            yield from self.elements_by_marker(field, limit, found)
        else:
            yield from self.one_group(field, limit, found)
        self.path.pop()

    def as_grown(self, field: FieldDescription) -> FieldDescription:
        """The field with the size that it has here."""
        grown = field is self.grown
        return msgspec.structs.replace(field, size=field.size + self.growth) if grown else field

    def one_group(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """A struct or an inline group: as long as what is in it, and what its description had left out."""
        vmsd = field.vmsds[0]
        start = self.at
        outermost = field.type != "struct" and not self.inline
        inline, self.inline = self.inline, self.inline or outermost
        children: list[Field] = []
        try:
            yield from self.vmsd(vmsd, limit, children)
            if vmsd.fixed is not None and vmsd.fixed < field.size:
                end = self.reach(field.name, field.size - vmsd.fixed, limit)
                children.append(opaque(self.data, self.at, end, self.at + self.shift))
                self.undescribed += end - self.at
                self.at = end
        finally:
            raw = bytes(self.data[start : self.at]) if outermost else b""
            self.group(field.name, field.type, vmsd, start, children, found, field.index, raw)
        self.inline = inline

    def elements(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        depth, before = len(self.path), len(found)
        self.path.append(field.name)
        try:
            yield from super().elements(field, limit, found)
        except StreamProblem:
            self.path[depth] = f"{field.name}[{max(0, len(found) - before - 1)}]"
            raise
        self.path.pop()

    def elements_by_marker(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """A list of as many elements as come."""
        start = self.at
        outermost = not self.inline
        inline, self.inline = self.inline, True
        children: list[Field] = []
        index = 0
        while self.reach(field.name, 1, limit) and self.data[self.at] == 1:
            self.budget.take_field()
            if self.budget.fields < self.breath_at:
                yield self.breath()
            vmsd = field.vmsds[min(index, len(field.vmsds) - 1)]
            begin = self.at
            self.at += 1
            inside: list[Field] = []
            yield from self.vmsd(vmsd, limit, inside)
            self.group(vmsd.name, "struct", vmsd, begin, inside, children, index)
            index += 1
        self.marker(field.name, 0, limit)
        self.inline = inline
        found.append(
            Field(
                name=field.name,
                type=field.type,
                offset=start + self.shift,
                size=self.at - start,
                index=field.index,
                raw=bytes(self.data[start : self.at]) if outermost else b"",
                children=tuple(children),
            )
        )

    def subsections(self, vmsd: Vmsd, limit: int, found: list[Field]) -> Walking[None]:
        """Those that come, if they are known."""
        own = {subsection.name: subsection for subsection in vmsd.subsections}
        while (name := self.next_subsection(vmsd, limit)) is not None:
            known = own.get(name)
            if known is None and name.startswith(vmsd.name + "/"):
                known = self.known.get(name)
                if known is None:
                    raise StreamProblem("assumed-subsection", name=name, at=self.at + self.shift)
            if known is None:
                return
            self.path.append(name)
            yield from self.subsection(known, limit, found)
            self.path.pop()

    def next_subsection(self, vmsd: Vmsd, limit: int) -> str | None:
        """The name in the subsection header that stands here, if one does."""
        head = bytes(self.data[self.at : min(self.at + SUBSECTION_HEADER + 255, limit)])
        if not head or head[0] != ItemType.SUBSECTION:
            return None
        if len(head) < 2 or len(head) < SUBSECTION_HEADER + head[1]:
            if self.cut and (len(head) > 1 or not self.path):
                self.cut_header(vmsd, head)
            return None
        name = head[2 : 2 + head[1]]
        return name.decode() if name.isascii() and name.decode().isprintable() else None

    def cut_header(self, vmsd: Vmsd, head: bytes) -> None:
        """Raise StreamProblem (field-short) if `head` begins the header of a known subsection."""
        for name in (*(subsection.name for subsection in vmsd.subsections), *self.known):
            header = bytes([ItemType.SUBSECTION, len(name.encode())]) + name.encode()
            if header.startswith(head[: len(header)]):
                self.path.append(name)
                size = SUBSECTION_HEADER + len(name.encode())
                raise StreamProblem("field-short", name=name, size=size, left=len(head))


# ---------------------------------------------------------------- descriptions


def subsections(candidates: Sequence[Candidate]) -> dict[str, Vmsd]:
    """All subsections that some candidate has, by name."""
    found: dict[str, Vmsd] = {}
    waiting = [candidate.device.vmsd for candidate in candidates]
    for vmsd in waiting:
        for subsection in vmsd.subsections:
            found.setdefault(subsection.name, subsection)
        waiting += vmsd.subsections
        waiting += (inner for field in vmsd.fields for inner in field.vmsds)
    return found


def variable_fields(vmsd: Vmsd) -> Iterator[FieldDescription]:
    """Fields of a type whose size varies; the one field of an old-style device is one, too."""
    for field in vmsd.fields:
        if field.type in VARIABLE or vmsd.version is None:
            yield field
        elif field.array_len is None and field.type not in LISTS:
            for inner in field.vmsds:
                yield from variable_fields(inner)
    for subsection in vmsd.subsections:
        yield from variable_fields(subsection)


def described_size(vmsd: Vmsd) -> int | None:
    """How long a device was when it was described; None if that cannot be told."""
    size = 0
    for field in vmsd.fields:
        if field.array_len is None:
            size += field.size
        elif (fixed := field.fixed) is not None:
            size += fixed
        else:
            return None
    for subsection in vmsd.subsections:
        inner = described_size(subsection)
        if inner is None:
            return None
        size += SUBSECTION_HEADER + len(subsection.name) + inner
    return size


def shortened(path: str) -> str:
    """A path as long as a line may be."""
    return path if len(path) <= MAX_PATH else "..." + path[3 - MAX_PATH :]
