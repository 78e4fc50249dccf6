"""XTuner's config files, read without running them: assignments are worked out, all else is left and named.

Values are plain: numbers, texts, None, lists, tuples, dicts, `Reference` for what is imported, and `Unread` for what
cannot be known without running the file.
"""

import ast
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.errors import ConfigError
from twinlens.xtuner.configs.expressions import Reference, Scope, Unread, evaluate

LARGEST_FILE = 1 << 20
MOST_PIECES = 50_000  # of syntax; the longest config of XTuner has some two thousand
_READ_BASE = "mmengine.config.read_base"


@dataclass(frozen=True, slots=True)
class Config:
    """What a config says.

    Args:
        values: by name, in the order of the file.
        skipped: statements that were not run, such as calls and loops.
    """

    file: Path
    values: dict[str, Any]
    skipped: tuple[Unread, ...]


def read_config(file: Path) -> Config:
    """Read a config, and through `with read_base():` the files beside it that it is built on.

    Raises:
        ConfigError: the file cannot be read, is not Python, is too large or too deeply nested, or is built on a file
            that is not there.
    """
    reading = _Reading({}, [])
    values = _guarded(reading, file, ())
    if "_base_" in values:
        raise ConfigError(f"{file}: `_base_` is the older way to build on a file; write `with read_base():` imports.")
    return Config(file, values, tuple(reading.skipped))


@dataclass(frozen=True, slots=True)
class _Reading:
    """Files that were read already, and statements that were not run."""

    done: dict[Path, dict[str, Any]]
    skipped: list[Unread]


