"""Tests of kernels run kernels, whatever SERIATIM_BACKEND says."""

import pytest

from seriatim import ops


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    monkeypatch.delenv("SERIATIM_BACKEND", raising=False)
    with ops.backend("cpu"):
        yield
