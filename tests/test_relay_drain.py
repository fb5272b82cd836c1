"""Draining: a destination has gone, and its source is read on for the tap alone."""

import asyncio
import os
import socket
import time
from collections.abc import Callable

import pytest

from migsniff.core.arrivals import Direction, EndKind
from migsniff.feed import draining, forwarding
from tests.relaying import TCP, Peer, RecordingTap, Rig, until

MIB = 1 << 20
SECONDS = 0.4
GONE = {"reset": ("reset", "destination", "ECONNRESET"), "eof": ("eof", "destination", None)}
BY_PROXY = ("closed", "proxy", None)


def go(destination: Peer, how: str) -> None:
    """The destination is gone, one way or the other."""
    destination.reset() if how == "reset" else destination.close()


async def silent(source: Peer, seconds: float) -> bool:
    """Whether the source hears nothing at all for a while: no byte, no end, no reset."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_recv(source.sock, 1)
    except TimeoutError:
        return True
    return False


async def begun(rig: Rig, how: str) -> tuple[Peer, bytes]:
    """A connection that is being drained: its source, and what that sent before."""
    source, destination = await rig.connect()
    await source.send(b"page" * 100)
    assert await destination.receive(400) == b"page" * 100
    go(destination, how)
    await until(lambda: "draining" in rig.tap.calls)
    return source, b"page" * 100


@pytest.mark.parametrize("transport", TCP)
@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_the_source_is_read_on_and_then_reset(transport: str, how: str) -> None:
    async with Rig(transport, drain=SECONDS) as rig:
        source, _ = await begun(rig, how)
        began = time.monotonic()
        assert rig.tap.ends == {"rev": GONE[how]}, "the source has not ended"
        for _ in range(5):  # it would fail if the destination's end had been passed on
            await source.send(b"device")
            assert await silent(source, 0.02)
        assert await source.error() is ConnectionResetError
        assert 0.8 * SECONDS < time.monotonic() - began < SECONDS + 1
        await rig.closed()
        tap = rig.tap
        assert (tap.sent_on, tap.size["fwd"]) == (400, 430)
        assert tap.ends == {"rev": GONE[how], "fwd": BY_PROXY}
        assert tap.calls.index("ended") < tap.calls.index("draining")


async def test_a_unix_source_is_read_on() -> None:
    async with Rig("unix", drain=SECONDS) as rig:
        source, _ = await begun(rig, "eof")
        await source.send(b"device")
        await rig.closed()
        assert await source.receive(1) == b""
        assert (rig.tap.size["fwd"], rig.tap.ends["fwd"]) == (406, BY_PROXY)


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_no_byte_is_lost_or_doubled_where_it_begins(how: str) -> None:
    """The destination goes while bytes for it wait in the relay."""
    data = os.urandom(30 * MIB)
    keeping = Keeping()
    async with Rig(drain=SECONDS, make_tap=keeping) as rig:
        source, destination = await rig.connect()
        sent = await source.fill(data)
        assert sent < len(data), "nobody reads"
        go(destination, how)
        await source.send(data[sent:])
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert bytes(keeping.tap.kept) == data
        assert 0 < keeping.tap.sent_on < len(data)
        assert keeping.tap.pauses[("fwd", True)] == keeping.tap.pauses[("fwd", False)]


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_the_tap_is_asked_when_it_has_seen_all_that_went_on(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the destination goes sooner than a slow receiver is told of."""
    monkeypatch.setattr(forwarding, "PATIENCE", 60)
    keeping = Keeping()
    async with Rig(drain=SECONDS, make_tap=keeping) as rig:
        source, destination = await rig.connect()
        await source.fill(bytes(30 * MIB))
        go(destination, how)
        await until(lambda: "draining" in keeping.tap.calls)
        assert keeping.tap.asked_at == keeping.tap.sent_on > 0


class Keeping:
    """Makes one tap that keeps the source's bytes."""

    def __call__(self, source: str, destination: str) -> "KeepingTap":
        self.tap = KeepingTap(source, destination)
        return self.tap


class KeepingTap(RecordingTap):
    def __init__(self, source: str, destination: str) -> None:
        super().__init__(source, destination)
        self.kept = bytearray()
        self.asked_at = 0

    def may_drain(self, how: EndKind, answer: Callable[[bool], None]) -> None:
        self.asked_at = self.size["fwd"]
        super().may_drain(how, answer)

    def data(self, direction: Direction, view: memoryview) -> None:
        super().data(direction, view)
        if direction == "fwd":
            self.kept += view


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_last_words_arrive_before_it_begins(how: str) -> None:
    async with Rig(drain=SECONDS) as rig:
        source, destination = await rig.connect()
        await source.send(bytes(100_000))
        if how == "eof":
            await destination.receive(100_000)
        await asyncio.sleep(0.05)
        await destination.send(b"the reason")
        destination.close()  # with unread bytes: a reset
        assert await source.receive(10) == b"the reason"
        await until(lambda: "draining" in rig.tap.calls)
        assert rig.tap.size["rev"] == 10
        assert rig.tap.ends == {"rev": GONE[how]}
        assert await silent(source, 0.1)


