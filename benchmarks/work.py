"""What every benchmark is given: where to work, how often, and the streams, real ones made once and kept."""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from tests.qemu import ENDED, SYSTEM, Migration
from tests.relays import Recorder

N = TypeVar("N", bound=Hashable)
T = TypeVar("T")

BIG: Final = {"workload": 4000, "mem": 6144}  # MiB that are dirtied, and of guest memory


@dataclass
class Work:
    """`folder` is kept from run to run; `rounds` is how often each competitor has its turn."""

    folder: Path
    rounds: int = 5
    script: Path | None = None
    stream: Path | None = None
    python: str = sys.executable
    scratch: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / f"run-{os.getpid()}"

    def big(self) -> Path:
        """A real precopy stream of some 2.5 GB: a guest that keeps dirtying 4000 MiB.

        In a smaller one what a migration costs once, its descriptions most of all, counts as if each GB did.
        """
        return self.stream or self._made("big", **BIG, params={"downtime-limit": 5000})

    def small(self) -> Path:
        """The same of a guest twelve times smaller, for what a page costs without what starting up costs."""
        return self._made("small", workload=300, mem=512, params={"downtime-limit": 5000})

    def xbzrle(self) -> Path:
        """A real stream of millions of XBZRLE records of a few bytes each."""
        params = {"max-bandwidth": 60_000_000, "downtime-limit": 1}
        return self._made("xbzrle", workload=96, mem=128, caps=["xbzrle"], params=params, enough=130_000_000)

    def multifd(self, compression: str = "none") -> list[Path]:
        """The same big guest over 8 multifd channels: the stream of each connection, in order of accept."""
        folder = self.folder / f"multifd-{compression}-{SYSTEM}"
        if not folder.exists():
            print(f"recording {folder} ...", file=sys.stderr)
            params = {"downtime-limit": 5000, "multifd-channels": 8, "multifd-compression": compression}
            guest = {**BIG, "caps": ["multifd"], "params": params}
            unfinished = folder.with_suffix(".new")
            self._record(unfinished, 0, guest)
            unfinished.rename(folder)
        return sorted(folder.glob("*.fwd"), key=lambda path: int(path.stem.rpartition("-")[2]))

    def _made(self, name: str, *, enough: int = 0, **guest: object) -> Path:
        path = self.folder / f"{name}-{SYSTEM}.stream"
        if not path.exists():
            print(f"recording {path} ...", file=sys.stderr)
            recorded = self.scratch / name
            self._record(recorded, enough, guest)
            (recorded / "connection-0.fwd").rename(path)
        return path

    def _record(self, folder: Path, enough: int, guest: dict[str, object]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with Migration(SYSTEM, **guest) as migration, Recorder(folder, migration.listen()) as recorder:  # type: ignore[arg-type]
            migration.start(f"tcp:{recorder.where}")
            if enough:  # it does not end by itself: until then it goes over its memory again and again
                while (now := migration.source.execute("query-migrate"))["status"] not in ENDED:
                    if now.get("ram", {}).get("transferred", 0) > enough:
                        break
                    time.sleep(0.05)
                migration.source.execute("migrate-set-parameters", **{"downtime-limit": 100_000})
            migration.wait(300)
            recorder.recorded()


def in_turn(rounds: int, competitors: Mapping[N, Callable[[], T]]) -> dict[N, list[T]]:
    """Run each competitor `rounds` times, taking turns, so that what else the machine does hits all."""
    results: dict[N, list[T]] = {name: [] for name in competitors}
    for number in range(rounds):
        for name, run in competitors.items():
            print(f"  round {number + 1}/{rounds}: {name}", file=sys.stderr)
            results[name].append(run())
    return results


def median(values: Iterable[float]) -> float:
    return statistics.median(values)
