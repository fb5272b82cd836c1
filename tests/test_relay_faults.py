"""What goes wrong: resets, deaths, destinations that are not there, descriptors that run out, silence."""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from migsniff.core.arrivals import Direction
from migsniff.feed import sockets
from migsniff.feed.endpoints import Endpoint
from migsniff.feed.relay import Keepalive
from tests.relaying import LONG, TCP, TRANSPORTS, Peer, Rig, until

MIB = 1 << 20


# ---------------------------------------------------------------- resets


def directions(party: str) -> tuple[Direction, Direction]:
    """The direction in which a party sends, and the other one."""
    return ("fwd", "rev") if party == "source" else ("rev", "fwd")


@pytest.mark.parametrize("transport", TCP)
@pytest.mark.parametrize("who", ["source", "destination"])
@pytest.mark.parametrize("how", ["open", "paused", "half-closed"])
async def test_a_reset_is_passed_on_as_a_reset_within_a_second(transport: str, who: str, how: str) -> None:
    async with Rig(transport) as rig:
        source, destination = await rig.connect()
        dying, other = (source, destination) if who == "source" else (destination, source)
        await source.send(b"page" * 100)
        await destination.receive(400)
        if how == "paused":
            # nobody reads what the source sends: the relay reads the source no more
            assert await source.fill(bytes(50 * MIB)) < 50 * MIB
        elif how == "half-closed":
            other.end()
            assert await dying.receive(1) == b""
        began = time.monotonic()
        dying.reset()
        assert await other.error() is ConnectionResetError
        assert time.monotonic() - began < 1
        await rig.closed()
        ended = ("reset", who, "ECONNRESET")
        by_other = ("eof", "source" if who == "destination" else "destination", None)
        there, back = directions(who)
        assert rig.tap.ends == {there: ended, back: by_other if how == "half-closed" else ended}
        if how != "paused":
            assert rig.tap.size["fwd"] == 400


@pytest.mark.parametrize("loser", ["source", "destination"])
async def test_what_was_sent_before_a_reset_still_goes_on(loser: str) -> None:
    """A destination that gives up says why on the return path, and then resets what it has not read."""
    async with Rig() as rig:
        source, destination = await rig.connect()
        dying, other = (source, destination) if loser == "source" else (destination, source)
        await other.send(bytes(100_000))
        await asyncio.sleep(0.05)
        await dying.send(b"the reason")
        dying.close()  # with unread bytes: the kernel makes a reset of it
        assert await other.receive(10) == b"the reason"
        assert await other.error() is ConnectionResetError
        await rig.closed()
        direction, _ = directions(loser)
        assert rig.tap.size[direction] == 10
        assert rig.tap.ends[direction] == ("reset", loser, "ECONNRESET")


async def test_last_words_arrive_also_when_the_sending_fails_first() -> None:
    async with Rig() as rig:
        source, destination = await rig.connect()
        sent = await source.fill(bytes(50 * MIB))
        assert sent < 50 * MIB
        await destination.send(b"the reason")
        destination.close()
        assert await source.receive(10) == b"the reason"
        assert await source.error() is ConnectionResetError


async def test_an_end_of_file_before_a_reset_stays_one() -> None:
    """The source ends, and then is gone; what it sent up to its end still arrives, and so does the end."""
    data = os.urandom(200_000)
    async with Rig() as rig:
        assert rig.listening is not None
        rig.listening.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10
        )  # most has to wait in the relay
        source, destination = await rig.connect()
        await source.send(data)
        source.close()
        await until(lambda: "fwd" in rig.tap.ends)
        await destination.send(b"to nobody")
        await rig.closed()
        assert await destination.receive(len(data) + 1) == data
        assert rig.tap.ends == {"fwd": ("eof", "source", None), "rev": ("reset", "source", "EPIPE")}


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_unix_peer_that_is_gone_ends_the_other(who: str) -> None:
    async with Rig("unix") as rig:
        source, destination = await rig.connect()
        dying, other = (source, destination) if who == "source" else (destination, source)
        await other.send(b"unread")
        await until(lambda: rig.taps[0].calls != [])
        dying.close()  # with unread bytes, which is as near to a reset as unix sockets come
        with contextlib.suppress(ConnectionError):
            assert await other.receive(1) == b""
        with pytest.raises(ConnectionError):
            await send_until_it_fails(other)
        await rig.closed()
        assert rig.tap.ends[directions(who)[0]] == ("reset", who, "ECONNRESET")


