"""Lets a model begin in the middle: blocks return NaN, and a unit receives a remembered state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .trace import block_input


@contextmanager
def replaced(unit: nn.Module, state: torch.Tensor) -> Iterator[None]:
    """Let a unit receive a remembered state, whatever it is called with."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A copy, because the model may change it in place.
        if args:
            return (state.clone(), *args[1:]), kwargs
        key = "input" if type(module) is nn.Linear else "hidden_states"
        return args, {**kwargs, key: state.clone()}

    with unit.register_forward_pre_hook(hook, with_kwargs=True):
        yield


@contextmanager
def skipped(model: nn.Module, lengths: Mapping[str, int], names: Iterable[str]) -> Iterator[None]:
    """Let blocks return NaN in the form of their output, without computing.

    ``lengths`` are those of ``Trace.blocks``: elements of the output tuple, 0 for a tensor.
    """
    with ExitStack() as restored:
        for name in names:
            block: Any = model.get_submodule(name)
            own = block.__dict__.get("forward")
            restored.callback(_restore, block, own)
            block.forward = _nothing(lengths[name])
        yield


def _restore(block: Any, own: Any) -> None:
    if own is None:
        del block.forward
    else:
        block.forward = own


def _nothing(length: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        state = block_input(args, kwargs)
        assert state is not None
        nothing = torch.full_like(state, float("nan"))
        return (nothing, *[None] * (length - 1)) if length else nothing

    return forward
