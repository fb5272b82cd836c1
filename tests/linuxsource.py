"""The kernel's source: what its headers define, as far as tests/archtables.py needs it."""

import ast
import operator
import re
from collections.abc import Callable
from pathlib import Path

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_SUFFIX = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b")
_OCTAL = re.compile(r"(?<![\w.])0+(?=\d)")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "_AC": lambda value, suffix: value,
    "UL": lambda value: value,
    **dict.fromkeys(("BIT", "BIT_ULL", "BIT_MASK", "_BITUL", "_BITULL", "__MASK"), lambda bit: 1 << bit),
    "_ULL": lambda value: value,
    "GENMASK": lambda high, low: (1 << high + 1) - (1 << low),
}
Names = dict[int, str]


class Linux:
    """The source of a kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = (folder / "Makefile").read_text()
        self.version = ".".join(
            re.findall(r"^(?:VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)", made, re.MULTILINE)[:3]
        )

    def text(self, name: str) -> str:
        """A file without comments, long lines in one."""
        return _COMMENT.sub("", (self.folder / name).read_text()).replace("\\\n", " ")

    def numbers(self, name: str) -> dict[str, int]:
        """What a header defines to be a number; of several definitions the first."""
        return numbers(self.text(name))

    def behind(self, name: str, prefix: str, suffix: str = "") -> dict[str, int]:
        """Numbers by the part of their name between prefix and suffix."""
        found = {}
        for key, value in self.numbers(name).items():
            if match := re.fullmatch(f"{prefix}(\\w+?){suffix}", key):
                found[match[1]] = value
        return found


def numbers(text: str) -> dict[str, int]:
    """Names with the number that they are defined to be."""
    defined: dict[str, str] = {}
    for name, value in _DEFINE.findall(_COMMENT.sub("", text)):
        defined.setdefault(name, value)
    found: dict[str, int] = {}
    for name in defined:
        try:
            found[name] = number_of(defined[name], defined, 0)
        except (SyntaxError, ValueError, KeyError, TypeError):
            continue
    return found


def last_numbers(text: str) -> dict[str, int]:
    """The same; of several definitions the last, which is that of 64 bits where 32 come first."""
    return numbers("\n".join(reversed(text.split("\n"))))


def number_of(text: str, defined: dict[str, str], depth: int) -> int:
    """The value of an expression; names are looked up in `defined`. Raises what numbers() passes over."""
    if depth > 8:
        raise ValueError
    node = ast.parse(_OCTAL.sub("0o", _SUFFIX.sub(r"\1", text.strip())), mode="eval").body

    def of(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return 0 if name in ("UL", "ULL") else number_of(defined[name], defined, depth + 1)
            case ast.BinOp(left=left, op=operation, right=right):
                return _OPERATORS[type(operation)](of(left), of(right))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return _FUNCTIONS[name](*map(of, arguments))
        raise ValueError

    return of(node)


def enumeration(text: str, prefix: str) -> dict[str, int]:
    """The names of the enum that has names with a prefix, which are left out; counted from 0."""
    for body in re.findall(r"enum\s*\w*\s*\{(.*?)\}", text, re.DOTALL):
        names = [name.strip() for name in body.split(",") if name.strip()]
        if names and all(name.startswith(prefix) and "=" not in name for name in names):
            return {name.removeprefix(prefix): number for number, name in enumerate(names)}
    raise ValueError(prefix)


def members(text: str, struct: str) -> list[str]:
    """The names in a struct of plain members."""
    found = re.search(rf"struct {struct} \{{(.*?)\}};", text, re.DOTALL)
    assert found, struct
    return re.findall(r"(\w+);", found[1])


def bit_fields(body: str) -> list[tuple[str, int]]:
    """(name, mask) of the bit fields in the body of a struct."""
    found = []
    at = 0
    for name, width in re.findall(r"(\w+)\s*:\s*(\d+)", body):
        found.append((name, ((1 << int(width)) - 1) << at))
        at += int(width)
    return found


def single_bits(found: dict[str, int]) -> Names:
    """Bit -> name, of masks of one bit; of several names the first."""
    names: Names = {}
    for name, mask in found.items():
        if mask and mask & (mask - 1) == 0:
            names.setdefault(mask.bit_length() - 1, name)
    return dict(sorted(names.items()))


def swapped(found: dict[str, int]) -> Names:
    """Number -> name; of several names the first."""
    names: Names = {}
    for name, value in found.items():
        names.setdefault(value, name)
    return dict(sorted(names.items()))
