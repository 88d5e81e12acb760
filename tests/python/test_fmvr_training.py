"""Training at several scales: the loss, the examples, what learns, and stopped runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import qwen2_5_vl
from conftest import llava_processor, read_all
from elastic_models import (
    SIDE,
    elastic_llava,
    llava,
    llava_next,
    next_inputs,
    pixels,
    qwen_inputs,
    rows,
    with_weights,
)
from llava_fa import load_model
from llava_fa.cli import main
from llava_fa.errors import CheckpointError, NonFiniteError
from llava_fa.fmvr import attach_fmvr
from llava_fa.fmvr.conversations import Conversations, collated, messages_of, rendered
from llava_fa.fmvr.matryoshka import IGNORED, Matryoshka
from llava_fa.fmvr.training import CHECKPOINTS, freeze, scales_to_train, train_fmvr
from llava_fa.fmvr.training_options import FmvrTraining

TOKEN = 63
TEMPLATE = (
    "{% for m in messages %}{{ 'ANSWER: ' if m['role'] == 'assistant' else 'USER: ' }}"
    "{% for p in m['content'] %}{{ '<image> ' if p['type'] == 'image' else p['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{{ 'ANSWER:' if add_generation_prompt else '' }}"
)
"""As the templates of LLaVA models: turns of both sides, and no end token."""


def labelled(inputs: dict[str, Any], count: int = 3) -> dict[str, Any]:
    """Learn the last words of every row."""
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    labels[:, -count:] = inputs["input_ids"][:, -count:]
    return {**inputs, "labels": labels}


@pytest.fixture(scope="module")
def model() -> Any:
    return elastic_llava()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    """Two images in a row, one in the next, and a row of text."""
    return labelled({**rows([144, 144], [144], []), "pixel_values": pixels(3, 3, 48, 48)})


class TestLoss:
    def at_scale(self, model: Any, scale: int) -> Any:
        inputs = labelled({**rows([scale] * 2, [scale], []), "pixel_values": pixels(3, 3, 48, 48)})
        with torch.no_grad():
            return model(**inputs, visual_tokens=scale), inputs["labels"]

    def test_is_the_mean_over_the_scales(self, model: Any, inputs: dict[str, Any]) -> None:
        with torch.no_grad():
            found = model(**inputs, matryoshka=Matryoshka((None, 36, 9, 1)))
        losses = [self.at_scale(model, scale)[0].loss for scale in (144, 36, 9, 1)]
        torch.testing.assert_close(found.loss, torch.stack(losses).mean())
        assert len({float(loss) for loss in losses}) == 4
        full = self.at_scale(model, 144)[0].logits
        torch.testing.assert_close(found.logits, full)

    def test_distillation_adds_the_divergence_from_full_scale(
        self, model: Any, inputs: dict[str, Any]
    ) -> None:
        settings = Matryoshka((None, 9), distillation=0.5)
        with torch.no_grad():
            found = model(**inputs, matryoshka=settings).loss
            plain = model(**inputs, matryoshka=Matryoshka((None, 9))).loss

        def answers(scale: int) -> torch.Tensor:
            output, labels = self.at_scale(model, scale)
            logits = output.logits[:, :-1].double()
            return torch.log_softmax(logits[labels[:, 1:] != IGNORED], dim=-1)

        full, few = answers(144), answers(9)
        divergence = (full.exp() * (full - few)).sum(dim=-1).mean()
        assert float(divergence) > 1e-4
        expected = float(plain) + 0.5 * float(divergence) / 2  # the mean over two scales
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_distillation_does_not_move_the_full_scale(self, model: Any) -> None:
        """Its distribution is the target, not what learns."""
        inputs = labelled({**rows([144]), "pixel_values": pixels(1, 3, 48, 48)})

        def gradient(distillation: float) -> torch.Tensor:
            model.zero_grad()
            model(**inputs, matryoshka=Matryoshka((None,), distillation)).loss.backward()
            return torch.as_tensor(model.lm_head.weight.grad.clone())

        torch.testing.assert_close(gradient(0.0), gradient(3.0), rtol=0, atol=0)

    def test_accumulated_passes_are_divided_by_all_labels(
        self, model: Any, inputs: dict[str, Any]
    ) -> None:
        settings = Matryoshka((None, 9), distillation=0.5)
        with torch.no_grad():
            mean = model(**inputs, matryoshka=settings).loss
            # nine labels here, and as many in another pass of the same step
            half = model(**inputs, matryoshka=settings, num_items_in_batch=torch.tensor(18)).loss
        torch.testing.assert_close(half, mean / 2)

    def test_reaches_every_weight_of_the_pyramid(self, model: Any, inputs: dict[str, Any]) -> None:
        model.zero_grad()
        model(**inputs, matryoshka=Matryoshka((36, 9))).loss.backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in model.fmvr.parameters())

    def test_text_alone(self, model: Any) -> None:
        inputs = labelled(rows([]))
        with torch.no_grad():
            found = model(**inputs, matryoshka=Matryoshka((None, 9), distillation=1.0)).loss
            torch.testing.assert_close(found, model(**inputs).loss)

    @pytest.mark.parametrize("family", ["next", "qwen"])
    def test_other_families(self, family: str) -> None:
        if family == "next":
            model = with_weights(attach_fmvr(llava_next()))
            inputs, few = labelled(next_inputs(36 + 4 * 13)), labelled(next_inputs(9 + 3 * 7))
        else:
            model = with_weights(attach_fmvr(qwen2_5_vl()))
            inputs = labelled(qwen_inputs((10, 14), placeholders=[35]))
            few = labelled(qwen_inputs((10, 14), placeholders=[12]))
        scale = 9 if family == "next" else 12
        with torch.no_grad():
            found = model(**inputs, matryoshka=Matryoshka((None, scale))).loss
            losses = [model(**inputs).loss, model(**few, visual_tokens=scale).loss]
        torch.testing.assert_close(found, torch.stack(losses).mean())

    def test_needs_labels(self, model: Any) -> None:
        inputs = {**rows([144]), "pixel_values": pixels(1, 3, 48, 48)}
        with pytest.raises(ValueError, match="needs labels"):
            model(**inputs, matryoshka=Matryoshka((None,)))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(((),), "at least one scale"), (((9,), -1.0), "distillation is -1.0")],
    )
    def test_settings(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Matryoshka(*arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LLaVA model with its processor. Read only."""
    folder = tmp_path_factory.mktemp("training") / "model"
    model = llava()
    model.config.image_token_index = TOKEN
    model.save_pretrained(folder)
    processor = llava_processor()
    processor.image_processor.size = {"height": 4 * SIDE, "width": 4 * SIDE}
    processor.image_processor.crop_size = {"height": 4 * SIDE, "width": 4 * SIDE}
    processor.patch_size = 4
    processor.chat_template = TEMPLATE
    processor.save_pretrained(folder)
    return folder


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


