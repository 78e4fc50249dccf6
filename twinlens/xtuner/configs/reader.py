"""Read XTuner config files: evaluate assignments, list other statements, run no code.

Values are numbers, texts, None, lists, tuples, dicts, `Reference` for imported objects, and `Unevaluated` for values
that are known only when the file runs.
"""

# pyright: reportMatchNotExhaustive=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import ast
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.errors import ConfigError
from twinlens.xtuner.configs.expressions import Reference, Scope, Unevaluated, evaluate

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 50_000  # of the syntax tree; the longest config of XTuner has about 2,000
_READ_BASE = Reference("mmengine.config.read_base")


@dataclass(frozen=True, slots=True)
class XTunerConfig:
    """The values of a config file.

    Args:
        values: by name, in the order of the file.
        skipped: statements that were not evaluated, such as calls and loops.
    """

    file: Path
    values: dict[str, Any]
    skipped: tuple[Unevaluated, ...]


def read_xtuner_config(file: Path) -> XTunerConfig:
    """Read a config and the base files that it imports in `with read_base():`.

    Raises:
        ConfigError: a file is missing, is not Python, is too large or too deeply nested.
    """
    reader = _Reader()
    values = reader.read(file, ())
    if "_base_" in values:
        raise ConfigError(f"{file}: `_base_` is not supported; import the base in `with read_base():`.")
    return XTunerConfig(file, values, tuple(reader.skipped))


class _Reader:
    """Reads a config and its base files, each file once."""

    def __init__(self) -> None:
        self.skipped: list[Unevaluated] = []
        self._files: dict[Path, dict[str, Any]] = {}

    def read(self, file: Path, importers: tuple[Path, ...]) -> dict[str, Any]:
        path = file.resolve()
        if path in importers:
            raise ConfigError(f"{file}: imports itself through read_base; remove one of the imports.")
        if path not in self._files:
            try:
                tree, source = _parse(file)
                scope = Scope(str(file), source.split("\n"), {})
                self._evaluate(tree.body, scope, (*importers, path))
            except (RecursionError, MemoryError) as error:
                raise ConfigError(f"{file}: nested too deeply for a config; give another file.") from error
            self._files[path] = scope.values
        return self._files[path]

    def _evaluate(self, statements: list[ast.stmt], scope: Scope, importers: tuple[Path, ...]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=targets, value=value):
                    _assign(targets, value, scope)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    _assign([target], value, scope)
                case ast.AugAssign(target=target, op=sign, value=value):
                    result = ast.BinOp(left=target, op=sign, right=value)
                    _assign([target], ast.copy_location(result, statement), scope)
                case ast.Import(names=names):
                    for name in names:
                        module = name.name if name.asname else name.name.partition(".")[0]
                        scope.values[name.asname or module] = Reference(module)
                case ast.ImportFrom(names=[ast.alias(name="*")]):
                    self.skipped.append(scope.unevaluated(statement))
                case ast.ImportFrom(module=module, names=names, level=level):
                    for name in names:
                        full_name = f"{'.' * level}{module or ''}.{name.name}"
                        scope.values[name.asname or name.name] = Reference(full_name)
                case ast.If(test=test, body=yes, orelse=no) if not isinstance(
                    decision := evaluate(test, scope), Unevaluated
                ):
                    self._evaluate(yes if decision else no, scope, importers)
                case ast.With(items=[ast.withitem(context_expr=ast.Call(func=call, args=[]))], body=body) if (
                    evaluate(call, scope) == _READ_BASE
                ):
                    self._read_bases(body, scope, importers)
                case ast.Expr(value=ast.Call() as call) if _update(call, scope):
                    pass
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case _:  # the names that it may change become unevaluated
                    skipped = scope.unevaluated(statement)
                    self.skipped.append(skipped)
                    scope.values.update(dict.fromkeys(_changed_names(statement), skipped))

    def _read_bases(self, statements: list[ast.stmt], scope: Scope, importers: tuple[Path, ...]) -> None:
        for statement in statements:
            if isinstance(statement, ast.Pass):
                continue
            where = f"{scope.file}, line {statement.lineno}"
            if not isinstance(statement, ast.ImportFrom) or not statement.level or not statement.module:
                raise ConfigError(f"{where}: read_base supports only `from .file import ...`; copy the values instead.")
            parents = importers[-1].parents
            folder = parents[min(statement.level, len(parents)) - 1]
            base = folder.joinpath(*statement.module.split(".")).with_suffix(".py")
            if not base.is_file():
                raise ConfigError(f"{where}: imports {base}, which does not exist; add that file.")
            values = self.read(base, importers)
            for name in statement.names:
                if name.name == "*":
                    scope.values.update({key: value for key, value in values.items() if not key.startswith("_")})
                elif name.name in values:
                    scope.values[name.asname or name.name] = values[name.name]
                else:
                    raise ConfigError(f"{where}: {base} has no {name.name}; remove it from the import.")


