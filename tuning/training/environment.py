"""Environment of a run: versions, devices, machine."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed", "tokenizers", "safetensors")


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that a run depends on; None if a package is missing."""
    versions: dict[str, str | None] = {}
    for package in ("twinlens", *PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def describe_environment() -> dict[str, Any]:
    """Everything that may change the results of a run, as plain values."""
    return {
        "command": " ".join(["twinlens", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": package_versions(),
    }
