"""Models with a pyramid of visual tokens: per call, per image, saved, and packed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from architectures import pixtral, qwen2_5_vl
from conftest import compress, llama_model, read_all
from elastic_models import (
    IMAGE,
    TALL,
    WIDE,
    elastic_llava,
    llava,
    llava_next,
    next_inputs,
    pixels,
    qwen_inputs,
    rows,
    with_weights,
)
from llava_fa import load_model, verify_checkpoint
from llava_fa._register_fmvr import CONFIGS, MODELS
from llava_fa.fmvr import attach_fmvr
from llava_fa.fmvr.layouts import layout_of
from llava_fa.fmvr.models import ELASTIC_CLASSES

SCALES = (144, 36, 9, 1)


@pytest.fixture(scope="module")
def elastic() -> Any:
    return elastic_llava()


@pytest.fixture(scope="module")
def elastic_next() -> Any:
    return with_weights(attach_fmvr(llava_next(), scales=(36, 9, 1)))


@pytest.fixture(scope="module")
def elastic_qwen() -> Any:
    return with_weights(attach_fmvr(qwen2_5_vl(), pools=(2, 2)))


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    return torch.as_tensor(model(**inputs, **options).logits)


class TestFullScale:
    """Bit for bit what the model gave before."""

    @pytest.mark.parametrize("options", [{}, {"visual_tokens": 144}], ids=["left out", "named"])
    def test_llava(self, options: dict[str, Any]) -> None:
        model = llava()
        inputs = {**rows([144], [144]), "pixel_values": pixels(2, 3, 48, 48)}
        before = logits(model, inputs)
        after = logits(with_weights(attach_fmvr(model)), inputs, **options)
        assert torch.equal(after, before)

    @pytest.mark.parametrize("options", [{}, {"visual_tokens": 36}], ids=["left out", "named"])
    @pytest.mark.parametrize("size", [WIDE, TALL, [30, 48], [48, 48]])
    def test_llava_next(self, size: list[int], options: dict[str, Any]) -> None:
        model = llava_next()
        tiles = 5 if min(size) > 24 else 3
        sizes = torch.tensor([size])
        features = model.model.get_image_features(
            pixels(1, tiles, 3, 24, 24), sizes, return_dict=True
        )
        inputs = {
            **rows([len(features.pooler_output[0])]),
            "pixel_values": pixels(1, tiles, 3, 24, 24),
            "image_sizes": sizes,
        }
        before = logits(model, inputs)
        after = logits(with_weights(attach_fmvr(model)), inputs, **options)
        assert torch.equal(after, before)

    @pytest.mark.parametrize("options", [{}, {"visual_tokens": 24}], ids=["left out", "named"])
    def test_qwen(self, options: dict[str, Any]) -> None:
        model = qwen2_5_vl()
        inputs = qwen_inputs((8, 12), (4, 4), placeholders=[24, 4])
        before = logits(model, inputs)
        after = logits(with_weights(attach_fmvr(model)), inputs, **options)
        assert torch.equal(after, before)

    def test_generation(self) -> None:
        model = llava()
        inputs = {**rows([144]), "pixel_values": pixels(1, 3, 48, 48)}
        before = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        after = attach_fmvr(model).generate(**inputs, max_new_tokens=6, do_sample=False)
        assert torch.equal(after, before)


class TestScales:
    @pytest.mark.parametrize("scale", SCALES)
    def test_llava_reads_the_pyramid_where_the_placeholders_are(
        self, elastic: Any, scale: int
    ) -> None:
        image = pixels(1, 3, 48, 48)
        prompt = rows([scale])
        found = logits(elastic, {**prompt, "pixel_values": image}, visual_tokens=scale)
        with torch.no_grad():
            states = elastic.model.vision_tower(image, output_hidden_states=True).hidden_states
            tokens = elastic.model.multi_modal_projector(states[-2][:, 1:])
            (tokens,) = elastic.fmvr(tokens, scale)
            words = elastic.get_input_embeddings()(prompt["input_ids"])
            words[0, 1 : 1 + scale] = tokens
            expected = elastic(inputs_embeds=words).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_llava_next_reduces_every_grid(self, elastic_next: Any) -> None:
        # of the wide image, a third of the two tiles' height is image: 2 of 6 rows and 1 of 3
        sizes = {36: 36 + 4 * 13, 9: 9 + 3 * 7, 1: 1 + 1 * 3}
        layout = layout_of(elastic_next.config)
        for scale, count in sizes.items():
            assert layout.reduced({"image_sizes": [WIDE]}, [scale]) == [count]
            found = logits(elastic_next, next_inputs(count), visual_tokens=scale)
            assert torch.isfinite(found).all()

    def test_llava_next_keeps_rows_and_their_ends(self, elastic_next: Any) -> None:
        inner = elastic_next.model
        inputs = next_inputs(0)
        images = {key: inputs[key] for key in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            (found,) = inner.get_image_features(
                **images, visual_tokens=9, return_dict=True
            ).pooler_output
            _, (grids,) = inner.encode_images(**images)
            base, first, second = inner.fmvr(grids, 9)
        newline = inner.image_newline
        # tiles side by side: rows of 3 + 3 tokens
        expected = [*base]
        for row in range(3):
            expected += [*first[3 * row : 3 * row + 3], *second[3 * row : 3 * row + 3], newline]
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)

    def test_qwen_takes_a_limit_and_places_a_smaller_image(self, elastic_qwen: Any) -> None:
        # 5 × 7 and 3 × 2 tokens; with at most 12, 3 × 4 and 3 × 2
        grids = ((10, 14), (6, 4))
        inputs = qwen_inputs(*grids, placeholders=[12, 6])
        found = logits(elastic_qwen, inputs, visual_tokens=12)
        inner = elastic_qwen.model
        images = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        with torch.no_grad():
            full = qwen2_5_vl_features(inner, images)
            words = elastic_qwen.get_input_embeddings()(inputs["input_ids"])
            reduced = inner.fmvr(full[0][None], 12, (5, 7))[0]
            words[inputs["input_ids"] == IMAGE] = torch.cat([reduced, full[1]])
            positions, _ = inner.get_rope_index(
                inputs["input_ids"],
                inputs["mm_token_type_ids"],
                image_grid_thw=torch.tensor([[1, 6, 8], [1, 6, 4]]),
            )
            expected = elastic_qwen(inputs_embeds=words, position_ids=positions).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_several_images_with_different_scales(self, elastic: Any) -> None:
        images = pixels(3, 3, 48, 48)
        inputs = {**rows([9, 144], [1]), "pixel_values": images}
        found = logits(elastic, inputs, visual_tokens=[9, 144, 1])
        alone = {**rows([9, 144]), "pixel_values": images[:2]}
        expected = logits(elastic, alone, visual_tokens=[9, 144])
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
        one = logits(
            elastic,
            {**rows([], [1])} | {"pixel_values": images[2:]},
            visual_tokens=torch.tensor([1]),
        )
        torch.testing.assert_close(found[1, -8:], one[1, -8:], rtol=0, atol=1e-5)

    def test_one_scale_for_many_images(self, elastic: Any) -> None:
        inputs = {**rows([9], [9, 9]), "pixel_values": pixels(3, 3, 48, 48)}
        each = logits(elastic, inputs, visual_tokens=[9, 9, 9])
        assert torch.equal(logits(elastic, inputs, visual_tokens=9), each)

    def test_text_alone_means_the_same_at_any_scale(self, elastic: Any) -> None:
        inputs = rows([])
        assert torch.equal(logits(elastic, inputs, visual_tokens=9), logits(elastic, inputs))

    @pytest.mark.parametrize("variant", ["average", "max", "local_average", "none"])
    def test_ablations_run(self, variant: str) -> None:
        model = elastic_llava(variant, scales=(144, 36))
        inputs = {**rows([36]), "pixel_values": pixels(1, 3, 48, 48)}
        assert torch.isfinite(logits(model, inputs, visual_tokens=36)).all()


def qwen2_5_vl_features(inner: Any, images: dict[str, Any]) -> list[torch.Tensor]:
    return list(inner.get_image_features(**images, return_dict=True).pooler_output)


class TestGeneration:
    @pytest.mark.parametrize("beams", [1, 3])
    def test_begins_with_what_forward_says(self, elastic: Any, beams: int) -> None:
        inputs = {**rows([36, 1], [9]), "pixel_values": pixels(3, 3, 48, 48)}
        chosen = {"visual_tokens": torch.tensor([36, 1, 9])}
        out = elastic.generate(
            **inputs, **chosen, max_new_tokens=1, do_sample=False, num_beams=beams
        )
        assert torch.equal(out[:, -1], logits(elastic, inputs, **chosen)[:, -1].argmax(-1))

    def test_continues_from_the_cache(self, elastic: Any) -> None:
        inputs = {**rows([9]), "pixel_values": pixels(1, 3, 48, 48)}
        out = elastic.generate(**inputs, visual_tokens=9, max_new_tokens=5, do_sample=False)
        ids = inputs["input_ids"]
        for _ in range(5):
            step = {"input_ids": ids, "pixel_values": inputs["pixel_values"]}
            best = logits(elastic, step, visual_tokens=9)[:, -1].argmax(-1)
            ids = torch.cat([ids, best[:, None]], dim=1)
        assert torch.equal(out, ids)

    def test_qwen_continues_after_fewer_positions(self, elastic_qwen: Any) -> None:
        inputs = qwen_inputs((8, 12), placeholders=[6])
        out = elastic_qwen.generate(**inputs, visual_tokens=6, max_new_tokens=5, do_sample=False)
        ids = inputs["input_ids"]
        for _ in range(5):
            step = {**inputs, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long()}
            step["attention_mask"] = torch.ones_like(ids)
            best = logits(elastic_qwen, step, visual_tokens=6)[:, -1].argmax(-1)
            ids = torch.cat([ids, best[:, None]], dim=1)
        assert torch.equal(out, ids)


class TestFiles:
    def test_saved_and_loaded(self, elastic: Any, tmp_path: Path) -> None:
        inputs = {**rows([9]), "pixel_values": pixels(1, 3, 48, 48)}
        elastic.save_pretrained(tmp_path)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert type(loaded) is type(elastic)
        assert torch.equal(
            logits(loaded, inputs, visual_tokens=9), logits(elastic, inputs, visual_tokens=9)
        )
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["fmvr"] == {"pools": [2, 2, 3], "side": 12, "variant": "both"}
        tensors = read_all(tmp_path)
        pyramid = {name: tensor for name, tensor in tensors.items() if "fmvr" in name}
        assert {tuple(tensor.shape) for tensor in pyramid.values()} == {(32,)}
        assert len(pyramid) == 2 * 2 * 4
        assert "model.fmvr.restorations.0.average.low_weight" in pyramid

    @pytest.mark.parametrize("family", ["next", "qwen"])
    def test_other_families(self, family: str, request: Any, tmp_path: Path) -> None:
        model = request.getfixturevalue(f"elastic_{family}")
        model.save_pretrained(tmp_path)
        loaded = load_model(tmp_path)
        assert type(loaded) is type(model)
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())

    def test_missing_weights_of_the_pyramid_begin_as_designed(
        self, elastic: Any, tmp_path: Path
    ) -> None:
        state = {k: v for k, v in elastic.state_dict().items() if "fmvr" not in k}
        elastic.save_pretrained(tmp_path, state_dict=state)
        loaded, info = AutoModelForImageTextToText.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert len(info["missing_keys"]) == 16
        for name, value in loaded.fmvr.named_parameters():
            assert torch.equal(value, torch.full_like(value, float("identity" in name)))

    def test_without_the_library_the_message_says_whose_it_is(
        self, elastic: Any, tmp_path: Path
    ) -> None:
        elastic.save_pretrained(tmp_path)
        code = (
            "from transformers import AutoModelForImageTextToText as A\n"
            f"A.from_pretrained({str(tmp_path)!r})"
        )
        finished = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
        assert finished.returncode != 0
        assert "model type `llava_fa_fmvr_llava`" in finished.stderr

    @pytest.mark.parametrize("first", ["llava_fa", "transformers"])
    def test_found_whatever_is_imported_first(
        self, elastic: Any, tmp_path: Path, first: str
    ) -> None:
        elastic.save_pretrained(tmp_path)
        imports = ["import llava_fa", "from transformers import AutoModelForImageTextToText as A"]
        code = "\n".join(
            [
                *(imports if first == "llava_fa" else reversed(imports)),
                f"print(type(A.from_pretrained({str(tmp_path)!r})).__name__)",
            ]
        )
        finished = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", code],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.stdout == "FmvrLlavaForConditionalGeneration\n", finished.stderr

    def test_names_for_transformers_are_those_of_the_classes(self) -> None:
        classes = list(ELASTIC_CLASSES.values())
        configs = {c.config_class.model_type: c.config_class.__name__ for c in classes}
        assert configs == CONFIGS
        assert {c.config_class.model_type: c.__name__ for c in classes} == MODELS

    def test_compressed_like_any_other(self, elastic: Any, tmp_path: Path) -> None:
        source, packed = tmp_path / "source", tmp_path / "packed"
        elastic.save_pretrained(source)
        report = compress(source, packed)
        assert len(report.compressed) == 28  # all linear layers but the head
        before, after = read_all(source), read_all(packed)
        pyramid = [name for name in before if "fmvr" in name]
        assert len(pyramid) == 16
        assert all(torch.equal(before[name], after[name]) for name in pyramid)
        assert verify_checkpoint(packed, source).ok
        inputs = {**rows([9]), "pixel_values": pixels(1, 3, 48, 48)}
        dense = load_model(packed, runtime="dense")
        kept = load_model(packed, runtime="packed")
        torch.testing.assert_close(
            logits(kept, inputs, visual_tokens=9),
            logits(dense, inputs, visual_tokens=9),
            rtol=0,
            atol=1e-4,
        )

    def test_attached_to_a_packed_model(self, tmp_path: Path) -> None:
        source, packed = tmp_path / "source", tmp_path / "packed"
        llava().save_pretrained(source)
        compress(source, packed)
        model = load_model(packed, runtime="packed")
        inputs = {**rows([9]), "pixel_values": pixels(1, 3, 48, 48)}
        attach_fmvr(model)
        model.save_pretrained(tmp_path / "again")
        again = load_model(tmp_path / "again", runtime="packed")
        assert torch.equal(
            logits(again, inputs, visual_tokens=9), logits(model, inputs, visual_tokens=9)
        )


class TestBadInput:
    def test_a_scale_that_the_grid_does_not_have(self, elastic: Any) -> None:
        inputs = {**rows([35]), "pixel_values": pixels(1, 3, 48, 48)}
        with pytest.raises(ValueError, match="the 12 x 12 grid has the scales 1, 9, 36, 144"):
            elastic(**inputs, visual_tokens=35)

    def test_placeholders_of_another_scale(self, elastic: Any) -> None:
        inputs = {**rows([144]), "pixel_values": pixels(1, 3, 48, 48)}
        for call in (elastic, elastic.generate):
            with pytest.raises(
                ValueError, match=r"144 image placeholders.*36 tokens.*elastic_proc"
            ):
                call(**inputs, visual_tokens=36)

    def test_as_many_scales_as_images(self, elastic: Any) -> None:
        inputs = {**rows([9, 36]), "pixel_values": pixels(2, 3, 48, 48)}
        with pytest.raises(ValueError, match="3 scales, expected one for each of the 2 images"):
            elastic(**inputs, visual_tokens=[9, 36, 1])

    def test_attached_twice(self, elastic: Any) -> None:
        with pytest.raises(ValueError, match=r"has FMVR already: pools=\(2, 2, 3\)"):
            attach_fmvr(elastic)

    def test_another_class(self) -> None:
        with pytest.raises(TypeError, match=r"FMVR knows Llava.*received a LlamaForCausalLM"):
            attach_fmvr(llama_model())

    def test_scales_that_the_grid_does_not_have(self) -> None:
        with pytest.raises(ValueError, match="scale 100 cannot follow 144"):
            attach_fmvr(llava(), scales=(100, 144))

    def test_a_class_token_among_the_visual_tokens(self) -> None:
        model = llava(vision_feature_select_strategy="full")
        with pytest.raises(ValueError, match="gives 145 tokens, not a 12 x 12 grid"):
            attach_fmvr(model)

    def test_grids_without_a_rule(self) -> None:
        with pytest.raises(ValueError, match="grids of a pixtral vision tower"):
            attach_fmvr(pixtral())

    def test_scales_of_grids_of_any_shape(self) -> None:
        with pytest.raises(ValueError, match="grids of this model have any shape: give pools"):
            attach_fmvr(qwen2_5_vl(), scales=(36,))

    def test_scales_and_pools(self) -> None:
        with pytest.raises(ValueError, match="scales or pools, not both"):
            attach_fmvr(llava(), scales=(36,), pools=(2,))

    def test_a_limit_below_the_coarsest_level(self, elastic_qwen: Any) -> None:
        inputs = qwen_inputs((16, 16), placeholders=[4])
        with pytest.raises(ValueError, match="coarsest level of a 8 x 8 grid has 4 tokens"):
            elastic_qwen(**inputs, visual_tokens=3)

    def test_a_configuration_without_fmvr(self) -> None:
        with pytest.raises(ValueError, match=r"type 'llava' has no FMVR; attach"):
            layout_of(llava().config)
