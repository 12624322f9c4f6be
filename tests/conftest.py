"""For all tests: one thread, fixed seeds, the ops' shapes checked. Tests import what stands beside this (cases.py)."""

import pytest
import torch

from shape_checks import check_all_ops

torch.set_num_threads(1)
check_all_ops()


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.manual_seed(0)
