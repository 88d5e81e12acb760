"""A compressed folder behind ``transformers serve``: it answers clients as ``generate`` does.

The server is a process of its own, started by the commands of ``docs/serving.md``.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.cli import transformers as transformers_command
from transformers.utils import import_utils

from conftest import compress
from llava_fa import CompressionConfig
from llava_fa.cli import main
from llava_fa.nn import FourierLinear
from packed_models import load, load_dense

OURS = ["-m", "llava_fa.cli", "serve", "--runtime", "packed"]
THEIRS = ["-c", "import llava_fa; from transformers.cli.transformers import app; app()", "serve"]
START_SECONDS, STOP_SECONDS = 120, 30
NEW_TOKENS = 12


class Server(NamedTuple):
    url: str
    model: Any  # the same folder, loaded here
    processor: Any
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def folder(processor_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("served") / "small"
    compress(processor_folder, output, CompressionConfig(bits=4))
    return output


@pytest.fixture(scope="module", params=["packed", "dense"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    packed = request.param == "packed"
    port = free_port()
    options = [str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *(OURS if packed else THEIRS), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url)
        model = (load if packed else load_dense)(folder)
        yield Server(url, model, AutoProcessor.from_pretrained(folder), process)
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        try:
            with urlopen(f"{url}/health", timeout=5) as response:
                assert json.load(response) == {"status": "ok"}
                return
        except URLError:
            time.sleep(0.2)
    process.kill()
    pytest.fail(f"the server did not start: {process.communicate()[0]}")


def ask(server: Server, content: Any, **options: Any) -> str:
    """Send a chat completion, decoded greedily, and return the body of the response."""
    messages = [{"role": "user", "content": content}]
    body = {"messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0, **options}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=60) as response:
        text: str = response.read().decode()
    return text


def answer(server: Server, content: Any) -> str:
    text: str = json.loads(ask(server, content))["choices"][0]["message"]["content"]
    return text.strip()


def streamed(server: Server, content: Any) -> list[str]:
    """Return the pieces of text of a streamed answer."""
    lines = [line for line in ask(server, content, stream=True).splitlines() if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    pieces = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return [piece for piece in pieces if piece]


def generated(server: Server, content: list[dict[str, Any]]) -> str:
    """What ``generate`` answers in this process."""
    inputs = server.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        tokens = server.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return str(server.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


TEXTS = ["w1 w2 w3", "w9 w30", "w44 w5 w17 w2"]


class TestAnswers:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_text(self, server: Server, text: str, stream: bool) -> None:
        expected = generated(server, [{"type": "text", "text": text}])
        assert expected
        found = "".join(streamed(server, text)).strip() if stream else answer(server, text)
        assert found == expected

    def test_a_streamed_answer_comes_in_pieces(self, server: Server) -> None:
        pieces = max((streamed(server, text) for text in TEXTS), key=len)
        assert len(pieces) > 1

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_an_image(
        self, server: Server, colour: str, stream: bool, processor_folder: Path
    ) -> None:
        file = processor_folder.with_name("data") / f"{colour}.png"
        url = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
        text = {"type": "text", "text": "w1 w2 w3"}
        expected = generated(server, [{"type": "image", "path": str(file)}, text])
        assert expected != generated(server, [text])
        content = [{"type": "image_url", "image_url": {"url": url}}, text]
        found = "".join(streamed(server, content)) if stream else answer(server, content)
        assert found.strip() == expected

    def test_an_interrupt_ends_the_server(self, server: Server) -> None:
        """The last one: nothing answers afterwards, and the port is free."""
        server.process.send_signal(signal.SIGINT)
        output = server.process.communicate(timeout=STOP_SECONDS)[0]
        assert "Finished server process" in output
        assert "Traceback" not in output
        port = int(server.url.rpartition(":")[2])
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


class TestHandOver:
    @pytest.fixture
    def received(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What transformers' command receives, in place of running it."""
        arguments: list[str] = []
        monkeypatch.setattr(transformers_command, "app", lambda given, **_: arguments.extend(given))
        monkeypatch.setenv("LLAVA_FA_RUNTIME", "dense")
        return arguments

    def test_options_pass_in_their_order(self, received: list[str]) -> None:
        assert main(["serve", "--port", "8001", "small", "--dtype=float32", "--compile"]) == 0
        assert received == ["serve", "--port", "8001", "small", "--dtype=float32", "--compile"]
        assert os.environ["LLAVA_FA_RUNTIME"] == "dense"

    @pytest.mark.parametrize(
        ("options", "device"),
        [([], ["--device", "cpu"]), (["--device", "auto"], []), (["--device=auto"], [])],
        ids=str,
    )
    def test_packed_weights_are_served_on_the_cpu_unless_told(
        self, options: list[str], device: list[str], received: list[str]
    ) -> None:
        assert main(["serve", "small", "--runtime", "packed", *options]) == 0
        assert received == ["serve", *device, "small", *options]
        assert os.environ["LLAVA_FA_RUNTIME"] == "packed"

    def test_missing_packages_are_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(import_utils, "is_serve_available", lambda: False)
        assert main(["serve", "small"]) == 1
        assert "pip install 'transformers[serving]'" in capsys.readouterr().err

    def test_unknown_runtime_of_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("LLAVA_FA_RUNTIME", "fast")
        assert main(["serve", "small"]) == 1
        assert "LLAVA_FA_RUNTIME is 'fast', expected one of" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", ["packed", "dense"])
def test_the_environment_chooses_for_programs_that_load_by_themselves(
    runtime: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_FA_RUNTIME", runtime)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert any(isinstance(m, FourierLinear) for m in model.modules()) == (runtime == "packed")
