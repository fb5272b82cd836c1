"""Forwarding a recorded stream over loopback: how much the relay costs, and each thing it does beside.

Decides whether migsniff may stand in the path of a production migration: with decoding and stripped saving on
it has to be at least as fast as HAProxy, to keep 0.75 of its own speed without decoding (0.9 on four cores),
and to take at most 0.25 CPU seconds per GB for decoding and saving together.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.processes import finish, spawn
from benchmarks.relays import DECODING_OFF, HAPROXY, NOTHING, OWN, Start, installed
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median


@dataclass
class Pass:
    """One stream sent once: GB/s between the ends, and the relay's CPU seconds per GB."""

    rate: float
    cpu: float | None


def measure(work: Work) -> Table:
    """Throughput and CPU time of each relay, in turn, for one connection."""
    return compare(work, [work.big()], "")


def compare(work: Work, streams: Sequence[Path], how: str) -> Table:
    """Throughput and CPU time of each relay, in turn, each stream on a connection of its own."""
    size = sum(stream.stat().st_size for stream in streams)

    def once(start: Start) -> Pass:
        folder = work.scratch / "relay"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        receiver, told = spawn("receive", len(streams))
        with start(told["port"], folder) as relay:
            began = finish(spawn("send", relay.port, *streams, told=False)[0])["began"]
            received = finish(receiver)
        if received["bytes"] != size:
            raise RuntimeError(f"the relay lost bytes: {received['bytes']} of {size} arrived")
        cpu = relay.cpu / size * 1e9 if relay.cpu is not None else None
        return Pass(size / 1e9 / (received["ended"] - began), cpu)

    passes = in_turn(work.rounds, {name: partial(once, start) for name, start in installed().items()})
    rates = {name: median(one.rate for one in results) for name, results in passes.items()}
    table = Table(
        f"Forwarding {size / 1e9:.2f} GB over loopback{how}, median of {work.rounds}",
        [
            "relay",
            "GB/s",
            "of no relay",
            "of HAProxy",
            "of decoding off",
            "CPU s/GB",
            "more than decoding off",
        ],
    )
    off = _cpu(passes.get(DECODING_OFF, []))
    for name, results in passes.items():
        rate, cpu = rates[name], _cpu(results)
        of = [rate / rates[other] if other in rates else None for other in (NOTHING, HAPROXY, DECODING_OFF)]
        more = cpu - off if cpu is not None and off is not None and name in OWN else None
        table.rows.append([name, rate, *of, cpu, more])
        table.samples[name] = [one.rate for one in results]
    return table


def _cpu(results: list[Pass]) -> float | None:
    known = [one.cpu for one in results if one.cpu is not None]
    return median(known) if known else None
