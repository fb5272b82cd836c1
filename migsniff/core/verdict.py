"""How a migration ended, in one line: what was sent, who closed and how, what the return path said."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from migsniff.core.arrivals import BROKEN, Direction, EndKind, Party
from migsniff.core.events import NOT_CLOSED
from migsniff.core.reached import Reached, reached
from migsniff.core.tls import TlsReader
from migsniff.core.wire import EARLY, PACKAGE_LOADED, PROMPT

if TYPE_CHECKING:
    from migsniff.core.connection import Connection

HOW = {
    "eof": "closed {channel}",
    "reset": "reset {channel}",
    "timeout": "vanished: the kernel gave up on {channel}",
    "closed": "closed {channel}",
    "refused": "could not be reached",
    "error": "failed on {channel}",
}

LOADING = f" while loading the package, whose PING {PACKAGE_LOADED} it did not answer"
AT_THE_START = "it refused or died at the start"  # a QEMU that exits and one that is killed close alike
BESIDE = ("multifd", "preempt")  # channels that carry a part of a main channel's stream
TOLD = 4  # channels whose end is told one by one

Judgement = tuple[bool, str, str, int]
"""Fine or not, the outcome's name, the message, the wire offset of the main channel's end."""


class ConnectionEnd(NamedTuple):
    """How one direction ended, at `time`; `order` counts over all connections of the migration.

    `channel` is told where several connections carry one stream: "" for its main channel.
    """

    order: int
    direction: Direction
    how: EndKind
    by: Party
    error: str | None
    offset: int
    where: str
    channel: str
    time: int

    def __str__(self) -> str:
        name = f" ({self.error})" if self.error else ""
        if self.by == "file":
            return "the file ends"
        if self.how == "refused":
            return f"the destination {HOW[self.how]}{name}"
        return f"the {self.by} {HOW[self.how].format(channel=self.channel or 'the connection')}{name}"


def located(where: str) -> str:
    """Where something happened, as it stands in a sentence."""
    if not where:
        return "before its first bytes told what it is"
    return where if where.startswith(("between", "behind", "before")) else f"in {where}"


def judge(connections: Sequence["Connection"], looks_like: Callable[[bytes], str | None]) -> Judgement:
    """The verdict on a migration from its connections, in order of accept."""
    mains = [c for c in connections if c.main is not None]
    if not mains:
        return _without_main(connections, looks_like)
    main = mains[-1]
    came = main.drained or reached(main)
    ok, outcome, message = _of_main(connections, main, came)
    if came.problem is None and (unread := _unread(_judged(connections, main))):
        ok, outcome, message = False, "undecodable", f"{unread}; {message}"
    if (more := main.queues["fwd"].wire_end - came.offset) > 0:
        message += f"; {more} bytes more were read from the source alone"
    return ok, outcome, message, came.offset


def _unread(connections: Sequence["Connection"]) -> str:
    """What could not be decoded of a channel beside the main one, and where; "" if nothing."""
    for connection in connections:
        came = connection.drained or reached(connection)
        if connection.role in BESIDE and came.problem is not None:
            decoder = connection.decoders["fwd"]
            place = f"at offset {decoder.queue.mark} of {connection.name}, {located(decoder.problem_where)}"
            return f"{came.problem.text}, {place}"
    return ""


def _of_main(connections: Sequence["Connection"], main: "Connection", came: Reached) -> tuple[bool, str, str]:
    """The verdict by what has come to the destination on the main channel."""
    assert main.main is not None
    decoder = main.decoders["fwd"]
    first = _first_end(_judged(connections, main))
    shut = main.return_path.shut if main.return_path else None
    ending = _ending(main, first, shut)
    if came.problem is not None:
        place = f"at offset {decoder.queue.mark} of {main.name}, {located(decoder.problem_where)}"
        return False, "undecodable", f"{came.problem.text}, {place}; {ending}"
    lost = any(c.drained is not None for c in connections)
    if came.finished and came.complete and (shut == 0 or not lost):
        return _finished(main, _resumed(connections), first, shut, ending)
    place = f"at offset {came.offset} of {main.name}, {located(came.where)}"
    if main.main.checkpoints is not None and main.drained is None:
        return True, "completed", f"{_checkpoints(main)}; the stream ends {place}; {ending}"
    if first is None:
        return False, "truncated", f"the stream ends {place}"
    if first.how == "refused":
        return False, "refused", f"{first}, {place}"
    if shut and not main.shut_behind_end:
        what = f"the destination reported an error (SHUT {shut})"
        if not main.main.in_package and _loading(main):
            what += LOADING
        return False, "failed", f"{what}; {first}, {place}"
    if came.finished and first.by == "destination":  # it has read no description, if it gave up before
        return False, "failed", f"all state was sent, then {first}, {place}; {_said(main, shut)}"
    if came.finished:
        return False, "truncated", f"the stream ends {place}; {ending}"
    if main.main.context.postcopy and not main.main.in_package and main.drained is None:
        outcome, message = _postcopy(main, first)
        return False, outcome, f"{message}: {first}, {place}; {_said(main, shut)}"
    if first.by == "destination":
        if _early(came, connections) and first.time - (main.began or 0) <= PROMPT:
            return False, "refused", f"{first}, {place}: {AT_THE_START}; {_said(main, shut)}"
        outcome = "reset" if first.how == "reset" else "failed"
        return False, outcome, f"{first}, {place}; {_said(main, shut)}"
    if first.by in ("source", "file") and first.how == "eof" and main.main.between_iterations:
        when = "before a section's footer" if main.main.at_footer else "between two sections"
        message = f"the source ended the migration {when}, {place}; {_said(main, shut)}"
        if first.by == "file":
            message = f"{first} {place}, as a source that cancels leaves it; {_said(main, shut)}"
        return False, "cancelled", message
    outcome = "reset" if first.how == "reset" else "truncated"
    return False, outcome, f"{first} {place}; {_said(main, shut)}"


def _judged(connections: Sequence["Connection"], main: "Connection") -> list["Connection"]:
    """The connections whose ends tell of the main channel's: not those of a try, or a part, before it."""
    if main.role == "resumed":
        return [c for c in connections if c is main or (c.main is None and c.number > main.number)]
    return [c for c in connections if c is main or c.main is None]


