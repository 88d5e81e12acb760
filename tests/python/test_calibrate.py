"""Second moments of layers' inputs: what is collected, in which passes, and what can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from calibration_toys import (
    AMPLE,
    MODELS,
    Decoder,
    blocks,
    calibration,
    check_moments,
    collected,
    linear_layers,
    llava,
    plain_moments,
    rows,
    toy_data,
)
from conftest import llama_model, llava_model
from llava_fa.calibrate import CalibrationOptions
from llava_fa.errors import NonFiniteError
from llava_fa.moments import LayerMoment, SecondMoment


@pytest.mark.filterwarnings("ignore:.*fewer rows")
class TestStreaming:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("memory", [AMPLE, 1_500_000, 120_000, 1])
    def test_moments_equal_those_of_plain_full_passes(
        self, name: str, memory: int, tmp_path: Path
    ) -> None:
        check_moments(tmp_path, *MODELS[name](), memory=memory)

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

    @pytest.mark.parametrize("order", ["one-pass", "sequential"])
    @pytest.mark.parametrize("memory", [AMPLE, 1])
    def test_the_model_is_let_go_before_the_last_group_is_compressed(
        self, order: str, memory: int, tmp_path: Path
    ) -> None:
        model = Decoder(*blocks(2))
        source, _ = calibration(tmp_path, model, toy_data(), memory=memory, order=order)
        loaded = [source._loaded is not None for _ in source.groups(linear_layers(model))]
        assert loaded == [True] * (len(loaded) - 1) + [False]

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
