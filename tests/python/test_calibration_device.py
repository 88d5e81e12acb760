"""Calibration and sensitivities on a GPU, as far as torch alone computes them: none is needed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import Distant, pretend_gpu

from calibration_toys import AMPLE, MODELS, calibration, collected, linear_layers, rows
from conftest import DATA, compress
from llava_fa import CompressionConfig, DeviceError, DeviceMemoryError, ResumeError, plan_checkpoint
from llava_fa.cli import main
from llava_fa.dense_model import load_dense_model, on_device_of
from llava_fa.moments import MeanSquares, SecondMoment

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer rows")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A GPU of torch's that computes on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pretend_gpu() as device:
        yield device


@pytest.fixture
def ran_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where each dense model was that saw the examples."""
    places: list[str] = []

    def recorded(model: Any, inputs: Any) -> Any:
        places.append(model.device.type)
        return on_device_of(model, inputs)

    for module in ("passes", "sensitivity"):
        monkeypatch.setattr(f"llava_fa.{module}.on_device_of", recorded)
    return places


class TestThePretence:
    def test_tensors_of_two_places_do_not_mix(self, gpu: torch.device) -> None:
        there, here = torch.ones(2, 3, device=gpu), torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            there.add_(here)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            torch.nn.Linear(3, 2)(there)
        assert torch.equal((there + here.to(gpu)).cpu(), torch.full((2, 3), 2.0))

    def test_copies_are_made(self, gpu: torch.device) -> None:
        values = torch.zeros(3)
        there = values.to(gpu)
        there += 1
        assert values.sum() == 0
        assert there.device == gpu
        assert there.to("cpu", torch.float64).dtype == torch.float64


class TestMoments:
    @pytest.mark.parametrize("kind", [MeanSquares, SecondMoment])
    def test_are_added_where_the_rows_are(self, kind: Any, gpu: torch.device) -> None:
        here, there = kind(6), kind(6, gpu)
        for part in rows(2500).split([1, 700, 1799]):
            here.add(part)
            there.add(part.to(gpu))
        assert isinstance(there._sum, Distant)
        assert not isinstance(there.mean(), Distant)
        assert torch.equal(here.mean(), there.mean())

    # Not that of Qwen3-VL, which looks at single elements in ways that the pretence does not have.
    @pytest.mark.parametrize("name", ["llava", "t5", "bert"])
    @pytest.mark.parametrize("memory", [AMPLE, 120_000])
    @pytest.mark.parametrize("full", [True, False])
    def test_of_a_model_are_those_of_the_cpu(
        self, name: str, memory: int, full: bool, tmp_path: Path, gpu: torch.device
    ) -> None:
        model, data = MODELS[name]()
        layers = linear_layers(model)
        found = []
        for device in (torch.device("cpu"), gpu):
            placed = deepcopy(model).to(device)
            assert placed.device == device
            folder = tmp_path / device.type
            source, passes = calibration(folder, placed, data, memory=memory, full=full)
            added = passes.collect(source.trace, [0], dict.fromkeys(layers, full))[0]
            assert added._sum.device == device
            _, traced = passes.trace(dict.fromkeys(layers, full), memory)
            assert {moment._sum.device for moment in traced.values()} <= {device}
            assert memory < AMPLE or traced
            found.append(collected(source, layers))
        for layer, moment in found[0].items():
            assert not isinstance(found[1][layer].values, Distant)
            assert torch.equal(moment.values, found[1][layer].values)


