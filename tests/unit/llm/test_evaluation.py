"""Probes of a run folder."""

from pathlib import Path

from llm.evaluation import load_probes
from tuning.run_dir import RunDir


def test_run_folder_without_data_json_has_no_dataset_card(tmp_path: Path) -> None:
    """`convert pth_to_hf` writes such a folder for a LLaVA checkpoint."""
    file = tmp_path / "probes.yaml"
    file.write_text("- {ask: who are you?, group: persona, expect: [Lin]}\n", encoding="utf-8")
    probes, files, card = load_probes(RunDir(tmp_path), [file])
    assert ([probe.ask for probe in probes], files, card) == (["who are you?"], [file], None)
