import pytest
import torch

from agreement import assert_close, gradients
from seriatim.core.errors import SeriatimError
from seriatim.vision.vit import GridAttention, ViT, reference


def test_agrees_with_the_reference():
    torch.manual_seed(0)
    layer = GridAttention(12, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64, requires_grad=True)
    found, wanted = layer(x), reference(layer, x)
    inputs = [x, *layer.parameters()]
    assert_close([found], [wanted], 1e-10, "value")
    assert_close(gradients(found, inputs), gradients(wanted, inputs), 1e-9, "gradient")


def test_images_may_grow_and_everything_learns():
    torch.manual_seed(0)
    backbone = ViT(dim=12, depth=2, heads=2, patch=8, size=32, expansion=3.5)
    assert backbone(torch.rand(2, 3, 64, 40)).shape == (2, backbone.features) == (2, 48)
    backbone(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert backbone.blocks[0].feed_forward.up.out_features == 42
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in backbone.parameters())


def test_only_positions_tell_where_a_patch_is():
    """Turned by half a circle, an image gives the same corners in the opposite order where there are no positions."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    half = images.view(2, 3, 4, 4, 4, 4).flip(2, 4).view_as(images)
    for size in (None, 16):
        backbone = ViT(dim=12, depth=2, heads=2, patch=4, size=size).double()
        corners, turned = (backbone(x).view(2, 4, 12) for x in (images, half))
        assert torch.allclose(corners, turned.flip(1), atol=1e-12) == (size is None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GridAttention(10, 3), "dim is 10 and heads is 3"),
        (lambda: GridAttention(12, 3)(torch.zeros(2, 3, 12)), r"it must be \(batch, rows, columns, 12\)"),
        (lambda: ViT(12, expansion=-1.0), "expansion is -1"),
        (lambda: ViT(12, 1)(torch.zeros(1, 3, 20, 16)), "multiples of 16"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(SeriatimError, match=message):
        call()
