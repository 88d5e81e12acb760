"""The command line ``llava-fa``: argument parsing, output and exit codes; the work is elsewhere.

Exit codes: 0 success, 1 an error or a failed verification, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .cli_fmvr import add_budget, add_training, budget_of, run_training
from .cli_options import add_calibration, add_config, add_inputs, settings_of
from .cli_plan import add_plan_options, add_target, contradiction, run_plan
from .cli_refine import add_refine_options, run_refine
from .config import CompressionConfig
from .errors import LlavaFaError

_EXAMPLES = """\
examples:
  llava-fa compress llava-1.5-7b-hf small --bits 3
  llava-fa compress llava-1.5-7b-hf small --bits 2.5 --recipe recipe.yaml --calib examples.jsonl
  llava-fa compress llava-1.5-7b-hf small --target-size 3.2GB
  llava-fa plan llava-1.5-7b-hf --target-bits 2.75
  llava-fa compress llava-1.5-7b-hf small --calib examples.jsonl --save-calibration moments.st
  llava-fa compress llava-1.5-7b-hf smaller --bits 2 --load-calibration moments.st
  llava-fa plan llava-1.5-7b-hf --target-bits 2.1 --load-calibration moments.st
  llava-fa refine smaller llava-1.5-7b-hf refined --calib examples.jsonl
  llava-fa inspect small
  llava-fa verify small --source llava-1.5-7b-hf
  llava-fa generate small --image cat.jpg --prompt "What is in the picture?"
  llava-fa serve small --runtime packed
  llava-fa decompress small dense --dtype bfloat16
  llava-fa fmvr train llava-1.5-7b-hf elastic --data llava.json --images images
  llava-fa generate elastic --image cat.jpg --prompt "What is it?" --visual-tokens 36
  llava-fa demo
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="llava-fa",
        description="Compress multimodal checkpoints with polar codes in the frequency domain.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compress(commands)
    _add_plan(commands)
    _add_refine(commands)
    _add_decompress(commands)
    _add_inspect(commands)
    _add_verify(commands)
    _add_generate(commands)
    _add_serve(commands)
    _add_fmvr(commands)
    _add_demo(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--verbose", action="store_true", help="show what libraries log")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    return parser


class _UsageError(Exception):
    """An option has a value that the command cannot take."""


def _config(arguments: argparse.Namespace) -> CompressionConfig:
    try:
        return CompressionConfig(**settings_of(CompressionConfig, arguments))
    except (TypeError, ValueError) as error:
        raise _UsageError(str(error)) from error


def _add_compress(commands: Any) -> None:
    parser = _command(
        commands,
        "compress",
        _compress,
        "Compress the linear layers of a checkpoint into a new folder.",
        "llava-fa compress llava-1.5-7b-hf small --bits 3",
    )
    parser.add_argument("source", help="folder with config.json and safetensors, or a hub id")
    parser.add_argument("output", help="folder to write")
    add_config(parser)
    add_target(parser, required=False)
    parser.add_argument("--plan", metavar="FILE.json", help="settings that llava-fa plan saved")
    add_inputs(parser)
    add_calibration(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in OUTPUT")
    parser.add_argument("--no-resume", action="store_true", help="start an interrupted run anew")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the compression")
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, or an NVIDIA GPU that calibrates and finds the codes: cuda, cuda:1",
    )


def _compress(arguments: argparse.Namespace) -> int:
    from .compress import compress_checkpoint

    config = _config(arguments)
    if problem := contradiction(arguments, list(settings_of(CompressionConfig, arguments))):
        raise _UsageError(problem)
    _set_threads(arguments.threads)
    report = compress_checkpoint(
        arguments.source,
        arguments.output,
        None if arguments.plan else config,
        recipe=arguments.recipe,
        calibration_data=arguments.calib,
        calibration_samples=arguments.calib_samples,
        calibration_order=arguments.calibration_order,
        calibration_memory=arguments.calibration_memory,
        save_calibration=arguments.save_calibration,
        load_calibration=arguments.load_calibration,
        resume=not arguments.no_resume,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
        on_nonfinite=arguments.on_nonfinite,
        max_shard_size=arguments.max_shard_size,
        target_bits=arguments.target_bits,
        target_size=arguments.target_size,
        sensitivity=arguments.sensitivity,
        plan=arguments.plan,
        device=arguments.device,
        calibration_device=arguments.calibration_device,
    )
    print(report.to_json() if arguments.json else report.summary_table())
    return 0


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        lambda arguments: run_plan(arguments, _config(arguments)),
        "Choose the code size of every matrix for a size target, and save the choice.",
        "llava-fa plan llava-1.5-7b-hf --target-bits 2.75",
    )
    parser.add_argument("source", help="folder with config.json and safetensors, or a hub id")
    add_config(parser, bits=False)
    add_target(parser, required=True)
    add_inputs(parser)
    add_plan_options(parser)


def _add_refine(commands: Any) -> None:
    parser = _command(
        commands,
        "refine",
        run_refine,
        "Train scales and factors of a compressed folder towards the dense model's answers.",
        "llava-fa refine small llava-1.5-7b-hf refined --calib examples.jsonl",
    )
    add_refine_options(parser)


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    if threads < 1:
        raise _UsageError(f"--threads must be at least 1, got {threads}")
    import torch

    from . import _core

    _core.set_num_threads(threads)
    torch.set_num_threads(threads)


def _add_decompress(commands: Any) -> None:
    parser = _command(
        commands,
        "decompress",
        _decompress,
        "Turn a compressed checkpoint into a plain dense one.",
        "llava-fa decompress small dense --dtype bfloat16",
    )
    parser.add_argument("source", help="compressed folder")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--dtype", help="type of all weights, e.g. float32; default: as before")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in OUTPUT")


