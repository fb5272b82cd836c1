"""Registries: each kind of thing that the stream holds is one decorated function, found by its name there."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from migsniff.core.events import Value

K = TypeVar("K")
F = TypeVar("F")


class Registry(Generic[K, F]):
    """Functions by the keys under which the wire knows them.

    `registry(key, ..., source="file in QEMU")` is a decorator: it registers a function and returns it.
    Registering a key twice raises ValueError. Iteration gives the keys in order of registration.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._functions: dict[K, F] = {}
        self._sources: dict[K, str] = {}

    def __call__(self, *keys: K, source: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            for key in keys:
                if key in self._functions:
                    raise ValueError(f"{self.what} {key!r} is registered already")
                self._functions[key] = function
                self._sources[key] = source
            return function

        return register

    def get(self, key: K) -> F | None:
        """The function registered for `key`, or None."""
        return self._functions.get(key)

    def source(self, key: K) -> str:
        """The QEMU source file that defines `key`."""
        return self._sources[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __contains__(self, key: object) -> bool:
        return key in self._functions


field_type: Registry[str, Callable[[bytes], Value]] = Registry("field type")
"""Type name in the description -> what the raw bytes of one value mean; None where the bytes say it best."""
