"""Train the tiny model from scratch on a CPU: ``python -m examples.tiny_lmm.train OUT``.

One step: generate a batch (`batches`), run vision tower, projector and language model, add the
answers' cross-entropy and the auxiliary losses (`auxiliary`), AdamW step.  The learning rate warms
up and then follows a cosine over the steps, or over the wall clock, so that a run ends on time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from .architecture import WORD_ID, build_model, build_processor
from .auxiliary import AuxiliaryHeads
from .batches import IGNORE, PREFIX, SLOTS, Batch, Difficulty, layout, make_batch

WEIGHTS = {
    "answer": 1.0,
    "stop": 0.1,
    "object": 0.5,
    "shape": 0.5,
    "color": 0.4,
    "centre": 0.2,
    "present": 0.4,
    "what": 0.3,
    "where": 0.2,
    "attention": 0.4,
}
"""Weight of every loss; all but the first two shrink to a fifth over the run."""

VALIDATION_SEED = 7_000_003


def see(model: Any, batch: Batch) -> torch.Tensor:
    """Projected image tokens, (batch, 144, hidden)."""
    inner = model.model
    states = inner.vision_tower(batch.pixel_values, output_hidden_states=True).hidden_states[-1]
    return torch.as_tensor(inner.multi_modal_projector(states[:, 1:]))


def read(model: Any, tokens: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, ...]:
    """States before every layer of the language model, and its final states, of packed rows."""
    inner = model.model
    mask, positions = layout()
    words = inner.language_model.embed_tokens(batch.input_ids)
    out = inner.language_model(
        inputs_embeds=torch.cat([words[:, :1], tokens, words[:, PREFIX:]], dim=1),
        attention_mask=mask,
        position_ids=positions.expand(len(words), -1),
        output_hidden_states=True,
        use_cache=False,
    )
    return tuple(out.hidden_states)


def states_at(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Final states at `positions`, (batch, slots, hidden) of (batch, length, hidden)."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def answer_losses(model: Any, states: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Mean cross-entropies of the answers and of the ``<eos>`` after them."""
    asked = batch.answers != IGNORE
    stop = batch.answers.masked_fill(asked, WORD_ID["<eos>"])
    targets = {"answer": (0, batch.answers), "stop": (1, stop)}
    return {
        name: functional.cross_entropy(
            model.lm_head(states_at(states, batch.answer_positions + offset)).flatten(0, 1),
            target.flatten(),
            ignore_index=IGNORE,
        )
        for name, (offset, target) in targets.items()
    }


def validate(model: Any, images: int, batch_size: int = 16) -> dict[str, float]:
    """Accuracy per kind of question on fresh full-difficulty images of a seed of their own."""
    right = torch.zeros(len(SLOTS))
    asked = torch.zeros(len(SLOTS))
    model.eval()
    with torch.no_grad():
        for start in range(0, images, batch_size):
            rng = np.random.default_rng([VALIDATION_SEED, start])
            batch = make_batch(rng, batch_size, Difficulty())
            states = read(model, see(model, batch), batch)[-1]
            best = model.lm_head(states_at(states, batch.answer_positions)).argmax(-1)
            asked += (batch.answers != IGNORE).float().sum(0)
            right += (best == batch.answers).float().sum(0)
    model.train()
    sums: dict[str, list[float]] = {}
    for (kind, _), r, n in zip(SLOTS, right.tolist(), asked.tolist(), strict=True):
        entry = sums.setdefault(kind, [0.0, 0.0])
        entry[0] += r
        entry[1] += n
    return {kind: round(r / max(n, 1.0), 4) for kind, (r, n) in sums.items()}


def save(model: Any, folder: Path) -> None:
    """Write weights in bfloat16, configuration and processor to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=state)
    model.config.dtype = torch.float32
    build_processor().save_pretrained(folder)


def resume(model: Any, heads: AuxiliaryHeads, source: Path) -> None:
    """Load a training state, or a model's folder (the auxiliary heads then start anew)."""
    if source.is_dir():
        # transformers' names on disk differ from the modules'; its loader knows both
        model.load_state_dict(type(model).from_pretrained(source, dtype=torch.float32).state_dict())
        return
    state = torch.load(source, weights_only=True)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])


def _parameter_groups(modules: list[torch.nn.Module], decay: float) -> list[dict[str, object]]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            plain = parameter.ndim < 2 or "embed" in name
            (others if plain else matrices).append(parameter)
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _average_gradients(parameters: list[torch.nn.Parameter], workers: int) -> None:
    """Average the gradients over the workers."""
    with_gradient = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in with_gradient])
    distributed.all_reduce(flat)
    flat /= workers
    sizes = [gradient.numel() for gradient in with_gradient]
    for gradient, part in zip(with_gradient, torch.split(flat, sizes), strict=True):
        gradient.copy_(part.view_as(gradient))


