"""Loading the same compressed checkpoint with packed and with dense layers, and comparing.

Both compute in float32 and differ by its rounding, some 1e-6 of the largest logit through a few
layers; 1e-4 is allowed.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from conftest import llava_inputs
from llava_fa.hf import LlavaFaConfig

TOLERANCE = 1e-4


def load(folder: Path, auto: Any = AutoModelForImageTextToText, **options: Any) -> Any:
    """Load with packed layers; transformers always warns that it merges the two configurations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        config = LlavaFaConfig(runtime="packed")
        return auto.from_pretrained(folder, quantization_config=config, **options).eval()


def load_dense(folder: Path, auto: Any = AutoModelForImageTextToText, **options: Any) -> Any:
    """Load with dense layers, decoded if the folder is compressed."""
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        options["quantization_config"] = LlavaFaConfig(runtime="dense")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        return auto.from_pretrained(folder, **options).eval()


def logits(model: Any, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(**(inputs or llava_inputs())).logits.float()
    return result


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
    )
