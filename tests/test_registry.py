"""Registries of decorated functions."""

import pytest

from migsniff.core.registry import Registry


def test_registry() -> None:
    registry: Registry[str, str] = Registry("thing")
    assert registry("a", "b", source="x.c")("one") == "one"
    assert (list(registry), len(registry), "a" in registry, "c" in registry) == (["a", "b"], 2, True, False)
    assert (registry.get("b"), registry.source("b"), registry.get("c")) == ("one", "x.c", None)
    with pytest.raises(ValueError, match="thing 'b' is registered already"):
        registry("b", source="y.c")("two")
    assert registry.get("b") == "one"
