"""llava-fa: frequency-domain compression of large multimodal models.

Importing the package registers ``quant_method: "llava_fa"`` with transformers, so that
``from_pretrained`` loads compressed checkpoints.
"""

from llava_fa import _core
from llava_fa.config import CompressionConfig
from llava_fa.errors import (
    CheckpointError,
    FormatError,
    LlavaFaError,
    MissingFileError,
    NonFiniteError,
    RecipeError,
    ResumeError,
)
from llava_fa.matrix import (
    CompressedMatrix,
    MatrixSpec,
    compress_matrix,
    constellation,
    diagonal_scales,
    half_spectrum,
    inverse_half_spectrum,
    polar_decode,
    polar_encode,
    truncated_svd,
)

__version__: str = _core.version()

__all__ = [
    "CheckpointError",
    "CompressedMatrix",
    "CompressionConfig",
    "FormatError",
    "LlavaFaError",
    "MatrixSpec",
    "MissingFileError",
    "NonFiniteError",
    "RecipeError",
    "ResumeError",
    "__version__",
    "compress_matrix",
    "constellation",
    "diagonal_scales",
    "half_spectrum",
    "inverse_half_spectrum",
    "polar_decode",
    "polar_encode",
    "truncated_svd",
]
