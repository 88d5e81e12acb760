"""Second moments of layers' inputs: what is collected, in which passes, and what can go wrong.

The reference is always the plain one: full forward passes, one hook per layer, float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import llama_model, llava_inputs, llava_model
from llava_fa.calibrate import Calibration, CalibrationOptions
from llava_fa.errors import NonFiniteError
from llava_fa.moments import LayerMoment, MeanSquares, SecondMoment
from llava_fa.passes import ForwardPasses
from llava_fa.trace import Trace, merged_order

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
        for example in data:
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
    passes = ForwardPasses(model, lambda: iter(data))
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


@pytest.mark.filterwarnings("ignore:.*fewer rows")
class TestStreaming:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("memory", [AMPLE, 1_500_000, 120_000, 1])
    def test_moments_equal_those_of_plain_full_passes(
        self, name: str, memory: int, tmp_path: Path
    ) -> None:
        model, data = MODELS[name]()
        layers = linear_layers(model)
        expected = plain_moments(model, data, layers)
        source, _ = calibration(tmp_path, model, data, memory=memory)
        found = collected(source, layers)
        assert found.keys() == expected.keys()
        for layer, (moment, count) in expected.items():
            assert found[layer].rows == count
            torch.testing.assert_close(found[layer].values.double(), moment, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", MODELS)
    def test_moments_do_not_depend_on_the_memory(self, name: str, tmp_path: Path) -> None:
        model, data = MODELS[name]()
        layers = linear_layers(model)
        found = []
        for memory in (AMPLE, 150_000):
            source, _ = calibration(tmp_path / str(memory), model, data, memory=memory)
            found.append(collected(source, layers))
        for layer, moment in found[0].items():
            assert torch.equal(moment.values, found[1][layer].values)

    def test_finished_blocks_are_skipped(self, tmp_path: Path) -> None:
        model, data = Decoder(*blocks(4)), toy_data(3)
        source, _ = calibration(tmp_path, model, data, memory=50_000)
        layers = linear_layers(model)
        assert [len(group) for group in source.groups(layers)] == [1] * 9
        # Each of its two layers takes a pass of all examples, the first look another one; later
        # passes run it for one example only, to prove that skipping it changes nothing.
        assert model.blocks[0].calls == 3 + 2 * 3 + 7
        # The last block comes after skipped ones, so each of its own passes proves that once.
        assert model.blocks[3].calls == 3 + 2 * (3 + 1) + 1

    def test_passes_end_after_the_last_layer_of_the_group(self, tmp_path: Path) -> None:
        model, data = Decoder(*blocks(3)), toy_data(2)
        source, passes = calibration(tmp_path, model, data, memory=1)
        calls = model.blocks[2].calls
        passes.collect(source.trace, [0], dict.fromkeys(linear_layers(model), True))
        assert model.blocks[2].calls == calls

    def test_groups_fill_the_memory(self, tmp_path: Path) -> None:
        model = Decoder(*blocks(3))
        room = SecondMoment.nbytes(6) + SecondMoment.nbytes(8) + SecondMoment.mean_nbytes(8)
        states = 3 * 5 * 6 * 4  # examples, rows, features, bytes
        source, _ = calibration(tmp_path, model, toy_data(), memory=room + states)
        names = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down")]
        pairs = [names[0:2], names[2:4], names[4:6], ["head"]]
        assert list(source.groups(linear_layers(model))) == pairs
        source, _ = calibration(tmp_path, model, toy_data(), memory=room + states - 1)
        assert list(source.groups(linear_layers(model))) == [[name] for name in [*names, "head"]]

    def test_without_room_for_states_every_pass_is_whole(self, tmp_path: Path) -> None:
        model, data = Decoder(*blocks(2)), toy_data()
        source, passes = calibration(tmp_path, model, data, memory=1)
        collected(source, linear_layers(model))
        assert passes.marked is None

    def test_padding_does_not_count(self, tmp_path: Path) -> None:
        words = torch.tensor([[5, 6, 7]])
        padded = {
            "input_ids": torch.cat([words, torch.full((1, 4), 9)], 1),
            "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0]]),
        }
        found = []
        for name, example in (("alone", {"input_ids": words}), ("padded", padded)):
            source, _ = calibration(tmp_path / name, llama_model(), [example])
            found.append(collected(source, ["model.layers.0.self_attn.q_proj"]).popitem()[1])
        assert found[0].rows == found[1].rows == 3
        torch.testing.assert_close(found[0].values, found[1].values)

    def test_mean_squares_are_the_diagonal(self, tmp_path: Path) -> None:
        model, data = llava()
        layers = linear_layers(model)
        source, _ = calibration(tmp_path, model, data, full=False)
        expected = plain_moments(model, data, layers)
        for layer, moment in collected(source, layers).items():
            assert moment.kind == "diagonal"
            wanted = expected[layer][0].diagonal()
            torch.testing.assert_close(moment.values, wanted, rtol=1e-6, atol=1e-9)

    def test_nothing_is_left_on_disk_or_in_the_model(self, tmp_path: Path) -> None:
        model, data = llava()
        source, _ = calibration(tmp_path, model, data, memory=120_000)
        collected(source, linear_layers(model))
        assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
        for module in model.modules():
            assert not module._forward_pre_hooks
            assert "forward" not in vars(module)


class Twice(nn.Module):
    """Calls its only block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x))


