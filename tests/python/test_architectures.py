"""Every architecture: compress, load with dense and with packed layers, answer about an image.

``python tests/python/test_architectures.py --write`` regenerates the table of
``docs/architectures.md`` from what is found here.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from architecture_inputs import Inputs
from architectures import ARCHITECTURES, Architecture
from conftest import compress
from llava_fa import CompressionConfig
from llava_fa.modules import build_meta_model, map_layers
from llava_fa.nn import FourierLinear
from llava_fa.report import CompressionReport
from llava_fa.shards import Checkpoint
from packed_models import TOLERANCE, assert_near, load, load_dense, logits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
START, END = "<!-- architectures -->", "<!-- end of architectures -->"
HEADER = (
    "| architecture | class of transformers | linear layers compressed | stays dense | packed run "
    "time |\n|---|---|---|---|---|"
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*stay dense"),
    pytest.mark.filterwarnings("ignore:.*saw no calibration data"),
]

CONFIG = CompressionConfig(bits=4, codec="ring")

WEIGHT_ERROR = 0.02
"""Bound of ``||W - Ŵ||² / ||W||²`` at 4 bits: 0.008 for large Gaussian matrices, more for small."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Case:
    """One architecture, compressed into ``folder / "packed"`` from ``folder / "source"``."""

    architecture: Architecture
    folder: Path
    original: Any
    inputs: Inputs
    report: CompressionReport

    @cached_property
    def dense(self) -> Any:
        """The compressed model with decoded weights. Read only."""
        return load_dense(self.folder / "packed", self.architecture.auto)

    @cached_property
    def packed(self) -> Any:
        """The compressed model with packed layers. Read only."""
        return load(self.folder / "packed", self.architecture.auto)

    @cached_property
    def compressed(self) -> set[str]:
        """Names of the compressed modules, as the report has them."""
        return {row.name for row in self.report.compressed}


def make_case(architecture: Architecture, folder: Path) -> Case:
    model = architecture.model()
    model.save_pretrained(folder / "source")
    report = compress(folder / "source", folder / "packed", CONFIG)
    return Case(architecture, folder, model, architecture.inputs(), report)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(ARCHITECTURES[request.param], tmp_path_factory.mktemp("architecture"))


def packed_layers(model: nn.Module) -> dict[str, FourierLinear]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, FourierLinear)}


def senses(inputs: Inputs) -> set[str]:
    """Names of what a model sees or hears."""
    return {name for name in inputs if "pixel_values" in name or "audio_input" in name}


def answer(case: Case, model: Any) -> torch.Tensor:
    result: torch.Tensor = model.generate(
        **case.inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
    )
    return result


class TestDense:
    def test_it_is_loaded_as_the_class_it_was(self, case: Case) -> None:
        assert type(case.dense) is type(case.original)

    def test_compressed_weights_are_near_and_all_else_is_exact(self, case: Case) -> None:
        loaded = case.dense.state_dict()
        assert set(loaded) == set(case.original.state_dict())
        for name, tensor in case.original.state_dict().items():
            if name.removesuffix(".weight") in case.compressed:
                error = (loaded[name] - tensor).square().sum() / tensor.square().sum()
                assert 0 < error < WEIGHT_ERROR, name
            else:
                assert torch.equal(loaded[name], tensor), name

    def test_it_looks_and_listens(self, case: Case) -> None:
        """Else a tower could be wrong, and nothing here would tell."""
        expected = {f"{sense}_config" for sense in ("vision", "audio")}
        has = {name for name in expected if getattr(case.original.config, name, None)}
        assert len(senses(case.inputs)) == len(has)
        found = logits(case.dense, case.inputs)
        for name in senses(case.inputs):
            mirrored = {**case.inputs, name: case.inputs[name].flip(-1)}
            change = (logits(case.dense, mirrored) - found).abs().max()
            assert float(change) > 100 * TOLERANCE * float(found.abs().max()), name


