"""fp32 upcast: a 16-bit model computes in fp32, one layer's weights at a time.

Only fp32 shows what merging changes, and all weights of a 7B model take 30 GB in fp32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def fp32_upcast(model: nn.Module, merged: bool = False) -> Iterator[None]:
    """In this context, `model` gives exactly the logits that it would give in fp32.

    Args:
        merged: whether adapters are merged into the weights of a block while the block runs.
    """
    originals: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def upcast(block: nn.Module, *_: object) -> None:
        originals[block] = [(parameter, parameter.data) for parameter in block.parameters()]
        for parameter, weight in originals[block]:
            parameter.data = weight.float()
        for layer in _lora_layers(block) if merged else ():
            layer.merge()

    def restore(block: nn.Module, *_: object) -> None:
        for parameter, weight in originals.pop(block):
            parameter.data = weight
        for layer in _lora_layers(block) if merged else ():
            layer.merged_adapters.clear()

    with ExitStack() as hooks:
        for block in _blocks(model):
            hooks.enter_context(block.register_forward_pre_hook(upcast))
            hooks.enter_context(block.register_forward_hook(restore, always_call=True))
        yield


def merge_adapters(adapted: PeftModel | PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its adapters, if any, merged in fp32, and its weights in `dtype`."""
    for layer in _lora_layers(adapted):
        base = layer.get_base_layer()
        base.float()
        layer.merge()
        base.to(dtype)
    model = adapted.unload() if isinstance(adapted, PeftModel) else adapted
    assert isinstance(model, PreTrainedModel)
    for parameter in model.parameters():  # not model.to(dtype), which would also round the rotary frequencies
        parameter.data = parameter.data.to(dtype)
    return model


def _lora_layers(block: nn.Module) -> list[LoraLayer]:
    return [module for module in block.modules() if isinstance(module, LoraLayer)]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that together contain all parameters: the blocks of a stack, and each layer outside of it."""
    if isinstance(model, nn.ModuleList):
        yield from model
        return
    if any(True for _ in model.parameters(recurse=False)) or isinstance(model, LoraLayer):
        yield model
        return
    for child in model.children():
        yield from _blocks(child)
