"""How much a unit of relative error counts in each matrix.

Noise that a matrix adds to its layer's output adds to the model's loss in proportion to its energy,
so the loss is close to ``Σ_i c_i · relative error_i`` (the linearity theorem of HIGGS, arXiv
2411.17525). With second moments the error is that of the output, in units of what the layer's
inputs do not predict from each other (:meth:`llava_fa.error_model.MatrixProfile.unit`). The rules
differ in c:

- ``"matrix"``: the same c for every matrix. Needs no data. Small matrices get more bits, because
  the same relative error costs fewer bytes there.
- ``"size"``: c is the number of weights. Almost the same bits everywhere.
- ``"measured"``: c is the geometric mean of the measured and the equal one. Measured is the KL
  divergence of the model's next-token distribution after calibration examples when this matrix
  alone is coded, over its error. One pass over the examples per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .config import CompressionConfig
from .dense_model import calibration_memory_errors, on_device_of
from .error_model import code_distortion
from .errors import CheckpointError, NonFiniteError
from .matrix import compress_matrix

SENSITIVITIES = ("matrix", "size", "measured")
DEFAULT_SENSITIVITY = "matrix"

# The code size that probes a matrix: coarse enough that the change stands out of the rounding of
# a half-precision model, fine enough to stay near the linear regime.
_PROBE_BITS = 2.0
_SMALLEST = 1e-12  # KL in nats; a matrix without any effect still has a finite logarithm


def rule_weights(rule: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Return the weights of a rule that looks at shapes alone, by matrix."""
    if rule == "size":
        return {name: float(rows * columns) for name, (rows, columns) in shapes.items()}
    return dict.fromkeys(shapes, 1.0)


class SensitivityProbe:
    """Measures the weights of the ``"measured"`` rule, one matrix after the other.

    Parameters
    ----------
    model
        The dense model; its weights are replaced one at a time and put back.
    inputs
        Keyword arguments of its ``forward``, one mapping per example.

    Raises
    ------
    CheckpointError
        The model has no logits to compare.
    NonFiniteError
        The dense model's logits hold NaN or infinity.
    """

    def __init__(self, model: Any, inputs: Sequence[Mapping[str, Any]]) -> None:
        self.model, self._inputs = model.eval(), inputs
        self._reference = _answers(model, inputs)
        if not bool(torch.isfinite(self._reference).all()):
            raise NonFiniteError(
                "the dense model's logits hold NaN or infinity on the calibration data; check the "
                "examples, or load the model in a wider type"
            )
        self._logarithms: dict[str, float] = {}

    def measure(
        self, name: str, config: CompressionConfig, second_moment: torch.Tensor | None = None
    ) -> None:
        """Code one matrix alone, as it will be with these settings, and compare the answers."""
        weight = self.model.get_submodule(name).weight
        kept = weight.detach().cpu().clone()
        dense = kept.float()
        probe = config.replace(bits=_PROBE_BITS, rank=0).for_checkpoint()
        matrix = compress_matrix(dense, probe, input_second_moment=second_moment)
        try:
            with torch.no_grad():
                weight.copy_(matrix.dense())
            answers = _answers(self.model, self._inputs)
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        divergence = float((self._reference.exp() * (self._reference - answers)).sum(-1).mean())
        if not math.isfinite(divergence):
            raise NonFiniteError(
                f"layer {name}: coded alone it makes the model's logits not finite"
            )
        # With data, of what the inputs do not predict from each other: see MatrixProfile.unit.
        calibrated = second_moment is not None
        error = code_distortion(probe) if calibrated else matrix.relative_error(dense)
        self._logarithms[name] = math.log(max(divergence, _SMALLEST) / max(error, _SMALLEST))

    def weights(self) -> dict[str, float]:
        """Return the weights of all measured matrices, by module name."""
        mean = math.fsum(self._logarithms.values()) / max(1, len(self._logarithms))
        # Few examples measure a heavy-tailed quantity: half the way to the mean is the better
        # estimate.
        return {name: math.exp((value + mean) / 2) for name, value in self._logarithms.items()}


def measured_weights(
    model: Any,
    inputs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, CompressionConfig],
    second_moments: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return the weights of the ``"measured"`` rule, by module name, for settings by module name.

    See :class:`SensitivityProbe`; ``second_moments`` are those of the layers' inputs.
    """
    probe = SensitivityProbe(model, inputs)
    for name, config in settings.items():
        probe.measure(name, config, (second_moments or {}).get(name))
    return probe.weights()


def _answers(model: Any, inputs: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Log-probabilities of the token after every example, (examples, vocabulary), float64."""
    rows = []
    with torch.inference_mode(), calibration_memory_errors():
        for example in inputs:
            logits = getattr(model(**on_device_of(model, example)), "logits", None)
            if logits is None:
                raise CheckpointError(
                    f"{type(model).__name__} returns no logits, which sensitivity='measured' "
                    "compares; use sensitivity='matrix'"
                )
            rows.append(_last(logits, example.get("attention_mask")).double().cpu())
    return torch.log_softmax(torch.cat(rows), -1)


def _last(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits at the last position that is no padding, (examples, vocabulary)."""
    if mask is None or mask.ndim != 2 or mask.shape != logits.shape[:2]:
        return logits[:, -1]
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(1)
    return logits[torch.arange(len(logits)), last.to(logits.device)]
