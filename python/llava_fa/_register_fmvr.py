"""Puts the models with FMVR into transformers' tables, without importing them.

Their classes extend classes of transformers, which cannot be imported while transformers itself is
being imported. Its tables hold names, and import the module of a name when it is first wanted: so
they are given names, and a module that finds the classes then.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

CONFIGS = {
    "llava_fa_fmvr_llava": "FmvrLlavaConfig",
    "llava_fa_fmvr_llava_next": "FmvrLlavaNextConfig",
    "llava_fa_fmvr_qwen2_5_vl": "FmvrQwen2_5_VLConfig",
}
"""Model type to the class of its configuration."""

MODELS = {
    "llava_fa_fmvr_llava": "FmvrLlavaForConditionalGeneration",
    "llava_fa_fmvr_llava_next": "FmvrLlavaNextForConditionalGeneration",
    "llava_fa_fmvr_qwen2_5_vl": "FmvrQwen2_5_VLForConditionalGeneration",
}
"""Model type to the class of the model."""


class _LateModule(ModuleType):
    """Stands where transformers looks for a model type; imports our module when asked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(f"{__package__}.fmvr.models"), name)


def name_configs(registry: ModuleType) -> None:
    """Add the configurations to ``transformers.models.auto.configuration_auto``."""
    registry.CONFIG_MAPPING_NAMES.update(CONFIGS)
    for model_type in CONFIGS:
        name = f"transformers.models.{model_type}"
        sys.modules.setdefault(name, _LateModule(name))


def name_models(registry: ModuleType) -> None:
    """Add the models to ``transformers.models.auto.modeling_auto``."""
    registry.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.update(MODELS)
