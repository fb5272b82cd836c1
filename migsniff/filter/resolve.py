"""Names become fields, and what is compared gets one kind; what does not fit is an error at its place."""

from typing import Final, NoReturn

from migsniff.core.events import SEVERITIES
from migsniff.filter import tree
from migsniff.filter.devices import Device, parts_of
from migsniff.filter.errors import FilterError, nearest
from migsniff.filter.functions import FUNCTIONS
from migsniff.filter.names import Kind, Name, names
from migsniff.filter.operands import Called, DeviceField, Field, Literal, Masked, Operand, Sliced

_BOOLEANS: Final = {"true": True, "false": False}
_NUMERIC: Final = (Kind.NUMBER, Kind.SECONDS, Kind.BOOLEAN)


class Resolver:
    """Makes the operands of one expression."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self.devices: list[Device] = []
        self.seen: set[Device] = set()

    def fail(self, message: str, place: tree.Place) -> NoReturn:
        raise FilterError(message, self._expression, place.start, place.end)

    # ------------------------------------------------------------ one operand

    def operand(self, node: tree.Operand) -> Operand:
        """An operand by itself."""
        match node:
            case tree.Path():
                return self._path(node)
            case tree.Value():
                return _literal(node)
            case tree.Masked():
                return Masked(self._number(node.left), self._number(node.right))
            case tree.Call():
                return self._call(node)

    def _path(self, node: tree.Path) -> Operand:
        if node.parts[0] == "device" and len(node.parts) > 1:
            return self._device(node)
        parts = list(node.parts)
        spans = node.spans
        if not spans and isinstance(index := parts[-1], int):
            spans = (tree.Span(index, 1),)
            parts.pop()
        known = names()
        dotted = ".".join(map(str, parts))
        if dotted not in known:
            self.fail(f"there is no field {node.dotted}{nearest(dotted, list(known))}", node)
        found = Field(known[dotted])
        return self._sliced(found, spans, node) if spans else found

    def _device(self, node: tree.Path) -> Operand:
        name, *rest = node.parts[1:]
        if not isinstance(name, str):
            self.fail("a device has a name: device.NAME", node)
        path = tuple(
            part for given in rest for part in ((given,) if isinstance(given, int) else parts_of(given))
        )
        found = DeviceField(Device(name, path), self.seen)
        if path:
            self.devices.append(found.device)
        return self._sliced(found, node.spans, node) if node.spans else found

    def _sliced(self, of: Operand, spans: tuple[tree.Span, ...], node: tree.Path) -> Operand:
        if of.kind not in (Kind.TEXT, Kind.BYTES, Kind.DEVICE):
            self.fail(f"only text and bytes have parts, and this is a {of.kind}", node)
        return Sliced(of, spans)

    def _number(self, node: tree.Operand) -> Operand:
        found = self.operand(node)
        if found.kind not in (Kind.NUMBER, Kind.BOOLEAN, Kind.DEVICE) or isinstance(found.constant, float):
            self.fail(f"& takes whole numbers, and this is {_called(found)}", node)
        return found

    def _call(self, node: tree.Call) -> Operand:
        function = FUNCTIONS.get(node.name)
        if function is None:
            self.fail(f"there is no function {node.name}{nearest(node.name, list(FUNCTIONS))}", node)
        if len(node.arguments) > function.most:
            self.fail(f"{node.name}() takes {function.most} of them at most", node.arguments[function.most])
        arguments = []
        for argument in node.arguments:
            found = self.operand(argument)
            if found.constant is not None:
                self.fail(f"{node.name}() takes a field", argument)
            if found.kind is Kind.DEVICE:
                found = found.as_kind(function.takes[0])
            if found.kind not in function.takes:
                self.fail(f"{node.name}() takes no {found.kind}", argument)
            arguments.append(found)
        gives = function.gives or arguments[0].kind
        return Called(gives, arguments, function.call, whole=function.whole)

    # ------------------------------------------------------------ two that are compared

    def pair(self, left: tree.Operand, right: tree.Operand, *, equal: bool) -> tuple[Operand, Operand]:
        """Both sides of a comparison, of one kind. `equal`: they are looked at for that."""
        one = self._word(left, right) or self.operand(left)
        other = self._word(right, left) or self.operand(right)
        if one.constant is not None and other.constant is not None:
            self.fail("neither side is a field", tree.Place(left.start, right.end))
        for side, node in ((one, left), (other, right)):
            if side.kind is Kind.RECORD:
                self.fail("this is a kind of record, which has no value", node)
        if one.constant is not None:
            other, one = self._alike(other, one, left, equal=equal)
        else:
            one, other = self._alike(one, other, right, equal=equal)
        return one, other

    def _word(self, node: tree.Operand, other: tree.Operand) -> Literal | None:
        """A word that is a value of the field on the other side: warn, fwd, true."""
        if not isinstance(node, tree.Path) or len(node.parts) != 1 or node.spans:
            return None
        word = str(node.parts[0])
        if not isinstance(other, tree.Path):
            return Literal(Kind.BOOLEAN, _BOOLEANS[word.lower()]) if word.lower() in _BOOLEANS else None
        name: Name | None = names().get(other.dotted)
        if name is not None and word in name.choices:
            return Literal(Kind.TEXT, word)
        if word.lower() in _BOOLEANS:
            return Literal(Kind.BOOLEAN, _BOOLEANS[word.lower()])
        if name is not None and name.choices and word not in names():
            self._choice(name.name, name.choices, node)
        return None

    def _choice(self, name: str, choices: tuple[str, ...], place: tree.Place) -> NoReturn:
        self.fail(f"{name} is one of: {', '.join(choices)}", place)

    def _alike(
        self, field: Operand, other: Operand, place: tree.Operand, *, equal: bool
    ) -> tuple[Operand, Operand]:
        """A field and what it is compared with, which stands at `place`, as values of one kind."""
        if field.kind is Kind.DEVICE or other.kind is Kind.DEVICE:
            if isinstance(place, tree.Value) and place.unit:
                self.fail("a field of device state is not in seconds", place)
            return field.as_kind(other.kind), other.as_kind(field.kind)
        constant = other.constant
        if constant is None:
            alike = field.kind is other.kind or (field.kind in _NUMERIC and other.kind in _NUMERIC)
        elif isinstance(constant, str):
            return field, self._from_text(field, constant, place, equal=equal)
        elif field.kind is Kind.BYTES and type(constant) is int and 0 <= constant < 256:
            return field, Literal(Kind.BYTES, bytes([constant]))
        else:
            unit = isinstance(place, tree.Value) and place.unit
            alike = field.kind is other.kind or (field.kind in _NUMERIC and other.kind in _NUMERIC)
            alike = alike and not (unit and field.kind is not Kind.SECONDS)
        if not alike:
            self._unlike(field, other, place)
        return field, other

    def _from_text(self, field: Operand, text: str, place: tree.Operand, *, equal: bool) -> Operand:
        if field.kind is Kind.SEVERITY:
            if text not in SEVERITIES:
                self._choice("a severity", SEVERITIES, place)
            return Literal(Kind.SEVERITY, SEVERITIES.index(text))
        if field.kind is Kind.BYTES:
            return Literal(Kind.BYTES, text.encode())
        if field.kind is not Kind.TEXT:
            self._unlike(field, Literal(Kind.TEXT, text), place)
        if equal and field.choices and text not in field.choices:
            self._choice(field.name.name if isinstance(field, Field) else "it", field.choices, place)
        return Literal(Kind.TEXT, text)

    def _unlike(self, field: Operand, other: Operand, place: tree.Operand) -> NoReturn:
        self.fail(f"the field is a {field.kind}, and this is {_called(other)}", place)

    # ------------------------------------------------------------ what is searched

    def searched(self, node: tree.Operand, operator: str) -> Operand:
        """What `contains` and `matches` look into: text and bytes."""
        found = self.operand(node)
        if isinstance(found, DeviceField) and found.kind is Kind.DEVICE:
            return found.to_search()
        if found.constant is not None or found.kind not in (Kind.TEXT, Kind.BYTES):
            hint = "; string() makes text of it" if found.kind in (*_NUMERIC, Kind.SEVERITY) else ""
            self.fail(f"{operator} looks into text and bytes, and this is {_called(found)}{hint}", node)
        return found

    def sought(self, node: tree.Operand, operator: str) -> str | bytes:
        """What they look for."""
        if not isinstance(node, tree.Value) or not isinstance(node.value, str | bytes):
            self.fail(f'{operator} looks for a text in "double quotes"', node)
        return node.value


def _literal(node: tree.Value) -> Literal:
    match node.value:
        case str():
            return Literal(Kind.TEXT, node.value)
        case bytes():
            return Literal(Kind.BYTES, node.value)
        case _:
            return Literal(Kind.SECONDS if node.unit else Kind.NUMBER, node.value)


def _called(operand: Operand) -> str:
    if operand.kind is Kind.SECONDS and operand.constant is not None:
        return "a number of seconds"
    if operand.constant is not None and isinstance(operand.constant, float):
        return "a fraction"
    return operand.kind if operand.kind in (Kind.TEXT, Kind.BYTES) else f"a {operand.kind}"
