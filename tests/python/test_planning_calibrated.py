"""Planning with second moments: predicted output errors, where moments come from, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import llama_model
from llava_fa import (
    BitPlan,
    CompressionConfig,
    compress_checkpoint,
    compress_matrix,
    plan_checkpoint,
    profiles,
)
from llava_fa.calibrate import Calibration
from llava_fa.cli import main
from llava_fa.error_model import code_distortion, fed_back_distortion, profile_matrix
from llava_fa.errors import CheckpointError
from llava_fa.moments import MomentMemory
from llava_fa.output_error import output_noise_gain
from llava_fa.sensitivity import SensitivityProbe

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer rows")

DATA = [{"input_ids": torch.arange(begin, begin + 30)[None]} for begin in range(4)]
DOWN = "model.layers.0.mlp.down_proj"


def correlated_moment(size: int, seed: int = 0) -> torch.Tensor:
    """E[x xᵀ] of inputs with a mean, unequal channels and a few strong directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(size, size, generator=generator)
    powers = torch.linspace(2, -4, size).exp()
    x = torch.randn(8 * size, size, generator=generator) * powers @ directions + 0.3
    x *= torch.linspace(-0.5, 0.5, size).exp()
    return x.T @ x / len(x)


def weight_of(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(dense: torch.Tensor, decoded: torch.Tensor, moment: torch.Tensor) -> float:
    """tr(Δ Σ Δᵀ) / tr(W Σ Wᵀ)."""
    full = (moment.diag() if moment.ndim == 1 else moment).double()
    energies = [float(((e @ full) * e).sum()) for e in (dense.double() - decoded, dense.double())]
    return energies[0] / energies[1]


class TestOutputError:
    @pytest.mark.parametrize("odc", ["none", "spatial"])
    @pytest.mark.parametrize("codec", ["ring", "trellis"])
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_feedback_gives_the_predicted_error(self, codec: str, bits: float, odc: str) -> None:
        config = CompressionConfig(bits=bits, codec=codec, odc=odc, state_bits=8)
        weight, moment = weight_of(224, 192), correlated_moment(192)
        profile = profile_matrix(weight, config, (0,), True, moment)
        assert profile.of_output
        assert profile.fed_back
        coded = compress_matrix(weight, config.for_checkpoint(), input_second_moment=moment)
        actual = output_error(weight, coded.dense(), moment)
        assert actual == pytest.approx(profile.relative_error(config), rel=0.2)
        # Without knowing the feedback, the prediction is off by its gain.
        blind = profile_matrix(weight, config, (0,), True)
        assert not blind.of_output
        assert actual < 0.5 * blind.relative_error(config)

    @pytest.mark.parametrize("odc", ["none", "spatial"])
    def test_mean_squares_give_the_predicted_error(self, odc: str) -> None:
        config = CompressionConfig(bits=2, calibration="diagonal", odc=odc)
        weight, moment = weight_of(160, 128), torch.linspace(-3, 3, 128).exp().double()
        profile = profile_matrix(weight, config, (0,), True, moment)
        assert profile.of_output
        assert not profile.fed_back
        coded = compress_matrix(weight, config.for_checkpoint(), input_second_moment=moment)
        actual = output_error(weight, coded.dense(), moment)
        assert actual == pytest.approx(profile.relative_error(config), rel=0.1)

    @pytest.mark.parametrize("seed", [0, 7])
    def test_it_depends_little_on_signs(self, seed: int) -> None:
        weight, moment = weight_of(64, 128), correlated_moment(128)
        base = CompressionConfig(odc="none")
        gains = [
            output_noise_gain(weight, config, moment)
            for config in (base.replace(seed=seed), base.replace(seed=seed + 1))
        ]
        assert gains[0] == pytest.approx(gains[1], rel=0.2)

    @pytest.mark.parametrize("factor", [1e-6, 1e6])
    def test_size_of_weights_and_inputs_does_not_matter(self, factor: float) -> None:
        weight, moment, config = weight_of(40, 48), correlated_moment(48), CompressionConfig()
        expected = output_noise_gain(weight, config, moment)
        assert output_noise_gain(factor * weight, config, moment) == pytest.approx(expected, 1e-3)
        assert output_noise_gain(weight, config, factor * moment) == pytest.approx(expected, 1e-3)

    def test_too_few_examples_do_not_promise_an_exact_layer(self) -> None:
        x = weight_of(4, 96)
        weight, config = weight_of(64, 96), CompressionConfig(odc="none")
        gain = output_noise_gain(weight, config, x.T @ x / 4)
        assert gain is not None
        assert gain > 1e-3

    def test_no_input_falls_back_on_the_weight(self) -> None:
        weight, config = weight_of(64, 96), CompressionConfig(bits=2)
        profile = profile_matrix(weight, config, (0,), True, torch.zeros(96, 96))
        assert not profile.of_output
        assert profile.relative_error(config) > 0.01

    def test_moment_of_another_size(self) -> None:
        with pytest.raises((ValueError, RuntimeError)):
            output_noise_gain(weight_of(8, 12), CompressionConfig(odc="none"), torch.eye(10))

    def test_what_feedback_gains_and_costs_does_not_count(self) -> None:
        config = CompressionConfig(bits=2, odc="none")
        counted = []
        for moment in (torch.eye(96), correlated_moment(96)):
            profile = profile_matrix(weight_of(64, 96), config, (0,), True, moment)
            counted.append(profile.relative_error(config) / profile.unit(config))
        assert counted[0] == pytest.approx(counted[1], rel=1e-6)
        assert counted[0] == pytest.approx(code_distortion(config), rel=1e-6)

    @pytest.mark.parametrize("codec", ["ring", "trellis"])
    def test_feedback_costs_distortion_at_few_bits(self, codec: str) -> None:
        config = CompressionConfig(codec=codec, state_bits=8)
        ratios = [
            fed_back_distortion(config.replace(bits=b)) / code_distortion(config.replace(bits=b))
            for b in (1, 2, 4)
        ]
        assert ratios[0] > ratios[1] > ratios[2] > 0.9
        assert ratios[2] < 1.1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model whose layers' inputs differ in size, so that data matter."""
    model = llama_model(num_hidden_layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.logspace(-1.5, 1, parameter.numel()))
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def saved(source: Path, tmp_path: Path) -> Path:
    """Second moments of ``source``."""
    path = tmp_path / "moments.safetensors"
    compress_checkpoint(
        source, tmp_path / "first", calibration_data=DATA, save_calibration=path, progress=False
    )
    return path


def plan(source: Path, **options: Any) -> BitPlan:
    return plan_checkpoint(source, progress=False, **options)


def errors(made: BitPlan) -> list[float]:
    return [matrix.predicted_error for matrix in made.matrices]


class TestWhereMomentsComeFrom:
    def test_a_file_and_the_data_give_the_same_plan(self, source: Path, saved: Path) -> None:
        loaded = plan(source, target_bits=6, load_calibration=saved)
        collected = plan(source, target_bits=6, calibration_data=DATA)
        assert loaded == collected
        assert any("outputs" in note for note in loaded.notes)
        assert errors(loaded) != errors(plan(source, target_bits=6))

    def test_objective_counts_distortions(self, source: Path) -> None:
        made = plan(source, target_bits=6, calibration_data=DATA)
        expected = sum(code_distortion(matrix.config) for matrix in made.matrices)
        assert made.objective == pytest.approx(expected, rel=1e-6)

    def test_memory_makes_no_difference(self, source: Path) -> None:
        ample = plan(source, target_bits=6, calibration_data=DATA)
        assert plan(source, target_bits=6, calibration_data=DATA, calibration_memory=1) == ample

    def test_one_group_at_a_time_is_kept(
        self, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Calibration] = []
        most = []

        def watched(*arguments: Any) -> Calibration:
            made.append(Calibration(*arguments))
            return made[-1]

        def kept(calibration: Calibration) -> int:
            assert isinstance(calibration.moments, MomentMemory)
            return len(calibration.moments._moments)

        def find(self: Calibration, layer: str) -> Any:
            most.append(kept(self))
            return original(self, layer)

        original = Calibration.find
        monkeypatch.setattr(profiles, "Calibration", watched)
        monkeypatch.setattr(Calibration, "find", find)
        plan(source, target_bits=6, calibration_data=DATA, calibration_memory=1)
        assert set(most) == {1}
        assert kept(made[0]) == 0

    def test_of_another_model(self, saved: Path, tmp_path: Path) -> None:
        llama_model(seed=5).save_pretrained(tmp_path / "other")
        with pytest.raises(CheckpointError, match="another model"):
            plan(tmp_path / "other", target_bits=6, load_calibration=saved)

    def test_both_are_refused(self, source: Path, saved: Path) -> None:
        with pytest.raises(ValueError, match="one or the other"):
            plan(source, target_bits=6, load_calibration=saved, calibration_data=DATA)

    def test_measuring_needs_examples(self, source: Path, saved: Path) -> None:
        with pytest.raises(ValueError, match="pass calibration_data"):
            plan(source, target_bits=6, load_calibration=saved, sensitivity="measured")

    def test_measured(self, source: Path) -> None:
        made = plan(source, target_bits=6, calibration_data=DATA, sensitivity="measured")
        assert len({matrix.weight for matrix in made.matrices}) > 10

    def test_mean_squares_alone(self, source: Path) -> None:
        config = CompressionConfig(calibration="diagonal")
        made = plan(source, target_bits=6, config=config, calibration_data=DATA)
        assert made.bits_per_weight <= 6
        assert errors(made) != errors(plan(source, target_bits=6, config=config))


class TestCompressing:
    def test_a_target_with_moments_is_kept(self, source: Path, saved: Path, tmp_path: Path) -> None:
        made = plan(source, target_bits=6, load_calibration=saved)
        for name, options in {
            "file": {"load_calibration": saved},
            "data": {"calibration_data": DATA},
        }.items():
            report = compress_checkpoint(
                source, tmp_path / name, target_bits=6, progress=False, **options
            )
            assert report.bits_per_weight <= 6
            settings = {row.name: row.spec.code_bits for row in report.compressed if row.spec}
            assert settings == {m.name: m.config.code_bits for m in made.matrices}

    def test_the_plan_of_moments_serves_the_compression(
        self, source: Path, saved: Path, tmp_path: Path
    ) -> None:
        made = plan(source, target_bits=6, load_calibration=saved)
        report = compress_checkpoint(
            source, tmp_path / "out", plan=made, load_calibration=saved, progress=False
        )
        assert report.bits_per_weight <= made.bits_per_weight

    def test_command_line(self, source: Path, saved: Path, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        command = ["plan", str(source), "--target-bits", "6", "--load-calibration", str(saved)]
        assert main([*command, "--output", str(path), "--no-progress"]) == 0
        assert BitPlan.load(path) == plan(source, target_bits=6, load_calibration=saved)


def test_probe_codes_with_the_moments() -> None:
    model = llama_model()
    inputs = [{"input_ids": torch.arange(1, 9)[None]}]
    size = model.get_submodule(DOWN).weight.shape[1]
    found = []
    for moment in (None, torch.eye(size), correlated_moment(size)):
        probe = SensitivityProbe(model, inputs)
        probe.measure(DOWN, CompressionConfig(odc="none"), moment)
        found.append(probe.weights()[DOWN])
    assert 0.2 < found[1] / found[0] < 5  # white inputs: as without data, but for the few weights
    assert found[2] not in found[:2]
