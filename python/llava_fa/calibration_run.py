"""Where one run gets its second moments: from examples, from a file, or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import writer
from .calibrate import Calibration, CalibrationOptions
from .capture import CalibrationData
from .dense_model import load_dense_model
from .matrix import CompressedMatrix
from .moments import LayerMoment, MomentFolder
from .partial import Part, PartialRun, ShardRecord
from .passes import ForwardPasses
from .plan import Plan
from .saved_calibration import SavedCalibration, check_target, is_saved, model_fingerprint, save
from .shards import Checkpoint
from .sizes import parse_size

CalibrationInput = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class CalibrationRequest:
    """What the caller asked for, checked: ``data`` or ``load`` or neither.

    ``device`` is where the dense model runs and its second moments are collected.
    """

    data: CalibrationData | None
    order: str
    memory: int
    save: Path | None
    load: Path | None
    device: torch.device

    @classmethod
    def of(
        cls,
        data: CalibrationInput | None,
        samples: int,
        order: str,
        memory: int | str,
        save: str | os.PathLike[str] | None,
        load: str | os.PathLike[str] | None,
        device: torch.device,
    ) -> CalibrationRequest:
        """Check the options against each other."""
        memory_bytes = parse_size("calibration_memory", memory)
        CalibrationOptions(order, memory_bytes)
        if order != "one-pass" and (save is not None or load is not None):
            raise ValueError(
                "save_calibration and load_calibration need calibration_order='one-pass': "
                "sequential second moments depend on the compressed layers"
            )
        if load is not None and (data is not None or save is not None):
            raise ValueError(
                "load_calibration takes the place of calibration_data and save_calibration; give "
                "one or the other"
            )
        if save is not None and data is None:
            raise ValueError("save_calibration needs calibration_data (--calib)")
        examples = None if data is None else CalibrationData(data, samples)
        target, source = (None if path is None else Path(path) for path in (save, load))
        return cls(examples, order, memory_bytes, target, source, device)

    @property
    def given(self) -> bool:
        """Whether there will be second moments."""
        return self.data is not None or self.load is not None

    def settings(self) -> dict[str, str] | None:
        """Return what changes the result of a run, for its fingerprint."""
        if self.load is not None:
            return {"file": writer.hash_file(self.load) if self.load.is_file() else ""}
        if self.data is None:
            return None
        # Another device adds in another order.
        device = {"device": self.device.type} if self.device.type != "cpu" else {}
        return {"data": self.data.fingerprint(), "order": self.order, **device}

    def passes(self, checkpoint: Checkpoint, *, progress: bool, model: Any = None) -> ForwardPasses:
        """Return the passes over the examples, of the dense model, which is loaded if not given."""
        assert self.data is not None
        data = self.data
        return ForwardPasses(
            load_dense_model(checkpoint, device=self.device) if model is None else model,
            lambda: data.model_inputs(checkpoint.folder),
            progress=progress,
        )


def wanted_moments(plan: Plan) -> tuple[dict[str, int], dict[str, bool]]:
    """Return, by layer to be compressed, its input features and whether all of E[x xᵀ] is wanted.

    The paper's weights, ``odc="spectral"``, need the spectrum of the full matrix.
    """
    sizes, full = {}, {}
    for entry in plan.entries:
        if entry.name in plan.matrices:
            name, config = plan.matrices[entry.name]
            sizes[name] = entry.shape[1]
            full[name] = config.calibration == "hessian" or config.odc == "spectral"
    return sizes, full


class NoMoments:
    """A run without data."""

    def find(self, layer: str) -> LayerMoment | None:
        """Return None for every layer."""
        return None


class CalibrationRun:
    """The second moments of one run, and the order in which they come.

    Parameters
    ----------
    source_hashes
        Hashes of the checkpoint's files, as in the run's fingerprint.
    settings_hash
        Hash of all other settings of the run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        request: CalibrationRequest,
        source_hashes: Mapping[str, str],
        settings_hash: str,
    ) -> None:
        self._checkpoint, self._request = checkpoint, request
        self._model_hash = model_fingerprint(source_hashes)
        self._run_hash = settings_hash
        self._data_hash = request.data.fingerprint() if request.data else ""
        self._numbers = {
            plan.matrices[entry.name][0]: number
            for number, entry in enumerate(plan.entries)
            if entry.name in plan.matrices
        }
        sizes, self._full = wanted_moments(plan)
        self._moments: NoMoments | SavedCalibration | Calibration = NoMoments()
        if request.load is not None:
            self._moments = SavedCalibration(request.load, self._model_hash, sizes, self._full)

    def check_places(self, output: Path, *, overwrite: bool) -> None:
        """Refuse a file for the moments that must not be written."""
        path = self._request.save
        if path is None:
            return
        for folder in (self._checkpoint.folder, output):
            if folder.resolve() in path.resolve().parents:
                raise ValueError(
                    f"save_calibration is {path}, inside of the checkpoint {folder}; choose a "
                    "place outside, because loaders read every safetensors file of a checkpoint"
                )
        check_target(path, self._model_hash, self._data_hash, overwrite=overwrite)

    @property
    def is_saved(self) -> bool:
        """Whether nothing is left to be saved."""
        path = self._request.save
        return path is None or is_saved(path, self._model_hash, self._data_hash, self._run_hash)

    def find(self, layer: str) -> LayerMoment | None:
        """Return a layer's second moment while it is there; None if it saw no data."""
        return self._moments.find(layer)

    def usable(self, run: PartialRun, records: list[ShardRecord]) -> list[ShardRecord]:
        """Return the finished shards that can stay.

        Sequential order needs the compressed weights of all layers before, which are at hand as
        parts, not as shards; so if a shard turns out to be damaged, all are made again.
        """
        sequential = self._request.data is not None and self._request.order == "sequential"
        return [] if sequential and self.pending(run, records) else records

    def pending(self, run: PartialRun, records: list[ShardRecord]) -> dict[str, int]:
        """Return, in order, the numbers of layers' parts that are neither there nor in a shard."""
        first = sum(len(record.rows) for record in records)
        return {
            layer: number
            for layer, number in self._numbers.items()
            if number >= first and run.load_part(number) is None
        }

    def compress(
        self,
        run: PartialRun,
        records: list[ShardRecord],
        produce: Callable[[int], Part],
        expect: Callable[[list[int]], None],
        *,
        progress: bool,
    ) -> dict[int, Part]:
        """Produce the parts of all layers that saw data, group by group in order of execution.

        Parameters
        ----------
        records
            Finished shards, whose parts are not needed.
        produce
            Makes one part, by its number.
        expect
            Told which parts ``produce`` makes next.

        Returns
        -------
        dict
            Parts that need nothing stored, by number; all others are in the run's state.
        """
        if isinstance(self._moments, SavedCalibration):
            self._warn_unseen(self._moments)
        if self._request.data is None:
            return {}
        keep = not self.is_saved
        options = CalibrationOptions(self._request.order, self._request.memory, keep)
        pending = self.pending(run, records)
        calibration = Calibration(
            run.folder,
            lambda: self._request.passes(self._checkpoint, progress=progress),
            self._full,
            lambda layer: _decoded(run, layer, self._numbers[layer]),
            options,
        )
        self._moments, unsaved = calibration, {}
        for layers in calibration.groups(pending):
            expect([pending[layer] for layer in layers])
            for layer in layers:
                part = produce(pending[layer])
                if part.row.spec is None:
                    unsaved[pending[layer]] = part
        if keep and self._request.save is not None:
            hashes = (self._model_hash, self._data_hash, self._run_hash)
            save(self._request.save, calibration.trace, MomentFolder(run.folder), *hashes)
            calibration.drop_all()
        return unsaved

    def _warn_unseen(self, saved: SavedCalibration) -> None:
        if saved.unseen:
            warnings.warn(
                f"{saved.path}: holds nothing for {len(saved.unseen)} layer(s), which are "
                f"compressed without data: {', '.join(saved.unseen)}",
                stacklevel=2,
            )


def _decoded(run: PartialRun, layer: str, number: int) -> torch.Tensor | None:
    part = run.load_part(number)
    if part is None:
        return None
    tensors = {t.name.removeprefix(f"{layer}."): t.entry.read() for t in part.tensors}
    weight: torch.Tensor = CompressedMatrix.from_state_dict(tensors).dense()
    return weight
