"""Refinement by distillation: what is compared, the training, and what is written."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import (
    compress,
    edit_tensor,
    folder_bytes,
    llama_model,
    llava_inputs,
    llava_model,
    read_all,
)
from llava_fa import (
    CheckpointError,
    CompressionConfig,
    NonFiniteError,
    RefinementOptions,
    RefinementReport,
    load_model,
    refine_checkpoint,
    verify_checkpoint,
)
from llava_fa.cli import main
from llava_fa.distillation import split
from llava_fa.distillation_targets import Example, examples_of
from llava_fa.trainable_matrix import FACTORS, SCALES

Refined = tuple[Path, RefinementReport]
QUICK = RefinementOptions(steps=12, learning_rate=1e-2, batch_size=4)
EXAMPLES = [llava_inputs(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def two_bits(llava_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``llava_folder`` at 2 bits with 8-bit factors of rank 2. Read only."""
    folder = tmp_path_factory.mktemp("two_bits") / "packed"
    compress(llava_folder, folder, CompressionConfig(bits=2, rank=2))
    return folder


def refine(packed: Path, dense: Path, output: Path, **options: Any) -> RefinementReport:
    """Refine quickly, without progress bars."""
    data = options.pop("data", EXAMPLES)
    training = options.pop("options", QUICK)
    return refine_checkpoint(packed, dense, output, data, training, progress=False, **options)


@pytest.fixture(scope="module")
def refined(
    two_bits: Path, llava_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Refined:
    """``two_bits``, refined. Read only."""
    folder = tmp_path_factory.mktemp("refined") / "out"
    return folder, refine(two_bits, llava_folder, folder)


class Echo(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.config = type("Config", (), {"image_token_id": 9})()
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, **_inputs: Any) -> Any:
        return type("Output", (), {"logits": self.logits})()


class TestTargets:
    TOKENS = torch.tensor([[9, 9, 1, 2, 3], [0, 9, 9, 4, 5]])
    MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])

    def positions(self, rule: str = "text", **more: Any) -> list[list[int]]:
        inputs = {"input_ids": self.TOKENS, "attention_mask": self.MASK, **more}
        (example,) = examples_of(Echo(torch.zeros(2, 5, 7)), [inputs], rule)
        return example.positions.int().tolist()

    def test_text_without_padding_and_images(self) -> None:
        assert self.positions() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]

    def test_last(self) -> None:
        assert self.positions("last") == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]

    def test_last_before_padding_on_the_right(self) -> None:
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
        found = self.positions("last", attention_mask=mask)
        assert found == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]

    @pytest.mark.parametrize("rule", ["text", "last"])
    def test_labels_decide(self, rule: str) -> None:
        labels = torch.tensor([[-100, -100, -100, -100, 3], [-100, -100, -100, 4, 5]])
        assert self.positions(rule, labels=labels) == [[0, 0, 0, 1, 0], [0, 0, 1, 1, 0]]

    def test_divergence_is_that_of_the_definition(self) -> None:
        rng = np.random.default_rng(0)
        dense, packed = rng.normal(size=(2, 2, 5, 7))
        inputs = {"input_ids": self.TOKENS, "attention_mask": self.MASK}
        (example,) = examples_of(Echo(torch.tensor(dense)), [inputs], "text")
        p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (dense, packed))
        kept = example.positions.numpy()
        expected = (p * np.log(p / q)).sum(-1)[kept].sum()
        found = float(example.divergence(Echo(torch.tensor(packed))).detach())
        assert found == pytest.approx(expected, rel=1e-5)
        assert float(example.divergence(Echo(torch.tensor(dense))).detach()) == 0.0

    def test_the_last_examples_are_held_out(self) -> None:
        examples = [Example({"number": i}, *2 * [torch.zeros(1)]) for i in range(6)]

        def numbers(count: int, share: float) -> list[list[int]]:
            parts = split(examples[:count], RefinementOptions(held_out=share))
            return [[example.inputs["number"] for example in part] for part in parts]

        assert numbers(6, 0.25) == [[0, 1, 2, 3], [4, 5]]
        assert numbers(2, 0.01) == [[0], [1]]
        assert numbers(2, 0.99) == [[0], [1]]


