"""What a prompt costs: FLOPs of the prefill, bytes of the KV cache, time to the first token.

Conventions: a multiplication and an addition are two FLOPs. Attention is counted over all pairs of
tokens, as ``torch.utils.flop_counter`` counts it, without the half that a causal mask could save.
Norms, activations, softmax and rotations are left out: below a thousandth for models of any size.
The output head counts for one position, as ``generate`` computes it.

With T tokens, L layers, width h, H heads and K key-value heads of d channels, MLP width i and V
words, the language model's prefill takes

    F = L · (T · 2 · (2 · h · H · d + 2 · h · K · d + 3 · h · i) + 4 · T² · H · d) + 2 · h · V

and its cache ``2 · L · K · d`` values per token. Weight compression leaves F as it is (``docs/
method.md``: packed products take as many multiplications as dense ones) and divides the bytes that
weights take, which bounds the time where memory does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_FLOPS_PER_RESTORED_VALUE = 29
"""Of a restored value: mean 1, saliency filter 1, average branch 8, maximum 8, anti-saliency filter
1, max branch 8, and 2 to add both to the grid."""


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of a language model with gated MLPs, as Llama, Mistral and Qwen2 have them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> LanguageShape:
        """Read the sizes from a model's configuration, or from that of its language model."""
        text = getattr(config, "text_config", config)
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate=text.intermediate_size,
            vocabulary=text.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one layer."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Weights of all linear layers, without the output head and the embeddings."""
        return self.layers * self.layer_weights


def prefill_flops(config: Any, tokens: int) -> float:
    """Return the FLOPs of the language model's prefill, by the formula above.

    Parameters
    ----------
    config
        Of a model of transformers, or of its language model.
    tokens
        T, text and visual tokens of the prompt together.

    Examples
    --------
    LLaVA-1.5-7B with 34 tokens of text: 36 instead of 576 visual tokens take 89 % off, × 8.9.

    >>> from transformers import LlamaConfig
    >>> vicuna = LlamaConfig(vocab_size=32064)
    >>> full, few = prefill_flops(vicuna, 576 + 34), prefill_flops(vicuna, 36 + 34)
    >>> f"{full / 1e12:.2f} and {few / 1e12:.2f} TFLOPs: {full / few:.1f}"
    '8.10 and 0.91 TFLOPs: 8.9'
    """
    shape = LanguageShape.of(config)
    linear = 2 * shape.layer_weights * tokens
    attention = 4 * tokens**2 * shape.heads * shape.head_dim
    return float(shape.layers * (linear + attention) + 2 * shape.hidden * shape.vocabulary)


def vision_flops(config: Any) -> float:
    """Return the FLOPs of encoding one image: CLIP's or SigLIP's tower, and LLaVA's projector.

    With S tokens, L layers, width v and MLP width m, patches of p × p pixels in a grid of n:
    ``2 · n · 3p² · v + L · (S · 2 · (4v² + 2vm) + 4 · S² · v) + 2 · n · (f · v · h + h²)``, where f
    counts the layers whose states the projector sees. All layers count, used or not. Visual tokens
    are reduced behind the projector, so this does not depend on their number.

    Parameters
    ----------
    config
        Of a LLaVA model.
    """
    vision = config.vision_config
    width, patch = vision.hidden_size, vision.patch_size
    grid = (vision.image_size // patch) ** 2
    tokens = grid + int(vision.model_type.startswith("clip"))
    linear = 2 * (4 * width**2 + 2 * width * vision.intermediate_size) * tokens
    layers = vision.num_hidden_layers * (linear + 4 * tokens**2 * width)
    projector = 2 * grid * _projector_weights(config)
    return float(2 * grid * vision.num_channels * patch**2 * width + layers + projector)


def _projector_weights(config: Any) -> int:
    hidden, chosen = config.text_config.hidden_size, config.vision_feature_layer
    seen = 1 if isinstance(chosen, int) else len(chosen)
    return int((seen * config.vision_config.hidden_size + hidden) * hidden)


def _vision_weights(config: Any) -> int:
    """Weights of the linear layers of vision tower and projector."""
    vision = config.vision_config
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    return int(vision.num_hidden_layers * layer + _projector_weights(config))


def restoration_flops(
    channels: int, pools: tuple[int, ...], side: int, visual_tokens: int
) -> float:
    """Return the FLOPs of pooling and restoring one square grid down to a number of tokens.

    A pool takes p² per value it gives, a restoration 29 (mean, maximum and both branches); nothing
    is restored at a single token.

    Parameters
    ----------
    channels
        C, the width of a token.
    pools
        Sides of the pooling windows, finest level first.
    side
        Side of the grid.
    visual_tokens
        The scale.

    Examples
    --------
    At most 6 · 10⁻⁵ of the prefill of LLaVA-1.5-7B with 34 tokens of text, reached at one visual
    token:

    >>> from transformers import LlamaConfig
    >>> vicuna = LlamaConfig(vocab_size=32064)
    >>> for count in (144, 36, 9, 1):
    ...     share = restoration_flops(4096, (2, 2, 2, 3), 24, count)
    ...     print(count, f"{share / prefill_flops(vicuna, count + 34):.1e}")
    144 8.4e-06
    36 2.7e-05
    9 4.6e-05
    1 5.6e-05
    """
    total, current = 0, side
    for pool in pools:
        if current**2 <= visual_tokens:
            break
        current //= pool
        restored = _FLOPS_PER_RESTORED_VALUE if current > 1 else 0
        total += (pool**2 + restored) * current**2 * channels
    return float(total)


def kv_cache_bytes(config: Any, tokens: int, bytes_per_value: int = 2) -> int:
    """Return the bytes of keys and values of a prompt: ``2 · L · K · d · T`` values.

    Parameters
    ----------
    config
        Of a model of transformers, or of its language model.
    tokens
        T, text and visual tokens of the prompt together.
    bytes_per_value
        2 for float16 and bfloat16.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> kv_cache_bytes(LlamaConfig(), 576 + 33) / 2**20
    304.5
    """
    shape = LanguageShape.of(config)
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * bytes_per_value


@dataclass(frozen=True)
class Machine:
    """What a machine reaches: FLOP/s of large products, and bytes per second from memory."""

    flops_per_second: float
    bytes_per_second: float


def time_to_first_token(
    config: Any,
    machine: Machine,
    text_tokens: int,
    visual_tokens: int,
    *,
    images: int = 1,
    bits_per_weight: float = 16.0,
) -> float:
    """Return the seconds until the first token of an answer, by a roofline model.

    The sum over vision tower with projector and language model of ``max(F / rate, weight bytes /
    bandwidth)``: products of few tokens are bound by reading the weights, which compression
    shortens. Overheads of launching operations, and of decoding packed weights, are not in it.

    Parameters
    ----------
    config
        Of a LLaVA model.
    machine
        See :class:`Machine`.
    text_tokens, visual_tokens
        Of the prompt; visual tokens of all images together.
    images
        Images to encode.
    bits_per_weight
        Stored bits of the linear layers: 16 for bfloat16, what a report of compression states for
        packed ones.
    """
    stages = (
        (images * vision_flops(config), _vision_weights(config) if images else 0),
        (prefill_flops(config, text_tokens + visual_tokens), LanguageShape.of(config).weights),
    )
    return sum(
        max(
            flops / machine.flops_per_second,
            weights * bits_per_weight / 8 / machine.bytes_per_second,
        )
        for flops, weights in stages
    )
