"""How much a unit of relative error counts in each matrix.

Noise that a matrix adds to its layer's output adds to the model's loss in proportion to its energy,
so the loss is close to ``Σ_i c_i · relative error_i`` (the linearity theorem of HIGGS, arXiv
2411.17525). The rules differ in c:

- ``"matrix"``: the same c for every matrix. Needs no data. Small matrices get more bits, because
  the same relative error costs fewer bytes there.
- ``"size"``: c is the number of weights. Almost the same bits everywhere.
- ``"measured"``: c is the geometric mean of the measured and the equal one. Measured is the KL
  divergence of the model's next-token distribution after calibration examples when this matrix
  alone is coded, over its error. One pass over the examples per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .config import CompressionConfig
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


def measured_weights(
    model: Any,
    inputs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, CompressionConfig],
    done: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return the weights of the ``"measured"`` rule, by module name.

    Parameters
    ----------
    model
        The dense model; its weights are replaced one at a time and put back.
    inputs
        Keyword arguments of its ``forward``, one mapping per example.
    settings
        Module name to the settings of its codec.
    done
        Called after every matrix.

    Raises
    ------
    CheckpointError
        The model has no logits to compare.
    NonFiniteError
        The dense model's logits hold NaN or infinity.
    """
    model.eval()
    reference = _answers(model, inputs)
    if not bool(torch.isfinite(reference).all()):
        raise NonFiniteError(
            "the dense model's logits hold NaN or infinity on the calibration data; check the "
            "examples, or load the model in a wider type"
        )
    logarithms = {}
    for name, config in settings.items():
        logarithms[name] = math.log(_loss_per_error(model, inputs, reference, name, config))
        done()
    mean = math.fsum(logarithms.values()) / len(logarithms)
    # Few examples measure a heavy-tailed quantity: half the way to the mean is the better estimate.
    return {name: math.exp((value + mean) / 2) for name, value in logarithms.items()}


def _loss_per_error(
    model: Any,
    inputs: Sequence[Mapping[str, Any]],
    reference: torch.Tensor,
    name: str,
    config: CompressionConfig,
) -> float:
    weight = model.get_submodule(name).weight
    kept = weight.detach().clone()
    matrix = compress_matrix(
        kept.cpu().float(), config.replace(bits=_PROBE_BITS, rank=0).for_checkpoint()
    )
    error = matrix.relative_error(kept.cpu().float())
    try:
        with torch.no_grad():
            weight.copy_(matrix.dense())
        answers = _answers(model, inputs)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    divergence = float((reference.exp() * (reference - answers)).sum(-1).mean())
    if not math.isfinite(divergence):
        raise NonFiniteError(f"layer {name}: coded alone it makes the model's logits not finite")
    return max(divergence, _SMALLEST) / max(error, _SMALLEST)


def _answers(model: Any, inputs: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Log-probabilities of the token after every example, (examples, vocabulary), float64."""
    rows = []
    with torch.inference_mode():
        for example in inputs:
            placed = {
                key: value.to(model.device, model.dtype if value.is_floating_point() else None)
                if isinstance(value, torch.Tensor)
                else value
                for key, value in example.items()
            }
            logits = getattr(model(**placed), "logits", None)
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
