"""Values of Python expressions in a config, computed from the syntax tree: nothing is imported, nothing runs."""

# pyright: reportMatchNotExhaustive=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import ast
import builtins
import operator
import posixpath
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 20_000  # characters
MAX_ELEMENTS = 4_096
MAX_INT = 2**63

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """An imported object, by its full name: `torch.float16`, `xtuner.utils.PROMPT_TEMPLATE.internlm2_chat`."""

    name: str

    def __repr__(self) -> str:
        return self.name

    @property
    def last(self) -> str:
        """The part of the name after the last dot."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Unevaluated:
    """An expression or statement whose value is not known unless the config runs.

    Args:
        source: its first line.
        where: `config.py, line 7`.
        missing: a name in it that has no value anywhere above.
    """

    source: str
    where: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that a config has assigned so far."""

    file: str
    lines: list[str]
    values: dict[str, Any]

    def unevaluated(self, node: ast.AST, missing: str | None = None) -> Unevaluated:
        """Mark a piece of the config as not evaluated."""
        number = getattr(node, "lineno", 1)
        return Unevaluated(self.lines[number - 1].strip()[:200], f"{self.file}, line {number}", missing)


class _DependsOn(Exception):
    """The expression needs another one that is not evaluated."""

    def __init__(self, cause: Unevaluated) -> None:
        self.cause = cause


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression, or `Unevaluated`; elements of a list or dict can be `Unevaluated` one by one."""
    try:
        return _value(node, scope)
    except _DependsOn as error:
        return error.cause
    except (ArithmeticError, ValueError, TypeError, LookupError):
        return scope.unevaluated(node)


def _value(node: ast.expr, scope: Scope) -> Any:
    match node:
        case ast.Constant(value=value):
            return _bounded(value)
        case ast.Name(id=name):
            return _named(node, name, scope)
        case ast.List(elts=elements):
            return _elements(elements, scope)
        case ast.Tuple(elts=elements):
            return tuple(_elements(elements, scope))
        case ast.Dict(keys=keys, values=values):
            return _dictionary(keys, values, scope)
        case ast.Attribute(value=base, attr=name):
            owner = _value(base, scope)
            return Reference(f"{owner.name}.{name}") if isinstance(owner, Reference) else _element(owner, name)
        case ast.Subscript(value=base, slice=index):
            return _element(_value(base, scope), _value(index, scope))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](_expect(_value(operand, scope), Scalar))
        case ast.BinOp(left=left, op=sign, right=right):
            return _binary(sign, _value(left, scope), _value(right, scope))
        case ast.BoolOp(op=sign, values=values):
            value = None
            for operand in values:
                value = _value(operand, scope)
                if bool(value) != isinstance(sign, ast.And):
                    break
            return value
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            sides = (_expect(_value(side, scope), Scalar | Reference) for side in (left, right))
            return _COMPARISONS[type(sign)](*sides)
        case ast.IfExp(test=test, body=yes, orelse=no):
            return _value(yes if _value(test, scope) else no, scope)
        case ast.JoinedStr(values=pieces):
            return _joined(_value(piece, scope) for piece in pieces)
        case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
            return _value(inner, scope)
        case ast.Call():
            return _call(node, scope)
    raise TypeError


def _named(node: ast.expr, name: str, scope: Scope) -> Any:
    if name in scope.values:
        return _evaluated(scope.values[name])
    if hasattr(builtins, name):
        return Reference(f"builtins.{name}")
    raise _DependsOn(scope.unevaluated(node, missing=name))


def _evaluated(value: Any) -> Any:
    if isinstance(value, Unevaluated):
        raise _DependsOn(value)
    return value


def _expect(value: Any, kind: Any) -> Any:
    """The value if it is of that type. Operations on scalars take no time; those on containers might."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _bounded(value: Any) -> Any:
    """The value if it is of a plain type and not too large."""
    match value:
        case int():
            allowed = abs(value) < MAX_INT
        case str():
            allowed = len(value) <= MAX_TEXT
        case list() | tuple() | dict():
            allowed = len(value) <= MAX_ELEMENTS
        case _:
            allowed = value is None or isinstance(value, float)
    if not allowed:
        raise ValueError
    return value


def _joined(pieces: Iterable[Any]) -> str:
    text = ""
    for piece in pieces:
        text = _bounded(text + str(_expect(piece, Scalar)))
    return text


def _elements(nodes: list[ast.expr], scope: Scope) -> list[Any]:
    values: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            values.extend(_expect(_value(node.value, scope), list | tuple))
        else:
            values.append(evaluate(node, scope))
    return _bounded(values)


def _dictionary(keys: list[ast.expr | None], values: list[ast.expr], scope: Scope) -> dict[Any, Any]:
    """A dict; the value of a missing key is a dict to unpack."""
    result: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            result.update(_expect(_value(value, scope), dict))
        else:
            result[_expect(_value(key, scope), Scalar)] = evaluate(value, scope)
    return _bounded(result)


def _element(base: Any, key: Any) -> Any:
    return _evaluated(_expect(base, dict | list | tuple | str)[_expect(key, Scalar)])


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
    ast.Pow: operator.pow,
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
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "os.path.join": posixpath.join,
    "builtins.str": str,
    "builtins.int": int,
    "builtins.float": float,
}


def _binary(sign: ast.operator, left: Any, right: Any) -> Any:
    concatenates = isinstance(sign, ast.Add) and type(left) is type(right)
    for side in (left, right):
        _expect(side, int | float | str | list | tuple if concatenates else int | float)
    if isinstance(sign, ast.Pow) and (abs(right) > 64 or abs(left) > 2**20):
        raise ValueError
    return _bounded(_ARITHMETIC[type(sign)](left, right))


def _call(node: ast.Call, scope: Scope) -> Any:
    if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        text = _value(node.func.value, scope)
        if isinstance(text, str):
            return _format(text, node, scope)
    function = _expect(_value(node.func, scope), Reference)
    if function.name == "builtins.dict":
        keys = [None if keyword.arg is None else ast.Constant(keyword.arg) for keyword in node.keywords]
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        return _dictionary([*([None] * len(node.args)), *keys], values, scope)
    arguments = [_value(argument, scope) for argument in node.args]
    if node.keywords or not arguments:
        raise TypeError
    if function.name == "builtins.len":
        return len(*arguments)
    return _bounded(_FUNCTIONS[function.name](*(_expect(argument, Scalar) for argument in arguments)))


def _format(text: str, node: ast.Call, scope: Scope) -> str:
    """`text.format(...)` with plain `{}`, `{0}` and `{name}`: no widths, no attributes, no conversions."""
    arguments = [_value(argument, scope) for argument in node.args]
    keywords = {keyword.arg: _value(keyword.value, scope) for keyword in node.keywords}
    position = 0
    pieces: list[Any] = []
    for literal, field, width, conversion in string.Formatter().parse(text):
        pieces.append(literal)
        if field is None:
            continue
        if width or conversion or None in keywords:
            raise ValueError
        if not field:
            field, position = str(position), position + 1
        pieces.append(arguments[int(field)] if field.isdecimal() else keywords[field])
    return _joined(pieces)
