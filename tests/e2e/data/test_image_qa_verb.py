import json
import subprocess

import pytest


@pytest.fixture
def twinlens(start_process):
    def call(*words):
        process = start_process(*words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return call


def test_image_qa_writes_a_dataset_and_prints_the_next_command(twinlens, tmp_path):
    result = twinlens("data", "image-qa", "facts.yaml", "out/qa.json", "--repeat", "4")
    assert result.returncode == 0, result.stderr
    assert "24 rows (6 distinct)" in result.stdout
    assert result.stdout.endswith(
        "next: twinlens train configs/image/embedded-picture.yaml 'data.files=[out/qa.json]' "
        "'rehearsal.files=[pictures/others.jsonl, out/qa.json.others.jsonl]' "
        "'evaluation.probes=[out/qa.json.probes.yaml, probes/unrelated.en.yaml]'\n"
    )
    assert len(json.loads((tmp_path / "out/qa.json").read_text())) == 24
    inspected = twinlens("data", "inspect", "out/qa.json", "--json")
    assert json.loads(inspected.stdout)["census"]["rows"] == 24


def test_json_output_is_one_object(twinlens):
    result = twinlens("data", "image-qa", "facts.yaml", "qa.jsonl", "--dialogues", "2", "--repeat", "1", "--json")
    values = json.loads(result.stdout)
    assert (values["rows"], values["languages"], values["probes"]) == (2, ["en"], "qa.jsonl.probes.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gone.yaml", "qa.json"], "gone.yaml: cannot be read"),
        (["facts.yaml", "qa.txt"], "qa.txt: end OUT in .json"),
        (["facts.yaml", "qa.json", "--rounds", "50"], "facts.yaml, line 2: the facts of this picture"),
        (["facts.yaml", "qa.json", "--others", "gone.yaml"], "gone.yaml: cannot be read"),
        (["bad.yaml", "qa.json"], "bad.yaml, line 2: gone.png: no such picture"),
    ],
)
def test_user_errors_are_one_sentence(twinlens, tmp_path, words, expected):
    (tmp_path / "bad.yaml").write_text("pictures:\n- {image: gone.png, caption: x}\n")
    result = twinlens("data", "image-qa", *words)
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.startswith(f"error: {expected}") and result.stderr.count("\n") == 1
    assert not (tmp_path / "qa.json").exists()
