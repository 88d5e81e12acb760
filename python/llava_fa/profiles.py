"""Profiles every matrix for planning, with the second moments of the inputs where there are any.

Moments come a group of layers at a time, as they do for compressing, and are forgotten with the
group: memory is that of ``calibration_memory``, or of one moment if they are read from a file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch

from .calibrate import Calibration, CalibrationOptions
from .calibration_run import CalibrationRequest, NoMoments, wanted_moments
from .config import CompressionConfig
from .error_model import MatrixProfile, profile_matrix
from .errors import NonFiniteError
from .moments import MomentSource
from .plan import Plan
from .saved_calibration import SavedCalibration, model_fingerprint
from .sensitivity import SensitivityProbe
from .shards import Checkpoint


class Profiler:
    """Goes through a checkpoint once.

    Parameters
    ----------
    options
        Tensor name → settings to choose from.
    request
        Where second moments come from.
    source_hashes
        Of the checkpoint's files; needed only for moments from a file.
    probe
        Measures sensitivities on the way, or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        options: Mapping[str, Sequence[CompressionConfig]],
        request: CalibrationRequest,
        source_hashes: Mapping[str, str],
        probe: SensitivityProbe | None = None,
    ) -> None:
        self._checkpoint, self._plan, self._options = checkpoint, plan, options
        self._request, self._hashes, self._probe = request, source_hashes, probe
        self._tensors = {plan.matrices[tensor][0]: tensor for tensor in options}

    def run(
        self, *, skip_nonfinite: bool, progress: bool
    ) -> tuple[dict[str, MatrixProfile], list[str]]:
        """Return the profiles by tensor, in the order of the options, and the broken layers."""
        from tqdm import tqdm

        found, broken = {}, []
        with tqdm(
            total=len(self._tensors), desc="planning", unit="matrix", disable=not progress
        ) as bar:
            for layers, moments in self._groups(progress):
                for layer in layers:
                    try:
                        found[self._tensors[layer]] = self._profile(layer, moments)
                    except NonFiniteError as error:
                        self._refuse(layer, error, skip_nonfinite)
                        broken.append(layer)
                    bar.update()
        return {tensor: found[tensor] for tensor in self._options if tensor in found}, broken

    def _profile(self, layer: str, moments: MomentSource) -> MatrixProfile:
        tensor = self._tensors[layer]
        settings = self._plan.matrices[tensor][1]
        weight, moment = self._checkpoint.tensors[tensor].read(), moments.find(layer)
        values: torch.Tensor | None = moment.values if moment else None
        ranks = sorted({choice.rank for choice in self._options[tensor]})
        profile = profile_matrix(weight, settings, ranks, self._request.given, values)
        if self._probe is not None:
            self._probe.measure(layer, settings, values)
        return profile

    def _refuse(self, layer: str, error: NonFiniteError, skip: bool) -> None:
        tensor = self._tensors[layer]
        message = f"{self._checkpoint.tensors[tensor].file}: tensor {tensor}: {error}"
        if not skip:
            raise NonFiniteError(
                f"{message}; repair the weight, or keep it dense with on_nonfinite='skip' "
                "(--on-nonfinite skip)"
            ) from error
        warnings.warn(f"{message}; kept dense", stacklevel=5)

    def _groups(self, progress: bool) -> Iterator[tuple[list[str], MomentSource]]:
        """Yield every layer once, with what knows its moment until the next group is asked for."""
        pending, request = dict.fromkeys(self._tensors), self._request
        sizes, full = wanted_moments(self._plan)
        if request.load is not None:
            fingerprint = model_fingerprint(self._hashes)
            yield list(pending), SavedCalibration(request.load, fingerprint, sizes, full)
            return
        if request.data is not None:
            calibration = Calibration(
                None,
                lambda: request.passes(
                    self._checkpoint,
                    progress=progress,
                    # Its weights are the dense ones but while it measures.
                    model=self._probe.model if self._probe else None,
                ),
                full,
                lambda layer: None,
                CalibrationOptions("one-pass", request.memory),
            )
            for layers in calibration.groups(list(pending)):
                yield layers, calibration
                for layer in layers:
                    del pending[layer]
        yield list(pending), NoMoments()
