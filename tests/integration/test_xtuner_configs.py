"""XTuner's own configs, out of its wheel: each is read as Python would have it, and becomes a task or a reason."""

import builtins
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llm.named_templates import NAMED
from twinlens.task_files import open_task, shipped_tasks
from twinlens.xtuner.config_reader import read_config
from twinlens.xtuner.expressions import Reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_xtuner_configs", DOCS / "xtuner_configs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


EVERY_WEIGHT = "tunes every weight of the language model"
docs = _maker()
WHEEL = docs.find_wheel()
pytestmark = pytest.mark.skipif(WHEEL is None, reason="XTuner's wheel is not there; `make setup` fetches it")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return docs.unpack(WHEEL, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def found(configs: list[Path]) -> dict[Path, Any]:
    return docs.verdicts(configs)


def test_the_table_in_the_documents_is_what_is_read(found: dict[Path, Any]) -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.with_table(page, docs.table(found)) == page, "run `python docs/xtuner_configs.py`"


def test_every_adapter_on_internlm_and_llava_is_read(found: dict[Path, Any]) -> None:
    other = ("InternVL", "preferences", "reward model")
    refused = {
        file.stem: verdict.refusal
        for file, verdict in found.items()
        if ("internlm" in file.stem or file.stem.startswith("llava_"))
        and "lora" in file.stem
        and verdict.refusal is not None
        and not any(kind in verdict.refusal for kind in other)
    }
    assert {name: why.split(";")[0] for name, why in refused.items()} == {
        "internlm_7b_qlora_oasst1_e3_hf": "hands over to transformers' Trainer",
        "llava_llama3_8b_instruct_full_clip_vit_large_p14_336_lora_e1_gpu8_finetune": EVERY_WEIGHT,
        "llava_llama3_8b_instruct_full_clip_vit_large_p14_336_lora_e1_gpu8_internvl_finetune": EVERY_WEIGHT,
        "llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_refcoco": (
            "reads its data through RefCOCOJsonDataset"
        ),
    }


def test_every_template_is_known(found: dict[Path, Any]) -> None:
    named = {open_task(file).task.template for file, verdict in found.items() if verdict.refusal is None}
    assert named - {None} <= set(NAMED)


class Imported:
    """Whatever is imported, by its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> "Imported":
        return Imported(f"{self.name}.{name}")


def plain(value: Any) -> Any:
    if isinstance(value, Imported):
        return Reference(value.name)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def test_each_is_read_as_python_would_have_it(found: dict[Path, Any]) -> None:
    def importing(name: str, *arguments: Any) -> Imported:
        return Imported(name if len(arguments) > 2 and arguments[2] else name.partition(".")[0])

    without = [file for file, verdict in found.items() if verdict.refusal == "is no config that trains a model."]
    for file in found.keys() - set(without):
        values: dict[str, Any] = {"__builtins__": vars(builtins) | {"__import__": importing}}
        exec(compile(file.read_text(encoding="utf-8"), file.name, "exec"), values)
        del values["__builtins__"]
        values.pop("__doc__", None)
        assert plain(values) == read_config(file).values, file


JSON = 'dict(type=load_dataset, path="json", data_files="{}")'
EDITS = {  # what the tutorials change in a config that they copied
    "internlm2_chat_1_8b_qlora_alpaca_e3": {
        "dict(type=load_dataset, path=alpaca_en_path)": JSON.format("assistant.json"),
    },
    "internlm2_5_chat_7b_qlora_alpaca_e3": {
        "dict(type=load_dataset, path=alpaca_en_path)": JSON.format("assistant_changed.jsonl"),
    },
    "internlm_chat_7b_qlora_oasst1_e3": {
        "dict(type=load_dataset, path=data_path)": JSON.format("personal_assistant.json"),
        "max_length = 2048": "max_length = 512",
        "batch_size = 1 ": "batch_size = 2 ",
        "evaluation_freq = 500": "evaluation_freq = 90",
        # XTuner 0.1.9 packed in one process, warmed nothing up, and saved at the end of each epoch
        "pack_to_max_length=pack_to_max_length": "pack_to_max_length=pack_to_max_length, map_num_proc=1",
        "warmup_ratio = 0.03": "warmup_ratio = 0",
        "save_steps = 500": "save_steps = 372",
    },
    "llava_internlm2_chat_1_8b_clip_vit_large_p14_336_e1_gpu8_pretrain": {"./data": "data"},
    "llava_internlm2_chat_1_8b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune": {
        "batch_size = 16": "batch_size = 1",
        'data_root + "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"': '"repeated_data.json"',
        'image_folder = data_root + "llava_images"': "image_folder = None",
        "./work_dirs/llava_internlm2_chat_1_8b_clip_vit_large_p14_336_e1_gpu8_pretrain/": "",
    },
}


@pytest.mark.parametrize("name", EDITS)
def test_the_shipped_task_is_the_tutorials_edited_config(name: str, configs: list[Path], tmp_path: Path) -> None:
    (source,) = [file for file in configs if file.stem == name]
    text = source.read_text(encoding="utf-8")
    for before, after in EDITS[name].items():
        assert before in text, before
        text = text.replace(before, after)
    (tmp_path / source.name).write_text(text, encoding="utf-8")
    mapped = open_task(tmp_path / source.name).task.model_dump()
    shipped = open_task(shipped_tasks()[name]).task.model_dump()
    del mapped["evaluation"]["probes"], shipped["evaluation"]["probes"]
    for task in (mapped, shipped):
        task.get("pictures", {}).pop("cache_gib", None)  # ours alone
    assert mapped == shipped