class TestCheckpoints:
    @pytest.mark.parametrize("order", ["one-pass", "sequential"])
    def test_the_output_is_that_of_the_cpu(
        self,
        order: str,
        llava_folder: Path,
        tmp_path: Path,
        gpu: torch.device,
        ran_on: list[str],
    ) -> None:
        options: dict[str, Any] = {"calibration_data": DATA, "calibration_order": order}
        options["calibration_memory"] = 150_000
        for device in ("cpu", "cuda"):
            compress(llava_folder, tmp_path / device, calibration_device=device, **options)
        assert ran_on
        assert ran_on == ["cpu"] * (len(ran_on) // 2) + ["cuda"] * (len(ran_on) // 2)
        file = "model.safetensors"
        assert (tmp_path / "cpu" / file).read_bytes() == (tmp_path / "cuda" / file).read_bytes()

    @pytest.mark.parametrize("sensitivity", ["matrix", "measured"])
    def test_the_plan_is_that_of_the_cpu(
        self, sensitivity: str, llava_folder: Path, gpu: torch.device, ran_on: list[str]
    ) -> None:
        plans = [
            plan_checkpoint(
                llava_folder,
                target_bits=3.0,
                calibration_data=DATA,
                sensitivity=sensitivity,
                calibration_device=device,
                progress=False,
            )
            for device in ("cpu", "cuda")
        ]
        assert ran_on
        assert ran_on == ["cpu"] * (len(ran_on) // 2) + ["cuda"] * (len(ran_on) // 2)
        assert plans[0].to_dict() == plans[1].to_dict()

    def test_planning_loads_one_model(
        self, llava_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[Any] = []

        def load(*arguments: Any, **options: Any) -> Any:
            loaded.append(load_dense_model(*arguments, **options))
            return loaded[-1]

        for module in ("planning", "calibration_run"):
            monkeypatch.setattr(f"llava_fa.{module}.load_dense_model", load)
        options: dict[str, Any] = {"calibration_data": DATA, "sensitivity": "measured"}
        plan_checkpoint(llava_folder, target_bits=3.0, progress=False, **options)
        assert len(loaded) == 1

    def test_a_run_is_not_continued_on_another_device(
        self, llama_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, gpu: torch.device
    ) -> None:
        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("llava_fa.compress.check_limit", stop)
            with pytest.raises(KeyboardInterrupt):
                compress(llama_folder, output, calibration_data=DATA, calibration_device="cuda")
        with pytest.raises(ResumeError):
            compress(llama_folder, output, calibration_data=DATA)


class TestErrors:
    def test_of_memory_name_the_remedies(
        self, llama_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, gpu: torch.device
    ) -> None:
        def full(*_: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 20 MiB")

        monkeypatch.setattr(SecondMoment, "add", full)
        with pytest.raises(DeviceMemoryError, match="20 MiB; the whole dense model") as found:
            compress(llama_folder, output, calibration_data=DATA, calibration_device="cuda")
        assert "--calibration-device cpu" in str(found.value)
        monkeypatch.undo()
        compress(llama_folder, output, CompressionConfig(), overwrite=True)

    def test_of_memory_in_the_middle_of_the_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("full")

        model, data = MODELS["llava"]()
        source, _ = calibration(tmp_path, model, data, memory=120_000)
        monkeypatch.setattr("llava_fa.passes._keeper", lambda received: full)
        with pytest.raises(DeviceMemoryError, match="full; the whole dense model"):
            collected(source, linear_layers(model))

    @without_gpu
    def test_torch_without_a_gpu(self, llama_folder: Path, output: Path) -> None:
        with pytest.raises(DeviceError, match="calibration_device is 'cuda', but torch"):
            compress(llama_folder, output, calibration_data=DATA, calibration_device="cuda")
        assert not output.exists()

    @pytest.mark.parametrize("device", ["mps", "tpu", "cuda:x"])
    def test_what_is_no_device(self, device: str, llama_folder: Path, output: Path) -> None:
        with pytest.raises(ValueError, match=rf"calibration_device is '{device}', expected 'cpu'"):
            compress(llama_folder, output, calibration_data=DATA, calibration_device=device)
        with pytest.raises(ValueError, match="calibration_device is"):
            plan_checkpoint(llama_folder, target_bits=3.0, calibration_device=device)

    @without_gpu
    @pytest.mark.parametrize("command", ["compress", "plan"])
    def test_of_the_command_line(
        self, command: str, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = [str(llama_folder), *([str(tmp_path / "out")] if command == "compress" else [])]
        options = ["--target-bits", "3", "--calibration-device", "cuda"]
        assert main([command, *places, *options]) != 0
        assert "choose calibration_device='cpu'" in capsys.readouterr().err
