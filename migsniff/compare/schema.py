"""What the destination can load, as `qemu -dump-vmstate FILE` tells it (migration/savevm.c).

It lists device classes, neither instances nor RAM blocks, and lacks what does not belong to a class. Sizes
are as in memory; array lengths (`num`) are told since QEMU 10.0, and not of arrays whose length varies.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import msgspec

from migsniff.core.errors import CaptureError
from migsniff.core.wire import DUMPED_MACHINE

MAX_BYTES: Final = 64 << 20
MAX_CLASSES: Final = 4096
MAX_DEPTH: Final = 16


class SchemaField(
    msgspec.Struct, rename={"name": "field", "exists": "field_exists", "inside": "Description"}
):
    """A field; `exists`: only sometimes. `size`: bytes in memory, of one element where `num` is told."""

    name: str
    version_id: int = 0
    exists: bool = False
    size: int = 0
    num: int | None = None
    inside: "State | None" = None


class State(msgspec.Struct, rename={"fields": "Fields", "subsections": "Subsections"}):
    """A vmstate and the versions that can be loaded."""

    name: str
    version_id: int = 0
    minimum_version_id: int = 0
    fields: list[SchemaField] = []
    subsections: list["State"] = []

    def known_subsections(self) -> set[str]:
        """The names of the subsections at any depth."""
        found: set[str] = set()
        waiting: list[tuple[State, int]] = [(self, 0)]
        while waiting:
            state, depth = waiting.pop()
            if depth > MAX_DEPTH:
                continue
            found.update(one.name for one in state.subsections)
            waiting += [(one, depth + 1) for one in state.subsections]
            waiting += [(field.inside, depth + 1) for field in state.fields if field.inside is not None]
        return found


class _Class(msgspec.Struct):
    Description: State | None = None


class _Machine(msgspec.Struct):
    Name: str


@dataclass(frozen=True, slots=True)
class Schema:
    """Machine type, and the vmstates by their name: classes may share one."""

    machine: str
    states: dict[str, list[State]]

    def find(self, idstr: str) -> list[State]:
        """The vmstates that a section of this name may be: a device's path may stand before it."""
        return self.states.get(idstr) or self.states.get(idstr.rsplit("/", 1)[-1], [])


def is_schema(head: bytes) -> bool:
    """Whether a file that begins like this is such a dump."""
    return head.lstrip()[:1] == b"{" and f'"{DUMPED_MACHINE}"'.encode() in head


def read_schema(text: bytes) -> Schema:
    """The dump's text as a Schema. Raises CaptureError."""
    try:
        classes = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        machine = msgspec.json.decode(classes.pop(DUMPED_MACHINE), type=_Machine).Name
        if len(classes) > MAX_CLASSES:
            raise CaptureError(f"not what qemu -dump-vmstate writes: {len(classes)} classes")
        states = defaultdict(list)
        for raw in classes.values():
            state = msgspec.json.decode(raw, type=_Class).Description
            if state is not None:
                states[state.name].append(state)
    except (msgspec.MsgspecError, KeyError, UnicodeError, RecursionError) as error:
        raise CaptureError(f"not what qemu -dump-vmstate writes: {error}") from None
    return Schema(machine, dict(states))
