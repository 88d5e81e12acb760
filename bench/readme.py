"""Writes the figures of ``bench/results`` into the README: ``python -m bench.readme``.

The README quotes nothing by hand; ``tests/python/test_docs.py`` checks that it is up to date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import methods as m
from bench.peers.decode import INT4, NF4
from bench.support import RESULTS, markdown

README = Path(__file__).resolve().parents[1] / "README.md"


QUOTED = (
    m.ROUNDED,
    m.AWQ_SEARCHED,
    m.GPTQ,
    m.STRONG_GPTQ,
    m.SVD_LLM,
    m.LQ_LORA,
    m.NF4,
    "HQQ g64",
    "bitsandbytes NF4, double quantization",
    "GPTQModel strong g64",
    m.NO_DATA,
    m.CALIBRATED,
    m.TRELLIS_NO_DATA,
    m.FED_BACK,
    m.TRELLIS,
    m.TRELLIS_NO_SCALES,
)
"""Methods that the README quotes; the results hold all."""
QUOTED_WIDTHS = (1.0, 1.5, 2.0, 3.0, 4.0)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quality_section() -> str:
    """Answers of the tiny model over stored bits, with the chart."""
    results = load("quality")
    dense = results["dense"]
    columns = ("method", "bits", "stored bits", "output error", "KL", "accuracy %")
    measured = results["tables"]["Answers of the tiny model"]
    rows = [
        {column: row[column] for column in columns}
        for bits in QUOTED_WIDTHS
        for name in QUOTED
        for row in measured
        if (row["method"], row["bits"]) == (name, bits)
    ]
    return (
        f"{dense['questions']} held-out questions about generated images, answered by the trained\n"
        "LLaVA-architecture model in `examples/tiny_lmm/`; all stored bits counted. Output error\n"
        "is the mean relative squared error of layers' outputs on held-out inputs; KL is the mean\n"
        "divergence of the answer distribution from the dense model's, in nats. Dense\n"
        f"accuracy: {dense['accuracy %']:.1f} % (95 % interval {dense['accuracy interval']}).\n\n"
        "![KL and accuracy over stored bits](bench/results/quality.png)\n\n"
        f"{markdown(rows)}\n\nAll rows: `bench/results/quality.md`, by `{results['command']}`"
    )


def processor(found: Mapping[str, Any]) -> str:
    """Return what a result was measured on, in words."""
    machine = found["machine"]
    vectors = "AVX-512" if "avx512f" in machine["vector_instructions"] else "AVX2"
    return f"{machine['processor']}, {machine['cores']} cores, {vectors}"


def decoding_text() -> str:
    """Tokens through packed layers, beside dense ones and those of others."""
    found = load("decode_speed")
    peers = {
        (row["peer"], row["layer"]): row["bfloat16 ms"]
        for row in found["tables"].get("Peers, one token", [])
        if "layer" in row  # else it says why there is no figure
    }
    columns = {
        "layer": "layer",
        "code": "code",
        "bfloat16 ms": "ms, bfloat16",
        "times bfloat16": "times as fast as dense bfloat16",
        "times float32": "float32 as fast as dense float32",
    }
    rows = []
    for row in found["tables"]["One token"]:
        if row["model"] == "LLaVA-1.5-7B" and row["layer"] != "4096 x 11008":
            others = {
                "NF4, ms": peers.get((NF4, row["layer"])),
                "int4, ms": peers.get((INT4, row["layer"])),
            }
            rows.append({new: row[old] for old, new in columns.items()} | others)
    return (
        f"**Run time**, packed layers of LLaVA-1.5-7B, one token "
        f"({processor(found)}; NF4 is bitsandbytes' layer, int4 torchao's, in the same run):\n\n"
        f"{markdown(rows)}\n\n"
        f"{_many_tokens(found['tables'])}"
        "A Llama of 0.4 billion weights writes tokens per second: "
        f"{_tokens_per_second(found['tables']['A model'])}. "
        "Targets that were missed stand in `bench/results/decode_speed.md`.\n\n"
    )


def _many_tokens(tables: Mapping[str, Any]) -> str:
    """Return in words what few and many tokens take at 4 bits."""
    parts = []
    for tokens in ("36 tokens", "512 tokens"):
        (row,) = (row for row in tables[tokens] if row["code"] == "ring 4")
        layer = row["layer"]
        parts.append(f"{tokens} {row['times float32']:.2f} and {row['times bfloat16']:.2f}")
    return (
        f"Many tokens through {layer} at `ring` 4, times as fast as dense in float32 and in "
        f"bfloat16: {', '.join(parts)}.\n\n"
    )


def _tokens_per_second(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of all models in bfloat16 in words."""
    figures = {
        row["model"].removesuffix(", bfloat16"): f"{row['tokens per s']:.1f}"
        for row in models
        if "bfloat16" in row["model"] and "tokens per s" in row
    }
    dense = figures.pop("dense bfloat16")
    others = ", ".join(f"{figure} ({name})" for name, figure in figures.items())
    return f"{dense} (dense bfloat16), {others}"


def loading_text() -> str:
    """Memory and time of loading a packed model."""
    rows = {row["model"]: row for row in load("load")["tables"]["Loading"]}
    four, dense = rows["ring 4"], rows["dense"]
    return (
        f"**Loading** {dense['dense parts MB']:.0f} MB of bfloat16 weights packed at 4 bits: "
        f"{four['resident MB']:.0f} MB resident, {four['resident over stored']:.2f} times the "
        f"stored bytes; {four['loading s']:.2f} s (dense {dense['loading s']:.2f} s), until all "
        f"pages are read {four['all pages s']:.2f} s (dense {dense['all pages s']:.2f} s). "
        "All rows and targets: `bench/results/load.md`.\n\n"
    )


def measured_section() -> str:
    """Codec distortion, speed and memory."""
    speed, codec, memory = load("compress_speed"), load("codec"), load("peak_memory")
    first = speed["tables"]["Side by side"][0]
    heading, distortions = next(iter(codec["tables"].items()))
    columns = ("codec", "B", "bits per weight", "distortion", "table", "Shannon")
    rows = [{c: row[c] for c in columns} for row in distortions if row["table"] is not None]
    worst = max(run["peak_bytes"] / run["bound_bytes"] for run in memory)
    return (
        f"**{heading}**: mean squared error of each codec at B bits per complex entry, the\n"
        f"design's table and the Shannon limit.\n\n{markdown(rows)}\n\n"
        f"**Speed** ({speed['machine']['processor']}, {speed['machine']['cores']} cores): "
        f"{first['matrix']} at rank {first['rank']}, {first['bits']:g} bits, "
        f"{first['alternations']} alternations {first['library s']:.2f} s, "
        f"{first['speedup']:.1f} times as fast as plain torch in the same run; "
        f"all of LLaVA-1.5-7B without data at rank 0 projected {speed['projected_minutes']:.1f} "
        "minutes. On two AVX2 cores the first is 2.5 times as fast as plain torch "
        "(`bench/results/compress_speed_avx2.md`).\n\n"
        + decoding_text()
        + loading_text()
        + "**Memory** of compressing a checkpoint of many shards: at most "
        f"{100 * worst:.0f} % of the bound of 1.5 times its largest matrix's working set plus "
        "500 MB."
    )


SECTIONS: dict[str, Callable[[], str]] = {"quality": quality_section, "measured": measured_section}


def filled(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """Return a document with every marked section made anew."""
    for name, make in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    """Rewrite the README."""
    README.write_text(filled(README.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
