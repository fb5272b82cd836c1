"""TCP_INFO as kernels of different ages give it, and the names of errors."""

import socket
import struct

import pytest

from migsniff.feed.sockets import (
    SO_BUF_LOCK,
    SOCK_RCVBUF_LOCK,
    decode_tcp_info,
    error_name,
    hold_receive_buffer,
    tcp_info,
)

# struct tcp_info in its order: 8 bytes, then words of 4 and of 8 bytes, each with a value of its own
LAYOUT = struct.Struct("=8B 24I 4Q 6I 4Q 2I 2Q 4I")
WHOLE = LAYOUT.pack(*range(8 + 24 + 4 + 6 + 4 + 2 + 2 + 4))


def test_all_fields_stand_where_the_kernel_puts_them() -> None:
    facts = decode_tcp_info(WHOLE)
    expected = {
        "state": "UNKNOWN",
        "ca_state": 1,
        "rto": 8,
        "unacked": 12,
        "retrans": 15,
        "rtt": 23,
        "rttvar": 24,
        "snd_cwnd": 26,
        "rcv_space": 30,
        "total_retrans": 31,
        "bytes_acked": 34,
        "bytes_received": 35,
        "notsent_bytes": 38,
        "delivery_rate": 42,
        "busy_time": 43,
        "rwnd_limited": 44,
        "sndbuf_limited": 45,
        "bytes_sent": 48,
        "snd_wnd": 53,
    }
    assert {name: facts[name] for name in expected} == expected


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_shorter_struct_holds_fewer_fields(length: int) -> None:
    whole, facts = decode_tcp_info(WHOLE), decode_tcp_info(WHOLE[:length])
    assert facts == dict(list(whole.items())[: len(facts)])
    assert (length >= 72) == ("rtt" in facts)


def test_the_kernel_of_this_machine() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(bytes(5000))
        accepted.recv(5000, socket.MSG_WAITALL)
        sent, received = tcp_info(client), tcp_info(accepted)
    assert sent is not None
    assert received is not None
    assert sent["state"] == "ESTABLISHED"
    assert sent["bytes_acked"] == 5001
    assert received["bytes_received"] == 5000


def test_a_unix_socket_has_none() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert tcp_info(one) == {}


def test_a_receive_buffer_is_held_and_let_go() -> None:
    with socket.socket() as sock:
        try:
            before = sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
        except OSError:
            pytest.skip("the kernel is older than Linux 5.15")
        hold_receive_buffer(sock, True)
        assert sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == SOCK_RCVBUF_LOCK
        hold_receive_buffer(sock, False)
        assert sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == before == 0


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionRefusedError(111, "refused"), "ECONNREFUSED"),
        (TimeoutError(), "ETIMEDOUT"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "EAI_NONAME"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "EAI_AGAIN"),
        (OSError("strange"), "OSError"),
    ],
)
def test_names_of_errors(error: OSError, name: str) -> None:
    assert error_name(error) == name
