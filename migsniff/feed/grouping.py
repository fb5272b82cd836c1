"""Which migration a connection belongs to, by its first bytes: pure decisions, for the proxy and for pcaps.

In this order count: the pair of endpoints, the uuid in a multifd hello, the peer's host, then time (the
newest migration). A main channel's magic begins a migration, unless one without a main channel waits for it:
multifd channels come first at times. A recovered postcopy has no magic, and may come through another pair.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from migsniff.core.wire import (
    COMMAND_HEAD,
    FILE_MAGIC,
    MULTIFD_HELLO,
    MULTIFD_MAGIC,
    TLS_HANDSHAKE,
    TLS_MAJOR,
    U32,
    Command,
    ItemType,
)

T = TypeVar("T")
Kind = Literal["main", "multifd", "resumed", "tls", "other"]
ENOUGH: Final = MULTIFD_HELLO.size  # bytes with which any connection can be told
MULTIFD: Final = U32.pack(MULTIFD_MAGIC)
RESUMING: Final = tuple(
    COMMAND_HEAD.pack(ItemType.COMMAND, command) for command in (Command.RECV_BITMAP, Command.POSTCOPY_RESUME)
)


@dataclass(frozen=True)
class Opening:
    """A connection's beginning: `uuid` and `number` are of a multifd hello, None if it has no uuid."""

    kind: Kind
    pair: Hashable
    host: str
    uuid: bytes | None = None
    number: int = 0


@dataclass(eq=False)
class Group(Generic[T]):
    """The connections of one `migration`, as far as they tell which others belong to it.

    `open`: whether any of them is. `postcopy`: it has begun and not ended, so that the migration may be
    resumed when they have all broken off.
    """

    migration: T
    pairs: set[Hashable] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    main: bool = False
    tls: bool = False
    uuid: bytes | None = None
    numbers: set[int] = field(default_factory=set)
    open: bool = True
    postcopy: bool = False

    def enter(self, opening: Opening) -> None:
        """A connection becomes part of it."""
        self.open = True
        self.pairs.add(opening.pair)
        self.hosts.add(opening.host)
        self.main |= opening.kind in ("main", "resumed")
        self.tls |= opening.kind == "tls"
        if opening.kind == "multifd":
            self.uuid = self.uuid or opening.uuid
            self.numbers.add(opening.number)


def opening_of(head: bytes, pair: Hashable, peer: str, *, final: bool = False) -> Opening | None:
    """What a connection from `peer` begins with; None if it takes more bytes. `final`: no more will come.

    What ends within the magic is "other": it never keeps the main channel of a migration from joining it.
    """
    host = peer.rpartition(":")[0] or peer
    magic = U32.unpack_from(head)[0] if len(head) >= U32.size else None
    if magic is None and not final:
        return None
    if magic == FILE_MAGIC:
        return Opening("main", pair, host)
    if magic == MULTIFD_MAGIC:
        if len(head) < ENOUGH:
            return Opening("other", pair, host) if final else None
        _, _, uuid, number = MULTIFD_HELLO.unpack_from(head)
        return Opening("multifd", pair, host, uuid if any(uuid) else None, number)
    if head.startswith(RESUMING):
        return Opening("resumed", pair, host)
    if head[:2] == bytes([TLS_HANDSHAKE, TLS_MAJOR]):
        return Opening("tls", pair, host)
    return Opening("other", pair, host)


def group_of(opening: Opening, groups: Sequence[Group[T]]) -> Group[T] | None:
    """The group that a connection belongs to, of those known, oldest first; None: it begins a new one."""
    if opening.kind == "resumed":
        waiting = [group for group in groups if group.postcopy]
        return _best(waiting, opening) or _best(_running(groups, opening), opening)
    running = _running(groups, opening)
    if opening.kind == "main":
        return _best([group for group in running if not group.main and not group.tls], opening)
    if opening.kind == "multifd":
        return _best([group for group in running if _may_have(group, opening)], opening)
    if opening.kind == "tls":
        return _best([group for group in running if group.tls], opening)
    return _best([group for group in running if not group.tls], opening)


def _running(groups: Sequence[Group[T]], opening: Opening) -> list[Group[T]]:
    return [group for group in groups if group.open and opening.pair in group.pairs]


def _may_have(group: Group[T], opening: Opening) -> bool:
    """Whether a multifd channel can be of a group.

    Where there is no uuid, a number that is there already tells of another migration.
    """
    if group.tls or (group.uuid and opening.uuid and group.uuid != opening.uuid):
        return False
    return opening.uuid is not None or opening.number not in group.numbers


def _best(groups: Sequence[Group[T]], opening: Opening) -> Group[T] | None:
    """The newest of those that fit best."""
    fits = [
        (group.uuid is not None and group.uuid == opening.uuid, opening.pair in group.pairs,
         opening.host in group.hosts, index)
        for index, group in enumerate(groups)
    ]  # fmt: skip
    return groups[max(fits)[-1]] if fits else None
