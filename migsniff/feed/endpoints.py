"""Where to listen and where to forward to: what people write, and the sockets made from it."""

import asyncio
import errno
import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass, replace
from typing import Final, cast

from migsniff.core.errors import UsageError

UNIX_PATH_LIMIT: Final = 107
"""sun_path holds 108 bytes, the last of which is zero."""
BACKLOG: Final = 256
SAME_PORT_TRIES: Final = 20

OF_QEMU: Final = {
    "rdma": "RDMA goes past the host's sockets and cannot be proxied; migrate over tcp: to see the stream",
    "exec": "a command's pipe has no address; let the command connect or listen, as exec:'nc HOST PORT', or "
    "write a file, exec:'cat>FILE', for migsniff read FILE",
    "fd": "a descriptor has no address; have whoever opens it connect it to migsniff's port or unix socket",
    "file": "nothing is sent to a file's reader; migsniff read FILE shows it (--offset N as in offset=N)",
    "vsock": "use tcp: or unix:, or put a relay between, as socat VSOCK-LISTEN:PORT UNIX-CONNECT:PATH",
    "defer": "it names no address; write the one that migrate_incoming is given",
}
"""What QEMU migrates over beside sockets that can be proxied, and what to do instead."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SocketAddress = tuple[str | int, ...] | str
"""What connect() takes: (host, port[, flow, scope]) or a path."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP host and port, or the `path` of a unix socket.

    `host` None is a bare PORT: all addresses to listen on, localhost to forward to.
    """

    host: str | None = None
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return shown((self.host if self.host is not None else "*", self.port))


def parse_endpoint(text: str, *, listening: bool) -> Endpoint:
    """PORT, HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT or unix:PATH; UsageError says what is wrong with it.

    A host that is called as one of QEMU's other transports is written tcp:HOST:PORT.
    """
    if text.startswith("unix:"):
        return Endpoint(path=_checked_path(text.removeprefix("unix:"), text))
    scheme = text.partition(":")[0]
    if scheme in OF_QEMU:
        raise UsageError(
            f"endpoint {text!r}: {scheme}: is QEMU's, migsniff takes tcp: and unix:; {OF_QEMU[scheme]}"
        )
    if "://" in text:
        raise UsageError(f"endpoint {text!r}: no URL; write HOST:PORT or unix:PATH")
    rest = text.removeprefix("tcp:")
    if "," in rest:
        raise UsageError(f"endpoint {text!r}: options after a comma are QEMU's; write HOST:PORT alone")
    if rest.startswith("["):
        match = re.fullmatch(r"\[([^\[\]]*)\]:(.*)", rest)
        if match is None:
            raise UsageError(f"endpoint {text!r}: write an IPv6 address as [ADDRESS]:PORT")
        host, port = match.groups()
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError(f"endpoint {text!r}: {host!r} is not an IPv6 address") from None
    else:
        host, _, port = rest.rpartition(":")
        if ":" in host:
            raise UsageError(f"endpoint {text!r}: write an IPv6 address as [ADDRESS]:PORT")
        if not _is_host_name(host):
            raise UsageError(f"endpoint {text!r}: {host!r} is not a host name")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UsageError(f"endpoint {text!r}: {port!r} is not a port (0 to 65535)")
    if int(port) == 0 and not listening:
        raise UsageError(
            f"endpoint {text!r}: port 0 picks a free port to listen on; it cannot be forwarded to"
        )
    return Endpoint(host=host or None, port=int(port))


def parse_network(text: str) -> Network:
    """An address or network for --allow: 192.0.2.0/24, 2001:db8::/32, 192.0.2.7."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise UsageError(f"network {text!r}: write it as 192.0.2.0/24 or 2001:db8::/32") from None


def _is_host_name(host: str) -> bool:
    if re.search(r"[\s\x00-\x1f/\[\]]", host):
        return False
    try:
        host.encode("idna")  # as getaddrinfo() will
    except UnicodeError:
        return False
    return True


def _checked_path(path: str, text: str) -> str:
    length = len(os.fsencode(path))
    if not path or "\0" in path:
        raise UsageError(f"endpoint {text!r}: unix: needs the path of a socket")
    if length > UNIX_PATH_LIMIT:
        raise UsageError(f"endpoint {text!r}: a socket path of {length} bytes; at most {UNIX_PATH_LIMIT} fit")
    return path


