"""The calibration pass: what it accumulates, what it accepts, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from conftest import llama_model, llava_inputs, llava_model, llava_processor
from llava_fa.capture import CalibrationData, SecondMoments, capture_second_moments, prompt_text
from llava_fa.compress import compress_checkpoint
from llava_fa.errors import CheckpointError, NonFiniteError


class FakeProcessor:
    """Records what it is given."""

    image_token = "<image>"
    chat_template: str | None = "template"

    def apply_chat_template(self, messages: list[Any], add_generation_prompt: bool) -> str:
        assert add_generation_prompt
        parts = [part for message in messages for part in message["content"]]
        return "".join("<image>" if p["type"] == "image" else f"[{p['text']}]" for p in parts)


class TestSecondMoments:
    def test_mean_over_all_rows(self) -> None:
        rows = torch.randn(2000, 5)
        moments = SecondMoments(5)
        moments.add(rows[:1234])
        moments.add(rows[1234:])
        assert moments.count == 2000
        torch.testing.assert_close(moments.mean(), rows.double().square().mean(0))

    def test_half_precision_does_not_overflow(self) -> None:
        moments = SecondMoments(1)
        moments.add(torch.full((4, 1), 60000.0, dtype=torch.float16))
        assert moments.mean().item() == pytest.approx(60000.0**2, rel=1e-3)

    def test_no_rows_have_no_mean(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            SecondMoments(3).mean()


class TestCapture:
    def test_equals_the_layers_own_inputs(self) -> None:
        model, inputs = llava_model(), llava_inputs()
        name = "model.language_model.layers.0.mlp.down_proj"
        seen = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        captured = capture_second_moments(model, [inputs], [name])
        handle.remove()
        moment, count = captured[name]
        assert count == 10
        torch.testing.assert_close(moment, seen[0].double().square().mean((0, 1)))

    def test_every_linear_layer_of_both_towers_sees_data(self) -> None:
        model = llava_model()
        names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        assert set(capture_second_moments(model, [llava_inputs()], names)) == set(names)

    def test_padding_does_not_count(self) -> None:
        model = llama_model()
        name = "model.layers.0.self_attn.q_proj"
        words = torch.tensor([[5, 6, 7]])
        alone = capture_second_moments(model, [{"input_ids": words}], [name])[name]
        padded = {
            "input_ids": torch.cat([words, torch.full((1, 4), 9)], 1),
            "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0]]),
        }
        moment, count = capture_second_moments(model, [padded], [name])[name]
        assert count == alone[1] == 3
        torch.testing.assert_close(moment, alone[0])

    def test_layers_without_data_are_named_in_a_warning(self) -> None:
        text_only = {"input_ids": torch.tensor([[3, 4]])}
        names = ["model.multi_modal_projector.linear_1", "lm_head"]
        with pytest.warns(UserWarning, match=r"1 layer.*model\.multi_modal_projector\.linear_1"):
            captured = capture_second_moments(llava_model(), [text_only], names)
        assert list(captured) == ["lm_head"]

    def test_non_finite_activations_name_the_layer(self) -> None:
        model = llama_model()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
        names = [f"model.layers.0.mlp.{part}_proj" for part in ("up", "down")]
        with pytest.raises(NonFiniteError, match=r"model\.layers\.0\.mlp\.down_proj"):
            capture_second_moments(model, [{"input_ids": torch.tensor([[3, 4]])}], names)

    def test_hooks_are_removed(self) -> None:
        model = llama_model()
        capture_second_moments(model, [{"input_ids": torch.tensor([[3]])}], ["lm_head"])
        assert not model.lm_head._forward_pre_hooks


class TestData:
    def write(self, folder: Path, *lines: Any) -> Path:
        path = folder / "examples.jsonl"
        path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        return path

    def test_the_limit_bounds_endless_iterables(self) -> None:
        def endless() -> Iterator[dict[str, Any]]:
            while True:
                yield {"input_ids": torch.tensor([[1]])}

        assert len(CalibrationData(endless(), 5)) == 5

    def test_the_limit_bounds_files(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"text": "a"}, "", {"text": "b"}, {"text": "c"})
        assert len(CalibrationData(path, 2)) == 2
        assert len(CalibrationData(path, 9)) == 3

    def test_fingerprint_follows_the_content(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"one")
        path = self.write(tmp_path, {"text": "x", "image": "a.png"})
        first = CalibrationData(path, 9).fingerprint()
        assert CalibrationData(path, 9).fingerprint() == first
        (tmp_path / "a.png").write_bytes(b"two")
        assert CalibrationData(path, 9).fingerprint() != first

    def test_fingerprint_of_tensors(self) -> None:
        def of(value: int) -> str:
            return CalibrationData([{"input_ids": torch.tensor([[value]])}], 9).fingerprint()

        assert of(1) == of(1)
        assert of(1) != of(2)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 1: not valid JSON"),
            ({"image": "a.png"}, "line 1: expected an object with 'text'"),
            ([1], "line 1: expected an object with 'text'"),
            ({"text": "x", "image": "absent.png"}, r"no such image .*absent\.png"),
        ],
    )
    def test_wrong_lines(self, tmp_path: Path, line: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            CalibrationData(self.write(tmp_path, line), 9)

    def test_nothing_in_it(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no examples"):
            CalibrationData(self.write(tmp_path), 9)
        with pytest.raises(CheckpointError, match="no examples"):
            CalibrationData([], 9)
        with pytest.raises(CheckpointError, match="no such calibration file"):
            CalibrationData(tmp_path / "absent.jsonl", 9)


class TestPrompts:
    def test_a_complete_prompt_is_left_alone(self) -> None:
        assert prompt_text(FakeProcessor(), "USER: <image> hello", 1) == "USER: <image> hello"

    def test_text_without_image_is_left_alone(self) -> None:
        assert prompt_text(FakeProcessor(), "hello", 0) == "hello"

    def test_the_chat_template_is_used(self) -> None:
        assert prompt_text(FakeProcessor(), "hello", 2) == "<image><image>[hello]"

    def test_messages_go_through_the_chat_template(self) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        assert prompt_text(FakeProcessor(), messages, 0) == "[hi]"

    def test_without_template_the_image_token_is_put_in_front(self) -> None:
        processor = FakeProcessor()
        processor.chat_template = None
        assert prompt_text(processor, "hello", 1) == "<image>\nhello"


class TestProcessor:
    """JSON lines through a real processor."""

    def inputs(self, folder: Path, limit: int = 9) -> list[Any]:
        data = CalibrationData(folder.with_name("data") / "examples.jsonl", limit)
        return list(data.model_inputs(folder))

    def test_images_and_prompts_become_model_inputs(self, processor_folder: Path) -> None:
        question, prompt, text, chat = self.inputs(processor_folder)
        # USER: <image>×4 w1 w2 w3 ANSWER:
        assert question["input_ids"].tolist() == [[3, *[63] * 4, 6, 7, 8, 4]]
        assert prompt["input_ids"].tolist() == [[3, *[63] * 4, 9, 4, 10]]
        assert text["input_ids"].tolist() == [[11, 12]]
        assert chat["input_ids"].tolist() == [[3, 13, 4]]
        assert question["pixel_values"].shape == (1, 3, 16, 16)
        assert not torch.equal(question["pixel_values"], prompt["pixel_values"])
        assert "pixel_values" not in text

    def test_both_towers_see_them(self, processor_folder: Path) -> None:
        model = llava_model()
        names = ["model.multi_modal_projector.linear_1", "lm_head"]
        captured = capture_second_moments(model, self.inputs(processor_folder), names)
        assert captured[names[0]][1] == 2 * 4
        assert captured[names[1]][1] == 9 + 8 + 2 + 3

    def test_compressing_with_a_file(self, processor_folder: Path, tmp_path: Path) -> None:
        data = processor_folder.with_name("data") / "examples.jsonl"
        output = tmp_path / "out"
        compress_checkpoint(
            processor_folder, output, calibration_data=data, calibration_samples=2, progress=False
        )
        manifest = json.loads((output / "llava_fa_manifest.json").read_text())
        fingerprint = manifest["request"]["settings"]["calibration"]
        assert fingerprint == CalibrationData(data, 2).fingerprint()
        assert (
            AutoProcessor.from_pretrained(output).chat_template == llava_processor().chat_template
        )
