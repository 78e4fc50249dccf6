"""InternLM checkpoints in pickled and safetensors shards, with and without an index; conversion to Llama and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import FIXTURES
from pickled import Harm
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer
from tiny_internlm import make_internlm2
from transformers import AutoModelForCausalLM

from llm.checkpoints.shards import lazy_from_tensor, lazy_weights
from llm.export.internlm_layout import convert_internlm, to_internlm2, to_llama
from llm.internlm.loading import internlm_config, load_internlm
from llm.internlm.weight_names import LLAMA_NAMES, fuse_qkv, internlm2_name, llama_name, split_qkv
from llm.loading import load_model, load_template, model_folder
from tuning.data.conversation import Conversation, Turn
from tuning.errors import ConfigError, ModelError
from tuning.settings import Quant

TOKENIZER = FIXTURES / "xtuner_templates" / "tokenizer_internlm2.model"
GOLDENS = FIXTURES / "internlm"
goldens = pytest.mark.parametrize("name", sorted(each.name for each in GOLDENS.iterdir() if each.is_dir()))
IDS = torch.arange(48)[None]


@pytest.fixture
def internlm2(tiny_model: Path, tmp_path: Path) -> Path:
    return make_internlm2(tiny_model, tmp_path / "internlm2")


def pickle_shards(folder: Path) -> None:
    """Replaces the safetensors shards by `.bin` shards with the same weights."""
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / file.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        file.unlink()
    for index in folder.glob("*.index.json"):
        weight_map = json.loads(index.read_text())["weight_map"]
        renamed = {
            name: file.replace("model", "pytorch_model").replace("safetensors", "bin")
            for name, file in weight_map.items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": renamed}))
        index.unlink()


@given(groups=st.integers(1, 4), times=st.integers(1, 4), width=st.integers(1, 5), across=st.integers(1, 3))
def test_fuse_qkv_inverts_split_qkv(groups: int, times: int, width: int, across: int) -> None:
    fused = torch.rand((times + 2) * groups * width, across)
    assert torch.equal(fuse_qkv(*split_qkv(fused, groups * times, groups), groups), fused)


@pytest.mark.parametrize(("theirs", "ours"), LLAMA_NAMES.items())
@pytest.mark.parametrize("around", ["{}.weight", "model.layers.3.{}.weight", "base_model.model.{}.lora_A.weight"])
def test_weight_names_round_trip_between_internlm2_and_llama(theirs: str, ours: str, around: str) -> None:
    assert llama_name(around.format(theirs)) == around.format(ours) == llama_name(around.format(ours))
    assert internlm2_name(around.format(ours)) == around.format(theirs)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("pickled", [True, False])
def test_pickled_and_safetensors_shards_load_with_and_without_index(internlm2, tiny_model, pickled, index):
    if pickled:
        pickle_shards(internlm2)
    if not index:
        next(internlm2.glob("*.index.json")).unlink()
    was = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert torch.equal(load_internlm(internlm2, dtype=torch.float32)(IDS).logits, was(IDS).logits)


@pytest.mark.parametrize("named", ["../elsewhere.safetensors", "/elsewhere.safetensors", 3, None])
def test_invalid_file_name_in_the_index_is_refused(internlm2, tmp_path, named):
    index = next(internlm2.glob("*.index.json"))
    shutil.copy(next(internlm2.glob("model-*.safetensors")), tmp_path / "elsewhere.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weight_map, named)}))
    with pytest.raises(ModelError, match=r"index\.json: "):
        model_folder(str(internlm2))


def test_truncated_shard_is_refused(internlm2):
    next(internlm2.glob("model-*.safetensors")).write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(internlm2), load_template(str(internlm2), None), Quant(bits=16), "cpu")


def test_symlinked_shards_load_and_safetensors_take_precedence_over_bin(internlm2, tiny_model, tmp_path):
    (tmp_path / "linked").mkdir()
    for file in internlm2.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    (tmp_path / "linked" / "pytorch_model.bin").write_bytes(b"not read")
    was = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert torch.equal(load_internlm(tmp_path / "linked", dtype=torch.float32)(IDS).logits, was(IDS).logits)
    assert load_model(str(tmp_path / "linked"), load_template(str(internlm2), None), Quant(bits=16), "cpu")


@pytest.mark.parametrize("kind", ["llama", "internlm2"])
def test_malicious_pickle_is_refused_and_not_executed(internlm2, tiny_model, tmp_path, kind):
    folder = tmp_path / "harmful"
    shutil.copytree(tiny_model if kind == "llama" else internlm2, folder)
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()
    torch.save({"model.norm.weight": torch.ones(2), "x": Harm(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), load_template(str(folder), None), Quant(bits=16), "cpu")
    if kind == "internlm2":
        with pytest.raises(ModelError, match=r"names (posix|nt).system, .*nothing of it was run"):
            convert_internlm(str(folder), tmp_path / "llama", "2GB")
        assert not (tmp_path / "llama").exists()
    assert not (tmp_path / "ran").exists()


def test_converted_checkpoint_equals_the_original_llama(internlm2, tiny_model, tmp_path):
    pickle_shards(internlm2)
    count = convert_internlm(str(internlm2), tmp_path / "llama", "100KB")
    files = list((tmp_path / "llama").glob("*.safetensors"))
    assert len(files) > 1 and max(file.stat().st_size for file in files) < 110_000
    was = load_file(tiny_model / "model.safetensors")
    now = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert now.keys() == was.keys() and count == len(was)
    assert all(torch.equal(now[name], was[name]) for name in was)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert (type(model).__name__, model.dtype) == ("LlamaForCausalLM", torch.bfloat16)
    ours, theirs = (load_template(str(folder), None).tokenizer for folder in (tmp_path / "llama", internlm2))
    assert ours.chat_template == theirs.chat_template
    input_ids = [ours(text)["input_ids"] for text in ("<|im_start|>who", "你是谁")]
    assert input_ids == [theirs(text)["input_ids"] for text in ("<|im_start|>who", "你是谁")]


def test_converted_tokenizer_gives_the_same_ids(internlm2, tmp_path):
    for file in internlm2.glob("tokenizer*"):
        file.unlink()
    shutil.copy(TOKENIZER, internlm2 / "tokenizer.model")
    names = {str(92542): {"content": "<|im_end|>"}, str(92543): {"content": "<|im_start|>"}}
    config = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": names}
    (internlm2 / "tokenizer_config.json").write_text(json.dumps(config))
    convert_internlm(str(internlm2), tmp_path / "llama", "2GB")
    theirs, ours = (load_template(str(folder), None) for folder in (internlm2, tmp_path / "llama"))
    conversation = Conversation(
        (Turn("user", "你好, <|im_end|> 😀 [UNUSED_TOKEN_146]"), Turn("assistant", "I am  ok.\n"))
    )
    our_sample, their_sample = (template.encode(conversation, 512) for template in (ours, theirs))
    assert (
        our_sample.ids.tolist() == their_sample.ids.tolist()
        and our_sample.loss_mask.tolist() == their_sample.loss_mask.tolist()
    )
    assert (ours.stop_ids, ours.pad_id) == (theirs.stop_ids, theirs.pad_id)
    for plain in ("Who are you? 你是谁", "<|im_start|>"):
        assert ours.tokenizer(plain)["input_ids"] == theirs.tokenizer(plain)["input_ids"]
    assert ours.tokenizer.decode(our_sample.ids) == theirs.tokenizer.decode(our_sample.ids)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("output.weight"), r"lm_head.weight is missing \(1 in all\)"),
        (lambda weights: weights.update(extra=torch.ones(2)), "extra does not belong to this model"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight has another shape"),
        (
            lambda weights: weights.update({"model.layers.0.attention.wqkv.weight": torch.ones(127, 64)}),
            "model.layers.0.attention.wqkv.weight has 127 rows",
        ),
        (
            lambda weights: weights.update({"model.layers.0.attention.wqkv.weight": torch.ones(64, 64)}),
            r"model.layers.0.self_attn.k_proj.weight has another shape \(3 in all\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused_and_no_file_is_written(internlm2, tmp_path, change, reason):
    weights = {name: tensor for file in internlm2.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in (*internlm2.glob("*.safetensors"), *internlm2.glob("*.index.json")):
        file.unlink()
    change(weights)
    save_file(weights, internlm2 / "model.safetensors")
    with pytest.raises(ModelError, match=reason):
        convert_internlm(str(internlm2), tmp_path / "llama", "2GB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["internlm2"]


def test_llama_checkpoint_and_existing_destination_are_refused(internlm2, tiny_model, tmp_path):
    with pytest.raises(ModelError, match="needs no conversion"):
        convert_internlm(str(tiny_model), tmp_path / "llama", "2GB")
    with pytest.raises(ConfigError, match="already exists"):
        convert_internlm(str(internlm2), internlm2, "2GB")


def test_conversion_to_internlm2_layout_and_back_is_exact(internlm2, tiny_model):
    config = internlm_config(internlm2)
    theirs = to_internlm2(
        {name: lazy_from_tensor(tensor) for name, tensor in load_file(tiny_model / "model.safetensors").items()}, 2
    )
    stored = lazy_weights(internlm2)
    assert theirs.keys() == stored.keys()
    assert all(torch.equal(theirs[name].read(), stored[name].read()) for name in stored)
    assert all(theirs[name].shape == stored[name].shape for name in stored)
    again = to_internlm2(to_llama(stored, config, internlm2), 2)
    assert all(torch.equal(again[name].read(), stored[name].read()) for name in stored)


@goldens
def test_pickled_and_converted_reference_models_give_the_reference_logits(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(GOLDENS / name, folder)
    make_tokenizer().save_pretrained(folder)
    pickle_shards(folder)
    golden = json.loads((folder / "golden.json").read_text())
    convert_internlm(str(folder), tmp_path / "llama", "100KB")
    converted = AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", dtype=torch.float32, attn_implementation="eager"
    )
    pickled = load_internlm(folder, dtype=torch.float32, attn_implementation="eager")
    for case in golden["cases"]:
        for model in (pickled, converted):
            logits = model(torch.tensor([case["input_ids"]])).logits[0]
            assert torch.allclose(logits[-1], torch.tensor(case["last_logits"]), rtol=0, atol=1e-5)


def test_model_that_needs_remote_code_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "composer"
    shutil.copytree(tiny_model, folder)
    needs = {"model_type": "internlmxcomposer2", "auto_map": {"AutoModelForCausalLM": "modeling.Composer"}}
    (folder / "config.json").write_text(json.dumps(needs))
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="'internlmxcomposer2' needs remote code"):
        load_template(str(folder), None)
    assert not (tmp_path / "ran").exists()


def test_internlm3_loads_as_llama(tiny_model, tmp_path):
    from transformers import InternLM3Config, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = InternLM3Config(
        **sizes, num_key_value_heads=2, vocab_size=400, head_dim=16, qkv_bias=False, attention_bias=False,
        rope_parameters={"rope_type": "dynamic", "factor": 6.0, "rope_theta": 5e7},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"auto_map": {"AutoConfig": "none.InternLM3Config"}}
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}  # as in InternLM3's config.json
    (tmp_path / "config.json").write_text(json.dumps(values))
    load_template(str(tiny_model), None).tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), load_template(str(tmp_path), None), Quant(bits=4), "cpu")
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.model.config.rope_parameters["rope_theta"] == 5e7
    assert (loaded.quant_report.quantized, loaded.quant_report.total) == (14, 15)
