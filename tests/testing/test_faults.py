"""Each wrong mixer is caught, by the checks that are about its fault; and every check catches one."""

import faulty_making
import faulty_reading
import faulty_single
import pytest
import torch
from toy_mixers import reference

from seriatim.testing import CHECKS, ConformanceError, check_mixer

DIM = 4
FAULTS = faulty_reading.FAULTS | faulty_making.FAULTS | faulty_single.FAULTS


@pytest.mark.parametrize("faulty", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_is_caught(faulty):
    torch.manual_seed(0)
    with pytest.raises(ConformanceError) as caught:
        check_mixer(faulty(DIM), reference=reference, only=FAULTS[faulty])
    assert caught.value.failures.keys() == FAULTS[faulty]


def test_every_check_catches_a_fault():
    assert set().union(*FAULTS.values()) == CHECKS.keys()