def _decompress(arguments: argparse.Namespace) -> int:
    from .decompress import decompress_checkpoint

    report = decompress_checkpoint(
        arguments.source,
        arguments.output,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        progress=not arguments.no_progress,
    )
    before, after = report.nbytes_before / 1e6, report.nbytes_after / 1e6
    line = f"{len(report.rows)} tensors, {before:.2f} MB -> {after:.2f} MB in {arguments.output}"
    print(report.to_json() if arguments.json else line)
    return 0


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        _inspect,
        "Show what a compressed folder holds, without loading the model.",
        "llava-fa inspect small",
    )
    parser.add_argument("folder", help="compressed folder")


def _inspect(arguments: argparse.Namespace) -> int:
    from .verify import inspect_checkpoint

    report = inspect_checkpoint(arguments.folder)
    print(report.to_json() if arguments.json else report.summary_table())
    return 0


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        _verify,
        "Check every tensor of a compressed folder; with --source, the errors too.",
        "llava-fa verify small --source llava-1.5-7b-hf",
    )
    parser.add_argument("folder", help="compressed folder")
    parser.add_argument("--source", help="the dense checkpoint it was made from")


def _verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .verify import verify_checkpoint

    with tqdm(desc="verifying", unit="tensor", disable=arguments.no_progress) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = verify_checkpoint(arguments.folder, arguments.source, progress=advance)
    if arguments.json:
        print(result.to_json())
    else:
        for problem in result.problems:
            print(f"FAILED {problem}")
        if arguments.source:
            print(result.report.summary_table())
        if not result.hashed:
            print("note: no manifest with hashes in the folder; changed bytes may go unnoticed")
        verdict = "intact" if result.ok else f"{len(result.problems)} problem(s)"
        print(f"{arguments.folder}: {len(result.report.rows)} tensors and matrices, {verdict}")
    return 0 if result.ok else 1


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "Answer a question, about an image if one is given.",
        'llava-fa generate small --image cat.jpg --prompt "What is in the picture?"',
    )
    parser.add_argument("model", help="compressed or dense folder")
    parser.add_argument("--image", metavar="FILE")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    _add_runtime(parser)
    add_budget(parser)


def _generate(arguments: argparse.Namespace) -> int:
    import json

    from .generate import generate_answer

    answer = generate_answer(
        arguments.model,
        arguments.prompt,
        arguments.image,
        max_new_tokens=arguments.max_new_tokens,
        runtime=arguments.runtime,
        stream=not arguments.json,
        **budget_of(arguments),
    )
    if arguments.json:
        print(json.dumps({"answer": answer}))
    return 0


def _add_serve(commands: Any) -> None:
    text = "Serve a compressed folder to OpenAI clients, by transformers' own server."
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help=text,
        description=f"{text} FOLDER and all options but ours are those of `transformers serve`.",
        usage="%(prog)s [-h] [--runtime {dense,packed}] FOLDER [OPTION ...]",
        epilog="example:\n  llava-fa serve small --runtime packed --host 127.0.0.1 --port 8000\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_serve, verbose=False)
    _add_runtime(parser)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime",
        choices=("dense", "packed"),
        help="decode the weights at loading, or multiply with the codes "
        "(default: LLAVA_FA_RUNTIME, else dense with a GPU and packed without)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    from .serve import serve

    serve(arguments.further, arguments.runtime)
    return 0


def _add_fmvr(commands: Any) -> None:
    text = "Elastic visual tokens: models that answer with fewer of them."
    parser = commands.add_parser("fmvr", help=text, description=text)
    parts = parser.add_subparsers(dest="part", required=True, metavar="COMMAND")
    add_training(
        _command(
            parts,
            "train",
            run_training,
            "Train a model at several numbers of visual tokens at once.",
            "llava-fa fmvr train llava-1.5-7b-hf elastic --data llava.json --images images",
        )
    )


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "Compress the tiny example model, score it and ask it three questions.",
        "llava-fa demo --bits 3",
    )
    parser.add_argument("--example", default="examples/tiny_lmm", metavar="DIR")
    parser.add_argument("--output", metavar="DIR", help="keep the compressed model there")
    parser.add_argument("--questions", type=int, default=2000, metavar="N")
    add_config(parser)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    result = run_demo(
        arguments.example,
        arguments.output,
        config=_config(arguments),
        questions=arguments.questions,
        progress=not arguments.no_progress,
    )
    print(result.to_json() if arguments.json else result.table())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    arguments, further = parser.parse_known_args(argv)
    if further and arguments.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    arguments.further = further
    with warnings.catch_warnings():
        _quiet(arguments)
        try:
            return int(arguments.run(arguments))
        except KeyboardInterrupt:
            print("\ninterrupted" + _resume_hint(arguments), file=sys.stderr)
            return 130
        except _UsageError as error:
            print(f"usage error: {error}", file=sys.stderr)
            return 2
        except (LlavaFaError, ValueError, TypeError, OSError) as error:
            if arguments.verbose:
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1


def _resume_hint(arguments: argparse.Namespace) -> str:
    kept = {"compress": "finished tensors are", "fmvr": "the last saved state is"}
    if arguments.command not in kept:
        return ""
    return (
        f"; {kept[arguments.command]} kept in {arguments.output}, run the same command to continue"
    )


def _quiet(arguments: argparse.Namespace) -> None:
    """Let our own warnings through in one line each, and silence the libraries unless asked."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    if arguments.verbose:
        logging.basicConfig(level=logging.INFO)
        return
    warnings.showwarning = show
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    # Both are read when the libraries are imported, which our subcommands do later.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


if __name__ == "__main__":
    sys.exit(main())
