"""Reference losses: 20 steps of text and image fine-tuning in fp32, the same on any CPU.

To update them: `TWINLENS_WRITE_REFERENCE=1 pytest tests/integration/test_reference_losses.py`.
"""

import json
import os
from pathlib import Path

import pytest
from paths import FIXTURES

from llm.settings import TextTask
from tuning.run_dir import read_jsonl
from twinlens.start import start
from twinlens.tasks import AnyTask
from vlm.settings import ImageTask

pytestmark = pytest.mark.usefixtures("cache")
REFERENCE = FIXTURES / "reference"
LOSSES = REFERENCE / "losses.json"
SHARED = {
    "model": str(REFERENCE / "language"),
    "system": "be brief",
    "run": {"device": "cpu"},
    "lora": {"rank": 4, "alpha": 8},
    "optim": {"learning_rate": 1e-3, "micro_batch": 2, "accumulate": 2, "steps": 20, "warmup": 0.1},
}
TEXT = SHARED | {"data": {"files": [REFERENCE / "text.jsonl"], "max_length": 128, "pack": False}}
IMAGE = SHARED | {
    "tower": str(REFERENCE / "tower"),
    "data": {"files": [REFERENCE / "images.jsonl"], "max_length": 128, "pack": False},
    "rates": {"projector": 2e-3},
}
FP32, NF4 = {"quant": {"bits": 16, "compute": "fp32"}}, {"quant": {"bits": 4, "compute": "fp32"}}
FULL = FP32 | {"lora": None}
TASKS: dict[str, AnyTask] = {
    "text": TextTask.model_validate(TEXT | FP32),
    "text, nf4, packed": TextTask.model_validate(TEXT | NF4 | {"data": TEXT["data"] | {"pack": True}}),
    "text, full": TextTask.model_validate(TEXT | FULL),
    "image": ImageTask.model_validate(IMAGE | FP32),
    "image, nf4, tower adapter": ImageTask.model_validate(IMAGE | NF4 | {"tower_lora": {"rank": 2, "alpha": 4}}),
    "image, align": ImageTask.model_validate(IMAGE | FP32 | {"stage": "align"}),
    "image, full": ImageTask.model_validate(IMAGE | FULL | {"whole_tower": True}),
}


@pytest.mark.parametrize("name", TASKS)
def test_losses_equal_the_reference_losses(name: str, tmp_path: Path) -> None:
    run = start(TASKS[name], "reference", tmp_path).run
    losses = [row["loss"] for row in read_jsonl(run.steps)]
    known = json.loads(LOSSES.read_text(encoding="utf-8")) if LOSSES.exists() else {}
    if os.environ.get("TWINLENS_WRITE_REFERENCE"):
        LOSSES.write_text(json.dumps(known | {name: losses}, indent=1) + "\n", encoding="utf-8")
        return
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert losses == pytest.approx(known[name], rel=1e-5)
