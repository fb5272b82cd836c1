"""What `qemu -dump-vmstate FILE` writes, turned into descriptions as a stream has them.

It lists device classes (dump_vmstate_json_to_file in migration/savevm.c), not the
devices of a guest: no instances, no field types, sizes as in memory, before QEMU 10.0 no array lengths, and
of a field that is there only sometimes not when. What is made of it is one guess or a few for a device, and
as with all that is assumed only what leads exactly to the end of a section is believed.
"""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from migsniff.core.errors import CaptureError
from migsniff.core.wire import DUMPED_MACHINE
from migsniff.feed.descriptionstore import Entry, sound

MAX_VARIANTS: Final = 8
MAX_DEPTH: Final = 16
MAX_CLASSES: Final = 4096
MAX_BYTES: Final = 64 << 20
HEAD: Final = 4096
"""Bytes of a file that tell whether it is one."""
NO_SIZE: Final = "virtio"  # writes as many bytes as it likes (hw/virtio/virtio.c), and is told with size 0
UNTOLD: Final = b'"type":"virtio"'


class StateField(msgspec.Struct, rename={"name": "field", "exists": "field_exists", "inside": "Description"}):
    """A field; `exists`: only sometimes. `size`: bytes in memory, of one element where `num` is told."""

    name: str
    version_id: int = 0
    exists: bool = False
    size: int = 0
    num: int | None = None
    inside: "State | None" = None


class State(msgspec.Struct, rename={"fields": "Fields", "subsections": "Subsections"}, dict=True):
    """A vmstate, and the versions of it that can be loaded."""

    name: str
    version_id: int = 0
    minimum_version_id: int = 0
    fields: list[StateField] = []
    subsections: list["State"] = []

    @cached_property
    def by_name(self) -> dict[str, list[StateField]]:
        """The fields by their names, which some share."""
        found: dict[str, list[StateField]] = defaultdict(list)
        for field in self.fields:
            found[field.name].append(field)
        return dict(found)

    @cached_property
    def subsections_below(self) -> dict[str, list["State"]]:
        """The subsections at any depth by their names, which some share."""
        found: dict[str, list[State]] = defaultdict(list)
        for state in self.within():
            for inner in state.subsections:
                found[inner.name].append(inner)
        return dict(found)

    def within(self) -> Iterator["State"]:
        """This one, and what is inside of it down to MAX_DEPTH."""
        waiting = [(self, 0)]
        while waiting:
            state, depth = waiting.pop()
            yield state
            if depth < MAX_DEPTH:
                waiting += [(inner, depth + 1) for inner in state.subsections]
                waiting += [(field.inside, depth + 1) for field in state.fields if field.inside is not None]


class _Class(msgspec.Struct):
    Description: State | None = None


class _Machine(msgspec.Struct):
    Name: str


Shape = tuple[int, dict[str, Any]]
"""Bytes, and the JSON of a vmstate."""


def is_dump(text: bytes) -> bool:
    """Whether JSON text is such a dump."""
    return text[:HEAD].lstrip()[:1] == b"{" and f'"{DUMPED_MACHINE}"'.encode() in text[:HEAD]


def read_dump(text: bytes) -> tuple[str, list[State]]:
    """Machine type, and the vmstate of each class that has one. Raises CaptureError."""
    if len(text) > MAX_BYTES:
        raise CaptureError(f"more than the {MAX_BYTES} bytes of -dump-vmstate that migsniff reads")
    try:
        classes = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        machine = msgspec.json.decode(classes.pop(DUMPED_MACHINE), type=_Machine).Name
        if len(classes) > MAX_CLASSES:
            raise CaptureError(f"not what qemu -dump-vmstate writes: {len(classes)} classes")
        states = [msgspec.json.decode(raw, type=_Class).Description for raw in classes.values()]
    except (msgspec.MsgspecError, KeyError, UnicodeError, RecursionError) as error:
        raise CaptureError(f"not what qemu -dump-vmstate writes: {error}") from None
    return machine, [state for state in states if state is not None]


