"""The tiny example model: its questions, its processor, its evaluation and the shipped weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from examples.tiny_lmm import answering, benchmark, conversations, evaluate, questions, scenes
from examples.tiny_lmm.architecture import (
    IMAGE_TOKENS,
    WORD_ID,
    Size,
    build_model,
    build_processor,
)
from examples.tiny_lmm.batches import IGNORE, PREFIX, SLOTS, Difficulty, layout, make_batch
from examples.tiny_lmm.rounding import round_matrix, round_to_nearest
from examples.tiny_lmm.statistics import clustered_mean, wilson_interval
from llava_fa.demo_scales import PYRAMID
from llava_fa.fmvr import attach_fmvr
from llava_fa.fmvr.conversations import messages_of, rendered

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "tiny_lmm" / "model"
IMAGES = ROOT / "examples" / "images"
BENCHMARK_DIGEST = "acacee66d2067a85"
SMALL = Size(32, 1, 2, 64, 32, 2, 2, 64)


@pytest.fixture(scope="module")
def small_model() -> Any:
    torch.manual_seed(0)
    return build_model(SMALL).eval()


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return evaluate.load(str(MODEL))


def digest(items: list[benchmark.VisualQuestion]) -> str:
    """Hash of images, questions and answers."""
    total = hashlib.sha256()
    for item in items:
        total.update(item.image.tobytes())
        total.update(f"{item.image_id}|{item.family}|{item.text}|{item.answer}\n".encode())
    return total.hexdigest()


# --- the questions ---------------------------------------------------------------------------


def test_benchmark_is_the_same_everywhere() -> None:
    assert digest(benchmark.benchmark_questions(40)).startswith(BENCHMARK_DIGEST)


def test_benchmark_is_a_prefix_of_a_larger_one() -> None:
    short, long = benchmark.benchmark_questions(30), benchmark.benchmark_questions(60)
    assert digest(short) == digest(long[:30])


def test_calibration_and_benchmark_share_no_image() -> None:
    held_out = {q.image.tobytes() for q in benchmark.benchmark_questions(300)}
    assert held_out.isdisjoint(q.image.tobytes() for q in benchmark.calibration_questions(300))


def test_families_are_equally_frequent_and_no_answer_dominates() -> None:
    items = benchmark.benchmark_questions(2000)
    families = Counter(item.family for item in items)
    assert set(families) == set(questions.FAMILIES)
    assert max(families.values()) - min(families.values()) <= 4
    bounds = {"existence": 0.52, "side": 0.52, "count": 0.26, "compare": 0.27}
    for family, total in families.items():
        answers = Counter(item.answer for item in items if item.family == family)
        assert max(answers.values()) / total <= bounds.get(family, 0.21), (family, answers)


def test_existence_has_adversarial_negatives() -> None:
    rng = np.random.default_rng(5)
    adversarial = negatives = 0
    for _ in range(400):
        scene = scenes.sample_scene(rng, 2)
        question = questions.ask_existence(scene, rng)
        assert question is not None
        color, shape = question.text.split()[3:5]
        names = {(o.color_word, o.shape_word) for o in scene}
        assert ((color, shape) in names) == (question.answer == "yes")
        if question.answer == "no":
            negatives += 1
            parts = {o.color_word for o in scene}, {o.shape_word for o in scene}
            adversarial += color in parts[0] and shape in parts[1]
    assert adversarial / negatives > 0.4


def test_answers_are_true() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        scene = scenes.sample_scene(rng)
        by_name = {f"{o.color_word} {o.shape_word}": o for o in scene}
        count = questions.ask_count(scene, rng)
        assert count is not None
        word = count.text.split()[2]
        matches = [
            o
            for o in scene
            if word == "objects" or word in (o.color_word, questions.PLURALS[o.shape_word])
        ]
        assert count.answer == str(len(matches))
        side = questions.ask_side(scene, rng)
        if side is not None:
            words = side.text.split()
            first, second = " ".join(words[2:4]), " ".join(words[9:11])
            left = by_name[first].x < by_name[second].x
            assert side.answer == ("left" if left else "right")
        size = questions.ask_size(scene, rng)
        if size is not None:
            words = size.text.split()
            first, second = " ".join(words[2:4]), " ".join(words[9:11])
            bigger = by_name[first].radius > by_name[second].radius
            assert size.answer == ("bigger" if bigger else "smaller")


def test_objects_do_not_overlap() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        _, coverage = scenes.draw_scene(scenes.sample_scene(rng), rng)
        assert float(coverage.sum(axis=0).max()) <= 1.0


# --- processor, masks, statistics ------------------------------------------------------------


def test_processor_round_trip(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    build_processor().save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    item = benchmark.benchmark_questions(1)[0]
    inputs = processor(images=[item.pil_image()], text=[item.prompt], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids[0] == WORD_ID["<bos>"]
    assert ids[1 : 1 + IMAGE_TOKENS] == [WORD_ID["<image>"]] * IMAGE_TOKENS
    assert processor.decode(ids[1 + IMAGE_TOKENS :]) == item.text
    # the pixels are only normalized: no resampling at the native size
    pixels = inputs["pixel_values"][0].permute(1, 2, 0).numpy() * 0.25 + 0.5
    assert np.abs(pixels * 255 - item.image).max() < 1e-3
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is"}]}]
    assert processor.apply_chat_template(messages) == "<image> is"


def test_every_question_is_in_the_vocabulary() -> None:
    for item in benchmark.benchmark_questions(300):
        assert all(word in WORD_ID for word in [*item.text.split(), item.answer])


def test_training_slots_equal_single_questions(small_model: Any) -> None:
    """A question in its slot gets the logits it gets when asked alone."""
    batch = make_batch(np.random.default_rng(1), 2, Difficulty())
    mask, positions = layout()
    with torch.no_grad():
        packed = small_model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            attention_mask=mask,
            position_ids=positions.expand(2, -1),
        ).logits
        start = PREFIX
        for slot, (_, length) in enumerate(SLOTS):
            for row in range(2):
                if batch.answers[row, slot] == IGNORE:
                    continue
                end = int(batch.answer_positions[row, slot]) + 1
                ids = torch.cat([batch.input_ids[row, :PREFIX], batch.input_ids[row, start:end]])
                alone = small_model(
                    input_ids=ids[None], pixel_values=batch.pixel_values[row : row + 1]
                ).logits[0, -1]
                torch.testing.assert_close(packed[row, end - 1], alone, atol=1e-5, rtol=1e-4)
            start += length


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_answers_equal_plain_answers(small_model: Any, attention: str) -> None:
    """Isolation is exact up to float32 rounding of sums in another order."""
    items = benchmark.benchmark_questions(20)
    processor = build_processor()
    model = copy.deepcopy(small_model)
    model.set_attn_implementation(attention)
    packed = evaluate.answer_distributions(model, processor, items, batch_size=3)
    plain = evaluate.answer_distributions(model, processor, items, batch_size=2, packed=False)
    assert packed.dtype == np.float64
    assert packed.shape == (20, len(WORD_ID))
    np.testing.assert_allclose(packed, plain, atol=1e-5)
    np.testing.assert_allclose(np.exp(packed).sum(axis=1), 1.0, atol=1e-12)


def test_pack_refuses_prompts_with_different_prefixes() -> None:
    with pytest.raises(ValueError, match="equal up to the last image token"):
        answering.pack([[[1, 4, 7], [2, 4, 7]]], image_token=4, pad_token=0)


def test_wilson_interval_known_values() -> None:
    # 8 of 10: Wilson 1927 as tabulated in Newcombe 1998 gives 0.4902 to 0.9433
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_clustered_interval_is_wider_for_equal_clusters() -> None:
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=100), 10)
    _, alone, _ = clustered_mean(values, list(range(1000)))
    _, together, (low, high) = clustered_mean(values, [i // 10 for i in range(1000)])
    assert together / alone == pytest.approx(np.sqrt(10), rel=0.15)
    assert low < values.mean() < high


def test_rounding_levels() -> None:
    weight = torch.randn(6, 100)
    for bits in (2, 4):
        rounded = round_matrix(weight, bits)
        for part, original in zip(rounded.split(64, 1), weight.split(64, 1), strict=True):
            step = (original.amax(1) - original.amin(1)) / (2**bits - 1)
            assert ((part - original).abs().amax(1) <= 0.5001 * step).all()
            assert all(len(row.unique()) <= 2**bits for row in part)


# --- evaluation and the shipped model --------------------------------------------------------


def test_evaluate_counts_hits_per_family() -> None:
    items = benchmark.benchmark_questions(60)
    scores = np.full((60, len(WORD_ID)), -10.0)
    for row, item in enumerate(items):
        right = item.family != "side"
        scores[row, WORD_ID[item.answer if right else "middle"]] = 0.0
    result = evaluate.evaluate(scores, items)
    assert result.families["side"].value == 0.0
    assert result.families["count"].value == 1.0
    assert result.accuracy.count == 60
    with pytest.raises(ValueError, match=r"expected log-probabilities of shape \(60, vocabulary\)"):
        evaluate.evaluate(scores[:59], items)


def test_compare_with_itself_and_with_a_rounded_copy(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    items = benchmark.benchmark_questions(120)
    reference = evaluate.answer_distributions(model, processor, items)
    same = evaluate.compare(reference, reference, items)
    assert same.kl == 0.0
    assert same.agreement.value == 1.0
    rounded = copy.deepcopy(model)
    round_to_nearest(rounded, 2)
    moved = evaluate.answer_distributions(rounded, processor, items)
    result = evaluate.compare(reference, moved, items)
    assert result.kl_interval[0] > 0.0
    assert result.kl_interval[0] < result.kl < result.kl_interval[1]


def test_shipped_model_answers_the_benchmark(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    items = benchmark.benchmark_questions(600)
    result = evaluate.evaluate(evaluate.answer_distributions(model, processor, items), items)
    assert result.accuracy.value >= 0.90, result


def test_shipped_files_are_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 20 * 2**20


def test_shipped_model_generates_the_demo_answers(shipped: tuple[Any, Any]) -> None:
    from PIL import Image

    model, processor = shipped
    lines = (IMAGES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 9
    for entry in entries:
        with Image.open(IMAGES / entry["image"]) as image:
            inputs = processor(
                images=[image.convert("RGB")],
                text=[f"<image> {entry['text']}"],
                return_tensors="pt",
            )
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        words = processor.decode(output[0, inputs["input_ids"].shape[1] :]).split()
        assert words == [entry["answer"], "<eos>"], entry


# --- fewer visual tokens -----------------------------------------------------------------------


def test_conversations_ask_as_the_model_was_trained(tmp_path: Path) -> None:
    asked = benchmark.calibration_questions(3, conversations.CONVERSATION_SEED)
    conversations.write(tmp_path, asked)
    lines = json.loads((tmp_path / "conversations.json").read_text())
    assert len(lines) == 3
    for question, line in zip(asked, lines, strict=True):
        text, ((start, end),) = rendered(build_processor(), messages_of(line["conversations"]))
        assert text == f"{question.prompt} {question.answer}<eos>"
        assert text[start:end] == f" {question.answer}<eos>"
        assert (tmp_path / line["image"]).is_file()


def test_the_shipped_pyramid_is_that_of_the_shipped_model(shipped: tuple[Any, Any]) -> None:
    model = attach_fmvr(copy.deepcopy(shipped[0]))
    weights = load_file(ROOT / "examples" / "tiny_lmm" / PYRAMID)
    before = {name: tensor.clone() for name, tensor in model.fmvr.state_dict().items()}
    model.fmvr.load_state_dict(weights)
    assert model.fmvr.shape.scales == (144, 36, 9, 1)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in weights.items())
