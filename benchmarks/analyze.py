"""`migsniff analyze` as a whole process against QEMU's scripts/analyze-migration.py, on recorded streams.

Decides whether who uses the script today has a reason to change: at least 2.5 times as fast on a stream of
0.7 GB, 3 times with `-x`, and 5 times per page record, which is what is left when the time that it takes to
start and to print is taken off (the difference of two streams of different size).
"""

import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.decoding import decode
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median

OWN = "migsniff analyze"
SCRIPT = "QEMU's script"


def measure(work: Work) -> Table:
    """Run both on two streams, in turn, with a warm cache."""
    streams = {"big": work.big(), "small": work.small()}
    records = {name: decode([path.read_bytes()]).records for name, path in streams.items()}
    programs = {OWN: [sys.executable, "-m", "migsniff", "analyze"]}
    if work.script:
        programs[SCRIPT] = [sys.executable, str(work.script.resolve())]
    runs = {
        (program, name, mode): partial(
            _seconds, [*command, "-f", str(path.resolve()), *mode.split()], work.scratch
        )
        for mode in ("", "-x")
        for name, path in streams.items()
        for program, command in programs.items()
    }
    results = in_turn(work.rounds, runs)
    found = {run: median(each) for run, each in results.items()}
    table = Table(
        f"Analyzing {streams['big'].stat().st_size / 1e9:.2f} GB, a whole process, median of {work.rounds}",
        ["program", "s", "times as fast", "s per million records", "times as fast"],
    )
    for mode in ("", "-x"):
        each_record = {
            program: (found[program, "big", mode] - found[program, "small", mode])
            / (records["big"] - records["small"])
            * 1e6
            for program in programs
        }
        for program in programs:
            whole, one = found[program, "big", mode], each_record[program]
            ratios = (
                [found[SCRIPT, "big", mode] / whole, each_record[SCRIPT] / one]
                if work.script
                else [None, None]
            )
            table.rows.append([f"{program} {mode}".strip(), whole, ratios[0], one, ratios[1]])
    table.samples = {" ".join(filter(None, run)): each for run, each in results.items()}
    if not work.script:
        table.notes.append("QEMU's script was not given (--script): nothing to compare with.")
    return table


def _seconds(command: list[str], scratch: Path) -> float:
    folder = scratch / "analyze"
    folder.mkdir(parents=True)
    try:
        with (folder / "printed").open("wb") as printed:
            began = time.perf_counter()
            subprocess.run(command, cwd=folder, stdout=printed, check=True)
            return time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
