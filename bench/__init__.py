"""Benches of llava_fa: one file per question, run as ``python -m bench.NAME`` from the root."""