def _guarded(reading: _Reading, file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        return _read(reading, file, above)
    except (RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{file}: nested too deeply to be a config; give the file that XTuner trains with."
        ) from error


def _read(reading: _Reading, file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    place = file.resolve()
    if place in above:
        raise ConfigError(f"{file}: is built on itself through read_base; take one of the imports out.")
    if place not in reading.done:
        source = _source(file)
        scope = Scope(str(file), source.split("\n"), {})
        _run(reading, _parse(file, source).body, scope, (*above, place))
        reading.done[place] = scope.values
    return reading.done[place]


def _source(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{file}: over {LARGEST_FILE >> 20} MiB, so no config; give the file to train with.")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a config.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _parse(file: Path, source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in somebody's text
            tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno or 1}: not valid Python ({error.msg}); mend it.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not Python text ({error}); give a config file.") from error
    if sum(1 for _ in ast.walk(tree)) > MOST_PIECES:
        raise ConfigError(f"{file}: far longer than a config; give the file that XTuner trains with.")
    return tree


def _run(reading: _Reading, statements: list[ast.stmt], scope: Scope, above: tuple[Path, ...]) -> None:
    for statement in statements:
        match statement:
            case ast.Assign(targets=targets, value=value):
                found = _settled(value, scope)
                for target in targets:
                    _bind(target, found, scope)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                _bind(target, _settled(value, scope), scope)
            case ast.AugAssign(target=target, op=sign, value=value):
                result = ast.copy_location(ast.BinOp(left=target, op=sign, right=value), statement)
                _bind(target, _settled(result, scope), scope)
            case ast.Import(names=names):
                for name in names:
                    whole, _, _ = name.name.partition(".")
                    scope.values[name.asname or whole] = Reference(name.name if name.asname else whole)
            case ast.ImportFrom():
                _import_from(reading, statement, scope)
            case ast.If(test=test, body=yes, orelse=no):
                decision = evaluate(test, scope)
                if isinstance(decision, Unread):
                    _skip(reading, statement, scope)
                else:
                    _run(reading, yes if decision else no, scope, above)
            case ast.With(items=[ast.withitem(context_expr=ast.Call(func=base, args=[]))]) if evaluate(
                base, scope
            ) == Reference(_READ_BASE):
                _read_bases(reading, statement, scope, above)
            case ast.Expr(value=ast.Call() as call) if _update(call, scope):
                pass
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case _:
                _skip(reading, statement, scope)


def _settled(value: ast.expr, scope: Scope) -> Any:
    """The value of an expression; what an unread call or `:=` in it may have changed is no longer known."""
    found = evaluate(value, scope)
    for node in ast.walk(value):
        match node:
            case ast.NamedExpr(target=ast.Name(id=name)):
                scope.values[name] = scope.unread(node)
            case ast.Call(func=ast.Attribute(value=base)):
                for name in _root(base):
                    if isinstance(scope.values.get(name), dict | list):
                        scope.values[name] = scope.unread(node)
    return found


def _bind(target: ast.expr, value: Any, scope: Scope) -> None:
    """Give a name, a key or an attribute its value; whatever else is on the left becomes unread."""
    match target:
        case ast.Name(id=name):
            scope.values[name] = value
            return
        case ast.Tuple(elts=inner) | ast.List(elts=inner):
            if isinstance(value, list | tuple) and len(value) == len(inner):
                for each, part in zip(inner, value, strict=True):
                    _bind(each, part, scope)
                return
        case ast.Attribute(value=base, attr=str() as key):
            if isinstance(place := evaluate(base, scope), dict):
                place[key] = value
                return
        case ast.Subscript(value=base, slice=index):
            place, key = evaluate(base, scope), evaluate(index, scope)
            if isinstance(place, dict) and isinstance(key, str | int):
                place[key] = value
                return
    for name in _names(target):
        scope.values[name] = scope.unread(target)


def _update(call: ast.Call, scope: Scope) -> bool:
    """Do `something.update(...)`, the way to change what read_base brought; False where it is something else."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "update":
        return False
    place = evaluate(call.func.value, scope)
    change = evaluate(
        ast.copy_location(
            ast.Call(func=ast.Name(id="dict", ctx=ast.Load()), args=call.args, keywords=call.keywords), call
        ),
        scope,
    )
    if not isinstance(place, dict) or not isinstance(change, dict):
        return False
    place.update(change)
    return True


def _import_from(reading: _Reading, statement: ast.ImportFrom, scope: Scope) -> None:
    if any(name.name == "*" for name in statement.names):
        reading.skipped.append(scope.unread(statement))
        return
    module = "." * statement.level + (statement.module or "")
    for name in statement.names:
        scope.values[name.asname or name.name] = Reference(f"{module}.{name.name}")


def _read_bases(reading: _Reading, block: ast.With, scope: Scope, above: tuple[Path, ...]) -> None:
    for statement in block.body:
        if isinstance(statement, ast.Pass):
            continue
        where = f"{scope.file}, line {statement.lineno}"
        if not isinstance(statement, ast.ImportFrom) or not statement.level or not statement.module:
            raise ConfigError(
                f"{where}: read_base takes `from .file import ...` alone; copy the values into this file."
            )
        folder = above[-1].parents[min(statement.level, len(above[-1].parents)) - 1]
        base = folder.joinpath(*statement.module.split(".")).with_suffix(".py")
        if not base.is_file():
            raise ConfigError(f"{where}: builds on {base}, which is not there; put that file in its place.")
        values = _guarded(reading, base, above)
        for name in statement.names:
            if name.name == "*":
                scope.values.update({key: value for key, value in values.items() if not key.startswith("_")})
            elif name.name in values:
                scope.values[name.asname or name.name] = values[name.name]
            else:
                raise ConfigError(f"{where}: {base} has no {name.name}; take it out of the import.")


def _skip(reading: _Reading, statement: ast.stmt, scope: Scope) -> None:
    """Leave a statement out; what it might have given a value to, or changed, is no longer known."""
    unread = scope.unread(statement)
    reading.skipped.append(unread)
    for name in _names(statement):
        scope.values[name] = unread


def _names(node: ast.AST) -> set[str]:
    """Names that a piece of the config binds, deletes, or calls a method of."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    found: set[str] = set()
    for each in ast.walk(node):
        match each:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
                found |= _root(each)
            case ast.Call(func=ast.Attribute(value=base)):
                found |= _root(base)
            case ast.alias(name=name, asname=other):
                found.add(other or name.partition(".")[0])
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
    return found


def _root(node: ast.expr) -> set[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
