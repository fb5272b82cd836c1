"""States of pages: what came in which round, on channels that are behind each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migsniff.core.errors import StreamProblem
from migsniff.show import pagestates
from migsniff.show.pagestates import BROKEN, ROUND, SEGMENT, UNSENT, ZERO, PageStates


def enter(states: PageStates, round_: int, *pages: int, mark: int = 0) -> tuple[list[bool], list[bool]]:
    """Which of the pages had been sent before, and which are taken."""
    marks = np.full(len(pages), mark, np.uint8)
    before, newer = states.enter("ram", np.array(pages, np.uint64), marks, round_)
    return (before != UNSENT).tolist(), newer.tolist()


def test_a_page_of_an_earlier_round_does_not_replace_one_of_a_later() -> None:
    states = PageStates()
    assert enter(states, 0, 1, 2, 3) == ([False] * 3, [True] * 3)
    assert enter(states, 2, 2) == ([True], [True])
    assert enter(states, 1, 1, 2, 4, mark=ZERO) == ([True, True, False], [True, False, True])
    assert enter(states, 2, 2, mark=ZERO) == ([True], [True])
    assert [bool(states.get("ram", page) & ZERO) for page in range(5)] == [False, True, True, False, True]
    assert (states.count(ZERO), states.late) == (3, 0)


lag = st.integers(0, ROUND // 2 - 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), lag, st.integers(0, 2 * SEGMENT)), max_size=60))
def test_rounds_against_a_model(sent: list[tuple[int, int, int]]) -> None:
    """The newest round goes on by up to 40, each page is up to a lag behind it."""
    states, model, newest = PageStates(), dict[int, int](), 0
    for more, behind, page in sent:
        newest += more
        round_ = max(0, newest - behind)
        taken = round_ >= model.get(page, 0)
        assert enter(states, newest, 3 * SEGMENT) == ([3 * SEGMENT in model], [True])
        model[3 * SEGMENT] = newest
        assert enter(states, round_, page) == ([page in model], [taken])
        if taken:
            model[page] = round_
    assert states.late == 0


def test_a_page_too_late_to_tell_is_left_and_counted() -> None:
    states = PageStates()
    enter(states, 0, 1)
    enter(states, 1000, 2)
    assert enter(states, 900, 1, 2, 3) == ([True, True, False], [False, False, True])
    assert states.late == 2
    assert enter(states, 990, 1) == ([True], [True])
    assert enter(states, 1000, 3) == ([True], [True])


def test_what_is_dropped_is_zero_until_it_comes_again() -> None:
    states = PageStates()
    enter(states, 5, *range(10), SEGMENT + 1)
    for _ in range(3):
        states.drop("ram", 4, SEGMENT + 1)
    assert states.count(ZERO) == 6
    assert enter(states, 5, 5) == ([True], [False])
    assert enter(states, 6, 5, SEGMENT + 1) == ([True, True], [True, True])
    states.drop("ram", 0, 1 << 62)
    states.drop("rom", 0, 1 << 62)
    assert states.count(ZERO) == 11
    assert states.get("ram", 2000) == UNSENT


def test_a_broken_page_is_whole_again_when_it_comes_whole() -> None:
    states = PageStates()
    enter(states, 0, 7)
    states.mark_broken("ram", 7)
    assert states.count(BROKEN) == 1
    enter(states, 0, 7)
    assert states.count(BROKEN) == 0


def test_few_pages_do_not_buy_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagestates, "MAX_STATE_SLACK", 10 * SEGMENT)
    states = PageStates()
    with pytest.raises(StreamProblem, match="pages stand so far apart"):
        enter(states, 0, *range(0, 100 * SEGMENT, SEGMENT))