async def send_until_it_fails(peer: Peer) -> None:
    """Small writes, for a second at most."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        await peer.send(b"x")
        await asyncio.sleep(0.01)


# ---------------------------------------------------------------- a process dies


RECEIVER = """
import socket, sys, time
sock = socket.socket(getattr(socket, sys.argv[1]))
sock.bind(sys.argv[2] if sys.argv[1] == "AF_UNIX" else (sys.argv[2], 0))
sock.listen()
print(sock.getsockname()[1] if sys.argv[1] != "AF_UNIX" else 0, flush=True)
peer, _ = sock.accept()
peer.sendall(b"hello")
if sys.argv[3] == "reads":
    while peer.recv(1 << 20): pass
time.sleep(100)
"""


@contextlib.contextmanager
def receiver(transport: str, reads: str, folder: str) -> Iterator[tuple[Endpoint, subprocess.Popen[str]]]:
    """A destination in a process of its own."""
    family, where = {
        "tcp4": ("AF_INET", "127.0.0.1"),
        "tcp6": ("AF_INET6", "::1"),
        "unix": ("AF_UNIX", f"{folder}/receiver"),
    }[transport]
    process = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, family, where, reads], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        port = int(process.stdout.readline())
        yield Endpoint(path=where) if transport == "unix" else Endpoint(host=where, port=port), process
        process.kill()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("reads", ["reads", "reads nothing"])
async def test_a_killed_destination_fails_the_source_within_a_second_of_its_next_write(
    transport: str, reads: str, tmp_path: object
) -> None:
    with receiver(transport, reads, str(tmp_path)) as (endpoint, process):
        async with Rig(transport, forward=endpoint) as rig:
            source = rig.source()
            assert await source.receive(5) == b"hello"
            await source.send(b"x" * 1000)
            await until(lambda: rig.tap.size["fwd"] == 1000)
            await asyncio.sleep(0.1)  # read by now, if it reads
            process.send_signal(signal.SIGKILL)
            process.wait()
            began = time.monotonic()
            with pytest.raises(ConnectionError):
                await send_until_it_fails(source)
            assert time.monotonic() - began < 1
            await rig.closed()
            how, by, _ = rig.tap.ends["fwd"]
            assert (how, by) == ("reset", "destination")
            # with nothing unread its end looks orderly: only the write after it shows that it is gone
            assert rig.tap.ends["rev"][:2] == ("eof" if reads == "reads" else "reset", "destination")


# ---------------------------------------------------------------- no destination


@contextlib.contextmanager
def silent_destination() -> Iterator[Endpoint]:
    """A port at which a connection is neither made nor refused: its queue is full."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield Endpoint(host="127.0.0.1", port=sock.getsockname()[1])


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("sends", [True, False])
@pytest.mark.parametrize(
    ("kind", "reason", "end"),
    [
        ("refused", "Connection refused", ("refused", "destination", "ECONNREFUSED")),
        ("silent", "no answer", ("refused", "proxy", "ETIMEDOUT")),
        ("unknown", "Name or service not known", ("refused", "proxy", "EAI_NONAME")),
        ("unix", "No such file", ("refused", "proxy", "ENOENT")),
    ],
)
async def test_without_a_destination_the_source_is_closed_and_told_why(
    kind: str, reason: str, end: tuple[str, str, str], sends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_destination() as silent:
        forward = {
            "refused": Endpoint(host="127.0.0.1", port=free_port()),
            "silent": silent,
            "unknown": Endpoint(host="nowhere.invalid", port=4444),
            "unix": Endpoint(path="/nowhere/socket"),
        }[kind]
        async with Rig(forward=forward, dial_timeout=0.3) as rig:
            if kind == "unknown":
                monkeypatch.setattr(sockets, "resolve", unknown_name)
            for _ in range(2):  # it goes on serving
                source = rig.source()
                if sends:
                    await source.send(b"QEVM")
                began = time.monotonic()
                assert await source.error() is ConnectionResetError
                assert time.monotonic() - began < 1
            await rig.closed()
            assert all(f"cannot connect to {forward}" in report for report in rig.reports)
            assert all(reason in report for report in rig.reports)
            if sends:
                assert len(rig.reports) == 2
                assert rig.taps[0].calls[0] == "opened"
                assert rig.taps[0].ends == {"fwd": end, "rev": end}
            else:
                assert len(rig.reports) == 1, "a health check is worth one line"
                assert all(tap.calls == [] for tap in rig.taps)


async def unknown_name(endpoint: Endpoint) -> None:
    """A name that does not exist, without asking anyone."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_a_silent_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig() as rig:
        assert rig.listening is not None
        good = rig.listening.getsockname()
        with silent_destination() as silent:
            found = [(socket.AF_INET, ("127.0.0.1", silent.port)), (socket.AF_INET, good)]

            async def resolved(endpoint: Endpoint) -> object:
                return found

            monkeypatch.setattr(sockets, "resolve", resolved)
            dialled = await sockets.dial(Endpoint(host="two", port=1), 1)
            assert dialled.getpeername() == good
            dialled.close()


async def test_a_dial_that_hangs_does_not_hold_up_the_next_for_ever() -> None:
    with silent_destination() as silent:
        async with Rig(forward=silent, dial_timeout=0.2) as rig:
            sources = [rig.source() for _ in range(3)]
            for source in sources:
                assert await source.error() is ConnectionResetError


async def test_a_source_that_resets_before_its_destination_answers_is_dialled_for_no_more() -> None:
    with silent_destination() as silent:
        async with Rig(forward=silent, dial_timeout=30) as rig:
            source = rig.source()
            await until(lambda: rig.relay.connections == 1)
            source.reset()
            await rig.closed()
            assert rig.reports == []
            assert rig.tap.calls == []


async def test_a_unix_destination_with_a_full_queue_is_waited_for(tmp_path: object) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as filler:
        busy.bind(f"{tmp_path}/busy")
        busy.listen(0)
        filler.connect(f"{tmp_path}/busy")
        async with Rig("unix", forward=Endpoint(path=f"{tmp_path}/busy")) as rig:
            source = rig.source()
            await source.send(b"patience")
            await asyncio.sleep(0.2)
            busy.accept()[0].close()
            busy.setblocking(False)
            accepted, _ = await asyncio.get_running_loop().sock_accept(busy)
            destination = Peer(accepted)
            assert await destination.receive(8) == b"patience"
            destination.close()


# ---------------------------------------------------------------- descriptors


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[Callable[[], None]]:
    """Let this process open only so many more; yields what lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.dup(0) for _ in range(count)]
    highest = os.dup(0)
    for descriptor in (*spare, highest):
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1])
async def test_running_out_of_descriptors_is_waited_out(left: int) -> None:
    """With none left accept() fails, with one the socket for the destination."""
    async with Rig() as rig:
        sock = socket.socket()
        with descriptors_left(left) as lift:
            sock.connect(rig.address)
            source = Peer(sock)
            await source.send(b"be patient")
            began = time.process_time()
            await asyncio.sleep(0.6)
            assert time.process_time() - began < 0.3, "it must not spin"
            assert rig.relay.connections == left
            assert rig.reports == ["cannot accept connections for now: Too many open files"]
            lift()
            destination = await rig.destination()
            assert await destination.receive(10) == b"be patient"
        source.close()


