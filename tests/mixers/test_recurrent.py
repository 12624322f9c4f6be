import pytest
import torch
import torch.nn.functional as F

from seriatim.core.build import build
from seriatim.ops import cell_scan


@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_autocast_does_not_round_the_recurrent_matrix(name):
    mixer, x = build(name, dim=8), torch.randn(2, 30, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(x)
        inputs = mixer.input(x) if name == "gru" else F.linear(x, mixer.input.weight)
    assert inputs.dtype == torch.bfloat16
    inputs, bias = inputs.unflatten(-1, (mixer.gates, 1, 8)), mixer.input.bias.detach().view(-1, 1, 8)
    if name == "gru":
        bias = torch.zeros(3, 1, 8)
        bias[2, 0] = mixer.candidate_bias.detach()
    expected, _ = cell_scan(name, inputs, mixer.recurrent, bias)
    assert torch.equal(y, expected.flatten(-2))
