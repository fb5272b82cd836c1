"""TLS: its records and messages in the clear, what is kept of them, and real QEMUs that speak it."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    LearnedTls,
    Opened,
    TlsFacts,
)
from migsniff.core.events import (
    Event,
    TlsEnded,
    TlsMessage,
    TlsRecords,
)
from migsniff.core.session import Session
from migsniff.core.tls import PROGRESS
from tests.playing import Stream, arrivals, decode, of, pieces_of, play, strip, verdict
from tests.qemu import Migration, require
from tests.relays import Proxy, Recorder
from tests.tlsstreams import ALERT, BACK, CHANGED, FORWARD, SECRET, client, data, record, server

BOTH = Stream(((0, "fwd", FORWARD), (0, "rev", BACK)))


def facts(events: list[Event]) -> list[TlsFacts]:
    return [event.facts for event in of(events, TlsMessage)]


CLIENT = TlsFacts(message="ClientHello", version="1.2", versions=("1.2",), ciphers=3)


@pytest.mark.parametrize(
    ("forward", "back", "expected"),
    [
        (client(), b"", [CLIENT]),
        (
            client(0x0304, 0x0303, name=b"dest.example", psk=True, protocols=(b"h2", b"x"), ciphers=21),
            server(psk=True),
            [
                TlsFacts(
                    message="ClientHello",
                    version="1.3",
                    versions=("1.3", "1.2"),
                    name="dest.example",
                    ciphers=21,
                    protocols=("h2", "x"),
                    psk=True,
                ),
                TlsFacts(message="ServerHello", version="1.3", cipher="AES_128_GCM_SHA256", psk=True),
            ],
        ),
        (
            client(0x7F1C),
            server(0x0302, 0xABCD),
            [
                TlsFacts(message="ClientHello", version="0x7f1c", versions=("0x7f1c",), ciphers=3),
                TlsFacts(message="ServerHello", version="1.1", cipher="0xabcd"),
            ],
        ),
        (
            client(name=b"\x1b[2J\n"),
            b"",
            [
                TlsFacts(
                    message="ClientHello", version="1.2", versions=("1.2",), ciphers=3, name="\\x1b[2J\\x0a"
                )
            ],
        ),
        (
            client(name=b"n" * 3000),
            b"",
            [TlsFacts(message="ClientHello", version="1.2", versions=("1.2",), ciphers=3, name="n" * 255)],
        ),
        (
            client(*range(0x0301, 0x0341)),
            b"",
            [
                TlsFacts(
                    message="ClientHello",
                    version="0x0310",
                    versions=("1.0", "1.1", "1.2", "1.3", *(f"{n:#06x}" for n in range(0x0305, 0x0311))),
                    ciphers=3,
                )
            ],
        ),
        (
            client(),
            record(ALERT, b"\2\x28"),
            [CLIENT, TlsFacts(message="alert", alert="fatal handshake_failure")],
        ),
        (client(), record(ALERT, b"\1\0"), [CLIENT, TlsFacts(message="alert", alert="close_notify")]),
        (client(), record(ALERT, b"\7\xc8"), [CLIENT, TlsFacts(message="alert", alert="level 7 alert 200")]),
        (
            record(22, b"\1\0\0\5\3\3"),
            b"",
            [TlsFacts(message="ClientHello", problem="it does not fit into its record")],
        ),
        (record(22, b"\1\0"), b"", []),
        (record(22, b""), b"", []),
    ],
)
def test_messages(forward: bytes, back: bytes, expected: list[TlsFacts]) -> None:
    stream = Stream(((0, "fwd", forward), (0, "rev", back)) if back else ((0, "fwd", forward),))
    assert facts(play(stream)) == expected
    for size in (1, 7):
        assert facts(play(stream, pieces_of(size))) == expected


@pytest.mark.parametrize(
    ("forward", "back", "closed", "torn"),
    [
        (FORWARD, BACK, "probably close_notify", False),
        (client(0x0304) + data(50), server(), "no close_notify", False),
        (client(0x0304) + data(50, 19), b"", "no close_notify", False),
        (client() + CHANGED + data(50, 19), server(0x0303), "no close_notify", False),
        (
            client() + CHANGED + data(50) + record(ALERT, bytes(26)),
            server(0x0303),
            "an encrypted alert",
            False,
        ),
        (client() + record(ALERT, b"\1\0"), server(), "close_notify", False),
        (FORWARD[:-1], BACK, "no close_notify", True),
        (FORWARD[:-20], BACK, "no close_notify", True),
        (FORWARD[:-24], BACK, "no close_notify", False),
        (client()[:50], b"", "no close_notify", True),
    ],
)
def test_ends(forward: bytes, back: bytes, closed: str, torn: bool) -> None:
    stream = Stream(((0, "fwd", forward[:200]), (0, "rev", back), (0, "fwd", forward[200:])))
    ended = next(event for event in of(play(stream), TlsEnded) if event.direction == "fwd")
    assert (ended.closed, ended.torn, ended.size) == (closed, torn, len(forward))


def test_records_are_counted() -> None:
    events = play(BOTH)
    fwd, back = of(events, TlsEnded)
    assert (fwd.records, fwd.handshake, fwd.application, fwd.alerts) == (6, 1, 4, 0)
    assert fwd.payload == len(FORWARD) - 6 * 5
    assert (back.records, back.handshake, back.application) == (4, 1, 2)


@pytest.mark.parametrize("size", [1, 700, 1 << 20])
def test_progress_comes_by_records(size: int) -> None:
    """Whatever the chunks: a line for so many records."""
    stream = Stream(((0, "fwd", client(0x0304) + CHANGED + data(*[30] * (2 * PROGRESS + 10))),))
    if size == 1:
        stream = Stream(((0, "fwd", stream.main[: 40 * PROGRESS]),))
    told = of(play(stream, pieces_of(size)), TlsRecords)
    assert [(event.records, event.total) for event in told] == [
        (PROGRESS, PROGRESS * n) for n in range(1, 2 if size == 1 else 3)
    ]
    assert told[0].offset == 0
    assert told[0].size == len(client(0x0304)) + len(CHANGED) + 35 * (PROGRESS - 2)


@pytest.mark.parametrize(
    ("bad", "begins"),
    [
        (b"other", "6f 74 68 65 72"),
        (b"\x17\2\3\0\1", "17 02 03 00 01"),
        (b"\x17\3\3\x48\1", "17 03 03 48 01"),
    ],
)
def test_what_is_no_record(bad: bytes, begins: str) -> None:
    stream = Stream(((0, "fwd", client() + data(40) + bad + bytes(1000)),))
    events = play(stream)
    assert verdict(events).message.startswith(f"no TLS record begins with {begins}, at offset")
    assert not next(iter(of(events, TlsEnded))).torn


# ---------------------------------------------------------------- captures


@pytest.mark.parametrize("size", [1, 3, 60, 1000, 1 << 20])
def test_a_stripped_capture_keeps_headers_only(size: int) -> None:
    live, kept = strip(arrivals(BOTH, pieces_of(size)))
    assert live == play(BOTH)
    assert decode(Session(), kept) == live
    stored = b"".join(bytes(a.data) for a in kept if isinstance(a, Chunk))
    assert len(stored) == 10 * 5
    assert SECRET not in stored


def test_messages_that_nobody_told() -> None:
    """A channel without its timeline."""
    live, kept = strip(arrivals(BOTH))
    alone = [arrival for arrival in kept if not isinstance(arrival, LearnedTls)]
    events = decode(Session(), alone)
    assert facts(events) == []
    assert [event.records for event in of(events, TlsEnded)] == [e.records for e in of(live, TlsEnded)]


def test_messages_that_a_capture_invents() -> None:
    told: list[Arrival] = [Opened(0, 0, "", "")]
    told += [LearnedTls(0, 0, "fwd", n, TlsFacts(message="ClientHello")) for n in range(10_000)]
    events = decode(Session(), [*told, Chunk(0, 0, "fwd", FORWARD[:5], len(client()), "framed")])
    assert len(facts(events)) <= 1


def test_mutations() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        broken = bytearray(FORWARD[:700])
        for _ in range(chance.choice((1, 3, 30))):
            broken[chance.randrange(4, len(broken))] = chance.choice((0, 255, chance.randrange(256)))
        stream = Stream(((0, "fwd", bytes(broken)), (0, "rev", BACK)))
        events = play(stream)
        assert not [e for e in events if getattr(e, "code", "") == "decoder-bug"], seed
        live, kept = strip(arrivals(stream, pieces_of(chance.choice((1, 9, 100)))))
        assert live == events, seed
        assert decode(Session(), kept) == live, seed


# ---------------------------------------------------------------- real QEMUs

KEY = "qemu:" + "07" * 32 + "\n"


def through(folder: Path, migration: Migration, *options: str) -> tuple[dict[str, bytes], Proxy]:
    """Migrate through the proxy; returns what the source sent and was sent, by file, and the proxy."""
    with (
        Proxy(folder, migration.listen(), *options) as proxy,
        Recorder(folder / "before", proxy.where) as before,
    ):
        result = migration.run(f"tcp:{before.where}")
        assert (result.status, result.destination_runs) == ("completed", True)
        recorded = before.recorded()
        (judged,) = proxy.verdicts()
        assert (judged["ok"], judged["outcome"]) == (True, "opaque")
        assert proxy.stop() == 0
    return recorded, proxy


def endpoints(kind: str, more: str = "") -> dict[str, Any]:
    """Both sides' credentials, in the folder of each."""
    return {
        f"{side}_args": f"-object {kind},id=tls0,dir={{folder}},endpoint={end}{more}"
        for side, end in (("source", "client"), ("destination", "server"))
    }


