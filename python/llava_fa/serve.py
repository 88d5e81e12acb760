"""Hands a compressed folder over to ``transformers serve``, which learns of our format here."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .errors import LlavaFaError
from .hf import RUNTIME_VARIABLE, Runtime, default_runtime


class ServingError(LlavaFaError, ImportError):
    """What transformers needs for serving is not installed."""


def serve(options: Sequence[str], runtime: Runtime | None = None) -> None:
    """Run ``transformers serve`` in this process until it is interrupted.

    Parameters
    ----------
    options
        Its arguments, beginning with the folder as a rule. With packed weights, ``--device cpu``
        is added unless a device is named: they have not been run on GPUs yet.
    runtime
        ``"dense"`` or ``"packed"``; None takes the process's default.

    Raises
    ------
    ServingError
        The packages of transformers' extra ``serving`` are missing.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ServingError(
            "serving needs fastapi, uvicorn, openai and pydantic, not all of which are installed: "
            "pip install 'transformers[serving]'"
        )
    from transformers.cli.transformers import app

    if runtime is not None:
        os.environ[RUNTIME_VARIABLE] = runtime
    names_device = any(option.partition("=")[0] == "--device" for option in options)
    device = ["--device", "cpu"] if default_runtime() == "packed" and not names_device else []
    app(["serve", *device, *options], prog_name="llava-fa")
