"""What a Python expression of a config comes to, worked out from its syntax tree: nothing is imported, nothing runs."""

import ast
import builtins
import operator
import posixpath
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_TEXT = 20_000  # characters
LONGEST_LIST = 4_096  # elements
LARGEST = 2**63  # of a whole number

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """Something that is imported, by its full name: `torch.float16`, `xtuner.utils.PROMPT_TEMPLATE.internlm2_chat`."""

    name: str

    def __repr__(self) -> str:
        return self.name

    @property
    def last(self) -> str:
        """The name without what stands before its last point."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Unread:
    """What cannot be known without running the config.

    Args:
        source: the line that it begins on.
        where: `config.py, line 7`.
        missing: a name in it that has no value anywhere above.
    """

    source: str
    where: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that a config has given values to, so far."""

    file: str
    lines: list[str]
    values: dict[str, Any]

    def unread(self, node: ast.AST, missing: str | None = None) -> Unread:
        """A piece of the config as what could not be read."""
        number = getattr(node, "lineno", 1)
        return Unread(self.lines[number - 1].strip()[:200], f"{self.file}, line {number}", missing)


class _CannotRead(Exception):
    """With what is not known, where that stands elsewhere."""

    def __init__(self, root: Unread | None = None) -> None:
        self.root = root


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression, or `Unread`; parts of a list or dict that cannot be read are `Unread` in it."""
    try:
        return _value(node, scope)
    except _CannotRead as error:
        return error.root or scope.unread(node)
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return scope.unread(node)


def _value(node: ast.expr, scope: Scope) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return _bounded(node.value)
        case ast.Name(id=name):
            return _named(node, name, scope)
        case ast.List(elts=elements):
            return _elements(elements, scope)
        case ast.Tuple(elts=elements):
            return tuple(_elements(elements, scope))
        case ast.Dict(keys=keys, values=values):
            return _mapping(keys, values, scope)
        case ast.Attribute(value=base, attr=name):
            found = _value(base, scope)
            return Reference(f"{found.name}.{name}") if isinstance(found, Reference) else _below(found, name)
        case ast.Subscript(value=base, slice=index):
            return _below(_value(base, scope), _value(index, scope))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_scalar(_value(operand, scope)))
        case ast.BinOp(left=left, op=sign, right=right):
            return _binary(sign, _value(left, scope), _value(right, scope))
        case ast.BoolOp(op=sign, values=values):
            return _logic(isinstance(sign, ast.And), values, scope)
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            return _compare(sign, _value(left, scope), _value(right, scope))
        case ast.IfExp(test=test, body=yes, orelse=no):
            return _value(yes if _value(test, scope) else no, scope)
        case ast.JoinedStr(values=pieces):
            return _joined(_piece(piece, scope) for piece in pieces)
        case ast.Call():
            return _call(node, scope)
    raise _CannotRead


def _named(node: ast.expr, name: str, scope: Scope) -> Any:
    if name in scope.values:
        return _known(scope.values[name])
    if hasattr(builtins, name):
        return Reference(f"builtins.{name}")
    raise _CannotRead(scope.unread(node, missing=name))


def _known(value: Any) -> Any:
    if isinstance(value, Unread):
        raise _CannotRead(value)
    return value


def _scalar(value: Any) -> Any:
    """Numbers, texts and None alone: what is compared, calculated and formatted takes no time then."""
    if not isinstance(value, Scalar):
        raise _CannotRead
    return value


def _bounded(value: Any) -> Any:
    """A value, unless it has grown out of all measure."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise _CannotRead
    if isinstance(value, str | list | tuple | dict):
        if len(value) > (LONGEST_TEXT if isinstance(value, str) else LONGEST_LIST):
            raise _CannotRead
    elif not isinstance(value, Scalar):
        raise _CannotRead
    return value


def _joined(pieces: Iterable[Any]) -> str:
    text = ""
    for piece in pieces:
        text = _bounded(text + str(_scalar(piece)))
    return text


