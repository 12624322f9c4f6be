"""S4ND: its grids, and the resolution it reads them at."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError


def test_turned_images_are_answered_by_turned_axes():
    """Rows and columns are of one kind: an image that is transposed is what the mixer with its axes swapped reads."""
    torch.manual_seed(0)
    mixer, other = (build("s4nd", dim=3, state_size=4, shape=[width], rank=2).double() for width in (4, 5))
    names = {"axes.0": "axes.1", "axes.1": "axes.0"}
    other.load_state_dict({names.get(key[:6], key[:6]) + key[6:]: value for key, value in mixer.state_dict().items()})
    image = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    y = mixer(image.flatten(1, 2))[0].view_as(image)
    turned = other(image.transpose(1, 2).flatten(1, 2))[0].view(2, 4, 5, 3)
    assert_close([turned.transpose(1, 2)], [y], 1e-9, "output")


def test_half_the_resolution_at_twice_the_rate():
    """A smooth image with a quarter of the cells, read with steps twice as long, is answered alike."""
    torch.manual_seed(0)
    mixer = build("s4nd", dim=3, state_size=4, shape=[64]).double()
    for axis in mixer.axes:
        torch.nn.init.constant_(axis.log_step, -4.0)
    place = torch.linspace(0, 3, 64, dtype=torch.float64)
    image = (torch.sin(place)[:, None] * torch.cos(2 * place))[..., None].expand(-1, -1, 3)
    fine = mixer(image.reshape(1, -1, 3))[0].view(64, 64, 3)[::2, ::2]
    coarse = build("s4nd", dim=3, state_size=4, shape=[32], rate=2.0).double()
    coarse.load_state_dict(mixer.state_dict())
    y = coarse(image[::2, ::2].reshape(1, -1, 3))[0].view(32, 32, 3)
    assert (y - fine).abs().max() < 0.1 * fine.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": 5}, r"shape is 5; it must be a list of sizes"),
        ({"shape": [4, 0]}, r"shape\[1\] is 0; it must be a whole number above 0"),
        ({"state_size": 7}, "state_size is 7; it must be even"),
        ({"rank": 0}, "rank is 0; it must be a whole number above 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("s4nd", dim=3, **options)
