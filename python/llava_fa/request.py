"""What a run was asked for, in a form that tells whether a later run may continue it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import writer
from .errors import ResumeError
from .packed_checkpoint import FORMAT_VERSION
from .shards import Checkpoint


def describe_request(
    checkpoint: Checkpoint, settings: Mapping[str, Any], *, progress: bool = False
) -> dict[str, Any]:
    """Describe the run so that any difference that could change its bytes is seen.

    Reads the whole source to hash it; ``progress`` shows a bar on stderr meanwhile.
    """
    from tqdm import tqdm

    from . import __version__

    files = [checkpoint.folder / "config.json", *checkpoint.files]
    size = sum(file.stat().st_size for file in files)
    description = "hashing the source"
    with tqdm(total=size, unit="B", unit_scale=True, desc=description, disable=not progress) as bar:
        source = {file.name: writer.hash_file(file, bar.update) for file in files}
    request = {
        "format_version": FORMAT_VERSION,
        "producer": f"llava-fa {__version__}",
        "source": source,
    }
    return with_settings(request, settings)


def with_settings(request: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with other settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {**request, "settings": dict(settings), "settings_sha256": digest}


def check_same_request(
    output: Path, earlier: Mapping[str, Any], request: Mapping[str, Any]
) -> None:
    """Compare what the interrupted run was asked for with what is asked for now."""
    old, new = _flat(earlier), _flat(json.loads(json.dumps(request)))
    keys = sorted({*old, *new} - {"settings_sha256"})
    differing = [key for key in keys if old.get(key) != new.get(key)]
    if not differing:
        return
    lines = [f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in differing[:5]]
    raise ResumeError(
        f"{output}: holds an interrupted run of another request ({'; '.join(lines)}); repeat "
        "the earlier request to finish it, or pass overwrite=True (--overwrite) to start anew"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
