"""transformers' models with a pyramid of visual tokens behind the projector.

Each class extends one of transformers: the inner model owns the pyramid, as ``model.fmvr``, and
gives ``get_image_features`` the argument ``visual_tokens``, which ``generate`` passes on by itself;
the outer model takes it in ``forward``. Without it nothing of this runs: the model computes, bit
for bit, what it computed before.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import AutoModelForImageTextToText
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
)

from .configs import FmvrLlavaConfig, FmvrLlavaNextConfig, FmvrQwen2_5_VLConfig
from .layouts import (
    ImageLayout,
    MergedLayout,
    Scales,
    TiledLayout,
    layout_of,
    scales_of,
    split_images,
)
from .matryoshka import Matryoshka, matryoshka_output
from .pyramid import VisualTokenPyramid
from .restoration import RestorationBranch


class PyramidModel(metaclass=ABCMeta):
    """What every inner model has beside transformers' own: a pyramid, and images at a scale."""

    config: Any
    fmvr: VisualTokenPyramid

    def add_pyramid(self) -> None:
        """Build the pyramid that the configuration describes."""
        config = self.config
        settings = config.fmvr
        self.fmvr = VisualTokenPyramid(
            config.text_config.hidden_size,
            settings["pools"],
            settings["side"],
            settings["variant"],
        )

    @property
    def layout(self) -> ImageLayout:
        """How many placeholders images take."""
        return layout_of(self.config)

    def get_image_features(
        self, *arguments: Any, visual_tokens: Scales | None = None, **inputs: Any
    ) -> Any:
        """Return transformers' output, with every image's tokens at its scale.

        Parameters
        ----------
        *arguments, **inputs
            As without FMVR.
        visual_tokens
            A scale for all images, or one for each; full scale if None.
        """
        features = cast("Any", super()).get_image_features
        if visual_tokens is None:
            return features(*arguments, **inputs)
        inputs.update(zip(inspect.signature(features).parameters, arguments, strict=False))
        inputs.pop("return_dict", None)  # always; only encoded images need it
        outputs, images = self.encode_images(**inputs)
        scales = scales_of(visual_tokens, self.layout.images(inputs))
        outputs.pooler_output = self.at_scales(images, scales, inputs)
        return outputs

    @abstractmethod
    def encode_images(self, **inputs: Any) -> tuple[Any, list[Tensor]]:
        """Return transformers' output and every image's projected tokens, (grids, tokens, C)."""

    @abstractmethod
    def at_scales(
        self, images: Sequence[Tensor], scales: Sequence[int], inputs: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return what replaces the placeholders of every image, (n, C)."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RestorationBranch):
            module.reset_parameters()
        else:
            cast("Any", super())._init_weights(module)


class FmvrLlavaModel(PyramidModel, LlavaModel):
    """LLaVA-1.5's inner model with a pyramid."""

    def encode_images(self, **inputs: Any) -> tuple[Any, list[Tensor]]:
        """See :class:`PyramidModel`; one grid per image."""
        outputs = LlavaModel.get_image_features(self, **inputs, return_dict=True)
        return outputs, [tokens[None] for tokens in outputs.pooler_output]

    def at_scales(
        self, images: Sequence[Tensor], scales: Sequence[int], inputs: Mapping[str, Any]
    ) -> list[Tensor]:
        """See :class:`PyramidModel`."""
        return self.fmvr(torch.cat(list(images)), scales) if images else []


class FmvrLlavaNextModel(PyramidModel, LlavaNextModel):
    """LLaVA-NeXT's inner model with a pyramid."""

    def encode_images(self, **inputs: Any) -> tuple[Any, list[Tensor]]:
        """See :class:`PyramidModel`; the whole image and its tiles."""
        layout = cast("TiledLayout", self.layout)
        with _recorded(self.multi_modal_projector) as projected:
            outputs = LlavaNextModel.get_image_features(self, **inputs, return_dict=True)
        sizes = [_size(size) for size in inputs["image_sizes"]]
        counts = [1 + math.prod(layout.tiles(size)) for size in sizes]
        return outputs, list(torch.split(projected[0], counts))

    def at_scales(
        self, images: Sequence[Tensor], scales: Sequence[int], inputs: Mapping[str, Any]
    ) -> list[Tensor]:
        """See :class:`PyramidModel`; the whole image, then rows of the joined tiles."""
        sizes = [_size(size) for size in inputs["image_sizes"]]
        return [
            self._packed(torch.stack(self.fmvr(image, scale)), size)
            for image, scale, size in zip(images, scales, sizes, strict=True)
        ]

    def _packed(self, grids: Tensor, image_size: tuple[int, int]) -> Tensor:
        layout = cast("TiledLayout", self.layout)
        side = math.isqrt(grids.shape[1])
        joined = layout.joined(grids[1:].reshape(-1, side, side, grids.shape[-1]), image_size)
        newline = self.image_newline[:, None, None].expand(*joined.shape[:-1], 1).to(joined)
        rows = torch.cat([joined, newline], dim=-1).flatten(1, 2).transpose(0, 1)
        return torch.cat([grids[0], rows])


class FmvrQwen2_5_VLModel(PyramidModel, Qwen2_5_VLModel):
    """Qwen2.5-VL's inner model with a pyramid; videos stay at full scale."""

    def encode_images(self, **inputs: Any) -> tuple[Any, list[Tensor]]:
        """See :class:`PyramidModel`; a grid per frame, one for a still image."""
        inputs = {key: value for key, value in inputs.items() if not key.startswith("vision_")}
        outputs = Qwen2_5_VLModel.get_image_features(self, **inputs, return_dict=True)
        grids = cast("MergedLayout", self.layout).grids(inputs)
        return outputs, [
            tokens.reshape(frames, height * width, -1)
            for tokens, (frames, height, width) in zip(outputs.pooler_output, grids, strict=True)
        ]

    def at_scales(
        self, images: Sequence[Tensor], scales: Sequence[int], inputs: Mapping[str, Any]
    ) -> list[Tensor]:
        """See :class:`PyramidModel`."""
        grids = cast("MergedLayout", self.layout).grids(inputs)
        return [
            torch.cat(self.fmvr(image, scale, (height, width)))
            for image, scale, (_, height, width) in zip(images, scales, grids, strict=True)
        ]

    def get_rope_index(
        self, *arguments: Any, visual_tokens: Scales | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return transformers' positions; a smaller grid has those of a smaller image."""
        inputs.update(zip(("input_ids", "mm_token_type_ids"), arguments, strict=False))
        if visual_tokens is not None and inputs.get("image_grid_thw") is not None:
            layout = cast("MergedLayout", self.layout)
            scales = scales_of(visual_tokens, layout.images(inputs))
            merge = layout.merge_size
            grids = [
                (frames, merge * height, merge * width)
                for frames, height, width in layout.reduced_grids(layout.grids(inputs), scales)
            ]
            inputs["image_grid_thw"] = inputs["image_grid_thw"].new_tensor(grids)
        return super().get_rope_index(**inputs)


class ElasticGeneration:
    """What every outer model has beside transformers' own: the choice of the scale per call."""

    config: Any
    model: Any
    inner_class: type[nn.Module]

    def __init__(self, config: Any) -> None:
        cast("Any", super()).__init__(config)
        self.add_pyramid()

    def add_pyramid(self) -> None:
        """Turn the inner model into one with the pyramid that the configuration describes."""
        self.model.__class__ = self.inner_class
        self.model.add_pyramid()

    @property
    def fmvr(self) -> VisualTokenPyramid:
        """The pyramid."""
        return cast("VisualTokenPyramid", self.model.fmvr)

    def forward(
        self,
        *arguments: Any,
        visual_tokens: Scales | None = None,
        matryoshka: Matryoshka | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the model with images at a scale.

        Parameters
        ----------
        *arguments, **inputs
            As without FMVR; the prompt holds as many placeholders as the scale needs, as
            :func:`llava_fa.fmvr.elastic_processor` gives them.
        visual_tokens
            A scale for all images, or one for each; full scale if None. Without images it means
            nothing.
        matryoshka
            For training: run at several scales, from a prompt with the placeholders of full scale.

        Raises
        ------
        ValueError
            The grid has no such scale, or the prompt's placeholders are not those of the scale.
        """
        run = cast("Any", super()).forward
        names = list(inspect.signature(run).parameters)
        inputs.update(zip(names, arguments, strict=False))
        if matryoshka is not None:
            return matryoshka_output(self, run, inputs, matryoshka)
        if visual_tokens is not None and inputs.get("pixel_values") is not None:
            inputs = self._with_images_at(inputs, visual_tokens)
        self._check_placeholders(inputs)
        return run(**inputs)

    def image_positions(
        self, text: Mapping[str, Any], images: Mapping[str, Any], visual_tokens: Scales | None
    ) -> dict[str, Any]:
        """Return the arguments of ``forward`` that place images of these scales in the prompt."""
        return {}

    def _with_images_at(self, inputs: Mapping[str, Any], visual_tokens: Scales) -> dict[str, Any]:
        """Return the inputs with encoded images in the place of pixels."""
        images, text = split_images(inputs)
        outputs = self.model.get_image_features(
            **images, visual_tokens=visual_tokens, return_dict=True
        )
        placed = self.image_positions(text, images, visual_tokens)
        return {**text, **placed, "mm_encoder_outputs": {"image": outputs}}

    def _check_placeholders(self, inputs: Mapping[str, Any]) -> None:
        """Compare the prompt with encoded images; transformers' own message names no remedy."""
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        ids = inputs.get("input_ids")
        if encoded is None or ids is None:
            return
        found = int((ids == self.config.image_token_id).sum())
        needed = sum(len(tokens) for tokens in encoded.pooler_output)
        if found != needed:
            raise ValueError(
                f"the prompt has {found} image placeholders, the images at their scales have "
                f"{needed} tokens; give the processor of llava_fa.fmvr.elastic_processor the same "
                "visual_tokens as the model"
            )


class _ElasticQwen(ElasticGeneration):
    """Positions in three dimensions depend on the scale too."""

    def image_positions(
        self, text: Mapping[str, Any], images: Mapping[str, Any], visual_tokens: Scales | None
    ) -> dict[str, Any]:
        """See :class:`ElasticGeneration`."""
        if text.get("pixel_values_videos") is not None:
            raise ValueError("videos have one scale, the full one: leave visual_tokens out")
        if text.get("position_ids") is not None or text.get("mm_token_type_ids") is None:
            return {}
        positions, self.model.rope_deltas = self.model.get_rope_index(
            text["input_ids"],
            text["mm_token_type_ids"],
            image_grid_thw=images["image_grid_thw"],
            attention_mask=text.get("attention_mask"),
            visual_tokens=visual_tokens,
        )
        return {"position_ids": positions}


def _extend(owner: type[Any], name: str, plain: Callable[..., Any], *added: str) -> None:
    """Give a class a method of its own that states transformers' arguments and further ones.

    ``generate`` looks at signatures to know what a model takes.
    """
    method = getattr(owner, name)

    @functools.wraps(plain)
    def call(self: Any, *arguments: Any, **inputs: Any) -> Any:
        return method(self, *arguments, **inputs)

    signature = inspect.signature(plain)
    *known, last = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    new = [inspect.Parameter(argument, keyword, default=None) for argument in added]
    vars(call)["__signature__"] = signature.replace(parameters=[*known, *new, last])
    call.__doc__ = method.__doc__
    setattr(owner, name, call)


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record what a module returns."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def _size(size: Any) -> tuple[int, int]:
    height, width = (int(length) for length in size)
    return height, width


class FmvrLlavaForConditionalGeneration(ElasticGeneration, LlavaForConditionalGeneration):
    """LLaVA-1.5 that takes ``visual_tokens``."""

    config_class = FmvrLlavaConfig
    inner_class = FmvrLlavaModel


class FmvrLlavaNextForConditionalGeneration(ElasticGeneration, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that takes ``visual_tokens``, those of one grid."""

    config_class = FmvrLlavaNextConfig
    inner_class = FmvrLlavaNextModel


class FmvrQwen2_5_VLForConditionalGeneration(_ElasticQwen, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that takes ``visual_tokens``, a limit for every image."""

    config_class = FmvrQwen2_5_VLConfig
    inner_class = FmvrQwen2_5_VLModel


ELASTIC_CLASSES: dict[type[Any], type[Any]] = {
    LlavaForConditionalGeneration: FmvrLlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration: FmvrLlavaNextForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration: FmvrQwen2_5_VLForConditionalGeneration,
}
"""The class with FMVR of every class of transformers that can have it."""


def _register(plain: type[Any], elastic: type[Any]) -> None:
    """Tell transformers of a class, and its ``generate`` of the arguments."""
    AutoModelForImageTextToText.register(elastic.config_class, elastic, exist_ok=True)
    _extend(elastic, "forward", plain.forward, "visual_tokens", "matryoshka")
    inner = elastic.inner_class
    features = super(PyramidModel, inner).get_image_features
    _extend(inner, "get_image_features", features, "visual_tokens")


for _plain, _elastic in ELASTIC_CLASSES.items():
    _register(_plain, _elastic)
