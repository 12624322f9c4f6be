import pytest
import torch

from agreement import assert_close, gradients
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend
from seriatim.vision.plstm_vision import GridPLSTM, PLSTMVision, reference


def lively(mode, dim=6, heads=2):
    """A layer whose gates and angles depend on the input."""
    torch.manual_seed(0)
    layer = GridPLSTM(dim, heads, mode).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        if layer.angle is not None:
            layer.angle.weight.normal_(std=10)
    return layer


def grid(rows, columns, dim=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, columns, dim, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("mode", ["P", "D"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 1), (4, 5)])
def test_agrees_with_the_reference(mode, rows, columns):
    layer, x = lively(mode), grid(rows, columns).requires_grad_()
    found, wanted = layer(x), reference(layer, x)
    inputs = [x, *layer.parameters()]
    assert_close([found], [wanted], 1e-10, "value")
    assert_close(gradients(found, inputs), gradients(wanted, inputs), 1e-9, "gradient")
    with backend("reference"):
        assert_close([layer(x)], [wanted], 1e-10, "value")


def test_transitions_keep_to_the_modes():
    """Section 4.2: columns of the P-mode's transitions sum to at most 1 in size; the D-mode never turns downwards."""
    x = grid(3, 4)
    p, d = lively("P").gates_of(x).transition, lively("D").gates_of(x).transition
    assert p.abs().sum(-2).max() <= 1 + 1e-12
    assert torch.equal(p[..., 0], p[..., 1])
    assert not d[..., 1, 0].any()
    assert (d[..., 0, 1] != 0).all()
    assert d.abs().max() <= 1


@pytest.mark.parametrize("mode", ["P", "D"])
def test_every_patch_sees_every_other(mode):
    """Not causal: all four directions together reach the whole grid."""
    layer, x = lively(mode), grid(4, 3)[:1].requires_grad_()
    y = layer(x)
    for row in range(4):
        for column in range(3):
            (seen,) = torch.autograd.grad(y[0, row, column].sum(), x, retain_graph=True)
            assert (seen.abs().sum(-1) > 0).all()


def test_begins_as_the_paper_says():
    """Table 4: source and mark -4, direct -6, transition tanh(5), angles over the heads from -2 to 2."""
    p, d = GridPLSTM(12, 3, "P"), GridPLSTM(12, 3, "D")
    assert p.angle.bias.view(4, 3)[2].tolist() == [-2, 0, 2]
    assert p.gates.bias.view(3, 12)[:, 0].tolist() == [-4, 1, -4]
    assert d.gates.bias.view(7, 12)[:, 0].tolist() == [-4, -4, 1, 1, 1, -4, -4]
    assert p.direct.bias.unique().item() == d.direct.bias.unique().item() == -6
    assert not any(layer.weight.any() for layer in (p.gates, p.angle, p.direct, d.gates, d.direct))


def test_blocks_take_turns_and_images_may_grow():
    torch.manual_seed(0)
    backbone = PLSTMVision(dim=12, depth=3, heads=2, patch=8, size=32)
    assert [block.layer.mode for block in backbone.blocks] == ["P", "D", "P"]
    small, large = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 40)
    assert backbone(small).shape == (2, backbone.features) == (2, 48)
    assert backbone(large).shape == (2, 48)
    backbone(large).sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in backbone.parameters())


def test_features_are_the_corners_in_their_places():
    """A change in the lower right is seen in all corners, most in that one, the last."""
    torch.manual_seed(0)
    backbone = PLSTMVision(dim=12, depth=1, heads=2, patch=4, size=None).double()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    changed = image.clone()
    changed[..., 12:, 12:] = 0
    corners, other = backbone(image).view(4, 12), backbone(changed).view(4, 12)
    assert ((corners - other).abs().amax(1) > 1e-9).all()
    assert ((corners - other).abs().amax(1)[3] > (corners - other).abs().amax(1)[:3]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GridPLSTM(10, 3), "dim is 10 and heads is 3"),
        (lambda: GridPLSTM(12, 3, "Q"), "mode is 'Q'; it must be one of D, P"),
        (
            lambda: GridPLSTM(12, 3)(torch.zeros(2, 3, 12)),
            r"x has shape \(2, 3, 12\); it must be \(batch, rows, columns, 12\)",
        ),
        (lambda: PLSTMVision(12, modes=""), "modes is ''; it must be P and D"),
        (lambda: PLSTMVision(12, size=50), "size is 50 and patch is 16"),
        (
            lambda: PLSTMVision(12, 1)(torch.zeros(1, 3, 20, 16)),
            r"images has shape \(1, 3, 20, 16\); it must be .* multiples of 16",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(SeriatimError, match=message):
        call()
