"""Errors that are predicted before compressing, against those of the compressed matrices."""

from __future__ import annotations

import pytest
import torch

from conftest import llava_model
from llava_fa import CompressionConfig, NonFiniteError, compress_matrix
from llava_fa.error_model import CODE_SIZES, code_distortion, profile_matrix


class TestErrorModel:
    @pytest.mark.parametrize("row_scale", ["unbiased", "least-squares"])
    def test_distortion_falls_four_times_per_bit(self, row_scale: str) -> None:
        base = CompressionConfig(row_scale=row_scale)
        measured = [code_distortion(base.replace(bits=bits)) for bits in CODE_SIZES]
        for coarse, fine in zip(
            measured[2:-2], measured[4:], strict=True
        ):  # from 2 bits on, a bit apart
            assert 3 < coarse / fine < 5

    @pytest.mark.parametrize("bits", [1.5, 2, 3, 4])
    def test_trellis_is_predicted_too(self, bits: float) -> None:
        config = CompressionConfig(bits=bits, codec="trellis", odc="none")
        assert code_distortion(config) < code_distortion(config.replace(codec="ring"))
        weight = torch.randn(192, 160, generator=torch.Generator().manual_seed(7))
        expected = profile_matrix(weight, config).relative_error(config)
        actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
        assert actual == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("codec", ["ring", "trellis"])
    @pytest.mark.parametrize("bits", [1.5, 2.5])
    def test_distortion_is_that_of_unbiased_codes(self, bits: float, codec: str) -> None:
        config = CompressionConfig(bits=bits, codec=codec, state_bits=8)
        least = code_distortion(config.replace(row_scale="least-squares"))
        assert code_distortion(config) == pytest.approx(least / (1 - least), rel=0.01)

    @pytest.mark.parametrize("odc", ["spatial", "none"])
    @pytest.mark.parametrize("bits", [1.5, 2, 3, 4])
    def test_every_matrix_has_the_predicted_error_without_rank(self, bits: float, odc: str) -> None:
        config = CompressionConfig(bits=bits, odc=odc)
        for name, module in llava_model(seed=3).named_modules():
            if isinstance(module, torch.nn.Linear) and module.weight.numel() >= 1000:
                weight = module.weight.detach()
                expected = profile_matrix(weight, config).relative_error(config)
                # A few hundred codes scatter; the larger the matrix the closer (bench).
                actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
                assert actual == pytest.approx(expected, rel=0.25), name

    @pytest.mark.parametrize("rank", [4, 8])
    @pytest.mark.parametrize("bits", [2, 3])
    def test_error_with_rank_is_close_and_not_too_hopeful(self, bits: float, rank: int) -> None:
        generator = torch.Generator().manual_seed(5)
        parts = [torch.randn(*s, generator=generator) for s in ((192, 6), (6, 160), (192, 160))]
        weight = parts[0] @ parts[1] + 2 * parts[2]
        config = CompressionConfig(bits=bits, rank=rank)
        expected = profile_matrix(weight, config, (0, rank)).relative_error(config)
        actual = compress_matrix(weight, config.for_checkpoint()).relative_error(weight)
        assert 0.6 * expected < actual < 1.1 * expected

    def test_profile_knows_the_stored_scales(self) -> None:
        generator = torch.Generator().manual_seed(1)
        even = torch.randn(256, 192, generator=generator)
        uneven = even * torch.linspace(-2, 2, 192).exp()
        for weight in (even, uneven, uneven.T.contiguous()):
            spec = compress_matrix(weight, CompressionConfig()).spec
            profile = profile_matrix(weight, CompressionConfig())
            assert profile.channel_scale_in == spec.channel_scale_in
            assert profile.channel_scale_out == spec.channel_scale_out

    @pytest.mark.parametrize("size", [1e-30, 1e30, 0.0])
    def test_size_of_the_weights_does_not_matter(self, size: float) -> None:
        config = CompressionConfig(bits=2, rank=2)
        weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
        weight *= torch.linspace(-2, 2, 24).exp()
        profile = profile_matrix(size * weight, config, (0, 2))
        if size:
            assert profile.relative_error(config) == pytest.approx(
                profile_matrix(weight, config, (0, 2)).relative_error(config), rel=1e-3
            )
        else:
            assert 0 <= profile.relative_error(config) < 1

    def test_nonfinite_weight(self) -> None:
        weight = torch.ones(4, 4)
        weight[1, 2] = float("nan")
        with pytest.raises(NonFiniteError):
            profile_matrix(weight, CompressionConfig())