def _resumed(connections: Sequence["Connection"]) -> int:
    """How often the last migration that was begun went on over a new connection."""
    roles = [c.role for c in connections if c.role in ("main", "resumed")]
    return roles[::-1].index("main") if "main" in roles else len(roles)


def _postcopy(main: "Connection", first: ConnectionEnd) -> tuple[str, str]:
    """How it broke off behind the package: outcome and message."""
    if first.by == "destination" and _loading(main):
        return "failed", f"the destination failed{LOADING}"
    return "paused", "postcopy was broken off, and can go on over a new connection if both QEMUs live"


def _loading(main: "Connection") -> bool:
    """Whether the destination has not said yet that it has loaded the devices in the package."""
    assert main.main is not None
    return PACKAGE_LOADED in main.main.context.package_pings and main.queues["rev"].wire_end > 0


def _without_main(
    connections: Sequence["Connection"], looks_like: Callable[[bytes], str | None]
) -> Judgement:
    if encrypted := [c for c in connections if c.role == "tls"]:
        return _encrypted(encrypted)
    if others := [c.name for c in connections if c.role in BESIDE]:
        return False, "truncated", f"a main channel never came, only {', '.join(map(str, others))}", 0
    for connection in connections:
        if connection.head:
            found = looks_like(connection.head)
            begins = f"it begins with {connection.head[:8].hex(' ')}"
            what = f"this looks like {found}" if found else begins
            return False, "not-a-stream", f"no QEMU migration stream: {what}", 0
    if (first := _first_end(connections)) and first.how == "refused":
        return False, "refused", f"{first}: nothing was passed on", 0
    return False, "empty", "nothing was sent", 0


def _encrypted(connections: Sequence["Connection"]) -> Judgement:
    """All that can be said of TLS: how much there was, and how each channel ended."""
    decoders = [c.decoders["fwd"] for c in connections]
    readers = [d.reader for d in decoders if isinstance(d.reader, TlsReader)]
    counted = sum(d.queue.wire_end for d in decoders)
    broken = [d for d in decoders if d.problem is not None]
    if broken and (problem := broken[0].problem):
        place = f"at offset {broken[0].queue.mark} of {broken[0].channel}"
        return False, "undecodable", f"{problem.text}, {place}", 0
    answered = any(c.queues["rev"].wire_end for c in connections)
    silent = "(the destination said no hello)" if answered else "(no answer of the destination was seen)"
    version = connections[0].tls.version or silent
    records = sum(reader.records for reader in readers)
    counts = f"TLS {version}: {counted} bytes in {records} records were forwarded and cannot be decoded"
    if torn := [reader for reader in readers if reader.torn]:
        place = f"at offset {torn[0].queue.wire_end} of {torn[0].channel}, inside a record"
        first = _first_end(connections)
        ending = f"; {first}" if first else ""
        return False, "truncated", f"{counts}; the stream ends {place}{ending}", 0
    endings = [(reader.channel, reader.closed or NOT_CLOSED) for reader in readers]
    if len({how for _, how in endings}) == 1:
        channels = "the channel" if len(endings) == 1 else f"all {len(endings)} channels"
        told = f"{channels} ended with {endings[0][1]}"
    else:
        told = ", ".join(f"{channel} ended with {how}" for channel, how in endings[:TOLD])
        told += f" and {len(endings) - TOLD} more" if len(endings) > TOLD else ""
    every = [d.reader for c in connections for d in c.decoders.values()]
    alerts = [reader for reader in every if isinstance(reader, TlsReader) and "fatal" in reader.closed]
    if alerts:
        who = "source" if alerts[0].direction == "fwd" else "destination"
        said = f"the {who} gave up with the alert {alerts[0].closed} on {alerts[0].channel}"
        return False, "failed", f"{counts}; {said}", 0
    if reset := [end for c in connections for end in c.ends if _breaks_tls(c, end)]:
        return False, "reset", f"{counts}; {reset[0]}, and {told}", 0
    return True, "opaque", f"{counts}; {told}", 0


