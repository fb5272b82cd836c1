"""What the destination can load, as `qemu -dump-vmstate FILE` tells it (migration/savevm.c).

It lists device classes, neither instances nor RAM blocks, and lacks what does not belong to a class. Sizes
are as in memory; array lengths (`num`) are told since QEMU 10.0, and not of arrays whose length varies.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from migsniff.core.errors import CaptureError
from migsniff.feed.dumpvmstate import State, read_dump

MAX_DEPTH: Final = 16
MAX_SHARED: Final = 32


@dataclass(frozen=True, slots=True)
class Schema:
    """Machine type, and the vmstates by their name: classes may share one."""

    machine: str
    states: dict[str, list[State]]

    def find(self, idstr: str) -> list[State]:
        """The vmstates that a section of this name may be: a device's path may stand before it.

        None if more than MAX_SHARED are called so: real ones share a name with a dozen others at most.
        """
        found = self.states.get(idstr) or self.states.get(idstr.rsplit("/", 1)[-1], [])
        return found if len(found) <= MAX_SHARED else []


def read_schema(text: bytes) -> Schema:
    """The dump's text as a Schema. Raises CaptureError."""
    machine, found = read_dump(text)
    states: dict[str, list[State]] = defaultdict(list)
    try:
        for state in found:
            shared = states[state.name]
            if len(shared) <= MAX_SHARED and state not in shared:  # 137 kinds of flash have the same one
                shared.append(state)
    except RecursionError:
        raise CaptureError("not what qemu -dump-vmstate writes: it is too deep") from None
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
