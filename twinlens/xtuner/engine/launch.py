"""Runs XTuner's own trainer on today's libraries: started by the Python of its environment, never imported by ours.

Two checks of XTuner 0.2.0 and transformers 4.48.0 stumble on a machine without a GPU: `torch.cpu` has no
`is_bf16_supported`, and bitsandbytes now names its devices in a set that cannot be changed.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any


def patch_cpu_checks(torch: Any) -> None:
    """Answer what the two checks ask, before XTuner is imported."""
    if not hasattr(torch.cpu, "is_bf16_supported"):
        torch.cpu.is_bf16_supported = lambda: True
    if not torch.cuda.is_available():
        for name in ("transformers.integrations", "transformers.integrations.bitsandbytes"):
            vars(importlib.import_module(name))["validate_bnb_backend_availability"] = lambda **_: True


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # our neighbours are no packages of XTuner's
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    patch_cpu_checks(importlib.import_module("torch"))
    importlib.import_module("xtuner.tools.train").main()
