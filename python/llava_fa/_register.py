"""Registers our classes with transformers, as soon as transformers is there.

Importing transformers takes seconds that a user of ``compress_matrix`` alone should not wait. So
``import llava_fa`` registers at once only with those of transformers' registries that are already
imported; otherwise it waits for their import (which ``from_pretrained`` needs) and registers right
after it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ._register_fmvr import name_configs, name_models


class _RegisteringLoader(Loader):
    """Runs the real loader, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must not remember us: tools ask a module's loader for sources and resources.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register(module)


class _RegistryFinder(MetaPathFinder):
    """Finds every registry once, with a loader that registers ours after it."""

    def __init__(self) -> None:
        self._waiting = {name for name in _REGISTRIES if name not in sys.modules}

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._waiting:
            return None
        self._waiting.remove(fullname)
        if not self._waiting:
            sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def register_when_transformers_is_imported() -> None:
    """Register now with the registries that are imported, with the others when they will be."""
    if any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        return
    imported = [sys.modules[name] for name in _REGISTRIES if name in sys.modules]
    if len(imported) < len(_REGISTRIES):
        sys.meta_path.insert(0, _RegistryFinder())
    for registry in imported:
        _register(registry)
    if len(imported) == len(_REGISTRIES):
        # Too late for names: the tables of models were built from those of configurations.
        _import("fmvr.models")


def _register(registry: ModuleType) -> None:
    _REGISTRIES[registry.__name__](registry)


def _import(name: str) -> None:
    try:
        # Importing the module registers: its classes carry transformers' registering decorators.
        importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        # Another version of transformers; it must stay usable for everything else.
        warnings.warn(
            f"llava_fa could not register its format with transformers ({error}); compressed "
            "checkpoints cannot be loaded with this version",
            stacklevel=2,
        )


def _register_quantizer(_registry: ModuleType) -> None:
    _import("hf")


_REGISTRIES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.quantizers": _register_quantizer,
    "transformers.models.auto.configuration_auto": name_configs,
    "transformers.models.auto.modeling_auto": name_models,
}
"""What to do with each of transformers' registries once it is imported."""
