"""Quantization: choose device and compute dtype, make bitsandbytes settings, check which layers are quantized."""

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

MEMORY_SHARE = 0.5  # share of the free memory that dequantized weights may take
CPU_COMPUTE = "TWINLENS_CPU_COMPUTE"  # environment variable: the dtype of `quant.compute: auto` on a CPU
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class QuantReport:
    """The linear layers of a loaded model.

    Args:
        bits: bits of the quantized linears; 16 if none is quantized.
        quantized: number of quantized linears, of `total`.
        not_quantized: names of the linears in the compute dtype.
        dequantized: whether the 4-bit weights were dequantized for a CPU.
        weight_bytes: bytes of all parameters and quantization constants.
    """

    bits: int
    quantized: int
    total: int
    not_quantized: tuple[str, ...]
    dequantized: bool
    weight_bytes: int

    def __str__(self) -> str:
        size = f"{self.weight_bytes / 2**20:,.0f} MiB of weights"
        if self.bits == 16:
            return f"{self.total} linears, none quantized; {size}"
        kind = "nf4, double quantized" if self.bits == 4 else "int8"
        others = f", {', '.join(self.not_quantized)} not" if self.not_quantized else ""
        dequantized = ", dequantized for the CPU" if self.dequantized else ""
        return f"{self.quantized} of {self.total} linears in {kind}{dequantized}{others}; {size}"


def choose_device(wanted: str) -> torch.device:
    """The device a run computes on.

    Raises:
        DeviceError: `wanted` is cuda and there is no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("run.device: is cuda, but torch sees no GPU; set auto or cpu, or see `twinlens doctor`.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def choose_compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; see `Quant.compute`.

    Raises:
        ConfigError: the value of `TWINLENS_CPU_COMPUTE` is no dtype.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cpu":
        if chosen := os.environ.get(CPU_COMPUTE):
            if chosen not in DTYPES:
                raise ConfigError(f"{CPU_COMPUTE}={chosen}: not a compute type; use one of {', '.join(DTYPES)}.")
            return DTYPES[chosen]
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in the oldest supported torch
        return torch.bfloat16 if capabilities.get("amx_bf16") else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def quantization_config(
    quant: Quant, compute_dtype: torch.dtype, skip_modules: tuple[str, ...]
) -> BitsAndBytesConfig | None:
    """Settings of bitsandbytes for loading. Layers named in `skip_modules` stay in `compute_dtype`."""
    if quant.bits == 16:
        return None
    return BitsAndBytesConfig(
        load_in_8bit=quant.bits == 8,
        load_in_4bit=quant.bits == 4,
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
    """Check which layers are quantized, make them safe for training and fast on a CPU, and report them.

    On a CPU with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first forward in eval mode and never restores
    them, so training after an evaluation would read wrong weights. This is turned off.

    Raises:
        ModelError: a layer outside of `skip_modules` is not quantized, or one of `skip_modules` is.
    """
    linears = dict(linear_layers(model))
    quantized = [name for name, module in linears.items() if isinstance(module, Linear4bit | Linear8bitLt)]
    others = [name for name in linears if name not in quantized]
    packed = {name: module for name, module in linears.items() if isinstance(module, Linear4bit)}
    for module in packed.values():
        module.support_avx512bf16_for_cpu = False
    wrong = [name for name in linears if (name in quantized) == (name.rpartition(".")[2] in skip_modules)]
    if bits != 16 and wrong:
        raise ModelError(f"{wrong[0]}: not quantized as quant.bits {bits} requires; set quant.bits=16.")
    dequantized = _dequantize_for_cpu(model, packed, compute_dtype)
    tensors = [*model.parameters()]
    for _, module in linear_layers(model):
        if state := getattr(module.weight, "quant_state", None):  # absmax and code of 4-bit weights are no parameters
            tensors += [value for value in state.as_dict().values() if isinstance(value, torch.Tensor)]
    size = sum(tensor.nbytes for tensor in tensors)
    not_quantized = tuple(others) if bits != 16 else ()
    return QuantReport(bits, len(quantized), len(linears), not_quantized, dequantized, size)


def _dequantize_for_cpu(model: nn.Module, packed: dict[str, Linear4bit], compute_dtype: torch.dtype) -> bool:
    """On a CPU with enough free memory, replace 4-bit layers by linear layers in `compute_dtype`.

    A GPU dequantizes a layer faster than it reads it. A CPU would spend half the time of an answer on it. The values
    are those of the 4-bit weights, and every product is the same to the bit.
    """
    size = sum(module.in_features * module.out_features for module in packed.values()) * compute_dtype.itemsize
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not packed or not on_cpu or size > MEMORY_SHARE * psutil.virtual_memory().available:
        return False
    for name, module in packed.items():
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        weight = dequantize_4bit(module.weight.data, getattr(module.weight, "quant_state", None))
        plain.weight = nn.Parameter(weight.to(compute_dtype), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    return True
