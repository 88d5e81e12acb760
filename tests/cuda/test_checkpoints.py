"""Whole checkpoints on a GPU: calibrated, compressed several at a time, and while loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llava_fa
from device_cases import needs_gpu
from llava_fa import CompressionConfig, compress_checkpoint, in_flight
from llava_fa.hf import LlavaFaConfig
from llava_fa.nn import FourierLinear

pytestmark = needs_gpu

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny_lmm" / "model"
TRELLIS = CompressionConfig(bits=2, codec="trellis")
CONFIGS = [
    CompressionConfig(bits=3),
    CompressionConfig(bits=3, rank=4),
]


def compress(output: Path, config: CompressionConfig, device: str) -> llava_fa.CompressionReport:
    return compress_checkpoint(MODEL, output, config, progress=False, device=device)


@pytest.mark.parametrize("config", [*CONFIGS, TRELLIS], ids=str)
def test_how_many_are_in_flight_does_not_show(
    config: CompressionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(tmp_path / "several", config, "cuda")
    monkeypatch.setattr(in_flight, "IN_FLIGHT", 1)
    compress(tmp_path / "one", config, "cuda")
    for file in (tmp_path / "one").glob("*.safetensors"):
        assert (tmp_path / "several" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_errors_are_those_of_the_cpu(config: CompressionConfig, tmp_path: Path) -> None:
    here = compress(tmp_path / "here", config, "cuda")
    there = compress(tmp_path / "there", config, "cpu")
    tolerance = 2e-2 if config.rank else 1e-3
    for found, expected in zip(here.rows, there.rows, strict=True):
        assert found.nbytes_after == expected.nbytes_after
        if expected.spec:
            assert found.relative_error == pytest.approx(expected.relative_error, rel=tolerance)


def test_second_moments_are_those_of_the_cpu(tmp_path: Path) -> None:
    words = torch.randint(5, 40, (16, 64), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": line[None]} for line in words]
    saved = {place: tmp_path / f"{place}.safetensors" for place in ("cpu", "cuda")}
    for place, file in saved.items():
        compress_checkpoint(
            MODEL,
            tmp_path / place,
            CompressionConfig(bits=3),
            calibration_data=data,
            calibration_device=place,
            save_calibration=file,
            progress=False,
        )
    expected, found = (load_file(saved[place]) for place in ("cpu", "cuda"))
    assert expected.keys() == found.keys()
    for name, moment in expected.items():
        assert (found[name] - moment).norm() <= 1e-3 * moment.norm(), name


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_compressed_while_loading(place: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    def load(folder: Path, **options: Any) -> dict[str, FourierLinear]:
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            device_map=place,
            quantization_config=LlavaFaConfig(**options, runtime="packed"),
        )
        return {
            name: layer for name, layer in model.named_modules() if isinstance(layer, FourierLinear)
        }

    compress(tmp_path / "out", CompressionConfig(bits=3), "cuda")
    expected = load(tmp_path / "out")
    found = load(MODEL, bits=3, compression_device="cuda")
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        assert layer.codes.device.type == place
        for suffix, tensor in layer.stored_tensors().items():
            assert torch.equal(tensor, expected[name].get_buffer(suffix)), f"{name}.{suffix}"