class Loop(Decoder):
    """Calls every block again: no chain."""

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        return super().forward(super().forward(x)[..., :1].expand(-1, 6).contiguous())


class Dictionary(Block):
    """Returns what cannot be skipped."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"x": super().forward(x)}


class Unpacking(Decoder):
    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)["x"]
        return self.head(x)


class LongSkip(Decoder):
    """The head also sees what the first block gave, which no block's entrance tells."""

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        first = self.blocks[0](x)
        x = first
        for block in list(self.blocks)[1:]:
            x = block(x)
        return self.head(x + first)


class SilentSkip(Decoder):
    """Like LongSkip, but so that NaN does not show."""

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        first = self.blocks[0](x)
        x = first
        for block in list(self.blocks)[1:]:
            x = block(x)
        return self.head(torch.where(first > 0, x, -x))


class Counting(Decoder):
    """The number of calls depends on the example."""

    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        for _ in range(rest["times"]):
            x = super().forward(x)[..., :1].expand(-1, 6).contiguous()
        return x


class Changing(Block):
    """Changes its input in place after the first layer has seen it."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.up(x)
        x.mul_(2)
        return x + self.down(y)


class Siblings(nn.Module):
    """Two layers that share an input only if ``shared`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, shared: bool = True) -> torch.Tensor:
        return self.a(x) + self.b(x if shared else x.flip(0) + 1)


ODD = {
    "called twice": (lambda: Decoder(Twice(), Twice()), toy_data()),
    "stack called twice": (lambda: Loop(*blocks(2)), toy_data()),
    "other outputs": (lambda: Unpacking(Dictionary(), Dictionary()), toy_data()),
    "skip connection": (lambda: LongSkip(*blocks(3)), toy_data()),
    "skip connection without NaN": (lambda: SilentSkip(*blocks(3)), toy_data()),
    "calls by example": (
        lambda: Counting(*blocks(2)),
        [{"x": rows(4, n), "times": n} for n in (1, 3, 2)],
    ),
    "change in place": (
        lambda: Decoder(Changing(), Changing()),
        toy_data(),
    ),
}


@pytest.mark.filterwarnings("ignore:.*fewer rows")
class TestOddArchitectures:
    @pytest.mark.parametrize("name", ODD)
    @pytest.mark.parametrize("memory", [AMPLE, 50_000])
    def test_moments_equal_those_of_plain_full_passes(
        self, name: str, memory: int, tmp_path: Path
    ) -> None:
        make, data = ODD[name]
        model = make()
        layers = linear_layers(model)
        copies = [{k: v.clone() if k == "x" else v for k, v in e.items()} for e in data]
        expected = plain_moments(model, copies, layers)
        source = calibration_of_copies(tmp_path, model, data, memory)
        found = collected(source, layers)
        assert found.keys() == expected.keys()
        for layer, (moment, count) in expected.items():
            assert found[layer].rows == count
            torch.testing.assert_close(found[layer].values.double(), moment, rtol=1e-5, atol=1e-6)


def calibration_of_copies(
    folder: Path, model: Any, data: Sequence[Example], memory: int
) -> Calibration:
    """For models that change their inputs in place."""

    def examples() -> Any:
        for example in data:
            yield {k: v.clone() if k == "x" else v for k, v in example.items()}

    passes = ForwardPasses(model, examples)
    layers = dict.fromkeys(linear_layers(model), True)
    return Calibration(
        folder, lambda: passes, layers, lambda layer: None, CalibrationOptions("one-pass", memory)
    )


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


@pytest.mark.filterwarnings("ignore:.*fewer rows")
class TestSequential:
    def run(self, folder: Path, model: Any, data: Any, memory: int) -> dict[str, LayerMoment]:
        """Compress a layer by halving its weight."""
        done: dict[str, torch.Tensor] = {}
        # Not the head: T5's is tied to the embedding, so that it would change what came before.
        layers = [name for name in linear_layers(model) if name != "lm_head"]
        dense = {name: model.get_submodule(name).weight.clone() for name in layers}
        source, _ = calibration(
            folder, model, data, memory=memory, order="sequential", decoded=done.get
        )
        found = {}
        for group in source.groups(layers):
            for layer in group:
                moment = source.find(layer)
                assert moment is not None
                found[layer] = moment
                done[layer] = dense[layer] / 2
        return found

    @pytest.mark.parametrize("memory", [AMPLE, 50_000, 1])
    @pytest.mark.parametrize("name", MODELS)
    def test_layers_see_what_the_compressed_layers_before_give(
        self, name: str, memory: int, tmp_path: Path
    ) -> None:
        model, data = MODELS[name]()
        found = self.run(tmp_path, model, data, memory)
        # All layers are halved by now; each must have seen exactly that of the layers before it,
        # and nothing of itself or of later ones influences its input.
        expected = plain_moments(model, data, list(found))
        assert found.keys() == expected.keys()
        for layer, (moment, _) in expected.items():
            torch.testing.assert_close(found[layer].values.double(), moment, rtol=1e-5, atol=1e-6)

    def test_finished_blocks_are_skipped(self, tmp_path: Path) -> None:
        """A pass begins in the block that was changed last, because only its entrance is final."""
        model = Decoder(*blocks(4))
        self.run(tmp_path, model, toy_data(3), 50_000)
        # The first look, its two layers, and the one after them; then one example for each proof.
        assert model.blocks[0].calls == 3 + 3 * 3 + 6

    def test_layers_that_share_an_input_come_together(self, tmp_path: Path) -> None:
        model, data = llava()
        source, _ = calibration(tmp_path, model, data, order="sequential")
        groups = list(source.groups(linear_layers(model)))
        assert [tuple(group) for group in groups] == [i.layers for i in source.trace.inputs]


class TestAccumulators:
    @pytest.mark.parametrize("size", [1, 5, 1500])
    def test_second_moment_is_the_mean_of_outer_products(self, size: int) -> None:
        values = rows(2500, size=size)
        moment = SecondMoment(size)
        for part in values.split([1, 700, 1799]):
            moment.add(part)
        assert moment.count == 2500
        expected = values.double().T @ values.double() / 2500
        found = moment.mean()
        assert found.dtype == torch.float32
        assert torch.equal(found, found.T)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    def test_many_blocks_lose_nothing(self) -> None:
        """A float32 sum would stall at 2²⁴ times the increment; here it keeps its last digits."""
        moment = SecondMoment(1)
        moment.add(torch.full((1024, 1), 4096.0))
        for _ in range(300):
            moment.add(torch.full((1024, 1), 1.0))
        expected = (1024 * 4096.0**2 + 300 * 1024) / (301 * 1024)
        assert moment.mean().item() == pytest.approx(expected, rel=1e-7)

    def test_mean_squares_over_all_rows(self) -> None:
        values = torch.randn(2000, 5)
        moments = MeanSquares(5)
        moments.add(values[:1234])
        moments.add(values[1234:])
        assert moments.count == 2000
        torch.testing.assert_close(moments.mean(), values.double().square().mean(0))

    @pytest.mark.parametrize("kind", [MeanSquares, SecondMoment])
    def test_half_precision_does_not_overflow(self, kind: Any) -> None:
        moments = kind(1)
        moments.add(torch.full((4, 1), 60000.0, dtype=torch.float16))
        assert moments.mean().item() == pytest.approx(60000.0**2, rel=1e-3)


class TestBadInput:
    @pytest.mark.parametrize("memory", [AMPLE, 1])
    def test_non_finite_activations_name_the_layer(self, memory: int, tmp_path: Path) -> None:
        model = llama_model()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
        with pytest.raises(NonFiniteError, match=r"model\.layers\.0\.mlp\.down_proj"):
            calibration(tmp_path, model, [{"input_ids": torch.tensor([[3, 4]])}], memory=memory)

    @pytest.mark.filterwarnings("ignore:.*fewer rows")
    def test_squares_that_overflow_name_the_layer(self, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteError, match=r"blocks\.0\.up.*overflow"):
            calibration(tmp_path, Decoder(*blocks(1)), [{"x": rows(4) * 1e25}])

    def test_few_rows_give_a_warning(self, tmp_path: Path) -> None:
        model = llama_model()
        with pytest.warns(UserWarning, match=r"fewer rows.*q_proj: 2 rows, 16 channels"):
            source, _ = calibration(tmp_path, model, [{"input_ids": torch.tensor([[3, 4]])}])
        assert len(collected(source, linear_layers(model))) == 8

    @pytest.mark.filterwarnings("ignore:.*fewer rows")
    def test_layers_without_data_are_named_in_a_warning(self, tmp_path: Path) -> None:
        text = [{"input_ids": torch.tensor([[3, 4, 5]])}]
        with pytest.warns(UserWarning, match=r"saw no calibration data.*projector\.linear_1"):
            source, _ = calibration(tmp_path, llava_model(), text)
        name = "model.multi_modal_projector.linear_1"
        assert source.find(name) is None
        assert name not in collected(source, linear_layers(llava_model()))

    @pytest.mark.filterwarnings("ignore:.*fewer rows")
    def test_channels_that_are_never_active_are_zero(self, tmp_path: Path) -> None:
        values = rows(9)
        values[:, 2] = 0
        source, _ = calibration(tmp_path, Decoder(*blocks(1)), [{"x": values}])
        moment = collected(source, ["blocks.0.up"])["blocks.0.up"].values
        assert not moment[2].any()
        assert not moment[:, 2].any()
        assert moment[3, 3] > 0

    def test_unknown_order(self) -> None:
        with pytest.raises(ValueError, match="calibration_order is 'twice'"):
            CalibrationOptions("twice", AMPLE)
