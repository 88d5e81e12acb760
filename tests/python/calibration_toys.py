"""Toy models and small real ones, and the plain reference of their layers' second moments.

The reference is always the same: full forward passes, one hook per layer, float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conftest import llava_inputs, llava_model
from llava_fa.calibrate import Calibration, CalibrationOptions
from llava_fa.moments import LayerMoment
from llava_fa.passes import ForwardPasses

Example = Mapping[str, Any]
AMPLE = 10**9


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


def plain_moments(
    model: Any, data: Sequence[Example], layers: Sequence[str]
) -> dict[str, tuple[torch.Tensor, int]]:
    """E[xxᵀ] and the number of rows of every layer that sees data, by full passes in float64."""
    sums, counts, mask = {}, Counter[str](), [None]

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].double()
            if mask[0] is not None and rows.shape[:-1] == mask[0].shape:
                rows = rows[mask[0] != 0]
            rows = rows.reshape(-1, rows.shape[-1])
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] += len(rows)

        return add

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in layers]
    with torch.no_grad():
        for example in deepcopy(data):
            mask[0] = example.get("attention_mask")
            model(**example)
    for handle in handles:
        handle.remove()
    return {name: (sums[name] / counts[name], counts[name]) for name in sums}


class Decoder(nn.Module):
    """A toy model whose parts a test can replace; takes ``x`` and computes on it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        return x + self.down(self.up(x).relu())


def blocks(count: int) -> list[Block]:
    torch.manual_seed(1)
    return [Block() for _ in range(count)]


def rows(count: int, seed: int = 0, size: int = 6) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def toy_data(count: int = 3) -> list[Example]:
    return [{"x": rows(5, seed)} for seed in range(count)]


def t5() -> tuple[Any, list[Example]]:
    """An encoder and a decoder that attends to it from every block; blocks return tuples."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 2}
    config = T5Config(**sizes, vocab_size=40, decoder_start_token_id=0, tie_word_embeddings=False)
    words = [torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10]])]
    data = [{"input_ids": w, "decoder_input_ids": torch.tensor([[0, 3]])} for w in words]
    return T5ForConditionalGeneration(config).eval(), data


def bert() -> tuple[Any, list[Example]]:
    """Post-normalization, a pooler, no causality."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_hidden_layers=4, vocab_size=40)
    data = [{"input_ids": torch.tensor([[5, 6, 7, 8]])}, {"input_ids": torch.tensor([[9]])}]
    return BertModel(config).eval(), data


def llava() -> tuple[Any, list[Example]]:
    """Image examples and a text that leaves the vision tower out, some padded."""
    padded = {
        "input_ids": torch.tensor([[5, 6, 7, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    return llava_model(layers=3), [llava_inputs(1), padded, llava_inputs(2)]


def qwen3_vl() -> tuple[Any, list[Example]]:
    """A vision tower whose early features are added between the first blocks of the text model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
    vision = {"depth": 3, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16}
    config = Qwen3VLConfig(
        text_config={**sizes, **heads, **rope, "num_hidden_layers": 4, "vocab_size": 60},
        vision_config={
            **sizes,
            **vision,
            "deepstack_visual_indexes": [1],
            "num_position_embeddings": 16,
        },
        image_token_id=50,
        vision_start_token_id=52,
        vision_end_token_id=53,
    )
    words = torch.tensor([[4, 52, 50, 50, 50, 50, 53, 7, 8]])
    image = {
        "input_ids": words,
        "pixel_values": rows(16, size=3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (words == 50).long(),
    }
    text = {"input_ids": torch.tensor([[5, 6, 7]])}
    return Qwen3VLForConditionalGeneration(config).eval(), [image, text]


MODELS = {"llava": llava, "t5": t5, "bert": bert, "qwen3_vl": qwen3_vl}


def calibration(
    folder: Path,
    model: Any,
    data: Sequence[Example],
    *,
    memory: int = AMPLE,
    order: str = "one-pass",
    full: bool = True,
    decoded: Any = lambda layer: None,
) -> tuple[Calibration, ForwardPasses]:
    folder.mkdir(exist_ok=True)
    # Copies, because some models change their inputs in place.
    passes = ForwardPasses(model, lambda: iter(deepcopy(data)))
    layers = dict.fromkeys(linear_layers(model), full)
    options = CalibrationOptions(order, memory)
    return Calibration(folder, lambda: passes, layers, decoded, options), passes


def collected(source: Calibration, layers: Sequence[str]) -> dict[str, LayerMoment]:
    found = {}
    for group in source.groups(layers):
        for layer in group:
            moment = source.find(layer)
            assert moment is not None
            found[layer] = moment
    return found


def check_moments(folder: Path, model: Any, data: Sequence[Example], *, memory: int) -> None:
    """Compare the collected moments of all layers with those of plain full passes."""
    layers = linear_layers(model)
    expected = plain_moments(model, data, layers)
    source, _ = calibration(folder, model, data, memory=memory)
    found = collected(source, layers)
    assert found.keys() == expected.keys()
    for layer, (moment, count) in expected.items():
        assert found[layer].rows == count
        torch.testing.assert_close(found[layer].values.double(), moment, rtol=1e-5, atol=1e-6)
