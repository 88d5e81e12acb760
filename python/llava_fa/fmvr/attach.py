"""Gives a model of transformers a pyramid of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .scales import PyramidShape, pools_of

DEFAULT_POOLS = (2, 2, 2)
"""Of models whose grids have any shape: up to 64 times fewer tokens."""


def attach_fmvr(
    model: Any,
    scales: Sequence[int] | None = None,
    *,
    pools: Sequence[int] | None = None,
    variant: str = "both",
) -> Any:
    """Let a model answer with fewer visual tokens; the model itself is changed, and returned.

    Nothing changes until ``visual_tokens`` is given to ``forward`` or ``generate``: at full scale
    the model computes bit for bit what it did. The new parameters begin as section 10 of the design
    says, and want training (``llava-fa fmvr train``). ``save_pretrained`` stores them as ordinary
    tensors, the settings in ``config.json``; ``from_pretrained`` loads both after ``import
    llava_fa``.

    Parameters
    ----------
    model
        ``LlavaForConditionalGeneration``, ``LlavaNextForConditionalGeneration`` or
        ``Qwen2_5_VLForConditionalGeneration`` of transformers; dense or packed.
    scales
        Numbers of visual tokens of a square grid, for LLaVA models, as ``(1, 9, 36, 144, 576)``;
        None for the longest chain of pools that the grid has.
    pools
        Sides of the pooling windows instead, finest level first; for Qwen2.5-VL, whose grids have
        any shape, (2, 2, 2) if None.
    variant
        ``"both"``, or an ablation; see :class:`FrequencyModulatedRestoration`.

    Raises
    ------
    TypeError
        A model of another class.
    ValueError
        The model has FMVR already, its grid is not square or has no such scales, or scales were
        given for a model without a grid of its own.

    Examples
    --------
    >>> from transformers import AutoModelForImageTextToText
    >>> from llava_fa.fmvr import attach_fmvr, elastic_processor
    >>> model = AutoModelForImageTextToText.from_pretrained("my-llava")  # doctest: +SKIP
    >>> attach_fmvr(model, scales=(1, 9, 36, 144, 576))  # doctest: +SKIP
    >>> processor = elastic_processor(processor, model.config)  # doctest: +SKIP
    >>> inputs = processor(images=image, text=prompt, visual_tokens=36)  # doctest: +SKIP
    >>> model.generate(**inputs)  # doctest: +SKIP
    """
    from .models import ELASTIC_CLASSES, ElasticGeneration

    if isinstance(model, ElasticGeneration):
        raise ValueError(f"the model has FMVR already: {model.fmvr.extra_repr()}")
    elastic = ELASTIC_CLASSES.get(type(model))
    if elastic is None:
        known = ", ".join(plain.__name__ for plain in ELASTIC_CLASSES)
        raise TypeError(f"FMVR knows {known}, received a {type(model).__name__}")
    config = model.config
    side = None if config.model_type == "qwen2_5_vl" else grid_side(config)
    shape = PyramidShape(_pools(side, scales, pools), side)
    config.__class__ = elastic.config_class
    config.fmvr = {"pools": list(shape.pools), "side": side, "variant": variant}
    model.__class__ = elastic
    # Files of this model are FMVR's own: they need no names of earlier checkpoints.
    model._weight_conversions = []
    model.add_pyramid()
    model.fmvr.to(device=model.device, dtype=model.dtype)
    return model


def grid_side(config: Any) -> int:
    """Return the side of the square grid that the projector of a LLaVA model gives.

    Raises
    ------
    ValueError
        The visual tokens are no square grid.
    """
    vision = config.vision_config
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int) or vision.model_type == "pixtral":
        raise ValueError(
            f"the grids of a {vision.model_type} vision tower are not all the same square; FMVR "
            "has no rule for them"
        )
    side = size // patch
    class_token = vision.model_type.startswith("clip")
    dropped = config.vision_feature_select_strategy == "default"
    tokens = side * side + class_token - dropped
    if tokens != side * side:
        raise ValueError(
            f"the projector gives {tokens} tokens, not a {side} x {side} grid: "
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, and the "
            f"vision tower {'has a' if class_token else 'has no'} class token"
        )
    return side


def _pools(
    side: int | None, scales: Sequence[int] | None, pools: Sequence[int] | None
) -> tuple[int, ...]:
    if scales is not None and pools is not None:
        raise ValueError("give scales or pools, not both")
    if pools is not None:
        return tuple(pools)
    if side is not None:
        return pools_of(side, scales)
    if scales is not None:
        raise ValueError(
            f"scales are {list(scales)}, but grids of this model have any shape: give pools, such "
            f"as {DEFAULT_POOLS}"
        )
    return DEFAULT_POOLS