def _losses(model: Any, heads: AuxiliaryHeads, batch: Batch, ask: bool) -> dict[str, torch.Tensor]:
    """All losses of a batch; without questions only those of the image tokens."""
    tokens = see(model, batch)
    losses = heads.patch(tokens, model.get_input_embeddings().weight, batch)
    if not ask:
        return losses
    states = read(model, tokens, batch)
    middle = states[model.config.text_config.num_hidden_layers // 2]
    return {
        **answer_losses(model, states[-1], batch),
        **losses,
        **heads.grounding(middle, batch),
        **heads.attention(model.model.language_model, states, layout()[1], batch),
    }


def train(rank: int, arguments: argparse.Namespace) -> None:
    """Run the whole training as worker `rank`; see `main` for the arguments."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    workers = arguments.workers
    if workers > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{out.resolve()}/workers", rank=rank, world_size=workers
        )
    model: Any = build_model().train()
    heads = AuxiliaryHeads(model.config.text_config.hidden_size)
    if arguments.resume:
        resume(model, heads, Path(arguments.resume))
    optimizer = torch.optim.AdamW(
        _parameter_groups([model, heads], arguments.weight_decay),
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    parameters = [*model.parameters(), *heads.parameters()]
    begin = last_save = time.monotonic()
    means: dict[str, float] = {}
    step = images = asking_since = 0
    while True:
        elapsed = time.monotonic() - begin
        limit = arguments.steps or 60.0 * arguments.minutes
        clock = torch.tensor([(step if arguments.steps else elapsed) / limit])
        if workers > 1:
            distributed.broadcast(clock, 0)
        progress = float(clock)
        done, ask = progress >= 1.0, progress >= arguments.align
        if rank == 0 and (done or time.monotonic() - last_save > 60.0 * arguments.save_minutes):
            accuracy = validate(model, 512 if done else 96) if ask or done else {}
            save(model, out)
            torch.save({"model": model.state_dict(), "heads": heads.state_dict()}, out / "state.pt")
            record = {"step": step, "minutes": round(elapsed / 60, 2), "accuracy": accuracy}
            print(json.dumps(record), flush=True)
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            last_save = time.monotonic()
        if done:
            break
        asking_since = asking_since if ask else step + 1
        warm = min((step - asking_since + 1 if ask else step + 1) / arguments.warmup, 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(warm, 0.02 + 0.98 * cosine)
        size = arguments.batch // workers * (1 if ask else 2)
        difficulty = Difficulty()
        if not arguments.no_curriculum:
            if ask:
                difficulty = Difficulty.at(progress - arguments.align)
            elif not arguments.resume:
                difficulty = Difficulty.seeing(progress / arguments.align)
        rng = np.random.default_rng([arguments.seed, step, rank])
        batch = make_batch(rng, size, difficulty, ask)
        losses = _losses(model, heads, batch, ask)
        fade = 1.0 - 0.8 * progress
        total = torch.zeros(())
        for name, loss in losses.items():
            total = total + WEIGHTS[name] * (1.0 if name in ("answer", "stop") else fade) * loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        if workers > 1:
            _average_gradients(parameters, workers)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, images = step + 1, images + size * workers
        for name, loss in losses.items():
            value = float(loss.detach())
            means[name] = 0.98 * means.get(name, value) + 0.02 * value
        if rank == 0 and step % 50 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            minutes = (time.monotonic() - begin) / 60
            print(f"step {step} {minutes:.1f} min {images} images {shown}", flush=True)
    if workers > 1:
        distributed.destroy_process_group()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m examples.tiny_lmm.train")
    parser.add_argument("out", help="folder for the model, its training state and the log")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="length of the schedule on the clock")
    length.add_argument("--steps", type=int, help="length of the schedule in steps (reproducible)")
    parser.add_argument("--batch", type=int, default=12, help="images per step, over all workers")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=30, help="steps")
    parser.add_argument(
        "--align", type=float, default=0.3, help="share of the run without questions"
    )
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="state.pt, or a model's folder, to start from")
    parser.add_argument("--no-curriculum", action="store_true", help="full difficulty at once")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "workers").unlink(missing_ok=True)
    if arguments.workers == 1:
        train(0, arguments)
    else:
        launch: Any = spawn  # torch leaves it without types
        launch(train, args=(arguments,), nprocs=arguments.workers)


if __name__ == "__main__":
    main()
