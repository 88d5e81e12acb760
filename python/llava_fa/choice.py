"""Who decides about the matrices' settings: options and recipe, a size target, or a saved plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .bit_plan import BitPlan
from .calibration_run import CalibrationRequest
from .config import CompressionConfig
from .errors import PlanError
from .plan import Plan
from .planning import Target, earlier_plan, plan_target
from .recipe import Recipe
from .sensitivity import DEFAULT_SENSITIVITY
from .shards import Checkpoint


@dataclass(frozen=True)
class Choice:
    """The settings of a run: ``target`` and ``plan`` are not both set."""

    config: CompressionConfig
    recipe: Recipe
    target: Target | None = None
    plan: BitPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what of it belongs into a run's request beside configuration and recipe."""
        return {"target": self.target.to_dict()} if self.target else {}

    def bit_plan(
        self,
        checkpoint: Checkpoint,
        work: Plan,
        calibration: CalibrationRequest,
        request: Mapping[str, Any],
        earlier: Iterable[Mapping[str, Any] | None],
        *,
        progress: bool,
    ) -> BitPlan | None:
        """Return the plan of this run: the given one, an earlier run's, or a new one; or none."""
        if self.target is None:
            if self.plan is not None and calibration.given:
                _check_room(self.plan)
            return self.plan
        settings = request["settings"]
        return earlier_plan(earlier, request) or plan_target(
            checkpoint,
            work,
            self.target,
            self.config,
            self.recipe,
            calibration,
            request["source"],
            skip_nonfinite=settings["on_nonfinite"] == "skip",
            max_shard_bytes=settings["max_shard_bytes"],
            progress=progress,
        )


def choose_settings(
    config: CompressionConfig | None,
    recipe: Recipe | str | os.PathLike[str] | list[Any] | None,
    target_bits: float | None,
    target_size: int | str | None,
    sensitivity: str,
    plan: BitPlan | str | os.PathLike[str] | None,
) -> Choice:
    """Check that the options do not contradict each other."""
    targeted = target_bits is not None or target_size is not None
    if plan is not None:
        if targeted or config is not None or recipe is not None:
            raise ValueError(
                "a plan holds all settings: leave out config, recipe, target_bits and target_size "
                "(on the command line: --plan stands without options for matrices)"
            )
        loaded = BitPlan.load(plan)
        return Choice(loaded.config, Recipe(), plan=loaded)
    settings, rules = config or CompressionConfig(), Recipe.load(recipe)
    if not targeted:
        if sensitivity != DEFAULT_SENSITIVITY:
            raise ValueError(f"sensitivity={sensitivity!r} needs target_bits or target_size")
        return Choice(settings, rules)
    if settings.bits != CompressionConfig().bits:
        raise ValueError(
            f"bits={settings.bits:g} contradicts a size target, which chooses the bits of every "
            "matrix: leave one of them out"
        )
    return Choice(settings, rules, Target.of(target_bits, target_size, None, sensitivity))


def _check_room(plan: BitPlan) -> None:
    """Scales by the inputs need room; under feedback data does not change the scales."""
    for matrix in plan.matrices:
        config, stored = matrix.config, matrix.channel_scale_in
        if config.odc == "spatial" and config.calibration == "diagonal" and not stored:
            raise PlanError(
                f"the plan sets no room aside for the channel scales of {matrix.name}, which "
                "calibration data may need; make the plan with the same data (--calib), or "
                "compress without"
            )
