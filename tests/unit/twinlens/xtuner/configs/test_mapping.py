"""Mapping of configs to tasks: each value becomes a setting, a note or an error."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xtuner_config import IMAGE, INTERN_REPO, TEXT, TRAINER

from tuning.errors import ConfigError
from tuning.settings import Lora, Task
from twinlens.task_files import open_task
from twinlens.xtuner.configs.mapping import MappedConfig, map_config
from twinlens.xtuner.configs.reader import read_xtuner_config
from twinlens.xtuner.configs.tree import ConfigTree
from vlm.settings import ImageTask

Write = Callable[[str, str], Path]


def mapped(write: Write, text: str) -> MappedConfig:
    return map_config(write("config.py", text))


def differs(write: Write, text: str, path: str) -> str:
    """The only note about a path."""
    (line,) = [line for line in mapped(write, text).differences if line.startswith(f"{path}: ")]
    return line


def test_a_text_config(write: Write) -> None:
    task = open_task(write("config.py", TEXT)).task
    assert not isinstance(task, ImageTask)
    assert task.model == "internlm/internlm2-chat-1_8b"
    assert task.quant.bits == 4
    assert task.lora == Lora(rank=64, alpha=16, dropout=0.1, targets="all-linear")
    assert task.data.files == (Path("rows.jsonl"),)
    assert (task.data.max_length, task.data.pack) == (1024, True)
    optim = task.optim
    assert (optim.learning_rate, optim.epochs, optim.steps) == (2e-4, 2, None)
    assert (optim.micro_batch, optim.accumulate, optim.warmup, optim.schedule) == (1, 16, 0.03, "cosine")
    assert (optim.betas, optim.weight_decay, optim.clip) == ((0.9, 0.999), 0, 1)
    assert optim.gradient_checkpointing is True
    assert (task.evaluation.every, task.run.save_every, task.run.keep) == (20, 10, 3)  # iterations / 16


def test_an_image_config(write: Write) -> None:
    task = open_task(write("config.py", IMAGE)).task
    assert isinstance(task, ImageTask)
    assert (task.stage, task.tower, task.start) == ("tune", "openai/clip-vit-large-patch14-336", "iter_2181.pth")
    assert task.lora == Lora(rank=512, alpha=256, dropout=0.05)
    assert task.tower_lora == Lora(rank=64, alpha=16, dropout=0.05)
    assert (task.data.files, task.pictures.folder) == ((Path("rows.json"),), Path("pictures"))
    assert task.data.max_length == 2048  # 1472 text tokens and 576 image tokens
    assert (task.data.pack, task.optim.micro_batch) == (False, 4)


def test_without_a_language_adapter_the_projector_is_aligned(write: Write) -> None:
    align = IMAGE + "del model['llm_lora']\n"
    assert isinstance(open_task(write("tune.py", IMAGE)).task, ImageTask)
    align = IMAGE.replace("    llm_lora=", "    unused=").replace("    visual_encoder_lora=", "    unused_too=")
    task = open_task(write("align.py", align)).task
    assert isinstance(task, ImageTask)
    assert (task.stage, task.tower_lora) == ("align", None)


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ("model['llm']['quantization_config'] = dict(load_in_8bit=True, load_in_4bit=False)", "quant.bits", 8),
        ("model['llm']['quantization_config'] = None", "quant.bits", 16),
        ("model['lora'].update(target_modules=['wqkv', 'wo', 'w1', 'w3', 'w2'])", "lora.targets", None),
        ("train_cfg = dict(max_iters=160)", "optim.steps", 10),
        ("train_dataset.update(pack_to_max_length=False)", "data.pack", False),
        ("train_dataset['dataset'] = dict(path='tatsu-lab/alpaca')", "data.files", ["tatsu-lab/alpaca"]),
        ("train_dataset['dataset'] = dict(path='json', data_files=['a.json', 'b.json'])", "data.files", None),
        ("param_scheduler = dict(type='CosineAnnealingLR', T_max=2)", "optim.warmup", 0.0),
        ("param_scheduler = dict(type='ConstantLR')", "optim.schedule", "constant"),
        ("sequence_parallel_size = 4", "optim.accumulate", 4),
        ("randomness = dict(seed=7)", "run.seed", 7),
        ("optim_wrapper['optimizer'].update(lr=1e-5, betas=(0.9, 0.95))", "optim.betas", [0.9, 0.95]),
        ("default_hooks['checkpoint'].update(interval=-1)", "run.save_every", 0),
        ("model.update(use_activation_checkpointing=False)", "optim.gradient_checkpointing", False),
    ],
)
def test_each_value_becomes_a_setting(write: Write, change: str, key: str, expected: Any) -> None:
    document = mapped(write, f"{TEXT}\n{change}\n").document
    group, name = key.split(".")
    if name == "targets":
        expected = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if expected is None:
        expected = ["a.json", "b.json"]
    assert document[group][name] == expected


def test_files_of_several_datasets_are_one_list(write: Write) -> None:
    both = """
