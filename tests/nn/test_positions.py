import math

import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.nn.lrpe import coordinates, lrpe, lrpe_angles
from seriatim.nn.toeplitz_positions import ToeplitzPositions, reference


def test_tokens_are_read_row_by_row():
    assert coordinates(torch.tensor([[0, 4, 5, 11]]), [5])[0].tolist() == [[0, 0], [0, 4], [1, 0], [2, 1]]
    assert coordinates(torch.tensor([[7]]), [])[0].tolist() == [[7]]
    assert coordinates(torch.tensor([[13]]), [2, 3])[0].tolist() == [[2, 0, 1]]


def test_products_depend_on_distances_along_each_axis():
    q, k = torch.randn(2, 1, 1, 2, 6, dtype=torch.float64)

    def product(a, b):
        angles = (lrpe_angles(torch.tensor([[place]]), 2, 6, 100.0, torch.float64) for place in (a, b))
        turned = [lrpe(z, angle) for z, angle in zip((q, k), angles, strict=True)]
        return (turned[0] * turned[1]).sum(-1)

    assert torch.allclose(product([3, 8], [1, 9]), product([7, 4], [5, 5]))
    assert not torch.allclose(product([3, 8], [1, 9]), product([8, 3], [9, 1]))


def test_the_angles_are_those_of_the_equation():
    angles = lrpe_angles(torch.tensor([[[3, 5]]]), 2, 4, 100.0, torch.float64)[0, 0]
    for head in range(2):
        for feature in range(4):
            theta = 100.0 ** (-2 * (head * 4 + feature % 2) / 8)
            assert angles[head, feature].item() == pytest.approx([3, 5][feature // 2] * theta)


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 4), (2, 3, 2)])
def test_toeplitz_positions_equal_their_reference(sizes):
    made = ToeplitzPositions(3, axes=len(sizes), state_size=2).double()
    x = torch.randn(2, *sizes, 3, dtype=torch.float64)
    assert torch.allclose(made(x), reference(made, x), atol=1e-12)


def test_a_single_row_is_a_sequence():
    """Of an image of one row, the rows' filter sees a single token: its weight there is t_0."""
    image, line = ToeplitzPositions(3, axes=2).double(), ToeplitzPositions(3).double()
    with torch.no_grad():
        for name in ("alpha", "beta", "gamma"):
            getattr(line, name).copy_(getattr(image, name)[1:])
    x = torch.randn(2, 1, 9, 3, dtype=torch.float64)
    alone = (image.alpha[0] * image.beta[0]).sum(-1) * x
    assert torch.allclose(image(x), line(x[:, 0])[:, None] + alone)


def test_the_filters_fade():
    made = ToeplitzPositions(1, state_size=1)
    with torch.no_grad():
        made.alpha.fill_(1.0), made.beta.fill_(1.0), made.gamma.fill_(math.log(math.log(2)))
    impulse = torch.tensor([[[1.0], [0.0], [0.0]]])
    assert made(impulse).flatten().tolist() == pytest.approx([1, 0.5, 0.25])


def test_another_number_of_axes_is_refused():
    with pytest.raises(SeriatimError, match="x has shape"):
        ToeplitzPositions(3, axes=2)(torch.zeros(2, 5, 3))
