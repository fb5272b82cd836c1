"""What comes into the core: bytes as they arrive, how connections begin and end, and what is known beside.

Frozen, slotted, and turned into JSON by msgspec under exactly these names, as the timeline of a capture has
them. Offsets are wire offsets: bytes since the first byte of that direction of that connection, whatever a
capture has left out. Times are integer microseconds since the migration's first connection.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

Data = bytes | bytearray | memoryview
Direction = Literal["fwd", "rev"]
"""fwd: source to destination. rev: destination to source."""
Party = Literal["source", "destination", "proxy", "file"]
"""Who ended a direction; "file": it is read from one that ends here, and nothing tells more."""
EndKind = Literal["eof", "reset", "timeout", "closed", "refused", "error"]
"""End of file, a reset, the kernel gave up, closed by the proxy, dialling failed, any other error."""
BROKEN: Final[tuple[EndKind, ...]] = ("reset", "error", "timeout")
"""Ways to end that no QEMU that is done has."""
Word = Annotated[str, Meta(max_length=256)]


class Opened(msgspec.Struct, frozen=True):
    """A connection was accepted. `connection` counts from 0 in order of accept."""

    time: int
    connection: int
    source: str
    destination: str


class Chunk(msgspec.Struct, frozen=True):
    """Bytes that arrived in one direction of one connection.

    `end` is the wire offset behind the last byte. `kept` tells what `data` holds of the stretch from the
    previous chunk's end up to `end`: "all" its bytes; "framed" the bytes without page contents, as a stripped
    capture keeps them; "none" nothing, only the length is known.
    """

    time: int
    connection: int
    direction: Direction
    data: Data
    end: int
    kept: Literal["all", "framed", "none"] = "all"


class Ended(msgspec.Struct, frozen=True):
    """One direction of a connection ended; `by` is who ended it, `error` the name of the errno, if any."""

    time: int
    connection: int
    direction: Direction
    how: EndKind
    by: Party
    error: str | None = None


class Learned(msgspec.Struct, frozen=True):
    """What a live decoder found in page contents, so that it can be told where a capture has none."""

    time: int
    connection: int
    page_size: int


class TlsFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a TLS message in the clear says.

    `message`: ClientHello, ServerHello, HelloRetryRequest or alert. `version` is the highest offered, or the
    one chosen, `versions` all that are offered, `ciphers` how many are, `cipher` the one chosen. `name` is
    the server's (SNI), `protocols` ALPN's. `psk`: a pre-shared key is offered or was chosen; one that TLS 1.2
    offers shows in the choice only. `problem`: why the rest could not be read.
    """

    message: Word
    version: Word = ""
    versions: Annotated[tuple[Word, ...], Meta(max_length=16)] = ()
    name: Word = ""
    cipher: Word = ""
    ciphers: int = 0
    protocols: Annotated[tuple[Word, ...], Meta(max_length=16)] = ()
    psk: bool = False
    alert: Word = ""
    problem: Word = ""


class LearnedTls(msgspec.Struct, frozen=True):
    """What the TLS record at wire offset `offset` said in the clear: a stripped capture has not its bytes."""

    time: int
    connection: int
    direction: Direction
    offset: int
    facts: TlsFacts


class Noted(msgspec.Struct, frozen=True):
    """What explains the arrivals and is none: `what` is "paused", "resumed", "draining" or "tcp_info".

    `facts` of a pause: direction and offset; of draining the same: what comes in this direction behind that
    offset was not sent on, because who receives it has gone.
    Of tcp_info: the leg, what the kernel says of it, microseconds
    `waited` so far because that leg took no more bytes; it comes once a second, also when nothing else does.
    """

    time: int
    connection: int
    what: str
    facts: dict[str, object]


Arrival = Opened | Chunk | Ended | Learned | LearnedTls | Noted


class Remembered(msgspec.Struct, frozen=True):
    """How a device was described elsewhere: `text` is its JSON object there, `source` says where."""

    text: bytes
    source: str


Assumed = Callable[[str, str, int, int], Sequence[Remembered]]
"""(machine type, idstr, instance, version) -> descriptions that may fit the section, the likeliest first."""
