"""XTuner's config files, read without running them: assignments are evaluated, other statements are skipped and listed.

Values are plain: numbers, texts, None, lists, tuples, dicts, `Reference` for imported objects, and `Unevaluated` for
what is not known unless the file runs.
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
MAX_NODES = 50_000  # of the syntax tree; the longest config of XTuner has some two thousand
_READ_BASE = Reference("mmengine.config.read_base")


@dataclass(frozen=True, slots=True)
class XTunerConfig:
    """The values of a config file.

    Args:
        values: by name, in the order of the file.
        skipped: statements that were not run, such as calls and loops.
    """

    file: Path
    values: dict[str, Any]
    skipped: tuple[Unevaluated, ...]


def read_xtuner_config(file: Path) -> XTunerConfig:
    """Read a config, and the files that it imports through `with read_base():`.

    Raises:
        ConfigError: the file cannot be read, is not Python, is too large or too deeply nested, or imports a base file
            that does not exist.
    """
    reader = _Reader()
    values = reader.read(file, ())
    if "_base_" in values:
        raise ConfigError(f"{file}: `_base_` is the older way to import a base; write `with read_base():` imports.")
    return XTunerConfig(file, values, tuple(reader.skipped))


class _Reader:
    """Reads a config and its bases, each file once."""

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
                self._run(tree.body, scope, (*importers, path))
            except (RecursionError, MemoryError) as error:
                raise ConfigError(
                    f"{file}: nested too deeply to be a config; give the file that XTuner trains with."
                ) from error
            self._files[path] = scope.values
        return self._files[path]

    def _run(self, statements: list[ast.stmt], scope: Scope, importers: tuple[Path, ...]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=targets, value=value):
                    result = _assigned(value, scope)
                    for target in targets:
                        _bind(target, result, scope)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    _bind(target, _assigned(value, scope), scope)
                case ast.AugAssign(target=target, op=sign, value=value):
                    result = ast.copy_location(ast.BinOp(left=target, op=sign, right=value), statement)
                    _bind(target, _assigned(result, scope), scope)
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
                    self._run(yes if decision else no, scope, importers)
                case ast.With(items=[ast.withitem(context_expr=ast.Call(func=call, args=[]))], body=body) if (
                    evaluate(call, scope) == _READ_BASE
                ):
                    self._read_bases(body, scope, importers)
                case ast.Expr(value=ast.Call() as call) if _update(call, scope):
                    pass
                case ast.Expr(value=ast.Constant()) | ast.Pass():
                    pass
                case _:  # names that it may assign or change are not known any more
                    skipped = scope.unevaluated(statement)
                    self.skipped.append(skipped)
                    scope.values.update(dict.fromkeys(_changed_names(statement), skipped))

    def _read_bases(self, statements: list[ast.stmt], scope: Scope, importers: tuple[Path, ...]) -> None:
        for statement in statements:
            if isinstance(statement, ast.Pass):
                continue
            where = f"{scope.file}, line {statement.lineno}"
            if not isinstance(statement, ast.ImportFrom) or not statement.level or not statement.module:
                raise ConfigError(
                    f"{where}: read_base takes only `from .file import ...`; copy the values into this file."
                )
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
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{file}: over {MAX_FILE_BYTES >> 20} MiB, too large for a config; give the file that XTuner trains "
                "with."
            )
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the texts of a config
            tree = ast.parse(source)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a config.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno or 1}: not valid Python ({error.msg}); fix it.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not Python text ({error}); give a config file.") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ConfigError(f"{file}: far longer than a config; give the file that XTuner trains with.")
    return tree, source


def _assigned(node: ast.expr, scope: Scope) -> Any:
    """The value of an expression; names that a skipped call or `:=` in it may have changed become unevaluated."""
    value = evaluate(node, scope)
    for part in ast.walk(node):
        match part:
            case ast.NamedExpr(target=ast.Name(id=name)):
                scope.values[name] = scope.unevaluated(part)
            case ast.Call(func=ast.Attribute(value=base)):
                for name in _root(base):
                    if isinstance(scope.values.get(name), dict | list):
                        scope.values[name] = scope.unevaluated(part)
    return value


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
    """Do `something.update(...)`, the usual way to change an imported base; False for any other call."""
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
    """Names that a piece of the config binds, deletes, or calls a method of."""
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
    """The name that a chain of attributes and subscripts begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
