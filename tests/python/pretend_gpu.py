"""A GPU that is not there: tensors that say they are on ``cuda:0`` and compute on the CPU.

What torch itself computes can so be tested without a GPU: that results are the same as on the CPU,
and that nothing is mixed. As on a GPU, an operation with tensors of both places is an error, unless
it copies, or takes a single number or an index from the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_COPIES = ("aten.copy_.default", "aten._to_copy.default")
_INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")


class Distant(torch.Tensor):
    """A tensor of the GPU; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Any], *_: Any) -> Any:
        return Distant(inner["held"])

    def untyped_storage(self) -> Any:
        """Return the memory that tells whether tensors are the same."""
        return self.held.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"Distant({self.held})"

    @property
    def device(self) -> torch.device:
        """The GPU, as Python sees it; torch's own dispatch takes the tensor for one of the CPU."""
        return GPU

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name, values = str(function), tree_leaves([list(args), dict(kwargs)])
    if name not in _COPIES:
        looked_at = tree_leaves([args[0], *args[2:3]]) if name in _INDEXED else values
        if any(_is_near(value) and value.ndim > 0 for value in looked_at):
            raise RuntimeError(f"{name}: expected all tensors on one device, found {GPU} and cpu")
    found = function(*tree_map(_held, list(args)), **tree_map(_held, dict(kwargs)))
    if name == "aten.copy_.default":
        return args[0]
    owners = {id(v.held): v for v in values if isinstance(v, Distant)}
    return tree_map(lambda v: owners.get(id(v), Distant(v)) if _is_near(v) else v, found)


def _is_near(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, Distant)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Distant) else value


class _Placing(TorchFunctionMode):
    """Makes on the GPU what is asked for there, and copies between the places."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "tolist":
            return _held(args[0]).tolist()
        if name in ("to", "cpu") and isinstance(args[0], Distant):
            return _moved(args[0], ("cpu",) if name == "cpu" else args[1:], kwargs)
        names = any(map(_names_gpu, [*args, *kwargs.values()]))
        if not names or name in ("_parse_to", "device"):
            return function(*args, **kwargs)
        near = {key: _near(value) for key, value in kwargs.items()}
        return tree_map(
            lambda v: Distant(v.detach().clone()) if _is_near(v) else v,
            function(*map(_near, args), **near),
        )


def _moved(tensor: Distant, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return what ``tensor.to(*args, **kwargs)`` gives."""
    values = [*args, *kwargs.values()]
    places = [value for value in values if isinstance(value, (str, torch.device))]
    types = [value for value in values if isinstance(value, torch.dtype)]
    held = tensor.held.to(*types, copy=kwargs.get("copy", False)) if types else tensor.held
    if places and not _names_gpu(places[0]):
        return held.clone()
    return tensor if held is tensor.held and not kwargs.get("copy") else Distant(held.clone())


def _names_gpu(value: Any) -> bool:
    return isinstance(value, (torch.device, str)) and str(value).startswith("cuda")


def _near(value: Any) -> Any:
    return torch.device("cpu") if _names_gpu(value) else value


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Let torch find a GPU, ``cuda:0``."""
    with _Placing():
        yield GPU
