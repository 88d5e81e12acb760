"""A linear layer that computes with the packed matrix instead of a dense weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import packed_ops
from .device_weights import refuse_capture
from .matrix import CompressedMatrix
from .matrix_spec import MatrixSpec

_ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)
_CPU = torch.device("cpu")
# The meta device computes shapes only, as torch.compile and accelerate do.
_DEVICES = ("cpu", "cuda", "meta")


class PackedWeight:
    """Stands where ``nn.Linear`` has its weight, and says why there is none to whoever wants it.

    ``device``, ``dtype`` and ``requires_grad`` are those of the codes, which libraries ask of any
    weight; transformers initializes at random what is not marked as read.
    """

    _is_hf_initialized = True

    def __init__(self, codes: Tensor) -> None:
        self.device, self.dtype, self.requires_grad = codes.device, codes.dtype, False

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"weight.{name}: a FourierLinear has no dense weight; layer.dense() decodes it, and to "
            "change it, as merging an adapter does, load the model with "
            "quantization_config=LlavaFaConfig(runtime='dense')"
        )


class FourierLinear(nn.Linear):
    """``y = x Wᵀ + b`` with W (m, n) kept as its stored tensors.

    The stored tensors are buffers under the names, types and shapes of ``docs/format.md``, so the
    state dict holds exactly what a compressed checkpoint stores. They are not trained, and keep
    their types when the layer is cast. Gradients pass through to the activations and the bias, so
    adapters can be trained around the layer; libraries of adapters recognize what they adapt by
    its being an ``nn.Linear``. There is no ``weight`` to merge into, and using it says so.

    Parameters
    ----------
    spec
        What is stored. The buffers are zero until a state dict is loaded, and not usable before.
    bias
        Whether there is a bias, (m,).
    device, dtype
        As for ``nn.Linear``; the dtype is that of the bias alone.

    Examples
    --------
    >>> import torch
    >>> from llava_fa import CompressionConfig, compress_matrix
    >>> from llava_fa.nn import FourierLinear
    >>> matrix = compress_matrix(torch.randn(64, 48), CompressionConfig(bits=4))
    >>> layer = FourierLinear.from_matrix(matrix)
    >>> x = torch.randn(2, 3, 48)
    >>> torch.allclose(layer(x), x @ layer.dense().T, atol=1e-4)
    True
    """

    def __init__(
        self,
        spec: MatrixSpec,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        tensors = {
            name: torch.zeros(shape, dtype=stored_dtype, device=device)
            for name, (stored_dtype, shape) in spec.tensors().items()
        }
        values = torch.zeros(spec.shape[0], device=device, dtype=dtype) if bias else None
        self._hold(spec, tensors, None if values is None else nn.Parameter(values))

    def _hold(
        self, spec: MatrixSpec, tensors: Mapping[str, Tensor], bias: nn.Parameter | None
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which allocates the dense weight
        self.spec = spec
        self.out_features, self.in_features = spec.shape
        self._stored_names = tuple(tensors)
        self._description = json.dumps(spec.to_dict())
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @classmethod
    def around(
        cls, spec: MatrixSpec, tensors: Mapping[str, Tensor], bias: nn.Parameter | None
    ) -> FourierLinear:
        """Build around stored tensors, by suffix in file order, without copying or checking them.

        Parameters
        ----------
        spec
            What is stored.
        tensors
            Of the names, types and shapes of ``spec.tensors()``.
        bias
            (m,); None if there is none.
        """
        layer = cls.__new__(cls)
        layer._hold(spec, tensors, bias)
        return layer

    @classmethod
    def from_matrix(cls, matrix: CompressedMatrix, bias: Tensor | None = None) -> FourierLinear:
        """Build from a compressed matrix.

        Parameters
        ----------
        matrix
            W, (m, n); its stored tensors are copied.
        bias
            (m,), becomes a parameter; None if there is none.

        Raises
        ------
        ValueError
            The bias has another shape.
        """
        rows = matrix.shape[0]
        if bias is not None and tuple(bias.shape) != (rows,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({rows},)")
        state = matrix.state_dict()
        tensors = {name: state[name].clone() for name in matrix.spec.tensors()}
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach().clone())
        return cls.around(matrix.spec, tensors, bias)

    def stored_tensors(self) -> dict[str, Tensor]:
        """Return the buffers that hold the matrix, by their suffixes of ``docs/format.md``."""
        return {name: self.get_buffer(name) for name in self._stored_names}

    def _packed_weight(self) -> PackedWeight:
        """No weight, but what explains that, and tells the device and what else libraries ask."""
        return PackedWeight(self.get_buffer("codes"))

    weight: Any = property(_packed_weight)

    def dense(self) -> Tensor:
        """Return the decoded weight, (m, n) float32, on the layer's device.

        Raises
        ------
        DeviceError, DeviceMemoryError
            The layer is on an NVIDIA GPU that cannot be used, whose memory is too full, or while a
            graph is captured.
        """
        tensors = list(self.stored_tensors().values())
        device = tensors[0].device
        if device.type == "cuda":
            refuse_capture("decoding")
        matrix = packed_ops.prepared([tensor.cpu() for tensor in tensors], self._description)
        weight: Tensor = matrix.dense(device=device if device.type == "cuda" else None)
        return weight.to(device)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``x Wᵀ + b`` in the dtype of x; under autocast, in its dtype.

        The product is that of :meth:`CompressedMatrix.matmul`, at single precision for float32 and
        at half precision for activations of 16 bits, and is rounded once. Many activations of
        bfloat16 on a CPU are multiplied in bfloat16, where the processor can: to 5·10⁻³, typically
        2·10⁻³.

        Parameters
        ----------
        input
            x, (..., n) of float32, bfloat16 or float16, on the layer's device, the CPU or an
            NVIDIA GPU; leading dimensions may be empty.

        Raises
        ------
        ValueError
            x has another width, x and the layer are on different devices, or on one of another
            kind.
        TypeError
            x has another dtype.
        FormatError
            The buffers do not hold a matrix of this layer's ``spec``.
        DeviceError
            The GPU cannot be used, or the first product on it is being captured into a graph.
        """
        self._check(input)
        dtype, kind = input.dtype, "cuda" if input.is_cuda else "cpu"
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        # Not as attributes, for which modules take longer.
        tensors = [self._buffers[name] for name in self._stored_names]
        bias = self._parameters["bias"]
        if bias is None:
            return packed_ops.product(input, tensors, self._description, dtype)
        # In float32 until the bias is added: rounded once.
        product = packed_ops.product(input, tensors, self._description, torch.float32)
        return (product + bias).to(dtype)

    def _check(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"activations have shape {tuple(x.shape)}, expected (..., {self.in_features})"
            )
        if x.dtype not in _ACTIVATIONS:
            raise TypeError(f"activations are {x.dtype}, expected float32, bfloat16 or float16")
        codes: Any = self._buffers["codes"]
        devices = (x.device, codes.device)
        if devices == (_CPU, _CPU):
            return
        for what, device in zip(("activations", "layer"), devices, strict=True):
            if device.type not in _DEVICES:
                raise ValueError(
                    f"the {what}: on {device}, but packed matrices are multiplied on the CPU and "
                    "on NVIDIA GPUs; move layer and activations there, or load the model with "
                    "runtime='dense'"
                )
        if devices[0] != devices[1] and "meta" not in (device.type for device in devices):
            raise ValueError(
                f"the activations are on {devices[0]}, the layer on {devices[1]}: move one of them "
                "with .to()"
            )

    def extra_repr(self) -> str:
        """Return the line that ``print(layer)`` shows."""
        spec, bias = self.spec, self.bias is not None
        rank = f", rank={spec.rank}" if spec.rank else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, "
            f"codec={spec.codec}, bits={spec.code_bits / 2:g}{rank}"
        )

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> FourierLinear:
        """Move or cast, as ``.to()`` and its like do, but leave the stored tensors' types."""
        exact = self.stored_tensors()
        move: Any = super()._apply
        move(fn, recurse)
        for name, tensor in exact.items():
            moved = self.get_buffer(name)
            if moved.dtype != tensor.dtype:  # cast, which may round: take the original again
                self._buffers[name] = tensor.to(moved.device)
        return self
