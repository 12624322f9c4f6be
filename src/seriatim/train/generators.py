"""The random generators that training code may draw from: Python's, NumPy's and torch's, on every device."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["capture", "restore", "seed"]


def seed(value: int) -> None:
    """Seeds all of them. The initial weights and dropout draw from torch's."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def capture() -> dict[str, Tensor]:
    """Where all generators stand."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    position, keys = legacy["state"]["pos"], legacy["state"]["key"]
    states = {
        "python": torch.tensor([version, *words]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, legacy["has_gauss"], legacy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore(states: dict[str, Any]) -> None:
    """Puts all generators where `capture` found them."""
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), next(iter(states["python_gauss"].tolist()), None)))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.set_rng_state(states["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)
