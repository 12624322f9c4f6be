"""What LightNet reduces to."""

import pytest
import torch

from seriatim import build
from seriatim.mixers.linear_attention import lightnet
from seriatim.nn import lrpe


def pair(first, second, **options):
    made = [build("lightnet", dim=16, heads=2, **options, **each).double() for each in (first, second)]
    made[1].load_state_dict(made[0].state_dict())
    return made


def test_without_positions_an_image_is_a_bag_of_tokens():
    image, line = pair({"shape": [3]}, {}, causal=False, lrpe=False)
    x, order = torch.randn(2, 12, 16, dtype=torch.float64), torch.randperm(12)
    assert torch.allclose(image(x)[0], line(x)[0])
    assert torch.allclose(image(x[:, order])[0], image(x)[0][:, order])


@pytest.mark.parametrize("causal", [True, False])
def test_an_image_of_one_row_is_a_sequence(causal, monkeypatch):
    """Its first half of features, which would turn with the row, stands still; the others turn with the column."""
    image, line = pair({"shape": [9]}, {}, causal=causal)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    row = image(x)[0]

    def columns(places, heads, features, base, dtype):
        turning = lrpe.lrpe_angles(places, heads, features, base, dtype)[..., : features // 2]
        return torch.cat([torch.zeros_like(turning), turning], -1)

    monkeypatch.setattr(lightnet, "lrpe_angles", columns)
    assert torch.allclose(line(x)[0], row)


def test_the_last_token_sees_the_same_causal_or_not():
    causal, whole = pair({"causal": True}, {"causal": False})
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    assert torch.allclose(causal(x)[0][:, -1], whole(x)[0][:, -1])


def test_places_matter_along_each_axis():
    image = build("lightnet", dim=16, heads=2, causal=False, shape=[3]).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    rows_exchanged = x[:, [3, 4, 5, 0, 1, 2]]
    turned = x.view(1, 2, 3, 16).transpose(1, 2).reshape(1, 6, 16)
    y = image(x)[0]
    assert torch.allclose(image(rows_exchanged)[0][:, [3, 4, 5, 0, 1, 2]], y)  # distances are the same: cos is even
    assert not torch.allclose(image(turned)[0].view(1, 3, 2, 16).transpose(1, 2).reshape(1, 6, 16), y)


def test_a_far_larger_key_takes_all():
    mixer = build("lightnet", dim=16, heads=2, lrpe=False)
    x = torch.randn(1, 40, 16)
    y, state = mixer(torch.cat([1e4 * x, x], 1))
    assert y.isfinite().all()
    assert state.memory.isfinite().all()
