"""The longest that a small message waits while a large section is decoded and shown on another connection.

Decides whether a log may look inside device state while it passes: forwarding must not wait for it. The
section is made to be as large as the largest that is shown (32768 fields), a third larger than any real one.
"""

import json
import random
import shutil
import statistics
import struct
from functools import partial
from pathlib import Path

from benchmarks.processes import finish, spawn
from benchmarks.relays import DECODING_OFF, NOTHING, Relay, Start, migsniff, nothing
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median
from tests import streams

SEGMENTS = 8190  # with four fields each
PINGS = (600, 0.005)  # round trips, and seconds between them
PAUSE = 1.0  # seconds between one section and the next

IMAGE = bytes(random.Random(1).choices(b"ab", k=1 << 14))  # as long as what a pattern is searched in
PATTERN = 'device.cpu.image matches "(a|b)*a(a|b){400}x"'  # slow in these
QUIETLY = ("--log", "--no-save", "--descriptions", "none")
SHOWN: dict[str, Start] = {
    NOTHING: nothing,
    DECODING_OFF: migsniff("--no-decode", "--no-save"),
    "a line each": migsniff(*QUIETLY),
    "-V": migsniff(*QUIETLY, "-V"),
    "-T ndjson": migsniff(*QUIETLY, "-T", "ndjson"),
    "-Y, a slow pattern": migsniff(*QUIETLY, "-Y", PATTERN),
}


def measure(work: Work) -> Table:
    """Round trips beside the same section in each way of showing it, in turn."""
    work.scratch.mkdir(parents=True, exist_ok=True)
    path = work.scratch / "section.stream"
    path.write_bytes(stream())

    def against(forward: int, folder: Path) -> Relay:
        return migsniff(*QUIETLY, "--check-against", str(path))(forward, folder)

    def once(start: Start) -> tuple[float, float]:
        folder = work.scratch / "relay"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        echo, told = spawn("echo")
        with start(told["port"], folder) as relay:
            beside = spawn("send-forever", relay.port, path, "--pause", PAUSE, told=False)[0]
            times = finish(spawn("ping", relay.port, *PINGS, told=False)[0])["times"]
            for process in (beside, echo):
                process.kill()
                process.communicate()
        return statistics.quantiles(times, n=100)[98] * 1e3, max(times) * 1e3

    ways = {**SHOWN, "--check-against": against}
    results = in_turn(work.rounds, {name: partial(once, start) for name, start in ways.items()})
    table = Table(
        f"Round trip of 64 bytes in milliseconds beside a section of {4 * SEGMENTS + 1} fields, "
        f"median of {work.rounds} runs",
        ["shown", "p99", "longest"],
    )
    for name, found in results.items():
        table.rows.append([name, *(median(each) for each in zip(*found, strict=True))])
        table.samples[name] = [longest for _, longest in found]
    return table


def stream() -> bytes:
    """A whole stream with the registers of a CPU that has far too many segments."""
    parts = [("selector", "uint32", 4), ("base", "uint64", 8), ("flags", "uint32", 4)]
    segment = [{"name": name, "type": kind, "size": size} for name, kind, size in parts]
    segments: dict[str, object] = {"name": "env.segs", "type": "struct", "size": 16, "array_len": SEGMENTS}
    segments["struct"] = {"vmsd_name": "segment", "version": 1, "fields": segment}
    fields = [{"name": "image", "type": "buffer", "size": len(IMAGE)}, segments]
    cpu = {"name": "cpu", "instance_id": 0, "vmsd_name": "cpu", "version": 1, "fields": fields}
    values = b"".join(struct.pack(">IQI", n, n << 32, n * 77) for n in range(SEGMENTS))
    return b"".join(
        [
            streams.HEADER,
            streams.configuration(),
            streams.ram_start(),
            streams.ram_end(),
            streams.full(5, b"cpu", IMAGE + values),
            streams.EOF,
            streams.description(json.dumps({"page_size": 4096, "devices": [cpu]}).encode()),
        ]
    )
