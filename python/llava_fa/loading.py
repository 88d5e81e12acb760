"""Loads a checkpoint like ``from_pretrained``, but never with weights that were not found."""

from __future__ import annotations

import os
from typing import Any

from .errors import FormatError


def load_model(folder: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a compressed (or dense) multimodal checkpoint and check that every weight was found.

    Parameters
    ----------
    folder
        Checkpoint folder or hub id.
    **kwargs
        Passed to ``from_pretrained``, e.g. ``dtype``, ``device_map``.

    Raises
    ------
    FormatError
        transformers did not find a weight that the model needs: it would be random.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    auto: Any = transformers.AutoModelForImageTextToText
    if type(config) not in auto._model_mapping:
        auto = transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True, **kwargs)
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise FormatError(
            f"{folder}: {len(missing)} weight(s) of the model were not found, first {missing[:3]}"
        )
    return model
