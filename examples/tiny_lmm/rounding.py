"""Round-to-nearest weight quantization in groups: the yardstick that any method should beat."""

from __future__ import annotations

import torch
from torch import nn


def round_matrix(weight: torch.Tensor, bits: int, group: int = 64) -> torch.Tensor:
    """Quantize and dequantize a matrix, asymmetric with the minimum and maximum of each group.

    Parameters
    ----------
    weight : Tensor, (out, in)
        The matrix; groups run along the inputs, the last one may be shorter.
    bits : int
        Bits per code.
    group : int
        Inputs per group.

    Returns
    -------
    Tensor, (out, in)
        The nearest of 2**bits equidistant levels between each group's extremes.
    """
    parts = []
    for part in torch.split(weight, group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(weight.dtype).tiny)
        parts.append(low + step * torch.round((part - low) / step))
    return torch.cat(parts, dim=1)


def round_to_nearest(model: nn.Module, bits: int, group: int = 64) -> None:
    """Round, in place, every linear layer of vision tower, projector and language model.

    Embeddings and the output head keep their weights.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                module.weight.copy_(round_matrix(module.weight, bits, group))
