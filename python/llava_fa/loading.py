"""Loads a checkpoint like ``from_pretrained``, but never with weights that were not found."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from .errors import FormatError
from .packed_checkpoint import QUANT_METHOD

if TYPE_CHECKING:
    from .hf import Runtime


def load_model(
    folder: str | os.PathLike[str], *, runtime: Runtime | None = None, **kwargs: Any
) -> Any:
    """Load a compressed (or dense) multimodal checkpoint and check that every weight was found.

    Parameters
    ----------
    folder
        Checkpoint folder or hub id.
    runtime
        Of :class:`llava_fa.hf.LlavaFaConfig`; without effect on a dense checkpoint.
    **kwargs
        Passed to ``from_pretrained``, e.g. ``dtype``, ``device_map``.

    Raises
    ------
    FormatError
        transformers did not find a weight that the model needs: it would be random.
    """
    import transformers

    from .hf import LlavaFaConfig

    config = transformers.AutoConfig.from_pretrained(folder)
    auto: Any = transformers.AutoModelForImageTextToText
    if type(config) not in auto._model_mapping:
        auto = transformers.AutoModelForCausalLM
    if runtime is not None and _is_compressed(config):
        kwargs["quantization_config"] = LlavaFaConfig(runtime=runtime)
    with warnings.catch_warnings():
        # transformers always says that it merges the choice with what is stored.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        model, info = auto.from_pretrained(folder, output_loading_info=True, **kwargs)
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise FormatError(
            f"{folder}: {len(missing)} weight(s) of the model were not found, first {missing[:3]}"
        )
    return model


def _is_compressed(config: Any) -> bool:
    stored = getattr(config, "quantization_config", None)
    return stored is not None and stored.get("quant_method") == QUANT_METHOD