def from_dump(text: bytes, source: str) -> tuple[str, list[Entry], str]:
    """Machine type, descriptions, and in words what cannot be used. Raises CaptureError."""
    machine, states = read_dump(text)
    now = int(time.time())
    entries: dict[tuple[str, bytes], Entry] = {}
    unused = []
    for state in states:
        shapes = list(itertools.islice(_usable(_shapes(state, 0)), MAX_VARIANTS))
        made = [_entry(state, shape, now, source) for shape in shapes]
        for entry in filter(sound, made):
            entries[entry.idstr, bytes(entry.device)] = entry
        if not any(map(sound, made)):
            unused.append(state.name)
    named = Counter(name for name, _ in entries)
    for name, text in list(entries):
        if named[name] > 1 and UNTOLD in text:  # it would swallow what another class of that name has
            del entries[name, text]
    names = ", ".join(sorted(set(unused))[:5])
    more = "" if len(set(unused)) <= 5 else " ..."
    why = f"{len(set(unused))} of {len(states)} devices cannot be used, their size is not told: {names}{more}"
    return machine, list(entries.values()), why if unused else ""


def _entry(state: State, shape: Shape, now: int, source: str) -> Entry:
    device = {"name": state.name, "instance_id": 0, **shape[1]}
    return Entry(state.name, 0, state.version_id, now, source, msgspec.Raw(msgspec.json.encode(device)))


def _usable(shapes: Sequence[Shape]) -> Iterator[Shape]:
    """Those whose size tells them from the others."""
    sizes = [size for size, _ in shapes]
    return (shape for shape in shapes if sizes.count(shape[0]) == 1)


def _shapes(state: State, depth: int) -> list[Shape]:
    """What a vmstate may look like; nothing if that cannot be told, or is too much."""
    if depth > MAX_DEPTH:
        return []
    untold = [field.name for field in _present(state) if field.inside is None and not field.size]
    if NO_SIZE in untold and len(untold) > 1:  # which of them has how many bytes?
        return []
    choices = []
    for name, group in itertools.groupby(_present(state), lambda field: field.name):
        fields = list(group)
        if len(fields) > 1 and all(field.exists for field in fields):
            choices.append([made for field in fields for made in _field(field, depth)])  # one of them
            continue
        for index, field in enumerate(fields):
            label = name if len(fields) == 1 else f"{name}[{index}]"
            made = [(size, [{**one, "name": label} for one in json]) for size, json in _field(field, depth)]
            choices.append([*made, *([(0, [])] if field.exists else [])])
    count = 1
    for choice in choices:
        count *= len(choice)
    if not 0 < count <= MAX_VARIANTS:
        return []
    subsections = [shape for inner in state.subsections for shape in _one(inner, depth)]
    return [
        (
            sum(size for size, _ in chosen),
            {
                "vmsd_name": state.name,
                "version": state.version_id,
                "fields": [field for _, json in chosen for field in json],
                **({"subsections": subsections} if subsections else {}),
            },
        )
        for chosen in itertools.product(*choices)
    ]


def _present(state: State) -> list[StateField]:
    return [field for field in state.fields if field.exists or field.version_id <= state.version_id]


def _one(state: State, depth: int) -> list[dict[str, Any]]:
    """A subsection, if there is but one shape of it."""
    shapes = _shapes(state, depth + 1)
    return [shapes[0][1]] if len(shapes) == 1 else []


def _field(field: StateField, depth: int) -> list[tuple[int, list[dict[str, Any]]]]:
    """What a field may look like: bytes, and its JSON."""
    count = 1 if field.num is None else field.num
    array = {} if field.num is None else {"array_len": field.num}
    if field.inside is None:
        kind = NO_SIZE if field.name == NO_SIZE and not field.size else "unknown"
        if not 0 <= field.size < 1 << 24 or not 0 <= count < 1 << 16:
            return []
        return [(count * field.size, [{"name": field.name, **array, "type": kind, "size": field.size}])]
    return [
        (
            count * size,
            [{"name": field.name, **array, "type": "struct", "struct": inside, "size": size}],
        )
        for size, inside in _shapes(field.inside, depth + 1)
    ]
