"""What people may write for an endpoint, and the sockets that are made from it."""

import asyncio
import ipaddress
import os
import socket
from pathlib import Path

import pytest

from migsniff.core.errors import UsageError
from migsniff.feed.endpoints import (
    Endpoint,
    Listener,
    SocketAddress,
    admitted,
    listen,
    parse_endpoint,
    parse_network,
    resolve,
    shown,
)
from tests.relaying import HAS_IPV6


@pytest.mark.parametrize(
    ("text", "endpoint", "printed"),
    [
        ("4444", Endpoint(port=4444), "*:4444"),
        (":4444", Endpoint(port=4444), "*:4444"),
        ("tcp::4444", Endpoint(port=4444), "*:4444"),
        ("dst:4444", Endpoint(host="dst", port=4444), "dst:4444"),
        ("192.0.2.1:1", Endpoint(host="192.0.2.1", port=1), "192.0.2.1:1"),
        ("[2001:db8::1]:65535", Endpoint(host="2001:db8::1", port=65535), "[2001:db8::1]:65535"),
        ("[fe80::1%eth0]:2", Endpoint(host="fe80::1%eth0", port=2), "[fe80::1%eth0]:2"),
        ("tcp:dst.example:4444", Endpoint(host="dst.example", port=4444), "dst.example:4444"),
        ("tcp:fd:4444", Endpoint(host="fd", port=4444), "fd:4444"),
        ("tcp:[::]:4444", Endpoint(host="::", port=4444), "[::]:4444"),
        ("unix:/run/m.sock", Endpoint(path="/run/m.sock"), "unix:/run/m.sock"),
        ("unix:with:colon,comma", Endpoint(path="with:colon,comma"), "unix:with:colon,comma"),
        ("unix:" + "x" * 107, Endpoint(path="x" * 107), "unix:" + "x" * 107),
    ],
)
def test_endpoints_that_are_understood(text: str, endpoint: Endpoint, printed: str) -> None:
    assert parse_endpoint(text, listening=True) == parse_endpoint(text, listening=False) == endpoint
    assert str(endpoint) == printed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not a port"),
        ("dst", "'dst' is not a port"),
        ("dst:", "'' is not a port"),
        ("dst:https", "'https' is not a port"),
        ("65536", "'65536' is not a port"),
        ("-1", "'-1' is not a port"),
        ("٤٤٤٤", "is not a port"),
        ("2001:db8::1:4444", r"as \[ADDRESS\]:PORT"),
        ("[2001:db8::1]", r"as \[ADDRESS\]:PORT"),
        ("[2001:db8::1]4444", r"as \[ADDRESS\]:PORT"),
        ("[dst]:4444", "'dst' is not an IPv6 address"),
        ("a b:4444", "'a b' is not a host name"),
        ("a..b:4444", "'a..b' is not a host name"),
        ("x" * 64 + ":4444", "is not a host name"),
        ("http://dst:4444", "no URL; write HOST:PORT"),
        ("tcp://dst:4444", "no URL; write HOST:PORT"),
        ("rdma:dst:4444", "cannot be proxied; migrate over tcp:"),
        ("exec:cat>FILE", "migsniff read FILE"),
        ("fd:7", "whoever opens it"),
        ("fd:migration", "whoever opens it"),
        ("file:/tmp/vm,offset=4096", "migsniff read FILE"),
        ("vsock:3:4444", "VSOCK-LISTEN"),
        ("defer", "migrate_incoming"),
        ("tcp:dst:4444,ipv4=on", "options after a comma"),
        ("unix:", "needs the path"),
        ("unix:a\0b", "needs the path"),
        ("unix:" + "x" * 108, "108 bytes; at most 107"),
        ("unix:" + "ü" * 60, "120 bytes; at most 107"),
    ],
)
def test_endpoints_that_are_not(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_endpoint(text, listening=True)


def test_port_0_is_only_for_listening() -> None:
    assert parse_endpoint("0", listening=True) == Endpoint()
    with pytest.raises(UsageError, match="cannot be forwarded to"):
        parse_endpoint("dst:0", listening=False)


@pytest.mark.parametrize(
    ("networks", "address", "expected"),
    [
        ([], ("192.0.2.1", 1), True),
        (["192.0.2.0/24"], ("192.0.2.1", 1), True),
        (["192.0.2.0/24"], ("::ffff:192.0.2.1", 1, 0, 0), True),
        (["192.0.2.0/24"], ("::ffff:192.0.3.1", 1, 0, 0), False),
        (["192.0.2.77/24"], ("192.0.2.1", 1), True),
        (["192.0.2.7"], ("192.0.2.8", 1), False),
        (["0.0.0.0/0"], ("2001:db8::1", 1, 0, 0), False),
        (["198.51.100.0/24", "2001:db8::/32"], ("2001:db8::1", 1, 0, 0), True),
        (["fe80::/10"], ("fe80::1%eth0", 1, 0, 2), True),
        (["192.0.2.0/24"], "/run/m.sock", True),
    ],
)
def test_who_is_admitted(networks: list[str], address: SocketAddress, expected: bool) -> None:
    assert admitted(address, tuple(parse_network(network) for network in networks)) is expected


def test_a_network_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"write it as 192\.0\.2\.0/24"):
        parse_network("everyone")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 4), "192.0.2.1:4"),
        (("2001:db8::1", 4, 0, 0), "[2001:db8::1]:4"),
        (("::ffff:192.0.2.1", 4, 0, 0), "192.0.2.1:4"),
        ("/run/m.sock", "unix:/run/m.sock"),
    ],
)
def test_addresses_as_people_write_them(address: SocketAddress, text: str) -> None:
    assert shown(address) == text