def shown(address: SocketAddress) -> str:
    """A socket address as people write it; IPv4 inside IPv6 is shown as IPv4."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = str(address[0]), address[1]
    host = host.removeprefix("::ffff:") if "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def admitted(address: SocketAddress, networks: tuple[Network, ...]) -> bool:
    """Whether a peer may connect; without networks, and over a unix socket, all may."""
    if not networks or isinstance(address, str):
        return True
    peer = ipaddress.ip_address(str(address[0]))
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)


# ---------------------------------------------------------------- listening


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; `owned` is the device and inode of the unix socket file made for it."""

    sock: socket.socket
    endpoint: Endpoint
    owned: tuple[int, int] | None = None

    def close(self) -> None:
        """Stop listening, and remove the socket file if it is still the one made here."""
        self.sock.close()
        path = self.endpoint.path
        if path is not None and self.owned == _identity(path):
            os.unlink(path)


Found = list[tuple[socket.AddressFamily, SocketAddress]]
"""Address families and addresses, best first."""


async def listen(endpoint: Endpoint) -> list[Listener]:
    """Listening sockets for every address of an endpoint, all on one port; UsageError if there are none.

    A bare PORT is one socket for IPv6 and IPv4 together, so that connections are accepted in the order in
    which they came, whichever of the two they use.
    """
    if endpoint.path is not None:
        return [_listen_unix(endpoint, endpoint.path)]
    if endpoint.host is None:
        try:
            return _listen_tcp([(socket.AF_INET6, ("::", endpoint.port))], endpoint)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise _cannot_listen(endpoint, error) from None
            found: Found = [(socket.AF_INET, ("0.0.0.0", endpoint.port))]
            endpoint = replace(endpoint, host="0.0.0.0")
    else:
        try:
            found = await resolve(endpoint)
        except OSError as error:
            raise _cannot_listen(endpoint, error) from None
    for attempt in range(SAME_PORT_TRIES):
        try:
            return _listen_tcp(found, endpoint)
        except OSError as error:
            # port 0: the port picked for the first address may be taken on the next one
            taken = error.errno == errno.EADDRINUSE and endpoint.port == 0 and len(found) > 1
            if not taken or attempt == SAME_PORT_TRIES - 1:
                raise _cannot_listen(endpoint, error) from None
    raise AssertionError("unreachable")


def _cannot_listen(endpoint: Endpoint, error: OSError) -> UsageError:
    return UsageError(f"cannot listen on {endpoint}: {error.strerror or error}")


def _listen_tcp(found: Found, endpoint: Endpoint) -> list[Listener]:
    listeners: list[Listener] = []
    port = endpoint.port
    try:
        for family, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(Listener(sock, endpoint))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # as QEMU: "::" takes IPv4 too, any other address only its own kind
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
            sock.bind((address[0], port, *address[2:]))
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
            host = None if endpoint.host is None else str(address[0])
            listeners[-1] = Listener(sock, Endpoint(host=host, port=port))
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen_unix(endpoint: Endpoint, path: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(endpoint, path)
            sock.bind(path)
        owned = _identity(path)
        sock.listen(BACKLOG)
        return Listener(sock, endpoint, owned)
    except OSError as error:
        sock.close()
        raise _cannot_listen(endpoint, error) from None
    except UsageError:
        sock.close()
        raise


def same_path(one: Endpoint, other: Endpoint) -> bool:
    """Whether both are the same unix socket, by whatever path."""
    if one.path is None or other.path is None:
        return False
    return os.path.realpath(one.path) == os.path.realpath(other.path)


def _remove_stale(endpoint: Endpoint, path: str) -> None:
    """Remove a socket file that nobody holds; UsageError for anything else that is in the way."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise UsageError(f"cannot listen on {endpoint}: it is a symbolic link")
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"cannot listen on {endpoint}: it exists and is not a socket")
    # A datagram socket cannot connect to a stream socket, but the kernel tells whether somebody holds the
    # path. A stream connection would be accepted there, and would use up a QEMU that waits for its only one.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise UsageError(f"cannot listen on {endpoint}: another program listens there")
    os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# ---------------------------------------------------------------- dialling


async def resolve(endpoint: Endpoint) -> Found:
    """The socket addresses of an endpoint, best first; OSError (socket.gaierror) if it has none."""
    if endpoint.path is not None:
        return [(socket.AF_UNIX, endpoint.path)]
    host, port = endpoint.host or "localhost", endpoint.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # (typeshed knows of a Python without IPv6, where an address is (int, bytes))
    return list(dict.fromkeys((family, cast(SocketAddress, address)) for family, *_, address in found))
