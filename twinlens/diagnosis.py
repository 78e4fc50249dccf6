"""What this machine has and what works on it, tried rather than guessed."""

import dataclasses
import logging
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from llm.checkpoints.embedded import INSTALL_COMMAND, embedded_weights
from tuning.paths import cache_folder
from twinlens.xtuner.engine.environment import INSTALL as INSTALL_XTUNER
from twinlens.xtuner.engine.environment import MARKER, default_folder

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Args:
        needed: whether the text path cannot run without it.
        mend: the command that puts it right, where it is not ok and there is one.
    """

    what: str
    ok: bool
    state: str
    needed: bool = True
    mend: str | None = None


def diagnose() -> list[Finding]:
    """Look at versions, devices, 4-bit arithmetic, the embedded weights and free disk."""
    found = [Finding("python", True, f"{platform.python_version()}, {platform.system()} {platform.machine()}")]
    found += [_package(Requirement(line)) for line in metadata.requires("twinlens") or ()]
    found.append(_embedded("embedded model", embedded_weights(), INSTALL_COMMAND))
    if all(finding.ok for finding in found if finding.what in ("torch", "bitsandbytes")):
        from vlm.towers import embedded as tower

        found.append(_embedded("embedded tower", tower.embedded_tower_weights(), tower.INSTALL_COMMAND))
        found += [*_devices(), _four_bit()]
    found += [_xtuner(), _hub(), _disk("cache folder", cache_folder(), 2), _disk("run folders", Path("work_dirs"), 1)]
    return found


def as_dict(finding: Finding) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(finding)


def _package(requirement: Requirement) -> Finding:
    needed = requirement.marker is None  # the others belong to an extra
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        install = f'pip install "{requirement.name}{requirement.specifier}"'
        return Finding(requirement.name, False, "not installed", needed, install)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, True, version, needed)
    wanted = f"{version}, and {requirement.specifier} is needed"
    return Finding(requirement.name, False, wanted, needed, f'pip install "{requirement.name}{requirement.specifier}"')


def _embedded(what: str, weights: Path | None, install: str) -> Finding:
    if weights is None:
        return Finding(what, False, "not installed", mend=install)
    return Finding(what, True, f"{weights.stat().st_size / 1e6:.0f} MB")


def _xtuner() -> Finding:
    folder = default_folder()
    if (folder / MARKER).exists():
        return Finding("XTuner", True, str(folder), needed=False)
    return Finding("XTuner", False, "not installed; `train --engine xtuner` alone needs it", False, INSTALL_XTUNER)


def _hub() -> Finding:
    """Where models by name come from and go; nothing is asked there."""
    from huggingface_hub import constants

    reach = "offline by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    state = f"{reach}, cached at {constants.HF_HUB_CACHE} (HF_ENDPOINT names a mirror, HF_HOME another disk)"
    return Finding("model hub", True, state, needed=False)


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("gpu", False, f"none seen; training uses {os.cpu_count()} CPU cores", needed=False)]
    found: list[Finding] = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            compute = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16, no bf16"
        name = torch.cuda.get_device_name(index)
        state = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {compute}"
        found.append(Finding(f"gpu {index}", True, state, needed=False))
    return found


def _four_bit() -> Finding:
    """A tiny nf4 layer, forward and backward, where a run would compute."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.nn.modules import Linear4bit

        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        inputs = torch.ones(2, 64, device=device, requires_grad=True)
        layer(inputs).sum().backward()
        works = inputs.grad is not None and bool(inputs.grad.isfinite().all())
        reason = "" if works else "its gradient is not finite"
    except Exception as error:  # a broken binary shows itself in many ways
        works, reason = False, " ".join(str(error).split())
    if works:
        return Finding("4-bit", True, f"forward and backward on {device}")
    return Finding("4-bit", False, f"fails on {device}: {reason}", mend="pip install --upgrade bitsandbytes")


def _disk(what: str, folder: Path, wanted: int) -> Finding:
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free / GIB
    state = f"{free:.0f} GiB free at {folder}"
    return Finding(what, free >= wanted, state, mend=None if free >= wanted else f"free {wanted} GiB there")
