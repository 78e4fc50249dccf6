"""`twinlens plan`: what a run comes to, by the numbers of XTuner's tutorials too."""

import json
import sys
from pathlib import Path

import pytest

from twinlens.cli.app import run


@pytest.fixture
def planned(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `plan --json` on one row of so many tokens, seen 10,001 times an epoch."""
    from llm.loading import load_template
    from tuning.conversation import single

    monkeypatch.chdir(tmp_path)
    template = load_template(str(tiny_model), None)
    bare = len(template.encode(single("who are you?", "yes"), 512, separated=True))

    def call(tokens: int, *overrides: str) -> dict[str, int]:
        words = "yes" + " yes" * (tokens - bare)
        assert len(template.encode(single("who are you?", words), 512, separated=True)) == tokens
        turns = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": words}]
        Path("rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
        Path("task.yaml").write_text(
            f"model: {tiny_model}\ndata: {{files: [rows.jsonl], repeat: 10001, packing: xtuner, max_length: 1024}}\n"
            "optim: {epochs: 2, micro_batch: 1, accumulate: 16}\n",
            encoding="utf-8",
        )
        monkeypatch.setattr(sys, "argv", ["twinlens", "plan", "task.yaml", *overrides, "--json"])
        with pytest.raises(SystemExit) as left:
            run()
        assert not left.value.code
        return json.loads(capsys.readouterr().out)

    return call


def test_the_tutorials_iterations_are_known_before_training(planned) -> None:
    camp2 = planned(42)
    assert (camp2["micro_batches"], camp2["steps"], camp2["sequences"]) == (768, 48, 768)
    assert camp2["tokens"] == 768 * 1024
    assert camp2["next"] == "twinlens train task.yaml"
    assert planned(39)["micro_batches"] == 704


def test_camp_1_had_one_worker_and_two_packs_a_batch(planned) -> None:
    shape = ("data.max_length=512", "data.pack_workers=1", "optim.epochs=3", "optim.micro_batch=2")
    camp1 = planned(38, *shape)
    assert (camp1["sequences"], camp1["micro_batches"], camp1["steps"]) == (3 * 743, 1116, 70)


def test_a_plan_reads_no_weights(planned, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llm.recipe

    monkeypatch.setattr(llm.recipe, "load_model", None)
    assert planned(42, "data.packing=isolated", "optim.epochs=", "optim.steps=3")["micro_batches"] == 48
