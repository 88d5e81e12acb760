"""Auxiliary losses that make a small model learn in an hour; their heads are thrown away.

* `patch`: projected image tokens point at the embeddings of their object's shape and colour words
  and predict its centre and radius;
* `grounding`: in the middle of the language model, the last word of a noun phrase predicts whether
  its object exists, what it is and where;
* `attention`: two heads of the middle layers look from there at the object's patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .architecture import WORD_ID
from .batches import COORDINATE_BINS, PREFIX, RADIUS_BINS, Batch
from .questions import PLURALS
from .scenes import COLOR_WORDS, SHAPES

_GEOMETRY = 2 * COORDINATE_BINS + RADIUS_BINS
_LOOKING_LAYERS, _LOOKING_HEADS = (1, 2), 2  # who is taught to look at named objects
_TEMPERATURE = 0.07  # of the cosine similarities between image tokens and word embeddings


class AuxiliaryHeads(nn.Module):
    """Heads on the projected image tokens and on one middle layer of the language model.

    Parameters
    ----------
    hidden : int
        Width of the language model.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(hidden)
        self.patch_object = nn.Linear(hidden, 2 + _GEOMETRY)
        self.mention_norm = nn.LayerNorm(hidden)
        self.mention_object = nn.Linear(hidden, 1 + len(SHAPES) + len(COLOR_WORDS) + _GEOMETRY)
        self.words: dict[str, torch.Tensor] = {
            "shape": torch.tensor([WORD_ID[w] for w in SHAPES]),
            "plural": torch.tensor([WORD_ID[PLURALS[w]] for w in SHAPES]),
            "color": torch.tensor([WORD_ID[w] for w in COLOR_WORDS]),
        }

    def patch(
        self, tokens: torch.Tensor, embeddings: torch.Tensor, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """Losses of the projected image tokens.

        Parameters
        ----------
        tokens : Tensor, (batch, 144, hidden)
            Output of the projector.
        embeddings : Tensor, (vocabulary, hidden)
            Word embeddings.
        batch : Batch
            Labels.

        Returns
        -------
        dict of str to Tensor
            One scalar per loss.
        """
        logits = self.patch_object(self.patch_norm(tokens))
        sample, patch = (batch.patches >= 0).nonzero(as_tuple=True)
        shape, color, *geometry = batch.objects[sample, batch.patches[sample, patch]].unbind(1)
        directions = functional.normalize(tokens[sample, patch], dim=-1)
        words = functional.normalize(embeddings, dim=-1)

        def aligned(kind: str, target: torch.Tensor) -> torch.Tensor:
            similarity = directions @ words[self.words[kind]].T
            return functional.cross_entropy(similarity / _TEMPERATURE, target)

        binary = torch.stack([batch.patches >= 0, batch.centres], dim=-1).to(logits.dtype)
        return {
            "object": 2.0 * functional.binary_cross_entropy_with_logits(logits[..., :2], binary),
            "shape": aligned("shape", shape) + 0.5 * aligned("plural", shape),
            "color": aligned("color", color),
            "centre": _geometry(logits[sample, patch, 2:], geometry),
        }

    def grounding(self, states: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses of the noun phrases in a middle layer's states, (batch, length, hidden)."""
        sample, position, index = batch.mentions.unbind(1)
        logits = self.mention_object(self.mention_norm(states[sample, position]))
        named = index >= 0
        present = functional.binary_cross_entropy_with_logits(logits[:, 0], named.to(logits.dtype))
        shape, color, *geometry = batch.objects[sample, index][named].unbind(1)
        parts = torch.split(logits[named, 1:], [len(SHAPES), len(COLOR_WORDS), _GEOMETRY], dim=1)
        return {
            "present": present,
            "what": functional.cross_entropy(parts[0], shape)
            + functional.cross_entropy(parts[1], color),
            "where": _geometry(parts[2], geometry),
        }

    def attention(
        self,
        language_model: Any,
        states: tuple[torch.Tensor, ...],
        positions: torch.Tensor,
        batch: Batch,
    ) -> dict[str, torch.Tensor]:
        """Let two heads of two middle layers look from a noun phrase at its object's patches.

        Parameters
        ----------
        language_model : transformers.LlamaModel
            The language model.
        states : tuple of Tensor, each (batch, length, hidden)
            The inputs of its layers.
        positions : Tensor of int64, (1, length)
            Position ids.
        batch : Batch
            Labels.

        Returns
        -------
        dict of str to Tensor
            Mean negative logarithm of the attention that falls on the object, among the image.
        """
        sample, position, index = batch.mentions[batch.mentions[:, 2] >= 0].unbind(1)
        target = batch.patches[sample] == index[:, None]
        cosine, sine = language_model.rotary_emb(states[0], positions)
        losses = []
        for number in _LOOKING_LAYERS:
            layer = language_model.layers[number]
            width = layer.self_attn.head_dim
            inputs = layer.input_layernorm(states[number])
            query = layer.self_attn.q_proj(inputs[sample, position])
            key = layer.self_attn.k_proj(inputs[:, 1:PREFIX])
            query = query.unflatten(-1, (-1, width))[:, :_LOOKING_HEADS]
            key = key.unflatten(-1, (-1, width))[:, :, :_LOOKING_HEADS]
            query = _rotate(query, cosine[0, position, None], sine[0, position, None])
            key = _rotate(key, cosine[:, 1:PREFIX, None], sine[:, 1:PREFIX, None])
            scores = torch.einsum("mhd,mphd->mhp", query, key[sample]) / width**0.5
            share = torch.log_softmax(scores, dim=-1)
            share = share.masked_fill(~target[:, None], -1e4).logsumexp(dim=-1)
            losses.append(-share[target.any(dim=1)].mean())
        return {"attention": torch.stack(losses).mean()}


def _geometry(logits: torch.Tensor, bins: list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of x, y and radius bins."""
    parts = torch.split(logits, [COORDINATE_BINS, COORDINATE_BINS, RADIUS_BINS], dim=1)
    terms = [functional.cross_entropy(*pair) for pair in zip(parts, bins, strict=True)]
    return torch.stack(terms).sum()


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding as Llama applies it."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