class TestPacked:
    def test_every_compressed_layer_is_packed_and_no_other(self, case: Case) -> None:
        layers = packed_layers(case.packed)
        assert set(layers) == case.compressed

    def test_weights_equal_those_of_the_dense_run_time(self, case: Case) -> None:
        """Of every layer: the inputs here do not reach all."""
        for name, layer in packed_layers(case.packed).items():
            assert torch.equal(layer.dense(), case.dense.get_submodule(name).weight), name

    def test_logits_equal_those_of_the_dense_run_time(self, case: Case) -> None:
        assert_near(logits(case.packed, case.inputs), logits(case.dense, case.inputs))

    def test_answers_equal_those_of_the_dense_run_time(self, case: Case) -> None:
        assert torch.equal(answer(case, case.packed), answer(case, case.dense))

    def test_saved_and_loaded_again(self, case: Case, tmp_path: Path) -> None:
        case.packed.save_pretrained(tmp_path)
        again = load(tmp_path, case.architecture.auto)
        assert torch.equal(logits(again, case.inputs), logits(case.packed, case.inputs))


@pytest.mark.filterwarnings("ignore:.*fewer rows")
def test_calibration_reaches_every_layer_that_runs(case: Case, tmp_path: Path) -> None:
    """Not all do, e.g. what Phi-4 multimodal has for sound without an image."""
    ran = set()
    handles = [
        case.original.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
        for name in case.compressed
    ]
    logits(case.original, case.inputs)
    for handle in handles:
        handle.remove()
    report = compress(
        case.folder / "source", tmp_path / "calibrated", CONFIG, calibration_data=[case.inputs]
    )
    assert {row.name for row in report.compressed if row.second_moment == "full"} == ran
    calibrated = load_dense(tmp_path / "calibrated", case.architecture.auto)
    assert logits(calibrated, case.inputs).isfinite().all()


def test_fused_experts_are_named(case: Case) -> None:
    """A user of such a model hears that most of it stays dense."""
    fused = [name for name, _ in case.original.named_parameters() if ".experts." in name]
    told = [warning for warning in case.report.warnings if "fused expert" in warning]
    assert len(told) == bool(fused)
    assert all(warning.startswith(f"{len(fused)} fused") for warning in told)


def dense_matrices(case: Case) -> Iterator[tuple[str, str]]:
    """Yield what stays dense, besides embeddings, vectors and convolutions: name and reason."""
    checkpoint = Checkpoint.open(case.folder / "source")
    layers = map_layers(checkpoint, build_meta_model(checkpoint)).layers
    for name, module in case.original.named_modules():
        if isinstance(module, nn.Linear):
            if type(module) is not nn.Linear:
                yield name, "subclass of `nn.Linear`"
            elif name not in case.compressed:
                yield name, layers[name].kept
        elif not isinstance(module, CONVOLUTIONS) and "Embedding" not in type(module).__name__:
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if sum(size > 1 for size in parameter.shape) > 1:
                    fused = parameter.ndim == 3 and "expert" in name
                    reason = "fused experts, 3-D" if fused else "not in an `nn.Linear`"
                    yield f"{name}.{parameter_name}", reason


def dense_cell(case: Case) -> str:
    """Return the parts that stay dense by reason, counted under the ends of their names."""
    reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, reason in dense_matrices(case):
        reasons[reason][".".join(name.split(".")[-2:])] += 1
    return "; ".join(
        ", ".join(f"{count} × `{end}`" if count > 1 else f"`{end}`" for end, count in ends.items())
        + f" ({reason})"
        for reason, ends in reasons.items()
    )


def row(case: Case) -> str:
    """Return the line of the table."""
    linear = sum(isinstance(module, nn.Linear) for module in case.original.modules())
    runs_packed = set(packed_layers(case.packed)) == case.compressed and torch.equal(
        answer(case, case.packed), answer(case, case.dense)
    )
    cells = (
        case.architecture.name,
        f"`{type(case.original).__name__}`",
        f"{len(case.compressed)} of {linear}",
        dense_cell(case),
        "yes" if runs_packed else "no",
    )
    return f"| {' | '.join(cells)} |"


def documented_table() -> str:
    return PAGE.read_text().split(START)[1].split(END)[0].strip()


def test_the_page_says_what_is_found(case: Case) -> None:
    assert row(case) in documented_table().splitlines(), (
        f"run: python {Path(__file__).name} --write"
    )


def test_the_page_names_every_architecture() -> None:
    table = documented_table()
    assert table.startswith(f"{HEADER}\n")
    lines = table.removeprefix(HEADER).strip().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(ARCHITECTURES)


def write_page() -> None:
    """Replace the table of the page."""
    rows = []
    for architecture in ARCHITECTURES.values():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(make_case(architecture, Path(folder))))
    before, rest = PAGE.read_text().split(START)
    table = "\n".join([HEADER, *rows])
    PAGE.write_text(f"{before}{START}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write_page()