class TestRefine:
    def test_held_out_divergence_falls(self, refined: Refined) -> None:
        _, report = refined
        assert report.improved
        assert report.outcome.after < 0.9 * report.outcome.before
        assert (report.examples, report.held_out) == (6, 2)
        assert "kept step" in report.summary()

    def test_only_scales_and_factors_change(self, two_bits: Path, refined: Refined) -> None:
        before, after = read_all(two_bits), read_all(refined[0])
        assert before.keys() == after.keys()
        changed = set()
        for name, tensor in before.items():
            assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
            if not torch.equal(tensor, after[name]):
                changed.add(name.rpartition(".")[2])
        assert changed <= {*SCALES, *FACTORS, *(f"{name}_scale" for name in FACTORS)}
        assert changed >= {"row_scale", *(f"{name}_scale" for name in FACTORS)}

    def test_loads_and_has_the_reported_divergence(
        self, llava_folder: Path, refined: Refined
    ) -> None:
        folder, report = refined
        examples = examples_of(load_model(llava_folder, dtype="float32"), EXAMPLES, "text")
        model = load_model(folder, dtype="float32")
        held_out = examples[-report.held_out :]
        with torch.no_grad():
            total = sum(float(example.divergence(model)) for example in held_out)
        count = sum(example.count for example in held_out)
        # float32 logits of order one: the divergence, of order 1e-4, keeps about three digits
        assert total / count == pytest.approx(report.outcome.after, rel=1e-2)

    def test_verifies_with_new_errors(
        self, two_bits: Path, llava_folder: Path, refined: Refined
    ) -> None:
        folder, report = refined
        result = verify_checkpoint(folder, llava_folder)
        assert result.ok
        assert result.hashed
        old = {row.name: row for row in verify_checkpoint(two_bits).report.compressed}
        for row in report.compression.compressed:
            assert row.nbytes_after == old[row.name].nbytes_after
            if "language_model" in row.name:  # the last layer of the vision tower is not used
                assert row.relative_error != old[row.name].relative_error

    def test_is_noted(self, two_bits: Path, refined: Refined) -> None:
        folder, report = refined
        before, after = (
            json.loads((path / "config.json").read_text())["quantization_config"]
            for path in (two_bits, folder)
        )
        assert after.pop("refinement") == report.to_dict()
        assert after == before
        assert "| refinement | trained" in (folder / "README.md").read_text()
        assert "| refinement | none" in (two_bits / "README.md").read_text()
        assert (folder / "tokenizer_config.json").exists()
        json.loads(report.to_json())

    def test_same_seed_same_bytes(
        self,
        two_bits: Path,
        llava_folder: Path,
        refined: Refined,
        output: Path,
    ) -> None:
        refine(two_bits, llava_folder, output)
        assert folder_bytes(output) == folder_bytes(refined[0])

    def test_other_seed_other_values(
        self,
        two_bits: Path,
        llava_folder: Path,
        refined: Refined,
        output: Path,
    ) -> None:
        options = RefinementOptions(steps=12, learning_rate=1e-2, batch_size=4, seed=1)
        refine(two_bits, llava_folder, output, options=options)
        name = next(name for name in read_all(output) if name.endswith(".row_scale"))
        assert not torch.equal(read_all(output)[name], read_all(refined[0])[name])

    def test_never_worse_than_the_start(
        self, two_bits: Path, llava_folder: Path, output: Path
    ) -> None:
        wild = RefinementOptions(steps=2, learning_rate=3.0)
        with pytest.warns(UserWarning, match="no step lowered the divergence"):
            report = refine(two_bits, llava_folder, output, options=wild)
        assert not report.improved
        assert report.outcome.after == report.outcome.before
        assert "no step was better" in report.summary()
        before, after = read_all(two_bits), read_all(output)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

    def test_can_be_refined_again(self, llava_folder: Path, refined: Refined, output: Path) -> None:
        again = refine(refined[0], llava_folder, output)
        assert again.outcome.before == pytest.approx(refined[1].outcome.after, rel=1e-3)

    def test_old_names_in_the_dense_folder(
        self,
        two_bits: Path,
        old_hub_folder: Path,
        refined: Refined,
        output: Path,
    ) -> None:
        refine(two_bits, old_hub_folder, output)
        for name, tensor in read_all(refined[0]).items():
            assert torch.equal(tensor, read_all(output)[name])

    def test_bfloat16_and_channel_scales(self, tmp_path: Path) -> None:
        llama_model(hidden_size=64, intermediate_size=96).save_pretrained(tmp_path / "dense")
        inputs = [{"input_ids": torch.randint(0, 40, (2, 12))} for _ in range(4)]
        compress(tmp_path / "dense", tmp_path / "packed", CompressionConfig(bits=1))
        name = "model.layers.0.mlp.up_proj.weight"
        assert name.removesuffix("weight") + "codes" in read_all(tmp_path / "packed")
        report = refine(
            tmp_path / "packed", tmp_path / "dense", tmp_path / "out", data=inputs, dtype="bfloat16"
        )
        assert math.isfinite(report.outcome.after)

    def test_overwrite(self, two_bits: Path, llava_folder: Path, output: Path) -> None:
        output.mkdir()
        (output / "config.json").write_text("{}")
        (output / "mine.txt").write_text("stays")
        with pytest.raises(CheckpointError, match="not empty"):
            refine(two_bits, llava_folder, output)
        refine(two_bits, llava_folder, output, overwrite=True, options=RefinementOptions(steps=1))
        assert (output / "mine.txt").read_text() == "stays"
        assert load_file(output / "model.safetensors")


