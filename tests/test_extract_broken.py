"""Memory out of streams with random errors: never an exception, and the same however the bytes were cut."""

import os
import random
from pathlib import Path

import pytest

from migsniff.core.events import Event, Undecodable
from tests.catalogue import STREAMS
from tests.extracting import dumped, extracted, on_disk, show
from tests.mutating import broken
from tests.playing import pieces_of
from tests.test_extract_order import interleaved, sent

SEEDS = 100 if os.environ.get("MIGSNIFF_LONG_TESTS") else 2
CHANNELS = {
    f"multifd {method}": interleaved(
        sent(
            [[(page, page + fill, page % 3) for page in range(8)] for fill in range(4)], method, flushes=True
        ),
        1,
    )
    for method in (0, 2, 4)
}
ALL = {**STREAMS, **CHANNELS}


class Bugs:
    """A sink that takes note of what only a bug of ours can be."""

    def __init__(self) -> None:
        self.found: list[Event] = []

    def show(self, migration: str, time: int, event: Event) -> None:
        if isinstance(event, Undecodable) and event.code == "decoder-bug":
            self.found.append(event)

    def close(self) -> None:
        """Nothing is pending."""


@pytest.mark.parametrize("name", ALL)
def test_broken_streams(tmp_path: Path, name: str) -> None:
    for seed in range(SEEDS):
        chance = random.Random(f"{name} {seed}")
        stream = broken(ALL[name], chance)
        bugs = Bugs()
        show(stream, bugs)
        assert bugs.found == [], seed
        whole, cut, dump = (tmp_path / f"{kind}{seed}" for kind in ("whole", "cut", "dump"))
        first = extracted(stream, whole)
        second = extracted(stream, cut, pieces_of(chance.choice((100, 3000))))
        assert (first.names, first.problems) == (second.names, second.problems), seed
        assert on_disk(whole) == on_disk(cut), seed
        _, problems = dumped(stream, dump)
        assert problems == first.problems, seed
