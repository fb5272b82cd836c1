"""The command line: which command runs, what it exits with, and that nobody ever sees a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import migsniff
from migsniff import cli, offline
from migsniff.cli import main
from tests import streams

SAMPLES = Path(__file__).parent.parent / "captures" / "samples"
DRAINING = ("--listen", "0", "--forward", "127.0.0.1:1", "--drain-after-failure")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 0, "COMMAND"),
        (["--help"], 0, "proxy"),
        (["--version"], 0, f"migsniff {migsniff.__version__}"),
        (["read", "--help"], 0, "-T"),
        (["read"], 2, "required"),
        (["read", "--no-such-option", "x"], 2, "no-such-option"),
        (["no-such-command"], 2, "no-such-command"),
        (["--listen", "0"], 2, "--forward"),
        (["read", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["-r", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["-r/no/such/file"], 1, "/no/such/file: No such file"),
        (["-V", "-r", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["info", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["analyze", "-f", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["analyze"], 2, "--file"),
        (["read", "-a", "size:0", "x"], 2, "size:0"),
        (["read", "-a", "packets:3", "x"], 2, "packets:3"),
        (["read", "-c", "-1", "x"], 2, "-1"),
        *(([*DRAINING, each], 2, f"'{each}' is no number of seconds") for each in ("0", "nan", "3601", "x")),
        ([*DRAINING, "5", "--no-decode"], 2, "--no-decode"),
    ],
)
def test_exit_codes_and_messages(
    arguments: list[str], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    out, err = capfd.readouterr()
    assert says in out + err
    assert "Traceback" not in err


def test_a_file_that_is_no_stream_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content, looks_like in (
        (b"\x7fELF\x02\x01\x01" + bytes(100), "ELF"),
        (b"QFI\xfb\0\0\0\3" + bytes(100), "qcow2"),
        (b"LibvirtQemudSave" + bytes(100), "libvirt"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"", "nothing was sent"),
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        code = main(["read", str(path)])
        out, err = capfd.readouterr()
        assert looks_like in (out + err).splitlines()[-1]
        assert code == 1  # of TLS, because its record is cut off


def test_a_stream_may_be_fine_or_bad(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = b"".join([streams.HEADER, streams.configuration(), streams.ram_start(), streams.ram_end()])
    whole += streams.states() + b"\0" + streams.described()
    path = tmp_path / "dump"
    for data, code in ((whole, 0), (whole[:-1], 1), (whole[:50], 1), (whole.replace(b"\x7e", b"\x7d"), 1)):
        path.write_bytes(data)
        assert main(["read", str(path)]) == code
        assert main(["info", str(path)]) == code
    assert "Verdict:" in capfd.readouterr().out


def test_a_bug_of_ours_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(offline, "read", broken)
    assert main(["read", "x"]) == cli.BUG
    assert "a bug, please report it: ZeroDivisionError: of ours" in capfd.readouterr().err


SAMPLE = str(SAMPLES / "x86-72-pc")
CLOSED_COMMANDS: dict[str, list[str]] = {
    "read": ["read", SAMPLE, "-V"],
    "info": ["info", SAMPLE],
    "expert": ["expert", SAMPLE],
    "check": ["check", SAMPLE, "--against", SAMPLE],
    "diff": ["diff", SAMPLE, SAMPLE],
    "export": ["export", "--pcapng", "-", SAMPLE],
    "analyze": ["analyze", "-f", SAMPLE],
    "descriptions": ["descriptions", "list"],
    "fields": ["fields"],
    "help": ["--help"],
    "usage": ["read"],
}


@pytest.mark.skipif(not (SAMPLES / "x86-72-pc").exists(), reason="no samples in this checkout")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", CLOSED_COMMANDS)
def test_standard_streams_that_are_closed(command: str, closed: str, tmp_path: Path) -> None:
    """As if they were /dev/null: the same exit code, and no traceback."""
    arguments = [sys.executable, "-m", "migsniff", *CLOSED_COMMANDS[command]]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert b"Traceback" not in done.stderr
    assert b"a bug" not in done.stderr
    assert done.returncode == (2 if command == "usage" else 0)


@pytest.mark.skipif(not (SAMPLES / "x86-72-pc").exists(), reason="no samples in this checkout")
def test_a_reader_that_leaves_ends_quietly() -> None:
    command = [sys.executable, "-m", "migsniff", "read", str(SAMPLES / "x86-72-pc"), "-V"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", ["read", "info"])
def test_output_that_cannot_be_written(command: str, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(streams.HEADER)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "migsniff", command, str(tmp_path / "dump")],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode in (1, 2)
    assert b"No space left on device" in done.stderr
    assert b"bug" not in done.stderr


def test_importing_migsniff_is_light() -> None:
    """Reading loads neither asyncio nor the terminal library nor an event loop."""
    code = (
        "import sys, migsniff; assert not {'numpy', 'msgspec', 'asyncio'} & set(sys.modules)\n"
        "import migsniff.offline; assert not {'asyncio', 'uvloop', 'rich', 'scapy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
