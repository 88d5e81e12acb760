"""FMVR: a model that answers with as few visual tokens as the caller's budget allows.

Frequency-modulated visual restoration for Matryoshka models, arXiv 2603.11220; ``docs/fmvr.md``.
"""

from .pyramid import VisualTokenPyramid, pools_of
from .restoration import FrequencyModulatedRestoration

__all__ = [
    "FrequencyModulatedRestoration",
    "VisualTokenPyramid",
    "pools_of",
]
