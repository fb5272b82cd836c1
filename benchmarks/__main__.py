"""Measures migsniff on this machine and prints the tables: `python -m benchmarks`.

Everything is a ratio of what ran in turn within this one run: the figures of two machines, or of two days,
are not to be compared. The figures themselves go to benchmarks/results/ as JSON.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.work import Work

BENCHMARKS = (
    "forwarding",
    "channels",
    "latency",
    "stalls",
    "decoding",
    "expert",
    "contents",
    "analyze",
    "migration",
    "memory",
)


def machine() -> dict[str, object]:
    """What ran it."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def main() -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "migsniff-benchmarks"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help=f"which: {', '.join(BENCHMARKS)} (all)", metavar="WHICH")
    parser.add_argument("--rounds", type=int, default=5, help="how often each competitor has its turn (5)")
    parser.add_argument(
        "--work", type=Path, default=cache, help=f"where the recorded streams are kept ({cache})"
    )
    parser.add_argument("--stream", type=Path, help="a recorded stream to use instead of making one")
    parser.add_argument("--script", type=Path, help="QEMU's scripts/analyze-migration.py, to compare with")
    given = parser.parse_args()
    if unknown := set(given.only) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    work = Work(given.work, given.rounds, given.script, given.stream)
    ran = machine()
    results: dict[str, object] = {"machine": ran}
    print(" · ".join(f"{name} {value}" for name, value in ran.items()) + "\n")
    try:
        for name in given.only or BENCHMARKS:
            table = import_module(f"benchmarks.{name}").measure(work)
            results[name] = asdict(table)
            print(table.markdown(), flush=True)
    finally:
        shutil.rmtree(work.scratch, ignore_errors=True)
    kept = Path(__file__).parent / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(results, indent=1))
    print(f"figures: {kept}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