async def test_actors_at_random_leave_nothing_behind() -> None:
    async def act(rig: Rig, dice: random.Random, deadline: float) -> None:
        while time.monotonic() < deadline:
            peers = [rig.source()]
            with contextlib.suppress(OSError):
                peers.append(await asyncio.wait_for(rig.destination(), 1))
                for _ in range(dice.randrange(6)):
                    peer = dice.choice(peers)
                    match dice.randrange(5):
                        case 0:
                            peer.sock.send(dice.randbytes(dice.randrange(1, 300_000)))
                        case 1:
                            peer.sock.recv(dice.randrange(1, 300_000))
                        case 2:
                            peer.end()
                        case 3:
                            peer.reset()
                        case 4:
                            await asyncio.sleep(dice.random() / 20)
            for peer in peers:
                peer.close()

    def state() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())

    async with Rig() as rig:
        before = state()
        deadline = time.monotonic() + (60 if LONG else 1.5)
        await asyncio.gather(*(act(rig, random.Random(seed), deadline) for seed in range(50)))
        rig.forget()
        await rig.closed(10)
        descriptors, tasks = state()
        assert (descriptors + 1, tasks) == before  # the listening socket was open then
        assert rig.relay.active == 0
        assert all(set(tap.ends) == {"fwd", "rev"} for tap in rig.taps if tap.calls)
        assert rig.taps


