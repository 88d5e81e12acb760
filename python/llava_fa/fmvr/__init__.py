"""FMVR: a model that answers with as few visual tokens as the caller's budget allows.

Frequency-modulated visual restoration for Matryoshka models, arXiv 2603.11220; ``docs/fmvr.md``.
"""

from .attach import attach_fmvr
from .processor import elastic_processor
from .pyramid import VisualTokenPyramid
from .restoration import FrequencyModulatedRestoration
from .scales import PyramidShape, pools_of
from .video import frame_scales

__all__ = [
    "FrequencyModulatedRestoration",
    "PyramidShape",
    "VisualTokenPyramid",
    "attach_fmvr",
    "elastic_processor",
    "frame_scales",
    "pools_of",
]