class TestBadInput:
    def test_packed_is_dense(self, llava_folder: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match="not a checkpoint that llava-fa compressed"):
            refine(llava_folder, llava_folder, output)

    def test_dense_is_packed(self, two_bits: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match="is quantized itself"):
            refine(two_bits, two_bits, output)

    def test_other_architecture(self, two_bits: Path, llama_folder: Path, output: Path) -> None:
        with pytest.raises(CheckpointError, match=r"model_type is 'llama'.*is 'llava'"):
            refine(two_bits, llama_folder, output)

    def test_other_shape_names_the_tensor(
        self, llama_folder: Path, output: Path, tmp_path: Path
    ) -> None:
        compress(llama_folder, tmp_path / "packed")
        llama_model(intermediate_size=32).save_pretrained(tmp_path / "other")
        message = r"mlp\.\w+_proj\.weight has shape \[.*, the compressed .*mlp\.\w+_proj \["
        with pytest.raises(CheckpointError, match=message):
            refine(tmp_path / "packed", tmp_path / "other", output)

    def test_fewer_layers_names_the_layer(
        self, llama_folder: Path, output: Path, tmp_path: Path
    ) -> None:
        llama_model(num_hidden_layers=2).save_pretrained(tmp_path / "deep")
        compress(tmp_path / "deep", tmp_path / "packed")
        with pytest.raises(
            CheckpointError, match=r"no weight of a linear layer model\.layers\.1\."
        ):
            refine(tmp_path / "packed", llama_folder, output)

    def test_other_vocabulary(self, llama_folder: Path, output: Path, tmp_path: Path) -> None:
        compress(llama_folder, tmp_path / "packed")
        llama_model(vocab_size=48).save_pretrained(tmp_path / "other")
        inputs = [{"input_ids": torch.arange(6)[None]}] * 2
        with pytest.raises(CheckpointError, match="answers with 48 tokens, the packed one with 40"):
            refine(tmp_path / "packed", tmp_path / "other", output, data=inputs)
        assert not output.exists() or not list(output.iterdir())

    @pytest.mark.parametrize(("count", "message"), [(0, "no examples"), (1, "at least 2")])
    def test_too_few_examples(
        self, two_bits: Path, llava_folder: Path, output: Path, count: int, message: str
    ) -> None:
        with pytest.raises(CheckpointError, match=message):
            refine(two_bits, llava_folder, output, data=EXAMPLES[:count])

    def test_example_without_text(self, two_bits: Path, llava_folder: Path, output: Path) -> None:
        bare = {**EXAMPLES[0], "labels": torch.full((1, 10), -100)}
        with pytest.raises(CheckpointError, match="calibration example 2 has no token to compare"):
            refine(two_bits, llava_folder, output, data=[EXAMPLES[0], bare])

    def test_example_without_tokens(self, two_bits: Path, llava_folder: Path, output: Path) -> None:
        images = {"pixel_values": EXAMPLES[0]["pixel_values"]}
        with pytest.raises(
            CheckpointError, match=r"example 1 has \['pixel_values'\], expected input"
        ):
            refine(two_bits, llava_folder, output, data=[images, EXAMPLES[0]])

    @pytest.mark.parametrize(
        ("side", "message"), [("dense", "dense model's"), ("packed", "step 0")]
    )
    def test_nan(self, output: Path, tmp_path: Path, side: str, message: str) -> None:
        llava_model().save_pretrained(tmp_path / "dense")
        compress(tmp_path / "dense", tmp_path / "packed")
        name = next(name for name in read_all(tmp_path / side) if "embed_tokens" in name)
        edit_tensor(tmp_path / side, name, lambda tensor: tensor * math.nan)
        with pytest.raises(NonFiniteError, match=message):
            refine(tmp_path / "packed", tmp_path / "dense", output)
        assert not output.exists() or not list(output.iterdir())

    def test_divergence_during_training(
        self, two_bits: Path, llava_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spoil(optimizer: torch.optim.AdamW) -> None:
            optimizer.param_groups[0]["params"][0].data.fill_(math.nan)

        monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
        with pytest.raises(NonFiniteError, match="lower the learning rate"):
            refine(two_bits, llava_folder, output)

    @pytest.mark.parametrize("place", ["two_bits", "llava_folder"])
    def test_output_inside_a_source(
        self, two_bits: Path, llava_folder: Path, place: str, request: pytest.FixtureRequest
    ) -> None:
        with pytest.raises(CheckpointError, match="must not be the source folder"):
            refine(two_bits, llava_folder, request.getfixturevalue(place) / "inside")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": 0},
            {"batch_size": 0},
            {"learning_rate": 0.0},
            {"learning_rate": math.nan},
            {"weight_decay": -1.0},
            {"held_out": 0.0},
            {"held_out": 1.0},
            {"positions": "all"},
        ],
        ids=str,
    )
    def test_options(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RefinementOptions(**wrong)

    def test_dtype(self, two_bits: Path, llava_folder: Path, output: Path) -> None:
        with pytest.raises(ValueError, match="dtype must be one of"):
            refine(two_bits, llava_folder, output, dtype="int8")

    def test_interrupted_training_leaves_nothing(
        self, two_bits: Path, llava_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("llava_fa.refine.train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            refine(two_bits, llava_folder, output)
        assert not list(output.iterdir())
        refine_options = RefinementOptions(steps=1)
        monkeypatch.undo()
        refine(two_bits, llava_folder, output, options=refine_options)
        assert verify_checkpoint(output).ok


class TestCommandLine:
    def test_refines(
        self, processor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        compress(processor_folder, tmp_path / "packed", CompressionConfig(bits=2))
        data = processor_folder.with_name("data") / "examples.jsonl"
        words = ["refine", tmp_path / "packed", processor_folder, tmp_path / "out", "--calib", data]
        options = ["--steps", "6", "--learning-rate", "0.01", "--batch-size", "2", "--no-progress"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main([*map(str, words), *options, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["examples"] == 3
        assert found["held_out_examples"] == 1
        assert found["options"]["steps"] == 6
        assert verify_checkpoint(tmp_path / "out", processor_folder).ok

    def test_errors_are_one_line(
        self, llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["refine", str(llava_folder), str(llava_folder), str(tmp_path / "out")]
        assert main([*words, "--calib", "missing.jsonl"]) == 1
        assert "error: " in capsys.readouterr().err

    def test_defaults_are_those_of_the_library(self) -> None:
        from llava_fa.cli import build_parser

        arguments = build_parser().parse_args(["refine", "p", "d", "o", "--calib", "x"])
        assert {key: getattr(arguments, key) for key in RefinementOptions().to_dict()} == (
            RefinementOptions().to_dict()
        )