# ---------------------------------------------------------------- silence


def test_both_legs_are_kept_alive_but_never_cut_for_not_reading() -> None:
    with socket.socket() as sock:
        sockets.tune(sock, Keepalive())
        option = {
            name: sock.getsockopt(level, getattr(socket, name))
            for level, name in (
                (socket.IPPROTO_TCP, "TCP_NODELAY"),
                (socket.SOL_SOCKET, "SO_KEEPALIVE"),
                (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
                (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
            )
        }
    assert option == {"TCP_NODELAY": 1, "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "TCP_USER_TIMEOUT": 0}


async def test_a_silent_and_a_stuck_connection_outlive_the_keepalive() -> None:
    """Nothing but the keepalive measures time; peers whose kernels answer are never cut."""
    async with Rig(keepalive=Keepalive(1, 1, 1)) as rig:
        silent, silent_destination = await rig.connect()
        await silent.send(b"once")
        assert await silent_destination.receive(4) == b"once"
        stuck, stuck_destination = await rig.connect()
        data = bytes(50 * MIB)
        sent = await stuck.fill(data)
        await asyncio.sleep(30 if LONG else 2.5)
        await silent.send(b"again")
        assert await silent_destination.receive(5) == b"again"
        rest, _ = await asyncio.gather(
            stuck_destination.receive(len(data)), stuck.send(memoryview(data)[sent:])
        )
        assert len(rest) == len(data)


@contextlib.contextmanager
def other_host() -> Iterator[tuple[str, Callable[[str], subprocess.Popen[bytes]], Callable[[], None]]]:
    """A network namespace: our address there, what runs Python code in it, and what takes it off the net."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    space, near, far = (f"ms{os.getpid()}{name}" for name in ("", "near", "far"))
    children: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(["ip", "netns", "exec", space, sys.executable, "-c", code]))
        return children[-1]

    try:
        for command in (
            f"netns add {space}",
            f"link add {near} type veth peer name {far} netns {space}",
            f"addr add 198.18.77.1/30 dev {near}",
            f"link set {near} up",
            f"-n {space} addr add 198.18.77.2/30 dev {far}",
            f"-n {space} link set {far} up",
        ):
            if problem := ip(command):
                pytest.skip(f"no network namespace can be made: {problem}")
        yield "198.18.77.1", run, lambda: print(ip(f"-n {space} link set {far} down"))
    finally:
        for child in children:
            child.kill()
            child.wait()
        ip(f"link del {near}")
        ip(f"netns del {space}")


def ip(command: str) -> str:
    """Run an ip command; what it complains about, if it fails."""
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


async def test_a_vanished_host_is_noticed() -> None:
    with other_host() as (address, run, take_down):
        listen = Endpoint(host=address)
        async with Rig(listen=listen, keepalive=Keepalive(1, 1, 2)) as rig:
            run(
                f"import socket, time; sock = socket.create_connection(({address!r}, {rig.relay.port})); "
                "sock.sendall(b'here'); time.sleep(100)"
            )
            destination = await rig.destination()
            assert await destination.receive(4) == b"here"
            take_down()
            began = time.monotonic()
            assert await destination.error() is ConnectionResetError
            assert 1 < time.monotonic() - began < 8
            ended = rig.tap.ends["fwd"]
            assert ended in {("timeout", "source", name) for name in ("ETIMEDOUT", "EHOSTUNREACH")}
