"""fp32 upcast: a 16-bit model computes as in fp32, one block of weights upcast at a time.

What merging changes can be seen in fp32 alone, and a model of 7B parameters takes 30 GB in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def fp32_upcast(model: nn.Module, merged: bool = False) -> Iterator[None]:
    """While it lasts, `model` gives the logits that it would give in fp32, to the bit.

    Args:
        merged: whether adapters are folded into the weights of each block that runs, and taken out again.
    """
    hooks = []
    held: dict[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    def widen(block: nn.Module, *_: object) -> None:
        held[block] = [(parameter, parameter.data) for parameter in block.parameters()]
        for parameter, weight in held[block]:
            parameter.data = weight.float()
        for layer in _lora_layers(block) if merged else ():
            layer.merge()

    def narrow(block: nn.Module, *_: object) -> None:
        for parameter, weight in held.pop(block):
            parameter.data = weight
        for layer in _lora_layers(block) if merged else ():
            layer.merged_adapters.clear()

    try:
        for block in _blocks(model):
            hooks.append(block.register_forward_pre_hook(widen))
            hooks.append(block.register_forward_hook(narrow, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def merge_adapters(adapted: PeftModel | PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its adapters folded in, where it has any, and its weights in `dtype`: sums are taken in fp32."""
    for layer in _lora_layers(adapted):
        base = layer.get_base_layer()
        base.float()
        layer.merge()
        base.to(dtype)
    model = adapted.unload() if isinstance(adapted, PeftModel) else adapted
    assert isinstance(model, PreTrainedModel)
    for parameter in model.parameters():  # not the model itself: rotary frequencies stay as exact as they are
        parameter.data = parameter.data.to(dtype)
    return model


def _lora_layers(block: nn.Module) -> list[LoraLayer]:
    return [module for module in block.modules() if isinstance(module, LoraLayer)]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold all parameters between them: the blocks of a stack, and around it every layer by itself."""
    if isinstance(model, nn.ModuleList):
        yield from model
        return
    if any(True for _ in model.parameters(recurse=False)) or isinstance(model, LoraLayer):
        yield model
        return
    for child in model.children():
        yield from _blocks(child)