@pytest.mark.parametrize("how", ["reset", "eof"])
@pytest.mark.parametrize("end", ["eof", "reset"])
async def test_a_source_that_ends_meanwhile_ends_it(how: str, end: str) -> None:
    async with Rig(drain=60) as rig:
        source, _ = await begun(rig, how)
        await source.send(b"device")
        await until(lambda: rig.tap.size["fwd"] == 406)
        source.reset() if end == "reset" else source.close()
        await rig.closed()
        ended = {"eof": ("eof", "source", None), "reset": ("reset", "source", "ECONNRESET")}
        assert rig.tap.ends == {"rev": GONE[how], "fwd": ended[end]}
        assert rig.tap.size["fwd"] == 406


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_what_a_source_had_sent_before_its_reset_is_kept(how: str) -> None:
    async with Rig(drain=60) as rig:
        source, _ = await begun(rig, how)
        rig.tap.lags = True
        await source.send(bytes(300_000))
        await asyncio.sleep(0.05)
        source.reset()
        await rig.closed()
        assert rig.tap.size["fwd"] > 400
        assert rig.tap.ends["fwd"] == ("reset", "source", "ECONNRESET")


async def test_it_is_over_when_the_tap_has_all() -> None:
    async with Rig(drain=60) as rig:
        source, _ = await begun(rig, "reset")
        rig.tap.answer(False)
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert rig.tap.ends["fwd"] == BY_PROXY


async def test_a_second_shutdown_ends_it() -> None:
    async with Rig(drain=60) as rig:
        source, _ = await begun(rig, "eof")
        rig.relay.stop_accepting()
        assert rig.relay.active == 1, "the first one waits"
        rig.relay.abort()
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert rig.tap.ends["fwd"] == BY_PROXY


@pytest.mark.parametrize("raises", ["may_drain", "draining", "tcp_info"])
async def test_a_tap_that_fails_ends_it(raises: str) -> None:
    async with Rig(drain=60, raises=raises, sample_interval=0.05) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        await destination.receive(4)
        destination.reset()
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert len(rig.reports) == 1


async def test_a_tap_that_fails_at_the_bytes_ends_it() -> None:
    async with Rig(drain=60) as rig:
        source, _ = await begun(rig, "reset")
        rig.tap.raises = "data"
        await source.send(b"device")
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert len(rig.reports) == 1


# ---------------------------------------------------------------- it is not to be


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("transport", TCP)
@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_refused_or_off_every_end_is_passed_on_at_once(seconds: int, transport: str, how: str) -> None:
    async with Rig(transport, drain=seconds) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        await destination.receive(4)
        rig.tap.drains = False
        if how == "reset":
            destination.reset()
            assert await source.error() is ConnectionResetError
        else:
            destination.end()
            assert await source.receive(1) == b""
            await source.send(b"goes on")
            assert await destination.receive(7) == b"goes on"
            source.close()
        await rig.closed()
        assert rig.tap.ends["rev"] == GONE[how]
        assert ("may_drain" in rig.tap.calls) == bool(seconds)
        assert "draining" not in rig.tap.calls


async def test_a_tap_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "ANSWER", 0.1)
    async with Rig(drain=60) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        await destination.receive(4)
        rig.tap.drains = None
        began = time.monotonic()
        destination.reset()
        assert await source.error() is ConnectionResetError
        assert time.monotonic() - began < 1
        rig.tap.answer(True)  # too late
        await rig.closed()
        assert "draining" not in rig.tap.calls


@pytest.mark.parametrize("may", [True, False])
async def test_until_the_tap_answers_nothing_is_read_or_told(may: bool) -> None:
    async with Rig(drain=60) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        await destination.receive(4)
        rig.tap.drains = None
        destination.reset()
        await until(lambda: "may_drain" in rig.tap.calls)
        await source.send(b"device")
        assert await silent(source, 0.05)
        assert (rig.tap.size["fwd"], rig.tap.ends) == (4, {})
        rig.tap.answer(may)
        if may:
            await until(lambda: rig.tap.size["fwd"] == 10)
            assert rig.tap.sent_on == 4
        else:
            assert await source.error() is ConnectionResetError
            await rig.closed()
            assert rig.tap.ends == {"rev": GONE["reset"], "fwd": GONE["reset"]}


@pytest.mark.parametrize("how", ["reset", "eof"])
async def test_a_source_that_goes_before_the_answer_is_not_waited_for(how: str) -> None:
    async with Rig(drain=60) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        await destination.receive(4)
        rig.tap.drains = None
        go(destination, how)
        await until(lambda: "may_drain" in rig.tap.calls)
        source.reset()
        await rig.closed()
        rig.tap.answer(True)
        await asyncio.sleep(0)
        assert "draining" not in rig.tap.calls


async def test_a_source_that_has_ended_is_not_asked_about() -> None:
    async with Rig(drain=60) as rig:
        source, destination = await rig.connect()
        await source.send(b"page")
        source.end()
        assert await destination.receive(5) == b"page"
        destination.close()
        assert await source.receive(1) == b""
        await rig.closed()
        assert "may_drain" not in rig.tap.calls


# ---------------------------------------------------------------- bounds


async def test_a_tap_that_lags_is_waited_for() -> None:
    async with Rig(drain=60, buffer_size=1 << 16) as rig:
        source, _ = await begun(rig, "reset")
        source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        rig.tap.lags = True
        await asyncio.sleep(0.02)
        sent = await source.fill(bytes(100 * MIB))
        assert sent < 100 * MIB, "only the kernel's buffers take it"
        assert rig.tap.size["fwd"] == 400
        rig.tap.lags = False
        await until(lambda: rig.tap.size["fwd"] == 400 + sent)


async def test_only_the_source_is_asked_how_it_is() -> None:
    async with Rig(drain=SECONDS, sample_interval=0.05) as rig:
        await begun(rig, "reset")
        before = len(rig.tap.infos)
        await rig.closed()
        assert {leg for leg, _ in rig.tap.infos[before:]} == {"source"}
