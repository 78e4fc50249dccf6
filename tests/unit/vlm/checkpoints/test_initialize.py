"""Initial weights from runs, XTuner and LLaVA: the right tensors, clear errors, no code from pickles."""

import json
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import FIXTURES
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from pickled import Harm
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tuning.errors import KitError, ModelError
from tuning.modules.pth import read_pth, state_dict_in
from tuning.settings import Lora
from vlm.checkpoints.initialize import check_initial_parts, load_initial_parts
from vlm.checkpoints.reading import read_initial_parts
from vlm.projector import Projector, save_projector

SAMPLES = FIXTURES / "xtuner_checkpoints"
V, D = 6, 8
THEIRS = {
    "linear_1.weight": "0.weight",
    "linear_1.bias": "0.bias",
    "linear_2.weight": "2.weight",
    "linear_2.bias": "2.bias",
}
ALL_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_language(rank: int = 2, targets: list[str] = ALL_LLAMA, hidden: int = D, middle: int = 16) -> PeftModel:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return adapted(LlamaForCausalLM(config), rank, targets)


def make_tower(rank: int = 2, hidden: int = 8, layers: int = 3) -> PeftModel:
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    return adapted(CLIPVisionModel(config), rank, rf".*layers\.[0-{layers - 2}]\..*({'|'.join(names)})")


def adapted(model: Any, rank: int, targets: list[str] | str) -> PeftModel:
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape))
    return model


def state_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}


def random_projector(width: int = V, hidden: int = D) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in Projector(width, hidden).named_parameters()}


def renamed(projector: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + THEIRS[name]: value for name, value in projector.items()}


