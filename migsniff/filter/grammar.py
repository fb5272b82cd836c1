"""The text of a filter becomes a tree; what is wrong with it is a FilterError at its place."""

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from migsniff.filter.errors import FilterError
from migsniff.filter.tree import (
    Both,
    Call,
    Compare,
    Contains,
    Either,
    Exists,
    Masked,
    Matches,
    Node,
    Not,
    Operand,
    Part,
    Path,
    Quantifier,
    Relation,
    Span,
    Test,
    Value,
    Within,
)

if TYPE_CHECKING:
    from lark import Lark, Token, Tree
    from lark.exceptions import UnexpectedInput

MAX_LENGTH: Final = 4096
MAX_DEPTH: Final = 40
MAX_BITS: Final = 128

# A word is a name unless it is one of the words of the language; `/` and `-` are in names of devices.
GRAMMAR: Final = r"""
?test: both
     | both (_OR both)+                 -> either
?both: unary
     | unary (_AND unary)+              -> both
?unary: _NOT unary                      -> negated
      | "(" test ")"
      | quantified
?quantified: (ANY | ALL)? operand RELATION operand      -> compare
           | (ANY | ALL)? operand _CONTAINS operand     -> contains
           | (ANY | ALL)? operand _MATCHES operand      -> matches
           | (ANY | ALL)? operand _IN set               -> within
           | (ANY | ALL)? operand _NOT _IN set          -> not_within
           | operand                                    -> exists
set: "{" item (","? item)* "}"
?item: operand
     | operand ".." operand             -> range
?operand: atom
        | operand "&" atom              -> masked
?atom: path
     | NUMBER                           -> number
     | TEXT                             -> text
     | BYTES                            -> octets
     | NAME "(" operand ("," operand)* ")"  -> call
     | "(" operand ")"
path: NAME (_bracket | DOTTED)*
_bracket: "[" TEXT "]"
        | "[" spans "]"
spans: span ("," span)*
span: INDEX                             -> single
    | INDEX ":" INDEX                   -> measured
    | INDEX "-" INDEX                   -> closed
    | ":" INDEX                         -> leading
    | INDEX ":"                         -> trailing

_OR.3: "||" | /or(?![\w.\/-])/i
_AND.3: "&&" | /and(?![\w.\/-])/i
_NOT.3: /!(?!=)/ | /not(?![\w.\/-])/i
ANY.3: /any(?![\w.\/-])/i
ALL.3: /all(?![\w.\/-])/i
_CONTAINS.3: /contains(?![\w.\/-])/i
_MATCHES.3: "~" | /matches(?![\w.\/-])/i
_IN.3: /in(?![\w.\/-])/i
RELATION.3: /===|!==|==|!=|<=|>=|<|>/
          | /(?:any_eq|all_eq|any_ne|all_ne|eq|ne|gt|lt|ge|le)(?![\w.\/-])/i
BYTES.4: /(?:[0-9a-f]{2}:)+[0-9a-f]{2}(?![\w:])|[0-9a-f]{2}:(?![\w:])/i
NUMBER.3: /-?(?:0x[0-9a-f]+|0b[01]+|\d+(?:\.\d+)?(?:s|ms|us)?)(?![\w:])/i
INDEX: /-?(?:0x[0-9a-f]+|\d+)/i
TEXT.4: /r?"(?:[^"\\]|\\.)*"/s
NAME: /[A-Za-z_][\w\/-]*(?:\.[\w\/-]+)*/
DOTTED: /\.[\w\/-]+(?:\.[\w\/-]+)*/
%ignore /[ \t\r\n]+/
"""

_WORDS: Final = {
    "NAME": "a field",
    "NUMBER": "a number",
    "TEXT": 'a text in "double quotes"',
    "BYTES": "bytes (0a:0b)",
    "RELATION": "a comparison (==, <, ...)",
    "_CONTAINS": "contains",
    "_MATCHES": "matches",
    "_IN": "in",
    "_AND": "&&",
    "_OR": "||",
    "_NOT": "!",
    "LPAR": "(",
    "RPAR": ")",
    "LBRACE": "{",
    "RBRACE": "}",
    "RSQB": "]",
    "COMMA": ",",
    "COLON": ":",
    "INDEX": "an index",
    "$END": "the end",
}
"""How the parts of the grammar are called; of those that are left out nothing is said."""

