"""AutoRound: rounding learned by signed gradient descent, block by block, on calibration inputs.

It runs the model itself on the calibration questions, vision tower and projector included.
Counted as its checkpoints store them: codes and zero points at their width, float16 scales.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.baselines import Baseline
from bench.peers.task import Setting, Task

PACKAGE = "auto-round"
SETTINGS = (
    Setting("AutoRound W4A16, own settings", 4, {"bits": 4, "group_size": 128}, seeded=True),
    *(
        Setting(
            "AutoRound g64, matched", bits, {"bits": bits, "group_size": 64, "sym": False}, True
        )
        for bits in (2, 3, 4)
    ),
)
LARGEST_SAMPLE = 128
"""Its own default of calibration samples."""


def quantize(task: Task, options: dict[str, Any], seed: int) -> dict[str, Baseline]:
    """Tune the whole model and read its decoded weights."""
    from auto_round import AutoRound
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from examples.tiny_lmm.benchmark import calibration_questions

    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(task.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(task.model)
    inputs = [
        dict(processor(images=[q.pil_image()], text=[q.prompt], return_tensors="pt"))
        for q in calibration_questions(min(task.calibration, LARGEST_SAMPLE))
    ]
    # Samples shorter than `seqlen` would be dropped; layers outside blocks must be named.
    shortest = min(sample["input_ids"].shape[1] for sample in inputs)
    layer = {key: options[key] for key in ("bits", "group_size", "sym") if key in options}
    projector = {name: dict(layer) for name in task.weights if "projector" in name}
    tuner = AutoRound(
        model,
        tokenizer=processor.tokenizer,
        processor=processor,
        scheme="W4A16",
        dataset=inputs,
        nsamples=len(inputs),
        seqlen=shortest,
        batch_size=1,
        gradient_accumulate_steps=8,
        device_map="cpu",
        amp=False,
        seed=seed,
        quant_nontext_module=True,
        layer_config=projector,
        **options,
    )
    tuned, _ = tuner.quantize()
    modules = dict(tuned.named_modules())
    results = {}
    for name, weight in task.weights.items():
        module = modules[name]
        if not hasattr(module, "scale"):
            raise ValueError(f'AutoRound left "{name}" as it was')
        groups = torch.as_tensor(module.scale).numel()
        bits = weight.numel() * options["bits"] + groups * (16 + options["bits"])
        results[name] = Baseline(module.weight.detach().float().clone(), bits)
    return results
