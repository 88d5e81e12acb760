"""Every bench runs to its end on small sizes and writes the figures it promises."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDED = (
    "codec",
    "claims",
    "quality",
    "allocation",
    "allocation_calibrated",
    "compress_speed",
    "feedback_speed",
    "refine",
    "calibration_order",
    "decode_speed",
    "load",
    "fmvr",
    "fmvr_timing",
    "tf32",
)
VERDICTS = {"confirmed", "refuted", "not separable"}


@pytest.fixture(scope="module")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of the tiny architecture: the benches need no trained one."""
    from examples.tiny_lmm.architecture import Size, build_model, build_processor

    folder = tmp_path_factory.mktemp("model")
    size = Size(vision_layers=2, text_layers=1)
    build_model(size).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def run(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run a bench as a user would, in quick mode, and return its JSON."""
    path = folder / f"{name}.json"
    command = [sys.executable, "-m", f"bench.{name}", "--quick", "--json", str(path), *options]
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert path.with_suffix(".md").read_text().startswith(f"# {name}")
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["command"].startswith(f"python -m bench.{name}")
    assert {"processor", "cores", "python", "packages"} <= set(found["machine"])
    assert "date" not in json.dumps(found["machine"])
    return found


def test_codec(tmp_path: Path, untrained_model: Path) -> None:
    found = run("codec", tmp_path, "--model", str(untrained_model))
    rows = found["tables"]["Unit-power circular Gaussian"]
    assert len(rows) == 9
    assert found["worst_ratio_to_table"] > 0
    assert isinstance(found["reaches_table"], bool)
    assert [verdict["met"] in (True, False) for verdict in found["tables"]["Targets"]] == [True] * 4
    kinds = {
        row["weights"] for row in found["tables"]["Real spectra, ratio to the Gaussian figure"]
    }
    assert {"gaussian", "smooth", "tiny model, vision", "tiny model, language"} <= kinds


def test_claims(tmp_path: Path, untrained_model: Path) -> None:
    found = run("claims", tmp_path, "--model", str(untrained_model))
    rows = [row for table in found["tables"].values() for row in table]
    assert {row["verdict"] for row in rows} <= VERDICTS
    assert len(found["tables"]) == 7
    assert sum(found["verdicts"].values()) == len(rows)


def test_quality(tmp_path: Path, untrained_model: Path) -> None:
    found = run("quality", tmp_path, "--model", str(untrained_model))
    assert isinstance(found["targets_met"], bool)
    assert {"accuracy %", "questions", "weights compressed"} <= set(found["dense"])
    methods = {row["method"] for row in found["tables"]["Answers of the tiny model"]}
    assert {"ring, no data", "ring + ODC", "round to nearest g64", "NF4 g64"} <= methods
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_allocation(tmp_path: Path, untrained_model: Path) -> None:
    found = run("allocation", tmp_path, "--model", str(untrained_model))
    (row,) = found["tables"]["KL at every budget"]
    for rule in ("matrix", "size", "measured"):
        assert row[f"{rule} stored"] <= row["budget"]
        assert row[f"{rule} KL"] > 0
    assert {"least squares KL", "unbiased KL"} <= set(
        found["tables"]["Unbiased codes at uniform sizes"][0]
    )
    assert [verdict["met"] in (True, False) for verdict in found["tables"]["Targets"]] == [True]


def test_allocation_calibrated(tmp_path: Path, untrained_model: Path) -> None:
    found = run("allocation_calibrated", tmp_path, "--model", str(untrained_model))
    rows = found["tables"]["KL at every budget"]
    assert [row["odc"] for row in rows] == ["none", "spatial"]
    for row in rows:
        for choice in ("uniform", "matrix"):
            assert row[f"{choice} stored"] <= row["budget"]
            assert row[f"{choice} KL"] > 0
    for row in found["tables"]["What could be counted"]:
        for choice in ("matrix", "weight errors", "output errors", "size", "measured"):
            assert row[f"{choice} stored"] <= row["budget"]
    (heading,) = [name for name in found["tables"] if name.startswith("Output errors")]
    for row in found["tables"][heading]:
        assert 0.5 < row["measured / predicted"] < 2
    assert len(found["tables"]["Targets"]) == 4


def test_calibration_order(tmp_path: Path, untrained_model: Path) -> None:
    found = run("calibration_order", tmp_path, "--model", str(untrained_model))
    (row,) = found["tables"]["KL of both orders"]
    assert row["one-pass KL"] > 0
    assert row["sequential KL"] > 0


def test_refine(tmp_path: Path, untrained_model: Path) -> None:
    found = run("refine", tmp_path, "--model", str(untrained_model))
    (row,) = found["tables"]["Before and after refinement"]
    assert float(row["held-out ratio"]) <= 1
    assert row["KL after"] > 0
    assert row["values trained"] > 1000
    assert [verdict["met"] in (True, False) for verdict in found["tables"]["Targets"]] == [True]


def test_tf32(tmp_path: Path) -> None:
    rows = run("tf32", tmp_path)["tables"]["Errors"]
    assert len(rows) == 13
    for row in rows[:-1]:
        assert row["ratio"] == pytest.approx(1, abs=0.05)
    assert rows[-1]["float32"] < 1e-6 < rows[-1]["TF32"] < 1e-3  # so operands are rounded


def test_fmvr(tmp_path: Path, untrained_model: Path) -> None:
    found = run("fmvr", tmp_path, "--model", str(untrained_model))
    tables = found["tables"]
    variants = {row["variant"] for row in tables["Accuracy"]}
    assert variants == {"FMVR", "plain pooling"}
    assert [row["visual tokens"] for row in tables["FMVR against the others"]] == [144, 36, 9, 1]
    verdicts = tables["Targets"]
    assert [verdict["met"] in (True, False) for verdict in verdicts] == [True] * 9
    assert verdicts[-1]["met"]  # follows from formulas alone
    for chart in ("fmvr.png", "fmvr_parts.png"):
        assert (tmp_path / chart).stat().st_size > 1000


def test_fmvr_timing(tmp_path: Path) -> None:
    tables = run("fmvr_timing", tmp_path)["tables"]
    timing = tables["Time to the first token, random model"]
    weights = ["dense float32", "ring 4", "trellis 2"]
    scales = [576, 144, 36, 9, 1]
    found = [(row["weights"], row["visual tokens"]) for row in timing]
    assert found == [(name, scale) for name in weights for scale in scales]
    assert all(row["seconds"] > 0 for row in timing)
    assert len(tables["Targets"]) == 12  # all scales but the full one


def test_compress_speed(tmp_path: Path) -> None:
    found = run("compress_speed", tmp_path)
    assert found["speedup"] > 0
    assert found["projected_minutes"] > 0
    assert found["weights"] == 6_798_966_784
    assert {"sgemm_gflops", "copy_gbytes_per_second"} == set(found["limits"])
    compared = found["tables"]["Side by side"]
    assert compared[0]["library error"] == pytest.approx(compared[0]["plain torch error"], rel=0.05)


def test_decode_speed(tmp_path: Path) -> None:
    found = run("decode_speed", tmp_path)
    assert found["read_gbytes_per_second"] > 0
    assert all(
        row["bfloat16 ms"] > 0 and row["of the limit"] > 0 for row in found["tables"]["One token"]
    )
    packed = [row for row in found["tables"]["A model"] if not row["model"].startswith("dense")]
    assert all(row["tokens per s"] > 0 for row in packed)
    assert len(packed) == 10


def test_load(tmp_path: Path) -> None:
    found = run("load", tmp_path)
    rows = {row["model"]: row for row in found["tables"]["Loading"]}
    assert len(rows) == 5
    assert rows["dense"]["loading over dense"] == rows["dense"]["all pages over dense"] == 1
    assert all(row["all pages s"] > row["loading s"] > 0 for row in rows.values())
    assert len(found["tables"]["Targets"]) == 9


@pytest.mark.parametrize(
    "name",
    RECORDED,
)
def test_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"bench.{name}").main()
    assert stopped.value.code == 0
    assert f"usage: python -m bench.{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    RECORDED,
)
def test_committed_results_name_their_command_and_machine(name: str) -> None:
    path = ROOT / "bench" / "results" / f"{name}.json"
    record = json.loads(path.read_text())
    assert record["command"].startswith(f"python -m bench.{name}")
    assert "--quick" not in record["command"]
    assert record["machine"]["cores"] >= 1
    assert path.with_suffix(".md").exists()
