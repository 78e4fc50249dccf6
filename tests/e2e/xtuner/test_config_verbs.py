"""The verbs on XTuner configs."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from xtuner_config import TEXT, TRAINER

ROW = '{"messages": [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "I am the sea."}]}\n'
SAMPLED = "custom_hooks.EvaluateChatHook.evaluation_inputs: "


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    config = TEXT.replace("internlm/internlm2-chat-1_8b", str(tiny_model)).replace(
        "accumulative_counts = 16", "accumulative_counts = 1"
    )
    (tmp_path / "mine_copy.py").write_text(config.replace("max_length = 1024", "max_length = 64"), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROW * 6, encoding="utf-8")
    return tmp_path


def twinlens(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "twinlens", *words], cwd=place, capture_output=True, text=True)


def test_a_config_is_shown_as_a_task_with_its_differences(place: Path) -> None:
    done = twinlens(place, "show-cfg", "mine_copy.py", "optim.learning_rate=1e-4")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert [line.partition(": ")[0] for line in said] == ["differs"] * (len(said) - 1) + ["override"]
    assert any(line.startswith(f"differs: {SAMPLED}") for line in said)
    (place / "mine.yaml").write_text(done.stdout, encoding="utf-8")
    again = twinlens(place, "show-cfg", "mine.yaml")
    assert (again.stdout, again.stderr) == (done.stdout, "")
    shown = json.loads(twinlens(place, "show-cfg", "mine_copy.py", "--json").stdout)
    assert shown["template"] == "internlm2_chat"
    assert any(line.startswith(SAMPLED) for line in shown["differs"])


def test_check_and_plan_take_a_config(place: Path) -> None:
    checked = json.loads(twinlens(place, "check", "mine_copy.py", "--data-only", "--json").stdout)
    assert checked["ok"] and checked["next"] == "twinlens check mine_copy.py"
    assert any(line.startswith(SAMPLED) for line in checked["differs"])
    given = ("mine_copy.py", "run.device=cpu", "quant.bits=16")
    options = ("--work-dir", "my runs", "--deepspeed", "zero2")
    for verb in (("check",), ("train", "--dry-run")):
        done = json.loads(twinlens(place, *verb, *given, *options, "--json").stdout)
        assert shlex.split(done["next"])[1:] == ["train", *given, *options]
    planned = json.loads(twinlens(place, "plan", "mine_copy.py", "--json").stdout)
    assert planned["micro_batches"] == planned["steps"] > 0
    assert any(line.startswith(SAMPLED) for line in planned["differs"])


def test_training_saves_the_task_of_the_config(place: Path) -> None:
    shown = twinlens(place, "show-cfg", "mine_copy.py").stdout
    done = twinlens(place, "train", "mine_copy.py", "run.device=cpu", "quant.bits=16", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["next"] == f"twinlens chat {result['run']}"
    assert Path(result["run"]).parent == place / "work_dirs" / "mine_copy"
    assert any(line.startswith(SAMPLED) for line in result["differs"])
    kept = YAML(typ="safe").load(Path(result["run"], "task.yaml"))
    expected = YAML(typ="safe").load(shown)
    expected["data"]["files"] = [str(place / "rows.jsonl")]
    expected["run"]["device"], expected["quant"]["bits"] = "cpu", 16
    assert kept == expected


def test_a_config_without_a_lora_gives_a_model_folder(place: Path) -> None:
    text = (place / "mine_copy.py").read_text(encoding="utf-8")
    text += "model = dict(type=SupervisedFinetune, llm=dict(model['llm'], quantization_config=None))\n"
    (place / "whole.py").write_text(text, encoding="utf-8")
    (place / "whole.yaml").write_text(twinlens(place, "show-cfg", "whole.py").stdout, encoding="utf-8")
    assert twinlens(place, "show-cfg", "whole.yaml").stdout == twinlens(place, "show-cfg", "whole.py").stdout
    done = twinlens(place, "train", "whole.py", "run.device=cpu", "--json")
    assert done.returncode == 0, done.stderr
    run = Path(json.loads(done.stdout)["run"])
    assert (run / "model" / "config.json").is_file() and not (run / "adapter").exists()


def test_a_config_for_trainer_trains(place: Path, tiny_model: Path) -> None:
    text = TRAINER.replace("internlm/internlm-7b", str(tiny_model)).replace("max_length=1024", "max_length=64")
    (place / "hf.py").write_text(f"{text}training_args.update(max_steps=2)\n", encoding="utf-8")
    done = twinlens(place, "train", "hf.py", "run.device=cpu", "quant.bits=16", "optim.warmup=0", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (Path(result["run"]) / "adapter").is_dir() and "differs" not in result


@pytest.mark.parametrize("verb", ["show-cfg", "check", "plan", "train"])
def test_a_fault_is_one_sentence(place: Path, verb: str) -> None:
    (place / "bad.py").write_text("x = (\n", encoding="utf-8")
    done = twinlens(place, verb, "bad.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: bad.py, line 1: ") and done.stderr.count("\n") == 1


def test_a_name_of_xtuners_list_is_the_shipped_task(place: Path) -> None:
    name = "internlm2_chat_1_8b_qlora_alpaca_e3"
    assert twinlens(place, "show-cfg", f"{name}.py").stdout == twinlens(place, "show-cfg", name).stdout != ""
    done = twinlens(place, "train", "internlm2_chat_7b_qlora_alpaca_e3.py")
    assert done.returncode == 2 and "list-cfg" in done.stderr


def test_data_on_a_hub_is_an_error(place: Path) -> None:
    done = twinlens(place, "check", "mine_copy.py", "data.files=[tatsu-lab/alpaca]", "--data-only")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: tatsu-lab/alpaca: no such file; download")
