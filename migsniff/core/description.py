"""The JSON description of device state, behind the end of the stream.

QEMU writes it while it saves the devices (migration/vmstate.c, migration/savevm.c): every field with its
name, type and size, in stream order. It is hostile until proven: all that is raised here is StreamProblem.
"""

import json
import reprlib
from collections.abc import Generator
from itertools import accumulate
from re import DOTALL
from re import compile as regex
from typing import Annotated, Final, cast

import msgspec
from msgspec.structs import replace

from migsniff.core.errors import StreamProblem
from migsniff.core.events import BREATH, Event
from migsniff.core.wire import MAX_DESCRIPTION_DEPTH, MAX_DEVICE_DESCRIPTION, MAX_FIELDS

LISTS: Final = frozenset({"qtailq", "qlist", "gtree"})
"""Types whose elements stand between marker bytes; the description repeats the element's keys for each."""

MAX_QUOTES: Final = 4 * MAX_FIELDS

# a string, also one without end: from each quote on the text is looked at once
_STRING_OR_BRACKET: Final = regex(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', DOTALL)
_STEP: Final = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


class Vmsd(msgspec.Struct, frozen=True):
    """A VMStateDescription: fields, then subsections. `fixed`: its bytes, if no field can make that vary."""

    name: str
    version: int | None
    fields: tuple["FieldDescription", ...]
    subsections: tuple["Vmsd", ...] = ()
    fixed: int | None = None


class FieldDescription(msgspec.Struct, frozen=True):
    """One entry of `fields`: `size` is that of one element, `array_len` None unless it stands for an array.

    `vmsds`: what is inside: one for a struct or another inline group, one for each element of a list.
    A NULL pointer has type "nullptr", whichever way QEMU's version spells it; elements of NULLABLE have both.
    """

    name: str
    type: str
    size: int
    array_len: int | None
    index: int | None
    vmsds: tuple[Vmsd, ...]

    @property
    def fixed(self) -> int | None:
        """Bytes of the whole entry, if that needs no look at the bytes."""
        count = 1 if self.array_len is None else self.array_len
        if self.type in ("nullptr", "capability"):
            return None
        if not self.vmsds or self.type in LISTS:
            return count * self.size
        inside = self.vmsds[0].fixed
        if inside is None or (self.array_len is None and inside != self.size):
            return None
        return count * inside


_CHANNEL_PATH: Final = Vmsd(
    "s390_chp_info",
    1,
    tuple(FieldDescription(name, "uint8", 1, None, None, ()) for name in ("in_use", "type", "is_virtual")),
    fixed=3,
)
_CHANNEL_PATHS: Final = FieldDescription("chpids", "struct", 3, 256, None, (_CHANNEL_PATH,))
NULLABLE: Final = {("s390_css", "css"): Vmsd("s390_css_img", 1, (_CHANNEL_PATHS,), fixed=768)}
"""The elements of an array of pointers that QEMU up to 9.x describes by its first one, which is NULL.

By device and field. Since 10.0 the stream tells it itself (migration/vmstate.c; hw/s390x/css.c).
"""


class DeviceDescription(msgspec.Struct, frozen=True):
    """A device as described: `vmsd.version` is None for an old-style device, which is one buffer."""

    name: str
    instance_id: int
    vmsd: Vmsd


class Description(msgspec.Struct, frozen=True):
    """A whole description; `devices` in stream order, `text` as sent."""

    page_size: int | None
    devices: tuple[DeviceDescription, ...]
    configuration: DeviceDescription | None
    text: bytes

    @classmethod
    def parse(cls, text: bytes) -> "Description":
        """Read the JSON; raises StreamProblem (description-json, -shape, -depth, -nodes or length)."""
        try:
            next(cls.read(text, breathe=False))
        except StopIteration as end:
            return cast("Description", end.value)
        raise AssertionError("it does not yield")

    @classmethod
    def read(cls, text: bytes, *, breathe: bool) -> Generator[Event, None, "Description"]:
        """As `parse`; with `breathe` BREATH comes behind each device: a large guest's takes half a second."""
        top = _top(text)
        devices = []
        for raw in top.devices:
            device = _load(raw, "a device")
            devices.append(
                DeviceDescription(
                    _text(device, "name"),
                    _number(device, "instance_id", -(1 << 31), (1 << 32) - 1) % (1 << 32),
                    _nullable(_vmsd(device)),
                )
            )
            if breathe:
                yield BREATH
        configuration = None
        if top.configuration:
            vmsd = _vmsd(_load(top.configuration, "'configuration'"))
            configuration = DeviceDescription("configuration", 0, vmsd)
        return cls(top.page_size, tuple(devices), configuration, text)


class _Object(dict[str, object]):
    """A JSON object; `pairs` has its members in order where a key stands in it more than once."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs if len(pairs) != len(self) else None


class _Top(msgspec.Struct):
    """The outermost object, its parts as they stand there."""

    devices: list[msgspec.Raw]
    page_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] | None = None
    configuration: msgspec.Raw = msgspec.Raw()


def _top(text: bytes) -> _Top:
    if sum(map(text.count, (b"{", b"[", b","))) > MAX_FIELDS or text.count(b'"') > MAX_QUOTES:
        raise StreamProblem("description-nodes", limit=MAX_FIELDS)
    try:
        text.decode()
        return msgspec.json.decode(text, type=_Top)
    except msgspec.ValidationError as error:
        raise shape_problem(str(error)) from None
    except RecursionError:
        raise StreamProblem("description-depth", limit=MAX_DESCRIPTION_DEPTH) from None
    except ValueError as error:
        raise StreamProblem("description-json", detail=error) from None


def _load(raw: msgspec.Raw, what: str) -> _Object:
    text = bytes(raw)
    if len(text) > MAX_DEVICE_DESCRIPTION:
        what = f"the description of {what}"
        raise StreamProblem("length", what=what, length=len(text), limit=MAX_DEVICE_DESCRIPTION)
    steps = (_STEP.get(match[0], 0) for match in _STRING_OR_BRACKET.finditer(text))
    if max(accumulate(steps), default=0) > MAX_DESCRIPTION_DEPTH:
        raise StreamProblem("description-depth", limit=MAX_DESCRIPTION_DEPTH)
    try:
        top = json.loads(text.decode(), object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise StreamProblem("description-json", detail=error) from None
    return _object(top, what)


def shape_problem(detail: str) -> StreamProblem:
    return StreamProblem("description-shape", detail=detail)


def _object(value: object, what: str) -> _Object:
    if not isinstance(value, _Object):
        raise shape_problem(f"{what} is no object but {reprlib.repr(value)}")
    return value


def _objects(parent: _Object, key: str) -> list[_Object]:
    value = parent.get(key)
    if not isinstance(value, list):
        raise shape_problem(f"{key!r} is no array but {reprlib.repr(value)}")
    return [_object(element, f"an element of {key!r}") for element in value]


def _text(parent: _Object, key: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str):
        raise shape_problem(f"{key!r} is no text but {reprlib.repr(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise shape_problem(f"{key!r} is not Unicode: {reprlib.repr(value)}") from None
    return value


def _number(parent: _Object, key: str, low: int = 0, high: int = (1 << 32) - 1) -> int:
    value = parent.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise shape_problem(f"{key!r} is no whole number but {reprlib.repr(value)}")
    if not low <= value <= high:
        raise shape_problem(f"{key!r} is {reprlib.repr(value)}, not from {low} to {high}")
    return value


def _vmsd(value: _Object) -> Vmsd:
    """A vmstate, or the body of an old-style device (`size` and a buffer called data)."""
    name = _text(value, "vmsd_name") if "vmsd_name" in value else ""
    version = _number(value, "version", -(1 << 31)) % (1 << 32) if "version" in value else None
    subsections = tuple(map(_vmsd, _objects(value, "subsections"))) if "subsections" in value else ()
    for subsection in subsections:
        if subsection.version is None or not 0 < len(subsection.name.encode()) < 256:
            raise shape_problem(f"subsection {reprlib.repr(subsection.name)} cannot be a subsection's header")
    if "fields" not in value and "size" in value:
        fields: tuple[FieldDescription, ...] = (
            FieldDescription("data", "buffer", _number(value, "size"), None, None, ()),
        )
    else:
        fields = tuple(map(_field, _objects(value, "fields")))
    sizes = [field.fixed for field in fields]
    fixed = None if subsections or None in sizes else sum(cast("list[int]", sizes))
    return Vmsd(name, version, fields, subsections, fixed)


def _field(value: _Object) -> FieldDescription:
    kind = _text(value, "type")
    vmsds: tuple[Vmsd, ...] = ()
    if "struct" in value:
        inside = _object(value["struct"], "'struct'")
        if inside:
            vmsds = (_vmsd(inside),)
        else:
            kind = "nullptr"  # how QEMU up to 9.x describes a NULL pointer
    elif "fields" in value:
        vmsds = tuple(map(_vmsd, _repetitions(value)))
    elif kind == "struct":
        raise shape_problem(f"struct {reprlib.repr(value.get('name'))} without its fields")
    if kind not in LISTS and len(vmsds) > 1:
        vmsds = ()
    size = _number(value, "size")
    if kind == "nullptr" and size != 1:
        raise shape_problem(f"a NULL pointer of {size} bytes")
    return FieldDescription(
        _text(value, "name"),
        kind,
        size,
        _number(value, "array_len") if "array_len" in value else None,
        _number(value, "index") if "index" in value else None,
        vmsds,
    )


def _nullable(vmsd: Vmsd) -> Vmsd:
    """A device's vmstate with what NULLABLE knows of it."""
    if not any((vmsd.name, field.name) in NULLABLE for field in vmsd.fields):
        return vmsd
    fields = []
    for field in vmsd.fields:
        inside = NULLABLE.get((vmsd.name, field.name))
        known = (
            inside is not None
            and field.type == "nullptr"
            and field.array_len is not None
            and field.array_len > 1
        )
        fields.append(replace(field, vmsds=(inside,)) if known and inside else field)
    return replace(vmsd, fields=tuple(fields))


def _repetitions(value: _Object) -> list[_Object]:
    """The vmstates written into one object one after the other: each begins with its `vmsd_name`."""
    if value.pairs is None:
        return [value]
    found: list[list[tuple[str, object]]] = []
    for key, member in value.pairs:
        if key == "vmsd_name":
            found.append([])
        if found and key in ("vmsd_name", "version", "fields", "subsections"):
            found[-1].append((key, member))
    return [_Object(members) for members in found]
