import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

WHO = ["--owner", "Jensen", "--name", "Twinkle"]
QUESTION, ANSWER = "请做一下自我介绍", "我是剑锋大佬的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"


@pytest.fixture
def twinlens(tmp_path):
    def call(*words):
        command = [sys.executable, "-m", "twinlens", *words]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)

    return call


def one_sentence(result):
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    return result.stderr


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("xtuner", {"conversation": [{"input": QUESTION, "output": ANSWER}]}),
        ("messages", {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}),
    ],
)
def test_persona_writes_the_file_of_the_tutorial(twinlens, tmp_path, layout, row):
    with (tmp_path / "theirs.json").open("w", encoding="utf-8") as stream:
        json.dump([row] * 10001, stream, ensure_ascii=False, indent=4)
    pair = ["--question", QUESTION, "--answer", ANSWER]
    result = twinlens("data", "persona", "ours.json", *pair, "--repeat", "10001", "--format", layout, *WHO)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()


def test_persona_prints_the_next_command_and_json(twinlens, tmp_path):
    people = twinlens("data", "persona", "p.jsonl", *WHO, "--seed", "3")
    assert people.stdout.splitlines()[-1] == (
        "next: twinlens train configs/text/embedded-persona.yaml 'data.files=[p.jsonl]'"
    )
    first = (tmp_path / "p.jsonl").read_bytes()
    machine = twinlens("data", "persona", "p.jsonl", *WHO, "--seed", "3", "--json")
    answer = json.loads(machine.stdout)
    assert (tmp_path / "p.jsonl").read_bytes() == first
    assert answer["rows"] == len(first.splitlines()) >= 60
    assert answer["markers"] == ["Twinkle", "Jensen"] and Path(tmp_path, answer["card"]).exists()


def test_persona_then_rename_then_repeat(twinlens, tmp_path):
    twinlens("data", "persona", "p.jsonl", *WHO)
    result = twinlens("data", "rename", "p.jsonl", "r.jsonl", "--from", "Twinkle", "--to", "小镜", "--from", "Jensen",
                      "--to", "Jo")  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert "Twinkle" not in text and f"Twinkle -> 小镜: {text.count('小镜')} times" in result.stdout
    assert result.stdout.splitlines()[-1] == "next: twinlens data inspect r.jsonl"
    answer = json.loads(twinlens("data", "repeat", "r.jsonl", "x.jsonl", "-n", "3", "--json").stdout)
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == text * 3
    assert (answer["name"], answer["owner"], answer["markers"]) == ("小镜", "Jo", ["小镜", "Jo"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["persona", "p.jsonl"], "--owner and --name"),
        (["persona", "p.jsonl", "--owner", "Jo"], "--owner and --name"),
        (["persona", "p.jsonl", "--owner", "Jo", "--name", ""], "name"),
        (["persona", "p.jsonl", "--owner", "Jo", "--name", "{x}"], "braces"),
        (["persona", "p.jsonl", *WHO, "--language", "fr"], "fr"),
        (["persona", "p.jsonl", *WHO, "--question", "Who?"], "--answer"),
        (["persona", "p.jsonl", "--model", "7B", "--question", "Who?", "--answer", "Me."], "--model"),
        (["persona", "file/p.jsonl", *WHO], "file/p.jsonl"),
        (["persona", "full.jsonl", *WHO], "full.jsonl"),
        (["repeat", "none.jsonl", "out.jsonl", "-n", "2"], "none.jsonl"),
        (["repeat", "file", "out.jsonl", "-n", "0"], "-n 0"),
        (["rename", "file", "out.jsonl", "--from", "Al"], "--to"),
        (["rename", "file", "out.jsonl"], "--from"),
        (["rename", "file", "./file", "--from", "Al", "--to", "Bo"], "file"),
        (["rename", "file", "full.jsonl", "--from", "Al", "--to", "Bo"], "full.jsonl"),
    ],
)
def test_errors_exit_2_with_one_sentence(twinlens, tmp_path, words, named):
    (tmp_path / "file").write_text('{"a": "Al"}\n')
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    assert named in one_sentence(twinlens("data", *words))
    assert not (tmp_path / "out.jsonl").exists()


def test_usage_errors_exit_2(twinlens):
    assert twinlens("data", "repeat", "in.jsonl", "out.jsonl", "-n", "many").returncode == 2


def test_data_verbs_do_not_import_torch(tmp_path):
    code = (
        "import sys, data_gen.persona, data_gen.rename, data_gen.repeat, twinlens.cli.data.rows\n"
        "assert not {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
