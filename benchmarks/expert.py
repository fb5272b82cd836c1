"""What the rules cost: decoding with and without them, in turn.

Decides whether findings may be looked for while a migration runs. To reach: no more than 5 % of decoding
speed on any stream; nearly empty sections are the hardest, for each is an event that rules look at.
"""

import time
from collections.abc import Sequence
from functools import partial

from benchmarks import synthetic
from benchmarks.decoding import stream_arrivals
from benchmarks.table import Table
from benchmarks.work import Work, in_turn
from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.expert import rules
from migsniff.expert import themes as themes  # registers the rules
from migsniff.pipeline import Pipeline
from tests.streams import EOF, HEADER, configuration, full


class Nothing:
    """A sink that shows nothing."""

    def show(self, migration: str, time: int, event: Event) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is pending."""


def decode(stream: Sequence[bytes], registered: list[type[rules.Rule]]) -> float:
    """Seconds that decoding takes with these rules, times included as a live one has them."""
    kept, rules.RULES[:] = rules.RULES[:], registered
    try:
        pipeline = Pipeline("benchmark", Session(), [Nothing()])
        began = time.perf_counter()
        for arrival in stream_arrivals(stream):
            for _ in pipeline.feed(arrival):
                pass
        for _ in pipeline.finish():
            pass
        return time.perf_counter() - began
    finally:
        rules.RULES[:] = kept


def _devices(count: int) -> bytes:
    """A stream with so many devices, which no guest has."""
    return (
        HEADER + configuration() + b"".join(full(n, f"device{n}".encode(), b"x") for n in range(count)) + EOF
    )


def measure(work: Work) -> Table:
    """Each stream with all rules and with none, in turn."""
    streams = {
        "recorded, precopy": [work.big().read_bytes()],
        "recorded, XBZRLE": [work.xbzrle().read_bytes()],
        "recorded, multifd, 8 channels": [path.read_bytes() for path in work.multifd()],
        "single zero between single normal pages": [synthetic.alternating(200_000)],
        "nearly empty sections": [synthetic.nearly_empty(200_000)],
        "devices of a byte": [_devices(30_000)],
    }
    all_of_them = list(rules.RULES)
    table = Table(
        f"What the rules cost, the best of {work.rounds}",
        ["stream", "MB", "s without", "s with", "% more"],
    )
    for name, stream in streams.items():
        results = in_turn(
            work.rounds,
            {"without": partial(decode, stream, []), "with": partial(decode, stream, all_of_them)},
        )
        # a tenth of a second each: what else runs on the machine only ever adds
        without, with_rules = min(results["without"]), min(results["with"])
        size = sum(map(len, stream)) // 10**6
        table.rows.append([name, size, without, with_rules, (with_rules / without - 1) * 100])
        table.samples[f"{name}, without"] = list(results["without"])
        table.samples[f"{name}, with"] = list(results["with"])
    return table
