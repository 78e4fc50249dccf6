"""Config reader: values equal those of Python, and no code runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.errors import ConfigError
from twinlens.xtuner.configs.expressions import Reference, Unevaluated
from twinlens.xtuner.configs.reader import XTunerConfig, read_xtuner_config

Write = Callable[[str, str], Path]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=20,
)
numbers = st.recursive(
    st.integers(-50, 50).map(str) | st.floats(0.1, 50).map(repr),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "<", "=="]), inner).map(
        lambda parts: f"({' '.join(parts)})"
    ),
    max_leaves=6,
)


def read(write: Write, text: str) -> dict[str, Any]:
    return read_xtuner_config(write("config.py", text)).values


def value(write: Write, expression: str) -> Any:
    return read(write, f"{SET}\nx = {expression}\n")["x"]


SET = 'import os\nimport os.path as osp\nimport torch\nfrom xtuner.utils import PROMPT_TEMPLATE\nroot = "data/"\nn = 3'


@given(trees)
def test_literals_equal_those_of_python(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    file = tmp_path_factory.mktemp("read") / "config.py"
    file.write_text(f"x = {tree!r}\n", encoding="utf-8")
    assert read_xtuner_config(file).values["x"] == tree


@given(numbers)
def test_arithmetic_equals_python_or_is_unevaluated(tmp_path_factory: pytest.TempPathFactory, expression: str) -> None:
    file = tmp_path_factory.mktemp("read") / "config.py"
    file.write_text(f"x = {expression}\n", encoding="utf-8")
    found = read_xtuner_config(file).values["x"]
    if not isinstance(found, Unevaluated):
        assert found == eval(expression)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("int(2048 - (336 / 14) ** 2)", 1472),
        ("root + 'a.json'", "data/a.json"),
        ("f'{root}{n}.json'", "data/3.json"),
        ("'{}-{}-{name}'.format(root, 1, name=n)", "data/-1-3"),
        ("'{0}-{name}-{0}'.format(root, name=n)", "data/-3-data/"),
        ("os.path.join(root, 'a', 'b.json')", "data/a/b.json"),
        ("osp.join(root, 'b.json')", "data/b.json"),
        ("dict(a=1, **dict(b=[n, dict(c=root)]))", {"a": 1, "b": [3, {"c": "data/"}]}),
        ("dict(dict(a=1), b=2)['b']", 2),
        ("[1, *(2, 3)]", [1, 2, 3]),
        ("'yes' if n > 2 and not root == 'x' else 'no'", "yes"),
        ("len(root) + len([1, 2])", 7),
        ("str(n) + str(1.5)", "31.5"),
        ("torch.float16", Reference("torch.float16")),
        ("PROMPT_TEMPLATE.internlm2_chat", Reference("xtuner.utils.PROMPT_TEMPLATE.internlm2_chat")),
        ("torch.float16 == torch.float16", True),
    ],
)
def test_expressions(write: Write, expression: str, expected: Any) -> None:
    assert value(write, expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "open('touched', 'w')",
        "__import__('os').system('touch touched')",
        "os.system('touch touched')",
        "os.environ['HOME']",
        "[each for each in range(3)]",
        "lambda: 1",
        "exec('y = 1')",
        "undefined",
        "10 ** 10 ** 10",
        "2 ** 64",
        "'a' * 10 ** 9",
        "[0] * 10 ** 9",
        "'{:>999999999}'.format(1)",
        "'{0.__class__}'.format(1)",
        "f'{n:>99999999}'",
        "f'{n!r}'",
        "1 / 0",
        "1e999 - 1e999 if [] < {} else 0",
        "root[99]",
        "root.upper()",
        "int('9' * 5000)",
        "(-8) ** 0.5",
        "b'bytes'",
        "{1, 2}",
        "...",
        "dict(zip('ab', 'cd'))",
        "root % 3",
    ],
)
def test_other_expressions_are_unevaluated(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = value(write, expression)
    assert (found.source, found.where) == (f"x = {expression}", f"{tmp_path / 'config.py'}, line 7")
    first, second = value(write, f"[1, {expression}]")
    assert first == 1 and isinstance(second, Unevaluated)
    assert not Path("touched").exists()


EVIL = [
    "import os\nos.system('touch touched')",
    "__import__('os').system('touch touched')",
    "import trap",
    "from trap import *",
    "from trap import thing",
    "open('touched', 'w').close()",
    "exec(\"open('touched', 'w')\")",
    "[open('touched', 'w') for _ in range(1)]",
    "x = [open('touched', 'w') for _ in range(1)]",
    "@print\n@(lambda f: open('touched', 'w'))\ndef f(): pass",
    "class A:\n    open('touched', 'w')",
    "for _ in range(1):\n    open('touched', 'w')",
    "while True:\n    open('touched', 'w')",
    "with open('touched', 'w') as f:\n    pass",
    "try:\n    open('touched', 'w')\nfinally:\n    pass",
    "def f(x=open('touched', 'w')):\n    pass",
    "x: open('touched', 'w') = 1",
    'x = f\'{open("touched", "w")}\'',
    "x = (y := open('touched', 'w'))",
    "assert open('touched', 'w')",
    "if open('touched', 'w'):\n    x = 1",
    "from mmengine.config import read_base\nwith read_base():\n    from .trap import *",
    "x = dict(type=open('touched', 'w'))",
    "x = {open('touched', 'w'): 1}",
    "del x, open('touched', 'w').y",
]


@pytest.mark.parametrize("text", EVIL)
def test_nothing_runs(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write("trap.py", "open('touched', 'w').close()\nthing = 1\n")
    read(write, f"lr = 1\n{text}\n")
    assert not Path("touched").exists()


def test_the_same_code_has_an_effect_when_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(EVIL[5], {})
    assert Path("touched").exists()


def test_skipped_statements_are_listed_and_their_names_become_unevaluated(write: Write) -> None:
    config = read_xtuner_config(
        write(
            "config.py",
            "import os\na = b = c = d = e = 1\nhooks = [1]\nmodel = dict(x=1)\n"
            "for a in range(3):\n    b = a\nif os.getenv('X'):\n    c = 2\nhooks.append(2)\n"
            "f = model.pop('x')\nprint((d := 5))\nimport json\n",
        )
    )
    for name in ("a", "b", "c", "d", "f", "hooks", "model"):
        assert isinstance(config.values[name], Unevaluated), name
    assert config.values["e"] == 1
    assert [each.source for each in config.skipped] == [
        "for a in range(3):",
        "if os.getenv('X'):",
        "hooks.append(2)",
        "print((d := 5))",
    ]


def test_values_can_be_changed(write: Write) -> None:
    values = read(
        write,
        "n = 2\nn *= 3\nhooks = [1]\nhooks += [2]\nif n > 5:\n    hooks += [3]\nelse:\n    hooks = []\n"
        "model = dict(llm=dict(a=1))\nmodel['llm']['b'] = 2\nmodel['llm'].update(c=3)\n"
        "x, (y, z) = 1, [2, 3]\nw: int = 4\n",
    )
    assert (values["n"], values["hooks"]) == (6, [1, 2, 3])
    assert values["model"] == {"llm": {"a": 1, "b": 2, "c": 3}}
    assert [values[name] for name in "xyzw"] == [1, 2, 3, 4]


BASED = "from mmengine.config import read_base\nwith read_base():\n    "


def test_base_files_are_imported(write: Write) -> None:
    write("parts/optim.py", "from torch.optim import AdamW\noptim = dict(type=AdamW, lr=1e-3)\n_own = 1\n")
    write("parts/deep/model.py", f"{BASED}from ..optim import optim as inner\nmodel = dict(optim=inner)\n")
    text = f"{BASED}from .parts.optim import *\n    from .parts.deep.model import model\noptim.update(lr=2e-4)\n"
    values = read(write, text)
    assert values["optim"] == {"type": Reference("torch.optim.AdamW"), "lr": 2e-4}
    assert values["model"] == {"optim": values["optim"]}
    assert "_own" not in values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{BASED}from .nowhere import *\n", "line 3: imports"),
        (f"{BASED}from .other import nothing\n", "has no nothing"),
        (f"{BASED}from mmengine.configs import *\n", "read_base supports"),
        (f"{BASED}x = 1\n", "read_base supports"),
        (f"{BASED}from .config import *\n", "imports itself"),
        ("_base_ = ['x.py']\n", "_base_"),
        ("x = = 1\n", "line 1: not valid Python"),
        ("x = 1\x00\n", "not"),
        ("x = " + "(" * 5000 + ")" * 5000, "config"),
        ("x = " + "[" * 90 + "1" + "]" * 90 + " + [1]" * 3000, "nested too deeply"),
        ("x = " + "-" * 100_000 + "1", "config"),
        ("x = a" + ".b" * 30_000, "config"),
        ("x = 1" + " + 1" * 20_000, "config"),
        ("x = " + "9" * 5000, "config"),
        ("x = 1\n" * 20_000, "too large"),
        ("#" * (1 << 20) + "\n", "too large"),
    ],
    ids=lambda text: text[:40],
)
def test_unreadable_configs_are_refused(write: Write, text: str, says: str) -> None:
    write("other.py", "x = 1\n")
    with pytest.raises(ConfigError, match=says):
        read(write, text)


def test_values_that_double_are_bounded(write: Write) -> None:
    doubling = "".join(f"{name} = {name} + {name}\n" for name in ("text", "many") * 60)
    values = read(write, f"text = 'ab'\nmany = [1, 2]\ndeep = [1]\n{doubling}" + "deep = [deep, deep]\n" * 60)
    assert isinstance(values["text"], Unevaluated) and isinstance(values["many"], Unevaluated)
    assert isinstance(values["deep"], list)
    assert isinstance(read(write, "a = [1]\n" + "a = [a, a]\n" * 60 + "b = a == a\n")["b"], Unevaluated)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_xtuner_config(file)
    file.write_bytes(b"x = '\xff\xfe'\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_xtuner_config(file)


def test_a_config_knows_its_file(write: Write) -> None:
    file = write("config.py", "x = 1\n")
    assert read_xtuner_config(file) == XTunerConfig(file, {"x": 1}, ())
