"""Tests that need a GPU: all of this folder, skipped with the reason where there is none."""

from __future__ import annotations

import pytest

import llava_fa


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = llava_fa.cuda_unavailable_reason()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("needs_gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))
