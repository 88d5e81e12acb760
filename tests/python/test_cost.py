"""Costs against torch's counter of FLOPs, against tensors that exist, and against the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import llama_model
from elastic_models import SIDE, clip, elastic_llava, llava, pixels, rows
from llava_fa.cost import (
    LanguageShape,
    Machine,
    kv_cache_bytes,
    prefill_flops,
    restoration_flops,
    time_to_first_token,
    vision_flops,
)


def counted(call: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def eager(model: Any) -> Any:
    """Attention as two products, which the counter sees."""
    model.set_attn_implementation("eager")
    return model


class TestPrefill:
    @pytest.mark.parametrize("overrides", [{}, {"num_key_value_heads": 1}, {"head_dim": 24}])
    @pytest.mark.parametrize("tokens", [1, 30])
    def test_a_language_model(self, overrides: dict[str, Any], tokens: int) -> None:
        model = eager(llama_model(**overrides))
        ids = torch.arange(tokens)[None]
        found = counted(lambda: model(input_ids=ids, logits_to_keep=1))
        assert found == prefill_flops(model.config, tokens)

    @pytest.mark.parametrize("layers", [-2, [-2, -1]])
    @pytest.mark.parametrize("scale", [144, 9])
    def test_a_model_with_an_image(self, layers: Any, scale: int) -> None:
        from llava_fa.fmvr import attach_fmvr

        model = eager(attach_fmvr(llava(vision_feature_layer=layers)))
        inputs = {**rows([scale]), "pixel_values": pixels(1, 3, 48, 48)}
        tokens = inputs["input_ids"].shape[1]
        found = counted(lambda: model(**inputs, visual_tokens=scale, logits_to_keep=1))
        assert found == prefill_flops(model.config, tokens) + vision_flops(model.config)

    def test_the_paper_at_36_tokens(self) -> None:
        """× 8.9, that is 89 % less: language model alone, 34 tokens of text beside the image."""
        from transformers import LlamaConfig

        vicuna = LlamaConfig(vocab_size=32064)
        ratio = prefill_flops(vicuna, 576 + 34) / prefill_flops(vicuna, 36 + 34)
        assert ratio == pytest.approx(8.9, abs=0.05)
        assert 1 - 1 / ratio == pytest.approx(0.89, abs=0.005)


class TestRestoration:
    def test_counts_every_operation_on_values(self) -> None:
        """Pools of 4 and 4, restored; the last one of 9, which leaves one token."""
        values = {36: 36 * (4 + 29), 9: 9 * (4 + 29), 1: 9}
        expected = 0
        assert restoration_flops(8, (2, 2, 3), 12, 144) == 0
        for scale, count in values.items():
            expected += 8 * count
            assert restoration_flops(8, (2, 2, 3), 12, scale) == expected

    def test_the_paper_says_about_six_in_a_hundred_thousand(self) -> None:
        """Reached at one visual token; at 36 half of it, as the prefill is larger."""
        from transformers import LlamaConfig

        vicuna = LlamaConfig(vocab_size=32064)
        shares = {
            scale: restoration_flops(4096, (2, 2, 2, 3), 24, scale)
            / prefill_flops(vicuna, scale + 34)
            for scale in (144, 36, 9, 1)
        }
        assert max(shares.values()) == shares[1] == pytest.approx(6e-5, rel=0.1)
        assert shares[36] == pytest.approx(2.7e-5, rel=0.05)


class TestCache:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bytes_of_a_real_cache(self, dtype: torch.dtype) -> None:
        model = elastic_llava().to(dtype)
        inputs = {**rows([9]), "pixel_values": pixels(1, 3, 48, 48).to(dtype)}
        with torch.no_grad():
            cache = model(**inputs, visual_tokens=9).past_key_values
        found = sum(
            tensor.numel() * tensor.element_size()
            for layer in cache.layers
            for tensor in (layer.keys, layer.values)
        )
        tokens = inputs["input_ids"].shape[1]
        assert found == kv_cache_bytes(model.config, tokens, dtype.itemsize)


class TestTime:
    """A machine that computes 10¹² FLOPs and reads 10⁹ bytes in a second."""

    machine = Machine(1e12, 1e9)

    def test_large_prompts_are_bound_by_flops(self) -> None:
        config = llava().config
        fast_memory = Machine(1e9, 1e15)
        found = time_to_first_token(config, fast_memory, 10, 144)
        expected = prefill_flops(config, 154) + vision_flops(config)
        assert found == pytest.approx(expected / 1e9)

    def test_small_prompts_are_bound_by_reading_weights(self) -> None:
        config = llava().config
        slow_memory = Machine(1e18, 1e6)
        weights = sum(
            module.weight.numel()
            for name, module in llava().named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
        assert time_to_first_token(config, slow_memory, 1, 1) == pytest.approx(weights * 2 / 1e6)
        eighth = time_to_first_token(config, slow_memory, 1, 1, bits_per_weight=2)
        assert eighth == pytest.approx(weights / 4 / 1e6)

    def test_text_alone_needs_no_vision_tower(self) -> None:
        config = llava().config
        without = time_to_first_token(config, Machine(1e9, 1e15), 10, 0, images=0)
        assert without == pytest.approx(prefill_flops(config, 10) / 1e9)


def test_shapes_come_from_either_configuration() -> None:
    config = llava().config
    assert LanguageShape.of(config) == LanguageShape.of(config.text_config)
    model = llava().model.language_model
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert LanguageShape.of(config).weights == sum(linear)
    assert clip(4 * SIDE).image_size // 4 == SIDE
