"""What a relay adds to the round trip of a small message, idle and beside a bulk stream.

Decides whether postcopy may go through migsniff: there a vCPU stands still for each page request, a message
of some 20 bytes on one connection, while the guest's memory moves over another. What is added is the round
trip through the relay less that without one, both the median and the 99th percentile.
"""

import shutil
import statistics
from functools import partial

from benchmarks.processes import finish, spawn
from benchmarks.relays import Start, installed
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median

IDLE = (500, 0.001)  # round trips, and seconds between them
BUSY = (300, 0.005)


def measure(work: Work) -> Table:
    """Round trips through each relay, in turn."""
    stream = work.small()

    def once(start: Start, busy: bool) -> tuple[float, float]:
        folder = work.scratch / "relay"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        echo, told = spawn("echo")
        with start(told["port"], folder) as relay:
            bulk = spawn("send-forever", relay.port, stream, told=False)[0] if busy else None
            times = finish(spawn("ping", relay.port, *(BUSY if busy else IDLE), told=False)[0])["times"]
            for process in (bulk, echo):
                if process:
                    process.kill()
                    process.communicate()
        quantiles = statistics.quantiles(times, n=100)
        return statistics.median(times) * 1e6, quantiles[98] * 1e6

    runs = {
        (name, busy): partial(once, start, busy)
        for busy in (False, True)
        for name, start in installed().items()
    }
    results = in_turn(work.rounds, runs)
    found = {run: [median(figures) for figures in zip(*each, strict=True)] for run, each in results.items()}
    table = Table(
        f"Round trip of 64 bytes in microseconds, median of {work.rounds} runs; +: added by the relay",
        ["relay", "idle p50", "+", "idle p99", "+", "busy p50", "+", "busy p99", "+"],
        notes=[
            "Busy: beside a recorded stream, sent again and again as fast as it goes, on another connection."
        ],
    )
    first = next(iter(installed()))
    for name in installed():
        cells = []
        for busy in (False, True):
            for i in (0, 1):
                value, without = found[name, busy][i], found[first, busy][i]
                cells += [value, value - without if name != first else None]
            table.samples[f"{name}, {'busy' if busy else 'idle'}"] = [p50 for p50, _ in results[name, busy]]
        table.rows.append([name, *cells])
    return table