def psk(version: str, more: str = "", **options: Any) -> Migration:
    """A migration whose two sides share a key."""
    params = {"tls-creds": "tls0", **options.pop("params", {})}
    sides = endpoints("tls-creds-psk", more)
    return Migration(
        version, mem=32, workload=8, params=params, files={"keys.psk": KEY.encode()}, **sides, **options
    )


def said(events: list[dict[str, Any]], direction: str = "fwd") -> list[dict[str, Any]]:
    return [
        event["facts"]
        for event in events
        if (event["type"], event["direction"]) == ("tls-message", direction)
    ]


@pytest.mark.parametrize(
    ("version", "priority", "spoken"),
    [("5.2", "", "1.3"), ("7.2", "", "1.3"), ("10.0", "", "1.3"), ("11.1", "", "1.3")]
    + [(version, ",priority=NORMAL:-VERS-ALL:+VERS-TLS1.2", "1.2") for version in ("7.2", "11.1")],
)
def test_a_shared_key(version: str, priority: str, spoken: str, tmp_path: Path) -> None:
    """It completes; version and records are shown; of what passed nothing is on the disk but headers."""
    require(version)
    with psk(version, priority) as migration:
        recorded, proxy = through(tmp_path, migration)
    ((client_said,), (server_said,)) = said(proxy.events), said(proxy.events, "rev")
    assert (client_said["message"], client_said["version"]) == ("ClientHello", spoken)
    assert (server_said["message"], server_said["version"], server_said["psk"]) == (
        "ServerHello",
        spoken,
        True,
    )
    ends = {event["direction"]: event for event in proxy.events if event["type"] == "tls-end"}
    assert ends["fwd"]["size"] == len(recorded["connection-0.fwd"])
    assert ends["fwd"]["payload"] == ends["fwd"]["size"] - 5 * ends["fwd"]["records"]
    kept = b"".join(path.read_bytes() for path in proxy.capture().iterdir())
    for sent in recorded.values():
        for at in range(5, len(sent) - 16, max(16, len(sent) // 300)):
            assert sent[at : at + 16] not in kept, at
    again = subprocess.run(
        [sys.executable, "-m", "migsniff", "read", "-T", "ndjson", str(proxy.capture())],
        capture_output=True, check=False,
    )  # fmt: skip
    assert [json.loads(line) for line in again.stdout.splitlines()] == proxy.events


def test_kept_verbatim(tmp_path: Path) -> None:
    require("7.2")
    with psk("7.2") as migration:
        recorded, proxy = through(tmp_path, migration, "--ram", "keep")
    assert (proxy.capture() / "tls-0.fwd").read_bytes() == recorded["connection-0.fwd"]
    assert (proxy.capture() / "tls-0.rev").read_bytes() == recorded["connection-0.rev"]


def test_multifd(tmp_path: Path) -> None:
    """All channels are encrypted; from machine types of 10.0 on multifd channels say that they end."""
    require("10.0")
    with psk("10.0", caps=["multifd", "return-path"], params={"multifd-channels": 2}) as migration:
        recorded, proxy = through(tmp_path, migration)
    assert len(recorded) == 6
    closed = [e["closed"] for e in proxy.events if (e["type"], e["direction"]) == ("tls-end", "fwd")]
    assert sorted(closed) == ["no close_notify", "probably close_notify", "probably close_notify"]
    assert len(said(proxy.events)) == len(said(proxy.events, "rev")) == 3


def test_certificates(tmp_path: Path) -> None:
    """X.509: QEMU sends no server name (crypto/tlssession.c, 7.2)."""
    require("7.2")
    files = certificates(tmp_path)
    with Migration(
        "7.2",
        mem=32,
        params={"tls-creds": "tls0", "tls-hostname": "dest.example"},
        files=files,
        **endpoints("tls-creds-x509", ",verify-peer=on"),
    ) as migration:
        _, proxy = through(tmp_path / "run", migration)
    (hello,) = said(proxy.events)
    assert (hello["message"], "psk" in hello) == ("ClientHello", False)
    assert "name" not in hello  # it compares the certificate with it, and does not send it


def certificates(folder: Path) -> dict[str, bytes]:
    """Names as QEMU wants them: a CA, and for each side a key and a certificate of it."""
    names = [("server", "DNS:dest.example", "serverAuth"), ("client", "DNS:source.example", "clientAuth")]
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9"]
    openssl(folder, *new, "-keyout", "ca.pem", "-out", "ca-cert.pem", "-subj", "/CN=ca")
    for name, alternative, use in names:
        extensions = ["-addext", f"subjectAltName={alternative}", "-addext", f"extendedKeyUsage={use}"]
        extensions += ["-addext", "basicConstraints=critical,CA:FALSE"]
        out = ["-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem", "-subj", f"/CN={name}"]
        openssl(folder, *new, "-CA", "ca-cert.pem", "-CAkey", "ca.pem", *extensions, *out)
    kept = ["ca-cert.pem", *(f"{name}-{what}.pem" for name, _, _ in names for what in ("key", "cert"))]
    return {name: (folder / name).read_bytes() for name in kept}


def openssl(folder: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
