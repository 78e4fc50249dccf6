"""Evaluate the Python expressions of a config from its syntax tree, without running code."""

# pyright: reportMatchNotExhaustive=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import ast
import builtins
import operator
import posixpath
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
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
    """An expression or statement whose value is known only when the config runs.

    Args:
        source: its first line.
        where: its place, such as `config.py, line 7`.
        missing: a name in it that has no value.
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
        """Mark a node as not evaluated."""
        number = getattr(node, "lineno", 1)
        return Unevaluated(self.lines[number - 1].strip()[:200], f"{self.file}, line {number}", missing)


class _DependsOn(Exception):
    """The expression depends on one that is not evaluated."""

    def __init__(self, cause: Unevaluated) -> None:
        self.cause = cause


_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
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


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression, or `Unevaluated`; single elements of a list or dict can be `Unevaluated` too."""
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
            if name in scope.values:
                return _evaluated(scope.values[name])
            if hasattr(builtins, name):
                return Reference(f"builtins.{name}")
            raise _DependsOn(scope.unevaluated(node, missing=name))
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
            return _OPERATORS[type(sign)](_expect(_value(operand, scope), Scalar))
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
            return _OPERATORS[type(sign)](*sides)
        case ast.IfExp(test=test, body=yes, orelse=no):
            return _value(yes if _value(test, scope) else no, scope)
        case ast.JoinedStr(values=pieces):
            return _joined(_value(piece, scope) for piece in pieces)
        case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
            return _value(inner, scope)
        case ast.Call():
            return _call(node, scope)
    raise TypeError


def _evaluated(value: Any) -> Any:
    if isinstance(value, Unevaluated):
        raise _DependsOn(value)
    return value


def _expect(value: Any, kind: Any) -> Any:
    """The value if it has this type. Operations on scalars are fast; operations on containers can be slow."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _bounded(value: Any) -> Any:
    """The value if it has a plain type and is not too large."""
    if isinstance(value, str | list | tuple | dict):
        allowed = len(value) <= (MAX_TEXT if isinstance(value, str) else MAX_ELEMENTS)
    else:
        allowed = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < MAX_INT)
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
    """A dict; a value without a key is a dict to unpack."""
    result: dict[Any, Any] = {}
    for key, value in zip(keys, values, strict=True):
        if key is None:
            result.update(_expect(_value(value, scope), dict))
        else:
            result[_expect(_value(key, scope), Scalar)] = evaluate(value, scope)
    return _bounded(result)


def _element(base: Any, key: Any) -> Any:
    return _evaluated(_expect(base, dict | list | tuple | str)[_expect(key, Scalar)])


def _binary(sign: ast.operator, left: Any, right: Any) -> Any:
    concatenates = isinstance(sign, ast.Add) and type(left) is type(right)
    for side in (left, right):
        _expect(side, int | float | str | list | tuple if concatenates else int | float)
    if isinstance(sign, ast.Pow) and (abs(right) > 64 or abs(left) > 2**20):
        raise ValueError
    return _bounded(_OPERATORS[type(sign)](left, right))


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
    arguments = {str(position): _value(argument, scope) for position, argument in enumerate(node.args)}
    arguments |= {str(keyword.arg): _value(keyword.value, scope) for keyword in node.keywords}
    positions = count()
    pieces: list[Any] = []
    for literal, field, width, conversion in string.Formatter().parse(text):
        if width or conversion:
            raise ValueError
        pieces.append(literal)
        if field is not None:
            pieces.append(arguments[field or str(next(positions))])
    return _joined(pieces)
