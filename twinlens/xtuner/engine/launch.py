"""Script that the Python of XTuner's environment runs: it starts XTuner's trainer.

Two checks of XTuner 0.2.0 and transformers 4.48.0 fail on a machine without a GPU: `torch.cpu` has no
`is_bf16_supported`, and bitsandbytes now has its device names in a set that cannot be changed.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any


def patch_cpu_checks(torch: Any) -> None:
    """Make both checks pass; call it before XTuner is imported."""
    if not hasattr(torch.cpu, "is_bf16_supported"):
        torch.cpu.is_bf16_supported = lambda: True
    if not torch.cuda.is_available():
        for name in ("transformers.integrations", "transformers.integrations.bitsandbytes"):
            vars(importlib.import_module(name))["validate_bnb_backend_availability"] = lambda **_: True


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # modules of this folder must not hide XTuner's
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    patch_cpu_checks(importlib.import_module("torch"))
    importlib.import_module("xtuner.tools.train").main()
