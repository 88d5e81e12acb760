"""The machinery of the comparison: kept results, rows, peers' files, targets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import baselines, matrices, methods, quality, score_store
from bench.methods import Method, Skipped
from bench.peers import rows, task
from bench.quality_points import Laboratory, Point, Sample, measure_all
from bench.quality_targets import targets
from bench.score_store import Store, hash_of_files, hash_of_tensors, key_of
from bench.tiny_model import Candidate, Judge, Score

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    from examples.tiny_lmm.architecture import Size, build_model, build_processor

    folder = tmp_path_factory.mktemp("model")
    build_model(Size(vision_layers=1, text_layers=1)).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return Judge(folder, 12)


def test_store_returns_what_was_put_and_keeps_nothing_without_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert store.get("key") is None
    store.put("key", {"x": np.arange(3), "y": np.array(0.5)})
    found = Store(tmp_path / "new").get("key")
    assert found is not None
    assert found["x"].tolist() == [0, 1, 2]
    assert float(found["y"]) == 0.5
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]
    Store(None).put("key", {"x": np.arange(3)})
    assert Store(None).get("key") is None


def test_keys_tell_settings_tensors_and_code_apart(tmp_path: Path) -> None:
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=1, b=3)
    one = {"w": torch.tensor([0.0, 1.0])}
    assert hash_of_tensors(one) == hash_of_tensors({"w": torch.tensor([0.0, 1.0])})
    others = ({"v": one["w"]}, {"w": one["w"].double()}, {"w": one["w"][None]}, {"w": -one["w"]})
    assert len({hash_of_tensors(other) for other in (one, *others)}) == 5
    code = tmp_path / "code.py"
    code.write_text("a")
    before = hash_of_files([code])
    code.write_text("b")
    assert hash_of_files([code]) != before


def test_the_cache_is_not_tracked() -> None:
    inside = score_store.CACHE.relative_to(ROOT)
    assert f"/{inside.as_posix()}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_output_errors_are_those_of_the_outputs(judge: Judge) -> None:
    name = next(iter(judge.weights))
    weight = judge.weights[name]
    x = torch.randn(50, weight.shape[1], dtype=torch.float64)
    replaced = baselines.round_to_nearest(weight, 3).dense
    error = judge.output_errors({name: replaced}, {name: x.T @ x / len(x)})[name]
    outputs = x @ weight.double().T
    lost = (outputs - x @ replaced.double().T).square().sum() / outputs.square().sum()
    assert error == pytest.approx(float(lost), rel=1e-9)


def test_second_moments_of_other_seeds_differ(judge: Judge) -> None:
    first = judge.second_moments(4, full=True)
    again = judge.second_moments(4, full=True)
    other = judge.second_moments(4, full=True, seed=1)
    name = next(iter(first))
    assert first[name].dtype == torch.float64
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    diagonal = judge.second_moments(4)[name]
    assert torch.allclose(diagonal.double(), first[name].diagonal(), rtol=1e-6)


def test_a_point_is_measured_once_and_read_again(judge: Judge, tmp_path: Path) -> None:
    calls = []

    def compress(weights: methods.Tensors, _: methods.Tensors, seed: int) -> Candidate:
        calls.append(seed)
        return Candidate({name: weight * 0.5 for name, weight in weights.items()}, 7)

    method = Method("half", 2.0, compress, seeded=True)
    laboratory = Laboratory(judge, 4, Store(tmp_path))
    first = laboratory.measure(method, 2)
    again = Laboratory(judge, 4, Store(tmp_path)).measure(method, 2)
    assert calls == [0, 1]
    assert again.stored == first.stored == 7 / judge.weight_count
    assert np.array_equal(again.divergences, first.divergences)
    # Half the weight leaves half the output: a quarter of its energy is error.
    assert again.output_errors == pytest.approx(0.25, rel=1e-6)
    laboratory.measure(Method("half", 3.0, compress), 2)
    assert calls == [0, 1, 0]


def test_incomplete_or_infinite_candidates_are_refused(judge: Judge) -> None:
    laboratory = Laboratory(judge, 4, Store(None))
    empty = Method("empty", 2.0, lambda w, h, s: Candidate({}, 1))
    with pytest.raises(ValueError, match='"empty" at 2 bits left out'):
        laboratory.measure(empty, 1)
    broken = Method(
        "nan", 2.0, lambda w, h, s: Candidate({k: v * torch.nan for k, v in w.items()}, 1)
    )
    with pytest.raises(ValueError, match="finite: False"):
        laboratory.measure(broken, 1)


def test_what_does_not_run_is_reported(judge: Judge) -> None:
    def refuse(*_: object) -> Candidate:
        raise methods.UnavailableError("no such instruction")

    rows_ = [Skipped("a", 2, "missing"), Method("b", 3, refuse)]
    points, skipped = measure_all(Laboratory(judge, 4, Store(None)), rows_, 1)
    assert points == []
    assert [(row.name, row.reason) for row in skipped] == [
        ("a", "missing"),
        ("b", "no such instruction"),
    ]


def test_options_that_the_library_lacks_skip_the_row() -> None:
    row = methods.library("trellis", 2, codec="no such codec")
    assert isinstance(row, Skipped)
    assert "no such codec" in row.reason
    assert isinstance(methods.library("ring", 2), Method)


def test_every_row_of_a_line_has_its_own_width() -> None:
    listed = [*methods.own_baselines((2, 3, 4)), *methods.ours((2.0, 3.0))]
    names = [(row.name, row.bits) for row in listed]
    assert len(set(names)) == len(names)
    assert {row.name for row in quality.chosen_rows(False, "^NF4", [])} == {methods.NF4}


@pytest.mark.parametrize("name", ["round to nearest g64", "GPTQ g64", "ASVD+Q"])
def test_rows_give_dense_weights_and_bits(name: str) -> None:
    weights = {"layer": matrices.gaussian((64, 128))}
    moments = {"layer": torch.eye(128, dtype=torch.float64)}
    row = next(row for row in methods.own_baselines((3,)) if row.name == name)
    assert isinstance(row, Method)
    found = row.compress(weights, moments, 0)
    assert found.weights["layer"].shape == (64, 128)
    assert 3 < found.bits_per_weight < 3.4


def test_peers_are_skipped_without_an_interpreter() -> None:
    found = rows.peer_rows(None, ROOT, 4)
    assert {type(row) for row in found} == {Skipped}
    assert {row.name.split()[0].rstrip(",") for row in found} >= {"bitsandbytes", "HQQ"}
    assert rows.peer_rows(None, ROOT, 4, "^nothing") == []


def test_peers_that_are_not_installed_are_named() -> None:
    found = rows.peer_rows(Path(sys.executable), ROOT, 4, "^HQQ")
    reasons = {row.reason for row in found if isinstance(row, Skipped)}
    assert reasons <= {"its package is not installed there"}


def test_tasks_and_answers_survive_their_files(tmp_path: Path) -> None:
    sent = task.Task({"a.b": torch.ones(2, 3)}, {"a.b": torch.eye(3).double()}, ROOT, 5)
    task.write_task(tmp_path / "task", sent)
    got = task.read_task(tmp_path / "task")
    assert torch.equal(got.weights["a.b"], sent.weights["a.b"])
    assert got.second_moments["a.b"].dtype == torch.float64
    assert (got.model, got.calibration) == (ROOT, 5)
    task.write_answer(tmp_path / "answer", {"a.b": baselines.Baseline(torch.ones(2, 3), 17)})
    assert task.read_answer(tmp_path / "answer")["a.b"].stored_bits == 17


def test_a_peer_that_fails_says_why() -> None:
    with pytest.raises(methods.UnavailableError, match=r"exit status 1.*no_such_adapter"):
        rows._run(Path(sys.executable), "no_such_adapter", "0", "task", "answer", "0")


def test_inputs_for_gptqmodel_have_the_given_second_moment() -> None:
    from bench.peers.gptqmodel import inputs_with

    x = torch.randn(40, 12, dtype=torch.float64)
    moment = x.T @ x / 40
    made = inputs_with(moment).double()
    assert torch.allclose(made.T @ made / len(made), moment, atol=1e-5)


def test_requirements_of_peers_are_pinned_and_are_no_dependencies() -> None:
    lines = (ROOT / "bench" / "requirements-peers.txt").read_text().splitlines()
    pinned = [line.split("==")[0] for line in lines if "==" in line]
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("bitsandbytes", "hqq", "torchao", "optimum-quanto", "auto-round", "gptqmodel"):
        assert name in pinned
        assert name not in project


def point(method: str, bits: float, error: float, kl: float, stored: float) -> Point:
    """A point whose 12 questions diverge by about ``kl``, matrices err by about ``error``."""
    spread = np.linspace(0.9, 1.1, 12)
    score = Score(kl * spread, np.ones(12), 1.0)
    return Point(method, bits, [Sample(score, stored, error * spread)])


def test_targets_compare_errors_and_divergences(judge: Judge) -> None:
    measured = [
        point(methods.STRONG_GPTQ, 2.0, 0.03, 0.01, 2.28),
        point(methods.TRELLIS_NO_SCALES, 2.0, 0.02, 0.004, 2.05),
        point(methods.FED_BACK, 2.0, 0.04, 0.006, 2.05),
    ]
    found = {row["target"]: row for row in targets(judge, measured)}
    error = found[
        "trellis + feedback, no scales, 2 bits: output error below GPTQ g64 strong 2 (dB)"
    ]
    assert error["measured"] == pytest.approx(10 * np.log10(1.5))
    assert error["met"]
    assert not found["ring + feedback, 2 bits: output error below GPTQ g64 strong 2 (dB)"]["met"]
    kl = found["trellis + feedback, no scales, 2 bits: KL over that of GPTQ g64 strong 2"]
    assert kl["measured"] == pytest.approx(0.4)
    assert kl["met"]


def test_too_many_bits_miss_a_target(judge: Judge) -> None:
    measured = [
        point(methods.STRONG_GPTQ, 2.0, 0.03, 0.01, 2.28),
        point(methods.TRELLIS_NO_SCALES, 2.0, 0.01, 0.001, 2.2),
    ]
    rows_ = [row for row in targets(judge, measured) if "GPTQ" in row["target"]]
    assert len(rows_) == 2
    assert not any(row["met"] for row in rows_)
