"""Pages of several channels into one memory: whatever order they come in, the last page sent stands."""

import random
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.wire import MultifdFlag
from tests.catalogue import SMALL, SMALL_HEAD
from tests.extracting import extracted, on_disk
from tests.playing import Stream
from tests.streams import EOF, FLUSH, filled, hello, multifd_packet, ram_end, ram_part, ram_start, zero

CHANNELS = 3
PAGES = 8
Sent = tuple[int, int, int]
"""Page number, the byte that fills it, the channel that it goes over."""


class Sender:
    """One channel's bytes. `method` is that of multifd-compression, by its bits."""

    def __init__(self, number: int, method: int) -> None:
        self.method = method
        self.bytes = hello(number)
        self._zlib = zlib.compressobj(1)
        self._zstd = zstandard.ZstdCompressor(level=1).compressobj()

    def send(self, normal: list[Sent], empty: list[Sent]) -> None:
        pages = b"".join(filled(SMALL, fill) for _, fill, _ in normal)
        if pages and self.method == 2:
            pages = self._zlib.compress(pages) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        elif pages and self.method == 4:
            pages = self._zstd.compress(pages) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        self._packet(
            flags=self.method,
            normal=len(normal),
            zero=len(empty),
            addresses=[page * SMALL for page, _, _ in (*normal, *empty)],
            data=pages,
        )

    def sync(self) -> None:
        self._packet(flags=int(MultifdFlag.SYNC) | self.method)

    def _packet(self, **fields: object) -> None:
        self.bytes += multifd_packet(0, b"ram", page_size=SMALL, **fields)  # type: ignore[arg-type]


def sent(rounds: list[list[Sent]], method: int, *, flushes: bool) -> list[bytes]:
    """The bytes of the main channel and of all others. Without `flushes` as machine types up to 8.0 do."""
    senders = [Sender(number, method) for number in range(CHANNELS)]
    flush = [FLUSH] if flushes else []
    main = SMALL_HEAD + ram_start({b"ram": PAGES * SMALL}, *flush)
    for pages in ([], *rounds):
        for number, sender in enumerate(senders):
            own = [one for one in pages if one[2] == number]
            normal = [one for one in own if one[1]]
            for cut in range(0, len(normal), 2):
                sender.send(normal[cut : cut + 2], [])
            if flushes and (empty := [one for one in own if not one[1]]):
                sender.send([], empty)
            sender.sync()
    for pages in rounds:
        ours = [] if flushes else sorted(page for page, fill, _ in pages if not fill)
        main += ram_part(*(zero(page * SMALL, b"ram") for page in ours), *flush)
    return [main + ram_end() + EOF, *(sender.bytes for sender in senders)]


def interleaved(connections: list[bytes], seed: int) -> Stream:
    """The bytes of the connections in pieces, in any order."""
    dice, at = random.Random(seed), [0] * len(connections)
    pieces = []
    while left := [number for number, data in enumerate(connections) if at[number] < len(data)]:
        number = dice.choice(left)
        size = dice.choice([50, 3000, 20_000, 200_000])
        pieces.append((number, "fwd", connections[number][at[number] : at[number] + size]))
        at[number] += size
    return Stream(tuple(pieces))  # type: ignore[arg-type]


any_round = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(0, 5), st.integers(0, CHANNELS - 1)),
    max_size=6,
    unique_by=lambda one: one[0],
)


@pytest.mark.parametrize("flushes", [True, False], ids=["flushes", "sections"])
@pytest.mark.parametrize("method", [0, 2, 4], ids=["none", "zlib", "zstd"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rounds=st.lists(any_round, max_size=6), seed=st.integers(0, 1 << 32))
def test_the_last_page_sent_stands(
    tmp_path_factory: pytest.TempPathFactory, method: int, flushes: bool, rounds: list[list[Sent]], seed: int
) -> None:
    path: Path = tmp_path_factory.mktemp("order")
    files = extracted(interleaved(sent(rounds, method, flushes=flushes), seed), path)
    memory = bytearray(PAGES * SMALL)
    for pages in rounds:
        for page, fill, _ in pages:
            memory[page * SMALL : (page + 1) * SMALL] = filled(SMALL, fill)
    assert files.problems == []
    assert on_disk(path) == {"ram": bytes(memory)}
