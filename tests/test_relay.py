"""Forwarding as it should be: every byte, both ways, every end, in the right order."""

import asyncio
import hashlib
import os
import socket
import struct

import pytest

from migsniff.core.errors import UsageError
from migsniff.feed.endpoints import Endpoint, parse_endpoint, parse_network, shown
from migsniff.feed.relay import Relay
from tests.relaying import HAS_IPV6, LONG, TRANSPORTS, Peer, Rig, send_random, until

MIB = 1 << 20
IP_LOCAL_PORT_RANGE = 51  # linux/in.h


def anonymous_memory() -> int:
    """This process's own memory, in bytes."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("forward", "back"), [(1, 1), (70_001, 3), (12 * MIB + 7, 5 * MIB + 1)])
async def test_both_directions_at_once_arrive_unchanged(transport: str, forward: int, back: int) -> None:
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        sent, returned, received, came_back = await asyncio.gather(
            send_random(source, forward, 1),
            send_random(destination, back, 2),
            destination.digest(),
            source.digest(),
        )
        await rig.closed()
        assert received == sent == rig.tap.digest("fwd")
        assert came_back == returned == rig.tap.digest("rev")


async def test_a_large_stream_arrives_unchanged() -> None:
    async with Rig() as rig:
        source, destination = await rig.connect()
        destination.end()
        sent, received = await asyncio.gather(
            send_random(source, (1024 if LONG else 64) * MIB, 3), destination.digest()
        )
        await rig.closed()
        assert received == sent == rig.tap.digest("fwd")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_destination_may_speak_first(transport: str) -> None:
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        await destination.send(b"ready")
        assert await source.receive(5) == b"ready"
        await source.send(b"go")
        assert await destination.receive(2) == b"go"
        assert rig.tap.calls == ["opened", "data", "data"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_one_byte_at_a_time_goes_straight_through(transport: str) -> None:
    text = os.urandom(300)
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        for position in range(len(text)):
            byte = text[position : position + 1]
            await source.send(byte)
            assert await destination.receive(1) == byte
            await destination.send(byte)
            assert await source.receive(1) == byte
        expected = len(text), hashlib.sha256(text).hexdigest()
        assert rig.tap.digest("fwd") == rig.tap.digest("rev") == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_small_buffers_pause_and_resume(transport: str) -> None:
    data = os.urandom(16 << 10) * 512
    async with Rig(transport, buffer_size=1024) as rig:
        source, destination = await rig.connect()
        sending = asyncio.create_task(send_in_pieces(source, data, 16 << 10))
        await until(lambda: ("fwd", True) in rig.tap.pauses)
        received, _ = await asyncio.gather(destination.digest(), sending)
        assert received == (len(data), hashlib.sha256(data).hexdigest()) == rig.tap.digest("fwd")
        assert rig.tap.pauses["fwd", True] == rig.tap.pauses["fwd", False] > 0
        assert rig.tap.largest <= 1024


async def send_in_pieces(peer: Peer, data: bytes, size: int) -> None:
    """Send and end."""
    for start in range(0, len(data), size):
        await peer.send(data[start : start + size])
    peer.end()


# ---------------------------------------------------------------- slow receivers


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_destination_that_reads_nothing_blocks_the_source(transport: str) -> None:
    data = os.urandom(MIB) * 50
    async with Rig(transport, buffer_size=MIB) as rig:
        source, destination = await rig.connect()
        before = anonymous_memory()
        sent = await source.fill(data, still=10 if LONG else 0.3)
        assert anonymous_memory() - before < 3 * MIB
        assert sent < len(data)
        assert rig.tap.size["fwd"] < sent  # what the tap has seen went on, what waits it has not seen
        received, _ = await asyncio.gather(
            destination.receive(len(data)), source.send(memoryview(data)[sent:])
        )
        assert received == data
        assert rig.tap.size["fwd"] == len(data)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("slow", ["fwd", "rev"])
async def test_one_slow_direction_does_not_stall_the_other(transport: str, slow: str) -> None:
    data = os.urandom(MIB) * 24
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        stuck, receiver = (source, destination) if slow == "fwd" else (destination, source)
        sent = await stuck.fill(data)
        assert sent < len(data)
        received, _ = await asyncio.gather(stuck.receive(len(data)), receiver.send(data))
        assert received == data
        received, _ = await asyncio.gather(receiver.receive(len(data)), stuck.send(memoryview(data)[sent:]))
        assert received == data


async def test_what_waits_for_a_slow_receiver_is_shown_before_the_answer_to_it() -> None:
    data = os.urandom(MIB) * 24
    async with Rig() as rig:
        source, destination = await rig.connect()
        await source.fill(data)
        assert ("fwd", True) in rig.tap.pauses
        went_on = rig.tap.size["fwd"]
        await destination.receive(went_on // 2)
        await destination.send(b"enough")
        assert await source.receive(6) == b"enough"
        assert rig.tap.size["rev"] == 6
        assert rig.tap.calls.index("paused") < len(rig.tap.calls) - 1
        assert rig.tap.size["fwd"] >= went_on


async def test_the_time_that_a_receiver_lets_the_relay_wait_is_added_up() -> None:
    data = os.urandom(MIB) * 24
    async with Rig() as rig:
        source, destination = await rig.connect()
        sent = await source.fill(data)
        await asyncio.gather(destination.receive(len(data)), source.send(memoryview(data)[sent:]))
        source.end()
        destination.end()
        await rig.closed()
        waited = {leg: facts["waited"] for leg, facts in rig.tap.infos}
        assert waited["source"] == 0
        assert isinstance(waited["destination"], int)
        assert waited["destination"] >= 100_000  # Peer.fill gives up 0.15 s after the last byte that went


async def test_connections_share_the_relay_fairly() -> None:
    async with Rig() as rig:
        bulk, sink = await rig.connect()
        source, destination = await rig.connect()
        flood = asyncio.create_task(bulk.send(bytes(64 * MIB)))
        drain = asyncio.create_task(sink.receive(64 * MIB))
        await until(lambda: rig.taps[0].size["fwd"] > 0)
        for _ in range(5):
            await source.send(b"?")
            assert await destination.receive(1) == b"?"
        assert rig.taps[0].size["fwd"] < 64 * MIB
        await asyncio.gather(flood, drain)


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("first", ["source", "destination"])
async def test_half_close_leaves_the_other_direction_open(transport: str, first: str) -> None:
    data = os.urandom(MIB) * 50
    async with Rig(transport) as rig:
        ends = await rig.connect()
        early, late = ends if first == "source" else ends[::-1]
        await early.send(b"last words")
        early.end()
        assert await late.receive(100) == b"last words"
        received, _ = await asyncio.gather(early.digest(), send_in_pieces(late, data, MIB))
        assert received == (len(data), hashlib.sha256(data).hexdigest())
        await rig.closed()
        assert rig.tap.ends == {"fwd": ("eof", "source", None), "rev": ("eof", "destination", None)}
        assert list(rig.tap.ends) == (["fwd", "rev"] if first == "source" else ["rev", "fwd"])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_end_comes_behind_all_pending_bytes(transport: str) -> None:
    data = os.urandom(MIB) * 6
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        sending = asyncio.create_task(send_in_pieces(source, data, MIB))
        await until(lambda: ("fwd", True) in rig.tap.pauses)
        await asyncio.sleep(0.05)
        assert "fwd" not in rig.tap.ends
        received, _ = await asyncio.gather(destination.digest(), sending)
        assert received == (len(data), hashlib.sha256(data).hexdigest())
        assert rig.tap.calls.index("ended") > len(rig.tap.calls) - 1 - rig.tap.calls[::-1].index("data")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_source_that_closes_after_its_last_byte_loses_nothing(transport: str) -> None:
    data = os.urandom(300_000)
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        sent = await source.fill(data)
        source.close()
        assert await destination.receive(len(data)) == data[:sent]


async def test_an_end_before_the_first_byte_is_told_with_it() -> None:
    async with Rig() as rig:
        source, destination = await rig.connect()
        source.end()
        assert await destination.receive(1) == b""
        assert rig.tap.calls == []
        await destination.send(b"yet")
        assert await source.receive(3) == b"yet"
        destination.end()
        await rig.closed()
        assert rig.tap.calls == ["opened", "ended", "data", "tcp_info", "tcp_info", "ended"]
        assert rig.tap.ends == {"fwd": ("eof", "source", None), "rev": ("eof", "destination", None)}


async def test_a_connection_without_a_byte_leaves_no_trace() -> None:
    async with Rig() as rig:
        source, destination = await rig.connect()
        assert rig.relay.active == 0
        source.close()
        assert await destination.receive(1) == b""
        destination.close()
        await rig.closed()
        assert rig.tap.calls == []
        source, destination = await rig.connect()
        source.reset()
        assert await destination.error() is ConnectionResetError
        await rig.closed()
        assert rig.taps[1].calls == []
        assert rig.reports == []


# ---------------------------------------------------------------- what the relay tells


async def test_tap_is_told_addresses_and_tcp_info() -> None:
    async with Rig(sample_interval=0.05) as rig:
        source, destination = await rig.connect()
        await source.send(b"x" * 1000)
        await destination.receive(1000)
        await until(lambda: len(rig.tap.infos) >= 4)
        assert rig.tap.source == shown(source.sock.getsockname())
        assert rig.listening is not None
        assert rig.tap.destination == shown(rig.listening.getsockname())
        legs = dict(rig.tap.infos[-2:])
        assert set(legs) == {"source", "destination"}
        assert legs["source"]["bytes_received"] == 1000
        assert legs["destination"]["bytes_acked"] == 1001  # the SYN counts
        assert legs["destination"]["state"] == "ESTABLISHED"
        source.end()
        destination.end()
        await rig.closed()
        assert rig.tap.calls[-3:] == ["tcp_info", "tcp_info", "ended"]


@pytest.mark.parametrize("hook", ["opened", "data", "paused", "tcp_info", "ended"])
async def test_an_exception_in_a_tap_changes_no_byte(hook: str) -> None:
    data = os.urandom(MIB) * 8
    async with Rig(raises=hook, sample_interval=0.05) as rig:
        source, destination = await rig.connect()
        sending = asyncio.create_task(send_in_pieces(source, data, MIB))
        await asyncio.sleep(0.1)
        received, _ = await asyncio.gather(destination.digest(), sending)
        assert received == (len(data), hashlib.sha256(data).hexdigest())
        destination.end()
        await rig.closed()
        assert rig.tap.calls.count(hook) == 1
        assert rig.tap.calls[-1] == hook
        assert len(rig.reports) == 1
        assert f"RuntimeError: on purpose in {hook}" in rig.reports[0]


async def test_an_exception_in_the_making_of_a_tap_changes_no_byte() -> None:
    def broken(source: str, destination: str) -> None:
        raise RuntimeError("no tap today")

    async with Rig(make_tap=broken) as rig:
        source, destination = await rig.connect()
        await source.send(b"all the same")
        assert await destination.receive(12) == b"all the same"
        assert len(rig.reports) == 1
        assert "no tap today" in rig.reports[0]


# ---------------------------------------------------------------- who may connect, where, and when


async def test_destinations_are_dialled_in_the_order_of_accept() -> None:
    async with Rig() as rig:
        sources = [rig.source() for _ in range(17)]
        destinations = [await rig.destination() for _ in sources]
        for number in reversed(range(17)):
            await sources[number].send(bytes([number]))
        assert [await each.receive(1) for each in destinations] == [bytes([each]) for each in range(17)]


async def test_bare_port_takes_both_kinds_of_addresses_on_one_port() -> None:
    hosts = ("127.0.0.1", "::1") if HAS_IPV6 else ("127.0.0.1",)
    async with Rig(listen=Endpoint()) as rig:
        everywhere = f"*:{rig.relay.port}"
        assert rig.relay.addresses == (everywhere,) or not HAS_IPV6
        for host in hosts:
            with socket.create_connection((host, rig.relay.port)) as sock:
                source, destination = Peer(sock), await rig.destination()
                await source.send(host.encode())
                assert await destination.receive(len(host)) == host.encode()
        sources = [tap.source.rpartition(":")[0].strip("[]") for tap in rig.taps]
        assert sources == list(hosts)


async def test_only_allowed_networks_are_admitted() -> None:
    async with Rig(listen=Endpoint(), allow=[parse_network("127.0.0.0/30")]) as rig:
        refused = ["127.0.0.9", "127.0.0.8", "127.0.0.9"]
        for address in [*refused, "::1"] if HAS_IPV6 else refused:
            host = "::1" if address == "::1" else "127.0.0.1"
            sock = socket.create_connection((host, rig.relay.port), source_address=(address, 0))
            assert await Peer(sock).error() is ConnectionResetError
            sock.close()
        source, destination = await rig.connect()
        await source.send(b"let in")
        assert await destination.receive(6) == b"let in"
        assert len(rig.reports) == 2 + HAS_IPV6, "each address is reported once"
        assert "127.0.0.9 is not in an allowed network" in rig.reports[0]


async def test_while_ending_only_what_belongs_to_a_migration_is_admitted() -> None:
    async with Rig() as rig:
        main, destination = await rig.connect()
        await main.send(b"main")
        await destination.receive(4)
        rig.relay.stop_accepting()
        preempt, preempt_destination = await rig.connect()
        assert rig.relay.addresses
        main.end()
        destination.end()
        await until(lambda: rig.relay.active == 0)
        assert rig.relay.addresses == ()
        with pytest.raises(ConnectionRefusedError):
            rig.source()
        await preempt.send(b"late")  # it was admitted, and is served to its end
        assert await preempt_destination.receive(4) == b"late"


async def test_while_ending_a_paused_migration_is_still_expected_to_come_back() -> None:
    paused = True
    async with Rig() as rig:
        rig.relay.stop_accepting(lambda: paused)
        source, destination = await rig.connect()
        await source.send(b"recovered")
        assert await destination.receive(9) == b"recovered"
        paused = False
        with_nothing = rig.source()
        assert await with_nothing.error() is ConnectionResetError
        assert "belongs to no migration" in rig.reports[0]
        source.end()
        destination.end()
        await rig.closed()
        assert rig.relay.addresses == ()


async def test_abort_resets_both_sides_and_says_so() -> None:
    async with Rig() as rig:
        source, destination = await rig.connect()
        await source.send(b"half a page")
        await destination.receive(11)
        rig.relay.abort()
        assert await source.error() is ConnectionResetError
        assert await destination.error() is ConnectionResetError
        assert rig.tap.ends == {"fwd": ("closed", "proxy", None), "rev": ("closed", "proxy", None)}
        source, destination = await rig.connect()
        await source.send(b"next")
        assert await destination.receive(4) == b"next"


async def test_a_relay_that_forwards_to_itself_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as picked:
        port = picked.getsockname()[1]
    here = parse_endpoint(f"127.0.0.1:{port}", listening=True)
    async with Rig(listen=here, forward=here) as rig:
        source = rig.source()
        await source.send(b"round and round")
        assert await source.error() is ConnectionResetError
        await rig.closed()
        assert "that is migsniff itself" in rig.reports[0]


async def test_a_source_may_have_the_port_that_the_relay_dials_from() -> None:
    """The kernel gives the same local port to connections that go to different places."""
    async with Rig() as rig:
        _, earlier = await rig.connect()
        port = earlier.sock.getpeername()[1]
        sock = socket.socket()
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", port | port << 16))
        except OSError:
            pytest.skip("this kernel cannot be told which port to connect from (before 6.3)")
        sock.connect(rig.address)
        assert sock.getsockname()[1] == port
        source, destination = Peer(sock), await rig.destination()
        await source.send(b"not the relay")
        assert await destination.receive(13) == b"not the relay"
        source.close()


async def test_a_unix_socket_that_forwards_to_itself_is_refused(tmp_path: object) -> None:
    here = parse_endpoint(f"unix:{tmp_path}/socket", listening=True)
    with pytest.raises(UsageError, match="to itself"):
        await Relay(here, here, lambda source, destination: None).start()
