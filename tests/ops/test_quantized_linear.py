"""Products with quantised weights, by PyTorch and by the step kernels, against the equation."""

import pytest
import torch
from torch import nn

from seriatim import ops
from seriatim.core.mixer import Mixer
from seriatim.core.stepping import _engines
from seriatim.kernels.cpu import guard
from seriatim.ops import quantized_linear
from seriatim.ops.quantized_linear import byte_linear, nibble_linear, pack_nibbles, reference, unpack_nibbles

SIZES = [
    (1, 1, 1),
    (3, 9, 1),
    (1, 9, 16),
    (3, 24, 64),
    (5, 17, 130),
    (1, 40, 200),
    (2, 9, 320),
    (16, 8, 96),
    (4, 33, 33),
]


class Product(Mixer):
    """A mixer whose step is one product."""

    def __init__(self, dim, function, *weights):
        super().__init__()
        self.dim, self.function, self.count = dim, function, len(weights)
        self.anything = nn.Parameter(torch.zeros(1))
        for index, weight in enumerate(weights):
            self.register_buffer(f"weight{index}", weight)

    def init_state(self, batch):
        return ()

    def mix(self, x, state, reset, lengths):
        return self.function(x, *(getattr(self, f"weight{i}") for i in range(self.count))), ()


def stepped(x, function, *weights):
    """The product by the step kernels, also with fences around every buffer."""
    mixer = Product(x.size(1), function, *weights)
    with torch.no_grad(), ops.backend("cpu"):
        found, _ = mixer.step(x, ())
        assert any(known.program is not None for known in _engines[0]._known[mixer].programs)
        for mode in ("after", "before"):
            with guard.guarded(mode):
                torch.testing.assert_close(mixer.step(x, ())[0], found, rtol=0, atol=0)
    return found


@pytest.mark.parametrize(("rows", "columns", "inner"), SIZES)
@pytest.mark.parametrize("whole", [False, True])
def test_bytes(rows, columns, inner, whole):
    torch.manual_seed(inner)
    x = torch.randint(-127, 128, (rows, inner)).float() if whole else torch.randn(rows, inner)
    weight, scale = torch.randint(-127, 128, (columns, inner), dtype=torch.int8), torch.rand(columns) + 0.1
    wanted = reference(x.double(), weight.double(), scale.double()[:, None], inner)
    for found in (
        byte_linear(x, weight, scale, whole),
        byte_linear(x[:, None], weight, scale, whole)[:, 0],
        stepped(x, lambda x, w, s: byte_linear(x, w, s, whole), weight, scale),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6 if whole else 1e-5, atol=1e-3)
    torch.testing.assert_close(byte_linear(x.double(), weight, scale, whole), wanted, rtol=1e-9, atol=1e-9)


def test_whole_numbers_are_multiplied_without_rounding():
    x, weight = torch.full((1, 4096), -127.0), torch.full((8, 4096), 127, dtype=torch.int8)
    wanted = torch.full((1, 8), -127.0 * 127 * 4096)
    for found in (
        byte_linear(x, weight, torch.ones(8), True),
        stepped(x, lambda x, w, s: byte_linear(x, w, s, True), weight, torch.ones(8)),
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("rows", "columns", "inner"), SIZES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("whole", [False, True])
def test_nibbles(rows, columns, inner, group, whole):
    torch.manual_seed(inner)
    x = torch.randint(-127, 128, (rows, inner)).float() if whole else torch.randn(rows, inner)
    q = torch.randint(-8, 8, (columns, inner))
    scale = (torch.rand(columns, -(-inner // group)) + 0.1).bfloat16()
    weight = pack_nibbles(q)
    assert weight.shape == (columns, -(-inner // 32) * 16)
    assert torch.equal(unpack_nibbles(weight, inner), q.float())
    wanted = reference(x.double(), q.double(), scale.double(), group)
    for found in (
        nibble_linear(x, weight, scale, group, whole),
        stepped(x, lambda x, w, s: nibble_linear(x, w, s, group, whole), weight, scale),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-2 if whole else 1e-4)


def test_both_have_a_graph():
    weight, scale = torch.ones(3, 8, dtype=torch.int8), torch.ones(3)
    torch.library.opcheck(quantized_linear._byte_linear, (torch.ones(2, 8), weight, scale, True))
    pairs = pack_nibbles(torch.ones(3, 8))
    torch.library.opcheck(
        quantized_linear._nibble_linear, (torch.ones(2, 8), pairs, scale[:, None].bfloat16(), 32, True)
    )