def _elements(nodes: list[ast.expr], scope: Scope) -> list[Any]:
    found: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            inner = _value(node.value, scope)
            if not isinstance(inner, list | tuple):
                raise _CannotRead
            found.extend(inner)
        else:
            found.append(evaluate(node, scope))
    return _bounded(found)


def _mapping(keys: list[ast.expr | None], values: list[ast.expr], scope: Scope) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            found.update(_dictionary(_value(value, scope)))
        else:
            found[_scalar(_value(key, scope))] = evaluate(value, scope)
    return _bounded(found)


def _dictionary(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _CannotRead
    return value


def _below(base: Any, key: Any) -> Any:
    """An element, or what stands under a key."""
    if not isinstance(base, dict | list | tuple | str):
        raise _CannotRead
    return _known(base[_scalar(key)])


_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _binary(sign: ast.operator, left: Any, right: Any) -> Any:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if isinstance(sign, ast.Pow):
        if not numbers or abs(right) > 64 or abs(left) > 2**20:
            raise _CannotRead
        return _bounded(left**right)
    alike = isinstance(sign, ast.Add) and type(left) is type(right) and isinstance(left, str | list | tuple)
    if not numbers and not alike:
        raise _CannotRead
    return _bounded(_ARITHMETIC[type(sign)](left, right))


def _compare(sign: ast.cmpop, left: Any, right: Any) -> bool:
    for side in (left, right):
        if not isinstance(side, Reference):
            _scalar(side)
    return _COMPARISONS[type(sign)](left, right)


def _logic(every: bool, values: list[ast.expr], scope: Scope) -> Any:
    value: Any = None
    for node in values:
        value = _value(node, scope)
        if bool(value) != every:
            break
    return value


def _piece(node: ast.expr, scope: Scope) -> Any:
    """A piece of an f-string; a width or a conversion is left unread."""
    if isinstance(node, ast.FormattedValue):
        if node.format_spec is not None or node.conversion != -1:
            raise _CannotRead
        return _value(node.value, scope)
    return _value(node, scope)


def _call(node: ast.Call, scope: Scope) -> Any:
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr == "format":
        text = _value(called.value, scope)
        if isinstance(text, str):
            return _format(text, *_arguments(node, scope))
    function = _value(called, scope)
    if function == Reference("builtins.dict"):
        return _make_dict(node, scope)
    arguments, named = _arguments(node, scope)
    if not isinstance(function, Reference) or named or not arguments:
        raise _CannotRead
    match function.name:
        case "os.path.join":
            return _bounded(posixpath.join(*arguments))
        case "builtins.len":
            return len(arguments[0])
        case "builtins.str" | "builtins.int" | "builtins.float":
            kind = {"str": str, "int": int, "float": float}[function.last]
            return _bounded(kind(*(_scalar(argument) for argument in arguments)))
    raise _CannotRead


def _make_dict(node: ast.Call, scope: Scope) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for argument in node.args:
        found.update(_dictionary(_value(argument, scope)))
    for keyword in node.keywords:
        if keyword.arg is None:
            found.update(_dictionary(_value(keyword.value, scope)))
        else:
            found[keyword.arg] = evaluate(keyword.value, scope)
    return _bounded(found)


def _arguments(node: ast.Call, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
    if any(keyword.arg is None for keyword in node.keywords):
        raise _CannotRead
    arguments = [_value(argument, scope) for argument in node.args]
    return arguments, {str(keyword.arg): _value(keyword.value, scope) for keyword in node.keywords}


def _format(text: str, arguments: list[Any], named: dict[str, Any]) -> str:
    """`text.format(...)` with plain `{}`, `{0}` and `{name}`: no widths, no attributes, no conversions."""
    following = 0
    pieces: list[Any] = []
    for literal, field, width, conversion in string.Formatter().parse(text):
        pieces.append(literal)
        if field is None:
            continue
        if width or conversion:
            raise _CannotRead
        if not field:
            field, following = str(following), following + 1
        pieces.append(arguments[int(field)] if field.isdecimal() else named[field])
    return _joined(pieces)