# ---------------------------------------------------------------- listening


def close(listeners: list[Listener]) -> None:
    """Close all."""
    for listener in listeners:
        listener.close()


async def test_port_0_is_one_port_for_all_addresses_of_a_name() -> None:
    found = await resolve(Endpoint(host="localhost"))
    listeners = await listen(parse_endpoint("localhost:0", listening=True))
    assert len(listeners) == len(found)
    ports = {listener.endpoint.port for listener in listeners}
    assert len(ports) == 1
    assert ports != {0}
    close(listeners)


async def test_a_bare_port_is_one_socket_for_both_kinds() -> None:
    (listener,) = await listen(Endpoint())
    for host in ("127.0.0.1", "::1") if HAS_IPV6 else ("127.0.0.1",):
        socket.create_connection((host, listener.endpoint.port)).close()
    listener.close()


async def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for text in (f"{port}", f"127.0.0.1:{port}"):
            with pytest.raises(UsageError, match=r"cannot listen on .*: Address already in use"):
                await listen(parse_endpoint(text, listening=True))


@pytest.mark.parametrize("text", ["192.0.2.1:0", "unix:/nowhere/at/all"])
async def test_addresses_that_are_not_ours_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        await listen(parse_endpoint(text, listening=True))


def unix(path: Path) -> Endpoint:
    """Its endpoint."""
    return parse_endpoint(f"unix:{path}", listening=True)


async def test_a_stale_socket_file_is_replaced_and_removed_at_close(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    (listener,) = await listen(unix(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


async def test_a_socket_where_somebody_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(UsageError, match="another program listens there"):
            await listen(unix(path))
        living.setblocking(False)
        with pytest.raises(BlockingIOError):  # a QEMU there would have taken the question for its source
            living.accept()
        assert path.is_socket()


@pytest.mark.parametrize("target", ["nothing", "socket", "file"])
async def test_a_symbolic_link_is_refused(tmp_path: Path, target: str) -> None:
    if target == "file":
        (tmp_path / target).touch()
    elif target == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / target))
    (tmp_path / "link").symlink_to(tmp_path / target)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UsageError, match="symbolic link"):
        await listen(unix(tmp_path / "link"))
    assert sorted(os.listdir(tmp_path)) == before


async def test_what_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="not a socket"):
        await listen(unix(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


async def test_a_path_removed_or_replaced_meanwhile_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (removed,) = await listen(unix(path))
    path.unlink()
    removed.close()
    (replaced,) = await listen(unix(path))
    path.unlink()
    (successor,) = await listen(unix(path))
    replaced.close()
    assert path.is_socket()
    successor.close()
    assert not path.exists()


async def test_a_bare_port_is_forwarded_to_this_host() -> None:
    found = await asyncio.wait_for(resolve(Endpoint(port=4444)), 5)
    assert found
    assert all(ipaddress.ip_address(str(address[0])).is_loopback for _, address in found)
    assert await resolve(Endpoint(path="/run/m.sock")) == [(socket.AF_UNIX, "/run/m.sock")]
