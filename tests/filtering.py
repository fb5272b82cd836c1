"""What tests of filters and columns share: the events of a sample, with fields."""

from functools import cache
from pathlib import Path

from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from migsniff.values.explain import Explainer

SAMPLES = Path(__file__).parent.parent / "captures" / "samples"


@cache
def sample(name: str) -> tuple[tuple[int, Event], ...]:
    """(time, event) of a sample's capture, device state decoded and explained."""
    session, explainer = Session(fields=True), Explainer()
    found: list[tuple[int, Event]] = []
    time = 0
    for arrival in open_source(str(SAMPLES / name)).arrivals():
        time = arrival.time
        found += [(time, explainer.explained("m", event)) for event in session.feed(arrival)]
    return (*found, *((time, explainer.explained("m", event)) for event in session.finish()))