EXAMPLES: list[dict[str, Any]] = [
    {"image": "red.png", "conversations": [turn("human", "<image>\nw1 w2"), turn("gpt", "w3")]},
    {
        "image": ["blue.png", "red.png"],
        "conversations": [
            turn("human", "<image>\n<image>\nw4"),
            turn("gpt", "w5 w6"),
            turn("human", "w7"),
            turn("gpt", "w8"),
        ],
    },
    {"conversations": [turn("human", "w9"), turn("gpt", "w10")]},
    {"image": "blue.png", "conversations": [turn("human", "w11\n<image>"), turn("gpt", "w12")]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples and their images. Read only."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 12), colour).save(folder / f"{colour}.png")
    (folder / "llava.json").write_text(json.dumps(EXAMPLES))
    return folder


@pytest.fixture(scope="module")
def conversations(source: Path, data: Path) -> Conversations:
    from llava_fa.capture import load_processor

    model = attach_fmvr(load_model(source))
    return Conversations(data / "llava.json", data, load_processor(source), model.config)


class TestExamples:
    def words(self, conversations: Conversations, ids: list[int]) -> str:
        tokenizer = conversations._processor.tokenizer
        return " ".join(tokenizer.convert_ids_to_tokens(ids))

    def test_answers_and_ends_are_learned(self, conversations: Conversations) -> None:
        learned = []
        for index in range(len(conversations)):
            labels = conversations[index]["labels"]
            learned.append(self.words(conversations, labels[labels != IGNORED].tolist()))
        assert learned == ["w3 </s>", "w5 w6 w8 </s>", "w10 </s>", "w12 </s>"]

    def test_placeholders_of_full_scale(self, conversations: Conversations) -> None:
        counts = [int((conversations[i]["input_ids"] == TOKEN).sum()) for i in range(4)]
        assert counts == [144, 288, 0, 144]
        assert conversations[1]["pixel_values"].shape == (2, 3, 48, 48)
        assert "pixel_values" not in conversations[2]

    def test_a_batch_is_padded_on_the_right(self, conversations: Conversations) -> None:
        batch = collated([conversations[index] for index in range(4)], pad_token=0)
        lengths = [len(conversations[index]["input_ids"]) for index in range(4)]
        assert batch["input_ids"].shape == (4, max(lengths))
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
        assert batch["labels"][2, lengths[2] :].eq(IGNORED).all()
        assert batch["pixel_values"].shape == (4, 3, 48, 48)

    def test_tiles_are_padded_to_the_most(self) -> None:
        ids = torch.tensor([1])
        few, many = ({"input_ids": ids, "pixel_values": pixels(1, n, 3, 4, 4)} for n in (3, 5))
        found = collated([few, many], 0)["pixel_values"]
        assert found.shape == (2, 5, 3, 4, 4)
        assert torch.equal(found[0, :3], few["pixel_values"][0])
        assert not found[0, 3:].any()

    def test_without_a_template_turns_are_those_of_llava(self) -> None:
        processor = llava_processor()
        processor.chat_template = None
        text, spans = rendered(processor, messages_of(EXAMPLES[1]["conversations"]))
        assert text == "USER: <image>\n<image>\nw4 ASSISTANT: w5 w6 USER: w7 ASSISTANT: w8 </s>"
        assert [text[start:end] for start, end in spans] == [" w5 w6 ", " w8 </s>"]

    def test_lines_are_read_too(self, source: Path, data: Path, tmp_path: Path) -> None:
        from llava_fa.capture import load_processor

        file = tmp_path / "llava.jsonl"
        file.write_text("\n".join(map(json.dumps, EXAMPLES)))
        config = attach_fmvr(load_model(source)).config
        assert len(Conversations(file, data, load_processor(source), config)) == 4

    def test_a_template_that_rewrites_turns_is_refused(self) -> None:
        processor = llava_processor()
        processor.chat_template = "{{ messages | length }}{% for m in messages %}w1 {% endfor %}"
        with pytest.raises(CheckpointError, match="changes earlier turns"):
            rendered(processor, messages_of(EXAMPLES[0]["conversations"]))

    @pytest.mark.parametrize(
        ("example", "message"),
        [
            ({"text": "w1"}, "example 0: expected 'conversations'"),
            ({"conversations": [{"from": "robot", "value": "w1"}]}, "expected 'conversations'"),
            ({"conversations": [turn("human", "w1")]}, "no turn from 'gpt'"),
            (
                {"conversations": [turn("human", "<image>"), turn("gpt", "w1")]},
                "1 times <image> in the text, 0 images",
            ),
            (
                {"image": "no.png", "conversations": [turn("human", "<image>"), turn("gpt", "w")]},
                r"no such image .*no\.png",
            ),
        ],
    )
    def test_bad_examples(
        self,
        conversations: Conversations,
        tmp_path: Path,
        example: dict[str, Any],
        message: str,
    ) -> None:
        file = tmp_path / "bad.json"
        file.write_text(json.dumps([example]))
        with pytest.raises(CheckpointError, match=message):
            Conversations(file, tmp_path, conversations._processor, conversations._config)

    @pytest.mark.parametrize(
        ("text", "message"), [("[1, ", "neither a JSON list"), ("[]", "no examples in it")]
    )
    def test_bad_files(
        self, conversations: Conversations, tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "bad.json"
        file.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            Conversations(file, tmp_path, conversations._processor, conversations._config)
        with pytest.raises(CheckpointError, match="no such file"):
            Conversations(tmp_path / "no", tmp_path, None, None)


def run(source: Path, data: Path, output: Path, **options: Any) -> Any:
    settings = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, **options}
    return train_fmvr(
        source, output, data / "llava.json", data, FmvrTraining(**settings), progress=False
    )


class TestTraining:
    @pytest.mark.parametrize(
        ("train", "parts"),
        [
            ("pyramid", {"fmvr"}),
            ("projector", {"fmvr", "multi_modal_projector"}),
            ("language", {"fmvr", "multi_modal_projector", "language_model", "lm_head"}),
            ("all", {"fmvr", "multi_modal_projector", "language_model", "lm_head", "vision_tower"}),
        ],
    )
    def test_only_the_chosen_parts_change(
        self, source: Path, data: Path, tmp_path: Path, train: str, parts: set[str]
    ) -> None:
        report = run(source, data, tmp_path / "out", train=train)
        before = attach_fmvr(load_model(source)).state_dict()
        after = load_model(tmp_path / "out").state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.removeprefix("model.").split(".")[0] for name in changed} == parts
        assert report.steps == 4
        assert report.scales == (None, 36, 9, 1)

    def test_the_loss_falls(self, source: Path, data: Path, tmp_path: Path) -> None:
        report = run(source, data, tmp_path / "out", steps=12, learning_rate=1e-2, batch_size=4)
        assert report.last_loss < 0.8 * report.first_loss
        assert not (tmp_path / "out" / CHECKPOINTS).exists()
        card = (tmp_path / "out" / "README.md").read_text()
        assert "visual tokens: full, 36, 9, 1." in card
        assert "12 steps on 4 examples at full, 36, 9, 1 visual tokens" in report.summary()

    def test_a_stopped_run_continues_to_the_same_weights(
        self, source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        options = {"steps": 6, "save_steps": 3, "learning_rate": 1e-2}
        run(source, data, whole, **options)
        with monkeypatch.context() as patched:
            patched.setattr(Conversations, "__getitem__", stopping(Conversations.__getitem__, 9))
            with pytest.raises(KeyboardInterrupt):
                run(source, data, stopped, **options)
        assert (stopped / CHECKPOINTS / "checkpoint-3").is_dir()
        report = run(source, data, stopped, **options)
        assert report.steps == 6
        expected, found = read_all(whole), read_all(stopped)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_gradient_checkpointing_and_accumulation_give_the_same(
        self, source: Path, data: Path, tmp_path: Path
    ) -> None:
        plain = run(source, data, tmp_path / "plain", batch_size=4, distillation=0.5)
        other = run(
            source,
            data,
            tmp_path / "other",
            batch_size=2,
            accumulation=2,
            gradient_checkpointing=True,
            distillation=0.5,
        )
        assert other.first_loss == pytest.approx(plain.first_loss, rel=1e-4)
        assert other.last_loss == pytest.approx(plain.last_loss, rel=1e-2)

    def test_two_processes_train_as_one_with_their_examples(
        self, source: Path, data: Path, tmp_path: Path
    ) -> None:
        """The same losses in the same order, the gradients averaged."""
        one = run(source, data, tmp_path / "one", train="all", batch_size=4, steps=2)
        command = (
            f"-m torch.distributed.run --standalone --nproc_per_node=2 -m llava_fa.cli fmvr train "
            f"{source} {tmp_path / 'two'} --data {data / 'llava.json'} --images {data} --steps=2 "
            "--batch-size=2 --train=all --learning-rate=1e-3 --no-progress --json"
        )
        finished = subprocess.run(
            [sys.executable, *shlex.split(command)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        two = json.loads(finished.stdout)
        assert two["first_loss"] == pytest.approx(one.first_loss, rel=1e-5)
        assert two["last_loss"] == pytest.approx(one.last_loss, rel=1e-4)

    def test_trained_again_with_its_own_pyramid(
        self, source: Path, data: Path, tmp_path: Path
    ) -> None:
        run(source, data, tmp_path / "first", scales=(144, 36), variant="average")
        report = run(tmp_path / "first", data, tmp_path / "second", scales=(36,))
        assert report.scales == (36,)
        loaded = load_model(tmp_path / "second")
        assert (loaded.fmvr.shape.pools, loaded.fmvr.variant) == ((2,), "average")

    def test_command_line_and_generation(
        self, source: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        train = ["fmvr", "train", str(source), str(out), "--data", str(data / "llava.json")]
        train += ["--images", str(data), "--steps", "1", "--no-progress", "--json"]
        assert main(train) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 1
        ask = ["generate", str(out), "--image", str(data / "red.png"), "--prompt", "w1", "--json"]
        for choice in (["--visual-tokens", "9"], ["--max-kv-bytes", "20KB"], []):
            assert main([*ask, "--max-new-tokens", "2", *choice]) == 0
            assert "answer" in json.loads(capsys.readouterr().out)
        assert main([*ask, "--visual-tokens", "10"]) == 1
        assert "scales 1, 9, 36, 144" in capsys.readouterr().err
        assert main(train) == 1
        assert "not empty" in capsys.readouterr().err

    def test_a_loss_that_is_not_finite_stops_the_run(
        self, source: Path, data: Path, tmp_path: Path
    ) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(source, broken)
        model = load_model(source)
        with torch.no_grad():
            model.lm_head.weight[0] = float("inf")
        model.save_pretrained(broken)
        with pytest.raises(NonFiniteError, match="at step 0; lower the learning rates"):
            run(broken, data, tmp_path / "out")

    def test_nothing_to_learn(self) -> None:
        with pytest.raises(ValueError, match="has nothing to learn"):
            freeze(elastic_llava("none"), "pyramid")

    def test_scales_to_train(self) -> None:
        model, qwen = elastic_llava(), attach_fmvr(qwen2_5_vl())
        assert scales_to_train(model, (1, 144)) == (None, 1)
        with pytest.raises(ValueError, match="the 12 x 12 grid has the scales"):
            scales_to_train(model, (144, 4))
        assert scales_to_train(qwen, (9, 36)) == (None, 36, 9)
        with pytest.raises(ValueError, match="give the limits"):
            scales_to_train(qwen, None)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train": "head"}, "train is 'head'"),
            ({"dtype": "int8"}, "dtype is 'int8'"),
            ({"steps": 0}, "steps is 0"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"learning_rate": 0.0}, "learning_rate is 0.0"),
            ({"distillation": -1.0}, "distillation is -1.0"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FmvrTraining(**options)


def stopping(read: Any, after: int) -> Any:
    """Reading an example, as if the user stopped the run at one of them."""
    calls = []

    def get(self: Conversations, index: int) -> Any:
        calls.append(index)
        if len(calls) > after:
            raise KeyboardInterrupt
        return read(self, index)

    return get
