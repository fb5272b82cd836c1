"""Commands and return path messages: what their payloads say."""

import struct

import pytest

from migsniff.core.errors import StreamProblem
from migsniff.core.events import CommandSent, Finding, Undecodable
from migsniff.core.messages import COMMANDS, RETURN_PATH, resumed_command
from migsniff.core.wire import Command, ReturnPathType
from tests.catalogue import SMALL_HEAD
from tests.playing import of, play, precopy
from tests.streams import EOF, command

RANGES = struct.pack(">4Q", 0, 4096, 1 << 40, 8192)

PAYLOADS = [
    (COMMANDS, Command.OPEN_RETURN_PATH, b"", {}),
    (COMMANDS, Command.PING, b"\0\0\0\x42", {"value": 66}),
    (COMMANDS, Command.POSTCOPY_ADVISE, b"", {}),
    (
        COMMANDS,
        Command.POSTCOPY_ADVISE,
        struct.pack(">QQ", 0x201000, 4096),
        {"block_page_sizes": 0x201000, "page_size": 4096},
    ),
    (COMMANDS, Command.POSTCOPY_ADVISE, bytes(15), "command-length"),
    (COMMANDS, Command.POSTCOPY_LISTEN, b"", {}),
    (COMMANDS, Command.POSTCOPY_RUN, b"", {}),
    (
        COMMANDS,
        Command.POSTCOPY_RAM_DISCARD,
        b"\0\3ram\0" + RANGES,
        {"block": "ram", "ranges": ((0, 4096), (1 << 40, 8192))},
    ),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\0\3ram\0", {"block": "ram", "ranges": ()}),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\0\3ra\x1b\0", {"block": "ra\\x1b", "ranges": ()}),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\1\3ram\0", "payload-short"),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\0\3ram", "payload-short"),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\0\xffram", "payload-short"),
    (COMMANDS, Command.POSTCOPY_RAM_DISCARD, b"\0\3ram\0" + RANGES[:-1], "payload-short"),
    (COMMANDS, Command.PACKAGED, b"\xff\xff\xff\xff", {"length": (1 << 32) - 1}),
    (COMMANDS, Command.ENABLE_COLO, b"", {}),
    (COMMANDS, Command.POSTCOPY_RESUME, b"", {}),
    (COMMANDS, Command.RECV_BITMAP, b"\6pc.ram", {"block": "pc.ram"}),
    (COMMANDS, Command.RECV_BITMAP, b"\7pc.ram", "payload-short"),
    (COMMANDS, Command.SWITCHOVER_START, b"", {}),
    (RETURN_PATH, ReturnPathType.SHUT, b"\0\0\0\1", {"value": 1}),
    (RETURN_PATH, ReturnPathType.PONG, b"\0\0\0\2", {"value": 2}),
    (
        RETURN_PATH,
        ReturnPathType.REQ_PAGES,
        struct.pack(">QI", 1 << 40, 4096),
        {"start": 1 << 40, "length": 4096},
    ),
    (
        RETURN_PATH,
        ReturnPathType.REQ_PAGES_ID,
        struct.pack(">QI", 4096, 8192) + b"\3ram",
        {"block": "ram", "start": 4096, "length": 8192},
    ),
    (RETURN_PATH, ReturnPathType.REQ_PAGES_ID, struct.pack(">QI", 0, 1) + b"\4ram", "payload-short"),
    (RETURN_PATH, ReturnPathType.RECV_BITMAP, b"\3ram", {"block": "ram"}),
    (RETURN_PATH, ReturnPathType.RESUME_ACK, b"\0\0\0\1", {"value": 1}),
    (RETURN_PATH, ReturnPathType.SWITCHOVER_ACK, b"", {}),
]


@pytest.mark.parametrize(("registry", "number", "payload", "expected"), PAYLOADS)
def test_payloads(registry: object, number: int, payload: bytes, expected: object) -> None:
    entry = registry.get(number)  # type: ignore[attr-defined]
    assert entry.name == Command(number).name if registry is COMMANDS else ReturnPathType(number).name
    assert entry.least <= len(payload) <= entry.most
    if isinstance(expected, str):
        with pytest.raises(StreamProblem) as raised:
            entry.arguments(payload)
        assert raised.value.code == expected
    else:
        assert entry.arguments(payload) == expected


def test_all_are_known() -> None:
    assert set(COMMANDS) == set(Command)
    assert set(RETURN_PATH) == set(ReturnPathType)


@pytest.mark.parametrize("number", Command)
def test_lengths(number: Command) -> None:
    """One byte less or more than a command can have is an error with the command's place."""
    entry = COMMANDS.get(number)
    assert entry is not None
    for length in {entry.least - 1, entry.most + 1} - {-1, 0x10000}:
        events = play(precopy(SMALL_HEAD, command(number, bytes(length)), EOF))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.where) == ("command-length", f"command {number.name}")
        assert (problem.offset, problem.size) == (len(SMALL_HEAD), 5)
        assert str(length) in problem.message


@pytest.mark.parametrize("number", [0, 12, 0xFFFF])
@pytest.mark.parametrize("payload", [b"", b"x", bytes(0xFFFF)])
def test_unknown_commands_are_skipped(number: int, payload: bytes) -> None:
    events = play(precopy(SMALL_HEAD, command(number, payload), command(Command.PING, b"\0\0\0\7"), EOF))
    (finding,) = of(events, Finding)
    assert (finding.code, finding.message) == ("command", f"unknown command {number}")
    assert (finding.offset, finding.size) == (len(SMALL_HEAD), 5 + len(payload))
    assert [event.arguments for event in of(events, CommandSent)] == [{"value": 7}]


@pytest.mark.parametrize(
    ("number", "length", "expected"),
    [
        (Command.RECV_BITMAP, 4, Command.RECV_BITMAP),
        (Command.POSTCOPY_RESUME, 0, Command.POSTCOPY_RESUME),
        (Command.POSTCOPY_RESUME, 4, Command.RECV_BITMAP),
        (Command.ENABLE_COLO, 0, Command.POSTCOPY_RESUME),
        (Command.PING, 4, Command.PING),
    ],
)
def test_commands_of_a_recovery_before_3_1(number: int, length: int, expected: int) -> None:
    assert resumed_command(number, length) == expected
