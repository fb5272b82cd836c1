"""One connection through the relay: two sockets, two directions, what its tap is told, and how it ends."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Literal, Protocol

from migsniff.core.arrivals import Direction, EndKind, Party
from migsniff.feed import sockets
from migsniff.feed.draining import Drain, End
from migsniff.feed.forwarding import Buffers, Flow, Leg, LegName


class Tap(Protocol):
    """What is told of one connection, always after the bytes went on, and never later than PATIENCE.

    Nothing at all is told of a connection that never carried a byte. An exception from a tap is reported
    once; the tap hears nothing more, and the forwarding goes on.
    """

    def opened(self) -> None:
        """The first byte of either direction came, or came and could not be sent on: dialling had failed."""

    def data(self, direction: Direction, view: memoryview) -> None:
        """Bytes that were sent on. The view is valid only during the call."""

    def paused(self, direction: Direction, paused: bool) -> None:
        """The receiving side has not taken what came for PATIENCE; or (False) has taken it all.

        Shorter waits are only added up: `waited` in the facts of `tcp_info`.
        """

    def tcp_info(self, leg: LegName, facts: dict[str, object]) -> None:
        """What the kernel says of one leg, once a second and at the end.

        `waited`, beside that: the microseconds so far in which this leg did not take what was to be sent.
        """

    def ended(self, direction: Direction, how: EndKind, by: Party, error: str | None) -> None:
        """A direction ended, exactly once for each; `by` is who ended it, `error` the name of an errno."""

    def may_drain(self, how: EndKind, answer: Callable[[bool], None]) -> None:
        """The destination has gone: whether what the source still sends is worth having.

        `answer` is called with that when all that went on has been looked at, at once or later; and with
        False once it is not worth having any more.
        """

    def draining(self) -> None:
        """From here on the bytes of `fwd` were not sent on: they are for the tap alone."""

    @property
    def lags(self) -> bool:
        """Whether so much of what it was shown waits that while draining nothing more should come."""


Told = Literal["opened", "paused", "tcp_info", "ended", "may_drain", "draining"]


class Connection:
    """Both legs of a connection, from accept to close."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        buffers: Buffers,
        watch: sockets.ErrorWatch,
        source: socket.socket,
        tap: Tap | None,
        *,
        drain: float,
        on_opened: Callable[[], None],
        on_closed: Callable[["Connection"], None],
        on_tap_failed: Callable[[Exception], None],
    ) -> None:
        self.loop = loop
        self.buffers = buffers
        self.opened = False
        self.closed = False
        self.failing = 0
        self._watch = watch
        self._tap = tap
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._on_tap_failed = on_tap_failed
        self._flows: tuple[Flow, ...] = ()
        self._ended_silent: list[tuple[Direction, EndKind, Party, str | None]] = []
        self._legs: list[Leg] = []
        self._drain = Drain(self, drain)
        self._add("source", source)

    def join(self, destination: socket.socket) -> None:
        """Begin to forward: the destination is connected."""
        source, joined = self._legs[0], self._add("destination", destination)
        self._flows = Flow(self, "fwd", source, joined), Flow(self, "rev", joined, source)

    def _add(self, party: LegName, sock: socket.socket) -> Leg:
        leg = Leg(party, sock)
        self._legs.append(leg)
        self._watch.add(sock, lambda: self._check(leg))
        return leg

    def _check(self, leg: Leg) -> None:
        if error := sockets.pending_error(leg.sock):
            self.fail(leg, error)

    # ------------------------------------------------------------ what the tap is told

    def open(self) -> None:
        """A byte has come: from here on there is something to tell."""
        self.opened = True
        self._on_opened()
        self.tell("opened")
        for ended in self._ended_silent:
            self.tell("ended", *ended)

    def data(self, direction: Direction, view: memoryview) -> None:
        """Bytes went on."""
        if not self.opened:
            self.open()
        for flow in self._flows:
            if flow.direction != direction:
                flow.show()  # what was said before this
        if (tap := self._tap) is not None:
            try:
                tap.data(direction, view)
            except Exception as error:  # whatever a tap does, the forwarding goes on
                self._detach(error)

    def show(self) -> None:
        """Show to the tap all that went on."""
        for flow in self._flows:
            flow.show()

    def tell(self, what: Told, *facts: object) -> None:
        """Call a method of the tap, if anything is to be told of this connection."""
        if self._tap is None or not self.opened:
            return
        try:
            getattr(self._tap, what)(*facts)
        except Exception as error:  # as above
            self._detach(error)

    def _detach(self, error: Exception) -> None:
        self._tap = None
        self._on_tap_failed(error)
        self._drain.answer(False)

    def sample(self) -> None:
        """Tell what the kernel says of both legs."""
        legs = self._legs[:1] if self._drain.began else self._legs
        for leg in () if self.closed else legs:
            waited = sum(flow.waited for flow in self._flows if flow.to is leg)
            self.tell("tcp_info", leg.party, {**sockets.tcp_info(leg.sock), "waited": waited})

    # ------------------------------------------------------------ how it ends

    def end(self, flow: Flow, how: EndKind, by: Party, error: str | None) -> None:
        """A direction has ended; when both have, the connection is closed."""
        flow.show()
        flow.ended = True
        last = all(each.ended for each in self._flows)
        if last:
            self.sample()
        if self.opened:
            self.tell("ended", flow.direction, how, by, error)
        else:  # to be told if the other direction still carries a byte
            self._ended_silent.append((flow.direction, how, by, error))
        if last and not self.failing:
            self._close(lambda leg: leg.sock.close())

    def fail(self, leg: Leg, number: int) -> None:
        """A leg has failed: what it had sent goes on if it can, and the other leg is reset."""
        if leg.party == "source":
            self._drain.source_failed(number)
        if self.closed or self.failing:
            return
        self.failing = number
        for flow in self._flows:
            if flow.from_ is leg and not (flow.ended or flow.held):
                flow.drain()
        end: End = sockets.end_kind(number), leg.party, errno.errorcode.get(number, str(number))
        if leg.party == "source" or not self._drain.ask(end, lambda: self.finish(*end)):
            self.finish(*end)
            return
        for flow in self._flows:
            flow.hold()

    def ended_by_itself(self, flow: Flow, error: int) -> None:
        """A direction has come to its end of file; `error` is what came behind that."""
        gone: End = "eof", "destination", None
        if flow.direction == "fwd" or not self._drain.ask(gone, lambda: flow.pass_on_end(error)):
            flow.pass_on_end(error)

    def finish(self, how: EndKind, by: Party, error: str | None) -> None:
        """End both directions where they are, and reset both legs."""
        if self.closed:
            return
        self.failing = self.failing or errno.ECONNABORTED
        for flow in self._flows:
            if not flow.ended:
                self.end(flow, how, by, error)
        self._close(self._cut)

    # ------------------------------------------------------------ when the destination has gone

    @property
    def forward(self) -> Flow | None:
        """The direction from the source, if it still carries something, and something is told of it."""
        if self._tap is None or not self.opened or not self._flows or self._flows[0].ended:
            return None
        return self._flows[0]

    @property
    def tap_lags(self) -> bool:
        """Whether the tap has enough to do."""
        try:
            return self._tap is not None and self._tap.lags
        except Exception as error:  # as above
            self._detach(error)
            return False

    def end_backward(self, end: End) -> None:
        """The destination's direction is over, and the source is not told."""
        self.failing = self.failing or errno.ECONNABORTED
        for flow in self._flows[1:]:
            flow.hold()
            if not flow.ended:
                self.end(flow, *end)

    def _cut(self, leg: Leg) -> None:
        """Reset a leg; but what it was sent completely, up to the end of file, still has to arrive there."""
        complete = any(flow.to is leg and flow.complete for flow in self._flows)
        if complete and sockets.unacknowledged(leg.sock):
            sockets.discard_unread(leg.sock)  # bytes left unread would make a reset of the close
            leg.sock.close()
        else:
            sockets.reset(leg.sock)

    async def first_byte(self, seconds: float) -> bool:
        """Wait for the source of a connection that is not joined to send something; whether it has."""
        source = self._legs[0]
        if not self.closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await sockets.readable(source.sock)
        return not self.closed and sockets.has_unread(source.sock)

    def refuse(self, by: Party, error: str) -> None:
        """There is no destination: tell so if the source has sent anything, and reset it."""
        if self.closed:
            return
        if sockets.has_unread(self._legs[0].sock):
            self.open()
            self.tell("ended", "fwd", "refused", by, error)
            self.tell("ended", "rev", "refused", by, error)
        self._close(self._cut)

    def _close(self, how: Callable[[Leg], None]) -> None:
        if self.closed:
            return
        self.closed = True
        self._drain.close()
        for flow in self._flows:
            flow.close()
        for leg in self._legs:
            self.loop.remove_reader(leg.descriptor)
            self.loop.remove_writer(leg.descriptor)
            self._watch.remove(leg.sock)
            how(leg)
        self._flows = ()
        self._on_closed(self)
