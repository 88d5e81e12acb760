"""The section about the compression in the output's model card (``README.md``)."""

from __future__ import annotations

from pathlib import Path

from .config import CompressionConfig
from .output import CARD_NAME
from .report import CompressionReport

_BEGIN = "<!-- llava-fa: begin -->"
_END = "<!-- llava-fa: end -->"


def model_card(
    source: Path, report: CompressionReport, config: CompressionConfig, *, refinement: str = ""
) -> str:
    """Return the source's model card with our section appended.

    ``refinement`` says what distillation did, if there was any.
    """
    card = plain_card(source)
    return (f"{card}\n" if card else "") + _section(report, config, refinement) + "\n"


def plain_card(source: Path) -> str:
    """Return a folder's model card without our section; "" if it has none."""
    path = source / CARD_NAME
    card = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    before, _, rest = card.partition(_BEGIN)
    text = before.rstrip() + rest.partition(_END)[2].rstrip()
    return f"{text}\n" if text else ""


def _section(report: CompressionReport, config: CompressionConfig, refinement: str) -> str:
    options = config.to_dict()
    widths = sorted({row.spec.code_bits / 2 for row in report.compressed if row.spec})
    if len(widths) > 1:
        options["bits"] = f"{widths[0]:g} to {widths[-1]:g}"
    settings = ", ".join(f"{key}={value}" for key, value in options.items())
    before, after = f"{report.nbytes_before / 1e6:.2f} MB", f"{report.nbytes_after / 1e6:.2f} MB"
    bits = f"{report.bits_per_weight:.3f} stored bits per weight"
    return f"""{_BEGIN}
## Compressed with llava-fa

The linear layers are stored as polar codes of their half spectrum. Import `llava_fa` **before**
loading: without it transformers only warns and returns randomly initialized weights.

```python
import llava_fa  # registers the format; must come before from_pretrained
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER", dtype="auto")
```

| | |
|---|---|
| stored tensors | {before} before, {after} now |
| ratio | {report.ratio:.2f} times smaller |
| compressed matrices | {len(report.compressed)}, {bits} |
| kept as stored | {len(report.kept)} tensors |
| relative squared error | {_error(report)} |
| calibration | {report.calibration_text() or "none"} |
| refinement | {" ".join(refinement.split()) or "none"} |
| settings | {settings} |

```
{report.summary_table()}
```
{_END}"""


def _error(report: CompressionReport) -> str:
    return "unknown" if report.relative_error is None else f"{report.relative_error:.4g}"
