"""Configurations of models with FMVR, registered with transformers under names of their own.

The names begin with ``llava_fa``, so that transformers, asked to load such a checkpoint without
this library, refuses with a message that says whose it is, instead of ignoring the pyramid.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava_next.configuration_llava_next import LlavaNextConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig


class FmvrLlavaConfig(LlavaConfig):
    """LLaVA-1.5 with FMVR; ``fmvr`` holds ``pools``, ``side`` and ``variant`` of the pyramid."""

    model_type = "llava_fa_fmvr_llava"
    fmvr: dict[str, Any] | None = None


class FmvrLlavaNextConfig(LlavaNextConfig):
    """LLaVA-NeXT with FMVR; see :class:`FmvrLlavaConfig`."""

    model_type = "llava_fa_fmvr_llava_next"
    fmvr: dict[str, Any] | None = None


class FmvrQwen2_5_VLConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL with FMVR; see :class:`FmvrLlavaConfig`."""

    model_type = "llava_fa_fmvr_qwen2_5_vl"
    fmvr: dict[str, Any] | None = None


for _config in (FmvrLlavaConfig, FmvrLlavaNextConfig, FmvrQwen2_5_VLConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
