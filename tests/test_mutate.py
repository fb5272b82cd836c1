"""Streams with random errors: only documented problems, in bounded memory and time, however they are cut."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from migsniff.core.errors import PROBLEMS
from migsniff.core.session import Session
from tests import rawsamples
from tests.catalogue import STREAMS
from tests.mutating import broken
from tests.playing import arrivals, decode, pieces_of, play, strip

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))


@pytest.mark.parametrize("name", STREAMS)
def test_small_streams(name: str) -> None:
    for seed in range(1000 if LONG else 30):
        stream = broken(STREAMS[name], random.Random(f"{name} {seed}"))
        events = play(stream, fields=True)
        codes = {event.code for event in events if hasattr(event, "code")}
        assert codes <= set(PROBLEMS) - {"decoder-bug", "hole"}, seed


@pytest.mark.parametrize("name", STREAMS)
def test_cut_and_stripped(name: str) -> None:
    """The same errors at the same places, also from what a stripped capture keeps of them."""
    for seed in range(60 if LONG else 6):
        chance = random.Random(f"{name} {seed}")
        stream = broken(STREAMS[name], chance)
        expected = play(stream)
        live, kept = strip(arrivals(stream, pieces_of(chance.choice((1, 2, 5, 30, 200)))))
        assert live == expected, seed
        assert decode(Session(), kept) == expected, seed


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
@pytest.mark.skipif(sys.platform != "linux", reason="the limits are set from /proc")
def test_real_streams() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutating", *(("40", "1") if LONG else ("1", "1"))],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
