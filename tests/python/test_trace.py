"""What is seen in a forward pass: shared inputs, the order of execution, chains of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from calibration_toys import (
    Decoder,
    Example,
    blocks,
    linear_layers,
    llava,
    qwen3_vl,
    rows,
    t5,
    toy_data,
)
from llava_fa.passes import ForwardPasses
from llava_fa.trace import Trace, merged_order


class Siblings(nn.Module):
    """Two layers that share an input only if ``shared`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, shared: bool = True) -> torch.Tensor:
        return self.a(x) + self.b(x if shared else x.flip(0) + 1)


class TestStructure:
    def trace(self, model: Any, data: Sequence[Example]) -> Trace:
        passes = ForwardPasses(model, lambda: iter(data))
        return passes.trace(dict.fromkeys(linear_layers(model), True), 0)[0]

    def test_siblings_share_what_they_receive_not_what_they_are_called(self) -> None:
        inputs = {i.layers for i in self.trace(*llava()).inputs}
        layer = "model.language_model.layers.1"
        assert tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv") in inputs
        assert tuple(f"{layer}.mlp.{part}_proj" for part in ("gate", "up")) in inputs
        assert (f"{layer}.self_attn.o_proj",) in inputs

    def test_cross_attention_shares_the_encoder_output_within_a_block_only(self) -> None:
        inputs = {i.layers for i in self.trace(*t5()).inputs}
        for block in range(2):
            layer = f"decoder.block.{block}.layer.1.EncDecAttention"
            assert (f"{layer}.k", f"{layer}.v") in inputs
            assert (f"{layer}.q",) in inputs

    @pytest.mark.parametrize("order", [[True, False], [False, True]])
    def test_one_example_is_enough_to_part_siblings(self, order: list[bool]) -> None:
        model = Decoder()
        model.blocks.append(Siblings())
        model.forward = lambda x, shared: model.head(model.blocks[0](x, shared=shared))
        data = [{"x": rows(4), "shared": shared} for shared in order]
        inputs = self.trace(model, data).inputs
        assert [i.layers for i in inputs] == [("blocks.0.a",), ("blocks.0.b",), ("head",)]

    def test_a_tensor_changed_in_place_is_another_input(self) -> None:
        class Both(Siblings):
            def forward(self, x: torch.Tensor, shared: bool = True) -> torch.Tensor:
                y = self.a(x)
                return y + self.b(x.add_(1))

        model = Decoder(Both())
        inputs = self.trace(model, [{"x": rows(4)}]).inputs
        assert [i.layers for i in inputs] == [("blocks.0.a",), ("blocks.0.b",), ("head",)]

    def test_layers_keep_the_order_of_execution_whatever_example_comes_first(self) -> None:
        model, data = llava()
        text_first = self.trace(model, [data[1], data[0]]).inputs
        image_first = self.trace(model, data).inputs
        assert [i.layers for i in text_first] == [i.layers for i in image_first]

    def test_features_added_between_two_blocks_do_not_break_the_chain(self) -> None:
        blocks = self.trace(*qwen3_vl()).blocks
        assert {f"model.language_model.layers.{i}" for i in range(4)} <= blocks.keys()

    def test_experts_that_receive_different_tokens_are_no_chain(self) -> None:
        class Experts(Decoder):
            def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
                parts = [block(x[n : n + 2]) for n, block in enumerate(self.blocks)]
                return self.head(torch.cat(parts))

        assert not self.trace(Experts(*blocks(3)), toy_data()).blocks

    def test_merged_order(self) -> None:
        assert merged_order([["b", "d"], ["a", "b", "c"], ["b", "e"]]) == [*"abcde"]

    def test_survives_json(self) -> None:
        trace = self.trace(*llava())
        assert Trace.from_dict(trace.to_dict()) == trace
