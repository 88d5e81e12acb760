"""The demonstration, on an example folder small enough for a test."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import pytest
from safetensors.torch import save_file

from llava_fa import load_model
from llava_fa.cli import main
from llava_fa.demo import run_demo
from llava_fa.errors import CheckpointError
from llava_fa.fmvr import attach_fmvr

BENCHMARK = """
    def benchmark_questions(count):
        return list(range(count))
"""
EVALUATE = """
    from types import SimpleNamespace as Namespace
    import torch

    def answer_distributions(model, processor, questions, progress):
        layer = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
        with torch.inference_mode():
            return len(questions), float(layer(torch.ones(1, layer.in_features)).abs().sum())

    def evaluate(answers, questions):
        return Namespace(accuracy=Namespace(value=answers[0] / 10 + float(answers[1] > 0)))

    def compare(reference, own, questions):
        assert reference[0] == own[0] == len(questions)
        assert reference[1] != own[1]  # one is dense, the other was compressed
        accuracy = lambda value: Namespace(accuracy=Namespace(value=value))
        return Namespace(kl=0.125, agreement=Namespace(value=0.5),
                         evaluation=accuracy(0.75), reference=accuracy(0.875))
"""


@pytest.fixture
def example(tmp_path: Path, processor_folder: Path) -> Path:
    # A name of its own, because Python keeps imported modules by name.
    folder = tmp_path / f"examples_of_{tmp_path.name}" / "tiny"
    shutil.copytree(processor_folder, folder / "model")
    images = folder.parent / "images"
    images.mkdir()
    data = processor_folder.with_name("data")
    lines = []
    for name in ("red.png", "blue.png", "red.png"):
        shutil.copy(data / name, images)
        lines.append(json.dumps({"image": name, "text": f"w1 {len(lines)}"}))
    (images / "questions.jsonl").write_text("\n".join(lines))
    (folder / "benchmark.py").write_text(textwrap.dedent(BENCHMARK))
    (folder / "evaluate.py").write_text(textwrap.dedent(EVALUATE))
    return folder


def test_figures_and_three_answers(example: Path, tmp_path: Path) -> None:
    result = run_demo(example, questions=7, progress=False)
    assert result.questions == 7
    assert result.accuracy == (0.875, 0.75)
    assert result.folder_bytes[1] < result.folder_bytes[0]
    assert [item[0] for item in result.answers] == ["red.png", "blue.png", "red.png"]
    table = result.table()
    assert "0.8750" in table
    assert "0.12500" in table
    assert json.loads(result.to_json())["kl"] == 0.125


def test_a_trained_pyramid_gives_a_table_of_scales(example: Path) -> None:
    assert run_demo(example, questions=8, progress=False).scales == ()
    model = attach_fmvr(load_model(example / "model"))
    save_file(model.fmvr.state_dict(), example / "pyramid.safetensors")
    result = run_demo(example, questions=8, progress=False)
    assert [scale for scale, _ in result.scales] == [4, 1]
    assert all(found == (1.2, 1.2) for _, found in result.scales)  # of two questions
    table = result.table()
    lines = table.splitlines()
    head = next(line for line in lines if line.startswith("accuracy at visual tokens"))
    assert head.split()[-4:] == ["16", "bits", f"{result.report.bits_per_weight:.3g}", "bits"]
    assert lines[lines.index(head) + 2].split() == ["1", "1.2000", "1.2000"]
    assert json.loads(result.to_json())["accuracy by visual tokens"]["4"] == [1.2, 1.2]


def test_the_compressed_model_can_be_kept(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "kept"
    for _ in range(2):  # the second replaces the first
        assert main(["demo", "--example", str(example), "--output", str(output), "--json"]) == 0
    assert (output / "config.json").exists()
    assert json.loads(capsys.readouterr().out.split("}\n{")[0] + "}")["questions"] == 2000


@pytest.mark.parametrize("missing", ["model", "evaluate.py", "../images"])
def test_what_is_missing_is_named(example: Path, missing: str) -> None:
    path = example / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no model|no evaluation|questions\.jsonl"):
        run_demo(example, questions=1, progress=False)
