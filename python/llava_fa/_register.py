"""Registers our format with transformers, as soon as transformers is there.

Importing transformers takes seconds that a user of ``compress_matrix`` alone should not wait. So
``import llava_fa`` registers at once only if transformers' registry is already imported; otherwise
it waits for that import (which ``from_pretrained`` needs) and registers right after it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTRY = "transformers.quantizers"


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
        _register()


class _RegistryFinder(MetaPathFinder):
    """Finds the registry once, with a loader that registers our format after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def register_when_transformers_is_imported() -> None:
    """Register now if transformers' registry is imported, else when it will be."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


def _register() -> None:
    try:
        # Importing the module registers: its classes carry transformers' registering decorators.
        importlib.import_module(f"{__package__}.hf")
    except ImportError as error:
        # Another version of transformers; it must stay usable for everything else.
        warnings.warn(
            f"llava_fa could not register its format with transformers ({error}); compressed "
            "checkpoints cannot be loaded with this version",
            stacklevel=2,
        )
