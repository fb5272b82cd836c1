"""What comes out of the core: events, and findings.

Everything here is frozen, slotted and turned into JSON by msgspec under exactly these names, which are
stable. Offsets are wire offsets, as in core.arrivals; an event has the time of the arrival that completed it.
"""

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from migsniff.core.arrivals import Direction, EndKind, Party, TlsFacts
from migsniff.core.errors import PROBLEM_SEVERITIES, StreamProblem
from migsniff.core.wire import ColoMessageType, RamFlag

if TYPE_CHECKING:
    from numpy import bool_, uint64
    from numpy.typing import NDArray

SectionType = Literal["START", "PART", "END", "FULL"]
Severity = Literal["chat", "note", "warn", "error"]
SEVERITIES: Final[tuple[Severity, ...]] = ("chat", "note", "warn", "error")
EVIDENCE: Final = 32


class Event(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """One decoded record: `size` bytes from `offset` in `direction` of `channel`."""

    channel: str
    direction: Direction
    offset: int
    size: int


BREATH: Event = Event(channel="", direction="fwd", offset=0, size=0)
"""No record: in a long stretch without one, the moment for whoever has other things to do as well."""


class Blocked(Event, frozen=True, tag="blocked", kw_only=True):
    """Who receives this direction does not take bytes as fast as they come, or (not `blocked`) does again.

    No line of the log.
    """

    blocked: bool


class TcpInfo(Event, frozen=True, tag="tcp-info", kw_only=True):
    """What the kernel said of one leg of a connection, once a second; the names are sockets.tcp_info's.

    `direction` is that in which the proxy sends on this leg, `offset` how far it had come. A unix socket has
    `waited` only. No line of the log.
    """

    leg: Literal["source", "destination"]
    facts: dict[str, int | str]


class Draining(Event, frozen=True, tag="draining", kw_only=True):
    """From `offset` on nothing reached the destination, which has gone: the source was read on alone.

    `where` is what the channel was in the middle of.
    """

    where: str


class ChannelFound(Event, frozen=True, tag="channel", kw_only=True):
    """The first bytes told what a connection is; `channel` is its name from here on.

    `role`: main, multifd, preempt, resumed, tls, or unknown. `detail` says more, in words.
    """

    connection: int
    role: str
    detail: str = ""


class Header(Event, frozen=True, tag="header", kw_only=True):
    """Magic and version."""

    version: int


class Configuration(Event, frozen=True, tag="configuration", kw_only=True):
    """The configuration section: what both sides must agree on. None: the subsection was not sent."""

    machine: str
    page_bits: int | None = None
    capabilities: tuple[str, ...] | None = None
    uuid: str | None = None


class RamBlock(msgspec.Struct, frozen=True):
    """A RAMBlock as announced: `length` bytes; page size and address are sent only in some modes."""

    name: str
    length: int
    page_size: int | None = None
    address: int | None = None


class RamBlocks(Event, frozen=True, tag="ram-blocks", kw_only=True):
    """The list of RAM blocks in the START of section ram.

    `page_size`: the target's, in bytes, and where it was learnt; None if only the first pages will tell.
    """

    total: int
    page_size: int | None
    page_size_from: str
    blocks: tuple[RamBlock, ...]


class RamPages(Event, frozen=True, tag="ram-pages", kw_only=True):
    """A run of page records of one block: a batch for counting and extracting, not a line of the log.

    Sent only to those who want page contents. How records are grouped depends on how the bytes were cut;
    their concatenation does not. `words` are the records' words (address and flags, uint64). `data` holds the
    records' bytes, in it the contents of record i are `lengths[i]` bytes from `bodies[i]`; all of it is valid
    only until the next event is asked for. Pages of a channel come in order; between channels a page of a
    later `round` is the newer one (GuestMemory.round), and within a round no page comes on two channels.
    Pages of a multifd packet are told as records would tell them, and `data` holds them inflated; pages that
    cannot be inflated are left out.
    """

    block: str
    page_size: int
    iteration: int
    words: "NDArray[uint64]"
    bodies: "NDArray[uint64]"
    lengths: "NDArray[uint64]"
    data: memoryview
    round: int = 0

    @property
    def addresses(self) -> "NDArray[uint64]":
        """Where in the block each record's page begins."""
        return self.words - self.words % self.page_size

    @property
    def normal(self) -> "NDArray[bool_]":
        """Which records hold a page as it is."""
        return (self.words & int(RamFlag.PAGE)).astype(bool)

    @property
    def zero(self) -> "NDArray[bool_]":
        """Which records say that a page is filled with zeroes."""
        return (self.words & int(RamFlag.ZERO)).astype(bool)

    @property
    def xbzrle(self) -> "NDArray[bool_]":
        """Which records hold a delta (core/contents.py).

        Those of none of these kinds are deflated, or without contents (`lengths`): they cannot be had.
        """
        return (self.words & int(RamFlag.XBZRLE)).astype(bool)


class PageCounts(msgspec.Struct, frozen=True):
    """Page records by kind. `bytes`: what they take on the wire, headers included.

    `resent`: how many of these pages had been sent before.
    """

    normal: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0
    bytes: int = 0
    resent: int = 0

    @property
    def pages(self) -> int:
        """Pages of all kinds."""
        return self.normal + self.zero + self.xbzrle + self.compressed


class BlockPages(msgspec.Struct, frozen=True):
    """What one section carried of one block: the lowest and highest address, and the pages by kind."""

    block: str
    first: int
    last: int
    counts: PageCounts


class Section(Event, frozen=True, kw_only=True):
    """A section with its header, payload and footer; `offset` is that of its type byte."""

    section_type: SectionType
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    footer: bool


class RamSection(Section, frozen=True, tag="ram-section", kw_only=True):
    """A START, PART or END of section ram. `iteration` is the pass it ended in, from 1."""

    iteration: int
    counts: PageCounts
    blocks: tuple[BlockPages, ...] = ()
    multifd_flushes: int = 0


class LoosePages(Event, frozen=True, tag="loose-pages", kw_only=True):
    """Page records that stand in no whole section: in one that was cut off, or on a preempt channel.

    From `offset` on, up to the end of the last whole record. What a section carries is otherwise told by its
    RamSection, so that the sums over both are all pages.
    """

    iteration: int
    counts: PageCounts
    blocks: tuple[BlockPages, ...] = ()


class LiveSection(Section, frozen=True, tag="live-section", kw_only=True):
    """A START, PART or END of another live handler (block, dirty-bitmap, spapr/htab, vfio ...).

    `provisional`: its end was found by its footer, because its records are not known or not described.
    """

    provisional: bool
    summary: str = ""


# not for the garbage collector: nothing in a Field leads back to it, and there may be a million
class Field(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One field of device state: `size` bytes from wire offset `offset`.

    A leaf has `raw` and, if its type is known, `value`; an array of plain values is one Field whose
    `array_len` is set and whose `raw` and `value` hold all elements. Structs, subsections and the elements
    of an array of structs (which carry `index`) have `children`. `type` is QEMU's name of the field type,
    "struct", "subsection", or "opaque" for bytes that no description explains. `meaning`, and the children
    of images that the description does not take apart, are filled in by migsniff.values.
    """

    name: str
    type: str
    offset: int
    size: int
    array_len: int | None = None
    index: int | None = None
    version: int | None = None
    raw: bytes = b""
    value: "Value" = None
    children: tuple["Field", ...] = ()
    meaning: str = ""


Value = bool | int | float | str | tuple[int | bool | str | float | None, ...] | None


class DeviceSection(Section, frozen=True, tag="device", kw_only=True):
    """A FULL section: the state of one device.

    It is reported once when its end is found by the footer (`provisional`, no fields), and once more,
    exactly, when the description has arrived. `fields` are filled in only for whoever asked for them.
    `corrects`: the provisional size was wrong, this was it. `assumed`: it is read by a description that is
    not this stream's own but leads to its end; `assumed_from` says where from. `cut`: the stream ends in it.
    `image`: the field, if there is one, that has a layout of its own (virtio's), for whoever looks inside
    without having asked for fields; not part of the JSON output.
    """

    provisional: bool
    described: bool = False
    fields: tuple[Field, ...] = ()
    undescribed: int = 0
    corrects: int | None = None
    assumed: bool = False
    assumed_from: str = ""
    cut: bool = False
    image: Field | msgspec.UnsetType = msgspec.UNSET


class CommandSent(Event, frozen=True, tag="command", kw_only=True):
    """A command of the source. `arguments` by name; addresses and lengths are in bytes."""

    command: int
    name: str
    arguments: dict[str, "Argument"] = {}


class ReturnPathMessage(Event, frozen=True, tag="return-path", kw_only=True):
    """A message of the destination."""

    message: int
    name: str
    arguments: dict[str, "Argument"] = {}


Argument = int | str | tuple[tuple[int, int], ...]


class PageFault(Event, frozen=True, tag="page-fault", kw_only=True):
    """What the destination asked for has come: the page record of `size` bytes at `offset` of `channel`.

    Asked for were `length` bytes from `address` of `block`, by the message at `asked_offset` of the return
    path of `asked_channel`; of several pages (a huge page) the last one answers. `crossed`: that page had
    been sent before it was asked for, so that nothing will answer; the event then stands at the message.
    """

    block: str
    address: int
    length: int
    asked_channel: str
    asked_offset: int
    crossed: bool = False


class Package(Event, frozen=True, tag="package", kw_only=True):
    """The package that starts postcopy begins; what it holds follows as events of its own."""

    length: int


class ColoMessage(Event, frozen=True, tag="colo", kw_only=True):
    """A message of COLO, either way: `checkpoint` counts from 1; 0 before the first was asked for.

    `length`: bytes of device state that follow a VMSTATE_SIZE.
    """

    message: int
    name: str
    checkpoint: int
    length: int | None = None

    @property
    def begins_pass(self) -> bool:
        """Whether the guest stands still, and what it has dirtied is sent from here on."""
        return self.message == ColoMessageType.VMSTATE_SEND


class HotRange(msgspec.Struct, frozen=True):
    """Where a pass sent pages again: `pages` of them from address `first` to `last`, with small gaps."""

    block: str
    first: int
    last: int
    pages: int


class DirtySync(Event, frozen=True, tag="dirty-sync", kw_only=True):
    """A pass over guest memory ended: at `offset` the next one begins, or RAM ends.

    `iteration` counts passes seen on the wire, from 1 (QEMU's dirty-sync-count is this or more: a sync that
    finds nothing sends nothing). `final`: the last pass, sent with the source stopped. `hot`: the largest
    ranges of pages that it sent again, behind the first pass.
    """

    iteration: int
    counts: PageCounts
    blocks: tuple[BlockPages, ...] = ()
    final: bool = False
    hot: tuple[HotRange, ...] = ()


class EndOfStream(Event, frozen=True, tag="eof", kw_only=True):
    """The EOF item: all state has been sent."""


class DescriptionFound(Event, frozen=True, tag="description", kw_only=True):
    """The JSON description behind the EOF. `text` is the JSON as sent; not part of the JSON output."""

    page_size: int | None
    devices: int
    text: bytes = b""


class MultifdHello(Event, frozen=True, tag="multifd-hello", kw_only=True):
    """A multifd channel introduces itself."""

    uuid: str
    channel_id: int


class MultifdPacket(Event, frozen=True, tag="multifd-packet", kw_only=True):
    """A multifd packet with its data: `method` none, zlib, zstd, qpl, uadk, qatzip or device-state.

    `resent`: how many of its pages had been sent before. `round`: how many SYNC packets came before it. A
    packet of device state names the device in `block` and its instance in `packet_num`.
    """

    packet_num: int
    flags: int
    method: str
    block: str
    normal: int
    zero: int
    data_size: int
    resent: int = 0
    round: int = 0

    @property
    def loaded(self) -> bool:
        """Whether it has something for the guest: one that has not only marks the end of a round."""
        return bool(self.data_size or self.zero)


class MultifdSync(Event, frozen=True, tag="multifd-sync", kw_only=True):
    """What a multifd channel has carried since its last SYNC packet: `size` bytes from `offset`.

    `last`: no SYNC came behind it, the channel ended. `syncs` counts the channel's SYNC packets so far,
    `device_state` bytes of packets with device state.
    """

    packets: int
    counts: PageCounts
    blocks: tuple[BlockPages, ...] = ()
    device_state: int = 0
    syncs: int = 0
    last: bool = False


class TlsMessage(Event, frozen=True, tag="tls-message", kw_only=True):
    """A record with a TLS message in the clear: a hello, an alert."""

    facts: TlsFacts


class TlsRecords(Event, frozen=True, tag="tls-records", kw_only=True):
    """`records` more TLS records have passed, `total` in this direction so far."""

    records: int
    total: int


NOT_CLOSED: Final = "no close_notify"


class TlsEnded(Event, frozen=True, tag="tls-end", kw_only=True):
    """The TLS records of a direction as a whole, by what they hold as far as it can be seen.

    `payload`: bytes inside the records. `torn`: it ended inside a record. `closed`: close_notify, another
    alert in the clear, "an encrypted alert" (TLS 1.2: close_notify as a rule), "probably close_notify"
    (TLS 1.3: the last record has the size of an alert), or NOT_CLOSED.
    """

    records: int
    handshake: int
    alerts: int
    application: int
    payload: int
    closed: str
    torn: bool


class Opaque(Event, frozen=True, tag="opaque", kw_only=True):
    """Bytes that are only counted: TLS, an unknown protocol, what follows an error or the description."""

    what: str


class Undecodable(Event, frozen=True, tag="undecodable", kw_only=True, omit_defaults=True):
    """A stretch that does not fit the format. `code` is stable; `where` names section, device and record.

    `evidence`: its first bytes in hexadecimal, as many as told that it does not fit, at most EVIDENCE.
    """

    code: str
    message: str
    where: str
    evidence: str = ""


class Finding(Event, frozen=True, tag="finding", kw_only=True, omit_defaults=True):
    """Something worth knowing about the stream that stops nothing.

    `section` (idstr/instance) and `field` (its path) tell what it is about, where that is known; `evidence`
    is the bytes from `offset` on that prove it, in hexadecimal, at most EVIDENCE of them.
    """

    severity: Severity
    code: str
    message: str
    section: str = ""
    field: str = ""
    evidence: str = ""


def problem_finding(
    problem: StreamProblem,
    *,
    channel: str,
    direction: Direction,
    offset: int,
    size: int = 0,
    section: str = "",
    evidence: bytes = b"",
) -> Finding:
    """A problem with which decoding goes on."""
    return Finding(
        channel=channel,
        direction=direction,
        offset=offset,
        size=size,
        severity=PROBLEM_SEVERITIES.get(problem.code, "error"),
        code=problem.code,
        message=problem.text,
        section=section,
        evidence=evidence[:EVIDENCE].hex(),
    )


class DirectionEnded(Event, frozen=True, tag="end", kw_only=True, omit_defaults=True):
    """One direction of a channel ended at `offset`; `where` is what it was in the middle of.

    `inside`: how many bytes of a record that is not complete stand before the end; `evidence` is the header
    of that record as far as it came, in hexadecimal.
    """

    how: EndKind
    by: Party
    error: str | None
    where: str
    inside: int = 0
    evidence: str = ""


class Verdict(Event, frozen=True, tag="verdict", kw_only=True):
    """The one line at the end. `ok` decides the exit code.

    `outcome`: completed, truncated, cancelled, refused, failed, reset, paused, undecodable, opaque,
    not-a-stream, empty.
    """

    ok: bool
    outcome: str
    message: str


UNLISTED: Final = (RamPages, Blocked, TcpInfo)
"""Events that have no record in the log."""


def record(migration: str, time: int, event: Event) -> dict[str, object]:
    """The JSON object of one event: the migration's id, `time` in seconds, and the event's own fields."""
    fields = msgspec.to_builtins(event, builtin_types=(bytes,))
    for unlisted in ("text", "image"):
        fields.pop(unlisted, None)
    return {"migration": migration, "time": time / 1e6, **fields}
