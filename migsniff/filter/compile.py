"""A filter, compiled: for each type of record a test, or the answer where nothing has to be looked at."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from migsniff.core.events import Event
from migsniff.filter import tree
from migsniff.filter.devices import Found
from migsniff.filter.grammar import parse, parse_operand
from migsniff.filter.names import PREFIXES, Kind
from migsniff.filter.operands import Bound, DeviceField, Operand, Values, plain, text_of
from migsniff.filter.patterns import pattern
from migsniff.filter.resolve import Resolver

MAX_SEARCHED: Final = 1 << 14  # characters or bytes of one record that `matches` looks at

Predicate = Callable[[Any, int, str], bool]
"""(event, its time, the migration's id) -> whether it matches."""
Answer = Predicate | bool
Bind = Callable[[type[Event]], Answer]

_RELATIONS: Final[dict[tree.Relation, tuple[Callable[[Any, Any], bool], tree.Quantifier]]] = {
    "==": (operator.eq, "any"),
    "===": (operator.eq, "all"),
    "!=": (operator.ne, "all"),
    "!==": (operator.ne, "any"),
    "<": (operator.lt, "any"),
    "<=": (operator.le, "any"),
    ">": (operator.gt, "any"),
    ">=": (operator.ge, "any"),
}


class Filter:
    """Whether a record is wanted; raises FilterError for an expression that is none.

    `fields`: it looks at fields of device state, which the session must decode. `failed`: a bug of ours that
    came up with some record, which then does not match.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        test = parse(expression)
        self._resolver = Resolver(expression)
        bind = _Compiler(self._resolver).test(test)
        self._answers = {cls: bind(cls) for cls in PREFIXES}
        self.fields = any(_looks_inside(path) for path in tree.paths(test))
        self.failed: str | None = None

    def notes(self) -> Iterator[str]:
        """What a user should know of the filter once all records have passed."""
        resolver = self._resolver
        for name in sorted({str(device) for device in resolver.devices if device not in resolver.seen}):
            yield f"no record in which {name} was looked for has it (`migsniff fields CAPTURE` lists those)"
        if self.failed is not None:
            yield f"the filter failed with some record ({self.failed}): a bug, please report it"

    def __call__(self, migration: str, time: int, event: Event) -> bool:
        """Whether the event matches. Never raises."""
        answer = self._answers.get(type(event), False)
        if answer is True or answer is False:
            return answer
        try:
            return answer(event, time, migration)
        except Exception as bug:
            self.failed = f"{type(bug).__name__}: {bug}"
            return False


class Column:
    """A field, or what can be made of it, as -T fields prints it; raises FilterError."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        node = parse_operand(expression)
        resolver = Resolver(expression)
        operand = resolver.operand(node)
        if operand.constant is not None:
            resolver.fail("a column is a field", node)
        self.fields = any(_looks_inside(path) for path in tree.paths(node))
        self._label = expression if operand.kind is Kind.RECORD else None
        self._bound = {cls: operand.bind(cls, shown=True) for cls in PREFIXES}

    def texts(self, migration: str, time: int, event: Event) -> list[str]:
        """What a record has of it; never raises."""
        bound = self._bound.get(type(event))
        if bound is None:
            return []
        try:
            values = list(bound.values(event, time, migration))
        except Exception:
            return []
        return [self._label for _ in values] if self._label else list(map(text_of, values))


def _looks_inside(path: tree.Path) -> bool:
    return path.parts[0] == "device" and (len(path.parts) > 2 or bool(path.spans))


class _Compiler:
    """Turns a tree into what binds it to types of records."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def test(self, node: tree.Test) -> Bind:
        match node:
            case tree.Both():
                return _joined([self.test(test) for test in node.tests], all, False)
            case tree.Either():
                return _joined([self.test(test) for test in node.tests], any, True)
            case tree.Not():
                return _negated(self.test(node.test))
            case tree.Exists():
                return self._exists(node)
            case tree.Compare():
                return self._compare(node)
            case tree.Contains():
                return self._contains(node)
            case tree.Matches():
                return self._matches(node)
            case tree.Within():
                return self._within(node)

    def _exists(self, node: tree.Exists) -> Bind:
        if isinstance(node.value, tree.Value):
            self._resolver.fail("a value alone is no test", node)
        operand = self._resolver.operand(node.value)
        masked = isinstance(node.value, tree.Masked)

        def bind(cls: type[Event]) -> Answer:
            bound = operand.bind(cls)
            if bound is None:
                return False
            if operand.kind is Kind.RECORD and not isinstance(operand, DeviceField):
                return True
            return _of_values(bound, bool if masked else lambda value: True, "any")

        return bind

    def _compare(self, node: tree.Compare) -> Bind:
        relation, usual = _RELATIONS[node.relation]
        equal = relation in (operator.eq, operator.ne)
        left, right = self._resolver.pair(node.left, node.right, equal=equal)
        quantifier = node.quantifier or usual
        if left.kind is Kind.DEVICE:
            relation = _between_devices(relation)
        if left.constant is not None:  # 4096 < size: as size > 4096
            swapped = relation

            def relation(value: Any, constant: Any) -> bool:
                return swapped(constant, value)

            left, right = right, left
        constant = right.constant

        def bind(cls: type[Event]) -> Answer:
            one, other = left.bind(cls), right.bind(cls)
            if one is None or other is None:
                return False
            if constant is not None:
                return _of_values(one, lambda value: relation(value, constant), quantifier)
            return _of_pairs(one.values, other.values, relation, quantifier)

        return bind

    def _contains(self, node: tree.Contains) -> Bind:
        operand = self._resolver.searched(node.left, "contains")
        sought = self._resolver.sought(node.right, "contains")
        if isinstance(sought, bytes) and operand.kind is Kind.TEXT and not isinstance(operand, DeviceField):
            self._resolver.fail("the field is text, and these are bytes", node.right)
        octets = sought if isinstance(sought, bytes) else sought.encode()
        if isinstance(operand, DeviceField) and isinstance(sought, bytes):
            operand = operand.as_kind(Kind.BYTES)

        def contains(value: Any) -> bool:
            return (octets if isinstance(value, bytes) else sought) in value

        return _each(operand, contains, node.quantifier or "any")

    def _matches(self, node: tree.Matches) -> Bind:
        operand = self._resolver.searched(node.left, "matches")
        sought = self._resolver.sought(node.pattern, "matches")
        if isinstance(sought, bytes):
            self._resolver.fail('a pattern is a text in "double quotes"', node.pattern)
        try:
            matches = pattern(sought)
        except ValueError as error:
            self._resolver.fail(f"no pattern: {error}", node.pattern)
        ask = all if node.quantifier == "all" else any

        def bind(cls: type[Event]) -> Answer:
            bound = operand.bind(cls)
            if bound is None:
                return False
            all_of = bound.values

            def test(event: Any, time: int, migration: str) -> bool:
                values = _shortened(all_of(event, time, migration))
                return bool(values) and ask(map(matches, values))

            return test

        return bind

    def _within(self, node: tree.Within) -> Bind:
        single: list[Any] = []
        ranges: list[tuple[Any, Any]] = []
        operand: Operand | None = None
        for item in node.items:
            constants: list[tuple[Operand, Any]] = []
            for end in item if isinstance(item, tuple) else (item,):
                operand, other = self._resolver.pair(node.left, end, equal=not isinstance(item, tuple))
                if other.constant is None:
                    self._resolver.fail("a set has values, no fields", end)
                constants.append((operand, other.constant))
            if isinstance(item, tuple):
                if constants[0][0].kind is not constants[1][0].kind:
                    self._resolver.fail("a range has ends of one kind", item[1])
                if constants[0][1] > constants[1][1]:
                    self._resolver.fail("an empty range: its end is before its beginning", item[1])
                ranges.append((constants[0], constants[1]))
            else:
                single.append(constants[0])
        return self._any_of(node, single, ranges)

    def _any_of(
        self, node: tree.Within, single: list[tuple[Operand, Any]], ranges: list[tuple[Any, Any]]
    ) -> Bind:
        """Values of a device's field are of several kinds, if those of the set are."""
        kinds = {operand.kind: operand for operand, _ in (*single, *(low for low, _ in ranges))}
        tests = []
        for kind, operand in kinds.items():
            values = frozenset(value for one, value in single if one.kind is kind)
            spans = [(low[1], high[1]) for low, high in ranges if low[0].kind is kind]
            tests.append(_each(operand, _member(values, spans), node.quantifier or "any"))
        return tests[0] if len(tests) == 1 else _joined(tests, any, True)


# ---------------------------------------------------------------- the tests themselves


def _joined(binds: Sequence[Bind], ask: Callable[[Any], bool], decides: bool) -> Bind:
    """`decides`: the answer of one test that is that of all of them."""

    def bind(cls: type[Event]) -> Answer:
        answers = [one(cls) for one in binds]
        if any(answer is decides for answer in answers):
            return decides
        tests = [answer for answer in answers if not isinstance(answer, bool)]
        if not tests:
            return not decides
        if len(tests) == 1:
            return tests[0]

        def test(event: Any, time: int, migration: str) -> bool:
            for one in tests:
                if one(event, time, migration) is decides:
                    return decides
            return not decides

        return test

    return bind


def _negated(bind: Bind) -> Bind:
    def negated(cls: type[Event]) -> Answer:
        answer = bind(cls)
        if isinstance(answer, bool):
            return not answer
        return lambda event, time, migration: not answer(event, time, migration)

    return negated


def _each(operand: Operand, test: Callable[[Any], bool], quantifier: tree.Quantifier) -> Bind:
    def bind(cls: type[Event]) -> Answer:
        bound = operand.bind(cls)
        return False if bound is None else _of_values(bound, test, quantifier)

    return bind


def _of_values(bound: Bound, test: Callable[[Any], bool], quantifier: tree.Quantifier) -> Predicate:
    get = bound.get
    if bound.one:

        def of_one(event: Any, time: int, migration: str) -> bool:
            value = get(event, time, migration)
            return value is not None and bool(test(value))

        return of_one
    ask = all if quantifier == "all" else any

    def of_all(event: Any, time: int, migration: str) -> bool:
        values = get(event, time, migration)
        return bool(values) and ask(map(test, values))

    return of_all


def _of_pairs(
    left: Values, right: Values, relation: Callable[[Any, Any], bool], quantifier: tree.Quantifier
) -> Predicate:
    ask = all if quantifier == "all" else any

    def test(event: Any, time: int, migration: str) -> bool:
        ones, others = list(left(event, time, migration)), list(right(event, time, migration))
        if not ones or not others:
            return False
        return ask(relation(one, other) for one in ones for other in others)

    return test


def _between_devices(relation: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Fields of device state: their values, where those are alike."""

    def test(left: Found, right: Found) -> bool:
        return any(
            relation(one, other)
            for one in plain(left)
            for other in plain(right)
            if _sort(one) is _sort(other)
        )

    return test


def _sort(value: object) -> type:
    return float if isinstance(value, int | float) else type(value)


def _member(values: frozenset[Any], spans: list[tuple[Any, Any]]) -> Callable[[Any], bool]:
    if not spans:
        return values.__contains__
    return lambda value: value in values or any(low <= value <= high for low, high in spans)


def _shortened(values: Any) -> list[Any]:
    """The values, as far as `matches` looks at them."""
    left = MAX_SEARCHED
    found = []
    for value in values:
        if left <= 0:
            break
        found.append(value[:left])
        left -= len(value)
    return found
