"""What is shown of postcopy that was broken off and went on."""

from itertools import chain

from migsniff.core.session import Session
from migsniff.show.info import info_lines
from migsniff.show.infojson import info_dict
from migsniff.show.migration import MigrationStats
from tests.catalogue import STREAMS
from tests.playing import Stream, arrivals


def test_phases() -> None:
    session, stats = Session(), MigrationStats("m")
    phases: list[str] = []
    stream = STREAMS["resumed"]
    cut = next(number for number, piece in enumerate(stream.pieces) if piece[0] == 1)
    first, second = Stream(stream.pieces[:cut]), Stream(stream.pieces[cut:])
    for arrival in chain(arrivals(first), arrivals(second)):
        for event in session.feed(arrival):
            stats.update(5, event)
            if stats.phase.startswith("postcopy") and [stats.phase] != phases[-1:]:
                phases.append(stats.phase)
    for event in session.finish():
        stats.update(5, event)
    assert phases == ["postcopy", "postcopy paused", "postcopy recovery", "postcopy"]
    assert stats.phase == "done"
    assert "Recovered:           1 time; the destination had 16 of 20 pages" in info_lines(stats, {})
    assert info_dict(stats, {})["recoveries"] == {"times": 1, "received": 16, "pages": 20}


def test_postcopy_that_ends_well_was_never_paused() -> None:
    session, stats = Session(), MigrationStats("m")
    for arrival in arrivals(STREAMS["preempt"]):
        for event in session.feed(arrival):
            stats.update(5, event)
            assert stats.phase != "postcopy paused"
    assert stats.phase == "postcopy"
    assert stats.recovery.times == 0
