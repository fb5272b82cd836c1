"""The log's way out: nothing blocks the writer, what is lost is counted, a reader that leaves is no error."""

import fcntl
import io
import json
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from migsniff.show.json import JsonLog
from migsniff.show.output import Output
from tests.synthetic import PRECOPY

PIPE = 4096  # bytes that the pipe of these tests holds
WAIT = 20


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


class Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, end: int) -> None:
        super().__init__(daemon=True)
        self._end = end
        self.data = b""
        self.start()

    def run(self) -> None:
        while data := os.read(self._end, 65536):
            self.data += data

    def text(self) -> str:
        self.join(WAIT)
        assert not self.is_alive()
        return self.data.decode()


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    for _ in range(WAIT * 100):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come about")


def write_all(output: Output, records: list[str]) -> None:
    for record in records:
        output.write(record)


def report(count: int) -> str:
    return f"dropped {count}\n"


@pytest.mark.parametrize("flush_each", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
def test_everything_arrives_in_order(pipe: tuple[int, int], flush_each: bool, blocking: bool) -> None:
    reader = Reader(pipe[0])
    output = Output(pipe[1], flush_each=flush_each, blocking=blocking, dropped=report)
    lines = [f"{number}\n" for number in range(10_000)]
    for line in lines:
        output.write(line)
    assert output.close(WAIT)
    os.close(pipe[1])
    assert reader.text() == "".join(lines)


def test_a_text_file_will_do() -> None:
    file = io.StringIO()
    output = Output(file)
    output.write("a\n")
    output.write_last("b\n")
    assert output.close(WAIT)
    assert file.getvalue() == "a\nb\n"


def test_each_record_is_flushed_at_once_when_asked(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], flush_each=True)
    output.write("first\n")
    assert os.read(pipe[0], 100) == b"first\n"
    output.write("second\n")
    assert os.read(pipe[0], 100) == b"second\n"
    assert output.close(WAIT)


def test_without_flushing_records_do_not_wait_for_others(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1])
    output.write("first\n")
    assert os.read(pipe[0], 100) == b"first\n"
    assert output.close(WAIT)


def test_a_reader_that_reads_nothing_blocks_nobody_and_what_is_lost_is_counted(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], limit=10_000, dropped=report)
    lines = [f"{number:099}\n" for number in range(10_000)]
    for line in lines:
        output.write(line)  # 1 MB into a pipe of 4 KiB that nobody reads
    reader = Reader(pipe[0])
    assert output.close(WAIT)
    os.close(pipe[1])
    records = reader.text().splitlines(keepends=True)
    lost = [record for record in records if record.startswith("dropped ")]
    kept = [record for record in records if not record.startswith("dropped ")]
    assert lost
    assert sum(int(record.split()[1]) for record in lost) + len(kept) == len(lines)
    assert kept == [line for line in lines if line in set(kept)], "whole records, in order"


def test_the_count_stands_where_the_records_are_missing(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], limit=100, flush_each=True, dropped=report)
    output.write("x" * 2 * PIPE + "\n")  # the thread hangs in this one
    until(lambda: output.waiting == 0)
    output.write("kept\n")
    output.write("k" * 200 + "\n")  # what is longer than the limit is no less worth than two that fit
    for _ in range(3):
        output.write("y\n")
    reader = Reader(pipe[0])
    until(lambda: b"dropped" in reader.data)
    output.write("later\n")
    assert output.close(WAIT)
    os.close(pipe[1])
    assert reader.text().splitlines()[1:] == ["kept", "k" * 200, "dropped 3", "later"]


def test_blocking_waits_instead(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], limit=1_000, blocking=True, dropped=report)
    lines = [f"{number:099}\n" for number in range(2_000)]
    writer = threading.Thread(target=write_all, args=(output, lines), daemon=True)
    writer.start()
    until(lambda: output.waiting > 900)
    assert writer.is_alive()
    reader = Reader(pipe[0])
    writer.join(WAIT)
    assert output.close(WAIT)
    os.close(pipe[1])
    assert reader.text() == "".join(lines)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_closed_pipe_ends_the_log_silently(pipe: tuple[int, int], blocking: bool) -> None:
    output = Output(pipe[1], limit=1_000, blocking=blocking, dropped=report)
    os.close(pipe[0])
    for _ in range(100):
        output.write("x" * 99 + "\n")
    until(lambda: output.closed)
    output.write("ignored\n")
    assert output.error is None
    assert not output.close(WAIT)


def test_a_reader_that_leaves_releases_a_blocked_writer(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], limit=1_000, blocking=True)
    writer = threading.Thread(target=write_all, args=(output, ["x" * 99 + "\n"] * 2_000), daemon=True)
    writer.start()
    until(lambda: output.waiting > 900)
    os.close(pipe[0])
    writer.join(WAIT)
    assert not writer.is_alive()
    assert output.closed


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_ends_the_log_and_is_told() -> None:
    target = os.open("/dev/full", os.O_WRONLY)
    output = Output(target)
    output.write("x\n")
    until(lambda: output.closed)
    assert output.error is not None
    assert output.error.errno == 28
    os.close(target)


def test_close_does_not_wait_for_ever(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1])
    output.write("x" * 10 * PIPE)
    assert not output.close(0.05)
    os.close(pipe[0])
    output.close(WAIT)  # the thread lets go of the descriptor


def test_a_non_blocking_descriptor_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    output = Output(pipe[1])
    output.write("x" * 10 * PIPE)
    reader = Reader(pipe[0])
    assert output.close(WAIT)
    os.close(pipe[1])
    assert len(reader.text()) == 10 * PIPE


def test_nothing_is_taken_after_close(pipe: tuple[int, int]) -> None:
    reader = Reader(pipe[0])
    output = Output(pipe[1])
    output.write("a")
    assert output.close(WAIT)
    output.write("b")
    os.close(pipe[1])
    assert reader.text() == "a"


def test_an_array_stays_valid_json_when_records_are_dropped(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], limit=2_000)
    log = JsonLog(output.write, array=True, write_last=output.write_last)
    output.dropped = log.dropped
    for _ in range(200):
        for time, event in PRECOPY:
            log.show("m1", time, event)
    log.close()
    reader = Reader(pipe[0])
    assert output.close(WAIT)
    os.close(pipe[1])
    records = json.loads(reader.text())
    lost = sum(record["count"] for record in records if record["type"] == "dropped")
    kept = sum(record["type"] != "dropped" for record in records)
    assert lost > 0
    assert lost + kept == 200 * len(PRECOPY)
