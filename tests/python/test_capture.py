"""Calibration examples: what is accepted, what is refused, what the model is called with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from conftest import llava_model, llava_processor
from llava_fa.capture import CalibrationData, prompt_text
from llava_fa.compress import compress_checkpoint
from llava_fa.errors import CheckpointError
from llava_fa.passes import ForwardPasses


class FakeProcessor:
    """Records what it is given."""

    image_token = "<image>"
    chat_template: str | None = "template"

    def apply_chat_template(self, messages: list[Any], add_generation_prompt: bool) -> str:
        assert add_generation_prompt
        parts = [part for message in messages for part in message["content"]]
        return "".join("<image>" if p["type"] == "image" else f"[{p['text']}]" for p in parts)


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
        passes = ForwardPasses(model, lambda: self.inputs(processor_folder))
        trace, _ = passes.trace(dict.fromkeys(names, False), 0)
        rows = {layer: i.rows for i in trace.inputs for layer in i.layers}
        assert rows == {names[0]: 2 * 4, names[1]: 9 + 8 + 2 + 3}

    def test_compressing_with_a_file(self, processor_folder: Path, tmp_path: Path) -> None:
        data = processor_folder.with_name("data") / "examples.jsonl"
        output = tmp_path / "out"
        compress_checkpoint(
            processor_folder, output, calibration_data=data, calibration_samples=2, progress=False
        )
        manifest = json.loads((output / "llava_fa_manifest.json").read_text())
        settings = manifest["request"]["settings"]["calibration"]
        fingerprint = CalibrationData(data, 2).fingerprint()
        assert settings == {"data": fingerprint, "order": "one-pass"}
        assert (
            AutoProcessor.from_pretrained(output).chat_template == llava_processor().chat_template
        )
