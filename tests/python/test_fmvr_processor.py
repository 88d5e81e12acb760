"""The processor writes the placeholders that a scale needs; a budget chooses the scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from architectures import qwen2_5_vl
from conftest import llava_processor
from elastic_models import IMAGE, SIDE, llava, llava_next, qwen_inputs, rows, with_weights
from llava_fa.cost import kv_cache_bytes, prefill_flops
from llava_fa.errors import BudgetError
from llava_fa.fmvr import attach_fmvr, elastic_processor
from llava_fa.fmvr.budget import Budget, scale_within
from llava_fa.fmvr.placeholders import shortened

TOKEN = 63
"""The image token of the test processor."""


def processor_for(size: int) -> Any:
    """The shared test processor, for larger images."""
    made = llava_processor()
    made.image_processor.size = {"height": size, "width": size}
    made.image_processor.crop_size = {"height": size, "width": size}
    made.patch_size = 4
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    built = with_weights(attach_fmvr(llava()))
    built.config.image_token_index = TOKEN
    return built


@pytest.fixture(scope="module")
def processor(model: Any) -> Any:
    return elastic_processor(processor_for(4 * SIDE), model.config)


@pytest.fixture(scope="module")
def picture() -> Any:
    from PIL import Image

    return Image.radial_gradient("L").convert("RGB")


def placeholders(inputs: Any) -> list[int]:
    return [int(count) for count in (inputs["input_ids"] == TOKEN).sum(dim=1)]


class TestProcessor:
    def test_placeholders_follow_the_scale(self, model: Any, processor: Any, picture: Any) -> None:
        for scale in (144, 36, 9, 1):
            inputs = processor(
                images=picture, text="<image> w1 w2", visual_tokens=scale, return_tensors="pt"
            )
            assert placeholders(inputs) == [scale]
            assert inputs["visual_tokens"].tolist() == [scale]
            assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, scale + 2)
            assert model(**inputs).logits.shape[1] == scale + 2

    def test_one_scale_per_image_of_a_padded_batch(
        self, model: Any, processor: Any, picture: Any
    ) -> None:
        texts = ["<image> w1 <image> w2", "w1", "<image> w3"]
        inputs = processor(
            images=[picture] * 3,
            text=texts,
            visual_tokens=[9, 1, 36],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        assert placeholders(inputs) == [10, 0, 36]
        assert inputs["attention_mask"].sum(dim=1).tolist() == [12, 1, 37]
        assert inputs["input_ids"].shape == (3, 37)
        assert inputs["attention_mask"][:, -1].tolist() == [1, 1, 1]
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert out.shape == (3, 39)

    def test_without_a_scale_nothing_changes(self, processor: Any, picture: Any) -> None:
        arguments = {"images": picture, "text": "<image> w1", "return_tensors": "pt"}
        plain, elastic = processor_for(4 * SIDE)(**arguments), processor(**arguments)
        assert plain.keys() == elastic.keys()
        assert all(torch.equal(plain[key], elastic[key]) for key in plain)

    def test_text_alone(self, processor: Any) -> None:
        inputs = processor(text="w1 w2", visual_tokens=9, return_tensors="pt")
        assert "visual_tokens" not in inputs
        assert inputs["input_ids"].shape == (1, 2)

    def test_chat_templates_take_a_scale(self, processor: Any, picture: Any) -> None:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "w1"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"visual_tokens": 9},
        )
        assert placeholders(inputs) == [9]

    def test_is_saved_like_the_plain_one(self, processor: Any, tmp_path: Path) -> None:
        processor.save_pretrained(tmp_path / "elastic")
        processor_for(4 * SIDE).save_pretrained(tmp_path / "plain")
        files = [
            {path.name: path.read_text() for path in (tmp_path / name).iterdir()}
            for name in ("elastic", "plain")
        ]
        assert files[0] == files[1]
        assert (
            type(AutoProcessor.from_pretrained(tmp_path / "elastic")).__name__ == "LlavaProcessor"
        )

    def test_tiles_of_llava_next(self, picture: Any) -> None:
        from transformers import LlavaNextProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil,
        )

        model = attach_fmvr(llava_next(), scales=(36, 9, 1))
        model.config.image_token_index = TOKEN
        plain = LlavaNextProcessor(
            image_processor=LlavaNextImageProcessorPil(
                size={"shortest_edge": 24},
                crop_size={"height": 24, "width": 24},
                image_grid_pinpoints=model.config.image_grid_pinpoints,
            ),
            tokenizer=llava_processor().tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        elastic = elastic_processor(plain, model.config)
        for size in ((60, 20), (20, 60), (48, 48), (37, 48)):
            image = picture.resize(size)
            for scale in (36, 9, 1):
                inputs = elastic(
                    images=image, text="<image> w1", visual_tokens=scale, return_tensors="pt"
                )
                # the model refuses a prompt whose placeholders are not its tokens
                assert torch.isfinite(model(**inputs).logits).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"visual_tokens": 10}, "the 12 x 12 grid has the scales 1, 9, 36, 144"),
            ({"visual_tokens": [9, 9]}, "2 scales, expected one for each of the 1 images"),
            ({"visual_tokens": 9, "max_kv_bytes": "1MB"}, "visual_tokens or a budget, not both"),
            ({"visual_tokens": 9, "return_tensors": None}, "a scale needs tensors"),
        ],
    )
    def test_bad_requests(
        self, processor: Any, picture: Any, options: dict[str, Any], message: str
    ) -> None:
        arguments = {"images": picture, "text": "<image> w1", "return_tensors": "pt", **options}
        with pytest.raises(ValueError, match=message):
            processor(**arguments)

    def test_a_model_without_fmvr(self) -> None:
        with pytest.raises(ValueError, match="has no FMVR"):
            elastic_processor(llava_processor(), llava().config)


class TestBudget:
    """A prompt of two words beside the image."""

    @pytest.mark.parametrize(("fits", "scale"), [(146, 144), (145, 36), (38, 36), (37, 9), (3, 1)])
    def test_the_finest_scale_within_the_cache(
        self, model: Any, processor: Any, picture: Any, fits: int, scale: int
    ) -> None:
        limit = kv_cache_bytes(model.config, fits, bytes_per_value=4)
        inputs = processor(
            images=picture, text="<image> w1 w2", max_kv_bytes=limit, return_tensors="pt"
        )
        assert inputs["visual_tokens"].tolist() == [scale]

    @pytest.mark.parametrize(("fits", "scale"), [(146, 144), (145, 36), (37, 9)])
    def test_the_finest_scale_within_the_prefill(
        self, model: Any, processor: Any, picture: Any, fits: int, scale: int
    ) -> None:
        limit = prefill_flops(model.config, fits) / 1e12
        inputs = processor(
            images=picture, text="<image> w1 w2", max_prefill_tflops=limit, return_tensors="pt"
        )
        assert placeholders(inputs) == [scale]

    def test_every_prompt_of_a_batch_fits(self, model: Any) -> None:
        # 6 + 2 · n and 8 + n tokens, without what pads
        inputs = {**rows([144, 144], [144]), "pixel_values": torch.zeros(3, 3, 48, 48)}
        inputs["input_ids"][inputs["input_ids"] == IMAGE] = TOKEN
        for fits, scale in ((9 + 2 * 36, 36), (8 + 2 * 36, 9)):
            budget = Budget(max_kv_bytes=kv_cache_bytes(model.config, fits, 4))
            assert scale_within(budget, model.config, inputs) == scale

    def test_limits_of_grids_of_any_shape(self) -> None:
        model = attach_fmvr(qwen2_5_vl(), pools=(2, 2))
        # 4 × 6 and 2 × 2 tokens: 24 + 4, 6 + 4, 2 + 4 and 2 + 1 beside 9 of text
        inputs = qwen_inputs((8, 12), (4, 4), placeholders=[24, 4])
        found = [
            scale_within(
                Budget(max_kv_bytes=kv_cache_bytes(model.config, fits, 4)), model.config, inputs
            )
            for fits in (37, 36, 19, 18, 12)
        ]
        assert found == [24, 6, 6, 4, 2]

    @pytest.mark.parametrize(
        ("options", "minimum"),
        [({"max_kv_bytes": 10}, 3 * 2 * 2 * 16 * 4), ({"max_prefill_tflops": 1e-9}, 1e-7)],
    )
    def test_a_budget_below_the_smallest_scale(
        self, processor: Any, picture: Any, options: dict[str, Any], minimum: float
    ) -> None:
        with pytest.raises(BudgetError, match="with the fewest visual tokens") as error:
            processor(images=picture, text="<image> w1 w2", return_tensors="pt", **options)
        assert error.value.minimum == pytest.approx(minimum, rel=0.5)


class TestPlaceholders:
    def test_everything_per_token_is_shortened_and_padded(self) -> None:
        inputs = {
            "input_ids": torch.tensor([[1, 9, 9, 9, 9, 2], [0, 0, 3, 9, 9, 4]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
            "labels": torch.tensor([[-100, -100, -100, -100, -100, 2], [-100] * 5 + [4]]),
            "pixel_values": torch.zeros(2),
        }
        found = shortened(inputs, 9, [4, 2], [1, 2], pad_token=0)
        assert found["input_ids"].tolist() == [[0, 1, 9, 2], [3, 9, 9, 4]]
        assert found["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
        assert found["labels"].tolist() == [[-100, -100, -100, 2], [-100, -100, -100, 4]]
        assert found["pixel_values"] is inputs["pixel_values"]

    def test_padding_on_the_right_stays_there(self) -> None:
        inputs = {
            "input_ids": torch.tensor([[1, 9, 9, 2], [3, 4, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        }
        found = shortened(inputs, 9, [2], [1], pad_token=0)
        assert found["input_ids"].tolist() == [[1, 9, 2], [3, 4, 0]]

    def test_rows_without_a_mask_get_one_where_they_differ(self) -> None:
        inputs = {"input_ids": torch.tensor([[1, 9, 9], [1, 9, 9]])}
        assert "attention_mask" not in shortened(inputs, 9, [2, 2], [1, 1])
        found = shortened(inputs, 9, [2, 2], [1, 2], pad_token=5)
        assert found["input_ids"].tolist() == [[1, 9, 5], [1, 9, 9]]
        assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]

    def test_prompts_of_another_scale(self) -> None:
        with pytest.raises(ValueError, match="hold 2 image placeholders, expected 4 for 1 images"):
            shortened({"input_ids": torch.tensor([[1, 9, 9]])}, 9, [4], [1])
