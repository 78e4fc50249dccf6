"""Quantization: device and compute dtype, bitsandbytes settings, check and report of quantized layers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import BitsAndBytesConfig

from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.settings import Quant

MEMORY_SHARE = 0.5  # share of the free memory that unpacked weights may take
CPU_COMPUTE = "TWINLENS_CPU_COMPUTE"  # environment variable: what `quant.compute: auto` means on a CPU
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class QuantReport:
    """What a loaded model is made of.

    Args:
        bits: of the quantized linears; 16 when none is.
        quantized: number of quantized linears, of `total`.
        not_quantized: names of the linears that stay in the compute dtype.
        dequantized: whether the 4-bit weights are kept unpacked, for a CPU.
        weight_bytes: of all parameters and quantization constants.
    """

    bits: int
    quantized: int
    total: int
    not_quantized: tuple[str, ...]
    dequantized: bool
    weight_bytes: int

    def __str__(self) -> str:
        kind = {4: "nf4, double quantized", 8: "int8"}.get(self.bits)
        size = f"{self.weight_bytes / 2**20:,.0f} MiB of weights"
        if kind is None:
            return f"{self.total} linears, none quantized; {size}"
        kept = f", {', '.join(self.not_quantized)} not" if self.not_quantized else ""
        unpacked = ", unpacked for the CPU" if self.dequantized else ""
        return f"{self.quantized} of {self.total} linears in {kind}{unpacked}{kept}; {size}"


def choose_device(wanted: str) -> torch.device:
    """The device a run computes on.

    Raises:
        DeviceError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "run.device: cuda was asked for and torch sees no GPU; take auto or cpu, or see `twinlens doctor`."
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; see `Quant.compute`.

    Raises:
        ConfigError: `TWINLENS_CPU_COMPUTE` names no dtype.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        if chosen := os.environ.get(CPU_COMPUTE):
            if chosen not in DTYPES:
                raise ConfigError(f"{CPU_COMPUTE}={chosen}: not a compute type; use one of {', '.join(DTYPES)}.")
            return DTYPES[chosen]
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that will do
        return torch.bfloat16 if capabilities.get("amx_bf16") else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def quantization_config(
    quant: Quant, compute_dtype: torch.dtype, skip_modules: tuple[str, ...]
) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings for loading; `skip_modules` stay in `compute_dtype`."""
    if quant.bits == 16:
        return None
    if quant.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip_modules))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(skip_modules),
    )


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer by name, quantized or not."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def prepare_quantized(
    model: nn.Module, bits: int, skip_modules: tuple[str, ...], compute_dtype: torch.dtype
) -> QuantReport:
    """Make quantized layers safe to train through and quick on a CPU, check what was quantized, and report it.

    On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights at the first forward in eval mode and never unpacks
    them, so that training after an evaluation would read garbage: that is turned off.

    Raises:
        ModelError: a layer that should be quantized is not, or the other way round.
    """
    quantized: list[str] = []
    others: list[str] = []
    for name, module in linear_layers(model):
        is_quantized = isinstance(module, Linear4bit | Linear8bitLt)
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        (quantized if is_quantized else others).append(name)
    wanted_not = [name for name in others if bits != 16 and name.rpartition(".")[2] not in skip_modules]
    if wanted_not or any(name.rpartition(".")[2] in skip_modules for name in quantized):
        raise ModelError(
            f"{(wanted_not or quantized)[0]}: not quantized as asked (quant.bits {bits}); take quant.bits=16."
        )
    unpacked = _dequantize_for_cpu(model, compute_dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    size += sum(_quant_state_bytes(module) for _, module in linear_layers(model))
    total = len(quantized) + len(others)
    return QuantReport(bits, len(quantized), total, tuple(others) if bits != 16 else (), unpacked, size)


def _dequantize_for_cpu(model: nn.Module, compute_dtype: torch.dtype) -> bool:
    """On a CPU, keep the weights of 4-bit layers unpacked in `compute_dtype`, if memory has ample room.

    A GPU unpacks a layer faster than it would read it; on a CPU half the time of an answer goes into it. The values are
    those of the 4-bit weights, and every product is the same to the bit.
    """
    packed = {name: module for name, module in linear_layers(model) if isinstance(module, Linear4bit)}
    size = sum(module.in_features * module.out_features for module in packed.values()) * compute_dtype.itemsize
    if (
        not packed
        or next(model.parameters()).device.type != "cpu"
        or size > MEMORY_SHARE * psutil.virtual_memory().available
    ):
        return False
    for name, module in packed.items():
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        weight = dequantize_4bit(module.weight.data, getattr(module.weight, "quant_state", None))
        plain.weight = nn.Parameter(weight.to(compute_dtype), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    return True


def _quant_state_bytes(module: nn.Module) -> int:
    """Bytes of a 4-bit layer's absmax values, which are no parameters."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None:
        return 0
    tensors = [state.absmax, state.code] + ([state.state2.absmax, state.state2.code] if state.state2 else [])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
