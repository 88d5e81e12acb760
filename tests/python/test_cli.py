"""The command line: what it prints, what it returns, and that an interruption can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import llama_model, read_all
from llava_fa.cli import build_parser, main

COMMANDS = (
    "compress",
    "plan",
    "refine",
    "decompress",
    "inspect",
    "verify",
    "generate",
    "serve",
    "demo",
)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_an_example(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            run(command, "--help")
        assert caught.value.code == 0
        assert f"example:\n  llava-fa {command}" in capsys.readouterr().out

    def test_the_overview_names_all_commands(self) -> None:
        text = build_parser().format_help()
        assert all(f"llava-fa {command}" in text for command in COMMANDS)

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["nonsense"],
            ["compress"],
            ["verify", "a", "b"],
            # Planning must not take options that it would ignore.
            ["plan", "a", "--target-bits", "3", "--sequential"],
        ],
    )
    def test_wrong_usage_returns_2(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


class TestPlan:
    def test_prints_saves_and_draws(
        self, llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved, drawn = tmp_path / "plan.json", tmp_path / "plan.png"
        options = ("--target-bits", 4, "--output", saved, "--chart", drawn)
        assert run("plan", llava_folder, *options) == 0
        out = capsys.readouterr().out
        assert "model.vision_tower.encoder.layers.*.mlp.fc1" in out
        assert "stored bits per weight" in out
        chart = out[out.index("code bits over depth") :].splitlines()
        row = next(line for line in chart if line.startswith("  self_attn.q_proj"))
        assert len(row.split()) == 3  # two layers of the vision tower
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert run("compress", llava_folder, tmp_path / "out", "--plan", saved) == 0
        assert "stored bits per weight" in capsys.readouterr().out

    def test_json(
        self, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved = tmp_path / "plan.json"
        options = ("--target-size", "20KB", "--output", saved, "--json", "--codec", "product")
        assert run("plan", llama_folder, *options) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == json.loads(saved.read_text())
        assert printed["target"] == {"nbytes": 20_000}
        assert printed["config"]["codec"] == "product"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--target-bits 3 --bits 3", "--bits contradicts"),
            ("--plan plan.json --bits 3", "so --bits cannot stand beside"),
            ("--plan plan.json --no-signs --factor-bits 4", "--factor-bits, --signs cannot"),
            ("--plan plan.json --target-size 1MB", "so a size target cannot stand"),
            ("--plan plan.json --recipe r.yaml", "so --recipe cannot stand"),
        ],
    )
    def test_contradictions(
        self,
        llama_folder: Path,
        tmp_path: Path,
        options: str,
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run("compress", llama_folder, tmp_path / "out", *options.split()) == 2
        assert message in capsys.readouterr().err

    def test_impossible_target(
        self, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        saved = tmp_path / "plan.json"
        assert run("plan", llama_folder, "--target-bits", 0.1, "--output", saved) == 1
        assert "smallest possible average" in capsys.readouterr().err
        assert not saved.exists()


class TestCompress:
    def test_table_and_files(
        self, llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("compress", llava_folder, tmp_path / "out", "--bits", 3) == 0
        out = capsys.readouterr().out
        assert "model.vision_tower.encoder.layers.*.mlp.fc1" in out
        assert "stored bits per weight" in out
        assert (tmp_path / "out" / "config.json").exists()

    def test_json_is_all_there_is_on_stdout(
        self, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("compress", llama_folder, tmp_path / "out", "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["nbytes_after"] < report["nbytes_before"]

    def test_settings_arrive(self, llama_folder: Path, tmp_path: Path) -> None:
        options = (
            "--bits 2.5 --codec product --rank 2 --factor-bits 6 --odc none --no-signs --seed 3 "
            "--calibration diagonal"
        )
        output = tmp_path / "out"
        assert run("compress", llama_folder, output, "--no-progress", *options.split()) == 0
        config = json.loads((output / "config.json").read_text())["quantization_config"]["config"]
        wanted = {
            "bits": 2.5,
            "codec": "product",
            "rank": 2,
            "factor_bits": 6,
            "odc": "none",
            "calibration": "diagonal",
            "signs": False,
            "seed": 3,
        }
        assert {key: config[key] for key in wanted} == wanted

    @pytest.mark.filterwarnings("ignore:.*fewer rows")
    def test_calibration_is_saved_and_reused(
        self, processor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        examples = processor_folder.with_name("data") / "examples.jsonl"
        moments = tmp_path / "moments.safetensors"
        collect = ("--calib", examples, "--calibration-memory", "50KB", "--save-calibration")
        assert run("compress", processor_folder, tmp_path / "a", *collect, moments) == 0
        assert run("compress", processor_folder, tmp_path / "b", "--load-calibration", moments) == 0
        assert capsys.readouterr().out.count("21 matrices with full second moments") == 2
        first, second = read_all(tmp_path / "a"), read_all(tmp_path / "b")
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    @pytest.mark.filterwarnings("ignore:.*fewer rows")
    @pytest.mark.parametrize("order", ["one-pass", "sequential"])
    def test_calibration_order(self, processor_folder: Path, tmp_path: Path, order: str) -> None:
        examples = processor_folder.with_name("data") / "examples.jsonl"
        output = tmp_path / "out"
        assert run("compress", processor_folder, output, "--calib", examples, f"--{order}") == 0
        manifest = json.loads((output / "llava_fa_manifest.json").read_text())
        assert manifest["request"]["settings"]["calibration"]["order"] == order

    def test_one_order_only(self, llama_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as caught:
            run("compress", llama_folder, tmp_path / "out", "--sequential", "--one-pass")
        assert caught.value.code == 2

    def test_recipe_and_threads(self, llama_folder: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("- match: mlp\n  skip: true\n")
        output = tmp_path / "out"
        assert run("compress", llama_folder, output, "--recipe", recipe, "--threads", 1) == 0
        assert "model.layers.0.mlp.up_proj.weight" in read_all(output)

    @pytest.mark.parametrize(
        "options", [["--bits", "9"], ["--codec", "nope"], ["--odc", "x"], ["--threads", "0"]]
    )
    def test_wrong_settings_return_2(
        self,
        llama_folder: Path,
        tmp_path: Path,
        options: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run("compress", llama_folder, tmp_path / "out", *options) == 2
        assert "usage error: " in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_errors_return_1_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("compress", tmp_path / "absent", tmp_path / "out") == 1
        err = capsys.readouterr().err.strip()
        assert err.startswith("error: ")
        assert "\n" not in err

    def test_nonfinite_skip_warns_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = llama_model()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
        model.save_pretrained(tmp_path / "in")
        capsys.readouterr()
        arguments = ("compress", tmp_path / "in", tmp_path / "out", "--no-progress")
        assert run(*arguments) == 1
        assert "--on-nonfinite skip" in capsys.readouterr().err
        assert run(*arguments, "--on-nonfinite", "skip", "--overwrite") == 0
        err = capsys.readouterr().err
        assert "warning: " in err
        assert "kept dense" in err


class TestOthers:
    def test_decompress(
        self, packed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "dense"
        assert run("decompress", packed_folder, output, "--dtype", "bfloat16") == 0
        assert {tensor.dtype for tensor in read_all(output).values()} == {torch.bfloat16}
        assert run("decompress", packed_folder, output) == 1
        assert "--overwrite" in capsys.readouterr().err

    def test_inspect(self, packed_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("inspect", packed_folder) == 0
        assert "(kept as stored)" in capsys.readouterr().out
        assert run("inspect", packed_folder, "--json") == 0
        assert json.loads(capsys.readouterr().out)["ratio"] > 1

    def test_verify(
        self,
        packed_folder: Path,
        llava_folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run("verify", packed_folder, "--source", llava_folder) == 0
        assert "intact" in capsys.readouterr().out
        damaged = Path(shutil.copytree(packed_folder, tmp_path / "damaged"))
        file = min(damaged.glob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
        assert run("verify", damaged) == 1
        assert f"FAILED {file.name}" in capsys.readouterr().out
        assert run("verify", damaged, "--json") == 1
        assert json.loads(capsys.readouterr().out)["problems"][0]["file"] == file.name

    def test_generate_without_processor(
        self, packed_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("generate", packed_folder, "--prompt", "hello") == 1
        assert "no processor" in capsys.readouterr().err

    def test_generate(
        self, processor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output, image = tmp_path / "out", processor_folder.with_name("data") / "red.png"
        assert run("compress", processor_folder, output, "--bits", 5, "--no-progress") == 0
        capsys.readouterr()
        arguments = ("--image", image, "--prompt", "w1 w2", "--max-new-tokens", 3)
        assert run("generate", output, *arguments) == 0
        words = capsys.readouterr().out.split()
        assert 1 <= len(words) <= 3
        assert run("generate", output, *arguments, "--runtime", "packed") == 0
        assert capsys.readouterr().out.split() == words
        assert run("generate", output, *arguments, "--json") == 0
        assert json.loads(capsys.readouterr().out)["answer"].split() == words
        assert run("generate", output, "--prompt", "w1", "--image", tmp_path / "no.png") == 1
        assert "no such image" in capsys.readouterr().err

    def test_demo_elsewhere(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("demo", "--example", tmp_path) == 1
        assert "--example" in capsys.readouterr().err


def test_ctrl_c_leaves_a_resumable_state(tmp_path: Path) -> None:
    """A real interrupt of a real process, at whatever moment it hits."""
    source, output = tmp_path / "in", tmp_path / "out"
    llama_model(num_hidden_layers=12).save_pretrained(source)
    command = [sys.executable, "-m", "llava_fa.cli", "compress", str(source), str(output)]
    # A shell's background jobs inherit an ignored SIGINT, and Python then leaves it ignored.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 180
    while not list(output.glob(".llava_fa_partial/0*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "run the same command to continue" in err
    assert not (output / "config.json").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert run("verify", output, "--source", source) == 0
