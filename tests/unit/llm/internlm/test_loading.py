"""InternLM checkpoints load as equal Llama models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import FIXTURES
from safetensors.torch import load_file, save_file
from tiny_internlm import fuse, make_internlm2
from transformers import LlamaForCausalLM

from llm.internlm.loading import internlm_config, load_internlm
from llm.internlm.weight_names import split_qkv
from llm.loading import load_model, load_model_config, load_template
from tuning.errors import ModelError
from tuning.settings import Quant

GOLDENS = FIXTURES / "internlm"


@given(groups=st.integers(1, 4), times=st.integers(1, 4), width=st.integers(1, 5), across=st.integers(1, 3))
def test_split_qkv_inverts_fusion(groups: int, times: int, width: int, across: int) -> None:
    query, key, value = (torch.rand(count * width, across) for count in (groups * times, groups, groups))
    parts = split_qkv(fuse(query, key, value, groups, width), groups * times, groups)
    assert all(torch.equal(one, other) for one, other in zip(parts, (query, key, value), strict=True))


@pytest.fixture
def internlm2(tiny_model: Path, tmp_path: Path) -> Path:
    return make_internlm2(tiny_model, tmp_path / "internlm2")


def test_internlm2_checkpoint_equals_the_original_llama(internlm2: Path, tiny_model: Path) -> None:
    ids = torch.arange(20)[None]
    was = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    now = load_internlm(internlm2, dtype=torch.float32)
    assert type(now) is LlamaForCausalLM
    ignored = {"_name_or_path": "", "architectures": []}
    assert now.config.to_dict() | ignored == was.config.to_dict() | ignored
    assert torch.equal(now(ids).logits, was(ids).logits)


def test_internlm2_checkpoint_is_saved_as_llama(internlm2: Path, tiny_model: Path, tmp_path: Path) -> None:
    load_internlm(internlm2, dtype=torch.bfloat16).save_pretrained(tmp_path / "llama")
    saved, was = (load_file(folder / "model.safetensors") for folder in (tmp_path / "llama", tiny_model))
    assert saved.keys() == was.keys()
    assert all(torch.equal(saved[name], was[name]) for name in was)


@pytest.mark.parametrize("bits", [4, 16])
def test_load_model_quantizes_an_internlm2_checkpoint(internlm2: Path, bits: int) -> None:
    loaded = load_model(str(internlm2), load_template(str(internlm2), None), Quant(bits=bits), "cpu")
    assert (loaded.quant_report.quantized, loaded.quant_report.total) == (14 if bits == 4 else 0, 15)
    assert load_model_config(str(internlm2)).model_type == "llama"


def test_missing_weight_is_reported(internlm2: Path) -> None:
    index = json.loads((internlm2 / "model.safetensors.index.json").read_text())
    missing = next(name for name in index["weight_map"] if "wqkv" in name)
    file = internlm2 / index["weight_map"].pop(missing)
    save_file(
        {name: value for name, value in load_file(file).items() if name != missing}, file, metadata={"format": "pt"}
    )
    (internlm2 / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"missing keys: model.layers.\d.self_attn.k_proj.weight \(3 in all\)"):
        load_internlm(internlm2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "internlm"}, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0}),
        (
            {"model_type": "internlm", "rotary": {"type": "origin", "base": 5e4}},
            {"rope_type": "default", "rope_theta": 5e4},
        ),
        ({"model_type": "internlm2", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"model_type": "internlm2", "rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
        ),
        (
            {"model_type": "internlm2", "rope_scaling": {"type": "linear", "factor": 4}},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        ),
    ],
)
def test_rotary_settings_of_internlm_and_internlm2_are_converted(tmp_path: Path, values: dict, expected: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    rope = internlm_config(tmp_path).rope_parameters
    assert {key: rope[key] for key in expected} == expected


def test_an_unknown_rotary_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internlm2", "rope_scaling": {"type": "yarn", "factor": 2}}')
    with pytest.raises(ModelError, match=r"config\.json: rotary type yarn is none of"):
        internlm_config(tmp_path)


@pytest.mark.parametrize("name", sorted(each.name for each in GOLDENS.iterdir() if each.is_dir()))
def test_logits_equal_those_of_the_official_code(name: str) -> None:
    model = load_internlm(GOLDENS / name, dtype=torch.float32, attn_implementation="eager")
    golden = json.loads((GOLDENS / name / "golden.json").read_text())
    for case in golden["cases"]:
        logits = model(torch.tensor([case["input_ids"]])).logits[0]
        assert torch.allclose(logits[-1], torch.tensor(case["last_logits"]), rtol=0, atol=1e-5)
        assert logits.argmax(-1).tolist() == case["argmax_all"]


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "many"},
        {"hidden_size": 65},
        {"rope_scaling": "linear"},
        {"rope_scaling": {"type": "linear", "factor": "x"}},
    ],
)
@pytest.mark.parametrize("kind", ["internlm2", "llama"])
def test_config_with_invalid_values_is_refused(kind: str, values: dict, internlm2: Path, tiny_model: Path) -> None:
    file = (
        internlm2 if kind == "internlm2" else Path(shutil.copytree(tiny_model, internlm2 / "llama"))
    ) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    if kind == "llama" and "rope_scaling" in values:
        return
    with pytest.raises(ModelError, match=r"config\.json: cannot be used"):
        load_model_config(str(file.parent))
