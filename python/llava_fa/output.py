"""The output folder: whether we may write there, and the files beside the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import writer
from .errors import CheckpointError
from .packed_checkpoint import FORMAT_VERSION
from .partial import PARTIAL_NAME, PartialRun, ShardRecord, shard_name
from .shards import INDEX_NAME, Checkpoint, read_json

MANIFEST_NAME = "llava_fa_manifest.json"
CARD_NAME = "README.md"

_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_WEIGHT_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
)
# The only subfolder that transformers reads; others hold earlier checkpoints, logs and the like.
_TEMPLATE_FOLDER = "additional_chat_templates"
_WRITTEN_BY_US = frozenset(("config.json", INDEX_NAME, MANIFEST_NAME, CARD_NAME))


def check_places(source: Path, output: Path) -> None:
    """Refuse an output that is, contains or lies inside the source: it must stay untouched."""
    here, there = source.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise CheckpointError(
            f"{output}: the output folder must not be the source folder {source}, nor lie inside "
            "or around it; choose another folder"
        )
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output}: expected a folder to write to, found a file")


def check_empty(output: Path) -> None:
    """Refuse a folder with anything in it but an unusable state of ours."""
    found = [path.name for path in _entries(output) if path.name != PARTIAL_NAME]
    if found:
        raise CheckpointError(
            f"{output}: the output folder is not empty ({', '.join(sorted(found)[:3])}"
            f"{', …' if len(found) > 3 else ''}); choose another folder, or pass overwrite=True "
            "(--overwrite) to replace the checkpoint in it"
        )


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def clear_output(source: Path, output: Path) -> None:
    """Delete what a run would write, and nothing else; ``config.json`` first, so that a
    half-deleted checkpoint is never taken for a whole one.
    """
    doomed = [output / "config.json"]
    doomed += [path for path in _entries(output) if _WEIGHT_FILE.fullmatch(path.name)]
    doomed += [output / name for name in sorted(_WRITTEN_BY_US - {"config.json"})]
    doomed += [output / path.relative_to(source) for path in _side_files(source)]
    PartialRun(output).clear()
    writer.remove(path for path in doomed if path.is_file())


def _side_files(source: Path) -> Iterator[Path]:
    """Everything that is copied: tokenizer, processor, generation settings, licences, …"""
    for path in sorted([*source.glob("*"), *source.glob(f"{_TEMPLATE_FOLDER}/*")]):
        hidden = path.name.startswith(".")
        ours = path.name in _WRITTEN_BY_US or path.name.endswith(".index.json")
        if path.is_file() and not hidden and not ours and path.suffix not in _WEIGHT_SUFFIXES:
            yield path


def earlier_requests(output: Path) -> list[dict[str, Any] | None]:
    """Return what an interrupted and a finished run in the folder were asked for."""
    manifest = read_json(output / MANIFEST_NAME) if (output / MANIFEST_NAME).exists() else {}
    finished = manifest.get("request") if isinstance(manifest, dict) else None
    return [PartialRun(output).request(), finished]


def finished_manifest(output: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest if the folder already holds the finished result of this very request."""
    if not (output / "config.json").exists() or not (output / MANIFEST_NAME).exists():
        return None
    manifest = read_json(output / MANIFEST_NAME)
    same = isinstance(manifest, dict) and manifest.get("request") == json.loads(json.dumps(request))
    return manifest if same else None


def manifest_of(request: Mapping[str, Any], records: Sequence[ShardRecord]) -> dict[str, Any]:
    """Return the content of the manifest that stays in the output, for ``verify``."""
    files = {
        shard_name(record.number, len(records)): {"nbytes": record.nbytes, "sha256": record.sha256}
        for record in records
    }
    return {
        "format_version": FORMAT_VERSION,
        "request": dict(request),
        "files": files,
        "tensors": {name: sha for record in records for name, sha in record.tensors.items()},
        "rows": [row.to_dict() for record in records for row in record.rows],
    }


def publish(
    run: PartialRun,
    checkpoint: Checkpoint,
    records: Sequence[ShardRecord],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any] | None,
    card: str | None,
) -> None:
    """Move the shards to their names, then write index, copied files and, last, ``config.json``."""
    output = run.output
    weight_map = run.publish_shards(records)
    if len(records) > 1:
        size = sum(row.nbytes_after for record in records for row in record.rows)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        writer.write_json(output / INDEX_NAME, index)
    for path in _side_files(checkpoint.folder):
        writer.copy_file(path, output / path.relative_to(checkpoint.folder))
    if manifest is not None:
        writer.write_json(output / MANIFEST_NAME, manifest)
    if card is not None:
        writer.write_bytes(output / CARD_NAME, card.encode())
    writer.write_json(output / "config.json", config)
    run.clear()
