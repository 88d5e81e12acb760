"""llava-fa: frequency-domain compression of large multimodal models.

Importing the package registers ``quant_method: "llava_fa"`` with transformers, so that
``from_pretrained`` loads compressed checkpoints.
"""

from llava_fa import _core, nn
from llava_fa._register import register_when_transformers_is_imported
from llava_fa.bit_plan import BitPlan
from llava_fa.compress import compress_checkpoint
from llava_fa.config import CompressionConfig
from llava_fa.decompress import decompress_checkpoint
from llava_fa.device_ops import cuda_available, cuda_unavailable_reason
from llava_fa.distillation import RefinementOptions
from llava_fa.errors import (
    BudgetError,
    CheckpointError,
    DeviceError,
    DeviceMemoryError,
    FormatError,
    LlavaFaError,
    MissingFileError,
    NonFiniteError,
    PlanError,
    RecipeError,
    ResumeError,
)
from llava_fa.loading import load_model
from llava_fa.matrix import CompressedMatrix, compress_matrix
from llava_fa.matrix_spec import MatrixSpec
from llava_fa.planning import plan_checkpoint
from llava_fa.recipe import Recipe
from llava_fa.refine import RefinementReport, refine_checkpoint
from llava_fa.report import CompressionReport
from llava_fa.stages import (
    constellation,
    diagonal_scales,
    half_spectrum,
    inverse_half_spectrum,
    polar_decode,
    polar_encode,
    truncated_svd,
)
from llava_fa.verify import inspect_checkpoint, verify_checkpoint

__version__: str = _core.version()

__all__ = [
    "BitPlan",
    "BudgetError",
    "CheckpointError",
    "CompressedMatrix",
    "CompressionConfig",
    "CompressionReport",
    "DeviceError",
    "DeviceMemoryError",
    "FormatError",
    "LlavaFaError",
    "MatrixSpec",
    "MissingFileError",
    "NonFiniteError",
    "PlanError",
    "Recipe",
    "RecipeError",
    "RefinementOptions",
    "RefinementReport",
    "ResumeError",
    "__version__",
    "compress_checkpoint",
    "compress_matrix",
    "constellation",
    "cuda_available",
    "cuda_unavailable_reason",
    "decompress_checkpoint",
    "diagonal_scales",
    "half_spectrum",
    "inspect_checkpoint",
    "inverse_half_spectrum",
    "load_model",
    "nn",
    "plan_checkpoint",
    "polar_decode",
    "polar_encode",
    "refine_checkpoint",
    "truncated_svd",
    "verify_checkpoint",
]

register_when_transformers_is_imported()
