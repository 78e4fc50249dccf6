"""XTuner's shipped configs: values equal those of Python; each becomes a task or is refused."""

import builtins
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

from llm.chat_template.named_templates import NAMED_TEMPLATES
from tuning.settings import Lora
from twinlens.task_files import OpenedTask, open_task, shipped_tasks
from twinlens.xtuner.configs.expressions import Reference
from twinlens.xtuner.configs.reader import read_xtuner_config
from vlm.settings import ImageTask

DOCS = ROOT / "docs"


def _load_docs_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_xtuner_configs", DOCS / "xtuner_configs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses need it there
    spec.loader.exec_module(module)
    return module


docs = _load_docs_module()
WHEEL = docs.find_wheel()
pytestmark = pytest.mark.skipif(WHEEL is None, reason="XTuner's wheel is not there; `make setup` fetches it")


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return docs.unpack(WHEEL, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def found(configs: list[Path]) -> dict[Path, Any]:
    return docs.read_all(configs)


def test_the_table_in_the_documents_is_current(found: dict[Path, Any]) -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.with_table(page, docs.table(found)) == page, "run `python docs/xtuner_configs.py`"


def test_every_internlm_and_llava_config_that_trains_a_model_is_read(found: dict[Path, Any]) -> None:
    refused = {file: each for file, each in found.items() if isinstance(each, str)}
    ours = [file for file in refused if file.as_posix().rpartition(docs.CONFIGS)[2].startswith(("internlm/", "llava/"))]
    assert {(file.stem.partition("_")[0], refused[file]) for file in ours} == {
        ("convert", "is not a config that trains a model.")
    }
    elsewhere = {why for file, why in refused.items() if file not in ours and "internlm" in file.name.partition(".")[0]}
    of_another_kind = ("trains on preferences", "trains a reward model", "trains on raw text", "trains InternVL")
    assert {why for why in elsewhere if not why.startswith(of_another_kind)} == set()


def test_full_finetuning_configs_keep_their_values(found: dict[Path, Any]) -> None:
    whole = []
    for file, opened in found.items():
        if isinstance(opened, str):
            continue
        task, values = opened.task, read_xtuner_config(file).values
        model = values["model"]
        if values.get("framework") or task.lora is not None or not task.full_finetuning:
            continue
        whole.append(file)
        assert "lora" not in model and "llm_lora" not in model and not model.get("freeze_llm"), file
        assert task.quant.bits == 16 and "quantization_config" not in model["llm"], file
        optim = task.optim
        assert (optim.learning_rate, optim.weight_decay) == (values["lr"], values["weight_decay"]), file
        assert (optim.betas, optim.clip, optim.micro_batch) == tuple(
            values[name] for name in ("betas", "max_norm", "batch_size")
        ), file
        parallel = values.get("sequence_parallel_size", 1)
        assert optim.accumulate == max(1, values["accumulative_counts"] // parallel), file
        iterations = values["train_cfg"].get("max_iters")
        assert (
            optim.epochs == values["max_epochs"]
            if iterations is None
            else optim.steps == max(1, round(iterations / optim.accumulate))
        ), file
    assert len(whole) > 70


def named(configs: list[Path], stem: str) -> OpenedTask:
    (file,) = [file for file in configs if file.stem == stem]
    return open_task(file)


def converted(opened: OpenedTask) -> list[str]:
    """The datasets whose rows must be converted."""
    lines = [line for line in opened.differs if "convert them to messages" in line]
    return [line.partition(": ")[0].removeprefix("train_dataloader.dataset") for line in lines]


def test_full_finetuning_text_config_is_mapped(configs: list[Path]) -> None:
    task = named(configs, "internlm2_chat_1_8b_full_alpaca_e3").task
    assert (task.model, task.template, task.lora) == ("internlm/internlm2-chat-1_8b", "internlm2_chat", None)
    assert (task.data.max_length, task.data.packing, task.optim.schedule) == (2048, "xtuner", "cosine")
    assert (task.optim.learning_rate, task.optim.accumulate, task.optim.warmup) == (2e-5, 16, 0.03)


def test_full_finetuning_llava_configs_are_mapped(configs: list[Path]) -> None:
    task = named(configs, "llava_internlm2_chat_7b_clip_vit_large_p14_336_e1_gpu8_finetune").task
    assert isinstance(task, ImageTask)
    assert (task.stage, task.full_finetuning, task.whole_tower, task.tower_lora) == ("tune", True, False, None)
    assert (task.model, task.data.max_length) == ("internlm/internlm2-chat-7b", 2048)
    adapted = named(configs, "llava_llama3_8b_instruct_full_clip_vit_large_p14_336_lora_e1_gpu8_finetune").task
    assert isinstance(adapted, ImageTask)
    assert (adapted.full_finetuning, adapted.whole_tower) == (True, False)
    assert adapted.tower_lora == Lora(rank=64, alpha=16, dropout=0.05)
    tower = named(configs, "llava_phi3_mini_4k_instruct_full_clip_vit_large_p14_336_full_e2_gpu8_internvl_finetune")
    assert isinstance(tower.task, ImageTask)
    assert (tower.task.full_finetuning, tower.task.whole_tower, tower.task.tower_lora) == (True, True, None)
    assert (tower.task.optim.epochs, tower.task.data.max_length, len(tower.task.data.files)) == (2, 4096, 9)


@pytest.mark.parametrize(
    ("stem", "bits", "rank", "dropout", "rate", "epochs"),
    [
        ("internlm_7b_qlora_oasst1_e3_hf", 4, 64, 0.1, 2e-4, 3),
        ("llama2_70b_qlora_open_platypus_e1_hf", 4, 64, 0.1, 3e-4, 1),
        ("llama2_70b_int8_lora_open_platypus_e1_hf", 8, 16, 0.05, 3e-4, 1),
    ],
)
def test_configs_for_transformers_trainer_are_mapped(
    configs: list[Path], stem: str, bits: int, rank: int, dropout: float, rate: float, epochs: int
) -> None:
    opened = named(configs, stem)
    task = opened.task
    assert task.lora is not None
    assert (task.quant.bits, task.lora.rank, task.lora.alpha, task.lora.dropout) == (bits, rank, 16, dropout)
    assert (task.optim.learning_rate, task.optim.epochs, task.optim.micro_batch) == (rate, epochs, 1)
    assert (task.optim.accumulate, task.optim.schedule, task.optim.warmup) == (16, "cosine", 0.03)
    assert (task.run.save_every, task.run.keep) == (1000, 2)
    assert any(line.startswith("training_args.warmup_steps: 100 ") for line in opened.differs)


@pytest.mark.parametrize(
    ("stem", "files", "length", "accumulate", "template"),
    [
        ("internlm2_7b_w_tokenized_dataset", "/path/to/sft/data/folder", 32768, 1, "internlm2_chat"),
        ("internlm_7b_full_intern_repo_dataset_template", "/path/to/your/train/dataset", 8192, 4, "internlm_chat"),
        ("internlm2_7b_w_untokenized_dataset", None, 32768, 1, "internlm2_chat"),
    ],
)
def test_configs_on_internlm_dataset_folders_are_mapped(
    configs: list[Path], stem: str, files: str | None, length: int, accumulate: int, template: str
) -> None:
    opened = named(configs, stem)
    task = opened.task
    assert files is None or task.data.files == (Path(files),)
    assert (task.data.max_length, task.data.pack, task.data.packing) == (length, True, "isolated")
    assert (task.lora, task.template, task.optim.accumulate) == (None, template, accumulate)
    assert (task.optim.learning_rate, task.optim.betas, task.optim.warmup) == (4e-5, (0.9, 0.95), 0.025)
    assert converted(opened) == [".dataset_cfg"]


def test_refcoco_config_is_mapped(configs: list[Path]) -> None:
    opened = named(configs, "llava_vicuna_7b_v15_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_refcoco")
    task = opened.task
    assert isinstance(task, ImageTask)
    boxes = Path("data/llava_data/RefCOCOJson/train.json")
    rows = Path("data/llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json")
    assert task.data.files == (boxes, boxes, rows)
    assert (task.lora, task.optim.micro_batch) == (Lora(rank=512, alpha=256, dropout=0.05), 16)
    assert converted(opened) == [".datasets.RefCOCOJsonDataset", ".datasets.InvRefCOCOJsonDataset"]
    cut = [line for line in opened.differs if ".max_dataset_length: 70000; has no counterpart" in line]
    assert len(cut) == 2


def test_every_template_is_known(found: dict[Path, Any]) -> None:
    named = {opened.task.template for opened in found.values() if not isinstance(opened, str)}
    assert named - {None} <= set(NAMED_TEMPLATES)


class Imported:
    """An imported object, by its name."""

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


def test_values_equal_those_of_python(found: dict[Path, Any]) -> None:
    def importing(name: str, *arguments: Any) -> Imported:
        return Imported(name if len(arguments) > 2 and arguments[2] else name.partition(".")[0])

    without = [file for file, each in found.items() if each == "is not a config that trains a model."]
    for file in found.keys() - set(without):
        values: dict[str, Any] = {"__builtins__": vars(builtins) | {"__import__": importing}}
        exec(compile(file.read_text(encoding="utf-8"), file.name, "exec"), values)
        del values["__builtins__"]
        values.pop("__doc__", None)
        assert plain(values) == read_xtuner_config(file).values, file


JSON = 'dict(type=load_dataset, path="json", data_files="{}")'
EDITS = {  # changes of the tutorials in a copied config
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
        # XTuner 0.1.9: packing in one process, no warm-up, a checkpoint at the end of each epoch
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
        task.get("pictures", {}).pop("cache_gib", None)  # only in twinlens
    assert mapped == shipped
