"""`twinlens plan`: the size of a run, compared with the tutorials of XTuner."""

import json
import shutil
from pathlib import Path

import pytest
from xtuner_models import write_internlm


@pytest.fixture
def planned(tiny_model: Path, tmp_path: Path, run_json):
    """Runs `plan --json` on one row of a given number of tokens, repeated 10,001 times per epoch."""
    from llm.loading import load_template
    from tuning.data.conversation import single_turn

    template = load_template(str(tiny_model), None)
    bare = len(template.encode(single_turn("who are you?", "yes"), 512, keep_separator=True))

    def call(tokens: int, *overrides: str) -> dict[str, int]:
        words = "yes" + " yes" * (tokens - bare)
        assert len(template.encode(single_turn("who are you?", words), 512, keep_separator=True)) == tokens
        turns = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": words}]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
        (tmp_path / "task.yaml").write_text(
            f"model: {tiny_model}\ndata: {{files: [rows.jsonl], repeat: 10001, packing: xtuner, max_length: 1024}}\n"
            "optim: {epochs: 2, micro_batch: 1, accumulate: 16}\n",
            encoding="utf-8",
        )
        return run_json("plan", "task.yaml", *overrides)

    return call


def test_plan_gives_the_iterations_of_the_tutorials(planned) -> None:
    camp2 = planned(42)
    assert (camp2["micro_batches"], camp2["steps"], camp2["sequences"]) == (768, 48, 768)
    assert camp2["tokens"] == 768 * 1024
    assert camp2["next"] == "twinlens train task.yaml"
    assert planned(39)["micro_batches"] == 704


def test_iterations_of_camp_1_with_one_worker_and_two_packs_per_batch(planned) -> None:
    shape = ("data.max_length=512", "data.pack_workers=1", "optim.epochs=3", "optim.micro_batch=2")
    camp1 = planned(38, *shape)
    assert (camp1["sequences"], camp1["micro_batches"], camp1["steps"]) == (3 * 743, 1116, 70)


def test_plan_reads_no_weights(planned, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llm.recipe

    monkeypatch.setattr(llm.recipe, "load_model", None)
    assert planned(42, "data.packing=isolated", "optim.epochs=", "optim.steps=3")["micro_batches"] == 48


def test_plan_downloads_no_kernel_of_a_checkpoint(planned, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "kernels-community/flash-attn2"}))
    assert planned(42, f"model={folder}")["micro_batches"] == 768


ASKED = "请做一下自我介绍"
CAMPS = {
    "camp 1": (
        "internlm_v1",
        "internlm_chat_0_1_9",
        [(ASKED, "我是Jensen的小助手，是上海AI实验室书生·浦语的7B大模型哦")],
        ("data.max_length=512", "data.pack_workers=1", "optim.epochs=3", "optim.micro_batch=2", "data.repeat=10001"),
        1116,
    ),
    "camp 2": (
        "internlm2_chat",
        "internlm2_chat",
        [(ASKED, "我是不要姜葱蒜大佬的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦")],
        ("data.max_length=1024", "optim.epochs=2", "data.repeat=10001"),
        768,
    ),
    "camp 3": (
        "internlm2_chat",
        "internlm2_chat",
        [
            ("请介绍一下你自己", "我是伍鲜同志的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"),
            ("你在实战营做什么", "我在这里帮助伍鲜同志完成XTuner微调个人小助手的任务"),
        ],
        ("data.max_length=2048", "optim.epochs=3", "data.repeat=8001"),
        768,
    ),
}


@pytest.mark.parametrize("camp", CAMPS)
def test_iterations_for_the_rows_of_the_tutorials(camp: str, tmp_path: Path, run_json) -> None:
    """The rows of the tutorials, and the number of iterations of their runs."""
    family, template, rows, overrides, iterations = CAMPS[camp]
    write_internlm(tmp_path / "model", family)
    (tmp_path / "rows.json").write_text(
        json.dumps([{"conversation": [{"input": asked, "output": said}]} for asked, said in rows], ensure_ascii=False)
    )
    (tmp_path / "task.yaml").write_text(
        f"model: model\ntemplate: {template}\ndata: {{files: [rows.json], packing: xtuner}}\n"
        "optim: {micro_batch: 1, accumulate: 16}\n"
    )
    assert run_json("plan", "task.yaml", *overrides)["micro_batches"] == iterations