def _parse(file: Path) -> tuple[ast.Module, str]:
    """The syntax tree of a file, and its text."""
    too_large = ConfigError(f"{file}: too large for a config; give the file that XTuner trains.")
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise too_large
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in texts
            tree = ast.parse(source)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a config.") from error
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno or 1}: not valid Python ({error.msg}); fix it.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not Python text in UTF-8 ({error}); give a config file in UTF-8.") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise too_large
    return tree, source


def _assign(targets: list[ast.expr], node: ast.expr, scope: Scope) -> None:
    """Assign an expression; names that a method call or `:=` in it may change become unevaluated."""
    value = evaluate(node, scope)
    for part in ast.walk(node):
        match part:
            case ast.NamedExpr(target=ast.Name(id=name)):
                scope.values[name] = scope.unevaluated(part)
            case ast.Call(func=ast.Attribute(value=base)):
                for name in _root(base):
                    if isinstance(scope.values.get(name), dict | list):
                        scope.values[name] = scope.unevaluated(part)
    for target in targets:
        _bind(target, value, scope)


def _bind(target: ast.expr, value: Any, scope: Scope) -> None:
    """Assign to a name, a key or an attribute; names in any other target become unevaluated."""
    match target:
        case ast.Name(id=name):
            scope.values[name] = value
            return
        case ast.Tuple(elts=targets) | ast.List(elts=targets):
            if isinstance(value, list | tuple) and len(value) == len(targets):
                for inner, part in zip(targets, value, strict=True):
                    _bind(inner, part, scope)
                return
        case ast.Attribute(value=base) | ast.Subscript(value=base):
            owner = evaluate(base, scope)
            key = target.attr if isinstance(target, ast.Attribute) else evaluate(target.slice, scope)
            if isinstance(owner, dict) and isinstance(key, str | int):
                owner[key] = value
                return
    scope.values.update(dict.fromkeys(_changed_names(target), scope.unevaluated(target)))


def _update(call: ast.Call, scope: Scope) -> bool:
    """Evaluate `name.update(...)`, the usual change of an imported base; False for any other call."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "update":
        return False
    owner = evaluate(call.func.value, scope)
    constructor = ast.Call(func=ast.Name(id="dict", ctx=ast.Load()), args=call.args, keywords=call.keywords)
    change = evaluate(ast.copy_location(constructor, call), scope)
    if not isinstance(owner, dict) or not isinstance(change, dict):
        return False
    owner.update(change)
    return True


def _changed_names(node: ast.AST) -> set[str]:
    """Names that a node assigns, deletes, or calls a method of."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names.add(part.id)
            case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
                names |= _root(part)
            case ast.Call(func=ast.Attribute(value=base)):
                names |= _root(base)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name.partition(".")[0])
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return names


def _root(node: ast.expr) -> set[str]:
    """The first name in a chain of attributes and subscripts."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
