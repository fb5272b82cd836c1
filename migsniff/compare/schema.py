"""What the destination can load, as `qemu -dump-vmstate FILE` tells it (migration/savevm.c).

It lists device classes, neither instances nor RAM blocks, and lacks what does not belong to a class. Sizes
are as in memory; array lengths (`num`) are told since QEMU 10.0, and not of arrays whose length varies.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Final

from migsniff.core.errors import CaptureError
from migsniff.feed.dumpvmstate import State, read_dump
from migsniff.show.words import name

MAX_SHARED: Final = 32
MAX_NODES: Final = 4096
"""Fields and subsections of all vmstates that share a name, which are gone through for each section of it.

The most that was seen, of nvme in QEMU 11.1, is 237.
"""


@dataclass(frozen=True, slots=True)
class Schema:
    """Machine type, and the vmstates by their name: classes may share one."""

    machine: str
    states: dict[str, list[State]]

    def find(self, idstr: str) -> list[State]:
        """The vmstates that a section of this name may be: a device's path may stand before it.

        None of them if more than MAX_SHARED are called so: real ones share a name with a few others.
        """
        found = self.states.get(idstr) or self.states.get(idstr.rsplit("/", 1)[-1], [])
        return found if len(found) <= MAX_SHARED else []


def read_schema(text: bytes) -> Schema:
    """The dump's text as a Schema. Raises CaptureError."""
    machine, found = read_dump(text)
    states: dict[str, list[State]] = defaultdict(list)
    nodes: Counter[str] = Counter()
    try:
        for state in found:
            shared = states[state.name]
            if len(shared) <= MAX_SHARED and state not in shared:  # 137 kinds of flash have the same one
                shared.append(state)
                nodes[state.name] += sum(len(one.fields) + len(one.subsections) for one in state.within())
                if nodes[state.name] > MAX_NODES:
                    raise CaptureError(
                        f"not what qemu -dump-vmstate writes: {name(state.name)} has {nodes[state.name]}"
                        f" fields and subsections, more than {MAX_NODES}"
                    )
    except RecursionError:
        raise CaptureError("not what qemu -dump-vmstate writes: it is too deep") from None
    return Schema(machine, dict(states))
