"""A real migration of a stopped guest of 1 GB, through migsniff and without it.

Decides whether an operator may leave migsniff in the path: QEMU itself is what limits a migration, and with a
relay that keeps up the total time must not grow by more than a twentieth. The guest is stopped so that both
ways the same is sent.
"""

import shutil
from functools import partial

from benchmarks.relays import NOTHING, OWN, STRIPPED, Start, nothing
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median
from tests.qemu import SYSTEM, Migration, require


def measure(work: Work) -> Table:
    """Total time as QEMU tells it, in turn."""
    require(SYSTEM)

    def once(start: Start) -> tuple[float, float]:
        folder = work.scratch / "relay"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with Migration(SYSTEM, mem=1024, workload=960) as migration:
            migration.source.execute("stop")
            port = int(migration.listen().rpartition(":")[2])
            with start(port, folder) as relay:
                result = migration.run(f"tcp:127.0.0.1:{relay.port}")
        if result.status != "completed":
            raise RuntimeError(f"the migration {result.status}: {result.source}")
        return result.source["total-time"], result.ram["transferred"]

    relays: dict[str, Start] = {NOTHING: nothing, STRIPPED: OWN[STRIPPED]}
    results = in_turn(work.rounds, {name: partial(once, start) for name, start in relays.items()})
    table = Table(
        f"Migrating a stopped 1 GB guest, QEMU {SYSTEM}, median of {work.rounds}",
        ["through", "total time, ms", "times that of no relay", "MB sent"],
    )
    without = median(total for total, _ in results[NOTHING])
    for name, each in results.items():
        total = median(total for total, _ in each)
        table.rows.append([name, total, total / without, int(each[0][1] / 1e6)])
        table.samples[name] = [total for total, _ in each]
    return table
