"""Every mixer, backbone and model keeps the contract."""

import pytest
import torch

from cases import CASES, Case
from seriatim import build, ops
from seriatim.core.build import names
from seriatim.core.mixer import Mixer
from seriatim.nn.batch_norm import BatchNorm
from seriatim.testing import check_mixer


def built(case: Case) -> Mixer:
    torch.manual_seed(0)
    mixer = build(case.name, **case.options)
    if case.reads:
        for module in mixer.modules():
            if isinstance(module, BatchNorm):
                module.momentum = 1.0
        mixer(torch.randn(8, 40, mixer.dim))
    return mixer


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_conforms(case):
    check_mixer(built(case), skip=case.skip)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_reference_backend_computes_the_same(case):
    with ops.backend("reference"):
        check_mixer(built(case), only=["equals_reference"], skip=case.skip)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_float32_without_kernels_is_right(case):
    with ops.backend("torch"):
        check_mixer(built(case), only=["single_outputs", "single_gradients"], skip=case.skip)


@pytest.mark.parametrize("kind", ["mixer", "model"])
def test_everything_that_has_a_name_has_a_case(kind):
    assert set(names(kind)) <= {case.name for case in CASES}
