"""A linear layer over a trainable matrix that keeps no dense weight between its passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import CheckpointError
from .trainable_matrix import TrainableMatrix


class _MultiplyDecoded(torch.autograd.Function):
    """``x Wᵀ`` with W decoded in the forward pass, dropped, and decoded again in the backward one.

    So a model in training holds one dense matrix at a time, beside the packed ones.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: TrainableMatrix, *_changes: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.matrix = matrix
        return nn.functional.linear(x, matrix.weight().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        matrix: TrainableMatrix = ctx.matrix
        with torch.enable_grad():
            weight = matrix.weight()
        dense = weight.detach().to(x.dtype)
        for_input = gradient @ dense if ctx.needs_input_grad[0] else None
        rows, columns = dense.shape
        for_weight = gradient.reshape(-1, rows).T @ x.reshape(-1, columns)
        changes = list(matrix.changes.values())
        for_changes = torch.autograd.grad(weight, changes, for_weight.to(weight.dtype))
        return for_input, None, *for_changes


class TrainableLinear(nn.Module):
    """Stands for an ``nn.Linear`` during training.

    Parameters
    ----------
    matrix
        The weight.
    bias
        (m,), not trained; None if there is none.
    """

    bias: nn.Parameter | None

    def __init__(self, matrix: TrainableMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ + b``; x is (..., n)."""
        changes = self.matrix.changes.values()
        multiply: Any = _MultiplyDecoded.apply
        product: Tensor = multiply(x, self.matrix, *changes)
        return product if self.bias is None else product + self.bias


def make_trainable(model: nn.Module, matrices: Mapping[str, TrainableMatrix]) -> None:
    """Put trainable layers in the place of dense ones; nothing else of the model is trained.

    Raises
    ------
    CheckpointError
        The model has no linear layer of a matrix' name.
    """
    model.requires_grad_(False)
    for name, matrix in matrices.items():
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"{name} is a {type(linear).__name__} in {type(model).__name__}, expected nn.Linear"
            )
        model.set_submodule(name, TrainableLinear(matrix, linear.bias))
