"""Trains the tiny model with a pyramid of visual tokens: pyramid, projector and language model.

The loss is the mean over the scales of the answers' cross-entropy (Matryoshka); all questions of an
image share one row, as in ``examples.tiny_lmm.train``, so a step costs one row per image and scale.
The vision tower stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.score_store import Arrays, Store, hash_of_files, key_of
from bench.tiny_model import ROOT
from examples.tiny_lmm.architecture import IMAGE_TOKENS, PATCHES_PER_SIDE
from examples.tiny_lmm.batches import PREFIX, Batch, Difficulty, layout, make_batch
from examples.tiny_lmm.train import WEIGHTS, answer_losses, see
from llava_fa.fmvr import VisualTokenPyramid, pools_of

POOLS = pools_of(PATCHES_PER_SIDE)
FIRST_SEED = 20_260_500
"""Of the training images; the benchmark's and the tiny model's own training use others."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the same for every variant and seed."""

    steps: int = 40
    images: int = 6
    learning_rate: float = 5e-4
    pyramid_learning_rate: float = 5e-3
    warm_up: int = 5

    def share(self, step: int) -> float:
        """Share of the learning rate: a linear warm-up, then a cosine to zero."""
        rise = min(1.0, (step + 1) / self.warm_up)
        return rise * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def load(folder: Path) -> Any:
    """Load the tiny model in float32."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def kept(folder: Path, variant: str, seed: int, schedule: Schedule, store: Store) -> Arrays:
    """Return what training gives, now or in an earlier run of the same code."""
    library = ROOT / "python" / "llava_fa" / "fmvr"
    code = [library / f"{name}.py" for name in ("restoration", "pyramid", "scales")]
    key = key_of(
        schedule=dataclasses.asdict(schedule),
        variant=variant,
        seed=seed,
        code=hash_of_files([*code, Path(__file__), *(ROOT / "examples" / "tiny_lmm").glob("*.py")]),
        model=hash_of_files(folder.glob("*.safetensors")),
        torch=torch.__version__,
    )
    found = store.get(key)
    if found is None:
        found = trained(folder, variant, seed, schedule)
        store.put(key, found)
    return found


def trained(folder: Path, variant: str, seed: int, schedule: Schedule) -> Arrays:
    """Train and return the changed tensors by name, those of the pyramid under ``fmvr.``."""
    torch.manual_seed(seed)
    model = load(folder).train()
    pyramid = VisualTokenPyramid(
        model.config.text_config.hidden_size, POOLS, PATCHES_PER_SIDE, variant
    )
    model.requires_grad_(False)
    parts = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
    rest = [parameter.requires_grad_() for part in parts for parameter in part.parameters()]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": schedule.learning_rate}]
    if list(pyramid.parameters()):
        groups.append({"params": pyramid.parameters(), "lr": schedule.pyramid_learning_rate})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.share)
    for step in range(schedule.steps):
        rng = np.random.default_rng([FIRST_SEED, seed, step])
        batch = make_batch(rng, schedule.images, Difficulty())
        losses = scale_losses(model, pyramid, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).mean())
        torch.nn.utils.clip_grad_norm_([*rest, *pyramid.parameters()], 1.0)
        optimizer.step()
        rates.step()
        if step % 10 == 0 or step == schedule.steps - 1:
            shown = " ".join(f"{scale}: {loss.item():.3f}" for scale, loss in losses.items())
            print(f"{variant} seed {seed} step {step} {shown}", flush=True)
    changed = {name: p for name, p in model.named_parameters() if p.requires_grad}
    changed |= {f"fmvr.{name}": p for name, p in pyramid.named_parameters()}
    return {name: parameter.detach().numpy() for name, parameter in changed.items()}


def scale_losses(model: Any, pyramid: VisualTokenPyramid, batch: Batch) -> dict[int, Tensor]:
    """Loss of a batch by number of visual tokens."""
    return {
        tokens.shape[1]: _loss(model, tokens, batch) for tokens in pyramid.levels(see(model, batch))
    }


def _loss(model: Any, tokens: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the answers and of the end after them, with the image in these tokens."""
    count = tokens.shape[1]
    kept = torch.cat([torch.arange(1 + count), torch.arange(PREFIX, batch.input_ids.shape[1])])
    mask, positions = layout()
    places = positions[:, kept]
    places = torch.where(kept < PREFIX, places, places - (IMAGE_TOKENS - count))
    words = model.get_input_embeddings()(batch.input_ids)
    states = model.model.language_model(
        inputs_embeds=torch.cat([words[:, :1], tokens, words[:, PREFIX:]], dim=1),
        attention_mask=mask[:, :, kept][..., kept],
        position_ids=places.expand(len(words), -1),
        use_cache=False,
    ).last_hidden_state
    # slots without a question have position 0, and no label
    moved = (batch.answer_positions - (IMAGE_TOKENS - count)).clamp(min=0)
    losses = answer_losses(model, states, dataclasses.replace(batch, answer_positions=moved))
    return WEIGHTS["answer"] * losses["answer"] + WEIGHTS["stop"] * losses["stop"]