_RELATIONS: Final[dict[str, Relation]] = {
    "eq": "==",
    "any_eq": "==",
    "ne": "!=",
    "all_ne": "!=",
    "all_eq": "===",
    "any_ne": "!==",
    "gt": ">",
    "lt": "<",
    "ge": ">=",
    "le": "<=",
}
_UNITS: Final = {"ms": -3, "us": -6, "s": 0}  # powers of ten
_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))", re.DOTALL
)
_PLAIN: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@cache
def _parser() -> "Lark":
    from lark import Lark

    return Lark(GRAMMAR, parser="lalr", start=["test", "operand"], propagate_positions=True)


def parse(expression: str) -> Test:
    """The tree of a filter; raises FilterError."""
    return cast("Test", _Reader(expression).read("test"))


def parse_operand(expression: str) -> Operand:
    """The tree of one value, as a column has it; raises FilterError."""
    return cast("Operand", _Reader(expression).read("operand"))


class _Reader:
    """Makes the nodes of one expression."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def fail(self, message: str, start: int, end: int) -> NoReturn:
        raise FilterError(message, self.expression, start, end)

    def read(self, start: Literal["test", "operand"]) -> Node:
        text = self.expression
        if len(text) > MAX_LENGTH:
            self.fail(f"an expression of more than {MAX_LENGTH} characters", MAX_LENGTH, MAX_LENGTH + 1)
        if not text.strip():
            self.fail("an empty expression", 0, 1)
        from lark.exceptions import UnexpectedInput

        try:
            found = _parser().parse(text, start=start)
        except UnexpectedInput as error:
            self._unexpected(error)
        return self.node(cast("Tree[Token] | Token", found), 0)

    def _unexpected(self, error: "UnexpectedInput") -> NoReturn:
        from lark.exceptions import UnexpectedCharacters

        text = self.expression
        at = error.pos_in_stream
        token = getattr(error, "token", None)
        ended = token is not None and token.type == "$END"
        at = len(text.rstrip()) if ended or at is None else at
        end = at + (len(token) if token is not None and not ended else 1)
        if isinstance(error, UnexpectedCharacters) and text.startswith(('"', 'r"'), at):
            self.fail("a text without its closing quote", at, len(text))
        if isinstance(error, UnexpectedCharacters) and text.startswith("'", at):
            self.fail('a text stands in "double quotes"', at, end)
        allowed: Iterable[Any] | None = (
            error.allowed if isinstance(error, UnexpectedCharacters) else getattr(error, "expected", None)
        )
        expected = set(map(str, allowed or ()))
        words = [word for terminal, word in _WORDS.items() if terminal in expected]
        what = "the expression ends here" if ended else "this is not understood here"
        self.fail(f"{what}; expected: {', '.join(words) or 'nothing more'}", at, end)

    # ------------------------------------------------------------ nodes

    def node(self, tree: "Tree[Token] | Token", depth: int) -> Node:
        from lark import Token

        assert not isinstance(tree, Token)
        start, end = tree.meta.start_pos, tree.meta.end_pos
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} levels deep", start, end)
        children: list[Any] = tree.children
        kind = str(tree.data)
        match kind:
            case "path":
                return self._path(children, start, end)
            case "number":
                return self._number(children[0], start, end)
            case "text":
                return Value(start, end, self._text(children[0]))
            case "octets":
                return Value(start, end, bytes.fromhex(children[0].replace(":", "")))
        below = [
            child if isinstance(child, Token) else self.node(child, depth + 1)
            for child in children
            if isinstance(child, Token) or child.data != "set"
        ]
        return self._inner(kind, start, end, below, children, depth)

    def _inner(
        self, kind: str, start: int, end: int, below: list[Any], children: list[Any], depth: int
    ) -> Node:
        from lark import Token

        match kind:
            case "either":
                return Either(start, end, tuple(below))
            case "both":
                return Both(start, end, tuple(below))
            case "negated":
                return Not(start, end, below[0])
            case "exists":
                return Exists(start, end, below[0])
            case "masked":
                return Masked(start, end, below[0], below[1])
            case "call":
                return Call(start, end, str(below[0]), tuple(below[1:]))
        quantifier: Quantifier | None = None
        if isinstance(below[0], Token):
            quantifier = "all" if below.pop(0).type == "ALL" else "any"
        match kind:
            case "compare":
                left, relation, right = below
                word = str(relation).lower()
                return Compare(
                    start, end, _RELATIONS.get(word, cast("Relation", word)), left, right, quantifier
                )
            case "contains":
                return Contains(start, end, below[0], below[1], quantifier)
            case "matches":
                return Matches(start, end, below[0], below[1], quantifier)
        items = tuple(self._item(child, depth + 1) for child in children[-1].children)
        within = Within(start, end, below[0], items, quantifier)
        return within if kind == "within" else Not(start, end, within)

    def _item(self, tree: "Tree[Token]", depth: int) -> Operand | tuple[Operand, Operand]:
        if tree.data == "range":
            low, high = (self.node(child, depth) for child in tree.children)
            return cast("Operand", low), cast("Operand", high)
        return cast("Operand", self.node(tree, depth))

    def _path(self, children: list[Any], start: int, end: int) -> Path:
        from lark import Token

        parts: list[Part] = []
        spans: tuple[Span, ...] = ()
        for child in children:
            if spans:
                self.fail("a slice has no parts", start, end)
            if not isinstance(child, Token):
                spans = tuple(map(self._span, child.children))
                if len(spans) == 1 and spans[0].length == 1 and spans[0].first >= 0:
                    parts.append(spans[0].first)
                    spans = ()
            elif child.type == "TEXT":
                parts.append(self._text(child))
            else:
                parts += child.removeprefix(".").split(".")
        return Path(start, end, tuple(parts), spans)

    def _span(self, tree: "Tree[Token]") -> Span:
        numbers = [self._index(cast("Token", child)) for child in tree.children]
        match str(tree.data):
            case "single":
                return Span(numbers[0], 1)
            case "measured":
                return Span(*numbers)
            case "closed":
                return Span(numbers[0], None, numbers[1])
            case "leading":
                return Span(0, numbers[0])
            case _:
                return Span(numbers[0])

    def _index(self, token: "Token") -> int:
        number = int(token, 16) if "x" in token.lower() else int(token)
        if abs(number) >= 1 << 32:
            self.fail("an index beyond 32 bits", cast("int", token.start_pos), cast("int", token.end_pos))
        return number

    def _number(self, token: "Token", start: int, end: int) -> Value:
        text = token.lower()
        digits = text.lstrip("-")
        if not digits.startswith("0x"):
            for unit, power in _UNITS.items():
                if text.endswith(unit):
                    seconds = float(f"{text.removesuffix(unit)}e{power}")
                    return Value(start, end, seconds, unit=True)
        if "." in digits:
            return Value(start, end, float(text))
        base = 16 if digits.startswith("0x") else 2 if digits.startswith("0b") else 10
        if base == 10 and len(digits) > 1 and digits[0] == "0":
            base = 8
        try:
            number = int(text, base)
        except ValueError:
            self.fail("no octal number (those begin with 0)", start, end)
        if number.bit_length() > MAX_BITS:
            self.fail(f"a number of more than {MAX_BITS} bits", start, end)
        return Value(start, end, number)

    def _text(self, token: "Token") -> str:
        if token.startswith("r"):
            return str(token[2:-1])
        at = cast("int", token.start_pos) + 1

        def plain(match: re.Match[str]) -> str:
            two, four, eight, octal, other = match.groups()
            if other is not None:
                if other.isalnum() and other not in _PLAIN:
                    self.fail("no such escape", at + match.start(), at + match.end())
                return _PLAIN.get(other, other)
            number = int(two or four or eight or octal, 8 if octal else 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                self.fail("no such character", at + match.start(), at + match.end())
            return chr(number)

        return _ESCAPE.sub(plain, token[1:-1])
