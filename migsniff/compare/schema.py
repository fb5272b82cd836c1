"""What the destination can load, as `qemu -dump-vmstate FILE` tells it (migration/savevm.c).

It lists device classes, neither instances nor RAM blocks, and lacks what does not belong to a class. Sizes
are as in memory; array lengths (`num`) are told since QEMU 10.0, and not of arrays whose length varies.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from migsniff.feed.dumpvmstate import State, read_dump

MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Schema:
    """Machine type, and the vmstates by their name: classes may share one."""

    machine: str
    states: dict[str, list[State]]

    def find(self, idstr: str) -> list[State]:
        """The vmstates that a section of this name may be: a device's path may stand before it."""
        return self.states.get(idstr) or self.states.get(idstr.rsplit("/", 1)[-1], [])


def read_schema(text: bytes) -> Schema:
    """The dump's text as a Schema. Raises CaptureError."""
    machine, found = read_dump(text)
    states = defaultdict(list)
    for state in found:
        states[state.name].append(state)
    return Schema(machine, dict(states))


def known_subsections(state: State) -> dict[str, list[State]]:
    """A vmstate's subsections at any depth by their names, which some share."""
    found: dict[str, list[State]] = defaultdict(list)
    waiting: list[tuple[State, int]] = [(state, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MAX_DEPTH:
            continue
        for inner in one.subsections:
            found[inner.name].append(inner)
        waiting += [(inner, depth + 1) for inner in one.subsections]
        waiting += [(field.inside, depth + 1) for field in one.fields if field.inside is not None]
    return found
