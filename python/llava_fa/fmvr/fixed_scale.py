"""A model or processor that is always called at one scale, for code that knows of none."""

from __future__ import annotations

from typing import Any


class AtScale:
    """Calls a model with FMVR, or its processor, with a number of visual tokens.

    Parameters
    ----------
    called
        The model, or a processor of :func:`elastic_processor`; every attribute is its own.
    visual_tokens
        The scale of every call.
    """

    def __init__(self, called: Any, visual_tokens: int) -> None:
        self._called, self._visual_tokens = called, visual_tokens

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call at the scale."""
        return self._called(*arguments, **{**options, "visual_tokens": self._visual_tokens})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._called, name)
