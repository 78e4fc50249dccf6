"""Diagnosis of the machine: packages, devices, 4-bit layers, the embedded models, model hub, disk space."""

import logging
import os
import platform
import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from llm.checkpoints.embedded import INSTALL_COMMAND, embedded_weights
from tuning.paths import cache_folder
from twinlens.xtuner.engine.environment import INSTALL as INSTALL_XTUNER
from twinlens.xtuner.engine.environment import MARKER, default_folder

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Args:
        required: whether text fine-tuning needs it.
        fix: how to fix a failed check, if that is known.
    """

    name: str
    ok: bool
    state: str
    required: bool = True
    fix: str | None = None


def diagnose() -> list[Finding]:
    """Check versions, devices, 4-bit layers, the embedded weights and free disk space."""
    findings = [Finding("python", True, f"{platform.python_version()}, {platform.system()} {platform.machine()}")]
    findings += [_package(Requirement(line)) for line in metadata.requires("twinlens") or ()]
    findings.append(_embedded("embedded model", embedded_weights(), INSTALL_COMMAND))
    if all(finding.ok for finding in findings if finding.name in ("torch", "bitsandbytes")):
        from vlm.towers import embedded as tower

        findings.append(_embedded("embedded tower", tower.embedded_tower_weights(), tower.INSTALL_COMMAND))
        findings += [*_devices(), _four_bit()]
    xtuner = default_folder()
    installed = (xtuner / MARKER).exists()
    state = str(xtuner) if installed else "not installed; only `train --engine xtuner` needs it"
    findings.append(Finding("XTuner", installed, state, required=False, fix=INSTALL_XTUNER))
    findings += [_hub(), _disk("cache folder", cache_folder(), 2), _disk("run folders", Path("work_dirs"), 1)]
    return [replace(finding, fix=None) if finding.ok else finding for finding in findings]


def _package(requirement: Requirement) -> Finding:
    name, required = requirement.name, requirement.marker is None  # packages of an extra have a marker
    fix = f'pip install "{name}{requirement.specifier}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", required, fix)
    ok = requirement.specifier.contains(version, prereleases=True)
    return Finding(name, ok, version if ok else f"{version}, but {requirement.specifier} is needed", required, fix)


def _embedded(name: str, weights: Path | None, install: str) -> Finding:
    state = f"{weights.stat().st_size / 1e6:.0f} MB" if weights else "not installed"
    return Finding(name, weights is not None, state, fix=install)


def _hub() -> Finding:
    """Settings of the model hub; no request is sent."""
    from huggingface_hub import constants

    endpoint = "offline by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    state = f"{endpoint}, cached at {constants.HF_HUB_CACHE} (HF_ENDPOINT sets a mirror, HF_HOME another disk)"
    return Finding("model hub", True, state, required=False)


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("gpu", False, f"none found; training uses {os.cpu_count()} CPU cores", required=False)]
    findings: list[Finding] = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16, no bf16"
        state = f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {dtype}"
        findings.append(Finding(f"gpu {index}", True, state, required=False))
    return findings


def _four_bit() -> Finding:
    """Run forward and backward of a small nf4 layer on the device that a run would use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from bitsandbytes.nn.modules import Linear4bit

        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        inputs = torch.ones(2, 64, device=device, requires_grad=True)
        layer(inputs).sum().backward()
        if inputs.grad is not None and inputs.grad.isfinite().all():
            return Finding("4-bit", True, f"forward and backward on {device}")
        reason = "its gradient is not finite"
    except Exception as error:  # a broken binary raises many kinds of errors
        reason = " ".join(str(error).split())
    return Finding("4-bit", False, f"fails on {device}: {reason}", fix="pip install --upgrade bitsandbytes")


def _disk(name: str, folder: Path, needed: int) -> Finding:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / GIB
    return Finding(name, free >= needed, f"{free:.0f} GiB free at {folder}", fix=f"free {needed} GiB there")
