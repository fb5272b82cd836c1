"""Tests that are coroutines run on both event loops; no test sees the user's cache, or another test's."""

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping

import pytest
import uvloop

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Descriptions are remembered where nobody else looks."""
    os.environ["XDG_CACHE_HOME"] = f"{tmp_path_factory.getbasetemp()}/cache-{next(_NUMBERS)}"


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Each coroutine test runs once on each of these."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