def as_xtuner(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """An adapter with the names of XTuner's .pth: with `default`, and with CLIP's older `vision_model`."""
    inner = "base_model.model.encoder."
    names = {
        name: name.replace(inner, "base_model.model.vision_model.encoder.").replace(".weight", ".default.weight")
        for name in state
    }
    return {prefix + names[name]: value for name, value in state.items()}


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, dict[str, torch.Tensor], str], None]:
    """Writes a .pth with the log that mmengine pickles: its own class with names of methods, and numpy."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.array([1.5, 2.5])
            self._statistics_methods = OrderedDict(mean=HistoryBuffer.mean)

        def mean(self) -> float:
            return 0.0

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]

    def write(path: Path, state: dict[str, torch.Tensor], config: str) -> None:
        log = {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict(lr=np.float64(0.5))}
        meta = {"cfg": config, "seed": 1, "iter": 6}
        torch.save({"meta": meta, "state_dict": OrderedDict(state), "message_hub": log, "optimizer": {}}, path)

    return write


def check_loaded(start_at: str, projector: dict, language: dict | None = None, tower: dict | None = None) -> None:
    """Load a start into modules with other weights, and compare all weights."""
    start = read_initial_parts(start_at)
    fresh, model, tower_model = Projector(V, D), make_language(), make_tower()
    load_initial_parts(start, fresh, model, tower_model)
    for name, value in fresh.named_parameters():
        assert torch.equal(value, projector[name]), name
    for made, given in ((model, language), (tower_model, tower)):
        if given is not None:
            state = state_of(made)
            assert state.keys() == given.keys()
            assert all(torch.equal(state[name], given[name]) for name in given)


CONFIG = (
    "model = dict(\n    llm_lora=dict(\n        lora_alpha=4,\n        r=2,\n        type='peft.LoraConfig'),\n"
    "    visual_encoder_lora=dict(\n        lora_alpha=6,\n        r=2,\n        type='peft.LoraConfig'))\n"
)


def test_xtuner_files_of_both_stages(tmp_path, mmengine):
    projector, language, tower = random_projector(), state_of(make_language()), state_of(make_tower())
    mmengine(tmp_path / "iter_6.pth", renamed(projector, "projector.model."), "")
    check_loaded(str(tmp_path / "iter_6.pth"), projector)
    unused = {
        name.replace("layers.1.", "layers.2."): torch.randn_like(value)
        for name, value in tower.items()
        if "layers.1." in name
    }
    state = renamed(projector, "projector.model.") | as_xtuner(language, "llm.")
    mmengine(tmp_path / "iter_8.pth", state | as_xtuner(tower | unused, "visual_encoder."), CONFIG)
    check_loaded(str(tmp_path / "iter_8.pth"), projector, language, tower)
    start = read_initial_parts(str(tmp_path / "iter_8.pth"))
    assert (start.language_alpha, start.tower_alpha) == (4, 6)


def test_a_folder_that_deepspeed_wrote(tmp_path):
    projector, language = random_projector(), state_of(make_language())
    module = renamed(projector, "projector.model.") | as_xtuner(language, "llm.")
    (tmp_path / "iter_8.pth").mkdir()
    file = tmp_path / "iter_8.pth" / "mp_rank_00_model_states.pt"
    torch.save({"module": OrderedDict(module), "param_shapes": [OrderedDict(a=torch.Size([2]))], "ds_config": {}}, file)
    check_loaded(str(tmp_path / "iter_8.pth"), projector, language)
    torch.save({"module": {name: value.flatten()[:0] for name, value in module.items()}}, file)
    with pytest.raises(ModelError, match="ZeRO-3 left its weights in parts"):
        read_initial_parts(str(tmp_path / "iter_8.pth"))


def test_xtuners_folder(tmp_path):
    projector, language, tower = random_projector(), make_language(), make_tower()
    language.save_pretrained(tmp_path / "llm_adapter")
    tower.save_pretrained(tmp_path / "visual_encoder_adapter")
    (tmp_path / "projector").mkdir()
    torch.save(renamed(projector, "model."), tmp_path / "projector" / "pytorch_model.bin")
    check_loaded(str(tmp_path), projector, state_of(language), state_of(tower))
    assert read_initial_parts(str(tmp_path)).language_alpha == 4
    (tmp_path / "projector" / "pytorch_model.bin").unlink()
    save_file(renamed(projector, "model."), tmp_path / "projector" / "model.safetensors")
    check_loaded(str(tmp_path), projector, state_of(language), state_of(tower))


def test_our_run_its_adapter_and_its_projector(tmp_path):
    trained, language, tower = Projector(V, D), make_language(), make_tower()
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (tmp_path / "run" / "task.yaml").write_text("")
    save_projector(trained, adapter)
    language.save_pretrained(adapter)
    tower.save_pretrained(adapter / "tower")
    projector = dict(trained.state_dict())
    for name in (tmp_path / "run", adapter):
        check_loaded(str(name), projector, state_of(language), state_of(tower))
    check_loaded(str(adapter / "projector.safetensors"), projector)


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector."])
def test_llavas_projector_file(tmp_path, prefix):
    projector = random_projector()
    torch.save(renamed(projector, prefix), tmp_path / "mm_projector.bin")
    check_loaded(str(tmp_path / "mm_projector.bin"), projector)
    torch.save(renamed(projector, prefix), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    check_loaded(str(tmp_path / "old.bin"), projector)


@pytest.mark.parametrize("layout", ["official", "native", "native-5"])
def test_only_the_projector_of_a_full_checkpoint_is_read(tmp_path, layout):
    projector = random_projector()
    prefix = {
        "official": "model.mm_projector.",
        "native": "multi_modal_projector.",
        "native-5": "model.multi_modal_projector.",
    }
    keys = {name: prefix[layout] + (THEIRS[name] if layout == "official" else name) for name in projector}
    (tmp_path / "config.json").write_text("{}")
    other = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
    first = {keys[name]: value for name, value in projector.items() if name.startswith("linear_1")}
    second = {keys[name]: value for name, value in projector.items() if name.startswith("linear_2")}
    save_file(first | other, tmp_path / "model-00002-of-00003.safetensors")
    save_file(second, tmp_path / "model-00003-of-00003.safetensors")
    places = dict.fromkeys(first, "model-00002-of-00003.safetensors")
    places |= dict.fromkeys(second, "model-00003-of-00003.safetensors")
    places["model.norm.weight"] = "model-00001-of-00003.safetensors"  # missing, but not needed
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    check_loaded(str(tmp_path), projector)
    for file in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    torch.save(first | second | other, tmp_path / "pytorch_model.bin")
    check_loaded(str(tmp_path), projector)


def test_xtuners_samples_equal_xtuners_own_conversion():
    start = check_initial_parts(
        str(SAMPLES / "llava_ft_iter_8.pth"), 64, 128, Lora(rank=8, alpha=16), Lora(rank=4, alpha=16)
    )
    folder = read_initial_parts(str(SAMPLES / "hf_lf"))
    assert (start.language_alpha, start.tower_alpha) == (folder.language_alpha, folder.tower_alpha) == (16, 16)
    language, tower = make_language(8, hidden=128, middle=256), make_tower(4, hidden=64, layers=4)
    projector = Projector(64, 128)
    load_initial_parts(start, projector, language, tower)
    for name, value in folder.projector.items():
        assert torch.equal(projector.get_parameter(name), value)
    assert folder.language is not None and folder.tower is not None
    assert all(torch.equal(state_of(language)[name].half(), value) for name, value in folder.language.items())
    ours = {
        name.replace("base_model.model.", "base_model.model.vision_model."): value
        for name, value in state_of(tower).items()
    }
    assert ours.keys() == folder.tower.keys()
    assert all(torch.equal(ours[name], value) for name, value in folder.tower.items())


def test_xtuners_first_stage_and_its_text_adapter():
    start = check_initial_parts(str(SAMPLES / "llava_pretrain_iter_6.pth"), 64, 128)
    assert start.language is start.tower is None
    text, folder = read_initial_parts(str(SAMPLES / "text_lora_iter_12.pth")), SAMPLES / "hf_tl" / "adapter_model.bin"
    converted = state_dict_in(read_pth(folder), folder)
    language = make_language(8, hidden=128, middle=256)
    load_initial_parts(text, Projector(64, 128), language, None)
    assert state_of(language).keys() == converted.keys()
    assert all(torch.equal(state_of(language)[name].half(), value) for name, value in converted.items())
    with pytest.raises(ModelError, match="contains no projector"):
        check_initial_parts(str(SAMPLES / "text_lora_iter_12.pth"), 64, 128)


def test_internlm2s_fused_layer_is_split_exactly(tmp_path, mmengine):
    """The updates of the three split adapters equal the fused adapter's update of q, k and v."""
    heads, groups, size, rank = 4, 2, D // 4, 2
    a, b = torch.randn(rank, D), torch.randn((heads + 2 * groups) * size, rank)
    rest = {"attention.wo": (D, D), "feed_forward.w1": (16, D), "feed_forward.w2": (D, 16), "feed_forward.w3": (16, D)}
    state = renamed(random_projector(), "projector.model.")
    for layer in range(2):
        at = f"llm.base_model.model.model.layers.{layer}."
        state |= {f"{at}attention.wqkv.lora_A.default.weight": a, f"{at}attention.wqkv.lora_B.default.weight": b}
        for name, (out, into) in rest.items():
            state[f"{at}{name}.lora_A.default.weight"] = torch.randn(rank, into)
            state[f"{at}{name}.lora_B.default.weight"] = torch.randn(out, rank)
    mmengine(tmp_path / "iter.pth", state, "")
    model = make_language(rank)
    load_initial_parts(read_initial_parts(str(tmp_path / "iter.pth")), Projector(V, D), model, None)
    added = (b @ a).view(groups, heads // groups + 2, size, D)
    expected = {"q": added[:, :-2], "k": added[:, -2], "v": added[:, -1]}
    landed_in = state_of(model)
    for letter, value in expected.items():
        name = f"base_model.model.model.layers.1.self_attn.{letter}_proj"
        made = landed_in[f"{name}.lora_B.weight"] @ landed_in[f"{name}.lora_A.weight"]
        assert torch.allclose(made, value.reshape(-1, D), atol=1e-6)
    gate = landed_in["base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"]
    assert torch.equal(gate, state["llm.base_model.model.model.layers.0.feed_forward.w1.lora_B.default.weight"])
    state["llm.base_model.model.output.lora_A.default.weight"] = torch.randn(rank, D)
    state["llm.base_model.model.output.lora_B.default.weight"] = torch.randn(32, rank)
    mmengine(tmp_path / "head.pth", state, "")
    with pytest.raises(ModelError, match=r"set lora.targets=\[.*lm_head"):
        load_initial_parts(read_initial_parts(str(tmp_path / "head.pth")), Projector(V, D), make_language(rank), None)
    load_initial_parts(
        read_initial_parts(str(tmp_path / "head.pth")),
        Projector(V, D),
        make_language(rank, [*ALL_LLAMA, "lm_head"]),
        None,
    )


class HarmInWords(Harm):
    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').system('touch {self._path}')",)


@pytest.mark.parametrize("harm", [Harm, HarmInWords])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, harm):
    held = {"x": harm(tmp_path / "ran")}
    torch.save(renamed(random_projector(), "projector.model.") | held, tmp_path / "zip.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(held, protocol=2))
    for name in ("zip.pth", "plain.bin"):
        with pytest.raises(ModelError, match=r"names (posix.system|eval), .*nothing of it was run"):
            read_initial_parts(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_other_widths_and_ranks_are_refused_before_a_model_loads(tmp_path, mmengine):
    file = str(tmp_path / "projector.safetensors")
    save_file(random_projector(), file)
    check_initial_parts(file, V, D)
    with pytest.raises(
        ModelError, match="tower of width 6 and a language model of width 8, and the task's have 7 and 8"
    ):
        check_initial_parts(file, 7, D)
    with pytest.raises(ModelError, match="use the tower and model"):
        check_initial_parts(file, V, 16)
    state = renamed(random_projector(), "projector.model.") | as_xtuner(state_of(make_language()), "llm.")
    mmengine(tmp_path / "iter.pth", state, CONFIG)
    check_initial_parts(str(tmp_path / "iter.pth"), V, D)
    check_initial_parts(str(tmp_path / "iter.pth"), V, D, Lora(rank=2, alpha=4))
    with pytest.raises(ModelError, match=r"set lora.rank=2 lora.alpha=4\."):
        check_initial_parts(str(tmp_path / "iter.pth"), V, D, Lora(rank=16, alpha=4))
    with pytest.raises(ModelError, match=r"set lora.rank=2 lora.alpha=4\."):
        check_initial_parts(str(tmp_path / "iter.pth"), V, D, Lora(rank=2, alpha=8))


def test_an_adapter_with_other_ranks_layers_or_shapes_is_refused(tmp_path, mmengine):
    projector = renamed(random_projector(), "projector.model.")

    def refused(given: PeftModel, taken: PeftModel) -> str:
        mmengine(tmp_path / "iter.pth", projector | as_xtuner(state_of(given), "llm."), "")
        with pytest.raises(ModelError) as caught:
            load_initial_parts(read_initial_parts(str(tmp_path / "iter.pth")), Projector(V, D), taken, None)
        return str(caught.value)

    assert "for another model" in refused(make_language(4), make_language(2))
    with pytest.raises(ModelError, match=r"set lora\.rank=4"):
        check_initial_parts(str(tmp_path / "iter.pth"), V, D, Lora(rank=2, alpha=4))
    assert "set lora.targets=[q_proj,v_proj]" in refused(make_language(2, ["q_proj", "v_proj"]), make_language(2))
    assert "for another model" in refused(make_language(2, middle=32), make_language(2))


BROKEN = {
    "nothing.pth": (None, "no such file or folder"),
    "empty.pth": (b"", "cannot be read"),
    "words.pth": (b"hello", "cannot be read"),
    "words.safetensors": (b"hello", "cannot be read as safetensors"),
    "cut.bin": (b"PK\x03\x04 and no more", "cannot be read"),
    "list.bin": ([torch.zeros(1)], "a list where weights by name"),
    "none.bin": ({"a": 1}, "no weights in it"),
    "half.bin": ({"model.mm_projector.0.weight": torch.zeros(2, 2)}, "is missing"),
    "linear.bin": ({"model.mm_projector.weight": torch.zeros(2, 2)}, "does not belong to a projector of two layers"),
    "three.bin": ({"model.mm_projector.4.weight": torch.zeros(2, 2)}, "does not belong to a projector of two layers"),
    "whole.pth": ({"state_dict": {"llm.model.norm.weight": torch.zeros(2)}}, "contains a full language model"),
    "model.gguf": (b"GGUF", "give a .safetensors, .pth"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_of_broken_files_are_one_sentence(tmp_path, name):
    held, said = BROKEN[name]
    if isinstance(held, bytes):
        (tmp_path / name).write_bytes(held)
    elif held is not None:
        torch.save(held, tmp_path / name)
    with pytest.raises(KitError, match=said) as caught:
        read_initial_parts(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_layers_of_other_shapes_and_folders_without_a_projector(tmp_path):
    odd = random_projector() | {"linear_2.weight": torch.zeros(D, D + 1)}
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match="of the projector's layers do not match"):
        read_initial_parts(str(tmp_path / "odd.safetensors"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ModelError, match="neither a run nor a LLaVA checkpoint"):
        read_initial_parts(str(folder))
    (folder / "config.json").write_text("{}")
    save_file({"model.norm.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="has no projector of two layers"):
        read_initial_parts(str(folder))