other = dict(type=process_hf_dataset, dataset=dict(type=load_dataset, path="json", data_files="b.json"),
             dataset_map_fn=openai_map_fn, max_length=512)
train_dataloader['dataset'] = dict(type="ConcatDataset", datasets=[train_dataset, other])
"""
    found = mapped(write, TEXT + both)
    assert found.document["data"]["files"] == ["rows.jsonl", "b.json"]
    assert found.document["data"]["max_length"] == 1024
    (line,) = [line for line in found.differences if "max_length" in line]
    assert "512" in line and "1024" in line


def test_each_difference_has_a_note(write: Write) -> None:
    four = f"{TEXT}\nmodel['llm']['quantization_config'].update(load_in_8bit=False)\n"
    assert not [line for line in mapped(write, four).differences if "load_in" in line]
    assert "probes" in differs(write, TEXT, "custom_hooks.EvaluateChatHook.evaluation_inputs")
    assert "10 steps of 16" in differs(write, TEXT, "default_hooks.checkpoint.interval")
    paged = f"{TEXT}\noptim_wrapper['optimizer'].update(type='PagedAdamW32bit')\n"
    assert "PagedAdamW32bit; AdamW" in differs(write, paged, "optim_wrapper.optimizer.type")
    system = f"{TEXT}\ncustom_hooks[0].update(system=SYSTEM_TEMPLATE.alpaca)\n"
    assert "training" in differs(write, system, "custom_hooks.EvaluateChatHook.system")
    rows = f"{TEXT}\ndef own(row):\n    return row\ntrain_dataset.update(dataset_map_fn=own)\n"
    assert "messages" in differs(write, rows, "train_dataloader.dataset.dataset_map_fn")
    square = IMAGE.replace("pad_image_to_square=True", "pad_image_to_square=False")
    assert "square" in differs(write, square, "train_dataloader.dataset.pad_image_to_square")
    assert "not run" in mapped(write, f"{TEXT}\nprint('hello')\n").differences[-1]


OLD = """
prompt_template = PROMPT_TEMPLATE.internlm_chat
train_dataset.update(template_map_fn=dict(type=template_map_fn_factory, template=prompt_template))
param_scheduler = dict(type=CosineAnnealingLR, eta_min=0, by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
custom_hooks = [dict(type=EvaluateChatHook, every_n_iters=90, instruction=prompt_template.INSTRUCTION_START)]
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
"""


def test_a_config_of_xtuner_0_1(write: Write) -> None:
    found = mapped(write, TEXT + OLD)
    assert found.document["template"] == "internlm_chat"
    assert (found.document["optim"]["warmup"], found.document["optim"]["schedule"]) == (0.0, "cosine")
    assert "save_every" not in found.document["run"]
    assert [line.partition(": ")[0] for line in found.differences] == [
        "custom_hooks.EvaluateChatHook.every_n_iters",
        "default_hooks.checkpoint.interval",
        "default_hooks.checkpoint.max_keep_ckpts",
    ]


# Dicts whose values never change training.
QUIET = ("tokenizer", "env_cfg", "type")


def dicts(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            yield from dicts(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for each in value:
            yield from dicts(path, each)


@pytest.mark.parametrize("text", [TEXT, IMAGE, TRAINER, INTERN_REPO], ids=["text", "image", "trainer", "intern_repo"])
def test_an_unknown_key_in_any_dict_has_a_note(write: Write, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_xtuner_config(write("config.py", text))
    used = ConfigTree(config).kind.names
    places = [each for name in used if name in config.values for each in dicts(name, config.values[name])]
    places = [(path, place) for path, place in places if not path.endswith(QUIET)]
    assert len(places) > 6
    for path, place in places:
        place["surprise"] = 71
        monkeypatch.setattr("twinlens.xtuner.configs.mapping.read_xtuner_config", lambda _: config)
        lines = [line for line in map_config(config.file).differences if "surprise: 71; has no counterpart" in line]
        assert lines, path
        del place["surprise"]


JUNK = """None; True; -1; 0; 2.5; 1e999; ''; 'x'; []; {}; (1,); [None]; [1, [2]]; {1: 2}; dict(a=1); [dict(type=None)];
dict(type=[]); dict(type='x'); torch.float16; PROMPT_TEMPLATE; open('x'); nan"""


@given(st.sampled_from([TEXT, IMAGE, TRAINER, INTERN_REPO]), st.data())
def test_random_values_give_a_task_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: st.DataObject
) -> None:
    tree = ast.parse(text)
    places = [node for node in ast.walk(tree) if isinstance(node, ast.keyword | ast.Assign)]
    for _ in range(data.draw(st.integers(1, 3))):
        place, junk = data.draw(st.sampled_from(places)), data.draw(st.sampled_from(JUNK.split(";")))
        place.value = ast.parse(junk.strip(), mode="eval").body
    file = tmp_path_factory.mktemp("junk") / "config.py"
    file.write_text(ast.unparse(tree), encoding="utf-8")
    try:
        assert isinstance(open_task(file).task, Task)
    except ConfigError as refusal:
        assert all(line.startswith(str(file)) for line in str(refusal).splitlines())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "not a config that trains"),
        (TEXT + "model = dict(type='DPO')\n", "preferences"),
        (TEXT + "model = dict(type='ORPO')\n", "preferences"),
        (TEXT + "model = dict(type='RewardModel')\n", "reward model"),
        (TEXT + "model = dict(type='InternVL_V1_5')\n", "InternVL"),
        (TEXT + "model = dict(type='Own')\n", "trains Own"),
        (TEXT + "framework = 'huggingface'\n", "SupervisedFinetune to transformers' Trainer"),
        (TEXT + "model['lora'] = None\n", "no model.lora and 4-bit weights"),
        (TRAINER + "lora = None\n", "no lora and 4-bit weights"),
        (IMAGE + "model.update(freeze_llm=False, llm_lora=None)\n", "no model.llm_lora and 4-bit weights"),
        (TEXT + "train_dataset.update(dataset_map_fn='xtuner.dataset.map_fns.pretrain_map_fn')\n", "raw text"),
        (TEXT + "train_dataset.update(do_dataset_tokenization=False)\n", "tokenized rows"),
        (TEXT + "train_dataset.update(type='build_packed_dataset')\n", "data of type None"),
        (TEXT + "train_dataset.update(type='OwnDataset')\n", "OwnDataset"),
        (INTERN_REPO + "train_dataloader['dataset']['dataset_cfg'].update(folder=None)\n", "folder is None"),
        (TEXT.replace("internlm/internlm2-chat-1_8b", "baichuan-inc/Baichuan2-7B-Chat"), "Baichuan"),
        (TEXT.replace("internlm/internlm2-chat-1_8b", "THUDM/chatglm3-6b"), "ChatGLM"),
        (TEXT.replace("internlm/internlm2-chat-1_8b", "Qwen/Qwen-7B-Chat"), "Qwen 1"),
        (TEXT.replace("internlm/internlm2-chat-1_8b", "deepseek-ai/deepseek-moe-16b-chat"), "DeepSeek-MoE"),
        (TEXT.replace("internlm/internlm2-chat-1_8b", "openbmb/MiniCPM-2B-sft-bf16"), "MiniCPM"),
        (IMAGE + "model.update(llm_lora=None)\n", "without the language model"),
        (
            IMAGE + "model.update(llm_lora=None, visual_encoder_lora=None, freeze_visual_encoder=False)\n",
            "without the language model",
        ),
        (
            TEXT + "import os\nbatch_size = int(os.environ['N'])\ntrain_dataloader.update(batch_size=batch_size)\n",
            "running `batch_size = int",
        ),
        (TEXT + "train_cfg = dict(max_epochs=max_epoch)\n", "max_epoch has no value, and train_cfg.max_epochs"),
        (TEXT + "model['lora'] = open('x')\n", "line"),
        (TEXT + "model.pop('lora')\n", "line"),
        (TEXT + "param_scheduler = [print()][0]\n", "line"),
        (TEXT + "for part in param_scheduler:\n    param_scheduler = part\n", "line"),
        (TEXT + "optim_wrapper['optimizer'].update(betas=dict(a=1))\n", "group"),
        (TEXT + "model['llm'].update(pretrained_model_name_or_path=None)\n", "is missing"),
        (TEXT + "optim_wrapper['optimizer'].update(lr='fast')\n", "lr is fast, not a number"),
        (TEXT + "optim_wrapper['optimizer'].update(lr=-1)\n", "optim.learning_rate"),
        (TEXT + "deep = []\n" + "deep = [deep, dict(a=deep)]\n" * 60 + "model.update(deep=deep)\n", "config"),
    ],
    ids=lambda text: text[-60:],
)
def test_unsupported_configs_are_refused_in_one_sentence(write: Write, text: str, says: str) -> None:
    file = write("config.py", text)
    with pytest.raises(ConfigError, match=says) as refusal:
        open_task(file)
    assert str(refusal.value).startswith(str(file)) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen1.5-7B",
        "internlm/internlm3-8b-instruct",
        "openbmb/MiniCPM3-4B",
        "deepseek-ai/deepseek-coder-6.7b-base",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        "CohereForAI/c4ai-command-r-plus",
    ],
)
def test_families_in_transformers_are_read(write: Write, model: str) -> None:
    text = TEXT.replace("internlm/internlm2-chat-1_8b", model)
    assert open_task(write("config.py", text)).task.model == model


def test_remote_code_families_are_not_in_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    assert not {"baichuan", "chatglm", "qwen", "deepseek", "minicpm"} & KNOWN.keys()
    assert {
        "qwen2",
        "qwen2_moe",
        "minicpm3",
        "llama",
        "gemma",
        "mistral",
        "mixtral",
        "phi3",
        "gpt_bigcode",
    } <= KNOWN.keys()
    assert {"cohere", "deepseek_v2", "internlm3"} <= KNOWN.keys()


def test_a_local_folder_with_a_refused_name_is_read(write: Write, tmp_path: Path) -> None:
    (tmp_path / "chatglm-mine").mkdir()
    text = TEXT.replace("internlm/internlm2-chat-1_8b", str(tmp_path / "chatglm-mine"))
    assert open_task(write("config.py", text)).task.model.endswith("chatglm-mine")


def test_overrides_use_names_of_the_task(write: Write) -> None:
    opened = open_task(write("config.py", TEXT), ["optim.learning_rate=1e-5", "data.files=[mine.jsonl]"])
    assert opened.task.optim.learning_rate == 1e-5
    assert opened.task.data.files == (Path("mine.jsonl"),)
    assert opened.changes[0] == "optim.learning_rate: 0.0002 -> 1e-05"
    with pytest.raises(ConfigError, match=r"optim\.learning_rate"):
        open_task(write("config.py", TEXT), ["lr=1e-5"])
