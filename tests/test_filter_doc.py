"""docs/filter.md: every example is run on the capture that it names."""

import re
from functools import cache
from pathlib import Path

import pytest

from migsniff.core.events import UNLISTED, Event
from migsniff.filter.compile import Filter
from tests.filtering import sample

DOCUMENT = (Path(__file__).parent.parent / "docs" / "filter.md").read_text()
SAMPLE = "x86-72-return-path"
EXAMPLES = re.findall(r"^\| `(.+?)` \| (\d+) \|", DOCUMENT, re.MULTILINE)


@cache
def events() -> tuple[tuple[int, Event], ...]:
    return tuple((time, event) for time, event in sample(SAMPLE) if not isinstance(event, UNLISTED))


def test_there_are_examples_and_they_name_their_capture() -> None:
    assert len(EXAMPLES) > 35
    assert f"captures/samples/{SAMPLE}" in DOCUMENT


@pytest.mark.parametrize(("expression", "count"), EXAMPLES)
def test_examples(expression: str, count: str) -> None:
    wanted = Filter(expression.replace("\\|", "|"))
    assert sum(wanted("m", time, event) for time, event in events()) == int(count)
    assert wanted.failed is None