def _breaks_tls(connection: "Connection", end: ConnectionEnd) -> bool:
    """Whether somebody who had not been told that it is over ended a TLS connection as nobody does in order.

    A destination that closes before close_notify has come, or with that unread, makes a reset in order.
    """
    reader = connection.decoders["fwd"].reader
    own: Direction = "rev" if end.by == "destination" else "fwd"
    broken = end.how in BROKEN and end.by in ("source", "destination") and end.direction == own
    return broken and isinstance(reader, TlsReader) and not reader.closed


def _finished(
    main: "Connection", resumed: int, first: ConnectionEnd | None, shut: int | None, ending: str
) -> tuple[bool, str, str]:
    """The whole stream was sent. `resumed`: how often it went on over a new connection."""
    assert main.main is not None
    sent = "the whole stream was sent"
    if resumed:
        sent += f", after postcopy was resumed {resumed} time{'s' if resumed > 1 else ''}"
    if main.main.holes:
        holes = main.main.holes
        sent += f" (this capture has {holes} hole{'s' if holes > 1 else ''} among the devices)"
    if shut:
        return False, "failed", f"{sent}, then the destination reported an error; {ending}"
    if shut == 0:
        return True, "completed", f"{sent}, and the destination confirmed that it runs (SHUT 0)"
    broken = [end for end in main.ends if end.by == "destination" and end.how in BROKEN]
    if broken:  # also behind the source's own end: a destination that has loaded everything just closes
        return False, "failed", f"{sent}, then {broken[0]}; {_said(main, shut)}"
    spoke = main.queues["rev"].wire_end > 0
    if spoke and first is not None and first.by == "destination":
        return False, "failed", f"{sent}, then {ending}"
    if not main.main.context.return_path:
        return True, "completed", f"{sent}; without a return path nothing tells whether it was loaded"
    if not spoke:
        return True, "completed", f"{sent}; what the destination said on the return path was not seen"
    return False, "failed", f"{sent}, but the destination never confirmed it; {ending}"


def _checkpoints(main: "Connection") -> str:
    """What COLO did: it has no end of its own, one side takes over when the other is gone."""
    assert main.main is not None
    loaded = main.return_path.loaded if main.return_path else 0
    return (
        f"the whole stream was sent, then checkpoints of COLO: {main.main.checkpoints} sent, {loaded} loaded"
    )


def _early(came: Reached, connections: Sequence["Connection"]) -> bool:
    """Whether it ended so soon that the destination cannot have taken more than the RAM block list.

    It refuses a machine type, a configuration or a block as soon as it has read it; by then the source may
    have filled the buffers of both sockets and of the proxy.
    """
    each = [c.queues["fwd"].wire_end if c.drained is None else c.drained.offset for c in connections]
    return came.iteration == 1 and sum(each) < EARLY


def _ending(main: "Connection", first: ConnectionEnd | None, shut: int | None) -> str:
    return f"{first}; {_said(main, shut)}" if first else _said(main, shut)


def _said(main: "Connection", shut: int | None) -> str:
    """What the return path said."""
    assert main.main is not None
    if shut is not None:
        return f"the return path said SHUT {shut}"
    if not main.main.context.return_path:
        return "there is no return path"
    return "the return path said no SHUT"


def _first_end(connections: Sequence["Connection"]) -> ConnectionEnd | None:
    """Who ended first, leaving out what the proxy passed on."""
    ends = sorted((end for c in connections for end in c.ends), key=lambda end: end.order)
    own = [end for end in ends if end.by != "proxy"]
    return own[0] if own else (ends[0] if ends else None)
