"""How much memory the proxy takes, by the length of the stream.

Decides whether a guest of any size can be migrated through it: the peak of its anonymous memory has to stay
under 150 MB and to be the same for 10 GB as for 1 GB, but for one byte of state a guest page (2.4 MB for
10 GB). Decoding and saving stripped; the peak is of samples taken every 10 ms.
"""

import shutil
import time

from benchmarks.processes import finish, spawn
from benchmarks.relays import OWN, STRIPPED
from benchmarks.table import Table
from benchmarks.work import Work

SIZES = (10**9, 10 * 10**9)


def measure(work: Work) -> Table:
    """Send a long and a very long stream."""
    table = Table(
        "Peak anonymous memory of the proxy", ["stream, GB", "MB at start", "MB at most", "times 1 GB's"]
    )
    peaks: list[float] = []
    for size in SIZES:
        start, peak = _peak(work, size)
        peaks.append(peak)
        table.rows.append([size // 10**9, start / 1e6, peak / 1e6, peak / peaks[0]])
    return table


def _peak(work: Work, size: int) -> tuple[int, int]:
    folder = work.scratch / "relay"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    receiver, told = spawn("receive")
    with OWN[STRIPPED](told["port"], folder) as relay:
        start = peak = relay.anonymous_memory()
        sender, _ = spawn("send-long", relay.port, size, told=False)
        while receiver.poll() is None:
            peak = max(peak, relay.anonymous_memory())
            time.sleep(0.01)
        finish(sender)
        peak = max(peak, relay.anonymous_memory())
    if finish(receiver)["bytes"] < size:
        raise RuntimeError("the stream did not arrive whole")
    return start, peak
