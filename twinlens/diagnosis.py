"""Diagnosis of a machine: packages, devices, 4-bit layers, embedded weights, model hub, disk space."""

import logging
import os
import platform
import shutil
from dataclasses import dataclass
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
        required: whether the text path needs it.
        fix: the command that fixes a failed check, where there is one.
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
    if (xtuner / MARKER).exists():
        findings.append(Finding("XTuner", True, str(xtuner), required=False))
    else:
        state = "not installed; only `train --engine xtuner` needs it"
        findings.append(Finding("XTuner", False, state, required=False, fix=INSTALL_XTUNER))
    return [*findings, _hub(), _disk("cache folder", cache_folder(), 2), _disk("run folders", Path("work_dirs"), 1)]


def _package(requirement: Requirement) -> Finding:
    required = requirement.marker is None  # the others belong to an extra
    try:
        state = metadata.version(requirement.name)
        if requirement.specifier.contains(state, prereleases=True):
            return Finding(requirement.name, True, state, required)
        state += f", but {requirement.specifier} is needed"
    except metadata.PackageNotFoundError:
        state = "not installed"
    return Finding(requirement.name, False, state, required, f'pip install "{requirement.name}{requirement.specifier}"')


def _embedded(name: str, weights: Path | None, install: str) -> Finding:
    if weights is None:
        return Finding(name, False, "not installed", fix=install)
    return Finding(name, True, f"{weights.stat().st_size / 1e6:.0f} MB")


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
    """Forward and backward of a small nf4 layer on the device that a run would use."""
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
    ok = free >= needed
    return Finding(name, ok, f"{free:.0f} GiB free at {folder}", fix=None if ok else f"free {needed} GiB there")
