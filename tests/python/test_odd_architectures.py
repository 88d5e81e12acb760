"""Second moments of models that share none of the usual structure: correct, if not fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calibration_toys import (
    AMPLE,
    Block,
    Decoder,
    blocks,
    check_moments,
    rows,
    toy_data,
)


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
        first = x = self.blocks[0](x)
        for block in list(self.blocks)[1:]:
            x = block(x)
        return self.head(self.join(first, x))

    def join(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return first + last


class SilentSkip(LongSkip):
    """Joins them so that NaN in the first does not show."""

    def join(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return torch.where(first > 0, last, -last)


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
    "change in place": (lambda: Decoder(Changing(), Changing()), toy_data()),
}


@pytest.mark.filterwarnings("ignore:.*fewer rows")
class TestOddArchitectures:
    @pytest.mark.parametrize("name", ODD)
    @pytest.mark.parametrize("memory", [AMPLE, 50_000])
    def test_moments_equal_those_of_plain_full_passes(
        self, name: str, memory: int, tmp_path: Path
    ) -> None:
        make, data = ODD[name]
        check_moments(tmp_path, make(), data, memory=memory)
